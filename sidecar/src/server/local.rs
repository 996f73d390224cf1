//! Port 9401, on localhost: for the application.

use std::time::SystemTime;

use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};

use super::publish::Publish;
use super::{Reply, reply};
use crate::core::{DeadReason, DeliveryId, Failure, LateReply, Verdict};
use crate::delivery_id;
use crate::handler::answer;
use crate::inbox::{Inbox, ReplyBody};

/// What the application can ask.
#[derive(Clone, Debug)]
pub struct Local {
    /// The engine's loop; none where messages are only published.
    pub engine: Option<mpsc::UnboundedSender<Inbox>>,
    /// The publish API.
    pub publish: Publish,
}

/// What the application says about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Ack,
    Retry,
    DeadLetter,
    Extend,
}

impl Local {
    /// Answers one request.
    pub async fn handle(self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::POST, "/publish") => self.publish.single(request).await,
            (&Method::POST, "/publish/batch") => self.publish.batch(request).await,
            (&Method::GET, "/status") => self.status().await,
            (&Method::POST, path) if path.starts_with("/deliveries/") => self.delivery(path, request).await,
            (_, "/publish" | "/publish/batch") => reply(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
            _ => reply(
                StatusCode::NOT_FOUND,
                "here are /publish, /publish/batch, /deliveries/{id}/ack and /status\n",
            ),
        }
    }

    async fn delivery(&self, path: &str, request: Request<Incoming>) -> Reply {
        let mut parts = path.trim_start_matches("/deliveries/").split('/');
        let (id, verb, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let said = match (verb, rest) {
            (Some("ack"), None) => Said::Ack,
            (Some("retry"), None) => Said::Retry,
            (Some("dead-letter"), None) => Said::DeadLetter,
            (Some("extend"), None) => Said::Extend,
            _ => return reply(StatusCode::NOT_FOUND, "use /ack, /retry, /dead-letter or /extend\n"),
        };
        let Some(id) = delivery_id::parse(id) else {
            return reply(StatusCode::NOT_FOUND, "there is no such delivery\n");
        };
        let Some(engine) = &self.engine else {
            return reply(StatusCode::NOT_FOUND, "nothing is consumed here\n");
        };
        let (head, body) = request.into_parts();
        // The room is kept until the engine has taken the body.
        let (_room, body) = match self.publish.upload(body).await {
            Ok(uploaded) => uploaded,
            Err(ended) => return ended.reply(),
        };
        let body = ReplyBody::of(&head.headers, body);
        match ask(engine, id, said, &head.headers, body).await {
            Some(LateReply::Accepted) => reply(StatusCode::OK, ""),
            Some(LateReply::Unknown) => reply(StatusCode::NOT_FOUND, "there is no such delivery\n"),
            Some(LateReply::Ended) => reply(
                StatusCode::CONFLICT,
                "the delivery has ended already, has timed out, or was lost with its connection: the broker may deliver it again\n",
            ),
            None => reply(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is ending\n"),
        }
    }

    async fn status(&self) -> Reply {
        let ending = || reply(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is ending\n");
        let Some(engine) = &self.engine else { return reply(StatusCode::OK, "{\"consuming\":false}\n") };
        let (send, wait) = oneshot::channel();
        if engine.send(Inbox::Status(send)).is_err() {
            return ending();
        }
        let Ok(snapshot) = wait.await else { return ending() };
        let status = serde_json::json!({
            "consuming": snapshot.consuming,
            "prefetch": snapshot.prefetch,
            "unsettled": snapshot.unsettled,
            "inFlight": snapshot.in_flight,
            "handlerAccepts": snapshot.handler_accepts,
            "breakerOpen": snapshot.breaker.is_some(),
            "draining": snapshot.draining,
        });
        let mut response = reply(StatusCode::OK, format!("{status}\n"));
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    }
}

async fn ask(
    engine: &mpsc::UnboundedSender<Inbox>,
    id: DeliveryId,
    said: Said,
    headers: &HeaderMap,
    body: ReplyBody,
) -> Option<LateReply> {
    let (reply, wait) = oneshot::channel();
    let reason = || answer::reason_of(headers).unwrap_or_else(|| "the application said so later".to_owned());
    let message = match said {
        Said::Extend => Inbox::Extend { id, reply },
        Said::Ack => Inbox::LateAnswer { id, verdict: Verdict::Ack, body, reply },
        Said::Retry => {
            let after = answer::retry_after_of(headers, SystemTime::now());
            let verdict = Verdict::Retry(Failure { status: None, after, detail: reason() });
            Inbox::LateAnswer { id, verdict, body, reply }
        }
        Said::DeadLetter => {
            let verdict = Verdict::DeadLetter { reason: DeadReason::Rejected, detail: reason() };
            Inbox::LateAnswer { id, verdict, body, reply }
        }
    };
    engine.send(message).ok()?;
    wait.await.ok()
}
