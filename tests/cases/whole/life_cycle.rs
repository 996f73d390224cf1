//! Pods that come and go: scale-in, rollouts, the operator's own end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use warren_tests::desk::Order;
use warren_tests::images;

use crate::space::{Space, turn, undisturbed};

#[tokio::test]
async fn a_pod_has_two_containers_that_are_ready_no_token_for_the_sidecar_and_leaves_a_drained_node()
-> Result<()> {
    let space = Space::new("two", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    let mut template = space.template();
    template["spec"]["automountServiceAccountToken"] = true.into();
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}, "template": template})).await?;
    let pods = space.pods_ready("invoices", 1).await?;
    let table = space.kubectl(&["get", "pods", "--no-headers"]).await?;
    assert!(table.contains("2/2"), "{table}");
    // The application has the token that its template asks for, and the sidecar none.
    let pod = space.get("pod", &pods[0]).await?;
    let has_token = |containers: &str| {
        let mounts = pod["spec"][containers][0]["volumeMounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| mount["name"].as_str()).any(|name| name.starts_with("kube-api-access"))
    };
    assert_eq!((has_token("containers"), has_token("initContainers")), (true, false), "{}", pod["spec"]);
    // Of local storage kubectl would have to be told that it may go.
    let node = pod["spec"]["nodeName"].as_str().context("a node")?;
    let only = ["--dry-run=client", "--pod-selector", "warren.dev/worker=invoices"];
    let drained = space.kubectl(&[&["drain", node], &only[..]].concat()).await?;
    assert!(drained.contains(&pods[0]), "{drained}");
    Ok(())
}

#[tokio::test]
async fn each_image_is_within_its_budget() -> Result<()> {
    let roots = std::fs::metadata(images::CA_ROOTS)?.len();
    for program in images::static_binaries(&["warren-operator", "warren-sidecar"]).await? {
        let size = roots + std::fs::metadata(&program)?.len();
        ensure!(size <= images::BUDGET, "{}: {size} bytes", program.display());
    }
    Ok(())
}

#[tokio::test]
async fn a_rollout_calls_no_message_again_whose_call_had_begun() -> Result<()> {
    let space = Space::new("rollout", |_| Order::work(Duration::from_millis(300))).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 2, "maxReplicas": 2}})).await?;
    let before = space.pods_ready("invoices", 2).await?;
    let client = space.client().await?;
    client.publish_all("orders", (0..120).map(|n| format!("message {n}").into_bytes())).await?;
    space.handled(10).await?;
    let mut template = space.template();
    template["metadata"] = json!({"annotations": {"example/version": "2"}});
    let scaling = json!({"minReplicas": 2, "maxReplicas": 2});
    space.worker("invoices", json!({"scaling": scaling, "template": template})).await?;
    space.handled(120).await?;
    space
        .eventually("all pods are new", async || {
            let pods = space.pods("invoices").await?;
            ensure!(pods.len() == 2 && pods.iter().all(|pod| !before.contains(pod)), "{pods:?}");
            Ok(())
        })
        .await?;
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn consumers_do_not_notice_that_the_operator_is_killed() -> Result<()> {
    let turn = turn().await;
    let space = Space::new("operator", |_| Order::work(Duration::from_millis(100))).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1, "maxReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish_all("orders", (0..50).map(|n| format!("message {n}").into_bytes())).await?;
    space.handled(5).await?;
    space.kill_operator(&turn).await?;
    space.handled(50).await?;
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    // The new operator takes over where the old one was.
    space.queue("later", json!({})).await?;
    space.ready("wq", "later").await
}

#[tokio::test]
async fn a_paused_worker_keeps_its_pods_and_takes_no_message_until_it_is_resumed() -> Result<()> {
    let space = Space::new("paused", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    let worker = |paused: bool| json!({"consumer": {"paused": paused}, "scaling": {"minReplicas": 1}});
    space.worker("invoices", worker(true)).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish("orders", b"waits").await?;
    space.condition(("wk", "invoices"), "ScalingActive", ("True", "Paused"), &[]).await?;
    client.holds("orders", 1).await?;
    space.worker("invoices", worker(false)).await?;
    space.handled(1).await
}

#[tokio::test]
async fn a_queue_that_is_deleted_after_its_worker_waits_for_the_calls_that_run() -> Result<()> {
    let _undisturbed = undisturbed().await;
    // Longer than the deletions take, and shorter than a drain may.
    let space = Space::new("outlived", |_| Order::work(Duration::from_secs(45))).await?;
    space.queue("orders", json!({"deletionPolicy": "Delete"})).await?;
    let worker = json!({
        "handler": {"http": {"timeoutSeconds": 90}}, "scaling": {"minReplicas": 1, "maxReplicas": 1},
    });
    space.worker("invoices", worker).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish("orders", b"at work").await?;
    space
        .eventually("the call has begun", async || {
            ensure!(!space.desk.entries().is_empty(), "not yet");
            Ok(())
        })
        .await?;
    space.kubectl(&["delete", "wk", "invoices"]).await?;
    space.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    let blocked = ("True", "WorkersRunning");
    space.condition(("wq", "orders"), "DeletionBlocked", blocked, &["\"invoices\"", "deleted"]).await?;
    assert_eq!(client.ready("orders").await?, Some(0), "the pod still has its queue");
    space.handled(1).await?;
    space.gone("wq", "orders").await?;
    assert_eq!(client.ready("orders").await?, None);
    assert_eq!(space.desk.called_again(), Vec::<String>::new());
    Ok(())
}
