//! What becomes of the broker's queues when a Queue is deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_broker::BrokerAccess;
use warren_broker::lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use warren_broker::lapin::types::FieldTable;
use warren_operator::brokers::{Key, Outcome, Past};
use warren_operator::queue::plan;
use warren_tests::amqp::{Client, queue_type_argument};
use warren_tests::broker::Vhost;
use warren_tests::wait::eventually;

use super::kept::{Keeper, PATIENCE};
use super::look;

warren_tests::on_each_release!(
    retain_leaves_everything,
    delete_takes_everything_with_its_messages,
    delete_if_empty_takes_empty_queues,
    delete_if_empty_takes_queues_with_a_single_active_consumer_once_they_are_empty,
    delete_if_empty_says_what_is_in_each_queue_and_puts_the_bindings_back,
    delete_if_empty_counts_rungs_that_the_spec_has_dropped,
    delete_if_empty_waits_for_what_the_broker_may_hold_back,
    delete_if_empty_waits_for_what_a_rung_may_hold_back_since_the_main_queue_was_missing,
    delete_if_empty_does_not_believe_the_zero_of_a_queue_without_its_leader,
    a_deletion_leaves_a_queue_that_was_never_warren_s,
    a_deletion_that_is_taken_back_deletes_nothing_more,
);

fn spec(policy: &str, queue_type: &str) -> Value {
    json!({
        "type": queue_type, "deletionPolicy": policy, "retry": {"delaysSeconds": [600]},
        "bindings": [{"exchange": "shop", "declare": {"type": "Fanout"}}],
    })
}

const ALL: [&str; 3] = ["orders", "orders.retry.600s", "orders.dlq"];

async fn none_is_left(client: &Client) -> Result<()> {
    for queue in ALL {
        ensure!(client.ready(queue).await?.is_none(), "{queue} is there");
    }
    Ok(())
}

async fn retain_leaves_everything(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), spec("Retain", "Quorum"))?;
    queue.ready().await?;
    assert_eq!(plan::remove(&queue.queue), None);
    Ok(())
}

async fn delete_takes_everything_with_its_messages(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    for queue_type in ["Quorum", "Classic"] {
        let keeper = Keeper::new();
        let mut queue = keeper.queue(&vhost.uri(), spec("Delete", queue_type))?;
        queue.ready().await?;
        client.publish("orders", b"goes with it").await?;
        queue.gone().await?;
        none_is_left(&client).await?;
    }
    Ok(())
}

async fn delete_if_empty_takes_empty_queues(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    for queue_type in ["Quorum", "Classic"] {
        let keeper = Keeper::new();
        let mut queue = keeper.queue(&vhost.uri(), spec("DeleteIfEmpty", queue_type))?;
        queue.ready().await?;
        queue.gone().await?;
        none_is_left(&client).await?;
    }
    Ok(())
}

/// Such a quorum queue refuses basic.get, by which the zeros of others are confirmed.
async fn delete_if_empty_takes_queues_with_a_single_active_consumer_once_they_are_empty(
    vhost: Vhost,
) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    for queue_type in ["Quorum", "Classic"] {
        let keeper = Keeper::new();
        let mut single = spec("DeleteIfEmpty", queue_type);
        single["singleActiveConsumer"] = true.into();
        let mut queue = keeper.queue(&vhost.uri(), single)?;
        queue.ready().await?;
        client.publish("orders", b"in the way").await?;
        let message = queue.kept_by("NotEmpty").await?;
        ensure!(message.contains("\"orders\" has 1 messages"), "{message}");
        client.purge("orders").await?;
        queue.gone().await?;
        none_is_left(&client).await?;
    }
    Ok(())
}

async fn delete_if_empty_says_what_is_in_each_queue_and_puts_the_bindings_back(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    for queue_type in ["Quorum", "Classic"] {
        let keeper = Keeper::new();
        let mut queue = keeper.queue(&vhost.uri(), spec("DeleteIfEmpty", queue_type))?;
        queue.ready().await?;
        for full in ALL {
            client.publish(full, b"in the way").await?;
            let message = queue.kept_by("NotEmpty").await?;
            ensure!(message.contains(&format!("\"{full}\" has 1 messages")), "{message}");
            assert_eq!(look::bindings(&vhost, "orders").await?, ["shop  "], "after {full}");
            client.purge(full).await?;
            queue.ready().await?;
        }
        // What a consumer holds is invisible, but the consumer is not.
        let channel = client.channel().await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume("orders".into(), "c".into(), options, FieldTable::default()).await?;
        let message = queue.kept_by("NotEmpty").await?;
        ensure!(message.contains("\"orders\" has 0 messages and 1 consumers"), "{message}");
        drop(consumer);
        channel.close(200, "bye".into()).await?;
        queue.gone().await?;
    }
    none_is_left(&client).await
}

async fn delete_if_empty_counts_rungs_that_the_spec_has_dropped(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), spec("DeleteIfEmpty", "Quorum"))?;
    queue.ready().await?;
    client.publish("orders.retry.600s", b"waits").await?;
    let mut without = spec("DeleteIfEmpty", "Quorum");
    without["retry"] = json!({"delaysSeconds": []});
    queue.respec(without)?;
    queue.ready().await?;
    let message = queue.kept_by("NotEmpty").await?;
    ensure!(message.contains("\"orders.retry.600s\" has 1 messages"), "{message}");
    client.purge("orders.retry.600s").await?;
    queue.gone().await?;
    none_is_left(&client).await
}

