//! Carries a decision out: the idlest pods first, then one patch.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::board::{Entry, View};
use super::reason::Reason;
use super::sample::Work;
use crate::brokers::Key;
use crate::context::{Context, FIELD_MANAGER};
use crate::worker::annotate::annotate;
use crate::worker::pods;

/// Pods with a lower cost are deleted first, see
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost>.
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Least cost of a pod with messages at the handler: one that only holds some gives them back, and goes before.
const BUSY_COST: i64 = 100_000;
/// Cost of a pod that cannot be looked into: it goes last.
const UNKNOWN_COST: i64 = 1_000_000;
/// Cost of a pod whose handler takes no calls: it goes before an idle one that would work, whatever it holds.
const IN_VAIN_COST: i64 = -1;
/// Why a number that somebody else has written is put back.
pub(crate) const SCALE_REVERTED: &str = "ScaleReverted";
/// Every reason for which replicas are patched.
pub const PATCHED_FOR: [&str; 3] = [Reason::ScaledOut.as_str(), Reason::ScaledIn.as_str(), SCALE_REVERTED];
/// How long a patch may take: what is decided anew must not wait for an API server that is gone.
const PATCHING: Duration = Duration::from_secs(10);
/// How long a look at the pods may take that are to be marked.
const LOOKING: Duration = Duration::from_secs(1);

/// Replicas that the Deployment asks for, as the API server says, and not a cache.
pub async fn replicas(context: &Context, worker: &Key) -> Option<u32> {
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &worker.namespace);
    let deployment = tokio::time::timeout(PATCHING, deployments.get(&worker.name)).await.ok()?.ok()?;
    deployment.spec?.replicas.map(i32::unsigned_abs)
}

/// Makes `view` known and the Deployment's replicas `replicas`.
pub async fn scale(
    context: &Context,
    worker: &Key,
    entry: &Entry,
    view: View,
    replicas: u32,
) -> kube::Result<()> {
    let patching = async {
        // A reconcile that applies the Deployment meanwhile waits, and then applies these replicas too.
        let _writing = entry.writing.lock().await;
        entry.replace(view);
        write_replicas(context, worker, replicas).await
    };
    tokio::time::timeout(PATCHING, patching).await.map_err(|late| kube::Error::Service(late.into()))?
}

/// Writes the Deployment's replicas alone, under the lock [`Entry::writing`].
pub async fn write_replicas(context: &Context, worker: &Key, replicas: u32) -> kube::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &worker.namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch_scale(&worker.name, &PatchParams::apply(FIELD_MANAGER), &patch).await.map(drop)
}

/// Marks how much each pod has to do, so that a scale-in takes the idlest; gives whether all are marked. `work`: what a pod has by its
/// UID.
pub async fn mark_costs(context: &Context, pods: &[Arc<Pod>], work: impl Fn(&str) -> Option<Work>) -> bool {
    let costs = pods::staying(pods).filter_map(|pod| {
        let cost = cost(work(&pod.uid().unwrap_or_default()));
        let marked = pod.annotations().get(DELETION_COST);
        let same = marked.map_or(cost == 0, |marked| *marked == cost.to_string());
        (!same).then(|| (pod.clone(), cost.to_string()))
    });
    annotate(context, DELETION_COST, costs.collect()).await
}

/// Looks at pods of a Worker that somebody else scales, and marks them.
pub async fn mark_idlest(context: &Context, pods: &[Arc<Pod>]) {
    let seen = context.scraper.scrape(pods, LOOKING).await;
    let work = |pod: &str| {
        let (_, sample) = seen.iter().find(|(seen, _)| seen.uid().as_deref() == Some(pod))?;
        Some(sample.work())
    };
    mark_costs(context, pods, work).await;
}

/// What a pod's end would cost, by what it has to do, where that is known.
fn cost(work: Option<Work>) -> i64 {
    let Some(Work { at_handler, held, in_vain }) = work else { return UNKNOWN_COST };
    let held = i64::try_from(held).unwrap_or(i64::MAX);
    match at_handler {
        _ if in_vain => IN_VAIN_COST,
        0 => held.min(BUSY_COST - 1),
        _ => held.saturating_add(BUSY_COST).min(UNKNOWN_COST - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_handler_is_down_goes_first_then_idle_ones_then_busy_ones_and_one_that_nobody_sees_last() {
        let work = |at_handler, held| Some(Work { at_handler, held, in_vain: false });
        let down = Some(Work { at_handler: 1, held: 2, in_vain: true });
        let works = [down, work(0, 0), work(0, 3), work(0, u64::MAX), work(1, 1), work(5, 9), None];
        assert!(works.map(cost).is_sorted_by(|one, next| one < next));
    }
}
