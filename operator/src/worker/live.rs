//! What is kept of the objects that the operator makes: their text, which is parsed when it is compared, and the few values
//! that are read all the time. Typed, a Deployment takes ten times its text, since every field of a pod has its place.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use warren_api::Worker;
use warren_api::names::{CONFIG_KEY, MANAGED_BY, MANAGED_BY_LABEL, SIDECAR_CONTAINER, WORKER_LABEL};

use super::apply::REPLACED;
use super::build::{Rolled, TEMPLATE_DIGEST};
use crate::tolerant::without_managed_fields;

/// Most bytes of a sidecar's configuration that are kept; those that Warren writes have a few thousand.
const LONGEST_CONFIG: usize = 64 * 1024;
/// Most bytes of an object that are kept: twice the largest template.
const LARGEST: usize = 512 * 1024;

/// A Deployment.
pub type LiveDeployment = Live<Deployment, Scale>;
/// A ConfigMap.
pub type LiveConfigMap = Live<ConfigMap>;
/// A PodDisruptionBudget.
pub type LiveDisruptionBudget = Live<PodDisruptionBudget>;

/// An object of kind `K`, without its status, and what `F` reads from it.
#[derive(Clone)]
pub struct Live<K, F = ()> {
    /// What tells it from others.
    metadata: ObjectMeta,
    /// The uids of its owners.
    owners: Box<[Box<str>]>,
    worker: Option<Box<str>>,
    text: Box<str>,
    /// The values that are read all the time.
    pub facts: F,
    kind: PhantomData<fn() -> K>,
}

/// Values of an object.
pub trait Facts {
    /// Reads them.
    fn of(object: &Value) -> Self;
}

impl Facts for () {
    fn of(_: &Value) -> Self {}
}

/// What is asked of a Deployment, and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Replicas that are asked for.
    pub desired: Option<i32>,
    /// Whether somebody has paused its rollouts.
    pub paused: bool,
    /// Whether it was replaced, and who owns its fields is not put right yet.
    pub replaced: bool,
    /// Replicas that exist.
    pub existing: i32,
    /// Whether pods of an older template are still there.
    pub rolling: bool,
    /// Whether they still are though new ones did not come within the Deployment's `progressDeadlineSeconds`. It is not `rolling`
    /// then: pods that do not come must not keep all others for ever.
    pub half_rolled: bool,
    /// Why pods are refused: a reason and a sentence.
    pub refused: Option<(String, String)>,
}

impl Facts for Scale {
    fn of(object: &Value) -> Self {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |value: &Value| value.as_i64().and_then(|count| i32::try_from(count).ok());
        let of_status = |field: &str| count(&status[field]).unwrap_or(0);
        let observed = status["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64();
        let conditions = status["conditions"].as_array();
        let find = |kind: &str, status: &str| {
            let mut conditions = conditions.into_iter().flatten();
            conditions.find(|condition| condition["type"] == kind && condition["status"] == status)
        };
        let refused = find("ReplicaFailure", "True");
        let given_up = find("Progressing", "False").is_some();
        let both = of_status("updatedReplicas") < of_status("replicas");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            desired: count(&spec["replicas"]),
            paused: spec["paused"] == true,
            replaced: object["metadata"]["annotations"][TEMPLATE_DIGEST] == REPLACED,
            existing: of_status("replicas"),
            rolling: status.is_null() || !observed || both && !given_up,
            half_rolled: observed && both && given_up,
            refused: refused.map(|refused| {
                let reason = text(&refused["reason"]).unwrap_or_else(|| "ReplicaFailure".to_owned());
                (reason, text(&refused["message"]).unwrap_or_default())
            }),
        }
    }
}

