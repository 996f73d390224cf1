//! `Queue`: a durable RabbitMQ queue with its bindings, retry ladder and dead-letter queue.
//!
//! What RabbitMQ cannot change on an existing queue is immutable here too (CEL transition rules). The arguments and their
//! limits are those of <https://www.rabbitmq.com/docs/queues> and <https://www.rabbitmq.com/docs/quorum-queues>.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The delivery limit of a quorum queue whose spec names none.
pub const DEFAULT_DELIVERY_LIMIT: i32 = 100;

/// CEL: text that AMQP can say; `maxLength` counts characters.
const BYTES: &str = "size(bytes(self)) <= 255";
/// What Kubernetes takes as the name of most objects, see
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names>.
pub(crate) const OBJECT_NAME: &str = "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')";

/// The message of each field that RabbitMQ cannot change.
macro_rules! immutable {
    ($field:literal) => {
        concat!(
            $field,
            " is immutable: RabbitMQ cannot change it on an existing queue. Create a second Queue with the new value and move ",
            "bindings and Workers over (docs/changing-a-queue.md)"
        )
    };
}

/// CEL: a required or defaulted field keeps its value.
macro_rules! same {
    ($field:literal) => {
        concat!("self.", $field, " == oldSelf.", $field)
    };
}

/// CEL: an optional field keeps its value, or stays absent.
macro_rules! same_or_absent {
    ($field:literal) => {
        concat!(
            "has(self.",
            $field,
            ") == has(oldSelf.",
            $field,
            ") && (!has(self.",
            $field,
            ") || self.",
            $field,
            " == oldSelf.",
            $field,
            ")"
        )
    };
}

/// A durable work queue on a RabbitMQ broker, with its bindings, retry ladder and dead-letter queue. `spec: {}` is a whole
/// Queue: the broker of Secret "rabbitmq", the name from the metadata, a quorum queue, the default ladder.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "Queue",
    namespaced,
    status = "QueueStatus",
    doc = "A durable work queue on a RabbitMQ broker, with its bindings, retry ladder and dead-letter queue.",
    derive = "PartialEq",
    derive = "Default",
    shortname = "wq",
    category = "warren",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Queue", type_ = "string", json_path = ".status.queueName"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Broker", type_ = "string", json_path = ".status.brokerAddress", priority = "1"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = "1"
    ),
    validation = Rule::new("has(self.spec.queueName) || size(self.metadata.name) <= 230")
        .message("metadata.name names the broker's queue and may have at most 230 characters: shorten it or set spec.queueName"),
    validation = Rule::new("has(self.spec.queueName) || !self.metadata.name.startsWith('amq.')")
        .message("RabbitMQ keeps names that start with \"amq.\" for itself: choose another metadata.name or set spec.queueName")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(same_or_absent!("queueName")).message(immutable!("queueName")),
    validation = Rule::new(same!("type")).message(immutable!("type")),
    validation = Rule::new(same!("limits")).message(immutable!("limits")),
    validation = Rule::new(same_or_absent!("deliveryLimit")).message(immutable!("deliveryLimit")),
    validation = Rule::new(same!("singleActiveConsumer")).message(immutable!("singleActiveConsumer")),
    validation = Rule::new(same_or_absent!("maxPriority")).message(immutable!("maxPriority")),
    validation = Rule::new(same_or_absent!("consumerTimeoutSeconds")).message(immutable!("consumerTimeoutSeconds")),
    validation = Rule::new(same!("deadLetter")).message(immutable!("deadLetter")),
    validation = Rule::new("self.adoptionPolicy != 'AsIs' || !has(self.bindings) || self.bindings.size() == 0")
        .message("adoptionPolicy: AsIs binds nothing, as the queue belongs to others: remove bindings, or use Adopt"),
    validation = Rule::new("self.adoptionPolicy != 'AsIs' || self.deletionPolicy == 'Retain'")
        .message("adoptionPolicy: AsIs deletes nothing, as the queue belongs to others: use deletionPolicy: Retain, or Adopt"),
    validation = Rule::new("self.type == 'Quorum' || !has(self.deliveryLimit)")
        .message("deliveryLimit works on quorum queues only: remove it or set type: Quorum"),
    validation = Rule::new("self.type == 'Classic' || !has(self.maxPriority)")
        .message("maxPriority works on classic queues only: remove it or set type: Classic"),
    validation = Rule::new("self.type == 'Quorum' || !has(self.consumerTimeoutSeconds)")
        .message("consumerTimeoutSeconds works on quorum queues only: remove it, set type: Quorum, or set consumer_timeout on the broker"),
    validation = Rule::new("self.type == 'Quorum' || self.retry.delaysSeconds.size() == 0 || self.limits.overflow == 'DropHead' || (!has(self.limits.maxLength) && !has(self.limits.maxLengthBytes))")
        .message("a length limit with overflow: RejectPublish beside a retry ladder needs type: Quorum: a full classic queue drops expired retries. Use type: Quorum, overflow: DropHead, or retry: {delaysSeconds: []}"),
    // One that came before this rule could not be changed otherwise: none of these fields can.
    validation = Rule::new("oldSelf.hasValue() || self.type == 'Quorum' || !has(self.deadLetter.maxLength) || (!has(self.limits.messageTtlSeconds) && (self.limits.overflow != 'DropHead' || (!has(self.limits.maxLength) && !has(self.limits.maxLengthBytes))))")
        .message("deadLetter.maxLength beside limits.messageTtlSeconds, or a length limit with overflow: DropHead, needs type: Quorum: what a classic queue dead-letters by itself is lost where the dead-letter queue is full. Use type: Quorum, or leave deadLetter.maxLength out")
        .optional_old_self(true)
)]
pub struct QueueSpec {
    /// The broker that holds the queue.
    #[serde(default)]
    pub broker: BrokerRef,

