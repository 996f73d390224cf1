//! The two HTTP servers: one on the pod's address for the kubelet, Prometheus and drains, one on localhost for the application.

pub mod admin;
pub mod local;
pub mod parse;
pub mod publish;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// An answer with its whole body.
pub type Reply = Response<Full<Bytes>>;

/// How long a client may take to send its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A reply of a status and a text.
pub fn reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// A listener.
///
/// # Errors
/// If the address cannot be listened on, such as because another process does.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        std::io::Error::new(error.kind(), format!("{address} cannot be listened on: {error}"))
    })
}

/// Serves every connection of a listener until the process ends.
pub async fn serve<H, F>(listener: TcpListener, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
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
        let handle = handle.clone();
        tokio::spawn(async move {
            // Without this a small reply may wait for the client's acknowledgement; it works without it too.
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request| {
                let replying = handle(request);
                async move { Ok::<_, Infallible>(replying.await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a client's connection ended early");
            }
        });
    }
}
