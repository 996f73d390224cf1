//! Step 3: a validated Worker as a ConfigMap, a Deployment and, where it is asked for, a PodDisruptionBudget. Pure.
//!
//! The user's template is kept as the JSON that the user wrote; only the sidecar, its volumes, the drain hook, the grace
//! period and labels are added.

use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use warren_api::conditions::queue::CONSUMER_TIMEOUT_EFFECTIVE;
use warren_api::names::{
    BROKER_DIR, CONFIG_DIR, CONFIG_KEY, MANAGED_BY, MANAGED_BY_LABEL, SIDECAR_CONTAINER, SIDECAR_PORT,
    WORKER_LABEL, config_map, drain_token,
};
use warren_api::queue::{Declared, Retry};
use warren_api::sidecar::{BatchConfig, ConsumerConfig, HandlerConfig, QueueConfig};
use warren_api::worker::UpgradePolicy;
use warren_api::{Queue, SidecarConfig, Worker, headers};

use super::apply::REPLACED;
use super::validate::{BROKER_VOLUME, CONFIG_VOLUME, NO_TOKEN_VOLUME, ValidWorker};
use crate::condition::is_false;

/// Annotation of the Deployment: a digest of what rolls the pods.
pub const TEMPLATE_DIGEST: &str = "warren.dev/template-digest";
/// Where the API server has every container find a token, unless something is mounted there already: the application may want
/// one, and the sidecar needs none.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The user and group of the sidecar.
const SIDECAR_USER: u32 = 65532;
/// Old ReplicaSets that are kept for `kubectl rollout undo`.
const REVISION_HISTORY: u32 = 3;

/// What the pods were last rolled with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rolled {
    /// The digest of what rolls the pods.
    pub digest: Option<String>,
    /// The sidecar's image.
    pub image: Option<String>,
}

/// What is to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// The sidecar's live configuration.
    pub config_map: Value,
    /// The pods.
    pub deployment: Value,
    /// What evictions may do to them; none where the Worker says nothing.
    pub disruption_budget: Option<Value>,
    /// The sidecar image in it.
    pub image: String,
}

/// Builds the objects. `rolled` is what runs, `newest` the sidecar image of this operator's version.
pub fn build(valid: &ValidWorker<'_>, rolled: &Rolled, newest: &str, replicas: u32) -> Built {
    let digest = digest(&what_rolls(valid));
    let image = image(valid.worker, rolled, &digest, newest);
    let name = valid.worker.name_any();
    let metadata = |name: &str, annotations: Value| {
        json!({
            "name": name,
            "namespace": valid.worker.namespace(),
            "labels": labels(&valid.worker.name_any()),
            "annotations": annotations,
            "ownerReferences": valid.worker.controller_owner_ref(&()).map_or_else(|| json!([]), |owner| json!([owner])),
        })
    };
    // A configuration is text and numbers, which always are JSON.
    let config = serde_json::to_string_pretty(&sidecar_config(valid)).unwrap_or_default();
    Built {
        config_map: json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(&config_map(&name), json!({})),
            "data": {CONFIG_KEY: config},
        }),
        deployment: json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(&name, json!({TEMPLATE_DIGEST: digest})),
            "spec": {
                "replicas": replicas,
                // Somebody's `kubectl rollout pause` would keep every change from the pods, and nothing would say so.
                "paused": false,
                "revisionHistoryLimit": REVISION_HISTORY,
                "selector": {"matchLabels": {WORKER_LABEL: name}},
                "strategy": strategy(valid),
                "template": pod_template(valid, &image),
            },
        }),
        disruption_budget: valid.worker.spec.disruption.as_ref().map(|disruption| {
            json!({
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": metadata(&name, json!({})),
                "spec": {
                    "maxUnavailable": disruption.max_unavailable,
                    "selector": {"matchLabels": {WORKER_LABEL: name}},
                    // A pod that is not well does no work that an eviction would end: it must not hold up a drain.
                    "unhealthyPodEvictionPolicy": "AlwaysAllow",
                },
            })
        }),
        image,
    }
}

/// How a rollout replaces pods. Where one replica alone keeps the order, the new pod must not consume beside the old one.
fn strategy(valid: &ValidWorker<'_>) -> Value {
    if valid.only_pod.is_some() { json!({"type": "Recreate"}) } else { json!({"type": "RollingUpdate"}) }
}

