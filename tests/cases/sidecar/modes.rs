//! Batch, ordering key, request/reply, pause, the window, drain: the ways to consume.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures::StreamExt;
use warren_api::sidecar::BatchConfig;
use warren_api::worker::PrefetchMode;
use warren_broker::BrokerAccess;
use warren_broker::lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use warren_broker::lapin::types::{AMQPValue, FieldTable};
use warren_sidecar::otlp;
use warren_tests::amqp::{persistent, queue_type_argument};
use warren_tests::app::App;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, Running, config, message_of, request};

warren_tests::on_each_release!(
    a_batch_is_settled_message_by_message,
    messages_of_one_key_are_handled_in_order_and_others_in_parallel,
    messages_of_one_key_keep_their_order_when_another_pod_takes_over,
    a_reply_goes_to_reply_to_with_the_correlation_id_before_the_ack,
    a_requester_that_takes_its_replies_directly_gets_them_and_none_counts_as_dropped,
    a_span_a_message_goes_to_the_collector_in_the_messages_own_trace,
    the_span_of_a_batch_links_to_the_trace_of_each_message,
    a_worker_that_turns_to_another_queue_lets_what_runs_end_first,
    an_ordering_key_that_is_set_live_waits_for_what_runs_without_one,
    another_ordering_key_waits_for_calls_that_have_outlived_their_channel,
    paused_consumes_nothing_and_resumes_live,
    a_changed_window_is_taken_over_live,
    the_auto_window_follows_a_slow_application_down_and_no_message_is_handled_twice,
    a_drain_finishes_what_runs_gives_back_the_rest_and_needs_its_token,
);

async fn a_batch_is_settled_message_by_message(place: Place) -> Result<()> {
    let app = App::answering(|call| {
        let mut answer = String::new();
        for line in call.text().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let outcome = match line["text"].as_str().unwrap() {
                "bad" => "dead-letter",
                "later" if line["attempt"] == 1 => "retry",
                _ => "ack",
            };
            answer.push_str(&format!("{{\"id\":{},\"outcome\":\"{outcome}\"}}\n", line["id"]));
        }
        ([("content-type", "application/x-ndjson")], answer).into_response()
    })
    .await?;
    let mut config = config();
    config.consumer.prefetch = 20;
    config.handler.batch = Some(BatchConfig { max_messages: 10, max_wait_milliseconds: 200 });
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    let bodies = ["good", "bad", "later", "good", "good"];
    client.publish_all(QUEUE, bodies.iter().map(|body| body.as_bytes().to_vec())).await?;
    sidecar.settled("dead_letter", 1).await?;
    sidecar.settled("retry", 1).await?;
    sidecar.settled("ack", 4).await?;
    ensure!(message_of(&client, "orders.dlq").await?.0 == b"bad");
    ensure!(app.calls()[0].header("warren-batch-size").parse::<u32>()? >= 1);
    ensure!(app.calls().len() <= 4, "many messages in one call: {} calls", app.calls().len());
    Ok(())
}

