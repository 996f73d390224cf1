//! `Worker`: pods that consume a Queue, each with Warren's sidecar beside the application.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::queue::OBJECT_NAME;
use crate::template::Template;

/// How much longer than the handler's time-out a drain lasts at least, in seconds.
pub const DRAIN_MARGIN_SECONDS: i32 = 15;

/// Pods that consume a Queue: the user's template with Warren's sidecar in each. The smallest Worker is a `queueRef` and a
/// template with one container and its port.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "Worker",
    namespaced,
    status = "WorkerStatus",
    doc = "Pods that consume a Queue, each with Warren's sidecar beside the application.",
    derive = "PartialEq",
    shortname = "wk",
    category = "warren",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Queue", type_ = "string", json_path = ".spec.queueRef.name"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = "1"
    ),
    validation = Rule::new("size(self.metadata.name) <= 52 && !self.metadata.name.contains('.')")
        .message("a Worker's name becomes part of its pods' names and labels: at most 52 characters and no dots")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.handler.container) || self.template.spec.containers.exists(c, c.name == self.handler.container)")
        .message("handler.container names no container of the template: use the name of one, or leave handler.container out for the first"),
    validation = Rule::new("!has(self.shutdown.drainTimeoutSeconds) || self.shutdown.drainTimeoutSeconds >= self.handler.http.timeoutSeconds + 15")
        .message("shutdown.drainTimeoutSeconds must be at least handler.http.timeoutSeconds + 15, so that a running call can end: raise it, or leave it out"),
    validation = Rule::new("!has(self.handler.batch) || self.handler.batch.maxMessages <= self.consumer.prefetch")
        .message("handler.batch.maxMessages cannot exceed consumer.prefetch: a pod never holds more messages than its prefetch. Raise prefetch or lower maxMessages"),
    validation = Rule::new("!has(self.handler.batch) || !self.handler.http.reply")
        .message("handler.http.reply answers one message and cannot be combined with handler.batch: remove one of them")
)]
pub struct WorkerSpec {
    /// The Queue, of the same namespace, to consume.
    pub queue_ref: QueueRef,

    /// Where and how messages are handed to the application.
    #[serde(default)]
    pub handler: Handler,

    /// How messages are consumed.
    #[serde(default)]
    pub consumer: Consumer,

    /// The scale subresource's field: obeyed in scaling modes `External` and `Manual`, ignored in `Builtin`; default 1.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: i32,

    /// How the number of pods follows the load.
    #[serde(default)]
    pub scaling: Scaling,

    /// How pods end.
    #[serde(default)]
    pub shutdown: Shutdown,

    /// How many pods a node drain may take at once: a PodDisruptionBudget; default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<Disruption>,

    /// Warren's container.
    #[serde(default)]
    pub sidecar: Sidecar,

    /// The pod template, as in a Deployment of Kubernetes 1.33.
    pub template: Template,
}

/// A Queue of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueRef {
    /// The Queue's `metadata.name`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME)
        .message("a Queue's name has small letters, digits, '-' and '.' alone: write its metadata.name, of the same namespace"))]
    pub name: String,
}

/// Where and how messages are handed to the application.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Handler {
    /// The template's container that handles messages; default the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,

    /// The HTTP endpoint in that container.
    #[serde(default)]
    pub http: HttpHandler,

    /// Several messages in one POST, as JSON lines; default: one message, one POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// Several messages in one POST.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Messages in a POST at most; default 100.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 2000))]
    pub max_messages: i32,

    /// Milliseconds that the first message waits for others; default 20.
    #[serde(default = "default_batch_wait")]
    #[schemars(range(min = 0, max = 60_000))]
    pub max_wait_milliseconds: i32,
}

fn default_batch() -> i32 {
    100
}

fn default_batch_wait() -> i32 {
    20
}

/// The application's HTTP endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpHandler {
    /// The port on localhost; default the container's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    #[x_kube(validation = Rule::new("self != 9400 && self != 9401")
        .message("ports 9400 and 9401 are the sidecar's: let the application listen on another one"))]
    pub port: Option<i32>,

    /// The path of the POST, with a query if it has one; default "/".
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(format!("self.matches(\"^/[A-Za-z0-9{PATH_MARKS}]*$\")")).message(PATH_MESSAGE))]
    pub path: String,

    /// Seconds after which a call counts as failed; default 30.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: i32,

    /// Send the body of a 2xx answer to the message's `reply_to`, with its `correlation_id`, before the message is acknowledged;
    /// default false.
    #[serde(default)]
    pub reply: bool,

    /// The largest body that is handed over, in bytes; larger messages are dead-lettered. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 134_217_728))]
    pub max_body_bytes: Option<i32>,
}

