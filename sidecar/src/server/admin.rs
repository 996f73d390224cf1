//! Port 9400: metrics, probes, and the drain.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use warren_api::headers;

use super::local::is_of_a_foreign_page;
use super::{Reply, reply, typed};
use crate::health::Health;
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// What the server shows and asks.
#[derive(Clone, Debug)]
pub struct Admin {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What probes ask.
    pub health: Arc<Health>,
    /// The engine's loop; none where there is none to drain.
    pub engine: Option<mpsc::UnboundedSender<Inbox>>,
    /// What a drain must carry.
    pub drain_token: Option<Arc<str>>,
}

impl Admin {
    /// Answers one request.
    pub async fn handle(self, request: Request<Incoming>) -> Reply {
        let probe = |good: bool| {
            if good {
                reply(StatusCode::OK, "ok\n")
            } else {
                reply(StatusCode::SERVICE_UNAVAILABLE, "not yet\n")
            }
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {
                typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            (&Method::GET, "/livez") => probe(self.health.is_live()),
            (&Method::GET, "/readyz") => probe(self.health.is_ready()),
            (&Method::GET | &Method::POST, "/drain") => self.drain(request.headers()).await,
            (_, "/metrics" | "/livez" | "/readyz" | "/drain") => {
                reply(StatusCode::METHOD_NOT_ALLOWED, "use GET\n")
            }
            _ => reply(StatusCode::NOT_FOUND, "here are /metrics, /livez, /readyz and /drain\n"),
        }
    }

    /// Answers when everything that was begun has ended, or the drain's time is over.
    async fn drain(&self, headers: &HeaderMap) -> Reply {
        // Without a token, as on a developer's machine, anybody's page could ask for it.
        if is_of_a_foreign_page(headers) {
            return reply(StatusCode::FORBIDDEN, "no web page may use this\n");
        }
        if let Some(token) = &self.drain_token {
            let given = headers.get(headers::DRAIN_TOKEN).map(|value| value.as_bytes());
            if given != Some(token.as_bytes()) {
                return reply(StatusCode::FORBIDDEN, "a drain needs the header warren-drain-token\n");
            }
        }
        let Some(engine) = &self.engine else { return reply(StatusCode::OK, "nothing to drain\n") };
        let (send, wait) = oneshot::channel();
        if engine.send(Inbox::Drain(send)).is_err() {
            return reply(StatusCode::OK, "the sidecar is ending\n");
        }
        match wait.await {
            Ok(true) | Err(_) => reply(StatusCode::OK, "drained\n"),
            Ok(false) => {
                reply(StatusCode::GATEWAY_TIMEOUT, "work was still running when the drain's time was over\n")
            }
        }
    }
}
