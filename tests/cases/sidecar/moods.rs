//! The broker's moods, each with a broker of its own where it is harmed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tokio::sync::watch;
use warren_broker::BrokerAccess;
use warren_broker::connect::{ConnectOptions, connect};
use warren_sidecar::config::Files;
use warren_tests::app::App;
use warren_tests::authority::Authority;
use warren_tests::broker::{Alarm, Options, Tls, USER};
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, Running, config, request};

warren_tests::on_each_release!(
    a_queue_that_is_deleted_and_declared_again_is_consumed_again,
    rotated_credentials_are_taken_over_once_what_runs_has_ended,
    a_copy_of_what_ran_before_the_vhost_changed_goes_to_the_vhost_that_it_came_from,
    credentials_rotated_in_the_mounted_secret_are_taken_over_without_a_restart,
    a_raised_time_out_lasts_no_longer_than_the_pods_own_drain,
    a_killed_broker_loses_nothing_and_is_consumed_again,
    acks_flow_under_an_alarm_and_publishes_are_429,
    a_broker_that_comes_back_empty_is_consumed_once_the_queue_is_declared_again,
    a_broker_that_falls_silent_is_found_by_heartbeat,
    a_406_on_consumer_timeout_is_warned_of_and_the_message_comes_back,
    what_waits_beside_long_work_goes_back_before_the_broker_strikes,
    tls_with_a_private_authority_works_and_an_unknown_one_is_refused,
    mutual_tls_works_and_a_client_without_a_certificate_is_refused,
);

async fn a_queue_that_is_deleted_and_declared_again_is_consumed_again(place: Place) -> Result<()> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await?;
    client.delete(QUEUE).await?;
    sidecar.until("warren_sidecar_connected", "", 0.0).await?;
    place.declare(&config()).await?;
    client.publish(QUEUE, b"y").await?;
    sidecar.settled("ack", 2).await
}

async fn rotated_credentials_are_taken_over_once_what_runs_has_ended(place: Place) -> Result<()> {
    let app = App::working(Duration::from_secs(10)).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (2, 1);
    config.handler.timeout_seconds = 60;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish_all(QUEUE, [b"runs".to_vec(), b"waits".to_vec()]).await?;
    sidecar.one_runs_and_one_waits(&app).await?;
    sidecar.access.send(Arc::new(BrokerAccess::from_uri(&place.user("rotated", ".*", ".*").await?)?))?;
    sidecar.until("warren_sidecar_reconnects_total", "", 1.0).await?;
    sidecar.settled("ack", 2).await?;
    let bodies: Vec<String> = app.calls().iter().map(|call| call.text()).collect();
    ensure!(bodies == ["runs", "waits"], "none is called twice: {bodies:?}");
    ensure!(sidecar.metric("warren_sidecar_stale_answers_total", "").await? < 0.5);
    Ok(())
}

async fn a_copy_of_what_ran_before_the_vhost_changed_goes_to_the_vhost_that_it_came_from(
    place: Place,
) -> Result<()> {
    let app =
        App::answering(|_| (StatusCode::ACCEPTED, [("warren-outcome", "later")]).into_response()).await?;
    let other = format!("{}_other", place.vhost);
    place.broker.vhost(&other).await?;
    let mut config = config();
    config.handler.timeout_seconds = 60;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    sidecar.until("warren_sidecar_late", "", 1.0).await?;
    sidecar.access.send(Arc::new(BrokerAccess::from_uri(&place.broker.uri(&other))?))?;
    sidecar.until("warren_sidecar_prefetch", "", 0.0).await?;
    let id = app.calls()[0].header("warren-delivery-id").to_owned();
    let ended = request(sidecar.local, "POST", &format!("/deliveries/{id}/dead-letter"), &[], b"").await?;
    ensure!(ended.status == 200, "{ended:?}");
    sidecar.settled("dead_letter", 1).await?;
    eventually(PATIENCE, "it is dead-lettered where it came from", async || {
        ensure!(client.ready("orders.dlq").await? == Some(1));
        Ok(())
    })
    .await
}

