//! Bindings that an end cuts short: none is lost, and none is left.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use warren_broker::lapin::types::FieldTable;
use warren_tests::amqp::Client;

use crate::operator::Room;

fn bound_to(exchange: &str, policy: &str) -> Value {
    let binding = json!({"exchange": exchange, "declare": {"type": "Fanout"}});
    json!({"bindings": [binding], "deletionPolicy": policy})
}

/// Whether the broker's queue "orders" is bound to an exchange.
async fn is_bound(room: &Room, exchange: &str) -> Result<bool> {
    let columns = ["source_name", "destination_name"];
    let list = [&["list_bindings", "-p", room.vhost.name.as_str()][..], &columns].concat();
    let bindings = room.vhost.broker.rabbitmqctl(&list).await?;
    Ok(bindings.lines().any(|line| line.split_whitespace().eq([exchange, "orders"])))
}

#[tokio::test]
async fn a_queue_that_an_attempt_to_delete_it_left_unbound_is_bound_again_before_retain_lets_go() -> Result<()> {
    let room = Room::new("unbound").await?;
    let first = room.operator("one").await?;
    room.queue("orders", bound_to("shop", "DeleteIfEmpty")).await?;
    room.ready("orders").await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    client.publish("orders", b"in the way").await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    room.condition("orders", "DeletionBlocked", "True", "NotEmpty", "1 messages").await?;
    // As an attempt leaves it whose operator ends while it counts.
    first.stop().await?;
    let channel = client.channel().await?;
    channel.queue_unbind("orders".into(), "shop".into(), "".into(), FieldTable::default()).await?;
    ensure!(!is_bound(&room, "shop").await?, "it is bound still");
    let retain = r#"{"spec": {"deletionPolicy": "Retain"}}"#;
    room.kubectl(&["patch", "wq", "orders", "--type=merge", "-p", retain]).await?;
    let _second = room.operator("two").await?;
    room.gone("orders").await?;
    ensure!(is_bound(&room, "shop").await?, "messages do not come any more");
    assert_eq!(client.ready("orders").await?, Some(1));
    Ok(())
}