/// The labels of what the operator makes for a Worker.
fn labels(worker: &str) -> Value {
    json!({
        WORKER_LABEL: worker,
        "app.kubernetes.io/name": worker,
        "app.kubernetes.io/component": "worker",
        MANAGED_BY_LABEL: MANAGED_BY,
    })
}

/// What rolls the pods when it changes.
fn what_rolls(valid: &ValidWorker<'_>) -> Value {
    let spec = &valid.worker.spec;
    let sidecar = &spec.sidecar;
    json!([
        spec.template,
        valid.container,
        valid.port,
        spec.shutdown,
        sidecar.image,
        sidecar.resources,
        sidecar.log_level,
    ])
}

/// A short digest of a JSON value.
pub(super) fn digest(value: &Value) -> String {
    Sha256::digest(value.to_string()).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// An operator upgrade restarts no pod: the image stays until something else rolls the pods.
fn image(worker: &Worker, rolled: &Rolled, digest: &str, newest: &str) -> String {
    let sidecar = &worker.spec.sidecar;
    if let Some(image) = sidecar.image.as_deref().filter(|image| !image.is_empty()) {
        return image.to_owned();
    }
    match (&rolled.image, sidecar.upgrade_policy) {
        (Some(image), UpgradePolicy::OnNextRollout)
            if rolled.digest.as_deref().is_some_and(|rolled| [digest, REPLACED].contains(&rolled)) =>
        {
            image.clone()
        }
        _ => newest.to_owned(),
    }
}

fn sidecar_config(valid: &ValidWorker<'_>) -> SidecarConfig {
    let (spec, queue) = (&valid.worker.spec, valid.queue);
    let prefetch = u16::try_from(spec.consumer.prefetch).unwrap_or(1);
    let concurrency = spec.consumer.concurrency.and_then(|c| u16::try_from(c).ok()).unwrap_or(prefetch);
    let (retry_delays_seconds, max_attempts) = ladder(queue);
    SidecarConfig {
        namespace: valid.worker.namespace().unwrap_or_default(),
        worker: valid.worker.name_any(),
        secret: Some(valid.secret.clone()),
        queue: QueueConfig {
            name: queue.broker_name().to_owned(),
            queue_type: queue.spec.queue_type,
            vhost: queue.spec.broker.vhost.clone(),
            retry_delays_seconds,
            max_attempts,
            consumer_timeout_seconds: consumer_timeout(queue),
        },
        handler: HandlerConfig {
            path: spec.handler.http.path.clone(),
            timeout_seconds: spec.handler.http.timeout_seconds.unsigned_abs(),
            reply: spec.handler.http.reply,
            max_body_bytes: spec.handler.http.max_body_bytes.map(|bytes| u64::from(bytes.unsigned_abs())),
            batch: spec.handler.batch.as_ref().map(|batch| BatchConfig {
                max_messages: u16::try_from(batch.max_messages).unwrap_or(1),
                max_wait_milliseconds: batch.max_wait_milliseconds.unsigned_abs(),
            }),
        },
        consumer: ConsumerConfig {
            prefetch,
            concurrency,
            paused: valid.held,
            prefetch_mode: spec.consumer.prefetch_mode,
            ordering_key: spec.consumer.ordering_key.clone(),
            only_pod: valid.only_pod.clone(),
        },
    }
}

/// The retry ladder that the sidecars use, with its attempts: the spec's once all its rungs are on the broker, and until then the whole one that
/// was declared before. A part of the spec's would use up attempts too fast, and no rung at all dead-letters at the first
/// failure. Before the first declaration it is the spec's too: a copy for a rung that is missing comes back, and its delivery
/// stays unacknowledged until the rung is there.
fn ladder(queue: &Queue) -> (Vec<u32>, u32) {
    let Retry { delays_seconds: wanted, max_attempts } = &queue.spec.retry;
    let is_there = |declared: &Declared| wanted.iter().all(|d| declared.retry_delays_seconds.contains(d));
    let former = queue.declared().filter(|declared| !is_there(declared));
    let delays = former.map_or(wanted, |declared| &declared.retry_delays_seconds);
    let attempts = former.and_then(|declared| declared.max_attempts).unwrap_or(*max_attempts);
    let mut delays: Vec<u32> = delays.iter().map(|delay| delay.unsigned_abs()).collect();
    delays.sort_unstable();
    (delays, attempts.unsigned_abs())
}

/// The Queue's own consumer timeout; none where its broker is known to go by another.
fn consumer_timeout(queue: &Queue) -> Option<u32> {
    let ignored = is_false(queue.conditions(), CONSUMER_TIMEOUT_EFFECTIVE);
    queue.spec.consumer_timeout_seconds.filter(|_| !ignored).map(i32::unsigned_abs)
}

fn pod_template(valid: &ValidWorker<'_>, image: &str) -> Value {
    let Value::Object(mut template) = valid.worker.spec.template.value() else { return Value::Null };
    let token = drain_token(&valid.worker.uid().unwrap_or_default());
    let metadata = pod_metadata(take_map(&mut template, "metadata"), &valid.worker.name_any());
    let mut spec = take_map(&mut template, "spec");
    let account = service_account(&mut spec);
    spec.insert("serviceAccountName".to_owned(), account.into());
    spec.insert("terminationGracePeriodSeconds".to_owned(), valid.grace_seconds.into());
    let containers = take_list(&mut spec, "containers").into_iter().map(with_protocols);
    let containers = containers.map(|container| match container {
        Value::Object(container) if container.get("name").is_some_and(|name| *name == valid.container) => {
            with_drain_hook(container, &token)
        }
        other => other,
    });
    let containers: Vec<Value> = containers.collect();
    let mut init: Vec<Value> =
        take_list(&mut spec, "initContainers").into_iter().map(with_protocols).collect();
    init.push(sidecar(valid, image, &token, telemetry(valid, &containers)));
    let mut volumes: Vec<Value> = take_list(&mut spec, "volumes").into_iter().map(with_source).collect();
    volumes.push(json!({"name": CONFIG_VOLUME, "configMap": {"name": config_map(&valid.worker.name_any())}}));
    volumes.push(json!({"name": BROKER_VOLUME, "secret": {"secretName": valid.secret}}));
    // An `emptyDir` would count as data on the node: neither `kubectl drain` nor a cluster autoscaler would take the pod away.
    volumes.push(json!({"name": NO_TOKEN_VOLUME, "downwardAPI": {}}));
    for (key, items) in [("containers", containers), ("initContainers", init), ("volumes", volumes)] {
        spec.insert(key.to_owned(), items.into());
    }
    template.insert("metadata".to_owned(), metadata.into());
    template.insert("spec".to_owned(), spec.into());
    template.into()
}

/// Server-side apply knows a port by its number and protocol, and an empty one, which is stored as TCP, is another port each time.
fn with_protocols(mut container: Value) -> Value {
    let ports = container.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.retain(|field, value| field != "protocol" || value != "");
    }
    container
}

