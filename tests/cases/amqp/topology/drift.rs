//! What is removed by hand is declared again; what is there is left alone.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures::StreamExt;
use serde_json::json;
use warren_broker::lapin::options::{BasicPublishOptions, ExchangeDeleteOptions};
use warren_broker::lapin::types::FieldTable;
use warren_operator::brokers::Key;
use warren_tests::amqp::{Client, persistent};
use warren_tests::broker::{USER, Vhost};
use warren_tests::wait::eventually;

use super::kept::{CONNECTION, Keeper, Kept, PATIENCE};
use super::look;

warren_tests::on_each_release!(
    queues_that_are_deleted_come_back_with_their_bindings,
    an_exchange_or_binding_that_is_deleted_comes_back,
    a_missing_exchange_keeps_no_queue_and_no_other_binding_away,
    many_missing_exchanges_keep_no_other_binding_away_for_long,
    a_second_pass_changes_nothing_and_is_no_news,
    a_queue_that_a_probe_misses_comes_back_without_a_drift_check,
    a_changed_ladder_declares_first_and_deletes_what_is_empty_and_unused,
    a_rung_of_an_order_that_failed_goes_once_the_spec_drops_it,
    a_dropped_rung_stays_while_the_main_queue_may_refuse_what_it_gives_back,
    a_dropped_rung_stays_while_a_main_queue_of_others_has_no_leader,
    a_rung_s_name_that_is_somebody_s_own_is_left_alone_when_the_spec_drops_it,
    a_dropped_binding_is_taken_back,
    a_dropped_binding_of_an_order_that_failed_is_taken_back_too,
    a_dropped_binding_that_may_not_be_taken_back_keeps_the_queue_from_nothing,
    a_full_dead_letter_queue_is_told_until_there_is_room,
);

const SPEC: &str = r#"{"retry": {"delaysSeconds": [5, 60]},
    "bindings": [{"exchange": "shop", "routingKey": "order.#", "declare": {"type": "Topic"}}]}"#;

fn spec() -> serde_json::Value {
    serde_json::from_str(SPEC).unwrap()
}

/// Waits until a message with this body that is published to the exchange arrives in the queue. Another body each time: what came
/// too late for a look proves nothing later.
async fn routed(client: &Client, body: &[u8]) -> Result<()> {
    let channel = client.channel().await?;
    eventually(PATIENCE, "the exchange routes into the queue", async || {
        let options = BasicPublishOptions::default();
        channel.basic_publish("shop".into(), "order.new".into(), options, body, persistent()).await?;
        while let Some((arrived, _)) = client.take("orders").await? {
            if arrived == body {
                return Ok(());
            }
        }
        bail!("not yet")
    })
    .await
}

async fn queues_that_are_deleted_come_back_with_their_bindings(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), spec())?;
    queue.ready().await?;
    // Its status says so by now.
    queue.turn();
    let told = || keeper.brokers.take_recreated(&Key::of(&queue.queue));
    assert!(!told(), "it is new");
    let client = Client::connect(&vhost.uri()).await?;
    for name in ["orders", "orders.dlq", "orders.retry.60s"] {
        client.delete(name).await?;
    }
    for name in ["orders", "orders.dlq", "orders.retry.60s"] {
        eventually(PATIENCE, &format!("{name} is back"), async || {
            ensure!(client.ready(name).await? == Some(0), "not yet");
            Ok(())
        })
        .await?;
    }
    let mut looks = 0;
    eventually(PATIENCE, "the loss is told", async || {
        if told() {
            return Ok(());
        }
        looks += 1;
        // A drift check that was under way when it was deleted may have declared it again without having missed it.
        if looks % 50 == 0 {
            client.delete("orders").await?;
        }
        bail!("not yet")
    })
    .await?;
    routed(&client, b"routed 1").await?;
    client.delete("orders.dlq").await?;
    eventually(PATIENCE, "there is another drift check", async || {
        ensure!(client.ready("orders.dlq").await?.is_some(), "not yet");
        Ok(())
    })
    .await?;
    assert!(!told(), "one loss is told once, and the main queue's alone");
    Ok(())
}

async fn an_exchange_or_binding_that_is_deleted_comes_back(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), spec())?.ready().await?;
    let client = Client::connect(&vhost.uri()).await?;
    let channel = client.channel().await?;
    channel.queue_unbind("orders".into(), "shop".into(), "order.#".into(), FieldTable::default()).await?;
    routed(&client, b"routed 2").await?;
    channel.exchange_delete("shop".into(), ExchangeDeleteOptions::default()).await?;
    let back = async || {
        ensure!(look::exchange(&vhost, "shop").await? == "topic true", "not yet");
        Ok(())
    };
    eventually(PATIENCE, "the exchange is back", back).await?;
    routed(&client, b"routed 3").await
}

