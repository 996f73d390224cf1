//! Scaling under load and under faults: no work is lost or done again, and what is not known moves nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::desk::{Call, Order};
use warren_tests::install;

use crate::plugin::warren;
use crate::space::{Space, turn, undisturbed};

const WORKER: (&str, &str) = ("wk", "invoices");

fn messages(count: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|n| format!("message {n}").into_bytes())
}

/// The replicas that the Deployment is asked for.
async fn desired(space: &Space) -> Result<u64> {
    let deployment = space.get("deployment", "invoices").await?;
    deployment["spec"]["replicas"].as_u64().context("no replicas")
}

/// The operator that leads.
async fn leader(space: &Space) -> Result<String> {
    let lease = ["get", "lease", "warren-operator", "-n", install::NAMESPACE];
    let holder = [&lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat();
    space.cluster.kubectl(&holder).await
}

async fn another_leads(space: &Space, before: &str) -> Result<()> {
    let another = async || {
        let now = leader(space).await?;
        ensure!(!now.is_empty() && now != before, "{now}");
        Ok(())
    };
    space.eventually("another operator leads", another).await
}

#[tokio::test]
async fn from_10_pods_to_2_under_load_no_message_whose_call_had_begun_is_called_again() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let gone = Arc::new(AtomicBool::new(false));
    let quick = gone.clone();
    // Slow until the pods have gone, so that there is work in their midst however long that takes.
    let work =
        move |_: &Call| Order::work(Duration::from_millis(if quick.load(Relaxed) { 50 } else { 1_000 }));
    let space = Space::new("ten", work).await?;
    space.queue("orders", json!({})).await?;
    let between = |least: u32, most: u32| json!({"scaling": {"minReplicas": least, "maxReplicas": most}});
    space.worker("invoices", between(10, 10)).await?;
    space.pods_ready("invoices", 10).await?;
    space.client().await?.publish_all("orders", messages(1_000)).await?;
    space.handled(50).await?;
    space.worker("invoices", between(2, 2)).await?;
    space.pods_ready("invoices", 2).await?;
    assert!(space.desk.handled().len() < 1_000, "nothing was left to do when the pods went");
    gone.store(true, Relaxed);
    for count in (100..=1_000).step_by(100) {
        space.handled(count).await?;
    }
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_handler_that_hangs_holds_the_replicas_and_dead_letters_nothing() -> Result<()> {
    let space = Space::new("hangs", |_| Order::work(Duration::from_secs(600))).await?;
    space.queue("orders", json!({})).await?;
    let worker = json!({
        "handler": {"http": {"timeoutSeconds": 1}}, "consumer": {"prefetch": 20},
        "scaling": {"minReplicas": 1, "maxReplicas": 4, "scaleInStabilizationSeconds": 0},
    });
    space.worker("invoices", worker).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish_all("orders", messages(60)).await?;
    space.condition(WORKER, "ScalingActive", ("False", "HandlerFailing"), &["replicas are held"]).await?;
    let held = desired(&space).await?;
    assert!(held >= 1);
    // More work moves nothing.
    client.publish_all("orders", messages(500)).await?;
    space
        .eventually("the scaler has decided on more work", async || {
            let text = warren(&space, &["explain", "worker/invoices"]).await?.text;
            let ready = text.lines().find_map(|line| line.trim().strip_prefix("ready")?.split(',').next());
            let ready: u64 = ready.context("no count")?.trim().parse()?;
            ensure!(ready >= 500, "{text}");
            Ok(())
        })
        .await?;
    space.condition(WORKER, "HandlerHealthy", ("False", "HandlerFailing"), &[]).await?;
    assert_eq!(desired(&space).await?, held);
    assert_eq!(client.ready("orders.dlq").await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_away_leaves_the_replicas_as_they_are() -> Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    let quick = seen.clone();
    // Slow until the broker is known to be away, so that there is work left however long that takes.
    let work =
        move |_: &Call| Order::work(Duration::from_millis(if quick.load(Relaxed) { 50 } else { 5_000 }));
    let space = Space::new("away", work).await?;
    let broker = Broker::start(Options::new("away")).await?;
    space.secret(&broker.uri_at(space.cluster.host_address(), "/")).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"maxReplicas": 3, "targetWaitSeconds": 1}})).await?;
    space.ready("wq", "orders").await?;
    Client::connect(&broker.uri("/")).await?.publish_all("orders", messages(60)).await?;
    let pods = space.pods_ready("invoices", 3).await?;
    space.handled(3).await?;
    broker.stop_app().await?;
    space.condition(WORKER, "ScalingActive", ("False", "DepthUnknown"), &["held"]).await?;
    assert!(space.desk.handled().len() < 60, "nothing was left to do when the broker went");
    assert_eq!((desired(&space).await?, space.pods("invoices").await?), (3, pods.clone()));
    seen.store(true, Relaxed);
    broker.start_app().await?;
    space.handled(60).await?;
    assert_eq!(space.pods("invoices").await?, pods, "the same pods");
    broker.remove().await
}