async fn messages_of_one_key_are_handled_in_order_and_others_in_parallel(place: Place) -> Result<()> {
    let failed = Mutex::new(false);
    let app = App::answering(move |call| {
        let mut failed = failed.lock().unwrap();
        if call.text() == "a0" && !*failed {
            *failed = true;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        StatusCode::OK.into_response()
    })
    .await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (20, 20);
    config.consumer.ordering_key = Some("x-customer".to_owned());
    config.queue.retry_delays_seconds = vec![5];
    place.declare(&config).await?;
    let client = place.client().await?;
    for number in 0..5 {
        for key in ["a", "b"] {
            let mut table = FieldTable::default();
            table.insert("x-customer".into(), AMQPValue::LongString(key.into()));
            client
                .publish_with(QUEUE, format!("{key}{number}").as_bytes(), persistent().with_headers(table))
                .await?;
        }
    }
    let sidecar = place.sidecar(config, app.port()).await?;
    sidecar.settled("ack", 10).await?;
    let calls: Vec<String> = app.calls().iter().map(|call| call.text()).collect();
    let of = |key: &str| calls.iter().filter(|call| call.starts_with(key)).cloned().collect::<Vec<_>>();
    ensure!(of("a") == ["a0", "a0", "a1", "a2", "a3", "a4"], "{calls:?}");
    ensure!(of("b") == ["b0", "b1", "b2", "b3", "b4"], "{calls:?}");
    let last = |key: &str| calls.iter().rposition(|call| call.starts_with(key));
    ensure!(last("b") < last("a"), "the failing key holds only itself: {calls:?}");
    Ok(())
}

async fn messages_of_one_key_keep_their_order_when_another_pod_takes_over(place: Place) -> Result<()> {
    let app = App::working(Duration::from_millis(50)).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (20, 20);
    config.consumer.ordering_key = Some("routing-key".to_owned());
    let client = place.client().await?;
    let mut arguments = queue_type_argument("quorum");
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    client.declare(QUEUE, durable, arguments).await?;
    let start = || async {
        let sidecar =
            Running::start(config.clone(), BrokerAccess::from_uri(&place.uri())?, app.port()).await?;
        eventually(PATIENCE, "it consumes", async || {
            ensure!(
                request(sidecar.local, "GET", "/status", &[], b"")
                    .await?
                    .text()
                    .contains("\"consuming\":true")
            );
            Ok(())
        })
        .await?;
        anyhow::Ok(sidecar)
    };
    let (first, second) = (start().await?, start().await?);
    client.publish_all(QUEUE, (0..60).map(|number| number.to_string().into_bytes())).await?;
    eventually(PATIENCE, "some are handled", async || {
        ensure!(app.calls().len() >= 3);
        Ok(())
    })
    .await?;
    let drained = request(first.admin, "POST", "/drain", &[("warren-drain-token", "token")], b"").await?;
    ensure!(drained.status == 200, "{drained:?}");
    let of_first = first.metric("warren_sidecar_outcomes_total", "outcome=\"ack\"").await? as u32;
    ensure!(first.metric("warren_sidecar_outcomes_total", "outcome=\"returned\"").await? > 0.5);
    second.settled("ack", 60 - of_first).await?;
    let calls: Vec<String> = app.calls().iter().map(|call| call.text()).collect();
    ensure!(calls == (0..60).map(|number| number.to_string()).collect::<Vec<_>>(), "{calls:?}");
    Ok(())
}

async fn a_reply_goes_to_reply_to_with_the_correlation_id_before_the_ack(place: Place) -> Result<()> {
    let app = App::answering(|call| {
        // More than a reply may be; nobody asked for this one.
        let more = if call.text() == "silently" { 17 << 20 } else { 0 };
        let body = format!("did {}{}", call.text(), ".".repeat(more));
        ([("content-type", "text/plain")], body).into_response()
    })
    .await?;
    let mut config = config();
    config.handler.reply = true;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.declare_durable("answers", "classic").await?;
    let asking = |to: &str| persistent().with_reply_to(to.into()).with_correlation_id("c-7".into());
    client.publish_with(QUEUE, b"it", asking("answers")).await?;
    let (body, properties) = message_of(&client, "answers").await?;
    ensure!(body == b"did it" && properties.correlation_id().as_ref().unwrap().as_str() == "c-7");
    ensure!(properties.content_type().as_ref().unwrap().as_str() == "text/plain");
    // Whoever asked is gone: the work is done all the same.
    client.publish_with(QUEUE, b"more", asking("nowhere")).await?;
    client.publish(QUEUE, b"silently").await?;
    sidecar.settled("ack", 3).await?;
    sidecar.until("warren_sidecar_replies_dropped_total", "", 1.0).await?;
    // Whoever asked does not read: at prefetch 1 that must not hold the queue.
    let mut arguments = queue_type_argument("classic");
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    client.declare("full", durable, arguments).await?;
    client.publish("full", b"unread").await?;
    client.publish_with(QUEUE, b"unheard", asking("full")).await?;
    client.publish_with(QUEUE, b"last", asking("answers")).await?;
    sidecar.settled("ack", 5).await?;
    ensure!(message_of(&client, "answers").await?.0 == b"did last");
    sidecar.until("warren_sidecar_replies_dropped_total", "", 2.0).await
}

async fn a_requester_that_takes_its_replies_directly_gets_them_and_none_counts_as_dropped(
    place: Place,
) -> Result<()> {
    let app = App::answering(|call| format!("did {}", call.text()).into_response()).await?;
    let mut config = config();
    config.handler.reply = true;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    // The broker hands replies to the channel that the request came on.
    let channel = client.channel().await?;
    let (direct, options) =
        ("amq.rabbitmq.reply-to", BasicConsumeOptions { no_ack: true, ..Default::default() });
    let mut replies = channel.basic_consume(direct.into(), "".into(), options, FieldTable::default()).await?;
    let mut reply = async || {
        let reply = tokio::time::timeout(PATIENCE, replies.next()).await?;
        anyhow::Ok(String::from_utf8(reply.context("the channel has ended")??.data)?)
    };
    for body in ["one", "two"] {
        let (options, properties) =
            (BasicPublishOptions::default(), persistent().with_reply_to(direct.into()));
        channel.basic_publish("".into(), QUEUE.into(), options, body.as_bytes(), properties).await?;
        let reply = reply().await?;
        ensure!(reply == format!("did {body}"), "{reply}");
    }
    sidecar.settled("ack", 2).await?;
    // An application may send its reply by itself.
    let line = serde_json::json!({"routingKey": app.calls()[0].header("warren-reply-to"), "text": "by hand"});
    let sent = request(sidecar.local, "POST", "/publish/batch", &[], line.to_string().as_bytes()).await?;
    ensure!(sent.text().contains("202"), "{}", sent.text());
    ensure!(reply().await? == "by hand");
    ensure!(sidecar.metric("warren_sidecar_replies_dropped_total", "").await? < 0.5);
    Ok(())
}

async fn paused_consumes_nothing_and_resumes_live(place: Place) -> Result<()> {
    let app = App::start().await?;
    let mut config = config();
    config.consumer.paused = true;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    sidecar.until("warren_sidecar_handler_up", "", 1.0).await?;
    client.publish(QUEUE, b"x").await?;
    // The publish API works all the same.
    let published = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"y").await?;
    ensure!(published.status == 202, "{published:?}");
    ensure!(sidecar.metric("warren_sidecar_deliveries_total", "").await? < 0.5);
    // What a consumer has is not ready.
    client.holds(QUEUE, 2).await?;
    sidecar.configure(|config| config.consumer.paused = false);
    sidecar.settled("ack", 2).await
}

