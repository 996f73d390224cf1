//! The publishing connection: opened at first need, every message mandatory and confirmed, confirms pipelined.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OnceCell, oneshot, watch};
use tokio::time::Instant;
use warren_broker::connect::ConnectOptions;
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError};

use super::line::{Letter, Line, Outcome, Room};
use crate::locked::locked;

/// How long a confirm may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a copy's confirm is waited for at most: the largest `consumerTimeoutSeconds`, after which its delivery is the broker's again.
const LONGEST_CONFIRM: Duration = Duration::from_secs(2_000_000);
/// How long a right that is missing for a copy is missing for all of them: each refusal costs a channel's number for good, and with the
/// last of these the connection is made anew, under the application's own publishes.
pub const COPY_REFUSED: Duration = Duration::from_secs(20);
/// The same for replies, which are given up after a few tries: less than these take, so that each is asked for.
pub const REPLY_REFUSED: Duration = Duration::from_secs(1);
/// How long a publish waits for the first connection.
const FIRST_CONNECTION: Duration = Duration::from_secs(5);

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection.
    #[error("no connection to the broker")]
    Disconnected,
    /// The broker takes no publishes (memory or disk alarm).
    #[error("the broker blocks publishing: {0}")]
    Blocked(Arc<str>),
    /// No queue took the message.
    #[error("no queue is bound for it")]
    Unroutable,
    /// A queue refused the message, such as because it is full.
    #[error("the broker refused it: a queue is full, or has no leader")]
    Refused,
    /// The broker did not confirm in time; it may or may not have the message.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// Its properties do not fit one frame, in which the broker wants them.
    #[error("the headers do not fit a frame of {frame} bytes, which is the broker's largest")]
    TooLarge {
        /// The frame in bytes.
        frame: usize,
    },
    /// The broker closed the channel over it.
    #[error("{0}")]
    Broker(BrokerError),
    /// The broker closed the channel over one of the messages in flight; it may or may not have this one.
    #[error("the channel was closed over this or another message: {0}")]
    OfAnother(BrokerError),
}

/// Publishes over a connection of its own. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Inner>,
    /// The channel, and the connection's generation that it is on.
    line: Arc<Mutex<Held>>,
}

type Held = Option<(u64, Arc<Line>)>;

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

struct Inner {
    access: watch::Receiver<Arc<BrokerAccess>>,
    options: ConnectOptions,
    supervisor: OnceCell<Supervisor>,
    /// A right that was missing for a copy last.
    refused: std::sync::Mutex<Option<Missing>>,
}

/// A right that is missing: when the broker said so, whose it is, and what the broker said.
struct Missing {
    at: Instant,
    access: Arc<BrokerAccess>,
    error: BrokerError,
}

impl Publisher {
    /// A publisher that connects when it first has something to publish.
    pub fn new(access: watch::Receiver<Arc<BrokerAccess>>, options: ConnectOptions) -> Self {
        let link = Inner { access, options, supervisor: OnceCell::new(), refused: Default::default() };
        Self { link: Arc::new(link), line: Arc::default() }
    }

    /// A publisher on the same connection with a channel of its own: what closes one channel leaves the other alone, and where one
    /// message alone was sent, it is that message that is wrong. The channel ends when this is gone and what it sent is settled.
    pub fn on_own_channel(&self) -> Self {
        Self { link: Arc::clone(&self.link), line: Arc::default() }
    }

    /// Whether the broker blocks publishing now.
    pub fn blocked(&self) -> Option<Arc<str>> {
        let supervisor = self.link.supervisor.get()?;
        let state = supervisor.state();
        let state = state.borrow();
        state.link().and_then(|link| link.blocked.clone())
    }

    /// The connection; at first need it is opened and waited for.
    async fn connection(&self) -> Result<Link, PublishError> {
        let spawn = async { Supervisor::spawn(self.link.access.clone(), self.link.options.clone()) };
        let supervisor = self.link.supervisor.get_or_init(|| spawn).await;
        let mut state = supervisor.state();
        let first = state.wait_for(|state| !matches!(state, LinkState::Connecting));
        let state = tokio::time::timeout(FIRST_CONNECTION, first).await;
        let Ok(Ok(state)) = state else { return Err(PublishError::Disconnected) };
        match &*state {
            LinkState::Up(Link { blocked: Some(reason), .. }) => {
                Err(PublishError::Blocked(Arc::clone(reason)))
            }
            LinkState::Up(link) => Ok(link.clone()),
            LinkState::Connecting | LinkState::Down(_) => Err(PublishError::Disconnected),
        }
    }

    /// The channel that everything is sent on. Nothing is sent before it is there: if that takes too long, nothing has been.
    async fn line(&self) -> Result<Arc<Line>, PublishError> {
        let unsent = || self.blocked().map_or(PublishError::Disconnected, PublishError::Blocked);
        tokio::time::timeout(PATIENCE, self.open()).await.unwrap_or_else(|_| Err(unsent()))
    }