    /// The queue's name on the broker; default `metadata.name`. At most 230 ASCII letters, digits and `._:-`. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 230), regex(pattern = r"^[A-Za-z0-9._:-]+$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('amq.')")
        .message("RabbitMQ keeps names that start with \"amq.\" for itself: choose another queueName"))]
    pub queue_name: Option<String>,

    /// `Quorum` (replicated, the default) or `Classic`. Always durable. Immutable.
    #[serde(default, rename = "type")]
    pub queue_type: QueueType,

    /// Exchanges that route into the queue; default none. The default exchange reaches it by its name in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(validation = Rule::new("self.all(a, !has(a.declare) || self.all(b, !has(b.declare) || b.exchange != a.exchange || b.declare.type == a.declare.type))")
        .message("an exchange has one type: write the same declare.type in each of its bindings"))]
    pub bindings: Vec<Binding>,

    /// The ladder that a failed message climbs before it is dead-lettered.
    #[serde(default)]
    pub retry: Retry,

    /// The queue "<name>.dlq", which is always there. Immutable.
    #[serde(default)]
    pub dead_letter: DeadLetter,

    /// Length and age limits of the main queue. Immutable.
    #[serde(default)]
    pub limits: Limits,

    /// Quorum only: how often the broker redelivers a message before it dead-letters it by itself; default 100. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub delivery_limit: Option<i32>,

    /// One consumer at a time receives messages, the others stand by; default false. Immutable.
    #[serde(default)]
    pub single_active_consumer: bool,

    /// Classic only: the highest message priority; higher ones count as this. Default: messages have no priorities. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub max_priority: Option<i32>,

    /// Quorum only, RabbitMQ 3.12 and later: how long a delivery may stay unacknowledged; default: the broker's own. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_000_000))]
    pub consumer_timeout_seconds: Option<i32>,

    /// What becomes of the broker's queues when this Queue is deleted: `Retain` (default), `DeleteIfEmpty` or `Delete`.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// What becomes of a queue that exists already: `Adopt` (default), `AsIs` or `FailIfExists`.
    #[serde(default)]
    pub adoption_policy: AdoptionPolicy,
}

/// What becomes of the broker's queues when the Queue is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They stay, with their messages and bindings.
    #[default]
    Retain,
    /// They are deleted once main, retry and dead-letter queues are empty and no Worker consumes; else the deletion waits.
    DeleteIfEmpty,
    /// They are deleted, with their messages.
    Delete,
}

/// What becomes of a queue that exists on the broker before this Queue.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdoptionPolicy {
    /// A queue that is as the spec asks is taken over.
    #[default]
    Adopt,
    /// The queue must exist and belongs to others: it is only looked at, never declared, bound or deleted. Warren adds its
    /// retry and dead-letter queues beside it.
    AsIs,
    /// The queue must not exist: it is somebody else's.
    FailIfExists,
}

