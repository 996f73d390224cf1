//! `/metrics`, `/livez`, `/readyz`, and `/decisions/NAMESPACE/NAME`: why a Worker has its replicas.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower::Service;
use warren_api::listen::{Places, addresses};

use crate::brokers::{Brokers, Key};
use crate::context::Shutdown;
use crate::leader::Leadership;
use crate::locked::locked;
use crate::metrics::Metrics;
use crate::scaler::record::{Records, Told};

/// How long a client may take to ask, from its connection or its last answer on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take nothing of what it asked for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that a request without its body may have.
const LARGEST_HEAD: usize = 16 * 1024;
/// More than all probes, scrapes and people need.
const CONNECTIONS: usize = 100;
/// Texts of all metrics that are read at once: each has megabytes for a large fleet, and may be read slowly.
const READERS: usize = 4;

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
    let readers = Arc::new(Semaphore::new(READERS));
    let router = Router::new()
        .route("/metrics", get(move |telling| metrics(telling, readers)))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/decisions/{namespace}/{name}", get(decisions))
        .with_state(telling);
    let listener = TcpListener::bind(&addresses(address)[..]).await?;
    tracing::info!(%address, "serving /metrics, /livez, /readyz and /decisions");
    tokio::select! {
        () = accept(listener, router, CONNECTIONS) => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

type Waiting = Mutex<Places<Arc<Notify>>>;

/// Lets everybody in who asks: whoever says nothing goes for them.
async fn accept(listener: TcpListener, router: Router, most: usize) {
    let places = Arc::new(Mutex::new(Places::new(most)));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: others will close.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let go = Arc::new(Notify::new());
        let Some((number, gone)) = locked(&places).enter(go.clone()) else { continue };
        if let Some(gone) = gone {
            gone.notify_one();
        }
        let (places, router) = (places.clone(), router.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = answer(stream, router, &places, number) => {}
                () = go.notified() => {}
            }
            locked(&places).leave(number);
        });
    }
}

/// Answers on one connection until it ends.
async fn answer(stream: TcpStream, router: Router, places: &Waiting, number: u64) {
    let service = service_fn(|request: Request<Incoming>| {
        locked(places).asks(number);
        let answering = router.clone().call(request);
        async move {
            let answer = answering.await;
            locked(places).answered(number);
            answer
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

/// A text that is being read.
struct Reading {
    text: String,
    _reader: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Reading {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

async fn metrics(
    State(telling): State<Telling>,
    readers: Arc<Semaphore>,
) -> Result<impl IntoResponse, StatusCode> {
    let reader = readers.try_acquire_owned().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let (up, down) = telling.brokers.connected();
    telling.metrics.brokers(up, down);
    telling.metrics.drift_check(telling.brokers.drift_check());
    telling.metrics.api_writes(telling.leadership.writes());
    let text = telling.metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let text = Bytes::from_owner(Reading { text, _reader: reader });
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], text))
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;

    use super::*;

    async fn served(most: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, Router::new().route("/livez", get(|| async { "ok\n" })), most));
        address
    }

    /// What is said to so many bytes, in a thread of its own: all until the other side closes.
    fn ask(address: SocketAddr, request: Vec<u8>) -> tokio::task::JoinHandle<String> {
        tokio::task::spawn_blocking(move || {
            let mut stream = net::TcpStream::connect(address).unwrap();
            stream.write_all(&request).unwrap();
            let mut answer = String::new();
            // A reset is an end, too.
            let _ = stream.read_to_string(&mut answer);
            answer
        })
    }

    const PROBE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn connections_that_say_nothing_go_for_those_that_ask() {
        let address = served(2).await;
        let silent: Vec<_> = (0..4).map(|_| net::TcpStream::connect(address).unwrap()).collect();
        assert!(ask(address, PROBE.to_vec()).await.unwrap().ends_with("ok\n"));
        let read = tokio::task::spawn_blocking(move || {
            silent
                .into_iter()
                .take(2)
                .map(|mut stream| stream.read(&mut [0]).is_ok_and(|read| read > 0))
                .collect()
        });
        let read: Vec<bool> = read.await.unwrap();
        assert_eq!(read, [false, false], "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_does_not_keep_others_from_it() {
        let readers = Arc::new(Semaphore::new(1));
        let asked = readers.clone();
        let large = get(async move || {
            let reader = asked.try_acquire_owned().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
            let text = "x".repeat(64 << 20);
            Ok::<_, StatusCode>(Bytes::from_owner(Reading { text, _reader: reader }))
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, Router::new().route("/large", large), 10));
        let stream = TcpStream::connect(address).await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.readable().await.unwrap();
        assert_eq!(readers.available_permits(), 0);
        let free = tokio::time::timeout(WRITE_TIMEOUT * 2, readers.acquire()).await;
        assert!(free.is_ok(), "it is still there");
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let large = [&b"GET /livez HTTP/1.1\r\na: "[..], &[b'x'; LARGEST_HEAD]].concat();
        let answer = ask(served(10).await, large).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_given_up() {
        let stream = TcpStream::connect(served(10).await).await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"GET /livez HTTP/1.1\r\n").unwrap();
        tokio::time::timeout(HEAD_TIMEOUT * 2, stream.readable()).await.unwrap().unwrap();
        assert_eq!(stream.try_read(&mut [0; 64]).unwrap_or(0), 0);
    }
}
