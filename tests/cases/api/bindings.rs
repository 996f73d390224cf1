//! Bindings that an end cuts short: none is lost, and none is left.

use anyhow::{Context, Result, ensure};
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
async fn a_queue_that_an_attempt_to_delete_it_left_unbound_is_bound_again_before_retain_lets_go() -> Result<()>
{
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
    client.holds("orders", 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_binding_that_the_spec_drops_goes_while_another_exchange_is_missing() -> Result<()> {
    let room = Room::new("dropped").await?;
    let _operator = room.operator("one").await?;
    let (noisy, missing) =
        (json!({"exchange": "noisy", "declare": {"type": "Fanout"}}), json!({"exchange": "not-there"}));
    room.queue("orders", json!({"bindings": [noisy, missing]})).await?;
    room.condition("orders", "Declared", "False", "ExchangeNotFound", "\"not-there\"").await?;
    let bound = async |so: bool| {
        room.eventually(&format!("bound: {so}"), async || {
            ensure!(is_bound(&room, "noisy").await? == so, "not yet");
            Ok(())
        })
        .await
    };
    bound(true).await?;
    room.queue("orders", json!({"bindings": [missing]})).await?;
    bound(false).await?;
    room.condition("orders", "Declared", "False", "ExchangeNotFound", "\"not-there\"").await
}

#[tokio::test]
async fn a_binding_is_recorded_before_it_is_made_so_that_another_change_takes_it_back() -> Result<()> {
    let room = Room::new("recorded").await?;
    let (way, uri) = room.vhost.by_a_way().await?;
    room.secret("rabbitmq", &uri).await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", bound_to("a", "Retain")).await?;
    room.ready("orders").await?;
    // The broker never answers to the second.
    way.cut();
    room.queue("orders", bound_to("b", "Retain")).await?;
    let recorded = async || {
        let queue = room.get("wq", "orders").await?;
        let conditions = queue["status"]["conditions"].as_array().context("none")?;
        let noticed = |one: &Value| one["type"] == "BrokerReachable" && one["status"] != "True";
        let bindings = queue["status"]["declared"]["bindings"].as_array().context("none")?;
        let bindings: Vec<_> =
            bindings.iter().filter_map(|one| Some(one["exchange"].as_str()?.to_owned())).collect();
        anyhow::Ok((bindings, conditions.iter().any(noticed)))
    };
    room.eventually("both are recorded before it is noticed that the broker is silent", async || {
        let (recorded, noticed) = recorded().await?;
        ensure!(recorded == ["a", "b"] && !noticed, "{recorded:?}, noticed: {noticed}");
        Ok(())
    })
    .await?;
    room.queue("orders", bound_to("c", "Retain")).await?;
    way.mend();
    room.eventually("only the last is left", async || {
        let (recorded, _) = recorded().await?;
        ensure!(recorded == ["c"], "{recorded:?}");
        Ok(())
    })
    .await?;
    ensure!(is_bound(&room, "c").await? && !is_bound(&room, "a").await?, "the first is bound still");
    Ok(())
}
