//! Each row of DESIGN's table of headers, as an application behind a real broker sees it.

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueBindOptions,
};
use warren_broker::lapin::types::{AMQPValue, FieldArray, FieldTable};
use warren_tests::amqp::persistent;
use warren_tests::app::{App, Call};

use crate::harness::{Place, QUEUE, config, request};

warren_tests::on_each_release!(
    the_body_goes_as_it_came_with_its_content_type_and_encoding,
    warren_queue_exchange_and_routing_key_say_where_it_came_from,
    warren_message_id_and_idempotency_key_are_the_producers_the_publish_apis_or_the_first_copys,
    warren_attempt_counts_from_1_to_warren_max_attempts_and_no_redelivery_raises_it,
    warren_redelivered_timestamp_correlation_id_reply_to_and_priority_are_there_if_present,
    warren_header_carries_text_numbers_and_bools_and_what_is_left_out_is_named,
    traceparent_and_tracestate_are_the_messages_or_new,
    ce_headers_only_for_messages_that_carry_cloud_events_attributes,
);

/// The one call that a message with these properties makes.
async fn call_of(place: &Place, properties: BasicProperties) -> Result<Call> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    place.client().await?.publish_with(QUEUE, b"\x00\xffbody", properties).await?;
    sidecar.settled("ack", 1).await?;
    sidecar.terminate().await?;
    app.calls().pop().context("a call")
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn with(headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    persistent().with_headers(table)
}

async fn the_body_goes_as_it_came_with_its_content_type_and_encoding(place: Place) -> Result<()> {
    let properties =
        persistent().with_content_type("application/json".into()).with_content_encoding("gzip".into());
    let call = call_of(&place, properties).await?;
    ensure!(*call.body == *b"\x00\xffbody");
    ensure!(call.header("content-type") == "application/json" && call.header("content-encoding") == "gzip");
    let call = call_of(&place, persistent()).await?;
    ensure!(!call.headers.contains_key("content-type") && !call.headers.contains_key("content-encoding"));
    Ok(())
}

async fn warren_queue_exchange_and_routing_key_say_where_it_came_from(place: Place) -> Result<()> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    let channel = client.channel().await?;
    let (exchange, key) = ("amq.topic", "order.n\u{e4}xt");
    let bind = QueueBindOptions::default();
    channel.queue_bind(QUEUE.into(), exchange.into(), "order.#".into(), bind, FieldTable::default()).await?;
    let publish = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), key.into(), publish, b"x", persistent()).await?.await?;
    sidecar.settled("ack", 1).await?;
    client.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 2).await?;
    let seen: Vec<_> = app
        .calls()
        .iter()
        .map(|call| {
            ["warren-queue", "warren-exchange", "warren-routing-key"].map(|name| call.header(name).to_owned())
        })
        .collect();
    ensure!(seen == [[QUEUE, exchange, "order.n%C3%A4xt"], [QUEUE, "", QUEUE]], "{seen:?}");
    Ok(())
}

