//! Reads sidecars' `/metrics` over the pods' addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt, future, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use warren_api::names::SIDECAR_PORT;

use super::sample::{Sample, parse};
use crate::locked::locked;
use crate::worker::pods;

/// Scrapes at once, over all Workers.
const AT_ONCE: usize = 128;
/// Of these, how many may be of one namespace: pods that connect and say nothing keep no other namespace's from being scraped.
const OF_ONE_NAMESPACE: usize = 32;
/// Scrapes of one Worker at once.
const OF_ONE_WORKER: usize = 16;
/// How long one scrape may take once it has begun.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to connect, in a cluster: where packets are dropped, nothing comes for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A sidecar's metrics are a few kB.
const MOST_BYTES: usize = 64 * 1024;

/// Scrapes sidecars, a bounded number at once.
#[derive(Debug)]
pub struct Scraper {
    places: Semaphore,
    /// Places of the namespaces that are scraped now.
    of_namespace: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Room for one scrape: of its namespace, and of all.
type Place<'a> = [Option<SemaphorePermit<'a>>; 2];

impl Default for Scraper {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_ONCE), of_namespace: Mutex::default() }
    }
}

impl Scraper {
    /// Reads the metrics of pods of one namespace whose sidecar runs; gives those that answer within `limit`.
    pub async fn scrape(&self, pods: &[Arc<Pod>], limit: Duration) -> Vec<(Arc<Pod>, Sample)> {
        let namespace = pods.first().and_then(|pod| pod.namespace()).unwrap_or_default();
        let own = &self.places_of(&namespace);
        let running = pods.iter().filter(|pod| pods::sidecar_runs(pod)).filter_map(|pod| {
            let address = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
            Some((pod.clone(), address))
        });
        let scrapes = stream::iter(running.collect::<Vec<_>>())
            .map(|(pod, address)| async move { Some((pod, self.one(own, address).await?)) });
        // One Worker whose pods do not answer leaves the others room.
        let answers = scrapes.buffer_unordered(OF_ONE_WORKER).filter_map(future::ready);
        answers.take_until(tokio::time::sleep(limit)).collect().await
    }

    async fn one(&self, own: &Semaphore, address: IpAddr) -> Option<Sample> {
        let _place = self.place(own).await;
        let answer = tokio::time::timeout(TIMEOUT, get(address)).await.ok()?;
        answer.inspect_err(|error| tracing::debug!(%address, %error, "not scraped")).ok()
    }

    /// Waits for a place: first for one of the namespace's `own`, so that who waits there takes none from others.
    async fn place<'a>(&'a self, own: &'a Semaphore) -> Place<'a> {
        // Neither semaphore is ever closed.
        [own.acquire().await.ok(), self.places.acquire().await.ok()]
    }

    fn places_of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = locked(&self.of_namespace);
        if let Some(places) = all.get(namespace).and_then(Weak::upgrade) {
            return places;
        }
        all.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(OF_ONE_NAMESPACE));
        all.insert(namespace.to_owned(), Arc::downgrade(&places));
        places
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_namespace_whose_pods_do_not_answer_leaves_others_places() {
        let scraper = Scraper::default();
        let (silent, other) = (scraper.places_of("a"), scraper.places_of("b"));
        let held: Vec<_> = (0..1000).map_while(|_| scraper.place(&silent).now_or_never()).collect();
        assert_eq!(held.len(), OF_ONE_NAMESPACE);
        let second = scraper.places_of("a");
        assert!(scraper.place(&second).now_or_never().is_none(), "its Workers share its places");
        assert!(scraper.place(&other).now_or_never().is_some());
    }

    #[test]
    fn a_namespace_that_is_not_scraped_any_more_is_forgotten() {
        let scraper = Scraper::default();
        drop(scraper.places_of("a"));
        let _places = scraper.places_of("b");
        assert_eq!(locked(&scraper.of_namespace).keys().collect::<Vec<_>>(), ["b"]);
    }
}
