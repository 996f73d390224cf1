//! The publish API: `POST /publish` for one message, `POST /publish/batch` for JSON lines. Persistent, mandatory, confirmed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use tokio::sync::{Mutex, Semaphore};
use warren_api::headers as names;
use warren_broker::BrokerError;
use warren_broker::lapin::types::ShortString;

use super::parse::{self, Invalid, Outgoing};
use super::{Reply, reply};
use crate::amqp::publisher::{PublishError, Publisher};
use crate::handler::batch::JSON_LINES;
use crate::metrics::{Metrics, PublishClass};

/// The largest body of a message, and of a batch: what a broker takes since RabbitMQ 4.0.
pub const LARGEST: usize = 16 * 1024 * 1024;
/// How much may be on its way at once; a further caller is asked to come again.
const IN_FLIGHT: usize = 32 * 1024 * 1024;
/// What a message costs at least.
const LEAST: usize = 1024;
/// How long an exchange that was there is taken to be there still.
const EXCHANGE_KNOWN: Duration = Duration::from_secs(60);
/// Exchanges remembered at most.
const EXCHANGES: usize = 1000;

/// The publish API.
#[derive(Clone, Debug)]
pub struct Publish {
    publisher: Publisher,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    exchanges: Arc<Mutex<HashMap<ShortString, Instant>>>,
}

/// How one publish ended, as HTTP says it.
#[derive(Debug)]
struct Ended {
    status: StatusCode,
    class: PublishClass,
    text: String,
    retry_after: Option<u32>,
}

impl Publish {
    /// An API that publishes over a channel of its own.
    pub fn new(publisher: &Publisher, metrics: Arc<Metrics>) -> Self {
        let room = Arc::new(Semaphore::new(IN_FLIGHT / LEAST));
        Self { publisher: publisher.on_own_channel(), metrics, room, exchanges: Arc::default() }
    }

    /// One message.
    pub async fn single(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let (_permit, body) = match self.read(body).await {
            Ok(read) => read,
            Err(refusal) => return self.answer(refusal, None),
        };
        match parse::single(head.uri.query().unwrap_or_default(), &head.headers, body) {
            Ok(outgoing) => {
                let id = outgoing.message_id().to_owned();
                let sent = self.send(outgoing).await;
                self.answer(Ended::wait(sent).await, Some(&id))
            }
            Err(invalid) => self.answer(Ended::invalid(&invalid), None),
        }
    }

