//! The procedure of docs/changing-a-queue.md, with a producer that never stops.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_broker::lapin::Confirmation;
use warren_broker::lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use warren_tests::amqp::{Client, persistent};
use warren_tests::broker::Vhost;
use warren_tests::wait::eventually;

use super::kept::{Keeper, PATIENCE};
use super::look;

warren_tests::on_each_release!(a_queue_is_changed_by_the_documented_procedure_and_nothing_is_lost);

/// Publishes numbers to the exchange until told to stop, each confirmed and routed; gives how many.
async fn produce(uri: String, stop: Arc<AtomicBool>) -> Result<u32> {
    let client = Client::connect(&uri).await?;
    let channel = client.channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut number = 0_u32;
    // A steady load rather than all that the broker takes: what is published here is taken one by one below.
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    while !stop.load(Ordering::Relaxed) {
        let body = number.to_be_bytes();
        let confirm =
            channel.basic_publish("shop".into(), "order.new".into(), mandatory, &body, persistent()).await?;
        let confirmation = confirm.await?;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "{number} was not routed: {confirmation:?}");
        number += 1;
        pace.tick().await;
    }
    Ok(number)
}

/// Takes all that is in a queue.
async fn consume(client: &Client, queue: &str, seen: &mut BTreeSet<u32>) -> Result<()> {
    while let Some((body, _)) = client.take(queue).await? {
        seen.insert(u32::from_be_bytes(body.as_slice().try_into()?));
    }
    Ok(())
}

fn spec(queue_type: &str, bound: bool, policy: &str) -> Value {
    let binding = json!({"exchange": "shop", "routingKey": "order.#", "declare": {"type": "Topic"}});
    let bindings = if bound { json!([binding]) } else { json!([]) };
    json!({"type": queue_type, "deletionPolicy": policy, "bindings": bindings})
}

async fn a_queue_is_changed_by_the_documented_procedure_and_nothing_is_lost(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let access = warren_broker::BrokerAccess::from_uri(&vhost.uri())?;
    let mut old = keeper.named("orders", access.clone(), spec("Classic", true, "Retain"))?;
    old.ready().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let producer = tokio::spawn(produce(vhost.uri(), stop.clone()));
    let client = Client::connect(&vhost.uri()).await?;
    let mut seen = BTreeSet::new();
    eventually(PATIENCE, "the producer has begun", async || {
        ensure!(client.ready("orders").await?.is_some_and(|ready| ready > 0), "not yet");
        Ok(())
    })
    .await?;

    // 1. A second Queue with the new value and the same bindings.
    let mut new = keeper.named("orders-v2", access, spec("Quorum", true, "Retain"))?;
    new.ready().await?;
    // 2. The bindings are taken from the old one.
    old.respec(spec("Classic", false, "Retain"))?;
    eventually(PATIENCE, "the old queue is unbound", async || {
        old.turn();
        ensure!(look::bindings(&vhost, "orders").await?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    // 4. Deleted too early, it says what it still holds.
    old.respec(spec("Classic", false, "DeleteIfEmpty"))?;
    let message = old.kept_by("NotEmpty").await?;
    ensure!(message.contains("\"orders\" has"), "{message}");
    // 3. Both are consumed.
    consume(&client, "orders", &mut seen).await?;
    old.gone().await?;
    stop.store(true, Ordering::Relaxed);
    let published = producer.await.context("the producer")??;
    consume(&client, "orders-v2", &mut seen).await?;
    assert_eq!(client.ready("orders").await?, None);
    assert_eq!(seen.len(), published as usize, "every message is there");
    Ok(())
}