/// What a path may have beside letters and digits: what is left of a URI's path and query, as a class of a pattern has it.
const PATH_MARKS: &str = "._~!$&'()*+,;=:@%/?-";

/// What is wrong with a path that is none.
pub const PATH_MESSAGE: &str = "path must start with \"/\" and have a URI's characters only: percent-encode others, such as a space as %20";

impl HttpHandler {
    /// Whether the path is one that a handler can be asked by: objects from before the definitions said so may have another.
    pub fn path_is_valid(&self) -> bool {
        let valid = |c: char| c.is_ascii_alphanumeric() || PATH_MARKS.contains(c);
        self.path.starts_with('/') && self.path.chars().all(valid)
    }
}

impl Default for HttpHandler {
    fn default() -> Self {
        Self {
            port: None,
            path: default_path(),
            timeout_seconds: default_timeout(),
            reply: false,
            max_body_bytes: None,
        }
    }
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_timeout() -> i32 {
    30
}

/// How messages are consumed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.concurrency) || self.concurrency <= self.prefetch")
        .message("concurrency cannot exceed prefetch: a pod never holds more messages than its prefetch. Raise prefetch or lower concurrency")
)]
pub struct Consumer {
    /// Messages that a pod holds unacknowledged at most; 1 (the default) is fair dispatch.
    #[serde(default = "default_prefetch")]
    #[schemars(range(min = 1, max = 2000))]
    pub prefetch: i32,

    /// Handler calls at once in a pod; default prefetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2000))]
    pub concurrency: Option<i32>,

    /// Stop consuming: what runs ends, the pods stay; default false.
    #[serde(default)]
    pub paused: bool,

    /// `Fixed` (default), or `Auto`: the window follows the measured load, between concurrency, which must be set lower for that,
    /// and prefetch.
    #[serde(default)]
    pub prefetch_mode: PrefetchMode,

    /// A header's name, or "routing-key": messages with the same value are handled one at a time, in order. Needs
    /// singleActiveConsumer on the Queue, or scaling.maxReplicas: 1 (replicas: 1 in scaling modes External and Manual).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("!(self in ['routingKey', 'routing_key', 'RoutingKey', 'Routing-Key', 'warren-routing-key'])")
        .message("this would be the name of a header: to order by the routing key write \"routing-key\""))]
    pub ordering_key: Option<String>,
}

impl Default for Consumer {
    fn default() -> Self {
        Self {
            prefetch: default_prefetch(),
            concurrency: None,
            paused: false,
            prefetch_mode: PrefetchMode::default(),
            ordering_key: None,
        }
    }
}

/// How the window is chosen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefetchMode {
    /// It is prefetch.
    #[default]
    Fixed,
    /// It follows the measured load; prefetch is its ceiling.
    Auto,
}

fn default_prefetch() -> i32 {
    1
}

fn default_replicas() -> i32 {
    1
}

/// How the number of pods follows the load.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("scaling.minReplicas exceeds scaling.maxReplicas: lower the one or raise the other"),
    validation = Rule::new("!has(self.schedules) || self.schedules.all(s, s.minReplicas <= self.maxReplicas)")
        .message("minReplicas of an entry of scaling.schedules exceeds scaling.maxReplicas: lower the one or raise the other")
)]
pub struct Scaling {
    /// `Builtin` (default): Warren scales by backlog. `External`: an HPA or KEDA writes the scale subresource. `Manual`: you do.
    #[serde(default)]
    pub mode: ScalingMode,

    /// Fewest pods in mode Builtin; default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: i32,

    /// Most pods in mode Builtin; default 50.
    #[serde(default = "default_max_replicas")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_replicas: i32,

    /// Seconds within which the oldest waiting message should start; default 10.
    #[serde(default = "default_target_wait")]
    #[schemars(range(min = 1, max = 86_400))]
    pub target_wait_seconds: i32,