    /// A batch: each line is published by itself, in the order of the lines, and has its own result in the same order.
    pub async fn batch(&self, request: Request<Incoming>) -> Reply {
        let (_permit, body) = match self.read(request.into_body()).await {
            Ok(read) => read,
            Err(refusal) => return self.answer(refusal, None),
        };
        let mut results = FuturesOrdered::new();
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            // Sent one after another, so that a queue has them in the order of the lines; confirmed together.
            let (id, sent) = match parse::line(line) {
                Ok(outgoing) => (Some(outgoing.message_id().to_owned()), self.send(outgoing).await),
                Err(invalid) => (None, Err(Ended::invalid(&invalid))),
            };
            results.push_back(async move { (Ended::wait(sent).await, id) });
        }
        let mut lines = String::new();
        let mut number = 0;
        while let Some((ended, id)) = results.next().await {
            self.metrics.published(ended.class);
            let mut result = serde_json::json!({"line": number, "status": ended.status.as_u16()});
            if let Some(fields) = result.as_object_mut() {
                if let Some(id) = id {
                    fields.insert("messageId".to_owned(), id.into());
                }
                if ended.status != StatusCode::ACCEPTED {
                    fields.insert("error".to_owned(), ended.text.into());
                }
            }
            lines.push_str(&result.to_string());
            lines.push('\n');
            number += 1;
        }
        let mut response = reply(StatusCode::OK, lines);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
        response
    }

    /// Reads a body, if there is room for it.
    async fn read(&self, body: Incoming) -> Result<(tokio::sync::OwnedSemaphorePermit, Bytes), Ended> {
        let too_large = || Ended {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            class: PublishClass::Invalid,
            text: format!("the body is larger than {LARGEST} bytes"),
            retry_after: None,
        };
        let size = body.size_hint();
        let expected = size.upper().map_or(LARGEST, |upper| usize::try_from(upper).unwrap_or(usize::MAX));
        if size.upper().is_some() && expected > LARGEST {
            return Err(too_large());
        }
        let cost = u32::try_from(expected / LEAST + 1).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.room).try_acquire_many_owned(cost).map_err(|_| Ended {
            status: StatusCode::TOO_MANY_REQUESTS,
            class: PublishClass::Blocked,
            text: format!("{IN_FLIGHT} bytes are on their way to the broker already"),
            retry_after: Some(1),
        })?;
        match Limited::new(body, LARGEST).collect().await {
            Ok(body) => Ok((permit, body.to_bytes())),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Err(error) => Err(Ended {
                status: StatusCode::BAD_REQUEST,
                class: PublishClass::Invalid,
                text: format!("the body did not come whole: {error}"),
                retry_after: None,
            }),
        }
    }

    /// Sends a message; the future waits for its confirm.
    async fn send(
        &self,
        outgoing: Outgoing,
    ) -> Result<impl Future<Output = Result<(), PublishError>> + use<>, Ended> {
        let Outgoing { exchange, routing_key, properties, body } = outgoing;
        self.know(&exchange).await.map_err(|error| Ended::failed(&error))?;
        let sent = self.publisher.send(exchange, routing_key, properties, &body).await;
        sent.map_err(|error| Ended::failed(&error))
    }

    /// Makes sure that the exchange is there; the broker would close the channel under everybody's messages otherwise.
    async fn know(&self, exchange: &ShortString) -> Result<(), PublishError> {
        if exchange.as_str().is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let known = self.exchanges.lock().await.get(exchange).copied();
        if known.is_some_and(|at| now.duration_since(at) < EXCHANGE_KNOWN) {
            return Ok(());
        }
        self.publisher.check_exchange(exchange.clone()).await?;
        let mut known = self.exchanges.lock().await;
        if known.len() >= EXCHANGES {
            known.clear();
        }
        known.insert(exchange.clone(), now);
        Ok(())
    }

    fn answer(&self, ended: Ended, id: Option<&str>) -> Reply {
        self.metrics.published(ended.class);
        let text = if ended.text.is_empty() { ended.text } else { ended.text + "\n" };
        let mut response = reply(ended.status, text);
        let headers: &mut HeaderMap = response.headers_mut();
        if let Some(seconds) = ended.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(names::MESSAGE_ID, id);
        }
        response
    }
}

impl Ended {
    fn invalid(invalid: &Invalid) -> Self {
        let status = match invalid {
            Invalid::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Invalid::Field { .. } | Invalid::Line(_) => StatusCode::BAD_REQUEST,
        };
        Self { status, class: PublishClass::Invalid, text: invalid.to_string(), retry_after: None }
    }

    /// Waits for the confirm of what was sent.
    async fn wait(sent: Result<impl Future<Output = Result<(), PublishError>>, Self>) -> Self {
        let confirmed = match sent {
            Ok(confirmed) => confirmed.await,
            Err(ended) => return ended,
        };
        match confirmed {
            Ok(()) => Self {
                status: StatusCode::ACCEPTED,
                class: PublishClass::Confirmed,
                text: String::new(),
                retry_after: None,
            },
            Err(error) => Self::failed(&error),
        }
    }

    fn failed(error: &PublishError) -> Self {
        let (status, class, retry_after) = match error {
            PublishError::Disconnected => (StatusCode::SERVICE_UNAVAILABLE, PublishClass::Failed, Some(1)),
            PublishError::Blocked(_) => (StatusCode::TOO_MANY_REQUESTS, PublishClass::Blocked, Some(5)),
            PublishError::Refused => (StatusCode::TOO_MANY_REQUESTS, PublishClass::Refused, Some(5)),
            PublishError::Unroutable => (StatusCode::NOT_FOUND, PublishClass::Unroutable, None),
            PublishError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, PublishClass::Failed, None),
            PublishError::Broker(BrokerError::NotFound { .. }) => {
                (StatusCode::NOT_FOUND, PublishClass::Unroutable, None)
            }
            PublishError::Broker(BrokerError::AccessRefused { .. }) => {
                (StatusCode::FORBIDDEN, PublishClass::Refused, None)
            }
            PublishError::Broker(BrokerError::Precondition { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, PublishClass::Invalid, None)
            }
            PublishError::Broker(_) => (StatusCode::SERVICE_UNAVAILABLE, PublishClass::Failed, Some(1)),
        };
        let text = match error {
            PublishError::Unroutable => format!("unroutable: {error}"),
            _ => error.to_string(),
        };
        Self { status, class, text, retry_after }
    }
}
