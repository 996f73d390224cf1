//! The publish API: each status code, and what arrives.

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warren_broker::BrokerAccess;
use warren_broker::lapin::options::QueueBindOptions;
use warren_broker::lapin::types::FieldTable;
use warren_tests::app::App;
use warren_tests::broker::Options;

use crate::harness::{Place, QUEUE, Running, config, headers_of, message_of, request};

warren_tests::on_each_release!(
    a_202_means_that_the_broker_has_it_with_all_that_was_given,
    a_missing_exchange_and_a_missing_route_are_404_and_harm_no_other,
    what_may_not_is_403_and_what_cannot_is_400_413_or_431,
    a_batch_has_a_result_a_line,
    a_batch_to_a_missing_exchange_is_404_line_by_line_however_long_it_is,
    each_of_many_callers_at_once_learns_what_became_of_its_own_message,
    a_forbidden_exchange_is_403_for_its_callers_and_harms_no_other_at_the_same_time,
    bodies_without_a_length_are_taken_side_by_side,
    without_a_broker_it_is_503,
    without_a_confirm_in_time_it_is_504,
    headers_that_do_not_fit_the_brokers_frame_are_413_and_nothing_of_them_is_left_out,
    a_body_that_is_larger_than_the_broker_takes_is_413_for_its_caller_also_among_others,
);

async fn paused(place: &Place) -> Result<(App, Running)> {
    let app = App::start().await?;
    let mut config = config();
    config.consumer.paused = true;
    let sidecar = place.sidecar(config, app.port()).await?;
    Ok((app, sidecar))
}

