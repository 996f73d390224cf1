//! One message at a time, from publish to handler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use warren_broker::lapin::options::BasicPublishOptions;
use warren_broker::lapin::{BasicProperties, Connection, ConnectionProperties};

use crate::{Failure, app};

/// Messages before the measurement, that warm everything up.
const WARM: u64 = 200;

/// Publishes one message at a time and is the application that gets it.
pub async fn run(amqp: &str, queue: &str, count: u64, port: u16) -> Result<Value, Failure> {
    let (sender, mut got) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    tokio::spawn(app::serve(
        listener,
        Arc::new(move |_: &[u8]| {
            // Whoever measures may have what it needs.
            let _ = sender.send(Instant::now());
        }),
        Duration::ZERO,
    ));
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
