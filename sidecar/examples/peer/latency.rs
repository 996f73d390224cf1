//! One message at a time, from publish to handler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use warren_broker::lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
};
use warren_broker::lapin::types::FieldTable;
use warren_broker::lapin::{BasicProperties, Connection, ConnectionProperties};

use crate::{Failure, app};

/// Messages before the measurement, that warm everything up.
const WARM: u64 = 200;

/// Measures; with `raw` a consumer of its own posts to the application by hand.
pub async fn run(amqp: &str, queue: &str, count: u64, port: u16, raw: bool) -> Result<Value, Failure> {
    let (sender, mut got) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    tokio::spawn(app::serve(
        listener,
        Arc::new(move |_: &[u8]| {
            // Whoever measures may have what it needs.
            let _ = sender.send(Instant::now());
        }),
    ));
    if raw {
        tokio::spawn(by_hand(amqp.to_owned(), queue.to_owned(), port));
    }
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    let mut samples = Vec::new();
    for number in 0..count + WARM {
        let sent = Instant::now();
        channel
            .basic_publish(
                "".into(),
                queue.into(),
                BasicPublishOptions::default(),
                &[b'x'; 256],
                properties.clone(),
            )
            .await?
            .await?;
        let at = tokio::time::timeout(Duration::from_secs(60), got.recv())
            .await?
            .ok_or("the application ended")?;
        if number >= WARM {
            samples.push(at.duration_since(sent).as_secs_f64() * 1e6);
        }
        // The ack is on its way back: at prefetch 1 the next message would wait for it.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples.get((samples.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    Ok(json!({"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "count": samples.len()}))
}

/// A consumer at prefetch 1 that posts each message over one kept connection.
async fn by_hand(amqp: String, queue: String, port: u16) -> Result<(), Failure> {
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut answer = Vec::new();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let head = format!(
            "POST /messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            delivery.data.len()
        );
        app::write_all(&stream, &[head.as_bytes(), &delivery.data].concat()).await?;
        answer.clear();
        if app::read_some(&stream, &mut answer).await? == 0 {
            return Err("the application hung up".into());
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
    }
    Ok(())
}