async fn a_missing_exchange_keeps_no_queue_and_no_other_binding_away(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let bindings = json!([{"exchange": "not-there"}, {"exchange": "nor-this"}, {"exchange": "shop", "declare": {"type": "Topic"}},
        {"exchange": "amq.topic", "routingKey": "order.#"}]);
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": bindings}))?;
    queue.until("Declared", ("False", "ExchangeNotFound"), &["\"not-there\""]).await?;
    let client = Client::connect(&vhost.uri()).await?;
    for name in ["orders", "orders.dlq", "orders.retry.5s"] {
        assert_eq!(client.ready(name).await?, Some(0), "{name}");
    }
    let mut bound = look::bindings(&vhost, "orders").await?;
    bound.sort();
    assert_eq!(bound, ["amq.topic order.# ", "shop  "]);
    client.delete("orders.dlq").await?;
    eventually(PATIENCE, "the dead-letter queue is back", async || {
        ensure!(client.ready("orders.dlq").await? == Some(0), "not yet");
        Ok(())
    })
    .await
}

async fn many_missing_exchanges_keep_no_other_binding_away_for_long(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let missing = (0..12).map(|number| json!({"exchange": format!("not-there-{number}")}));
    let bindings: Vec<_> =
        missing.chain([json!({"exchange": "amq.topic", "routingKey": "order.#"})]).collect();
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": bindings}))?;
    queue.until("Declared", ("False", "ExchangeNotFound"), &["not-there"]).await?;
    eventually(PATIENCE, "the binding is made", async || {
        queue.turn();
        let bound = look::bindings(&vhost, "orders").await?;
        ensure!(bound == ["amq.topic order.# "], "{bound:?}");
        Ok(())
    })
    .await
}

async fn a_second_pass_changes_nothing_and_is_no_news(vhost: Vhost) -> Result<()> {
    let mut keeper = Keeper::checking(Duration::from_millis(100));
    keeper.queue(&vhost.uri(), spec())?.ready().await?;
    let (process, bindings) =
        (look::process(&vhost, "orders").await?, look::bindings(&vhost, "orders").await?);
    // A queue that was made again would have lost it.
    let client = Client::connect(&vhost.uri()).await?;
    client.publish("orders", b"stays").await?;
    while keeper.news.try_recv().is_ok() {}
    // Many passes: none of them says anything.
    let news = tokio::time::timeout(Duration::from_secs(2), keeper.news.next()).await;
    assert!(news.is_err(), "{news:?}");
    client.delete("orders.dlq").await?;
    eventually(PATIENCE, "a pass has seen it", async || {
        let ready = client.ready("orders.dlq").await?;
        ensure!(ready == Some(0), "{ready:?}");
        Ok(())
    })
    .await?;
    client.holds("orders", 1).await?;
    assert_eq!(look::process(&vhost, "orders").await?, process);
    assert_eq!(look::bindings(&vhost, "orders").await?, bindings);
    Ok(())
}

async fn a_queue_that_a_probe_misses_comes_back_without_a_drift_check(vhost: Vhost) -> Result<()> {
    // No drift check would find it.
    let keeper = Keeper::checking(Duration::from_secs(3600));
    let mut queue = keeper.queue(&vhost.uri(), spec())?;
    queue.ready().await?;
    let lane = keeper.brokers.lane_of(&Key::of(&queue.queue)).unwrap();
    let client = Client::connect(&vhost.uri()).await?;
    client.delete("orders").await?;
    eventually(PATIENCE, "the probe finds the queue", async || Ok(lane.depth("orders", PATIENCE).await?))
        .await?;
    routed(&client, b"routed 4").await
}

async fn a_changed_ladder_declares_first_and_deletes_what_is_empty_and_unused(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"retry": {"delaysSeconds": [500, 600]}}))?;
    queue.ready().await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.publish("orders.retry.600s", b"waits").await?;
    queue.respec(json!({"retry": {"delaysSeconds": [30]}}))?;
    eventually(PATIENCE, "the empty rung goes, the full one stays", async || {
        queue.turn();
        let rungs: Vec<i32> = queue.status().declared.unwrap_or_default().rungs().collect();
        ensure!(rungs == [30, 600], "{rungs:?}");
        Ok(())
    })
    .await?;
    assert_eq!(client.ready("orders.retry.30s").await?, Some(0));
    assert_eq!(client.ready("orders.retry.500s").await?, None);
    client.holds("orders.retry.600s", 1).await?;
    client.purge("orders.retry.600s").await?;
    eventually(PATIENCE, "the emptied rung goes too", async || {
        queue.turn();
        ensure!(client.ready("orders.retry.600s").await?.is_none(), "not yet");
        Ok(())
    })
    .await
}

