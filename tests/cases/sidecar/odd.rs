//! Odd applications and odd messages: each ends in its documented outcome, counted, with nothing lost and no crash.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warren_api::QueueType;
use warren_broker::BrokerAccess;
use warren_broker::lapin::options::QueueDeclareOptions;
use warren_broker::lapin::types::{AMQPValue, FieldTable};
use warren_tests::amqp::{Client, persistent, queue_type_argument};
use warren_tests::app::App;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, Running, config, headers_of, message_of};

warren_tests::on_each_release!(
    a_time_out_a_1xx_a_broken_answer_and_none_at_all_climb_the_ladder,
    a_huge_answer_is_cut_and_its_status_counts,
    bodies_of_any_kind_and_up_to_the_brokers_maximum_are_handed_over_as_they_are,
    a_body_above_max_body_bytes_is_dead_lettered_without_a_call,
    properties_that_contradict_or_are_missing_harm_nothing,
    an_id_that_is_no_utf_8_is_dead_lettered_by_the_delivery_limit_and_takes_no_other_message_with_it,
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
        config.handler.timeout_seconds = if answer.is_none() { 1 } else { 60 };
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
    let mut config = config();
    config.queue.queue_type = QueueType::Classic;
    let sidecar = place.sidecar(config, app.port()).await?;
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
    ensure!(call.header("warren-attempt") == "1" && call.header("traceparent").len() == 55, "{call:?}");
    sidecar.until("warren_sidecar_transient_messages_total", "", 1.0).await
}

/// A producer whose library checks nothing: what it writes as `~` is a letter of Latin-1.
async fn latin_1(place: &Place) -> Result<Client> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let (near, far) = (listener.local_addr()?.port(), place.broker.ports().amqp);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await?;
        let (mut reads, mut writes) = client.into_split();
        let (mut answers, mut asks) = TcpStream::connect(("127.0.0.1", far)).await?.into_split();
        let there = async {
            let mut some = [0; 4096];
            loop {
                let read = reads.read(&mut some).await?;
                if read == 0 {
                    return std::io::Result::Ok(());
                }
                some.iter_mut().filter(|byte| **byte == b'~').for_each(|byte| *byte = 0xE9);
                asks.write_all(&some[..read]).await?;
            }
        };
        tokio::try_join!(there, tokio::io::copy(&mut answers, &mut writes))
    });
    Client::connect(&place.uri().replace(&format!(":{far}/"), &format!(":{near}/"))).await
}

async fn an_id_that_is_no_utf_8_is_dead_lettered_by_the_delivery_limit_and_takes_no_other_message_with_it(
    place: Place,
) -> Result<()> {
    let client = place.client().await?;
    client.declare_durable("orders.dlq", "quorum").await?;
    let mut arguments = queue_type_argument("quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(3));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("orders.dlq".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    client.declare(QUEUE, options, arguments).await?;
    client.publish_all(QUEUE, vec![b"before".to_vec(); 4]).await?;
    latin_1(&place).await?.publish_with(QUEUE, b"bad", persistent().with_message_id("caf~".into())).await?;
    client.publish_all(QUEUE, vec![b"after".to_vec(); 4]).await?;
    let app = App::start().await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (10, 10);
    let sidecar = Running::start(config, BrokerAccess::from_uri(&place.uri())?, app.port()).await?;
    sidecar.settled("ack", 8).await?;
    // No client of this library could take it.
    eventually(PATIENCE, "the bad one is dead-lettered", async || {
        ensure!(client.ready("orders.dlq").await? == Some(1) && client.ready(QUEUE).await? == Some(0));
        Ok(())
    })
    .await?;
    ensure!(sidecar.metric("warren_sidecar_unreadable_total", "").await? > 2.5, "once for each delivery");
    Ok(())
}
