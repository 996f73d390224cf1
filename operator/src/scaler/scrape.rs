//! Reads sidecars' `/metrics` over the pods' addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt, future, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use warren_api::names::SIDECAR_PORT;

use super::sample::{Sample, parse};
use crate::worker::pods;

/// Scrapes at once, over all Workers.
const AT_ONCE: usize = 64;
/// Scrapes of one Worker at once.
const OF_ONE_WORKER: usize = 16;
/// How long one scrape may take once it has begun.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to connect, in a cluster: where packets are dropped, nothing comes for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A sidecar's metrics are a few kB.
const MOST_BYTES: usize = 256 * 1024;

/// Scrapes sidecars, a bounded number at once.
#[derive(Debug)]
pub struct Scraper {
    slots: Semaphore,
}

impl Default for Scraper {
    fn default() -> Self {
        Self { slots: Semaphore::new(AT_ONCE) }
    }
}

impl Scraper {
    /// Reads the metrics of pods whose sidecar runs; gives those that answer within `limit`.
    pub async fn scrape(&self, pods: &[Arc<Pod>], limit: Duration) -> Vec<(Arc<Pod>, Sample)> {
        let running = pods.iter().filter(|pod| pods::sidecar_runs(pod)).filter_map(|pod| {
            let address = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
            Some((pod.clone(), address))
        });
        let scrapes = stream::iter(running.collect::<Vec<_>>())
            .map(|(pod, address)| async move { Some((pod, self.one(address).await?)) });
        // One Worker whose pods do not answer leaves the others room.
        let answers = scrapes.buffer_unordered(OF_ONE_WORKER).filter_map(future::ready);
        answers.take_until(tokio::time::sleep(limit)).collect().await
    }

    async fn one(&self, address: IpAddr) -> Option<Sample> {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let answer = tokio::time::timeout(TIMEOUT, get(address)).await.ok()?;
        answer.inspect_err(|error| tracing::debug!(%address, %error, "not scraped")).ok()
    }
}

async fn get(address: IpAddr) -> anyhow::Result<Sample> {
    let connected = TcpStream::connect((address, SIDECAR_PORT));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connected).await??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get("/metrics").header("host", "sidecar").body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "status {}", response.status());
        let body =
            Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|e| anyhow::anyhow!(e))?;
        parse(&String::from_utf8_lossy(&body.to_bytes())).context("no metrics of a sidecar")
    };
    // The exchange drops the sender, which ends the connection.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