/// A volume without a source is an empty folder, and the API server writes that down, where it is nobody's: with the source that it
/// has got later it would have two.
fn with_source(volume: Value) -> Value {
    match volume {
        Value::Object(mut volume) if volume.keys().all(|key| key == "name") => {
            volume.insert("emptyDir".to_owned(), json!({}));
            volume.into()
        }
        other => other,
    }
}

/// The pods' account, by its one name. It is always said, since the API server keeps the former one, under the field's old name
/// (<https://github.com/kubernetes/kubernetes/issues/72519>), where an apply says nothing.
fn service_account(spec: &mut Map<String, Value>) -> String {
    let said = ["serviceAccountName", "serviceAccount"].map(|name| spec.remove(name));
    let said = said.iter().flatten().filter_map(Value::as_str).find(|name| !name.is_empty());
    said.unwrap_or("default").to_owned()
}

fn pod_metadata(mut metadata: Map<String, Value>, worker: &str) -> Map<String, Value> {
    metadata.remove("creationTimestamp");
    let mut labels = take_map(&mut metadata, "labels");
    labels.insert(WORKER_LABEL.to_owned(), worker.into());
    for (label, value) in [("app.kubernetes.io/name", worker), (MANAGED_BY_LABEL, MANAGED_BY)] {
        labels.entry(label).or_insert_with(|| value.into());
    }
    let mut annotations = take_map(&mut metadata, "annotations");
    for annotation in ["traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports"]
    {
        let ports = match annotations.get(annotation).and_then(Value::as_str) {
            Some(ports) if !ports.is_empty() => format!("{ports},{SIDECAR_PORT}"),
            _ => SIDECAR_PORT.to_string(),
        };
        annotations.insert(annotation.to_owned(), ports.into());
    }
    metadata.insert("labels".to_owned(), labels.into());
    metadata.insert("annotations".to_owned(), annotations.into());
    metadata
}

