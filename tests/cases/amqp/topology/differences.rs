//! What exists otherwise is named and never touched; what is missing or taken is told, and heals when it is mended.

use anyhow::Result;
use serde_json::json;
use warren_broker::lapin::ExchangeKind;
use warren_broker::lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use warren_broker::lapin::types::FieldTable;
use warren_tests::amqp::{Client, queue_type_argument};
use warren_tests::broker::Vhost;

use super::kept::Keeper;
use super::look;

warren_tests::on_each_release!(
    a_queue_that_is_not_durable_is_named_and_left_alone_until_it_is_gone,
    a_queue_of_another_type_is_told_and_can_be_used_as_it_is,
    an_argument_that_differs_is_named_with_both_values,
    an_exchange_of_another_type_or_durability_is_named,
    an_argument_that_the_broker_does_not_take_is_told,
    a_virtual_host_that_may_have_no_more_queues_is_told,
    a_name_that_another_connection_holds_exclusively_is_told_and_used_when_it_is_free,
    a_missing_exchange_is_told_and_bound_once_it_is_there,
    a_missing_virtual_host_is_told_and_used_once_it_is_there,
);

async fn a_queue_that_is_not_durable_is_named_and_left_alone_until_it_is_gone(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare("orders", QueueDeclareOptions::default(), queue_type_argument("classic")).await?;
    client.publish("orders", b"keep me").await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"type": "Classic"}))?;
    queue.until("Declared", ("False", "NotDurable"), &["\"orders\"", "delete_queue orders"]).await?;
    assert_eq!(client.ready("orders").await?, Some(1), "its message is still there");
    client.delete("orders").await?;
    queue.ready().await
}

async fn a_queue_of_another_type_is_told_and_can_be_used_as_it_is(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare_durable("orders", "classic").await?;
    let (channel, arguments) = (client.channel().await?, FieldTable::default());
    channel
        .queue_bind("orders".into(), "amq.topic".into(), "#".into(), Default::default(), arguments)
        .await?;
    client.publish("orders", b"keep me").await?;
    let keeper = Keeper::new();
    let binding = json!({"exchange": "amq.topic", "routingKey": "#"});
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": [binding]}))?;
    // The broker names the first difference that it finds.
    let words = ["\"orders\" exists with x-", "and the spec asks for", "docs/changing-a-queue.md"];
    queue.until("Declared", ("False", "ArgumentsDiffer"), &words).await?;
    assert_eq!(client.ready("orders").await?, Some(1), "its message is still there");
    // One of the ways out: nothing is declared over a queue that belongs to others.
    queue.respec(json!({"adoptionPolicy": "AsIs"}))?;
    queue.ready().await?;
    channel.confirm_select(Default::default()).await?;
    let (options, properties) = Default::default();
    let routed =
        channel.basic_publish("amq.topic".into(), "order.new".into(), options, b"routed", properties);
    routed.await?.await?;
    assert_eq!(client.ready("orders").await?, Some(2), "its owner's binding is still there");
    Ok(())
}

async fn an_argument_that_differs_is_named_with_both_values(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), json!({"limits": {"maxLength": 20}}))?.ready().await?;
    let other = Keeper::new();
    let mut queue = other.queue(&vhost.uri(), json!({"limits": {"maxLength": 10}}))?;
    let words = ["x-max-length = 20", "asks for 10"];
    queue.until("Declared", ("False", "ArgumentsDiffer"), &words).await?;
    assert_eq!(look::arguments(&vhost, "orders").await?["x-max-length"], "20");
    Ok(())
}

async fn an_exchange_of_another_type_or_durability_is_named(vhost: Vhost) -> Result<()> {
    let channel = Client::connect(&vhost.uri()).await?.channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declare = async |name: &str, options| {
        channel.exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default()).await
    };
    declare("direct", durable).await?;
    declare("passing", ExchangeDeclareOptions::default()).await?;
    for (exchange, reason, word) in
        [("direct", "ArgumentsDiffer", "type = direct"), ("passing", "NotDurable", "\"passing\"")]
    {
        let kind = if exchange == "direct" { "Topic" } else { "Direct" };
        let keeper = Keeper::new();
        let binding = json!({"exchange": exchange, "declare": {"type": kind}});
        let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": [binding]}))?;
        queue.until("Declared", ("False", reason), &["exchange", word]).await?;
    }
    Ok(())
}

async fn an_argument_that_the_broker_does_not_take_is_told(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    // The API server refuses this spec; a broker of another release may refuse others.
    let mut queue = keeper.queue(&vhost.uri(), json!({"maxPriority": 5}))?;
    queue.until("Declared", ("False", "ArgumentsRefused"), &["\"orders\"", "x-max-priority"]).await?;
    Ok(())
}

async fn a_virtual_host_that_may_have_no_more_queues_is_told(vhost: Vhost) -> Result<()> {
    let limit = ["set_vhost_limits", "--vhost", &vhost.name, r#"{"max-queues": 1}"#];
    vhost.broker.rabbitmqctl(&limit).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({}))?;
    queue.until("Declared", ("False", "QueueLimit"), &["queue limit in", "max-queues"]).await?;
    Ok(())
}

async fn a_name_that_another_connection_holds_exclusively_is_told_and_used_when_it_is_free(
    vhost: Vhost,
) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    client.declare("orders", exclusive, FieldTable::default()).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({}))?;
    queue.until("Declared", ("False", "Locked"), &["\"orders\"", "exclusively"]).await?;
    client.connection().close(200, "bye".into()).await?;
    queue.ready().await
}

async fn a_missing_exchange_is_told_and_bound_once_it_is_there(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let bindings = json!({"bindings": [{"exchange": "shop", "routingKey": "order"}]});
    let mut queue = keeper.queue(&vhost.uri(), bindings)?;
    queue.until("Declared", ("False", "ExchangeNotFound"), &["\"shop\"", "declare:"]).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let channel = Client::connect(&vhost.uri()).await?.channel().await?;
    channel.exchange_declare("shop".into(), ExchangeKind::Direct, durable, FieldTable::default()).await?;
    queue.ready().await?;
    assert_eq!(look::bindings(&vhost, "orders").await?, ["shop order "]);
    Ok(())
}

async fn a_missing_virtual_host_is_told_and_used_once_it_is_there(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let name = format!("{}-later", vhost.name);
    vhost.broker.delete_vhost(&name).await?;
    let mut queue = keeper.queue(&vhost.broker.uri(&name), json!({}))?;
    queue.until("BrokerReachable", ("False", "VhostNotFound"), &[&name]).await?;
    vhost.broker.vhost(&name).await?;
    queue.ready().await
}