async fn a_202_means_that_the_broker_has_it_with_all_that_was_given(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    let headers = [
        ("warren-message-id", "m-1"),
        ("warren-correlation-id", "c-1"),
        ("warren-reply-to", "answers"),
        ("warren-expiration", "600000"),
        ("warren-header-x-customer", "Zo%C3%AB"),
        ("content-type", "text/plain"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &headers, b"body").await?;
    ensure!(answer.status == 202 && answer.head.contains("warren-message-id: m-1"), "{answer:?}");
    let client = place.client().await?;
    let (body, properties) = message_of(&client, QUEUE).await?;
    ensure!(body == b"body" && *properties.delivery_mode() == Some(2));
    ensure!(properties.message_id().as_ref().unwrap().as_str() == "m-1");
    ensure!(properties.expiration().as_ref().unwrap().as_str() == "600000");
    let headers = headers_of(&properties);
    ensure!(headers["x-customer"] == "Zoë" && headers["traceparent"].starts_with("00-0af7"), "{headers:?}");
    let answer =
        request(sidecar.local, "POST", "/publish?exchange=amq.direct&routingKey=orders", &[], b"x").await?;
    ensure!(answer.status == 404, "nothing is bound there yet: {answer:?}");
    sidecar.until("warren_sidecar_publishes_total", "result=\"confirmed\"", 1.0).await
}

async fn a_missing_exchange_and_a_missing_route_are_404_and_harm_no_other(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    for path in ["/publish?exchange=nowhere&routingKey=x", "/publish?routingKey=nowhere"] {
        let answer = request(sidecar.local, "POST", path, &[], b"x").await?;
        ensure!(answer.status == 404, "{path}: {answer:?}");
    }
    ensure!(
        request(sidecar.local, "POST", "/publish?routingKey=nowhere", &[], b"x")
            .await?
            .text()
            .starts_with("unroutable")
    );
    ensure!(request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?.status == 202);
    Ok(())
}

async fn what_may_not_is_403_and_what_cannot_is_400_413_or_431(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    for (path, headers) in [
        ("/publish?routingkey=orders", &[][..]),
        ("/publish?routingKey=orders", &[("warren-priority", "high")]),
        ("/publish?routingKey=orders", &[("warren-expiration", "soon")]),
    ] {
        ensure!(
            request(sidecar.local, "POST", path, headers, b"x").await?.status == 400,
            "{path} {headers:?}"
        );
    }
    let large = vec![b'x'; 16 * 1024 * 1024 + 1];
    ensure!(request(sidecar.local, "POST", "/publish?routingKey=orders", &[], &large).await?.status == 413);
    let many = [("warren-header-own", "x"); 101];
    ensure!(request(sidecar.local, "POST", "/publish?routingKey=orders", &many, b"x").await?.status == 431);
    let lines = "{}\n".repeat(16 * 1024 + 1);
    let many = request(sidecar.local, "POST", "/publish/batch", &[], lines.as_bytes()).await?;
    ensure!(many.status == 413, "a line takes room beside its bytes: {}", many.head);
    ensure!(request(sidecar.local, "GET", "/publish", &[], b"").await?.status == 405);
    let access = BrokerAccess::from_uri(&place.user("reader", "^$", ".*").await?)?;
    let app = App::start().await?;
    let mut config = config();
    config.consumer.paused = true;
    let reader = Running::start(config, access, app.port()).await?;
    let answer = request(reader.local, "POST", "/publish?routingKey=orders", &[], b"x").await?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

async fn a_batch_has_a_result_a_line(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    let lines = r#"{"routingKey":"orders","json":{"n":1},"messageId":"m-1"}
{"routingKey":"nowhere","text":"x"}
nonsense

{"routingKey":"orders","base64":"/w==","headers":{"a":1}}
{"routingKey":"orders","text":"x","headers":{"BCC":"nowhere"}}
{"routingKey":"orders","body":{"n":1}}
{"routingKey":"orders","text":"the channel lives"}"#;
    let answer = request(sidecar.local, "POST", "/publish/batch", &[], lines.as_bytes()).await?;
    let text = answer.text();
    let statuses: Vec<u64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["status"].as_u64())
        .collect();
    ensure!(statuses == [202, 404, 400, 202, 400, 400, 202], "{text}");
    let client = place.client().await?;
    let (body, properties) = message_of(&client, QUEUE).await?;
    ensure!(
        body == br#"{"n":1}"# && properties.content_type().as_ref().unwrap().as_str() == "application/json"
    );
    Ok(())
}

/// The broker closes a channel over a missing exchange, and a connection has 2047 of them.
async fn a_batch_to_a_missing_exchange_is_404_line_by_line_however_long_it_is(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    let lines = r#"{"exchange":"nowhere","routingKey":"x","text":"x"}
"#
    .repeat(2100);
    let answer = request(sidecar.local, "POST", "/publish/batch", &[], lines.as_bytes()).await?;
    let missing = answer.text().lines().filter(|line| line.contains("\"status\":404")).count();
    ensure!(missing == 2100, "{missing}: {:?}", answer.text().lines().last());
    Ok(())
}

async fn headers_that_do_not_fit_the_brokers_frame_are_413_and_nothing_of_them_is_left_out(
    broker: Options,
) -> Result<()> {
    let place = Place::own(broker.config("frame_max = 8192")).await?;
    let (_app, sidecar) = paused(&place).await?;
    let header = "x".repeat(10_000);
    let long = [("warren-header-long", &*header)];
    // The first one goes alone.
    for (headers, status) in [(&long[..], 413), (&[], 202), (&long, 413), (&[], 202)] {
        let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", headers, b"x").await?;
        ensure!(answer.status == status, "{answer:?}");
    }
    place.client().await?.holds(QUEUE, 2).await?;
    Ok(())
}

/// The broker closes the channel under all that are in flight, and the sidecar's own limit is higher.
async fn a_body_that_is_larger_than_the_broker_takes_is_413_for_its_caller_also_among_others(
    broker: Options,
) -> Result<()> {
    let place = Place::own(broker.config("max_message_size = 1000")).await?;
    let (_app, sidecar) = paused(&place).await?;
    let large = "x".repeat(2000);
    let calls = (0..600).map(|number| {
        let (body, status) = if number % 50 == 49 { (&*large, 413) } else { ("x", 202) };
        let local = sidecar.local;
        async move {
            for _ in 0..10 {
                let answer =
                    request(local, "POST", "/publish?routingKey=orders", &[], body.as_bytes()).await?;
                // What the broker closed meanwhile over another's message is to be published again.
                if answer.status != 503 {
                    ensure!(answer.status == status, "{number}: {answer:?}");
                    return anyhow::Ok(u32::from(status == 413));
                }
                ensure!(status == 202 || !answer.text().contains("larger than"), "{number}: {answer:?}");
            }
            anyhow::bail!("{number} is not told")
        }
    });
    let told: Vec<u32> = stream::iter(calls).buffer_unordered(16).try_collect().await?;
    ensure!(told.iter().sum::<u32>() == 12);
    Ok(())
}

/// The broker gives back unroutable messages before it confirms them, and confirms others in between.
async fn each_of_many_callers_at_once_learns_what_became_of_its_own_message(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    let client = place.client().await?;
    // A classic queue confirms many at once.
    client.declare_durable("classic", "classic").await?;
    let calls = (0..600).map(|number| {
        let there = number % 3 != 0;
        let path = if there { "/publish?routingKey=classic" } else { "/publish?routingKey=nowhere" };
        let local = sidecar.local;
        async move {
            let answer = request(local, "POST", path, &[], number.to_string().as_bytes()).await?;
            ensure!(answer.status == if there { 202 } else { 404 }, "{number}: {answer:?}");
            anyhow::Ok(())
        }
    });
    stream::iter(calls).buffer_unordered(64).try_collect::<()>().await?;
    ensure!(client.ready("classic").await? == Some(400));
    Ok(())
}

async fn a_forbidden_exchange_is_403_for_its_callers_and_harms_no_other_at_the_same_time(
    place: Place,
) -> Result<()> {
    let access = BrokerAccess::from_uri(&place.user("writer", "^amq\\.default$", ".*").await?)?;
    let app = App::start().await?;
    let mut config = config();
    config.consumer.paused = true;
    place.declare(&config).await?;
    let sidecar = Running::start(config, access, app.port()).await?;
    let calls = (0..200).map(|number| {
        let allowed = number % 4 != 0;
        let exchange = if allowed { "" } else { "amq.direct" };
        let (path, local) = (format!("/publish?exchange={exchange}&routingKey=orders"), sidecar.local);
        async move {
            let answer = request(local, "POST", &path, &[], b"x").await?;
            ensure!(answer.status == if allowed { 202 } else { 403 }, "{number}: {answer:?}");
            anyhow::Ok(())
        }
    });
    stream::iter(calls).buffer_unordered(16).try_collect::<()>().await
}

/// A client that streams says no length; that must not take the room of the largest body.
async fn bodies_without_a_length_are_taken_side_by_side(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    let open = async || {
        let mut stream = TcpStream::connect(sidecar.local).await?;
        let head = "POST /publish?routingKey=orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n";
        stream.write_all(head.as_bytes()).await?;
        anyhow::Ok(stream)
    };
    let streams = [open().await?, open().await?, open().await?, open().await?];
    for mut stream in streams {
        stream.write_all(b"0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    let client = place.client().await?;
    ensure!(message_of(&client, QUEUE).await?.0 == b"body");
    Ok(())
}

async fn without_a_broker_it_is_503(place: Place) -> Result<()> {
    let _ = place;
    let app = App::start().await?;
    let nobody = warren_tests::ports::free()?;
    let access = BrokerAccess::from_uri(&format!("amqp://guest:guest@127.0.0.1:{nobody}"))?;
    let sidecar = Running::start(config(), access, app.port()).await?;
    let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?;
    ensure!(answer.status == 503 && answer.head.contains("retry-after"), "{answer:?}");
    ensure!(request(sidecar.admin, "GET", "/livez", &[], b"").await?.status == 200);
    ensure!(request(sidecar.admin, "GET", "/readyz", &[], b"").await?.status == 503);
    Ok(())
}

async fn without_a_confirm_in_time_it_is_504(place: Place) -> Result<()> {
    let (_app, sidecar) = paused(&place).await?;
    place.client().await?.declare_durable("stuck", "classic").await?;
    place.suspend("stuck").await?;
    let answer = request(sidecar.local, "POST", "/publish?routingKey=stuck", &[], b"x").await?;
    ensure!(answer.status == 504, "{answer:?}");
    // The queues beside it are not held up, nor is the first message to an exchange by the first one to another.
    let client = place.client().await?;
    client.declare_durable("well", "classic").await?;
    for (queue, exchange) in [("stuck", "amq.direct"), ("well", "amq.fanout")] {
        let options = QueueBindOptions::default();
        let channel = client.channel().await?;
        channel.queue_bind(queue.into(), exchange.into(), "".into(), options, FieldTable::default()).await?;
    }
    for (stuck, well) in
        [("exchange=amq.direct", "exchange=amq.fanout"), ("routingKey=stuck", "routingKey=well")]
    {
        let [stuck_path, well_path] = [stuck, well].map(|to| format!("/publish?{to}"));
        tokio::select! {
            biased;
            answer = request(sidecar.local, "POST", &stuck_path, &[], b"x") => anyhow::bail!("{stuck} answered first: {answer:?}"),
            answer = request(sidecar.local, "POST", &well_path, &[], b"x") => ensure!(answer?.status == 202, "{well} beside {stuck}"),
        }
    }
    place.resume("stuck").await?;
    sidecar.until("warren_sidecar_publishes_total", "result=\"failed\"", 1.0).await
}
