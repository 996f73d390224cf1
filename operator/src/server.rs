//! `/metrics`, `/livez`, `/readyz`, and `/decisions/NAMESPACE/NAME`: why a Worker has its replicas.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use warren_api::listen::addresses;

use crate::brokers::{Brokers, Key};
use crate::context::Shutdown;
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::scaler::record::{Records, Told};

/// What the server tells.
#[derive(Clone)]
pub struct Telling {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// For how many brokers are connected.
    pub brokers: Arc<Brokers>,
    /// The scaler's last decisions.
    pub records: Arc<Records>,
    /// For how much was written.
    pub leadership: Leadership,
    /// Whether the process has done what it needs to be of use: the caches of one scope are filled, or it stands by.
    pub ready: Arc<AtomicBool>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// The address is taken.
pub async fn serve(address: SocketAddr, telling: Telling, shutdown: Shutdown) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/decisions/{namespace}/{name}", get(decisions))
        .with_state(telling);
    let listener = TcpListener::bind(&addresses(address)[..]).await?;
    tracing::info!(%address, "serving /metrics, /livez, /readyz and /decisions");
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled()).await
}

async fn metrics(State(telling): State<Telling>) -> Result<String, StatusCode> {
    let (up, down) = telling.brokers.connected();
    telling.metrics.brokers(up, down);
    telling.metrics.drift_check(telling.brokers.drift_check());
    telling.metrics.api_writes(telling.leadership.writes());
    telling.metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// A Worker that Warren does not scale, or a replica that does not lead: 404.
async fn decisions(
    State(telling): State<Telling>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Told>, StatusCode> {
    telling.records.told(&Key { namespace, name }).map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn readyz(State(telling): State<Telling>) -> (StatusCode, &'static str) {
    if telling.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are being filled\n")
    }
}