async fn a_rung_of_an_order_that_failed_goes_once_the_spec_drops_it(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let ladder = |delays: [i32; 2]| json!({"retry": {"delaysSeconds": delays}});
    let mut queue = keeper.queue(&vhost.uri(), ladder([5, 600]))?;
    queue.ready().await?;
    let mut wrong = ladder([10, 600]);
    wrong["bindings"] = json!([{"exchange": "not-there"}]);
    queue.respec(wrong)?;
    queue.until("Declared", ("False", "ExchangeNotFound"), &["\"not-there\""]).await?;
    let client = Client::connect(&vhost.uri()).await?;
    assert_eq!(client.ready("orders.retry.10s").await?, Some(0));
    queue.respec(ladder([20, 600]))?;
    eventually(PATIENCE, "the rungs of both orders before go", async || {
        queue.turn();
        let declared = queue.status().declared.unwrap_or_default();
        ensure!(declared.rungs().collect::<Vec<_>>() == [20, 600], "{declared:?}");
        Ok(())
    })
    .await?;
    for rung in ["orders.retry.5s", "orders.retry.10s"] {
        assert_eq!(client.ready(rung).await?, None, "{rung}");
    }
    Ok(())
}

/// Waits for so many looks at the rungs: there was one each time that the dead-letter queue comes back.
async fn rungs_are_looked_at(queue: &mut Kept<'_>, client: &Client, times: u32) -> Result<()> {
    for _ in 0..times {
        client.delete("orders.dlq").await?;
        // RabbitMQ shows a quorum queue before it takes messages, and one that is deleted in between can never be declared again
        // (rabbitmq-server issue 17457).
        eventually(PATIENCE, "there was another look", async || {
            queue.turn();
            client.publish("orders.dlq", b"sound").await
        })
        .await?;
    }
    Ok(())
}

async fn a_dropped_rung_stays_while_the_main_queue_may_refuse_what_it_gives_back(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let spec = |delays: &[u32]| json!({"limits": {"maxLength": 2}, "retry": {"delaysSeconds": delays}});
    let mut queue = keeper.queue(&vhost.uri(), spec(&[500, 600]))?;
    queue.ready().await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.publish_all("orders", [b"one".to_vec(), b"two".to_vec()]).await?;
    queue.respec(spec(&[600]))?;
    queue.ready().await?;
    rungs_are_looked_at(&mut queue, &client, 5).await?;
    assert_eq!(client.ready("orders.retry.500s").await?, Some(0));
    client.purge("orders").await?;
    eventually(PATIENCE, "the rung goes once there is room", async || {
        queue.turn();
        ensure!(client.ready("orders.retry.500s").await?.is_none(), "not yet");
        Ok(())
    })
    .await
}

async fn a_dropped_rung_stays_while_a_main_queue_of_others_has_no_leader(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare_durable("orders", "quorum").await?;
    let keeper = Keeper::new();
    let spec = |delays: &[u32]| json!({"adoptionPolicy": "AsIs", "retry": {"delaysSeconds": delays}});
    let mut queue = keeper.queue(&vhost.uri(), spec(&[400, 500, 600]))?;
    queue.ready().await?;
    client.publish_all("orders.retry.500s", [b"one".to_vec()]).await?;
    queue.respec(spec(&[600]))?;
    eventually(PATIENCE, "the rung without messages goes", async || {
        queue.turn();
        ensure!(client.ready("orders.retry.400s").await?.is_none(), "not yet");
        Ok(())
    })
    .await?;
    let connected = look::connected_at(&vhost, CONNECTION).await?;
    look::replica(&vhost, "orders", false).await?;
    client.purge("orders.retry.500s").await?;
    rungs_are_looked_at(&mut queue, &client, 6).await?;
    assert_eq!(client.ready("orders.retry.500s").await?, Some(0));
    assert_eq!(
        look::connected_at(&vhost, CONNECTION).await?,
        connected,
        "the connection of all Queues stays"
    );
    look::replica(&vhost, "orders", true).await?;
    eventually(PATIENCE, "the other goes once there is a leader", async || {
        queue.turn();
        ensure!(client.ready("orders.retry.500s").await?.is_none(), "not yet");
        Ok(())
    })
    .await
}

