//! Annotations on running pods: hints to Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{Context, FIELD_MANAGER};
use crate::tolerant::Tolerant;

/// How long annotating may take: a load that grows meanwhile must be seen.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pods that are annotated at once.
const AT_ONCE: usize = 16;

/// Sets an annotation of each pod to a value of its own; a failure is logged. Gives whether all are set.
pub async fn annotate(context: &Context, annotation: &str, values: Vec<(Arc<Pod>, String)>) -> bool {
    let each =
        values.into_iter().map(|(pod, value)| async move { set(context, &pod, annotation, &value).await });
    let all = stream::iter(each).buffer_unordered(AT_ONCE).fold(true, |all, set| future::ready(all && set));
    tokio::time::timeout(PATIENCE, all).await.unwrap_or(false)
}

async fn set(context: &Context, pod: &Pod, annotation: &str, value: &str) -> bool {
    let namespace = pod.namespace().unwrap_or_default();
    let pods: Api<Tolerant<Pod>> = Api::namespaced(context.client.clone(), &namespace);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
    let params = PatchParams::apply(FIELD_MANAGER);
    let set = pods.patch(&pod.name_any(), &params, &patch).await;
    if let Err(error) = &set {
        tracing::debug!(pod = %pod.name_any(), annotation, %error, "not annotated");
    }
    set.is_ok()
}