#[tokio::test]
async fn an_operator_that_is_killed_in_the_middle_of_a_load_takes_over_where_it_was() -> Result<()> {
    let turn = turn().await;
    let led = Arc::new(AtomicBool::new(false));
    let quick = led.clone();
    // Slow until another operator has looked on for a while.
    let work =
        move |_: &Call| Order::work(Duration::from_millis(if quick.load(Relaxed) { 50 } else { 1_000 }));
    let space = Space::new("middle", work).await?;
    space.queue("orders", json!({})).await?;
    let scaling = json!({"maxReplicas": 3, "targetWaitSeconds": 2});
    space.worker("invoices", json!({"scaling": scaling})).await?;
    space.ready("wk", "invoices").await?;
    space.client().await?.publish_all("orders", messages(600)).await?;
    space.pods_ready("invoices", 3).await?;
    let before = leader(&space).await?;
    space.kill_operator(&turn).await?;
    another_leads(&space, &before).await?;
    space.handled(space.desk.handled().len() + 20).await?;
    assert!(space.desk.handled().len() < 600, "nothing was left to do");
    assert_eq!(desired(&space).await?, 3, "while there is work, the new operator takes no pod away");
    led.store(true, Relaxed);
    space.handled(600).await?;
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn an_operator_that_starts_anew_knows_how_long_the_messages_of_a_worker_at_zero_take() -> Result<()> {
    let turn = turn().await;
    let space = Space::new("anew", |_| Order::work(Duration::from_millis(50))).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"scaleInStabilizationSeconds": 0}})).await?;
    space.ready("wk", "invoices").await?;
    let client = space.client().await?;
    client.publish_all("orders", messages(20)).await?;
    space.handled(20).await?;
    space.pods_ready("invoices", 0).await?;
    space
        .eventually("the status tells how long a message takes", async || {
            let scaling = &space.get("wk", "invoices").await?["status"]["scaling"];
            let seconds = scaling["secondsPerMessage"].as_f64().context("none")?;
            ensure!(scaling["reason"] == "Idle" && (0.05..0.5).contains(&seconds), "{scaling}");
            Ok(())
        })
        .await?;
    let woken_by_what_was_measured = async || -> Result<usize> {
        let message = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
        let events = space.kubectl(&["get", "events", "-o", message]).await?;
        Ok(events.lines().filter(|line| line.starts_with("0 to ") && line.contains("(measured)")).count())
    };
    assert_eq!(woken_by_what_was_measured().await?, 0);
    let before = leader(&space).await?;
    space.kill_operator(&turn).await?;
    another_leads(&space, &before).await?;
    client.publish_all("orders", messages(20)).await?;
    space
        .eventually("the new operator goes by what the one before has measured", async || {
            let woken = woken_by_what_was_measured().await?;
            ensure!(woken == 1, "{woken}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn the_first_patch_is_the_number_wanted() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let space = Space::new("one-step", |_| Order::work(Duration::from_millis(100))).await?;
    space.queue("orders", json!({})).await?;
    let worker = |paused: bool| {
        let scaling = json!({"maxReplicas": 4, "targetWaitSeconds": 1});
        json!({"consumer": {"paused": paused}, "scaling": scaling})
    };
    // Paused until all messages are there: a look in between would see some of them.
    space.worker("invoices", worker(true)).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Paused"), &[]).await?;
    space.client().await?.publish_all("orders", messages(20)).await?;
    space.worker("invoices", worker(false)).await?;
    space.handled(20).await?;
    let told = async |times: usize| {
        let out = ["get", "events", "--field-selector", "involvedObject.kind=Worker,reason=ScaledOut"];
        let events = space.kubectl(&out).await?;
        ensure!(events.matches("pods:").count() == times && events.contains("0 to 4 pods:"), "{events}");
        Ok(())
    };
    space.eventually("one event tells of 0 to 4 pods", async || told(1).await).await?;
    space.pods_ready("invoices", 0).await?;
    space.worker("invoices", worker(true)).await?;
    space.condition(WORKER, "ScalingActive", ("True", "Paused"), &[]).await?;
    space.client().await?.publish_all("orders", messages(20)).await?;
    space.worker("invoices", worker(false)).await?;
    space.eventually("the next change has an event of its own", async || told(2).await).await
}

#[tokio::test]
async fn pods_that_fit_no_node_do_not_keep_the_first_guess_of_how_long_a_message_takes() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let space = Space::new("full", |_| Order::work(Duration::from_millis(20))).await?;
    space.queue("orders", json!({})).await?;
    // No two of them on the cluster's only node.
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"warren.dev/worker": "invoices"}},
    }]}});
    let worker = json!({"scaling": {"maxReplicas": 4, "targetWaitSeconds": 1}, "template": {"spec": {"affinity": apart}}});
    space.worker("invoices", worker).await?;
    space.ready("wk", "invoices").await?;
    let client = space.client().await?;
    client.publish_all("orders", messages(200)).await?;
    space.condition(WORKER, "Ready", ("False", "Unschedulable"), &["fits no node"]).await?;
    // At a second each this load would need more than one pod for as long as it lasts.
    space
        .eventually("one pod is asked for under load", async || {
            client.publish_all("orders", messages(2)).await?;
            let desired = desired(&space).await?;
            ensure!(desired == 1, "{desired}");
            Ok(())
        })
        .await
}
