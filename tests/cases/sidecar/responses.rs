//! Each row of DESIGN's response table.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use warren_tests::app::App;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, config, headers_of, message_of};

warren_tests::on_each_release!(
    a_2xx_acks,
    a_400_410_413_415_422_dead_letters_at_once_with_the_reason,
    a_5xx_408_425_any_other_4xx_or_3xx_climbs_the_ladder_and_after_the_last_is_dead,
    a_429_or_503_counts_no_attempt_and_is_tried_again,
    warren_outcome_overrides_the_status,
    a_refused_connection_is_no_attempt_and_holds_consuming_until_the_app_is_back,
    the_breaker_holds_while_everything_fails_and_dead_letters_nothing,
);

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

async fn a_2xx_acks(place: Place) -> Result<()> {
    let app = App::answering(|call| status(call.text().parse().unwrap()).into_response()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    for code in ["200", "201", "202", "204"] {
        client.publish(QUEUE, code.as_bytes()).await?;
    }
    sidecar.settled("ack", 4).await?;
    let call = app.calls().pop().context("a call")?;
    ensure!(call.header("warren-queue") == QUEUE && call.header("warren-attempt") == "1");
    ensure!(call.header("warren-max-attempts") == "2" && !call.header("warren-delivery-id").is_empty());
    ensure!(call.header("warren-message-id").is_empty(), "no id was given, so none is made up");
    sidecar.until("warren_sidecar_messages_without_id_total", "", 4.0).await?;
    sidecar.terminate().await?;
    ensure!(client.ready(QUEUE).await? == Some(0), "everything is acknowledged");
    Ok(())
}

async fn a_400_410_413_415_422_dead_letters_at_once_with_the_reason(place: Place) -> Result<()> {
    let app = App::answering(|call| (status(call.text().parse().unwrap()), "no such order").into_response())
        .await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    for code in ["400", "410", "413", "415", "422"] {
        client.publish(QUEUE, code.as_bytes()).await?;
        let (body, properties) = message_of(&client, "orders.dlq").await?;
        let headers = headers_of(&properties);
        ensure!(body == code.as_bytes());
        ensure!(headers["warren-dead-reason"] == "rejected", "{headers:?}");
        ensure!(headers["warren-dead-detail"] == format!("the handler answered {code}: no such order"));
        ensure!(headers["warren-origin-queue"] == QUEUE && headers["warren-attempts"] == "1");
    }
    sidecar.settled("dead_letter", 5).await?;
    ensure!(app.calls().len() == 5, "at once means once");
    Ok(())
}

async fn a_5xx_408_425_any_other_4xx_or_3xx_climbs_the_ladder_and_after_the_last_is_dead(
    place: Place,
) -> Result<()> {
    let app = App::answering(|call| status(call.text().parse().unwrap()).into_response()).await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    for code in ["500", "502", "408", "425", "404", "418", "302"] {
        let before = app.calls().len();
        client.publish(QUEUE, code.as_bytes()).await?;
        let (_, properties) = message_of(&client, "orders.dlq").await?;
        let headers = headers_of(&properties);
        ensure!(
            headers["warren-dead-reason"] == "attempts-exhausted" && headers["warren-attempts"] == "2",
            "{headers:?}"
        );
        let calls = app.calls();
        let attempts: Vec<_> = calls[before..].iter().map(|call| call.header("warren-attempt")).collect();
        ensure!(attempts == ["1", "2"], "{attempts:?}");
        ensure!(
            !calls[before + 1].header("warren-message-id").is_empty(),
            "the first copy is stamped with an id"
        );
    }
    sidecar.settled("retry", 7).await?;
    sidecar.settled("dead_letter", 7).await
}

async fn a_429_or_503_counts_no_attempt_and_is_tried_again(place: Place) -> Result<()> {
    let calls = AtomicU32::new(0);
    let app = App::answering(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
        1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await?;
    let attempts: Vec<_> = app.calls().iter().map(|call| call.header("warren-attempt").to_owned()).collect();
    ensure!(attempts == ["1", "1", "1"], "{attempts:?}");
    Ok(())
}

async fn warren_outcome_overrides_the_status(place: Place) -> Result<()> {
    let app = App::answering(|call| match (call.text().as_str(), call.header("warren-attempt")) {
        ("ack", _) => (StatusCode::INTERNAL_SERVER_ERROR, [("warren-outcome", "ack")]).into_response(),
        ("retry", "1") => (StatusCode::OK, [("warren-outcome", "retry")]).into_response(),
        ("dead", _) => {
            (StatusCode::OK, [("warren-outcome", "dead-letter"), ("warren-reason", "unknown customer")])
                .into_response()
        }
        _ => StatusCode::OK.into_response(),
    })
    .await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    for body in ["ack", "retry", "dead"] {
        client.publish(QUEUE, body.as_bytes()).await?;
    }
    let (_, properties) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&properties)["warren-dead-detail"] == "unknown customer");
    sidecar.settled("retry", 1).await?;
    sidecar.settled("ack", 2).await
}