async fn a_rung_s_name_that_is_somebody_s_own_is_left_alone_when_the_spec_drops_it(
    vhost: Vhost,
) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare_durable("orders.retry.5s", "classic").await?;
    let keeper = Keeper::new();
    let with = |delays: &[u32]| json!({"retry": {"delaysSeconds": delays}, "bindings": [{"exchange": "shop", "declare": {"type": "Fanout"}}]});
    let mut queue = keeper.queue(&vhost.uri(), with(&[5, 60]))?;
    queue.until("Declared", ("False", "ArgumentsDiffer"), &["orders.retry.5s"]).await?;
    queue.respec(with(&[60]))?;
    eventually(PATIENCE, "the rung is let go", async || {
        queue.turn();
        let rungs: Vec<i32> = queue.status().declared.unwrap_or_default().rungs().collect();
        ensure!(rungs == [60], "{rungs:?}");
        Ok(())
    })
    .await?;
    assert_eq!(client.ready("orders.retry.5s").await?, Some(0));
    Ok(())
}

async fn a_dropped_binding_is_taken_back(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), spec())?;
    queue.ready().await?;
    assert_eq!(look::bindings(&vhost, "orders").await?, ["shop order.# "]);
    queue.respec(json!({"retry": {"delaysSeconds": [5, 60]}}))?;
    eventually(PATIENCE, "the binding is gone", async || {
        queue.turn();
        let bindings = look::bindings(&vhost, "orders").await?;
        ensure!(bindings.is_empty(), "{bindings:?}");
        Ok(())
    })
    .await
}

async fn a_dropped_binding_of_an_order_that_failed_is_taken_back_too(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let refused = json!({"exchange": "amq.headers", "arguments": {"x-match": "neither"}});
    let made = json!({"exchange": "amq.topic", "routingKey": "order.#"});
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": [made, refused]}))?;
    queue.until("Declared", ("False", "ArgumentsRefused"), &["amq.headers"]).await?;
    assert_eq!(look::bindings(&vhost, "orders").await?, ["amq.topic order.# "]);
    queue.respec(json!({}))?;
    eventually(PATIENCE, "the binding is gone", async || {
        queue.turn();
        let bindings = look::bindings(&vhost, "orders").await?;
        ensure!(bindings.is_empty(), "{bindings:?}");
        Ok(())
    })
    .await?;
    queue.ready().await
}

async fn a_dropped_binding_that_may_not_be_taken_back_keeps_the_queue_from_nothing(
    vhost: Vhost,
) -> Result<()> {
    let keeper = Keeper::new();
    vhost.broker.permissions(USER, &vhost.name, ".*", ".*", "^orders").await?;
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": [{"exchange": "amq.topic"}]}))?;
    queue.until("Declared", ("False", "AccessRefused"), &["right to read"]).await?;
    queue.respec(json!({}))?;
    queue.ready().await
}

async fn a_full_dead_letter_queue_is_told_until_there_is_room(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"deadLetter": {"maxLength": 2}}))?;
    queue.until("DeadLetterAvailable", ("True", "Available"), &[]).await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.publish_all("orders.dlq", [b"one".to_vec(), b"two".to_vec()]).await?;
    queue.until("DeadLetterAvailable", ("False", "Full"), &["\"orders.dlq\"", "2 messages"]).await?;
    let refused = eventually(PATIENCE, "the broker refuses one more", async || {
        ensure!(client.publish("orders.dlq", b"three").await.is_err(), "taken");
        Ok(())
    });
    refused.await?;
    look::replica(&vhost, "orders.dlq", false).await?;
    eventually(PATIENCE, "without a leader it reads empty", async || {
        ensure!(client.ready("orders.dlq").await? == Some(0), "not yet");
        Ok(())
    })
    .await?;
    for rung in ["orders.retry.5s", "orders.retry.60s", "orders.retry.600s"] {
        client.delete(rung).await?;
        eventually(PATIENCE, "there was another look", async || {
            ensure!(client.ready(rung).await?.is_some(), "not yet");
            Ok(())
        })
        .await?;
    }
    queue.until("DeadLetterAvailable", ("False", "Full"), &[]).await?;
    look::replica(&vhost, "orders.dlq", true).await?;
    eventually(PATIENCE, "it is purged once it has a leader", async || client.purge("orders.dlq").await)
        .await?;
    queue.until("DeadLetterAvailable", ("True", "Available"), &[]).await?;
    queue.ready().await
}
