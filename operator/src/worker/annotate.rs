//! Annotations on running pods: hints to Kubernetes.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{Context, FIELD_MANAGER};

/// Sets an annotation of a pod; a failure is logged. Gives whether it is set.
pub async fn annotate(context: &Context, pod: &Pod, annotation: &str, value: &str) -> bool {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
    let params = PatchParams::apply(FIELD_MANAGER);
    let set = pods.patch_metadata(&pod.name_any(), &params, &patch).await;
    if let Err(error) = &set {
        tracing::debug!(pod = %pod.name_any(), annotation, %error, "not annotated");
    }
    set.is_ok()
}
