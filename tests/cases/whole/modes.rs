//! Who decides the number of pods, and what may take them away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_tests::desk::Order;

use crate::space::{Space, undisturbed};

const WORKER: (&str, &str) = ("wk", "invoices");
/// The annotation by which Kubernetes chooses whom it takes away.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

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

/// The pod that got the first call.
async fn first_called(space: &Space) -> Result<String> {
    space
        .eventually("a call has begun", async || {
            space.desk.entries().first().map(|entry| entry.call.pod.clone()).context("no call")
        })
        .await
}

/// Of a Worker's four pods one works, and `scale_in` takes three away.
async fn the_idlest_go(
    name: &str,
    worker: Value,
    scale_in: impl AsyncFnOnce(&Space) -> Result<()>,
) -> Result<()> {
    let _undisturbed = undisturbed().await;
    let space = space_of(name, Order::work(Duration::from_secs(25)), worker).await?;
    space.pods_ready("invoices", 4).await?;
    space.client().await?.publish_all("orders", ["one".into()]).await?;
    let busy = first_called(&space).await?;
    scale_in(&space).await?;
    assert_eq!(space.pods_ready("invoices", 1).await?, [busy.as_str()]);
    // Without marks it could be that one by chance.
    let pod = space.get("pod", &busy).await?;
    let cost = pod["metadata"]["annotations"][DELETION_COST].as_str().context("no mark")?;
    ensure!(cost.parse::<i64>()? > 0, "{cost}");
    space.handled(1).await
}

#[tokio::test]
async fn of_pods_that_kubectl_scale_takes_away_the_idlest_go() -> Result<()> {
    let manual = json!({"scaling": {"mode": "Manual"}, "replicas": 4});
    let scale_in =
        async |space: &Space| space.kubectl(&["scale", "wk/invoices", "--replicas=1"]).await.map(drop);
    the_idlest_go("idlest", manual, scale_in).await
}

/// The scaling of a Worker that always has so many pods.
fn always(pods: u32) -> Value {
    json!({"minReplicas": pods, "maxReplicas": pods})
}

#[tokio::test]
async fn of_pods_that_the_scaler_takes_away_the_idlest_go() -> Result<()> {
    let scale_in = async |space: &Space| space.worker("invoices", json!({"scaling": always(1)})).await;
    the_idlest_go("idlest-builtin", json!({"scaling": always(4)}), scale_in).await
}

#[tokio::test]
async fn while_pods_cannot_be_marked_none_is_taken_away_beside_one_with_work_that_asks_for_more_time()
-> Result<()> {
    let _undisturbed = undisturbed().await;
    let worker = |pods: u32| json!({"scaling": always(pods), "handler": {"http": {"timeoutSeconds": 300}}});
    // Nobody ever ends what is answered so.
    let later = Order::answer(202).header("warren-outcome", "later");
    let space = space_of("unmarked", later, worker(2)).await?;
    let pods = space.pods_ready("invoices", 2).await?;
    let rule =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"]});
    let annotations = "object.metadata.annotations";
    let unmarked = format!("!has({annotations}) || !('{DELETION_COST}' in {annotations})");
    let mark = ["annotate", "pod", &pods[0], &format!("{DELETION_COST}=1"), "--dry-run=server"];
    space.forbid(rule, (&unmarked, "no marks today"), &mark).await?;
    space.client().await?.publish_all("orders", ["one".into()]).await?;
    space.handled(1).await?;
    let busy = first_called(&space).await?;
    space.worker("invoices", worker(1)).await?;
    let refused = ("False", "ScaleRefused");
    space.condition(WORKER, "ScalingActive", refused, &["cannot be marked"]).await?;
    assert_eq!(space.pods("invoices").await?, pods);
    space.allow().await?;
    assert_eq!(space.pods_ready("invoices", 1).await?, [&*busy]);
    // Its drain would wait for that work for minutes.
    space.cluster.kill(&space.name, &["pod", &busy]).await
}

#[tokio::test]
async fn in_mode_builtin_what_kubectl_scales_stays_as_it_was_or_is_put_back_and_is_told() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let space = space("builtin", json!({"scaling": {"minReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Steady"), &[]).await?;
    space.kubectl(&["scale", "wk/invoices", "--replicas=4"]).await?;
    let words = ["spec.replicas is ignored", "mode Manual"];
    space.condition(WORKER, "ScalingActive", ("True", "Steady"), &words).await?;
    let worker = space.get("wk", "invoices").await?;
    ensure!(worker["status"]["desiredReplicas"] == 1, "{}", worker["status"]);

    space.kubectl(&["scale", "deployment/invoices", "--replicas=4"]).await?;
    space
        .eventually("the Deployment's replicas are put back, and an event tells", async || {
            let deployment = space.get("deployment", "invoices").await?;
            ensure!(deployment["spec"]["replicas"] == 1, "{}", deployment["spec"]["replicas"]);
            let events = space.events("ScaleReverted").await?;
            ensure!(events.contains("worker/invoices") && events.contains("puts back 1"), "{events}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_deployment_that_somebody_deletes_is_made_again_with_as_many_pods() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let space = space("deleted", json!({"scaling": {"minReplicas": 2}})).await?;
    let before = space.pods_ready("invoices", 2).await?;
    // Paused, the two stay where one would do.
    let paused = json!({"scaling": {"minReplicas": 1}, "consumer": {"paused": true}});
    space.worker("invoices", paused).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Paused"), &[]).await?;
    space.kubectl(&["delete", "deployment", "invoices", "--wait=false"]).await?;
    space
        .eventually("two other pods are there", async || {
            let pods = space.pods("invoices").await?;
            ensure!(pods.len() == 2 && pods.iter().all(|pod| !before.contains(pod)), "{pods:?}");
            let events = space.events("DeploymentRecreated").await?;
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