async fn a_changed_window_is_taken_over_live(place: Place) -> Result<()> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_prefetch", "", 1.0).await?;
    sidecar.configure(|config| (config.consumer.prefetch, config.consumer.concurrency) = (40, 4));
    sidecar.until("warren_sidecar_prefetch", "", 40.0).await?;
    place.client().await?.publish_all(QUEUE, (0..200).map(|_| b"x".to_vec())).await?;
    sidecar.settled("ack", 200).await
}

async fn the_auto_window_follows_a_slow_application_down_and_no_message_is_handled_twice(
    place: Place,
) -> Result<()> {
    // Growth depends on how fast this machine is just now; the engine's own tests show it in virtual time.
    let app = App::working(Duration::from_millis(1500)).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (100, 8);
    config.consumer.prefetch_mode = PrefetchMode::Auto;
    let sidecar = place.sidecar(config, app.port()).await?;
    sidecar.until("warren_sidecar_prefetch", "", 16.0).await?;
    place.client().await?.publish_all(QUEUE, (0..80).map(|_| b"x".to_vec())).await?;
    // Eight at work, and at most the five that eight places start within a second.
    eventually(PATIENCE, "the window has shrunk", async || {
        let window = sidecar.metric("warren_sidecar_prefetch", "").await?;
        ensure!((8.0..=13.0).contains(&window), "it is {window}");
        Ok(())
    })
    .await?;
    sidecar.settled("ack", 80).await?;
    ensure!(app.calls().len() == 80, "{} calls", app.calls().len());
    Ok(())
}

