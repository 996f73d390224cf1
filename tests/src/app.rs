//! An application for tests: takes the sidecar's calls on localhost, remembers them, and answers as the test says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A call that the application got.
#[derive(Debug, Clone)]
pub struct Call {
    /// The headers.
    pub headers: HeaderMap,
    /// The payload.
    pub body: Bytes,
    /// When it began.
    pub at: Instant,
}

impl Call {
    /// A header as text; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

type Answer = Arc<dyn Fn(&Call) -> Response + Send + Sync>;

/// A running application. It ends with the value.
pub struct App {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    calls: Arc<Mutex<Vec<Call>>>,
    answer: Answer,
    delay: Duration,
}

impl App {
    /// Answers 200 to everything.
    pub async fn start() -> Result<Self> {
        Self::answering(|_| StatusCode::OK.into_response()).await
    }

    /// Answers 200 to everything, after it worked for so long.
    pub async fn working(delay: Duration) -> Result<Self> {
        Self::serve(0, delay, |_| StatusCode::OK.into_response()).await
    }

    /// Answers what `answer` makes of each call. It must not block: the sidecar of a test is in the same thread.
    pub async fn answering(answer: impl Fn(&Call) -> Response + Send + Sync + 'static) -> Result<Self> {
        Self::answering_at(0, answer).await
    }

    /// Answers at a port, such as that of an application that has ended.
    pub async fn answering_at(
        port: u16,
        answer: impl Fn(&Call) -> Response + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::serve(port, Duration::ZERO, answer).await
    }

    async fn serve(
        port: u16,
        delay: Duration,
        answer: impl Fn(&Call) -> Response + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared { calls: Arc::clone(&calls), answer: Arc::new(answer), delay };
        let routes = Router::new().fallback(take).layer(DefaultBodyLimit::disable()).with_state(shared);
        let server = tokio::spawn(async move {
            // Ends only when the value is dropped.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { port, calls, server })
    }

    /// Where it listens, on localhost.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let call = Call { headers, body, at: Instant::now() };
    let answer = (shared.answer)(&call);
    shared.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    if !shared.delay.is_zero() {
        tokio::time::sleep(shared.delay).await;
    }
    answer
}
