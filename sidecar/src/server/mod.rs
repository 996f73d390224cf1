//! The two HTTP servers: one on the pod's address for the kubelet, Prometheus and drains, one on localhost for the application.

pub mod admin;
pub mod local;
pub mod parse;
pub mod publish;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use warren_api::listen::addresses;

/// An answer with its whole body.
pub type Reply = Response<Full<Bytes>>;

/// How long a client may take to send its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the last answers may take: at the end of the grace period a sidecar has two seconds to live.
const FAREWELL: Duration = Duration::from_secs(1);

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
    TcpListener::bind(&addresses(address)[..]).await.map_err(|error| {
        std::io::Error::new(error.kind(), format!("{address} cannot be listened on: {error}"))
    })
}

/// Ends servers in order: whoever waits for an answer gets it before the process ends, and nobody new is let in.
#[derive(Debug, Default)]
pub struct Closing(watch::Sender<()>);

impl Closing {
    /// What a server needs to be told.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }

    /// Waits until every request that is being answered has its answer, but not for long.
    pub async fn close(self) {
        self.0.send_replace(());
        // After that there is nothing more to be done for those that do not read.
        let _ = tokio::time::timeout(FAREWELL, self.0.closed()).await;
    }
}

/// Serves every connection of a listener until it is told to close.
pub async fn serve<H, F>(listener: TcpListener, mut closing: watch::Receiver<()>, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: others will close.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handle, mut closing) = (handle.clone(), closing.clone());
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
            let mut serving = pin!(serving);
            let served = tokio::select! {
                served = serving.as_mut() => served,
                _ = closing.changed() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a client's connection ended early");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    /// One request on a connection of its own, from a thread of its own.
    fn ask(address: SocketAddr) -> tokio::task::JoinHandle<String> {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    #[tokio::test]
    async fn closing_waits_for_an_answer_that_is_due_and_lets_nobody_new_in() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handle = {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            move |_| {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                async move {
                    asked.notify_one();
                    answer.notified().await;
                    reply(StatusCode::OK, "drained\n")
                }
            }
        };
        let closing = Closing::default();
        let server = tokio::spawn(serve(listener, closing.subscribe(), handle));
        let asking = ask(address);
        asked.notified().await;
        let closing = tokio::spawn(closing.close());
        server.await.unwrap();
        assert!(std::net::TcpStream::connect(address).is_err() && !closing.is_finished());
        answer.notify_one();
        closing.await.unwrap();
        assert!(asking.await.unwrap().ends_with("drained\n"));
    }
}