/// A hook of the user's own stays.
fn with_drain_hook(mut container: Map<String, Value>, token: &str) -> Value {
    let mut lifecycle = take_map(&mut container, "lifecycle");
    lifecycle.entry("preStop").or_insert_with(|| drain_hook(token));
    container.insert("lifecycle".to_owned(), lifecycle.into());
    container.into()
}

fn take_map(map: &mut Map<String, Value>, key: &str) -> Map<String, Value> {
    match map.remove(key) {
        Some(Value::Object(taken)) => taken,
        _ => Map::new(),
    }
}

fn take_list(map: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match map.remove(key) {
        Some(Value::Array(taken)) => taken,
        _ => Vec::new(),
    }
}

/// The kubelet keeps the container alive until the sidecar has drained.
fn drain_hook(token: &str) -> Value {
    json!({"httpGet": {
        "path": "/drain",
        "port": SIDECAR_PORT,
        "httpHeaders": [{"name": headers::DRAIN_TOKEN, "value": token}],
    }})
}

/// Where the application's spans go, the sidecar's go too: the standard variables of the container whose calls it makes.
fn telemetry(valid: &ValidWorker<'_>, containers: &[Value]) -> Vec<Value> {
    let handler = containers.iter().find(|container| container["name"] == valid.container.as_str());
    let variables = handler.and_then(|container| container["env"].as_array()).into_iter().flatten();
    let mut taken: Vec<Value> = Vec::new();
    // A value may name variables that come before it.
    for variable in variables.rev() {
        let name = variable["name"].as_str().unwrap_or_default();
        let reference = format!("$({name})");
        let names = |later: &Value| later["value"].as_str().is_some_and(|value| value.contains(&reference));
        if name.starts_with("OTEL_") || taken.iter().any(names) {
            taken.push(variable.clone());
        }
    }
    taken.reverse();
    taken
}

/// A native sidecar, last of the init containers: whatever the user starts before it outlives it.
fn sidecar(valid: &ValidWorker<'_>, image: &str, token: &str, telemetry: Vec<Value>) -> Value {
    let sidecar = &valid.worker.spec.sidecar;
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": SIDECAR_PORT},
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    let resources = match &sidecar.resources {
        Some(resources) if *resources != Default::default() => json!(resources),
        _ => json!({"requests": {"cpu": "10m", "memory": "32Mi"}}),
    };
    let mut env = vec![
        json!({"name": "WARREN_HANDLER_PORT", "value": valid.port.to_string()}),
        json!({"name": "WARREN_DRAIN_TIMEOUT_SECONDS", "value": valid.drain_seconds.to_string()}),
        // Kubernetes takes any number of seconds; a sidecar can add so many to a time.
        json!({"name": "WARREN_GRACE_PERIOD_SECONDS", "value": valid.grace_seconds.min(u32::MAX.into()).to_string()}),
        json!({"name": "WARREN_DRAIN_TOKEN", "value": token}),
        json!({"name": "WARREN_BROKER_SECRET", "value": valid.secret}),
        json!({"name": "WARREN_LOG_LEVEL", "value": sidecar.log_level}),
        json!({"name": "WARREN_POD_NAME", "valueFrom": field("metadata.name")}),
        json!({"name": "WARREN_POD_NAMESPACE", "valueFrom": field("metadata.namespace")}),
    ];
    // Those that the application's own refer to may have the names of these.
    let own: Vec<Value> = env.iter().map(|variable| variable["name"].clone()).collect();
    env.extend(telemetry.into_iter().filter(|variable| !own.contains(&variable["name"])));
    json!({
        "name": SIDECAR_CONTAINER,
        "image": image,
        "args": ["run"],
        "restartPolicy": "Always",
        "env": env,
        "ports": [{"name": "metrics", "containerPort": SIDECAR_PORT, "protocol": "TCP"}],
        "readinessProbe": probe("/readyz", 5, 3),
        "livenessProbe": probe("/livez", 10, 6),
        "lifecycle": {"preStop": drain_hook(token)},
        "resources": resources,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": SIDECAR_USER,
            "runAsGroup": SIDECAR_USER,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": CONFIG_VOLUME, "mountPath": CONFIG_DIR, "readOnly": true},
            {"name": BROKER_VOLUME, "mountPath": BROKER_DIR, "readOnly": true},
            {"name": NO_TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true},
        ],
    })
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
