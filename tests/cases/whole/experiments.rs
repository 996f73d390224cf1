//! The experiments of docs/durability.md that need Kubernetes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use warren_tests::amqp::queue_type_argument;
use warren_tests::desk::{Call, Order};

use crate::space::Space;

#[tokio::test]
async fn a_queue_over_one_that_is_not_durable_says_so_and_is_ready_when_that_one_is_gone() -> Result<()> {
    let space = Space::new("not-durable", |_| Order::answer(200)).await?;
    let client = space.client().await?;
    client.declare("orders", Default::default(), queue_type_argument("classic")).await?;
    client.publish("orders", b"keep me").await?;

    space.queue("orders", json!({"type": "Classic"})).await?;
    let words = ["durable", "orders"];
    let message = space.condition(("wq", "orders"), "Declared", ("False", "NotDurable"), &words).await?;
    println!("Declared=False NotDurable: {message}");
    assert_eq!(client.ready("orders").await?, Some(1), "the broker's queue is untouched");

    client.delete("orders").await?;
    space.ready("wq", "orders").await?;
    assert_eq!(client.ready("orders").await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn the_message_of_a_pod_that_is_killed_while_it_works_is_handled_by_another() -> Result<()> {
    // The first call never ends by itself; the same message's second call does.
    let seen = Mutex::new(BTreeSet::new());
    let first_hangs = move |call: &Call| match seen.lock().unwrap().insert(call.body.clone()) {
        true => Order::work(Duration::from_secs(600)),
        false => Order::answer(200),
    };
    let space = Space::new("killed", first_hangs).await?;
    space.queue("orders", json!({})).await?;
    space
        .worker(
            "invoices",
            json!({"scaling": {"minReplicas": 2}, "handler": {"http": {"timeoutSeconds": 900}}}),
        )
        .await?;
    space.pods_ready("invoices", 2).await?;

    space.client().await?.publish("orders", b"the only one").await?;
    let first = space
        .eventually("a pod works on the message", async || {
            let entry = space.desk.entries().into_iter().next();
            entry.map(|entry| entry.call.pod).ok_or_else(|| anyhow::anyhow!("not yet"))
        })
        .await?;
    space.cluster.kill(&space.name, &["pod", &first]).await?;
    space.handled(1).await?;
    let entries = space.desk.entries();
    let second = &entries.last().unwrap().call;
    assert_ne!(second.pod, first, "another pod handled it");
    // Redelivered by the broker, or retried by a sidecar that outlived its application by a moment.
    assert!(second.headers["warren-redelivered"] == "true" || second.headers["warren-attempt"] == "2");
    Ok(())
}

const SLOW: Duration = Duration::from_millis(4000);
// What a call takes besides must stay a small part of it.
const FAST: Duration = Duration::from_millis(400);

/// Two pods, of which the first to be called is ten times slower; gives how many messages the slow and the fast handled.
async fn shares(name: &str, prefetch: u32, messages: usize) -> Result<(usize, usize)> {
    let slow = Arc::new(Mutex::new(None::<String>));
    let first_is_slow = {
        let slow = Arc::clone(&slow);
        move |call: &Call| {
            let mut slow = slow.lock().unwrap();
            let slow = slow.get_or_insert_with(|| call.pod.clone());
            Order::work(if *slow == call.pod { SLOW } else { FAST })
        }
    };
    let space = Space::new(name, first_is_slow).await?;
    space.queue("orders", json!({})).await?;
    // No pods until the messages are there would let the first pod take them all.
    let worker = json!({
        "consumer": {"prefetch": prefetch, "concurrency": 1},
        "scaling": {"minReplicas": 2, "maxReplicas": 2},
    });
    space.worker("invoices", worker).await?;
    space.pods_ready("invoices", 2).await?;
    consumers(&space, 2).await?;
    let client = space.client().await?;
    client.publish_all("orders", (0..messages).map(|n| format!("message {n}").into_bytes())).await?;
    space.handled(messages).await?;
    let slow = slow.lock().unwrap().clone().unwrap_or_default();
    let shares = space.desk.shares();
    let of_slow = shares.get(&slow).copied().unwrap_or(0);
    Ok((of_slow, shares.values().sum::<usize>() - of_slow))
}

async fn consumers(space: &Space, count: u64) -> Result<()> {
    space
        .eventually("both sidecars consume", async || {
            let query = format!("[C || C <- rabbit_amqqueue:consumers_all(<<\"{}\">>)]", space.name);
            let list = space.broker.eval(&format!("length({query})")).await?;
            ensure!(list.contains(&format!("ok, {count}")), "{list}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn with_a_prefetch_of_1_shares_follow_the_speeds() -> Result<()> {
    let (slow, fast) = shares("fair", 1, 55).await?;
    println!("prefetch 1: the slow pod handled {slow}, the fast one {fast}");
    assert!(fast >= 5 * slow, "slow {slow}, fast {fast}");
    Ok(())
}

#[tokio::test]
async fn with_a_large_prefetch_and_few_messages_shares_do_not_follow_the_speeds() -> Result<()> {
    let (slow, fast) = shares("unfair", 100, 20).await?;
    println!("prefetch 100: the slow pod handled {slow}, the fast one {fast}");
    assert!(fast < 3 * slow, "slow {slow}, fast {fast}");
    Ok(())
}
