//! The custom resource definitions as an API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{Queue, Worker};

/// Every definition, with the file name it is committed under.
pub fn all() -> [(&'static str, Value); 2] {
    [
        ("queues.warren.dev.yaml", definition(&Queue::crd())),
        ("workers.warren.dev.yaml", definition(&Worker::crd())),
    ]
}

fn definition(crd: &CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    drop_nullable(&mut value);
    value
}

/// An optional Rust field becomes `nullable`, under which a written `null` stays and trips CEL's `has()`. Without it the API
/// server drops the `null`, as it does for Kubernetes' own types.
fn drop_nullable(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            map.values_mut().for_each(drop_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nullable),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
