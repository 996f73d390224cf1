//! 202 with `warren-outcome: later`: the application ends the delivery on localhost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use warren_tests::app::App;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, Running, config, headers_of, message_of, request};

warren_tests::on_each_release!(
    a_202_with_later_is_ended_on_localhost_once,
    later_without_a_heartbeat_is_a_time_out
);

async fn app() -> Result<App> {
    App::answering(|_| (StatusCode::ACCEPTED, [("warren-outcome", "later")]).into_response()).await
}

/// The id of the call with this number.
async fn id_of(app: &App, number: usize) -> Result<String> {
    eventually(PATIENCE, "the next call", async || {
        let calls = app.calls();
        Ok(calls.get(number).context("not yet")?.header("warren-delivery-id").to_owned())
    })
    .await
}

async fn end(sidecar: &Running, id: &str, verb: &str) -> Result<u16> {
    let path = format!("/deliveries/{id}/{verb}");
    Ok(request(sidecar.local, "POST", &path, &[("warren-reason", "said later")], b"").await?.status)
}

async fn a_202_with_later_is_ended_on_localhost_once(place: Place) -> Result<()> {
    let app = app().await?;
    let sidecar = place.sidecar(config(), app.port()).await?;
    let client = place.client().await?;
    client.publish_all(QUEUE, (0..3).map(|_| b"x".to_vec())).await?;
    let id = id_of(&app, 0).await?;
    eventually(PATIENCE, "it is known", async || {
        ensure!(end(&sidecar, &id, "extend").await? == 200);
        Ok(())
    })
    .await?;
    ensure!(end(&sidecar, &id, "ack").await? == 200);
    ensure!(end(&sidecar, &id, "ack").await? == 409 && end(&sidecar, &id, "retry").await? == 409);
    ensure!(
        end(&sidecar, "00000000-1-1", "ack").await? == 404 && end(&sidecar, "nonsense", "ack").await? == 404
    );
    ensure!(end(&sidecar, &id, "later").await? == 404);
    sidecar.settled("ack", 1).await?;

    let id = id_of(&app, 1).await?;
    eventually(PATIENCE, "it takes the answer", async || {
        ensure!(end(&sidecar, &id, "dead-letter").await? == 200);
        Ok(())
    })
    .await?;
    let (_, properties) = message_of(&client, "orders.dlq").await?;
    ensure!(headers_of(&properties)["warren-dead-detail"] == "said later");

    let id = id_of(&app, 2).await?;
    eventually(PATIENCE, "it takes the answer", async || {
        ensure!(end(&sidecar, &id, "retry").await? == 200);
        Ok(())
    })
    .await?;
    let id = id_of(&app, 3).await?;
    ensure!(app.calls()[3].header("warren-attempt") == "2");
    eventually(PATIENCE, "it takes the answer", async || {
        ensure!(end(&sidecar, &id, "ack").await? == 200);
        Ok(())
    })
    .await?;
    sidecar.settled("ack", 2).await
}

async fn later_without_a_heartbeat_is_a_time_out(place: Place) -> Result<()> {
    let app = app().await?;
    let mut config = config();
    config.handler.timeout_seconds = 1;
    let sidecar = place.sidecar(config, app.port()).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    let (_, properties) = message_of(&client, "orders.dlq").await?;
    let headers = headers_of(&properties);
    ensure!(headers["warren-dead-reason"] == "attempts-exhausted", "{headers:?}");
    let id = id_of(&app, 0).await?;
    ensure!(end(&sidecar, &id, "ack").await? == 409, "too late");
    tokio::time::timeout(Duration::from_secs(30), sidecar.settled("dead_letter", 1)).await?
}