/// Where the broker is, and as whom to speak to it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerRef {
    /// Secret of the same namespace with the broker's address and a user with configure rights; default "rabbitmq".
    #[serde(default)]
    pub secret_ref: SecretRef,

    /// Secret of the same namespace that the Workers' sidecars use (read and write rights suffice); default: secretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_secret_ref: Option<WorkerSecretRef>,

    /// Virtual host; default: the Secret's, else "/".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(BYTES)
        .message("vhost may have at most 255 bytes, as AMQP takes no more: use a shorter one"))]
    pub vhost: Option<String>,
}

/// A Secret of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// The Secret's name.
    #[serde(default = "default_secret_name")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message(SECRET_NAME))]
    pub name: String,
}

/// A Secret of the same namespace. It has no default: an empty one would be another broker's, maybe.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct WorkerSecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message(SECRET_NAME))]
    pub name: String,
}

/// What is said to a name that no Secret has.
const SECRET_NAME: &str = "a Secret's name has small letters, digits, '-' and '.' alone: write its metadata.name, of the same namespace";

impl Default for SecretRef {
    fn default() -> Self {
        Self { name: default_secret_name() }
    }
}

fn default_secret_name() -> String {
    "rabbitmq".to_owned()
}

/// The kind of queue, see <https://www.rabbitmq.com/docs/queues>.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueType {
    /// A replicated queue that keeps every message over a restart.
    #[default]
    Quorum,
    /// A queue on one node that keeps persistent messages over a restart.
    Classic,
}

impl QueueType {
    /// The value of the `x-queue-type` argument.
    pub const fn as_argument(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// A route from an exchange into the queue.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.declare) || !self.exchange.startsWith('amq.')")
        .message("RabbitMQ keeps exchanges that start with \"amq.\" for itself and has declared them: leave out declare"),
    validation = Rule::new("!has(self.declare) || self.exchange.matches('^[A-Za-z0-9._:-]+$')")
        .message("an exchange that Warren declares may have ASCII letters, digits and ._:- in its name: choose such a name, or leave out declare")
)]
pub struct Binding {
    /// The exchange's name, at most 255 bytes. One that Warren declares may have ASCII letters, digits and `._:-` in it.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\r\n]+$"))]
    #[x_kube(validation = Rule::new(BYTES)
        .message("exchange may have at most 255 bytes, as AMQP takes no more"))]
    pub exchange: String,

    /// The routing key or pattern; default empty. At most 255 bytes.
    #[serde(default)]
    #[schemars(length(max = 255), regex(pattern = r"^[^\r\n]*$"))]
    #[x_kube(validation = Rule::new(BYTES)
        .message("routingKey may have at most 255 bytes, as AMQP takes no more: use a shorter one"))]
    pub routing_key: String,

    /// Arguments of a binding to a headers exchange (such as `x-match`), as text: names of at most 63 characters, values of at
    /// most 255, 3 KiB in all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = json!({"type": "string", "maxLength": 255})))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) <= 63)")
        .message("an argument's name may have at most 63 characters: use a shorter one"))]
    pub arguments: BTreeMap<String, String>,

    /// Declare the exchange, durable; without it the exchange must exist, and is used as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declare: Option<DeclareExchange>,
}

/// How to declare an exchange.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct DeclareExchange {
    /// The exchange's type.
    #[serde(rename = "type")]
    pub exchange_type: ExchangeType,
}

/// The types of exchange that every RabbitMQ has.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeType {
    /// Routes by the exact routing key.
    Direct,
    /// Routes to every bound queue.
    Fanout,
    /// Routes by routing-key patterns.
    Topic,
    /// Routes by message headers.
    Headers,
}

/// The retry ladder: attempt n waits `delaysSeconds[n-1]`, the last delay repeats.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.delaysSeconds.isSorted() && self.delaysSeconds.all(d, self.delaysSeconds.exists_one(e, e == d))")
        .message("delaysSeconds must rise: each delay longer than the one before, such as [5, 60, 600]; the last one repeats")
)]
pub struct Retry {
    /// Seconds that a failed message waits before each further attempt, rising, at most 10 of them; default [5, 60, 600]. `[]`: no
    /// retries, the first failure dead-letters.
    #[serde(default = "default_delays")]
    #[schemars(length(max = 10), inner(range(min = 1, max = 2_592_000)))]
    pub delays_seconds: Vec<i32>,

    /// Attempts in all, the first included, before the message is dead-lettered; default 24.
    #[serde(default = "default_max_attempts")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_attempts: i32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { delays_seconds: default_delays(), max_attempts: default_max_attempts() }
    }
}