/// Writes a volume of files as the kubelet does: all of them in a new folder, then one rename of the link `..data`.
fn mount(volume: &Path, version: &str, files: &[(&str, &str)]) -> Result<()> {
    let folder = volume.join(format!("..{version}"));
    std::fs::create_dir_all(&folder)?;
    for (name, content) in files {
        std::fs::write(folder.join(name), content)?;
        let link = volume.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(format!("..data/{name}"), link)?;
        }
    }
    std::os::unix::fs::symlink(format!("..{version}"), volume.join("..data_tmp"))?;
    Ok(std::fs::rename(volume.join("..data_tmp"), volume.join("..data"))?)
}

async fn credentials_rotated_in_the_mounted_secret_are_taken_over_without_a_restart(
    place: Place,
) -> Result<()> {
    place.declare(&config()).await?;
    let pod = tempfile::tempdir()?;
    let files = Files {
        config: pod.path().join("config/config.json"),
        broker: pod.path().join("broker"),
        ..Files::default()
    };
    mount(&pod.path().join("config"), "1", &[("config.json", &serde_json::to_string(&config())?)])?;
    mount(&files.broker, "1", &[("uri", &place.user("first", ".*", ".*").await?)])?;
    let app = App::start().await?;
    let sidecar = Running::reading(files.clone(), app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await?;
    mount(&files.broker, "2", &[("uri", &place.user("second", ".*", ".*").await?)])?;
    sidecar.until("warren_sidecar_reconnects_total", "", 1.0).await?;
    // With its user a connection that still used it would go, and not come back.
    place.broker.delete_user(&format!("first-{}", place.vhost)).await?;
    client.publish(QUEUE, b"y").await?;
    sidecar.settled("ack", 2).await?;
    let published = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"z").await?;
    ensure!(published.status == 202, "{published:?}");
    sidecar.settled("ack", 3).await?;
    ensure!(sidecar.metric("warren_sidecar_reconnects_total", "").await? < 1.5);
    Ok(())
}

async fn a_raised_time_out_lasts_no_longer_than_the_pods_own_drain(place: Place) -> Result<()> {
    let mut config = config();
    place.declare(&config).await?;
    config.handler.timeout_seconds = 600;
    let pod = tempfile::tempdir()?;
    let files = Files {
        config: pod.path().join("config.json"),
        broker: pod.path().join("broker"),
        longest_call_seconds: 1,
        ..Files::default()
    };
    std::fs::write(&files.config, serde_json::to_string(&config)?)?;
    mount(&files.broker, "1", &[("uri", &place.user("first", ".*", ".*").await?)])?;
    let app = App::working(Duration::from_secs(600)).await?;
    let sidecar = Running::reading(files, app.port()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("retry", 1).await
}

async fn a_killed_broker_loses_nothing_and_is_consumed_again(options: Options) -> Result<()> {
    let place = Place::own(options).await?;
    let app = App::working(Duration::from_millis(5)).await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (20, 5);
    // RabbitMQ 3.10 writes the names of new quorum queues to disk seconds later, or when it ends in order: a queue that was
    // declared just before a crash never elects a leader again.
    place.declare(&config).await?;
    place.broker.sigterm().await?;
    place.broker.start_again().await?;
    let _sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish_all(QUEUE, (0..2000).map(|number: u32| number.to_string().into_bytes())).await?;
    place.broker.kill9().await?;
    place.broker.start_again().await?;
    eventually(PATIENCE, "every confirmed message is handled", async || {
        let handled: std::collections::HashSet<String> = app.calls().iter().map(|call| call.text()).collect();
        ensure!(handled.len() == 2000, "{} handled", handled.len());
        Ok(())
    })
    .await
}

async fn acks_flow_under_an_alarm_and_publishes_are_429(options: Options) -> Result<()> {
    let place = Place::own(options).await?;
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    // Both connections are in use before the alarm.
    ensure!(request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?.status == 202);
    sidecar.settled("ack", 1).await?;
    sidecar.configure(|config| config.consumer.paused = true);
    sidecar.until("warren_sidecar_prefetch", "", 0.0).await?;
    client.publish_all(QUEUE, (0..50).map(|_| b"x".to_vec())).await?;
    place.broker.set_alarm(Alarm::Memory).await?;
    sidecar.configure(|config| config.consumer.paused = false);
    sidecar.settled("ack", 51).await?;
    // The broker says that it blocks to whoever publishes. That message is sent, and arrives when the alarm ends.
    let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"sent").await?;
    ensure!(answer.status == 504, "{answer:?}");
    let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"refused").await?;
    ensure!(answer.status == 429 && answer.head.contains("retry-after"), "{answer:?}");
    place.broker.clear_alarm(Alarm::Memory).await?;
    sidecar.settled("ack", 52).await?;
    let calls: Vec<String> = app.calls().iter().map(|call| call.text()).collect();
    ensure!(calls.contains(&"sent".to_owned()) && !calls.contains(&"refused".to_owned()), "{calls:?}");
    eventually(PATIENCE, "publishing works again", async || {
        let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?;
        ensure!(answer.status == 202, "{answer:?}");
        Ok(())
    })
    .await
}