impl<K, F> Live<K, F> {
    /// The object, as far as Warren made it; null where that is not what Warren makes.
    pub fn object(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Whether Warren made it, for whichever Worker.
    pub fn is_warrens(&self) -> bool {
        !self.text.is_empty()
    }

    /// Whether it is this Worker's to change in any way: Warren's, and nobody else's, such as after its former owner was deleted
    /// and it was not.
    pub fn is_free_for(&self, worker: &Worker) -> bool {
        self.is_owned_by(worker) || self.is_warrens() && self.owners.is_empty()
    }

    /// Whether it is this Worker's.
    pub fn is_owned_by(&self, worker: &Worker) -> bool {
        worker.metadata.uid.as_deref().is_some_and(|uid| self.owners.iter().any(|owner| **owner == *uid))
    }
}

impl LiveDeployment {
    /// What runs: the digest on the Deployment and the sidecar's image in its template.
    pub fn rolled(&self) -> Rolled {
        let object = self.object();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let containers = object["spec"]["template"]["spec"]["initContainers"].as_array();
        let sidecar =
            containers.into_iter().flatten().find(|container| container["name"] == SIDECAR_CONTAINER);
        Rolled {
            digest: text(&object["metadata"]["annotations"][TEMPLATE_DIGEST]),
            image: sidecar.and_then(|sidecar| text(&sidecar["image"])),
        }
    }
}

/// Drops what others may have put into an object and Warren never reads.
fn drop_unread(object: &mut Value) {
    let mut retain = |field: &str, read: &dyn Fn(&str, &Value) -> bool| {
        if let Some(map) = object.pointer_mut(field).and_then(Value::as_object_mut) {
            map.retain(|key, value| read(key, value));
        }
    };
    let short = |value: &Value| value.as_str().is_some_and(|text| text.len() <= LONGEST_CONFIG);
    retain("", &|key, _| key != "binaryData");
    retain("/metadata/annotations", &|key, _| key == TEMPLATE_DIGEST);
    retain("/data", &|key, value| key == CONFIG_KEY && short(value));
}

/// The text that is kept of an object: none of one that has the label and was not made by Warren, or is far larger than what
/// Warren makes.
fn text_of(object: &Value) -> Box<str> {
    let metadata = &object["metadata"];
    let mut owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    // An owner's references go where the owner is deleted without what it owns.
    let ours =
        metadata["labels"][MANAGED_BY_LABEL] == MANAGED_BY || owners.any(|owner| owner["kind"] == "Worker");
    let text = if ours { object.to_string() } else { String::new() };
    if text.len() > LARGEST { Box::default() } else { text.into() }
}

impl<'de, K: Resource<DynamicType = ()>, F: Facts> Deserialize<'de> for Live<K, F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = without_managed_fields(deserializer)?;
        let facts = F::of(&object);
        if let Some(object) = object.as_object_mut() {
            // Items of a list do not say what they are.
            object.insert("apiVersion".to_owned(), K::api_version(&()).into());
            object.insert("kind".to_owned(), K::kind(&()).into());
            object.remove("status");
        }
        drop_unread(&mut object);
        let metadata = &object["metadata"];
        let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
        let text = |field: &str| metadata[field].as_str().map(str::to_owned);
        Ok(Self {
            metadata: ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            },
            owners: owners.filter_map(|owner| owner["uid"].as_str().map(Box::from)).collect(),
            worker: metadata["labels"][WORKER_LABEL].as_str().map(Box::from),
            text: text_of(&object),
            facts,
            kind: PhantomData,
        })
    }
}

impl<K: Resource<DynamicType = ()>, F> Resource for Live<K, F> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<K, F> fmt::Debug for Live<K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.text).finish()
    }
}

/// Something that belongs to a Worker.
pub trait OfWorker: Resource<DynamicType = ()> {
    /// The Worker's name.
    fn worker(&self) -> Option<&str>;
}

impl<K: Resource<DynamicType = ()>, F> OfWorker for Live<K, F> {
    fn worker(&self) -> Option<&str> {
        self.worker.as_deref()
    }
}

