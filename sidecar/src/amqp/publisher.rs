//! The publishing connection: opened at first need, every message mandatory and confirmed, confirms pipelined.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OnceCell, watch};
use warren_broker::lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use warren_broker::lapin::types::ShortString;
use warren_broker::lapin::{BasicProperties, Channel, Confirmation, Connection, Error};
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError};

use warren_broker::connect::ConnectOptions;

/// How long a confirm may take.
const PATIENCE: Duration = Duration::from_secs(30);
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
    #[error("the broker did not confirm within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// The broker closed the channel over it.
    #[error("{0}")]
    Broker(BrokerError),
}

/// Publishes over a connection of its own. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Inner>,
    /// The channel, and the connection's generation that it is on.
    channel: Arc<Mutex<Option<(u64, Channel)>>>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

struct Inner {
    access: watch::Receiver<Arc<BrokerAccess>>,
    options: ConnectOptions,
    supervisor: OnceCell<Supervisor>,
}

impl Publisher {
    /// A publisher that connects when it first has something to publish.
    pub fn new(access: watch::Receiver<Arc<BrokerAccess>>, options: ConnectOptions) -> Self {
        let link = Inner { access, options, supervisor: OnceCell::new() };
        Self { link: Arc::new(link), channel: Arc::default() }
    }

    /// A publisher on the same connection with a channel of its own: what closes one channel leaves the other alone.
    pub fn on_own_channel(&self) -> Self {
        Self { link: Arc::clone(&self.link), channel: Arc::default() }
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
            LinkState::Connecting | LinkState::Down { .. } => Err(PublishError::Disconnected),
        }
    }

    /// A channel in confirm mode.
    async fn channel(&self) -> Result<Channel, PublishError> {
        let link = self.connection().await?;
        let mut held = self.channel.lock().await;
        if let Some((generation, channel)) = &*held
            && *generation == link.generation
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let channel = confirming(&link.connection).await.map_err(|error| broken(&error))?;
        *held = Some((link.generation, channel.clone()));
        Ok(channel)
    }

    /// Publishes one message and waits for the broker's confirm.
    ///
    /// # Errors
    /// Why the broker does not have it, or may not have it.
    pub async fn publish(
        &self,
        exchange: ShortString,
        routing_key: ShortString,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        self.send(exchange, routing_key, properties, body).await?.await
    }

    /// Sends one message and gives what waits for the broker's confirm. Messages sent one after another arrive in that order.
    ///
    /// # Errors
    /// Why the message was not sent; the future's are those of [`publish`](Self::publish).
    pub async fn send(
        &self,
        exchange: ShortString,
        routing_key: ShortString,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<impl Future<Output = Result<(), PublishError>> + use<>, PublishError> {
        let channel = self.channel().await?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let sending = channel.basic_publish(exchange, routing_key, options, body, properties);
        let confirm = self.in_time(sending).await?;
        let publisher = self.clone();
        Ok(async move {
            match publisher.in_time(confirm).await? {
                Confirmation::Ack(None) => Ok(()),
                Confirmation::Ack(Some(_)) => Err(PublishError::Unroutable),
                Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused),
            }
        })
    }

    async fn in_time<T>(&self, step: impl Future<Output = Result<T, Error>>) -> Result<T, PublishError> {
        match tokio::time::timeout(PATIENCE, step).await {
            Ok(result) => result.map_err(|error| broken(&error)),
            Err(_) => Err(self.blocked().map_or(PublishError::TimedOut, PublishError::Blocked)),
        }
    }

    /// Checks on a channel of its own that an exchange is there: publishing to a missing one would close the channel under
    /// everything else that is being published.
    ///
    /// # Errors
    /// [`PublishError::Broker`] with [`BrokerError::NotFound`] if it is missing.
    pub async fn check_exchange(&self, exchange: ShortString) -> Result<(), PublishError> {
        use warren_broker::lapin::ExchangeKind;
        use warren_broker::lapin::options::ExchangeDeclareOptions;
        let link = self.connection().await?;
        let check = async {
            let channel = link.connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(exchange, ExchangeKind::Direct, options, Default::default()).await?;
            channel.close(200, "checked".into()).await
        };
        self.in_time(check).await
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

fn broken(error: &Error) -> PublishError {
    match BrokerError::from_lapin(error) {
        BrokerError::Closed { .. } => PublishError::Disconnected,
        other => PublishError::Broker(other),
    }
}
