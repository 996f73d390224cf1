//! Consumers without an application: what the AMQP library alone can do.

use std::time::Instant;

use futures::StreamExt;
use serde_json::{Value, json};
use warren_broker::lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use warren_broker::lapin::types::FieldTable;
use warren_broker::lapin::{Connection, ConnectionProperties};

use crate::Failure;

/// Deliveries acknowledged at once with `multiple`.
const BATCH: u64 = 50;

/// Consumes so many messages.
pub async fn run(
    amqp: &str,
    queue: &str,
    count: u64,
    prefetch: u16,
    multiple: bool,
) -> Result<Value, Failure> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let mut first = None;
    let mut seen = 0;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        first.get_or_insert_with(Instant::now);
        seen += 1;
        if !multiple {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        } else if seen % BATCH == 0 || seen == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        if seen == count {
            break;
        }
    }
    let seconds = first.map_or(0.0, |first: Instant| first.elapsed().as_secs_f64());
    // What is measured is done: a broker that hangs up first is no failure.
    let _ = connection.close(200, "done".into()).await;
    Ok(json!({"count": seen, "seconds": seconds, "rate": seen as f64 / seconds}))
}