async fn warren_message_id_and_idempotency_key_are_the_producers_the_publish_apis_or_the_first_copys(
    place: Place,
) -> Result<()> {
    let app = App::answering(|call| match (call.text().as_str(), call.header("warren-attempt")) {
        ("fails once", "1") => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.publish_with(QUEUE, b"x", persistent().with_message_id("m-1".into())).await?;
    sidecar.settled("ack", 1).await?;
    let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?;
    sidecar.settled("ack", 2).await?;
    client.publish(QUEUE, b"fails once").await?;
    sidecar.settled("ack", 3).await?;
    let ids: Vec<String> =
        app.calls().iter().map(|call| call.header("warren-message-id").to_owned()).collect();
    let keys: Vec<String> =
        app.calls().iter().map(|call| call.header("idempotency-key").to_owned()).collect();
    ensure!(ids == keys && ids.len() == 4, "{ids:?} {keys:?}");
    ensure!(ids[0] == "m-1" && answer.head.contains(&format!("warren-message-id: {}", ids[1])), "{answer:?}");
    ensure!(ids[2].is_empty() && !ids[3].is_empty(), "none is made up before Warren publishes it: {ids:?}");
    sidecar.until("warren_sidecar_messages_without_id_total", "", 1.0).await
}

async fn warren_attempt_counts_from_1_to_warren_max_attempts_and_no_redelivery_raises_it(
    place: Place,
) -> Result<()> {
    place.declare(&config()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    // The broker delivers it and gets it back.
    let channel = client.channel().await?;
    let message =
        channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await?.context("it was published")?;
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    channel.basic_nack(message.delivery.delivery_tag, requeue).await?;
    let app = App::answering(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.settled("dead_letter", 1).await?;
    let seen: Vec<_> = app
        .calls()
        .iter()
        .map(|call| {
            ["warren-attempt", "warren-max-attempts", "warren-redelivered", "warren-delivery-count"]
                .map(|name| call.header(name).to_owned())
        })
        .collect();
    ensure!(seen == [["1", "2", "true", "1"], ["2", "2", "false", ""]], "{seen:?}");
    Ok(())
}

async fn warren_redelivered_timestamp_correlation_id_reply_to_and_priority_are_there_if_present(
    place: Place,
) -> Result<()> {
    let properties = persistent()
        .with_timestamp(1_700_000_000)
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_priority(3);
    let call = call_of(&place, properties).await?;
    for (name, value) in [
        ("warren-redelivered", "false"),
        ("warren-timestamp", "1700000000"),
        ("warren-correlation-id", "c-1"),
        ("warren-reply-to", "answers"),
        ("warren-priority", "3"),
    ] {
        ensure!(call.header(name) == value, "{name}: {call:?}");
    }
    let call = call_of(&place, persistent()).await?;
    for name in ["warren-timestamp", "warren-correlation-id", "warren-reply-to", "warren-delivery-count"] {
        ensure!(!call.headers.contains_key(name), "{name}: {call:?}");
    }
    Ok(())
}

async fn warren_header_carries_text_numbers_and_bools_and_what_is_left_out_is_named(
    place: Place,
) -> Result<()> {
    let headers = [
        ("x-customer", text("Zo\u{eb} 100%")),
        ("x-number", AMQPValue::LongLongInt(-7)),
        ("x-flag", AMQPValue::Boolean(true)),
        ("x-list", AMQPValue::FieldArray(FieldArray::from(vec![text("a")]))),
        ("x-binary", AMQPValue::LongString(vec![0xFF].into())),
        ("no token", text("a")),
        ("x-huge", text(&"x".repeat(9000))),
    ];
    let call = call_of(&place, with(&headers)).await?;
    for (name, value) in [("x-customer", "Zo%C3%AB 100%25"), ("x-number", "-7"), ("x-flag", "true")] {
        ensure!(call.header(&format!("warren-header-{name}")) == value, "{name}: {call:?}");
    }
    let mut omitted: Vec<_> = call.header("warren-headers-omitted").split(',').collect();
    omitted.sort_unstable();
    ensure!(omitted == ["no%20token", "x-binary", "x-huge", "x-list"], "{omitted:?}");
    ensure!(!call.headers.contains_key("warren-header-x-huge"));
    Ok(())
}

async fn traceparent_and_tracestate_are_the_messages_or_new(place: Place) -> Result<()> {
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let headers =
        [("traceparent", text(&format!("00-{trace}-{parent}-01"))), ("tracestate", text("vendor=1"))];
    let call = call_of(&place, with(&headers)).await?;
    ensure!(call.header("traceparent") == format!("00-{trace}-{parent}-01"), "{call:?}");
    ensure!(call.header("tracestate") == "vendor=1");
    let call = call_of(&place, with(&[("tracestate", text("vendor=1"))])).await?;
    let fresh = call.header("traceparent");
    ensure!(fresh.len() == 55 && fresh.ends_with("-01") && !fresh.contains(trace), "{fresh}");
    ensure!(!call.headers.contains_key("tracestate"), "{call:?}");
    Ok(())
}

async fn ce_headers_only_for_messages_that_carry_cloud_events_attributes(place: Place) -> Result<()> {
    let headers =
        [("cloudEvents:id", text("e-1")), ("cloudEvents_type", text("order.new")), ("id", text("other"))];
    let call = call_of(&place, with(&headers)).await?;
    ensure!(call.header("ce-id") == "e-1" && call.header("ce-type") == "order.new", "{call:?}");
    ensure!(call.header("warren-header-id") == "other" && !call.headers.contains_key("ce-other"));
    let call = call_of(&place, with(&[("id", text("other"))])).await?;
    ensure!(call.headers.keys().all(|name| !name.as_str().starts_with("ce-")), "{call:?}");
    Ok(())
}