async fn a_drain_finishes_what_runs_gives_back_the_rest_and_needs_its_token(place: Place) -> Result<()> {
    let app = App::working(Duration::from_secs(1)).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (30, 1);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish_all(QUEUE, (0..30).map(|_| b"x".to_vec())).await?;
    sidecar.until("warren_sidecar_deliveries_total", "", 30.0).await?;
    ensure!(request(sidecar.admin, "POST", "/drain", &[], b"").await?.status == 403);
    let of_a_page = [("warren-drain-token", "token"), ("sec-fetch-site", "cross-site")];
    ensure!(request(sidecar.admin, "GET", "/drain", &of_a_page, b"").await?.status == 403);
    let drained = request(sidecar.admin, "POST", "/drain", &[("warren-drain-token", "token")], b"").await?;
    ensure!(drained.status == 200, "{drained:?}");
    let acked = sidecar.metric("warren_sidecar_outcomes_total", "outcome=\"ack\"").await?;
    let returned = sidecar.metric("warren_sidecar_outcomes_total", "outcome=\"returned\"").await?;
    ensure!(acked >= 1.0 && returned >= 1.0 && (acked + returned - 30.0).abs() < 0.5, "{acked} {returned}");
    eventually(PATIENCE, "what was given back is in the queue", async || {
        ensure!(client.ready(QUEUE).await? == Some(returned as u32));
        Ok(())
    })
    .await?;
    ensure!(
        request(sidecar.admin, "GET", "/drain", &[("warren-drain-token", "token")], b"").await?.status == 200
    );
    ensure!(request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"y").await?.status == 202);
    sidecar.terminate().await
}

async fn a_worker_that_turns_to_another_queue_lets_what_runs_end_first(place: Place) -> Result<()> {
    let app = App::working(Duration::from_secs(10)).await?;
    let mut next = config();
    next.queue.name = "orders-v2".to_owned();
    place.declare(&next).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (2, 1);
    config.handler.timeout_seconds = 60;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish("orders-v2", b"new").await?;
    client.publish_all(QUEUE, [b"runs".to_vec(), b"waits".to_vec()]).await?;
    sidecar.one_runs_and_one_waits(&app).await?;
    sidecar.configure(|config| config.queue.name = "orders-v2".to_owned());
    sidecar.settled("ack", 2).await?;
    let bodies: Vec<String> = app.calls().iter().map(|call| call.text()).collect();
    ensure!(bodies == ["runs", "new"], "none is called twice: {bodies:?}");
    ensure!(message_of(&client, QUEUE).await?.0 == b"waits", "it was handed back");
    ensure!(sidecar.metric("warren_sidecar_stale_answers_total", "queue=\"orders-v2\"").await? < 0.5);
    Ok(())
}

async fn an_ordering_key_that_is_set_live_waits_for_what_runs_without_one(place: Place) -> Result<()> {
    let call = Duration::from_secs(2);
    let app = App::working(call).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (2, 2);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"first").await?;
    eventually(PATIENCE, "the first runs", async || {
        ensure!(app.calls().len() == 1);
        Ok(())
    })
    .await?;
    sidecar.configure(|config| config.consumer.ordering_key = Some("routing-key".to_owned()));
    client.publish(QUEUE, b"second").await?;
    sidecar.settled("ack", 2).await?;
    let [first, second] = &app.calls()[..] else { bail!("none is called twice: {:?}", app.calls()) };
    ensure!(second.at - first.at >= call, "it ran beside the first: {:?}", second.at - first.at);
    Ok(())
}

async fn another_ordering_key_waits_for_calls_that_have_outlived_their_channel(place: Place) -> Result<()> {
    let call = Duration::from_secs(8);
    let app = App::working(call).await?;
    let mut config = config();
    config.handler.timeout_seconds = 60;
    (config.consumer.prefetch, config.consumer.concurrency) = (2, 2);
    config.consumer.ordering_key = Some("routing-key".to_owned());
    let sidecar = place.sidecar(config, app.port()).await?;
    place.client().await?.publish(QUEUE, b"first").await?;
    eventually(PATIENCE, "it runs", async || {
        ensure!(app.calls().len() == 1);
        Ok(())
    })
    .await?;
    sidecar.configure(|config| config.consumer.ordering_key = Some("x-customer".to_owned()));
    // Within milliseconds, whatever a start of rabbitmqctl takes.
    let all = format!("rabbit_connection_tracking:list(<<\"{}\">>)", place.vhost);
    let close = format!("rabbit_connection_tracking_handler:close_connections({all}, \"test\", 0)");
    place.broker.eval(&close).await?;
    sidecar.settled("ack", 1).await?;
    let [first, second] = &app.calls()[..] else { bail!("it came again once: {:?}", app.calls()) };
    ensure!(second.at - first.at >= call, "it was called twice at once: {:?}", second.at - first.at);
    Ok(())
}