    /// Seconds over which the load is averaged before pods are taken away, at least 30; default 60.
    #[serde(default = "default_stabilization")]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_in_stabilization_seconds: i32,

    /// More pods at least at certain times, in mode Builtin: each entry's minReplicas counts from its firing until any entry
    /// fires. Never fewer than scaling.minReplicas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub schedules: Vec<Schedule>,
}

/// Fewest pods from a time on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// When it begins: minute, hour, day of the month, month, day of the week, as in a CronJob.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^ *(@[A-Za-z]+|[^ ,]+(,[^ ,]+)*( +[^ ,]+(,[^ ,]+)*){4}) *$')")
        .message("cron needs five fields, minute hour day month weekday, such as \"0 8 * * 1-5\" for 8:00 from Monday to Friday"))]
    pub cron: String,

    /// Name of the time zone in the IANA database, such as Europe/Berlin; default UTC.
    #[serde(default = "default_timezone")]
    #[schemars(length(min = 1, max = 64))]
    pub timezone: String,

    /// Fewest pods from then on, until any entry fires.
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: i32,
}

fn default_timezone() -> String {
    "UTC".to_owned()
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: ScalingMode::default(),
            min_replicas: 0,
            max_replicas: default_max_replicas(),
            target_wait_seconds: default_target_wait(),
            scale_in_stabilization_seconds: default_stabilization(),
            schedules: Vec::new(),
        }
    }
}

fn default_max_replicas() -> i32 {
    50
}

fn default_target_wait() -> i32 {
    10
}

fn default_stabilization() -> i32 {
    60
}

/// Who decides the number of pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScalingMode {
    /// Warren, by backlog.
    #[default]
    Builtin,
    /// An HPA or KEDA, through the scale subresource.
    External,
    /// A person, by `kubectl scale` or `spec.replicas`.
    Manual,
}

/// How pods end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// Seconds that a pod may take to finish what it has begun; default and least: handler.http.timeoutSeconds + 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 90_000))]
    pub drain_timeout_seconds: Option<i32>,
}

/// What evictions, such as those of a node drain, may do to the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// Pods that may be away at once because of evictions. At least 1: with 0, no node could be drained.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_unavailable: i32,
}

/// Warren's container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// The sidecar's image; default: the operator's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,

    /// Compute resources; default: requests of 10m CPU and 32Mi memory, no limits. Quote fractions of a CPU, or write 500m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::template::resources_schema")]
    pub resources: Option<ResourceRequirements>,

    /// How much the sidecar logs: error, warn, info (default), debug or trace.
    #[serde(default)]
    pub log_level: LogLevel,

    /// Whether an operator upgrade rolls the pods: `OnNextRollout` (default: not by itself) or `Automatic`.
    #[serde(default)]
    pub upgrade_policy: UpgradePolicy,
}

/// How much is logged.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures that need a person.
    Error,
    /// What may need a person.
    Warn,
    /// Changes of state.
    #[default]
    Info,
    /// Each message too.
    Debug,
    /// Everything.
    Trace,
}

/// When a new operator's sidecar image reaches the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpgradePolicy {
    /// With the next change of the template.
    #[default]
    OnNextRollout,
    /// At once.
    Automatic,
}

/// What the operator saw and did.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Pods that are wanted.
    #[serde(default)]
    pub desired_replicas: i32,

    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// The sidecar image that the pods were last rolled with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar_version: Option<String>,

    /// The last scaling decision, rewritten only when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,

    /// `Ready`, `QueueReady`, `Available`, `ScalingActive`, `TemplateValid`, `HandlerHealthy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// A scaling decision and what it was made from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// The replicas decided.
    pub replicas: i32,
    /// What the formula gave before limits and stabilisation.
    pub raw: i32,
    /// Why, as one CamelCase word.
    pub reason: String,
    /// Why, as a sentence with the numbers.
    pub message: String,
    /// Seconds that a message is at the handler, as measured by then: what an operator that starts anew, or another that leads,
    /// begins with for a Worker at zero. None before any was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_per_message: Option<f64>,
}

impl Worker {
    /// Whether Warren decides the number of its pods: scaling mode `Builtin`.
    pub fn scales_itself(&self) -> bool {
        self.spec.scaling.mode == ScalingMode::Builtin
    }

    /// The conditions of its status; none while it has no status.
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}