async fn a_refused_connection_is_no_attempt_and_holds_consuming_until_the_app_is_back(
    place: Place,
) -> Result<()> {
    // Nobody else is given this port while nothing listens on it.
    let port = warren_tests::ports::free()?;
    let app = App::answering_at(port, |_| StatusCode::OK.into_response()).await?;
    let sidecar = place.sidecar(config(), port).await?;
    let client = place.client().await?;
    sidecar.until("warren_sidecar_handler_up", "", 1.0).await?;
    drop(app);
    client.publish(QUEUE, b"x").await?;
    sidecar.until("warren_sidecar_handler_up", "", 0.0).await?;
    sidecar.until("warren_sidecar_prefetch", "", 0.0).await?;
    // After ten seconds it is given back, so that healthy pods get it.
    sidecar.settled("returned", 1).await?;
    eventually(PATIENCE, "the message is back in the queue", async || {
        ensure!(client.ready(QUEUE).await? == Some(1));
        Ok(())
    })
    .await?;
    let app = App::answering_at(port, |_| StatusCode::OK.into_response()).await?;
    sidecar.settled("ack", 1).await?;
    ensure!(app.calls()[0].header("warren-attempt") == "1");
    ensure!(app.calls()[0].header("warren-redelivered") == "true");
    Ok(())
}

async fn the_breaker_holds_while_everything_fails_and_dead_letters_nothing(place: Place) -> Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let broken = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&broken);
    let app = App::answering(move |_| match answer.load(Ordering::Relaxed) {
        true => StatusCode::NOT_FOUND.into_response(),
        false => StatusCode::OK.into_response(),
    })
    .await?;
    let mut config = config();
    config.queue.max_attempts = 3;
    (config.consumer.prefetch, config.consumer.concurrency) = (10, 4);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish_all(QUEUE, (0..60).map(|number: u32| number.to_string().into_bytes())).await?;
    sidecar.until("warren_sidecar_breaker_open", "", 1.0).await?;
    sidecar.until("warren_sidecar_handler_misconfigured_status", "", 404.0).await?;
    sidecar.until("warren_sidecar_handler_up", "", 0.0).await?;
    sidecar.until("warren_sidecar_in_flight", "", 0.0).await?;
    // What comes now are probes, with growing pauses between them.
    let (calls, since) = (app.calls().len(), std::time::Instant::now());
    eventually(PATIENCE, "it is probed", async || {
        ensure!(app.calls().len() >= calls + 3, "{} calls", app.calls().len() - calls);
        Ok(())
    })
    .await?;
    let took = since.elapsed();
    ensure!(took > std::time::Duration::from_secs(2), "an application that is down is hammered: {took:?}");
    broken.store(false, Ordering::Relaxed);
    eventually(PATIENCE, "everything is handled", async || {
        let handled = sidecar.metric("warren_sidecar_outcomes_total", "outcome=\"ack\"").await?;
        ensure!(handled >= 60.0, "{handled} handled");
        Ok(())
    })
    .await?;
    ensure!(client.ready("orders.dlq").await? == Some(0), "an outage is not poison");
    Ok(())
}