async fn a_broker_that_comes_back_empty_is_consumed_once_the_queue_is_declared_again(
    options: Options,
) -> Result<()> {
    let place = Place::own(options).await?;
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    place.broker.wipe().await?;
    sidecar.until("warren_sidecar_connected", "", 0.0).await?;
    place.declare(&config()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

async fn a_broker_that_falls_silent_is_found_by_heartbeat(options: Options) -> Result<()> {
    let place = Place::own(options).await?;
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    place.broker.freeze().await?;
    sidecar.until("warren_sidecar_connected", "", 0.0).await?;
    // Its application may serve others, and a restart mends no broker.
    for probe in ["/livez", "/readyz"] {
        ensure!(request(sidecar.admin, "GET", probe, &[], b"").await?.status == 200, "{probe} in an outage");
    }
    place.broker.thaw().await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

/// The consumer timeout of a broker that is [`striking`].
const TIMEOUT_SECONDS: u32 = 20;

/// A broker that closes a channel over a delivery that is not acknowledged soon.
async fn striking(options: Options) -> Result<Place> {
    let place = Place::own(options).await?;
    place
        .broker
        .eval(&format!(
            "application:set_env(rabbit, consumer_timeout, {TIMEOUT_SECONDS}000), \
             application:set_env(rabbit, channel_tick_interval, 500)"
        ))
        .await?;
    Ok(place)
}

async fn a_406_on_consumer_timeout_is_warned_of_and_the_message_comes_back(options: Options) -> Result<()> {
    let place = striking(options).await?;
    // The first call is answered in full only after the broker has struck.
    let (release, released) = watch::channel(false);
    let app = App::answering(move |call| {
        if call.header("warren-redelivered") == "true" {
            return StatusCode::OK.into_response();
        }
        let mut released = released.clone();
        let body = async move { released.wait_for(|so| *so).await.map(|_| Bytes::from("done")) };
        Response::new(Body::from_stream(body.into_stream()))
    })
    .await?;
    let mut config = config();
    config.handler.timeout_seconds = 120;
    config.queue.consumer_timeout_seconds = Some(TIMEOUT_SECONDS);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    sidecar.until("warren_sidecar_deliveries_held_long_total", "", 1.0).await?;
    sidecar.until("warren_sidecar_reconnects_total", "", 1.0).await?;
    release.send(true)?;
    // The late answer is dropped: it belongs to a channel that is gone. The broker's own redelivery is no attempt.
    sidecar.until("warren_sidecar_stale_answers_total", "", 1.0).await?;
    sidecar.settled("ack", 1).await?;
    let calls: Vec<_> = app
        .calls()
        .iter()
        .map(|call| ["warren-redelivered", "warren-attempt"].map(|name| call.header(name).to_owned()))
        .collect();
    ensure!(calls == [["false", "1"], ["true", "1"]], "{calls:?}");
    // Only what is held is warned of, so the one warning came before the channel was gone.
    ensure!(sidecar.metric("warren_sidecar_deliveries_held_long_total", "").await? < 1.5);
    sidecar.terminate().await?;
    ensure!(client.ready(QUEUE).await? == Some(0), "handled once, lost never");
    Ok(())
}

async fn what_waits_beside_long_work_goes_back_before_the_broker_strikes(options: Options) -> Result<()> {
    let place = striking(options).await?;
    let (release, released) = watch::channel(0);
    let app = App::answering(move |call| {
        let (number, mut released) = (call.body[0], released.clone());
        let body = async move { released.wait_for(|so| *so >= number).await.map(|_| Bytes::from("done")) };
        Response::new(Body::from_stream(body.into_stream()))
    })
    .await?;
    let mut config = config();
    (config.consumer.prefetch, config.consumer.concurrency) = (2, 1);
    config.handler.timeout_seconds = 120;
    config.queue.consumer_timeout_seconds = Some(TIMEOUT_SECONDS);
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, &[1]).await?;
    client.publish(QUEUE, &[2]).await?;
    let delivered = Instant::now();
    sidecar.settled("returned", 1).await?;
    release.send(1)?;
    sidecar.settled("ack", 1).await?;
    // The broker would have struck over the delivery that has gone back.
    tokio::time::sleep_until((delivered + Duration::from_secs(u64::from(TIMEOUT_SECONDS) + 1)).into()).await;
    release.send(2)?;
    sidecar.settled("ack", 2).await?;
    ensure!(app.calls().len() == 2, "{:?}", app.calls());
    ensure!(sidecar.metric("warren_sidecar_reconnects_total", "").await? < 0.5);
    Ok(())
}

/// The Secret of a broker that speaks TLS.
fn secret(place: &Place, authority: &Authority, client: Option<&Authority>) -> Result<BrokerAccess> {
    let (password, port) = (place.broker.password(), place.broker.ports().amqps);
    let uri = format!("amqps://{USER}:{password}@localhost:{port}");
    let mut keys: BTreeMap<String, Vec<u8>> =
        [("uri".to_owned(), uri.into_bytes()), ("ca.crt".to_owned(), authority.certificate().into_bytes())]
            .into();
    if let Some(client) = client {
        let issued = client.issue("client", "warren", &[])?;
        keys.insert("tls.crt".to_owned(), issued.certificate.into_bytes());
        keys.insert("tls.key".to_owned(), issued.key.into_bytes());
    }
    Ok(BrokerAccess::parse(&keys, None)?)
}

/// Consumes over TLS.
async fn consumes(place: &Place, access: BrokerAccess) -> Result<()> {
    place.declare(&config()).await?;
    let app = App::start().await?;
    let sidecar = Running::start(config(), access, app.port()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

async fn refused(access: &BrokerAccess) -> bool {
    connect(access, &ConnectOptions::named("stranger")).await.is_err()
}

async fn tls_with_a_private_authority_works_and_an_unknown_one_is_refused(options: Options) -> Result<()> {
    let authority = Authority::new("warren test")?;
    let tls = Tls::new(&authority, &["localhost".to_owned()])?;
    let place = Place::own(options.tls(tls)).await?;
    consumes(&place, secret(&place, &authority, None)?).await?;
    ensure!(refused(&secret(&place, &Authority::new("somebody else")?, None)?).await);
    Ok(())
}

async fn mutual_tls_works_and_a_client_without_a_certificate_is_refused(options: Options) -> Result<()> {
    let authority = Authority::new("warren test")?;
    let tls = Tls::new(&authority, &["localhost".to_owned()])?.mutual();
    let place = Place::own(options.tls(tls)).await?;
    consumes(&place, secret(&place, &authority, Some(&authority))?).await?;
    ensure!(refused(&secret(&place, &authority, None)?).await, "no certificate");
    let other = Authority::new("somebody else")?;
    ensure!(refused(&secret(&place, &authority, Some(&other))?).await, "a certificate of somebody else");
    Ok(())
}