    async fn open(&self) -> Result<Arc<Line>, PublishError> {
        let link = self.connection().await?;
        let mut held = self.line.lock().await;
        if let Some((generation, line)) = &*held
            && *generation == link.generation
            && line.is_open()
        {
            return Ok(Arc::clone(line));
        }
        let line = Arc::new(Line::open(&link).await.map_err(broken)?);
        *held = Some((link.generation, Arc::clone(&line)));
        Ok(line)
    }

    /// Publishes a copy to the default exchange and waits for the broker's confirm for as long as the channel lives: the broker has been
    /// given it, and a second one would be another message. `missing`: how long a
    /// right that the broker says is missing is so for this one, too.
    ///
    /// # Errors
    /// Why the broker does not have it, or may not have it.
    pub async fn publish(&self, letter: Letter, missing: Duration) -> Outcome {
        let access = self.link.access.borrow().clone();
        if let Some(error) = self.refused_within(missing, &access) {
            return Err(PublishError::Broker(error));
        }
        let outcome = self.line().await?.send_copy(letter, Room::default());
        let outcome = confirmed(outcome, LONGEST_CONFIRM).await;
        match &outcome {
            Ok(()) => *locked(&self.link.refused) = None,
            Err(PublishError::Broker(error @ BrokerError::AccessRefused { .. })) => {
                let missing = Missing { at: Instant::now(), access, error: error.clone() };
                *locked(&self.link.refused) = Some(missing);
            }
            Err(_) => {}
        }
        outcome
    }

    /// The right to write there that was missing lately, for the same user.
    fn refused_within(&self, time: Duration, access: &Arc<BrokerAccess>) -> Option<BrokerError> {
        let refused = locked(&self.link.refused);
        let missing = refused.as_ref().filter(|missing| missing.at.elapsed() < time)?;
        Arc::ptr_eq(&missing.access, access).then(|| missing.error.clone())
    }

    /// Sends one message and gives what waits for the broker's confirm. Messages sent one after another arrive in that order.
    ///
    /// # Errors
    /// Why the message was not sent; the future's are those after that.
    pub async fn send(
        &self,
        letter: Letter,
        room: Room,
    ) -> Result<impl Future<Output = Outcome> + use<>, PublishError> {
        Ok(confirmed(self.line().await?.send_whole(letter, room)?, PATIENCE))
    }
}

/// Waits for the outcome of what was sent. Whatever the broker says meanwhile, what was given to the connection is not taken
/// back: it may arrive later.
async fn confirmed(outcome: oneshot::Receiver<Outcome>, patience: Duration) -> Outcome {
    match tokio::time::timeout(patience, outcome).await {
        Ok(Ok(outcome)) => outcome,
        // A line that ends without a word took the message with it, or never sent it.
        Ok(Err(_)) => Err(PublishError::Disconnected),
        Err(_) => Err(PublishError::TimedOut),
    }
}

pub(super) fn broken(error: BrokerError) -> PublishError {
    match error {
        BrokerError::Closed { .. } | BrokerError::Unreadable { .. } => PublishError::Disconnected,
        other => PublishError::Broker(other),
    }
}

#[cfg(test)]
mod tests {
    use warren_broker::lapin::BasicProperties;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_right_that_is_missing_for_a_copy_is_asked_for_again_after_a_while_and_by_none_before() {
        warren_broker::install_crypto_provider();
        let access = || Arc::new(BrokerAccess::from_uri("amqp://u:p@127.0.0.1:1/").unwrap());
        let (accesses, follows) = watch::channel(access());
        let publisher = Publisher::new(follows, ConnectOptions::named("test"));
        let error = BrokerError::AccessRefused { detail: "amq.default".to_owned() };
        let refuse = |access| {
            let missing = Missing { at: Instant::now(), access, error: error.clone() };
            *locked(&publisher.link.refused) = Some(missing);
        };
        let publish = async |publisher: &Publisher, missing| {
            let letter = Letter {
                exchange: "".into(),
                routing_key: "q".into(),
                properties: BasicProperties::default(),
                body: Default::default(),
            };
            publisher.publish(letter, missing).await
        };
        refuse(accesses.borrow().clone());
        let refused = Err(PublishError::Broker(error.clone()));
        assert_eq!(publish(&publisher.on_own_channel(), COPY_REFUSED).await, refused);
        assert_eq!(publish(&publisher, REPLY_REFUSED).await, refused);
        let asked = Err(PublishError::Disconnected);
        tokio::time::advance(REPLY_REFUSED).await;
        assert_eq!(publish(&publisher, REPLY_REFUSED).await, asked);
        assert_eq!(publish(&publisher, COPY_REFUSED).await, refused);
        accesses.send_replace(access());
        assert_eq!(publish(&publisher, COPY_REFUSED).await, asked, "another user may have it");
        refuse(accesses.borrow().clone());
        tokio::time::advance(COPY_REFUSED).await;
        assert_eq!(publish(&publisher, COPY_REFUSED).await, asked);
    }
}
