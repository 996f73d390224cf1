//! What an ordering key promises through an outage of the application.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use warren_broker::lapin::types::{AMQPValue, FieldTable};
use warren_tests::amqp::persistent;
use warren_tests::app::App;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, config};

warren_tests::on_each_release!(messages_of_one_key_keep_their_order_through_an_outage);

async fn messages_of_one_key_keep_their_order_through_an_outage(place: Place) -> Result<()> {
    const MESSAGES: u32 = 60;
    let (broken, handled) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::<u32>::new())));
    let (breaks, handles) = (Arc::clone(&broken), Arc::clone(&handled));
    let app = App::answering(move |call| {
        if breaks.load(Ordering::Relaxed) {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        handles.lock().unwrap().push(call.text().parse().unwrap());
        StatusCode::OK.into_response()
    })
    .await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (8, 2);
    config.consumer.ordering_key = Some("x-customer".to_owned());
    (config.queue.retry_delays_seconds, config.queue.max_attempts) = (vec![1], 100);
    place.declare(&config).await?;
    let client = place.client().await?;
    for number in 0..MESSAGES {
        let mut table = FieldTable::default();
        table.insert("x-customer".into(), AMQPValue::LongInt((number % 4).cast_signed()));
        client.publish_with(QUEUE, number.to_string().as_bytes(), persistent().with_headers(table)).await?;
    }
    let sidecar = place.sidecar(config, app.port()).await?;
    sidecar.until("warren_sidecar_breaker_open", "", 1.0).await?;
    // Others have had their turn, and this pod tries again with what has come back.
    sidecar.settled("returned", 8).await?;
    let failed = app.calls().len();
    eventually(PATIENCE, "it is probed", async || {
        ensure!(app.calls().len() > failed);
        Ok(())
    })
    .await?;
    broken.store(false, Ordering::Relaxed);
    sidecar.settled("ack", MESSAGES).await?;
    let handled = handled.lock().unwrap();
    for key in 0..4 {
        ensure!(handled.iter().filter(|number| *number % 4 == key).is_sorted(), "key {key}: {handled:?}");
    }
    Ok(())
}
