//! Carries a decision out: the idlest pods first, then one patch.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::board::{Entry, View};
use super::sample::Tracker;
use crate::brokers::Key;
use crate::context::{Context, FIELD_MANAGER};
use crate::worker::annotate::annotate;

/// Pods with a lower cost are deleted first, see
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost>.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Cost of a pod that cannot be looked into: it goes last.
const UNKNOWN_COST: u64 = 1_000_000;

/// Makes `view` known and the Deployment's replicas `replicas`.
pub async fn scale(
    context: &Context,
    worker: &Key,
    entry: &Entry,
    view: View,
    replicas: u32,
) -> kube::Result<()> {
    // A reconcile that applies the Deployment meanwhile waits, and then applies these replicas too.
    let _writing = entry.writing.lock().await;
    entry.replace(view);
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &worker.namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    deployments.patch_scale(&worker.name, &params, &patch).await.map(drop)
}

/// Marks how much each pod holds, so that a scale-in takes the idlest.
pub async fn mark_costs(context: &Context, pods: &[Arc<Pod>], tracker: &Tracker) {
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let held = tracker.unsettled(&pod.uid().unwrap_or_default()).unwrap_or(UNKNOWN_COST);
        let cost = held.to_string();
        let marked = pod.annotations().get(DELETION_COST);
        if marked == Some(&cost) || (held == 0 && marked.is_none()) {
            continue;
        }
        annotate(context, pod, DELETION_COST, &cost).await;
    }
}
