//! Reads sidecars' `/metrics` over the pods' addresses.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
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
    port: u16,
    places: Semaphore,
    /// Places of the namespaces that are scraped now.
    of_namespace: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Room for one scrape: of its namespace, and of all.
type Place<'a> = [Option<SemaphorePermit<'a>>; 2];

impl Default for Scraper {
    fn default() -> Self {
        Self { port: SIDECAR_PORT, places: Semaphore::new(AT_ONCE), of_namespace: Mutex::default() }
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
        let answer = tokio::time::timeout(TIMEOUT, get((address, self.port).into())).await.ok()?;
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

async fn get(address: SocketAddr) -> anyhow::Result<Sample> {
    let connected = TcpStream::connect(address);
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
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use futures::FutureExt;

    use super::*;

    const METRICS: &str = "warren_sidecar_unsettled 5\nwarren_sidecar_in_flight 3\n";

    /// A pod at an address of this machine, whose sidecar answers with a page; one without takes connections and says nothing.
    fn pod((address, port): (&str, u16), page: Option<String>) -> (Arc<Pod>, u16) {
        let listener = TcpListener::bind((address, port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Some(page) = &page {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", page.len());
                let _ = stream.write_all((head + page).as_bytes());
            }
            loop {
                std::thread::park();
            }
        });
        let sidecar = serde_json::json!({"name": "warren-sidecar", "image": "i", "imageID": "i", "ready": true,
            "restartCount": 0, "state": {"running": {}}});
        let status = serde_json::json!({"podIP": address, "initContainerStatuses": [sidecar]});
        let pod = serde_json::json!({"metadata": {"name": address, "namespace": "n"}, "status": status});
        (Arc::new(serde_json::from_value(pod).unwrap()), port)
    }

    #[tokio::test]
    async fn pods_that_say_nothing_or_too_much_hold_up_no_look_at_the_others() {
        let padded = |bytes: usize| Some(format!("{METRICS}# {}", "x".repeat(bytes - METRICS.len() - 2)));
        let (good, port) = pod(("127.94.0.1", 0), padded(MOST_BYTES));
        let bad = [None, padded(MOST_BYTES + 1), Some("it works".to_owned())];
        let bad = ["127.94.0.2", "127.94.0.3", "127.94.0.4"].into_iter().zip(bad);
        let mut pods: Vec<_> = bad.map(|(address, page)| pod((address, port), page).0).collect();
        pods.push(good);
        let scraper = Scraper { port, ..Scraper::default() };
        let scraping = scraper.scrape(&pods, Duration::from_secs(600));
        let answers = tokio::time::timeout(Duration::from_secs(60), scraping).await.unwrap();
        let [(pod, sample)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((pod.name_any().as_str(), sample.unsettled), ("127.94.0.1", 5));
    }

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
