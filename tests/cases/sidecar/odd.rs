//! Odd applications and odd messages: each ends in its documented outcome, counted, with nothing lost and no crash.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warren_broker::lapin::types::{AMQPValue, FieldTable};
use warren_tests::amqp::persistent;
use warren_tests::app::App;

use crate::harness::{Place, QUEUE, config, headers_of, message_of};

on_each_release!(
    a_time_out_a_1xx_a_broken_answer_and_none_at_all_climb_the_ladder,
    a_huge_answer_is_cut_and_its_status_counts,
    bodies_of_any_kind_and_up_to_the_brokers_maximum_are_handed_over_as_they_are,
    a_body_above_max_body_bytes_is_dead_lettered_without_a_call,
    properties_that_contradict_or_are_missing_harm_nothing,
);

/// An application below HTTP: reads something, and says these bytes; `None` says nothing for ever.
async fn raw(answer: Option<&'static [u8]>) -> Result<(u16, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 4096];
                // The port's probes connect and say nothing.
                if stream.read(&mut some).await.unwrap_or(0) == 0 {
                    return;
                }
                match answer {
                    Some(bytes) => {
                        let _ = stream.write_all(bytes).await;
                    }
                    None => tokio::time::sleep(Duration::from_secs(600)).await,
                }
            });
        }
    });
    Ok((port, serving))
}

async fn a_time_out_a_1xx_a_broken_answer_and_none_at_all_climb_the_ladder(place: Place) -> Result<()> {
    let client = place.client().await?;
    for (answer, class) in [
        (Some(&b"this is no HTTP\r\n\r\n"[..]), "broken"),
        (Some(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"), "broken"),
        (Some(b"HTTP/1.1 20"), "broken"),
        // 1xx alone is no answer yet, and nothing else came.
        (Some(b"HTTP/1.1 103 Early Hints\r\n\r\n"), "broken"),
        (Some(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "other"),
        (Some(b""), "broken"),
        (None, "timed_out"),
    ] {
        let (port, serving) = raw(answer).await?;
        let mut config = config();
        config.handler.timeout_seconds = 1;
        let sidecar = place.sidecar(config, port).await?;
        client.publish(QUEUE, b"x").await?;
        let (_, properties) = message_of(&client, "orders.dlq").await?;
        let headers = headers_of(&properties);
        ensure!(headers["warren-dead-reason"] == "attempts-exhausted", "{answer:?} {headers:?}");
        ensure!(headers["warren-attempts"] == "2", "{answer:?} {headers:?}");
        sidecar.until("warren_sidecar_answers_total", &format!("answer=\"{class}\""), 2.0).await?;
        serving.abort();
        sidecar.terminate().await?;
    }
    Ok(())
}

async fn a_huge_answer_is_cut_and_its_status_counts(place: Place) -> Result<()> {
    let app = App::answering(|call| match call.text().as_str() {
        "good" => vec![b'x'; 10 * 1024 * 1024].into_response(),
        _ => (StatusCode::BAD_REQUEST, vec![b'x'; 10 * 1024 * 1024]).into_response(),
    })
    .await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"good").await?;
    client.publish(QUEUE, b"bad").await?;
    sidecar.settled("ack", 1).await?;
    sidecar.settled("dead_letter", 1).await?;
    let (_, properties) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&properties)["warren-dead-detail"].len() < 1024);
    Ok(())
}

async fn bodies_of_any_kind_and_up_to_the_brokers_maximum_are_handed_over_as_they_are(
    place: Place,
) -> Result<()> {
    let app = App::start().await?;
    let mut config = config();
    config.handler.timeout_seconds = 60;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    let all_bytes: Vec<u8> = (0..=255).cycle().take(1024 * 1024).collect();
    // The last is as large as a broker of 4.0 takes (`max_message_size`).
    let bodies = [vec![], vec![0], all_bytes, vec![b'x'; 16 * 1024 * 1024]];
    for body in &bodies {
        client.publish(QUEUE, body).await?;
    }
    sidecar.settled("ack", 4).await?;
    let got: Vec<Vec<u8>> = app.calls().iter().map(|call| call.body.to_vec()).collect();
    ensure!(got == bodies, "a body has changed");
    Ok(())
}

async fn a_body_above_max_body_bytes_is_dead_lettered_without_a_call(place: Place) -> Result<()> {
    let app = App::start().await?;
    let mut config = config();
    config.handler.max_body_bytes = Some(10);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"ten bytes!").await?;
    client.publish(QUEUE, b"eleven byte").await?;
    let (body, properties) = message_of(&client, "orders.dlq").await?;
    ensure!(body == b"eleven byte" && headers_of(&properties)["warren-dead-reason"] == "too-large");
    sidecar.settled("ack", 1).await?;
    ensure!(app.calls().len() == 1);
    Ok(())
}

async fn properties_that_contradict_or_are_missing_harm_nothing(place: Place) -> Result<()> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    let mut table = FieldTable::default();
    table.insert("warren-attempts".into(), AMQPValue::LongString("many".into()));
    table.insert("traceparent".into(), AMQPValue::LongString("nonsense".into()));
    table.insert("".into(), AMQPValue::Boolean(true));
    table.insert("list".into(), AMQPValue::FieldArray(Default::default()));
    table.insert("latin".into(), AMQPValue::LongString(vec![0xE9].into()));
    let odd = persistent()
        .with_headers(table)
        .with_content_type("\u{1F980}\n".into())
        .with_message_id("".into())
        .with_reply_to("\u{0}".into());
    client.publish_with(QUEUE, b"x", odd).await?;
    client.publish_with(QUEUE, b"x", Default::default()).await?;
    sidecar.settled("ack", 2).await?;
    let call = &app.calls()[0];
    ensure!(call.header("warren-attempt") == "1" && !call.headers.contains_key("traceparent"), "{call:?}");
    sidecar.until("warren_sidecar_transient_messages_total", "", 1.0).await
}
