//! What a copy on the ladder or in the dead-letter queue carries, as a real broker sees it.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use warren_api::QueueType;
use warren_broker::BrokerAccess;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::types::{AMQPValue, FieldArray, FieldTable};
use warren_tests::amqp::persistent;
use warren_tests::app::App;

use crate::harness::{Place, QUEUE, Running, config, headers_of, message_of};

warren_tests::on_each_release!(
    a_copy_keeps_properties_and_headers_but_not_what_would_lose_or_multiply_it,
    a_replayed_message_that_fails_again_climbs_the_ladder_again,
    sixty_kilobytes_of_headers_pass_and_can_be_dead_lettered,
    headers_that_leave_no_room_in_the_largest_frame_are_dead_lettered_all_the_same,
    a_copy_that_is_slow_to_be_confirmed_is_published_once,
    the_rights_of_the_guide_suffice_for_a_worker_s_whole_ladder,
);

fn failing() -> impl Fn(&warren_tests::app::Call) -> axum::response::Response {
    |_| StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

async fn a_copy_keeps_properties_and_headers_but_not_what_would_lose_or_multiply_it(
    place: Place,
) -> Result<()> {
    let app = App::answering(failing()).await?;
    let _sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.declare_durable("other", "classic").await?;
    let mut table = FieldTable::default();
    table.insert(
        "CC".into(),
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString("other".into())])),
    );
    table.insert("x-customer".into(), AMQPValue::LongString("7".into()));
    let properties: BasicProperties = persistent()
        .with_headers(table)
        .with_user_id("warren".into())
        .with_expiration("600000".into())
        .with_content_type("text/plain".into())
        .with_correlation_id("c-1".into())
        .with_message_id("m-1".into())
        .with_priority(3);
    client.publish_with(QUEUE, b"body", properties).await?;
    let (body, copy) = message_of(&client, "orders.dlq").await?;
    let headers = headers_of(&copy);
    ensure!(body == b"body" && *copy.delivery_mode() == Some(2));
    ensure!(copy.expiration().is_none() && copy.user_id().is_none(), "{copy:?}");
    ensure!(
        headers["warren-original-expiration"] == "600000" && headers["warren-original-user-id"] == "warren"
    );
    ensure!(headers["x-customer"] == "7" && headers["warren-origin-routing-key"] == QUEUE);
    ensure!(headers["warren-origin-exchange"].is_empty());
    ensure!(copy.content_type().as_ref().unwrap().as_str() == "text/plain");
    ensure!(copy.correlation_id().as_ref().unwrap().as_str() == "c-1");
    ensure!(copy.message_id().as_ref().unwrap().as_str() == "m-1");
    let table = copy.headers().as_ref().unwrap();
    ensure!(!table.contains_key("CC") && !table.contains_key("x-death"), "{table:?}");
    // Only the producer's own publish was multiplied.
    client.holds("other", 1).await?;
    ensure!(app.calls().iter().all(|call| call.header("idempotency-key") == "m-1"));
    Ok(())
}

async fn a_replayed_message_that_fails_again_climbs_the_ladder_again(place: Place) -> Result<()> {
    let app = App::answering(failing()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    let (body, properties) = message_of(&client, "orders.dlq").await?;
    // As a shovel would: the message as it is.
    client.publish_with(QUEUE, &body, properties).await?;
    let (_, again) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&again)["warren-attempts"] == "2");
    sidecar.settled("retry", 2).await?;
    let attempts: Vec<_> = app.calls().iter().map(|call| call.header("warren-attempt").to_owned()).collect();
    ensure!(attempts == ["1", "2", "1", "2"], "{attempts:?}");
    Ok(())
}

async fn sixty_kilobytes_of_headers_pass_and_can_be_dead_lettered(place: Place) -> Result<()> {
    let app = App::answering(failing()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    let mut table = FieldTable::default();
    for number in 0..6 {
        table.insert(format!("h{number}").into(), AMQPValue::LongString("x".repeat(10_000).into()));
    }
    client.publish_with(QUEUE, b"x", persistent().with_headers(table)).await?;
    let (_, properties) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&properties)["h5"].len() == 10_000);
    ensure!(app.calls()[0].header("warren-headers-omitted") == "h0,h1,h2,h3,h4,h5");
    sidecar.settled("dead_letter", 1).await
}

async fn headers_that_leave_no_room_in_the_largest_frame_are_dead_lettered_all_the_same(
    place: Place,
) -> Result<()> {
    let app = App::answering(failing()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    let mut table = FieldTable::default();
    // The broker's largest frame is 128 KiB.
    table.insert("long".into(), AMQPValue::LongString("x".repeat(120_000).into()));
    table.insert("short".into(), AMQPValue::LongString("x".repeat(10_900).into()));
    client.publish_with(QUEUE, b"x", persistent().with_headers(table)).await?;
    let (body, properties) = message_of(&client, "orders.dlq").await?;
    let headers = headers_of(&properties);
    ensure!(body == b"x" && headers["warren-headers-dropped"] == "long", "{:?}", headers.keys());
    ensure!(headers["short"].len() == 10_900 && headers["warren-dead-reason"] == "attempts-exhausted");
    sidecar.settled("dead_letter", 1).await
}

async fn a_copy_that_is_slow_to_be_confirmed_is_published_once(place: Place) -> Result<()> {
    let app = App::answering(failing()).await?;
    let mut config = config();
    config.queue.queue_type = QueueType::Classic;
    config.queue.max_attempts = 1;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    place.suspend("orders.dlq").await?;
    client.publish_with(QUEUE, b"body", persistent()).await?;
    sidecar.until("warren_sidecar_unsettled", "", 1.0).await?;
    ensure!(sidecar.metric("warren_sidecar_copies_failed_total", "target=\"dead_letter\"").await? < 0.5);
    // Longer than the confirm of anything else is waited for.
    let failed = sidecar.until("warren_sidecar_copies_failed_total", "target=\"dead_letter\"", 1.0);
    ensure!(tokio::time::timeout(Duration::from_secs(40), failed).await.is_err(), "it was given up");
    place.resume("orders.dlq").await?;
    sidecar.settled("dead_letter", 1).await?;
    // One dead message.
    client.holds("orders.dlq", 1).await?;
    Ok(())
}

/// `docs/guide.md`, Rights on the broker.
async fn the_rights_of_the_guide_suffice_for_a_worker_s_whole_ladder(place: Place) -> Result<()> {
    let app = App::answering(failing()).await?;
    place.declare(&config()).await?;
    let narrow = place.user("narrow", r"^amq\.default$", "^orders$").await?;
    let sidecar = Running::start(config(), BrokerAccess::from_uri(&narrow)?, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    let (_, dead) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&dead)["warren-attempts"] == "2");
    sidecar.settled("dead_letter", 1).await
}