impl OfWorker for Pod {
    fn worker(&self) -> Option<&str> {
        self.labels().get(WORKER_LABEL).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A Deployment as the API server lists it.
    fn deployment(status: Value) -> LiveDeployment {
        let owner = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "name": "w", "uid": "u-1"});
        let sidecar = json!({"name": SIDECAR_CONTAINER, "image": "sidecar:1"});
        serde_json::from_value(json!({
            "metadata": {
                "name": "w", "namespace": "shop", "uid": "u-2", "resourceVersion": "7", "generation": 3,
                "labels": {WORKER_LABEL: "w"}, "annotations": {TEMPLATE_DIGEST: "d", "note": "long"},
                "ownerReferences": [owner], "managedFields": [{"manager": "warren"}],
            },
            "spec": {"replicas": 2, "template": {"spec": {"initContainers": [{"name": "other"}, sidecar]}}},
            "status": status,
        }))
        .unwrap()
    }

    fn scale(status: Value) -> Scale {
        deployment(status).facts
    }

    #[test]
    fn an_object_of_a_list_is_kept_but_for_what_the_api_server_counts_and_nobody_reads() {
        let live = deployment(json!({"replicas": 2}));
        let object = live.object();
        assert_eq!((&object["apiVersion"], &object["kind"]), (&json!("apps/v1"), &json!("Deployment")));
        assert_eq!((&object["status"], &object["metadata"]["managedFields"]), (&Value::Null, &Value::Null));
        assert_eq!(object["spec"]["replicas"], 2);
        assert_eq!(object["metadata"]["annotations"], json!({TEMPLATE_DIGEST: "d"}));
        assert_eq!((live.worker(), live.name_any().as_str()), (Some("w"), "w"));
        assert_eq!(live.uid().as_deref(), Some("u-2"));
        let rolled = Rolled { digest: Some("d".to_owned()), image: Some("sidecar:1".to_owned()) };
        assert_eq!(live.rolled(), rolled);
        let mut worker = Worker::new(
            "w",
            serde_json::from_value(json!({"queueRef": {"name": "q"}, "template": {}})).unwrap(),
        );
        assert!(!live.is_owned_by(&worker));
        worker.metadata.uid = Some("u-1".to_owned());
        assert!(live.is_owned_by(&worker));
    }

    #[test]
    fn nothing_large_is_kept_of_what_others_put_where_warren_looks() {
        let config_map = |labels: Value, config: &str| -> LiveConfigMap {
            let metadata =
                json!({"name": "w-config", "labels": labels, "annotations": {"a": "x".repeat(9000)}});
            let data = json!({CONFIG_KEY: config, "other": "x".repeat(9000)});
            let object = json!({"metadata": metadata, "data": data, "binaryData": {"b": "x".repeat(9000)}});
            serde_json::from_value(object).unwrap()
        };
        let ours = json!({WORKER_LABEL: "w", MANAGED_BY_LABEL: MANAGED_BY});
        let kept = config_map(ours.clone(), "{}");
        assert_eq!(kept.object()["data"], json!({CONFIG_KEY: "{}"}));
        assert!(kept.text.len() < 500, "{}", kept.text);
        assert_eq!(config_map(ours.clone(), &"x".repeat(LONGEST_CONFIG + 1)).object()["data"], json!({}));
        let others = config_map(json!({WORKER_LABEL: "w"}), "{}");
        assert_eq!((others.object(), others.worker()), (Value::Null, Some("w")));
        let labels: serde_json::Map<_, _> = (0..20_000).map(|n| (format!("{n:030}"), json!("x"))).collect();
        let mut many = ours;
        many.as_object_mut().unwrap().extend(labels);
        assert_eq!(config_map(many, "{}").object(), Value::Null);
    }

    #[test]
    fn a_deployment_rolls_until_its_controller_has_seen_it_and_every_pod_is_new() {
        let done = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2});
        assert_eq!(scale(done), Scale { desired: Some(2), existing: 2, ..Scale::default() });
        assert!(scale(Value::Null).rolling);
        assert!(scale(json!({})).rolling);
        assert!(scale(json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2})).rolling);
        let both = |progressing| {
            json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 1,
                "conditions": [{"type": "Progressing", "status": progressing}]})
        };
        let rolls = |progressing| (scale(both(progressing)).rolling, scale(both(progressing)).half_rolled);
        assert_eq!((rolls("True"), rolls("False")), ((true, false), (false, true)));
        let mut unseen = both("False");
        unseen["observedGeneration"] = json!(2);
        assert!(!scale(unseen).half_rolled, "that was said of the template before");
        let mut rolled = both("False");
        rolled["updatedReplicas"] = json!(2);
        assert!(!scale(rolled.clone()).half_rolled && !scale(rolled).rolling, "no other pod is there");
    }

    #[test]
    fn pods_that_are_refused_are_said() {
        let refused = |status: &str| {
            let condition = json!({"type": "ReplicaFailure", "status": status, "message": "exceeded quota"});
            scale(json!({"conditions": [{"type": "Available", "status": "True"}, condition]})).refused
        };
        assert_eq!(refused("True"), Some(("ReplicaFailure".to_owned(), "exceeded quota".to_owned())));
        assert_eq!(refused("False"), None);
    }
}
