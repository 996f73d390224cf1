//! The broker's moods, each with a broker of its own where it is harmed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_broker::BrokerAccess;
use warren_tests::app::App;
use warren_tests::authority::Authority;
use warren_tests::broker::{Alarm, Options, Tls, Version};
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, Running, config, request};

on_each_release!(
    a_queue_that_is_deleted_and_declared_again_is_consumed_again,
    rotated_credentials_are_taken_over
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

async fn rotated_credentials_are_taken_over(place: Place) -> Result<()> {
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    let user = format!("rotated-{}", place.vhost);
    place.broker.user(&user, "secret").await?;
    place.broker.permissions(&user, &place.vhost, "^$", ".*", ".*").await?;
    let uri = place.uri();
    let (_, rest) = uri.split_once('@').unwrap();
    sidecar.access.send(Arc::new(BrokerAccess::from_uri(&format!("amqp://{user}:secret@{rest}"))?))?;
    sidecar.until("warren_sidecar_reconnects_total", "", 1.0).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

#[tokio::test]
async fn a_killed_broker_loses_nothing_and_is_consumed_again() -> Result<()> {
    for version in [Version::V3_10, Version::V4_0] {
        let place = Place::own(Options::new("killed").version(version)).await?;
        let app = App::working(Duration::from_millis(5)).await?;
        let mut config = config();
        (config.consumer.prefetch, config.consumer.concurrency) = (20, 5);
        let _sidecar = place.sidecar(config, app.port()).await?;
        let client = place.client().await?;
        client.publish_all(QUEUE, (0..2000).map(|number: u32| number.to_string().into_bytes())).await?;
        place.broker.kill9().await?;
        place.broker.start_again().await?;
        eventually(PATIENCE, "every confirmed message is handled", async || {
            let handled: std::collections::HashSet<String> =
                app.calls().iter().map(|call| call.text()).collect();
            ensure!(handled.len() == 2000, "{} handled", handled.len());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn acks_flow_under_an_alarm_and_publishes_are_429() -> Result<()> {
    for version in [Version::V3_10, Version::V4_0] {
        let place = Place::own(Options::new("alarm").version(version)).await?;
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
        eventually(PATIENCE, "a publish is refused for now", async || {
            let publish = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x");
            let answer = tokio::time::timeout(Duration::from_secs(40), publish).await??;
            ensure!(answer.status == 429 && answer.head.contains("retry-after"), "{answer:?}");
            Ok(())
        })
        .await?;
        place.broker.clear_alarm(Alarm::Memory).await?;
        eventually(PATIENCE, "publishing works again", async || {
            let answer = request(sidecar.local, "POST", "/publish?routingKey=orders", &[], b"x").await?;
            ensure!(answer.status == 202, "{answer:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_that_comes_back_empty_is_consumed_once_the_queue_is_declared_again() -> Result<()> {
    let place = Place::own(Options::new("wiped")).await?;
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    place.broker.wipe().await?;
    sidecar.until("warren_sidecar_connected", "", 0.0).await?;
    place.declare(&config()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_found_by_heartbeat() -> Result<()> {
    let place = Place::own(Options::new("silent")).await?;
    let app = App::start().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    sidecar.until("warren_sidecar_connected", "", 1.0).await?;
    place.broker.freeze().await?;
    sidecar.until("warren_sidecar_connected", "", 0.0).await?;
    place.broker.thaw().await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await
}

#[tokio::test]
async fn mutual_tls_with_a_private_authority_works_and_a_stranger_is_refused() -> Result<()> {
    let authority = Authority::new("warren test")?;
    let tls = Tls::new(&authority, &["localhost".to_owned(), "127.0.0.1".to_owned()])?.mutual();
    let place = Place::own(Options::new("tls").tls(tls)).await?;
    place.declare(&config()).await?;
    let client = authority.issue("client", "warren", &[])?;
    let port = place.broker.ports().amqps;
    let (user, password) = (warren_tests::broker::USER, place.broker.password());
    let secret = |ca: String, own: bool| {
        let mut keys: std::collections::BTreeMap<String, Vec<u8>> = [
            ("uri".to_owned(), format!("amqps://{user}:{password}@localhost:{port}").into_bytes()),
            ("ca.crt".to_owned(), ca.into_bytes()),
        ]
        .into();
        if own {
            keys.insert("tls.crt".to_owned(), client.certificate.clone().into_bytes());
            keys.insert("tls.key".to_owned(), client.key.clone().into_bytes());
        }
        BrokerAccess::parse(&keys, None)
    };
    let app = App::start().await?;
    let sidecar = Running::start(config(), secret(authority.certificate(), true)?, app.port()).await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    sidecar.settled("ack", 1).await?;
    let other = Authority::new("somebody else")?;
    let stranger = Running::start(config(), secret(other.certificate(), true)?, app.port()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(
        stranger.metric("warren_sidecar_connected", "").await? < 0.5,
        "an unknown authority is not trusted"
    );
    Ok(())
}
