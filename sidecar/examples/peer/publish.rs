//! Producers: over AMQP with confirms in flight, and through a sidecar with as many callers.

use std::time::Instant;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use warren_broker::lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use warren_broker::lapin::{BasicProperties, Connection, ConnectionProperties};

use crate::{Failure, app};

/// Fills a queue, many confirms in flight.
pub async fn fill(amqp: &str, queue: &str, count: u64, size: usize) -> Result<Value, Failure> {
    fill_with(amqp, queue, count, size, 512).await
}

/// Publishes persistent messages with so many confirms in flight.
pub async fn fill_with(
    amqp: &str,
    queue: &str,
    count: u64,
    size: usize,
    in_flight: usize,
) -> Result<Value, Failure> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let body = vec![b'x'; size];
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let started = Instant::now();
    let mut confirms = FuturesUnordered::new();
    for _ in 0..count {
        let confirm =
            channel.basic_publish("".into(), queue.into(), options, &body, properties.clone()).await?;
        confirms.push(confirm);
        if confirms.len() >= in_flight {
            confirms.next().await.transpose()?;
        }
    }
    while confirms.next().await.transpose()?.is_some() {}
    let seconds = started.elapsed().as_secs_f64();
    // What is measured is done: a broker that hangs up first is no failure.
    let _ = connection.close(200, "done".into()).await;
    Ok(json!({"count": count, "seconds": seconds, "rate": count as f64 / seconds}))
}

/// Publishes through a sidecar, each caller on a connection of its own.
pub async fn post(port: u16, queue: &str, count: u64, callers: usize) -> Result<Value, Failure> {
    let started = Instant::now();
    let each = count / callers as u64;
    let request = format!(
        "POST /publish?routingKey={queue} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 256\r\n\r\n{}",
        "x".repeat(256)
    );
    let callers = (0..callers).map(|_| caller(port, request.clone(), each));
    futures::future::try_join_all(callers.map(tokio::spawn))
        .await?
        .into_iter()
        .collect::<Result<Vec<()>, Failure>>()?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"count": count, "seconds": seconds, "rate": count as f64 / seconds}))
}

async fn caller(port: u16, request: String, count: u64) -> Result<(), Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut answer = Vec::new();
    for _ in 0..count {
        app::write_all(&stream, request.as_bytes()).await?;
        answer.clear();
        app::read_some(&stream, &mut answer).await?;
        if !answer.starts_with(b"HTTP/1.1 202") {
            return Err(String::from_utf8_lossy(&answer).into());
        }
    }
    Ok(())
}
