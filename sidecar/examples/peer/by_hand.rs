//! A consumer that posts each message to an application by hand: what a sidecar of a few lines would do.

use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpStream;
use warren_broker::lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use warren_broker::lapin::types::FieldTable;
use warren_broker::lapin::{Connection, ConnectionProperties};

use crate::{Failure, app};

/// Consumes at prefetch 1 and posts each message over one kept connection, until it is ended.
pub async fn run(amqp: &str, queue: &str, port: u16) -> Result<Value, Failure> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let stream = loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => break stream,
            // The application may be starting.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
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
    Err("the consumer has ended".into())
}
