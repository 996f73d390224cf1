//! The two HTTP servers: one on the pod's address for the kubelet, Prometheus and drains, one on localhost for the application.

pub mod admin;
pub mod local;
pub mod parse;
pub mod publish;
mod refusals;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use warren_api::listen::{Places, addresses};

use crate::locked::locked;

/// An answer with its whole body.
pub type Reply = Response<Full<Bytes>>;

/// What a server bears with.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a client may take to ask, from its connection or its last answer on.
    pub head_timeout: Duration,
    /// Bytes that a request without its body may have.
    pub largest_head: usize,
    /// How many connections there may be. Beyond that those go first that ask nothing.
    pub connections: usize,
}

impl Bounds {
    /// For whoever reaches the pod: the kubelet, Prometheus, the operator.
    pub const ANYBODY: Self =
        Self { head_timeout: Duration::from_secs(5), largest_head: 8 * 1024, connections: 100 };
    /// For the application, which is trusted, and whose messages' headers come in the head.
    pub const APPLICATION: Self =
        Self { head_timeout: Duration::from_secs(30), largest_head: 64 * 1024, connections: usize::MAX };
}

/// How long the last answers may take: at the end of the grace period a sidecar has two seconds to live.
const FAREWELL: Duration = Duration::from_secs(1);

/// A reply of a status and a text.
pub fn reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// A reply of a status and a body with its content type.
fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = reply(status, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
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
pub async fn serve<H, F>(listener: TcpListener, bounds: Bounds, mut closing: watch::Receiver<()>, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let places = Arc::new(Mutex::new(Places::new(bounds.connections)));
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
        let go = Arc::new(Notify::new());
        let Some((number, gone)) = locked(&places).enter(Arc::clone(&go)) else { continue };
        if let Some(gone) = gone {
            gone.notify_one();
        }
        let (handle, closing, places) = (handle.clone(), closing.clone(), Arc::clone(&places));
        let place = Arc::clone(&places);
        tokio::spawn(async move {
            let answering = answer(stream, bounds, closing, move |request| {
                locked(&place).asks(number);
                let (replying, place) = (handle(request), Arc::clone(&place));
                async move {
                    let reply = replying.await;
                    locked(&place).answered(number);
                    reply
                }
            });
            tokio::select! {
                () = answering => {}
                () = go.notified() => {}
            }
            locked(&places).leave(number);
        });
    }
}

/// Answers on one connection until it ends.
async fn answer<F>(
    stream: TcpStream,
    bounds: Bounds,
    mut closing: watch::Receiver<()>,
    handle: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Reply>,
{
    // Without this a small reply may wait for the client's acknowledgement; it works without it too.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let replying = handle(request);
        async move { Ok::<_, Infallible>(replying.await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(bounds.largest_head)
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

    type Handling = std::pin::Pin<Box<dyn Future<Output = Reply> + Send>>;

    /// A handler that says when it is asked, and answers with a text when it is told to.
    fn held_back(
        text: &'static str,
    ) -> (Arc<Notify>, Arc<Notify>, impl Fn(Request<Incoming>) -> Handling + Clone + Send + 'static) {
        let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, waiting) = (Arc::clone(&asked), Arc::clone(&answer));
        let handle = move |_| -> Handling {
            let (told, waiting) = (Arc::clone(&told), Arc::clone(&waiting));
            Box::pin(async move {
                told.notify_one();
                waiting.notified().await;
                reply(StatusCode::OK, text)
            })
        };
        (asked, answer, handle)
    }

    #[tokio::test]
    async fn closing_waits_for_an_answer_that_is_due_and_lets_nobody_new_in() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer, handle) = held_back("drained\n");
        let closing = Closing::default();
        let server = tokio::spawn(serve(listener, Bounds::ANYBODY, closing.subscribe(), handle));
        let asking = ask(address);
        asked.notified().await;
        let closing = tokio::spawn(closing.close());
        server.await.unwrap();
        assert!(std::net::TcpStream::connect(address).is_err() && !closing.is_finished());
        answer.notify_one();
        closing.await.unwrap();
        assert!(asking.await.unwrap().ends_with("drained\n"));
    }

    #[tokio::test]
    async fn a_drain_that_waits_and_a_probe_have_their_answers_among_connections_that_ask_nothing() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer, handle) = held_back("answered\n");
        let bounds = Bounds { connections: 2, ..Bounds::ANYBODY };
        let closing = Closing::default();
        let server = tokio::spawn(serve(listener, bounds, closing.subscribe(), handle));
        let drain = ask(address);
        asked.notified().await;
        let silent: Vec<_> = (0..5).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let probe = ask(address);
        asked.notified().await;
        let closed = tokio::task::spawn_blocking(move || {
            silent.into_iter().all(|mut stream| stream.read(&mut [0]).is_ok_and(|read| read == 0))
        });
        assert!(closed.await.unwrap());
        answer.notify_waiters();
        closing.close().await;
        server.await.unwrap();
        for asking in [drain, probe] {
            assert!(asking.await.unwrap().ends_with("answered\n"));
        }
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_given_up_soon() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let closing = Closing::default();
        let handle = |_| std::future::ready(reply(StatusCode::OK, ""));
        let bounds = Bounds { head_timeout: Duration::from_millis(50), ..Bounds::ANYBODY };
        tokio::spawn(serve(listener, bounds, closing.subscribe(), handle));
        stream.writable().await.unwrap();
        stream.try_write(b"GET / HTTP/1.1\r\n").unwrap();
        tokio::time::timeout(Duration::from_secs(10), stream.readable()).await.unwrap().unwrap();
        assert_eq!(stream.try_read(&mut [0; 64]).unwrap_or(0), 0);
    }
}
