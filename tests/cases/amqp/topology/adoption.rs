//! Queues that are on the broker before Warren.

use anyhow::Result;
use serde_json::json;
use warren_broker::BrokerAccess;
use warren_broker::lapin::options::QueueDeclareOptions;
use warren_tests::amqp::{Client, queue_type_argument};
use warren_tests::broker::Vhost;

use super::kept::Keeper;
use super::look;

warren_tests::on_each_release!(
    an_equal_queue_is_adopted_with_its_messages,
    as_is_a_queue_must_exist_and_is_left_alone_with_warren_s_own_beside_it,
    fail_if_exists_refuses_a_queue_that_exists_and_keeps_one_that_it_made,
);

async fn an_equal_queue_is_adopted_with_its_messages(vhost: Vhost) -> Result<()> {
    Keeper::new().queue(&vhost.uri(), json!({}))?.ready().await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.publish("orders", b"from before").await?;
    let process = look::process(&vhost, "orders").await?;
    Keeper::new().queue(&vhost.uri(), json!({"adoptionPolicy": "Adopt"}))?.ready().await?;
    assert_eq!(look::process(&vhost, "orders").await?, process);
    client.holds("orders", 1).await?;
    Ok(())
}

async fn as_is_a_queue_must_exist_and_is_left_alone_with_warren_s_own_beside_it(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"adoptionPolicy": "AsIs", "type": "Classic"}))?;
    queue.until("Declared", ("False", "QueueNotFound"), &["AsIs", "Adopt"]).await?;
    // Not durable, without a dead-letter exchange: nothing that Warren would declare.
    let client = Client::connect(&vhost.uri()).await?;
    client.declare("orders", QueueDeclareOptions::default(), queue_type_argument("classic")).await?;
    queue.ready().await?;
    assert_eq!(look::arguments(&vhost, "orders").await?.len(), 1);
    assert_eq!(client.ready("orders.dlq").await?, Some(0));
    assert_eq!(client.ready("orders.retry.5s").await?, Some(0));
    client.delete("orders").await?;
    queue.until("Ready", ("False", "QueueNotFound"), &[]).await.map(drop)
}

async fn fail_if_exists_refuses_a_queue_that_exists_and_keeps_one_that_it_made(vhost: Vhost) -> Result<()> {
    let client = Client::connect(&vhost.uri()).await?;
    client.declare_durable("orders", "quorum").await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"adoptionPolicy": "FailIfExists"}))?;
    queue.until("Declared", ("False", "AlreadyExists"), &["FailIfExists"]).await?;
    assert_eq!(client.ready("orders.dlq").await?, None, "nothing is declared beside it");
    client.delete("orders").await?;
    queue.ready().await?;
    assert_eq!(queue.status().created, Some(true));
    // An operator that starts anew knows it by the status.
    let other = Keeper::new();
    let mut again = other.queue(&vhost.uri(), json!({"adoptionPolicy": "FailIfExists"}))?;
    again.queue.status = Some(queue.status());
    again.ready().await?;
    // In another vhost, where there is a queue of the name, it made nothing.
    vhost.broker.vhost("fail_if_exists_elsewhere").await?;
    let elsewhere = vhost.broker.uri("fail_if_exists_elsewhere");
    let client = Client::connect(&elsewhere).await?;
    client.declare_durable("orders", "quorum").await?;
    again.access = BrokerAccess::from_uri(&elsewhere)?;
    again.until("Declared", ("False", "AlreadyExists"), &["FailIfExists"]).await?;
    assert_eq!(client.ready("orders.dlq").await?, None, "nothing is declared beside it");
    Ok(())
}
