//! Who decides the number of pods, and what may take them away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_tests::desk::Order;

use crate::space::{Space, undisturbed};

const WORKER: (&str, &str) = ("wk", "invoices");

async fn space(name: &str, worker: Value) -> Result<Space> {
    space_of(name, Order::answer(200), worker).await
}

/// A space whose application does the same with every message.
async fn space_of(name: &str, order: Order, worker: Value) -> Result<Space> {
    let space = Space::new(name, move |_| order.clone()).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", worker).await?;
    Ok(space)
}

async fn applied(space: &Space, manifest: Value) -> Result<()> {
    space.cluster.apply(&manifest.to_string()).await.map(drop)
}

#[tokio::test]
async fn kubectl_scale_and_a_horizontal_pod_autoscaler_drive_a_worker_in_mode_external() -> Result<()> {
    let space = space("external", json!({"scaling": {"mode": "External"}, "replicas": 0})).await?;
    space.condition(WORKER, "ScalingActive", ("True", "External"), &[]).await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=1"]).await?;
    space.pods_ready("invoices", 1).await?;
    // Without any metric an autoscaler still sees to its minimum.
    let target = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "name": "invoices"});
    let metric = json!({"type": "External", "external": {
        "metric": {"name": "warren_queue_ready_messages"}, "target": {"type": "AverageValue", "averageValue": "100"},
    }});
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "invoices", "namespace": space.name},
        "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5, "metrics": [metric]},
    });
    applied(&space, autoscaler).await?;
    space.pods_ready("invoices", 3).await?;
    let worker = space.get("wk", "invoices").await?;
    ensure!(worker["spec"]["replicas"] == 3, "{}", worker["spec"]["replicas"]);
    Ok(())
}

#[tokio::test]
async fn in_mode_manual_the_worker_has_the_replicas_that_kubectl_scale_says() -> Result<()> {
    let space = space("manual", json!({"scaling": {"mode": "Manual"}})).await?;
    space.pods_ready("invoices", 1).await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=2"]).await?;
    space.pods_ready("invoices", 2).await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=0"]).await?;
    space.pods_ready("invoices", 0).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Manual"), &[]).await.map(drop)
}

#[tokio::test]
async fn of_pods_that_kubectl_scale_takes_away_the_idlest_go() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let manual = json!({"scaling": {"mode": "Manual"}, "replicas": 4});
    let space = space_of("idlest", Order::work(Duration::from_secs(25)), manual).await?;
    space.pods_ready("invoices", 4).await?;
    space.client().await?.publish_all("orders", ["one".into()]).await?;
    let busy = space
        .eventually("a call has begun", async || {
            space.desk.entries().first().map(|entry| entry.call.pod.clone()).context("no call")
        })
        .await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=1"]).await?;
    assert_eq!(space.pods_ready("invoices", 1).await?, [busy]);
    space.handled(1).await
}

#[tokio::test]
async fn in_mode_builtin_kubectl_scale_changes_nothing_and_a_condition_says_so() -> Result<()> {
    let space = space("builtin", json!({"scaling": {"minReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Steady"), &[]).await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=4"]).await?;
    let words = ["spec.replicas is ignored", "mode Manual"];
    space.condition(WORKER, "ScalingActive", ("True", "Steady"), &words).await?;
    let worker = space.get("wk", "invoices").await?;
    ensure!(worker["status"]["desiredReplicas"] == 1, "{}", worker["status"]);
    Ok(())
}

#[tokio::test]
async fn a_deployment_that_somebody_deletes_is_made_again() -> Result<()> {
    let space = space("deleted", json!({"scaling": {"minReplicas": 1}})).await?;
    let before = space.pods_ready("invoices", 1).await?;
    space.kubectl(&["delete", "deployment", "invoices", "--wait=false"]).await?;
    space
        .eventually("another pod is there", async || {
            let pods = space.pods("invoices").await?;
            ensure!(pods.len() == 1 && pods != before, "{pods:?}");
            let events =
                space.kubectl(&["get", "events", "--field-selector", "reason=DeploymentRecreated"]).await?;
            ensure!(events.contains("worker/invoices"), "{events}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_schedule_is_a_floor_and_one_that_cannot_be_read_is_told() -> Result<()> {
    let scaling = |cron: &str| {
        let schedule = json!({"cron": cron, "timezone": "Europe/Berlin", "minReplicas": 2});
        json!({"scaling": {"maxReplicas": 3, "schedules": [schedule]}})
    };
    let space = space("schedule", scaling("* * * * *")).await?;
    space.pods_ready("invoices", 2).await?;
    let words = ["\"* * * * *\" Europe/Berlin"];
    space.condition(WORKER, "ScalingActive", ("True", "Scheduled"), &words).await?;
    space.worker("invoices", scaling("0 25 * * *")).await?;
    let words = ["schedules[0]", "0 8 * * 1-5"];
    space.condition(WORKER, "ScalingActive", ("False", "ScheduleInvalid"), &words).await.map(drop)
}

#[tokio::test]
async fn a_disruption_budget_is_there_for_as_long_as_it_is_asked_for() -> Result<()> {
    let scaling = json!({"minReplicas": 2, "maxReplicas": 2});
    let with_budget = json!({"scaling": scaling, "disruption": {"maxUnavailable": 1}});
    let work = Order::work(Duration::from_millis(300));
    let space = space_of("budget", work, with_budget).await?;
    let pods = space.pods_ready("invoices", 2).await?;
    space
        .eventually("the budget counts both pods", async || {
            let budget = space.get("pdb", "invoices").await?;
            ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
            ensure!(budget["metadata"]["ownerReferences"][0]["kind"] == "Worker", "{}", budget["metadata"]);
            ensure!(budget["status"]["disruptionsAllowed"] == 1, "{}", budget["status"]);
            Ok(())
        })
        .await?;
    // As a node drain does it, in the middle of the work.
    let client = space.client().await?;
    client.publish_all("orders", (0..60).map(|n| format!("message {n}").into_bytes())).await?;
    space.handled(10).await?;
    let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", space.name, pods.first().context("a pod")?);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pods[0], "namespace": space.name}});
    // While a pod is late to say that it is ready, the budget refuses, and whoever drains a node asks again.
    space
        .eventually("the pod may be evicted", async || {
            let mut kubectl = space.cluster.kubectl_command();
            kubectl.args(["create", "--raw", &path, "-f", "-"]);
            warren_tests::command::run_with_input(&mut kubectl, &eviction.to_string()).await
        })
        .await?;
    space.handled(60).await?;
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    space
        .eventually("another pod has its place", async || {
            let now = space.pods("invoices").await?;
            ensure!(now.len() == 2 && !now.contains(&pods[0]), "{now:?}");
            Ok(())
        })
        .await?;

    space.worker("invoices", json!({"scaling": scaling})).await?;
    space
        .eventually("the budget is gone", async || {
            let left = space.kubectl(&["get", "pdb", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
        .await
}
