//! Each field of the spec, read back from the broker.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use warren_tests::broker::{Version, Vhost};

use super::kept::Keeper;
use super::look;

warren_tests::on_each_release!(
    a_length_limit,
    a_limit_of_bytes,
    a_message_ttl,
    a_limit_that_drops_the_head,
    priorities,
    a_single_active_consumer,
    a_delivery_limit,
    a_consumer_timeout,
    limits_of_the_dead_letter_queue,
    a_ladder,
    the_type_of_a_classic_queue,
    bindings_to_exchanges_of_each_type,
    arguments_of_a_headers_binding,
    a_queue_name,
    a_virtual_host,
);

/// Declares a Queue and gives the arguments of one of its queues.
async fn declared(vhost: &Vhost, spec: Value, queue: &str) -> Result<BTreeMap<String, String>> {
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), spec)?.ready().await?;
    look::arguments(vhost, queue).await
}

async fn a_length_limit(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"limits": {"maxLength": 5}}), "orders").await?;
    assert_eq!(arguments["x-max-length"], "5");
    assert_eq!(arguments["x-overflow"], "reject-publish");
    assert_eq!(arguments["x-dead-letter-strategy"], "at-least-once");
    Ok(())
}

async fn a_limit_of_bytes(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"limits": {"maxLengthBytes": 5000}}), "orders").await?;
    assert_eq!(arguments["x-max-length-bytes"], "5000");
    Ok(())
}

async fn a_message_ttl(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"limits": {"messageTtlSeconds": 60}}), "orders").await?;
    assert_eq!(arguments["x-message-ttl"], "60000");
    Ok(())
}

async fn a_limit_that_drops_the_head(vhost: Vhost) -> Result<()> {
    let limits = json!({"limits": {"maxLength": 5, "overflow": "DropHead"}});
    let arguments = declared(&vhost, limits, "orders").await?;
    assert_eq!(arguments["x-overflow"], "drop-head");
    assert!(!arguments.contains_key("x-dead-letter-strategy"), "{arguments:?}");
    Ok(())
}

async fn priorities(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"type": "Classic", "maxPriority": 5}), "orders").await?;
    assert_eq!(arguments["x-max-priority"], "5");
    Ok(())
}

async fn a_single_active_consumer(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"singleActiveConsumer": true}), "orders").await?;
    assert_eq!(arguments["x-single-active-consumer"], "true");
    Ok(())
}

async fn a_delivery_limit(vhost: Vhost) -> Result<()> {
    assert_eq!(declared(&vhost, json!({"deliveryLimit": 7}), "orders").await?["x-delivery-limit"], "7");
    Ok(())
}

/// Before 3.12 only the broker's own setting counts, and the Queue says so.
async fn a_consumer_timeout(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"consumerTimeoutSeconds": 120}))?;
    let expected = match vhost.broker.version() {
        Version::V3_10 => ("False", "BrokerTooOld", "RabbitMQ 3.10."),
        Version::V4_0 => ("True", "Effective", "RabbitMQ 4.0."),
    };
    let (status, reason, word) = expected;
    queue.until("ConsumerTimeoutEffective", (status, reason), &[word]).await?;
    queue.ready().await?;
    assert_eq!(look::arguments(&vhost, "orders").await?["x-consumer-timeout"], "120000");
    Ok(())
}

async fn limits_of_the_dead_letter_queue(vhost: Vhost) -> Result<()> {
    let spec = json!({"deadLetter": {"maxLength": 3, "messageTtlSeconds": 600}});
    let arguments = declared(&vhost, spec, "orders.dlq").await?;
    assert_eq!(arguments["x-max-length"], "3");
    assert_eq!(arguments["x-message-ttl"], "600000");
    assert_eq!(arguments["x-overflow"], "reject-publish");
    Ok(())
}

async fn a_ladder(vhost: Vhost) -> Result<()> {
    let rung = declared(&vhost, json!({"retry": {"delaysSeconds": [2, 9]}}), "orders.retry.9s").await?;
    assert_eq!(rung["x-message-ttl"], "9000");
    assert_eq!(
        (rung["x-dead-letter-exchange"].as_str(), rung["x-dead-letter-routing-key"].as_str()),
        ("", "orders")
    );
    assert_eq!(rung["x-overflow"], "reject-publish");
    assert_eq!(look::arguments(&vhost, "orders.retry.2s").await?["x-message-ttl"], "2000");
    Ok(())
}

async fn the_type_of_a_classic_queue(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), json!({"type": "Classic"}))?.ready().await?;
    for queue in ["orders", "orders.dlq", "orders.retry.5s"] {
        let arguments = look::arguments(&vhost, queue).await?;
        assert_eq!(arguments["x-queue-type"], "classic", "{queue}");
        assert!(!arguments.contains_key("x-delivery-limit"), "{queue}: {arguments:?}");
    }
    Ok(())
}

async fn bindings_to_exchanges_of_each_type(vhost: Vhost) -> Result<()> {
    let types = ["Direct", "Fanout", "Topic", "Headers"];
    let bindings: Vec<_> = types
        .iter()
        .map(|kind| json!({"exchange": format!("shop.{kind}"), "routingKey": "order.#", "declare": {"type": kind}}))
        .collect();
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), json!({"bindings": bindings}))?.ready().await?;
    let bound = look::bindings(&vhost, "orders").await?;
    for kind in types {
        let exchange = look::exchange(&vhost, &format!("shop.{kind}")).await?;
        assert_eq!(exchange, format!("{} true", kind.to_lowercase()));
        assert!(bound.contains(&format!("shop.{kind} order.# ")), "{bound:?}");
    }
    Ok(())
}

async fn arguments_of_a_headers_binding(vhost: Vhost) -> Result<()> {
    let binding = json!({
        "exchange": "shop.headers", "declare": {"type": "Headers"},
        "arguments": {"x-match": "all", "kind": "invoice"},
    });
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), json!({"bindings": [binding]}))?.ready().await?;
    let bound = look::bindings(&vhost, "orders").await?;
    assert!(bound[0].contains("kind=invoice;") && bound[0].contains("x-match=all;"), "{bound:?}");
    Ok(())
}

async fn a_queue_name(vhost: Vhost) -> Result<()> {
    let arguments = declared(&vhost, json!({"queueName": "Other.name:1"}), "Other.name:1").await?;
    assert_eq!(arguments["x-dead-letter-routing-key"], "Other.name:1.dlq");
    Ok(())
}

async fn a_virtual_host(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let keys = BTreeMap::from([("uri".to_owned(), vhost.broker.uri("/").into_bytes())]);
    let access = warren_broker::BrokerAccess::parse(&keys, Some(&vhost.name))?;
    keeper.named("orders", access, json!({}))?.ready().await?;
    look::arguments(&vhost, "orders").await.map(drop)
}
