//! Messages, from the queue to the handler and out of the system.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use warren_tests::desk::{Call, Order};

use crate::space::{Space, undisturbed};

#[tokio::test]
async fn a_worker_goes_from_zero_to_several_pods_and_back_and_handles_each_message_once() -> Result<()> {
    let _undisturbed = undisturbed().await;
    let there = Arc::new(AtomicBool::new(false));
    let quick = there.clone();
    // Slow until all pods are seen, however long they take to start.
    let work =
        move |_: &Call| Order::work(Duration::from_millis(if quick.load(Relaxed) { 100 } else { 2_000 }));
    let space = Space::new("scales", work).await?;
    space.queue("orders", json!({})).await?;
    let scaling = json!({"maxReplicas": 4, "targetWaitSeconds": 2, "scaleInStabilizationSeconds": 5});
    space.worker("invoices", json!({"scaling": scaling})).await?;
    space.ready("wk", "invoices").await?;
    assert_eq!(space.get("deployment", "invoices").await?["spec"]["replicas"], 0, "no work, no pod");

    let client = space.client().await?;
    client.publish_all("orders", (0..200).map(|n| format!("message {n}").into_bytes())).await?;
    space.pods_ready("invoices", 4).await?;
    there.store(true, Relaxed);
    space.handled(200).await?;
    space
        .eventually("no pod is left", async || {
            let worker = space.get("wk", "invoices").await?;
            ensure!(worker["status"]["replicas"] == 0, "{}", worker["status"]);
            Ok(())
        })
        .await?;
    assert_eq!(space.desk.called_again(), Vec::<String>::new(), "scale-in costs nothing");
    assert_eq!(client.ready("orders").await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_failing_message_climbs_the_ladder_and_ends_in_the_dead_letter_queue() -> Result<()> {
    // Two healthy messages for each that fails: one poison message is no outage.
    let space =
        Space::new("ladder", |call| Order::answer(if call.body == "poison" { 500 } else { 200 })).await?;
    space.queue("orders", json!({"retry": {"delaysSeconds": [1], "maxAttempts": 3}})).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish_all("orders", (0..20).map(|n| format!("healthy {n}").into_bytes())).await?;
    client.publish("orders", b"poison").await?;
    let dead = space
        .eventually("the poison message is dead", async || {
            let message = client.take("orders.dlq").await?;
            message.ok_or_else(|| anyhow::anyhow!("not yet"))
        })
        .await?;
    assert_eq!(dead.0, b"poison");
    let attempts: Vec<_> = space
        .desk
        .entries()
        .iter()
        .filter(|entry| entry.call.body == "poison")
        .map(|entry| entry.call.headers["warren-attempt"].clone())
        .collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    let headers = dead.1.headers().clone().unwrap_or_default();
    assert!(headers.inner().contains_key("warren-dead-reason"), "{headers:?}");
    Ok(())
}

#[tokio::test]
async fn a_malformed_message_is_dead_lettered_at_once() -> Result<()> {
    let space =
        Space::new("malformed", |_| Order::answer(422).header("warren-reason", "no customer")).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({})).await?;
    space.ready("wq", "orders").await?;
    let client = space.client().await?;
    client.publish("orders", b"broken").await?;
    let ready = async || {
        let ready = client.ready("orders.dlq").await?;
        ensure!(ready == Some(1), "{ready:?}");
        Ok(())
    };
    space.eventually("the message is dead", ready).await?;
    assert_eq!(space.desk.entries().len(), 1, "one call only");
    Ok(())
}

#[tokio::test]
async fn a_message_that_fails_once_is_handled_at_its_second_attempt() -> Result<()> {
    let calls = Mutex::new(HashMap::<String, u32>::new());
    let second_time = move |call: &Call| {
        let mut calls = calls.lock().unwrap();
        let count = calls.entry(call.body.clone()).or_default();
        *count += 1;
        Order::answer(if *count == 1 && call.body == "twice" { 500 } else { 200 })
    };
    let space = Space::new("second", second_time).await?;
    space.queue("orders", json!({"retry": {"delaysSeconds": [1]}})).await?;
    space.worker("invoices", json!({})).await?;
    space.ready("wq", "orders").await?;
    space.client().await?.publish("orders", b"twice").await?;
    space
        .eventually("the second attempt", async || {
            let entries = space.desk.entries();
            ensure!(entries.len() == 2, "{} calls", entries.len());
            ensure!(entries[1].call.headers["warren-attempt"] == "2");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_queue_that_is_deleted_by_hand_is_declared_again_and_consuming_resumes() -> Result<()> {
    let space = Space::new("drift", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    let client = space.client().await?;
    client.publish("orders", b"before").await?;
    space.handled(1).await?;
    client.delete("orders").await?;
    space
        .eventually("the queue is back", async || {
            ensure!(client.ready("orders").await?.is_some(), "no queue");
            Ok(())
        })
        .await?;
    // RabbitMQ shows a quorum queue before it takes messages, and rejects what comes in between.
    space.eventually("the queue takes a message", async || client.publish("orders", b"after").await).await?;
    space.handled(2).await?;
    space
        .eventually("the loss is told", async || {
            let events = space.events("QueueRecreated").await?;
            ensure!(events.matches("queue/orders").count() == 1, "{events}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn the_pod_in_the_place_of_one_that_is_let_go_takes_no_message_of_a_key_before_that_has_ended()
-> Result<()> {
    let space = Space::new("order", |_| Order::work(Duration::from_secs(8))).await?;
    space.queue("orders", json!({})).await?;
    let ordered = json!({
        "consumer": {"orderingKey": "routing-key", "prefetch": 4}, "scaling": {"maxReplicas": 1},
    });
    space.worker("invoices", ordered).await?;
    space.ready("wq", "orders").await?;
    space.client().await?.publish_all("orders", (0..4).map(|n| format!("{n}").into_bytes())).await?;
    space
        .eventually("a call has begun", async || {
            ensure!(!space.desk.entries().is_empty(), "no call");
            Ok(())
        })
        .await?;
    let pods = space.pods_ready("invoices", 1).await?;
    space.kubectl(&["delete", "pod", &pods[0], "--wait=false"]).await?;
    space.handled(4).await?;
    let entries = space.desk.entries();
    let order: Vec<_> = entries.iter().map(|entry| entry.call.body.as_str()).collect();
    assert_eq!(order, ["0", "1", "2", "3"]);
    assert!(entries.windows(2).all(|two| two[0].ended.is_some_and(|ended| ended <= two[1].began)));
    assert_ne!(entries[0].call.pod, entries[3].call.pod);
    Ok(())
}