fn default_delays() -> Vec<i32> {
    vec![5, 60, 600]
}

fn default_max_attempts() -> i32 {
    24
}

/// Limits of the dead-letter queue; none unless asked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Seconds after which a dead message is dropped; default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_000_000))]
    pub message_ttl_seconds: Option<i32>,

    /// How many dead messages are kept; default: no limit. When the dead-letter queue is full, further ones are refused: they stay
    /// unacknowledged with the sidecars, and the condition DeadLetterAvailable says so. What
    /// `limits.overflow: DropHead` drops is lost then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub max_length: Option<i32>,
}

/// Limits of the main queue.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// How many ready messages the queue holds; default: no limit. `overflow` says what becomes of more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub max_length: Option<i32>,

    /// How many bytes of ready messages the queue holds; default: no limit. `overflow` says what becomes of more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_length_bytes: Option<i64>,

    /// Seconds after which a waiting message is dead-lettered; default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_000_000))]
    pub message_ttl_seconds: Option<i32>,

    /// What a queue does that is full by `maxLength` or `maxLengthBytes`. `RejectPublish` (default): it refuses a new message, which
    /// its producer learns only with confirms. `DropHead`: it dead-letters its oldest message; on a quorum queue the broker
    /// then gives no guarantee for what it dead-letters by itself.
    #[serde(default)]
    pub overflow: Overflow,
}

/// What a full queue does with one message more.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The publish is refused (nacked to a publisher that asked for confirms).
    #[default]
    RejectPublish,
    /// The oldest message makes room.
    DropHead,
}

/// What the operator saw and did.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The queue's name on the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_name: Option<String>,

    /// The broker's address, without credentials; the last one while the Secret cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_address: Option<String>,

    /// Under `FailIfExists`: the queue did not exist on the broker of `brokerAddress` when Warren first looked, so that what is there is
    /// Warren's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<bool>,

    /// What was declared and can change, so that what the spec drops can be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Declared>,

    /// `Ready`, `BrokerReachable`, `Declared`; `PersistentMessages` on classic queues, `DeadLetterAvailable` where `deadLetter` has
    /// a `maxLength`, `ConsumerTimeoutEffective` with `consumerTimeoutSeconds`; `DeletionBlocked` while a deletion waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// The mutable part of what was declared on the broker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// Whether the main queue was there: if it is not any more, it is lost with its messages.
    #[serde(default)]
    pub main_queue: bool,

    /// Delays of the retry queues that sidecars use, in seconds: all of them exist once the Queue was declared.
    #[serde(default)]
    pub retry_delays_seconds: Vec<i32>,

    /// The attempts that go with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<i32>,

    /// Delays of further retry queues that may exist: those of a ladder that could not be declared as a whole yet, and those of a former
    /// one that have not gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun_delays_seconds: Vec<i32>,

    /// Bindings that exist, or may, while not all of them could be made.
    #[serde(default)]
    pub bindings: Vec<DeclaredBinding>,
}

impl Declared {
    /// All retry queues of this ladder exist.
    pub fn has_ladder(&mut self, retry: &Retry) {
        let further = self.rungs().filter(|delay| !retry.delays_seconds.contains(delay)).collect();
        self.begun_delays_seconds = further;
        self.retry_delays_seconds.clone_from(&retry.delays_seconds);
        self.max_attempts = Some(retry.max_attempts);
    }

    /// Delays of all retry queues that may exist.
    pub fn rungs(&self) -> impl Iterator<Item = i32> + '_ {
        self.retry_delays_seconds.iter().chain(&self.begun_delays_seconds).copied()
    }
}

/// A binding that was made.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredBinding {
    /// The exchange's name.
    pub exchange: String,
    /// The routing key or pattern.
    pub routing_key: String,
    /// The binding's arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, String>,
}

impl From<&Binding> for DeclaredBinding {
    fn from(binding: &Binding) -> Self {
        let Binding { exchange, routing_key, arguments, declare: _ } = binding.clone();
        Self { exchange, routing_key, arguments }
    }
}

impl Queue {
    /// The queue's name on the broker: `spec.queueName`, else `metadata.name`.
    pub fn broker_name(&self) -> &str {
        self.spec.queue_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// What its status says to be declared, or begun.
    pub fn declared(&self) -> Option<&Declared> {
        self.status.as_ref()?.declared.as_ref()
    }

    /// The conditions of its status; none while it has no status.
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}
