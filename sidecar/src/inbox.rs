//! What other tasks tell the engine's loop.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use tokio::sync::oneshot;
use warren_broker::BrokerError;
use warren_broker::lapin::{Channel, Consumer};
use warren_broker::supervisor::Link;

use crate::amqp::publisher::PublishError;
use crate::core::{DeliveryId, LateReply, PublishResult, Seen, Snapshot, Verdict};
use crate::handler::pool::Done;

/// A reply to whoever published a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyBody {
    /// Its content type.
    pub content_type: Option<HeaderValue>,
    /// Its content encoding.
    pub content_encoding: Option<HeaderValue>,
    /// Its body.
    pub body: Bytes,
}

impl ReplyBody {
    /// What an answer or request with these headers carries.
    pub fn of(headers: &HeaderMap, body: Bytes) -> Self {
        let [content_type, content_encoding] =
            [CONTENT_TYPE, CONTENT_ENCODING].map(|name| headers.get(name).cloned());
        Self { content_type, content_encoding, body }
    }
}

/// A message to the engine's loop.
#[derive(Debug)]
pub enum Inbox {
    /// A handler call has ended.
    Called(Done),
    /// A copy was published, or not.
    Published {
        /// The delivery that it is of.
        id: DeliveryId,
        /// What became of it.
        result: PublishResult,
        /// Where the broker does not take it: the queue, and what it said.
        refusal: Option<(String, PublishError)>,
    },
    /// The handler's port was tried.
    Port {
        /// What it did.
        seen: Seen,
    },
    /// A channel was opened, or not.
    Opened {
        /// The connection.
        link: Link,
        /// The channel.
        result: Result<Channel, BrokerError>,
    },
    /// A channel was closed so that what it held is the broker's again, or not.
    HandedBack {
        /// The connection.
        link: Link,
        /// Whether the broker said nothing.
        silent: bool,
    },
    /// A consumer was started, or not.
    Consuming {
        /// The session.
        generation: u64,
        /// The consumer.
        result: Result<Consumer, BrokerError>,
    },
    /// Somebody wants the sidecar to finish; answered with whether everything had ended.
    Drain(oneshot::Sender<bool>),
    /// SIGTERM.
    Terminate,
    /// A second Ctrl-C: somebody does not want to wait for the drain.
    Abandon,
    /// The application ends a delivery late.
    LateAnswer {
        /// The delivery.
        id: DeliveryId,
        /// How.
        verdict: Verdict,
        /// The reply, for a message that wants one.
        body: ReplyBody,
        /// Where the answer goes.
        reply: oneshot::Sender<LateReply>,
    },
    /// The application is still at work.
    Extend {
        /// The delivery.
        id: DeliveryId,
        /// Where the answer goes.
        reply: oneshot::Sender<LateReply>,
    },
    /// Somebody wants to know the state.
    Status(oneshot::Sender<Snapshot>),
}

impl From<Done> for Inbox {
    fn from(done: Done) -> Self {
        Self::Called(done)
    }
}