async fn delete_if_empty_waits_for_what_the_broker_may_hold_back(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    // Longer than it takes to look at the broker meanwhile.
    let keeper = Keeper::holding_back(Duration::from_secs(20));
    let mut limited = spec("DeleteIfEmpty", "Quorum");
    limited["deadLetter"] = json!({"maxLength": 2});
    let mut queue = keeper.queue(&vhost.uri(), limited)?;
    queue.ready().await?;
    // As an attempt leaves it that loses its connection while it counts.
    let channel = client.channel().await?;
    channel.queue_unbind("orders".into(), "shop".into(), "".into(), FieldTable::default()).await?;
    let message = queue.kept_by("Settling").await?;
    ensure!(message.contains("six minutes"), "{message}");
    assert_eq!(look::bindings(&vhost, "orders").await?, ["shop  "], "messages still come");
    queue.gone().await?;
    none_is_left(&client).await
}

/// A quorum queue does not count a message that has expired and finds no queue to go to, and tries again each three minutes.
async fn delete_if_empty_waits_for_what_a_rung_may_hold_back_since_the_main_queue_was_missing(
    vhost: Vhost,
) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    for made_again in [false, true] {
        // Nothing is looked at but when it is ordered.
        let keeper = Keeper::with(Duration::from_secs(3600), Duration::from_secs(20));
        let mut short = spec("DeleteIfEmpty", "Quorum");
        short["retry"] = json!({"delaysSeconds": [1]});
        let mut queue = keeper.queue(&vhost.uri(), short.clone())?;
        queue.ready().await?;
        client.publish("orders.retry.1s", b"would be lost").await?;
        client.delete("orders").await?;
        eventually(PATIENCE, "it has expired", async || {
            ensure!(client.ready("orders.retry.1s").await? == Some(0), "not yet");
            Ok(())
        })
        .await?;
        if made_again {
            short["bindings"] = json!([]);
            queue.respec(short)?;
            queue.ready().await?;
            ensure!(client.ready("orders").await? == Some(0), "it is held back");
        }
        let message = queue.kept_by("Settling").await?;
        ensure!(message.contains("full or missing queue"), "{message}");
        for queue in ["orders", "orders.retry.1s", "orders.dlq"] {
            client.delete(queue).await?;
        }
    }
    Ok(())
}

/// A passive declaration of a quorum queue without a leader answers 0 messages as a success.
async fn delete_if_empty_does_not_believe_the_zero_of_a_queue_without_its_leader(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), spec("DeleteIfEmpty", "Quorum"))?;
    queue.ready().await?;
    client.publish("orders", b"would be lost").await?;
    look::replica(&vhost, "orders", false).await?;
    eventually(PATIENCE, "the broker says 0 for a queue that holds 1", async || {
        ensure!(client.ready("orders").await? == Some(0), "not yet");
        Ok(())
    })
    .await?;
    // It takes several attempts that fail until the deletion says why it waits.
    let outcome = queue.end().await?;
    ensure!(matches!(outcome, Outcome::Refused(_) | Outcome::Unreachable(_)), "{outcome:?}");
    look::replica(&vhost, "orders", true).await?;
    eventually(PATIENCE, "the message is counted", async || {
        let message = queue.kept_by("NotEmpty").await?;
        ensure!(message.contains("\"orders\" has 1 messages"), "{message}");
        Ok(())
    })
    .await?;
    assert_eq!(look::bindings(&vhost, "orders").await?, ["shop  "]);
    client.holds("orders", 1).await?;
    Ok(())
}

async fn a_deletion_leaves_a_queue_that_was_never_warren_s(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare("orders", QueueDeclareOptions::default(), queue_type_argument("classic")).await?;
    client.publish("orders", b"somebody's").await?;
    for policy in ["Delete", "DeleteIfEmpty"] {
        let keeper = Keeper::new();
        let mut queue = keeper.queue(&vhost.uri(), spec(policy, "Classic"))?;
        queue.until("Declared", ("False", "NotDurable"), &[]).await?;
        queue.gone().await?;
        assert_eq!(client.ready("orders").await?, Some(1), "{policy}");
        assert_eq!(client.ready("orders.dlq").await?, None, "Warren's own goes");
    }
    Ok(())
}

/// As a user has it who sets `Retain` while the broker does not answer.
async fn a_deletion_that_is_taken_back_deletes_nothing_more(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    let (way, uri) = vhost.by_a_way().await?;
    let keeper = Keeper::checking(Duration::from_secs(3600));
    let mut queue = keeper.queue(&uri, spec("Delete", "Quorum"))?;
    queue.ready().await?;
    // A connection that nobody needs any more would end what it is about.
    let other = keeper.named("other", BrokerAccess::from_uri(&uri)?, json!({}));
    other?.ready().await?;
    way.hold();
    let (key, order) = (Key::of(&queue.queue), plan::remove(&queue.queue).context("nothing is to go")?);
    keeper.brokers.assign(&key, &queue.access, order, Past::None);
    eventually(PATIENCE, "the deletion has begun", async || {
        ensure!(keeper.brokers.carries_out(&key) && way.holds());
        Ok(())
    })
    .await?;
    keeper.brokers.forget(&key);
    assert!(keeper.brokers.carries_out(&key));
    way.let_pass();
    eventually(PATIENCE, "it has ended", async || {
        ensure!(!keeper.brokers.carries_out(&key));
        Ok(())
    })
    .await?;
    for queue in ALL {
        ensure!(client.ready(queue).await?.is_some(), "{queue} is gone");
    }
    Ok(())
}