/// Has spans exported to a collector.
fn spans_to(collector: &App) -> Result<Option<otlp::Config>> {
    let endpoint = format!("http://localhost:{}", collector.port());
    let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    Ok(otlp::Config::from_variables(variable)?)
}

async fn the_span_of_a_batch_links_to_the_trace_of_each_message(place: Place) -> Result<()> {
    let (app, collector) = (App::start().await?, App::start().await?);
    let mut config = config();
    config.consumer.prefetch = 3;
    config.handler.batch = Some(BatchConfig { max_messages: 3, max_wait_milliseconds: 30_000 });
    place.declare(&config).await?;
    let client = place.client().await?;
    let trace = |digit: char| digit.to_string().repeat(32);
    for digit in ['1', '2'] {
        let parent = format!("00-{}-b7ad6b716920333{digit}-01", trace(digit));
        let mut table = FieldTable::default();
        table.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
        client.publish_with(QUEUE, b"x", persistent().with_headers(table)).await?;
    }
    client.publish(QUEUE, b"without a trace").await?;
    let spans = spans_to(&collector)?;
    let access = warren_broker::BrokerAccess::from_uri(&place.uri())?;
    let _sidecar = crate::harness::Running::exporting(config, access, app.port(), spans).await?;
    let export = eventually(PATIENCE, "an export", async || {
        collector.calls().pop().ok_or_else(|| anyhow::anyhow!("none yet"))
    })
    .await?;
    let json: serde_json::Value = serde_json::from_slice(&export.body)?;
    let span = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    let links = serde_json::json!([
        {"traceId": trace('1'), "spanId": "b7ad6b7169203331"},
        {"traceId": trace('2'), "spanId": "b7ad6b7169203332"},
    ]);
    ensure!(span["links"] == links && span["parentSpanId"] == "", "{span}");
    let count = serde_json::json!({"key": "messaging.batch.message_count", "value": {"intValue": "3"}});
    ensure!(span["attributes"].as_array().is_some_and(|all| all.contains(&count)), "{span}");
    Ok(())
}

async fn a_span_a_message_goes_to_the_collector_in_the_messages_own_trace(place: Place) -> Result<()> {
    let (app, collector) = (App::start().await?, App::start().await?);
    place.declare(&config()).await?;
    let spans = spans_to(&collector)?;
    let access = warren_broker::BrokerAccess::from_uri(&place.uri())?;
    let sidecar = Running::exporting(config(), access, app.port(), spans).await?;
    let mut table = FieldTable::default();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    table.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
    let client = place.client().await?;
    client.publish_with(QUEUE, b"x", persistent().with_headers(table)).await?;
    sidecar.settled("ack", 1).await?;
    client.publish(QUEUE, b"without a trace").await?;
    sidecar.settled("ack", 2).await?;
    // The spans wait for others when the process ends.
    sidecar.terminate().await?;
    let exports = collector.calls();
    let exported = exports.iter().map(|export| serde_json::from_slice::<serde_json::Value>(&export.body));
    let exported = exported.collect::<serde_json::Result<Vec<_>>>()?;
    let spans =
        exported.iter().filter_map(|json| json["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array());
    let own = |span: &&serde_json::Value| span["traceId"] == "0af7651916cd43dd8448eb211c80319c";
    let span = spans.flatten().find(own).ok_or_else(|| anyhow::anyhow!("the span is lost"))?;
    ensure!(span["parentSpanId"] == "b7ad6b7169203331", "{span}");
    ensure!(span["name"] == "process orders" && span["kind"] == 5, "{span}");
    let handed = app.calls()[0].header("traceparent").to_owned();
    ensure!(
        handed.contains(span["spanId"].as_str().unwrap_or("none")),
        "the call is a child of the span: {handed}"
    );
    let fresh = app.calls()[1].header("traceparent").to_owned();
    ensure!(
        fresh.len() == 55 && fresh.ends_with("-01") && !fresh.contains("0af7"),
        "a trace of its own: {fresh}"
    );
    Ok(())
}
