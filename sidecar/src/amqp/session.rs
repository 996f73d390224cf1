//! The consuming channel: opened anew after each loss, with a generation number of its own.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::{FutureExt, Stream};
use tokio::sync::oneshot;
use warren_broker::declare::queue_name;
use warren_broker::lapin::message::Delivery;
use warren_broker::lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    ChannelFlowOptions, QueueDeclareOptions,
};
use warren_broker::lapin::types::FieldTable;
use warren_broker::lapin::{Channel, Consumer};
use warren_broker::supervisor::Link;
use warren_broker::{BrokerError, channel};

/// How long the broker may take to answer a request on an open connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is said of a channel that ended without a reason.
const CLOSED: &str = "the channel was closed";
/// How long is waited for the broker to say that it has read what was sent: whoever asked for a drain has waited for its
/// whole time by then, and a broker that is well answers at once.
const FLUSH: Duration = Duration::from_secs(2);

/// A channel to consume on.
#[derive(Debug)]
pub struct Session {
    /// The channel's number.
    pub generation: u64,
    channel: Channel,
    consumer: Option<Consumer>,
    cancelled: bool,
}

/// What the consumer's stream says.
#[derive(Debug)]
pub enum Arrival {
    /// A message.
    Message(Box<Delivery>),
    /// The consumer has ended as asked; nothing more comes.
    Cancelled,
    /// The broker cancelled the consumer, or the channel has ended.
    Lost(String),
}

/// Opens a channel and checks, without declaring anything, that the queue is there.
///
/// # Errors
/// Why there is no channel; [`BrokerError::NotFound`] if the queue is missing.
pub async fn open(link: &Link, queue: &str) -> Result<Channel, BrokerError> {
    let queue = queue_name(queue)?;
    let opening = async {
        let channel = channel::open(link).await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, options, FieldTable::default()).await?;
        Ok::<_, BrokerError>(channel)
    };
    patiently("the queue", opening).await
}

/// Starts consuming.
///
/// # Errors
/// Why the broker refused; the channel is closed then.
pub async fn consume(channel: Channel, queue: String, prefetch: u16) -> Result<Consumer, BrokerError> {
    let queue = queue_name(&queue)?;
    let consuming = async {
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue, "".into(), options, FieldTable::default()).await
    };
    patiently("consuming", consuming).await
}

async fn patiently<T, E: Into<BrokerError>>(
    what: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(BrokerError::TimedOut { what, seconds: PATIENCE.as_secs() }),
    }
}

impl Session {
    /// A session on an open channel.
    pub fn new(generation: u64, channel: Channel) -> Self {
        Self { generation, channel, consumer: None, cancelled: false }
    }

    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether the channel still works.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// The consumer that was started on this channel.
    pub fn set_consumer(&mut self, consumer: Consumer) {
        self.consumer = Some(consumer);
        self.cancelled = false;
    }

    /// Cancels the consumer. The frame is queued before this returns, so what is given back afterwards is not delivered
    /// here again; the end shows on the stream.
    pub fn cancel(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        self.cancelled = true;
        let (channel, tag) = (self.channel.clone(), consumer.tag());
        let mut cancelling =
            Box::pin(async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await });
        if (&mut cancelling).now_or_never().is_none() {
            tokio::spawn(cancelling);
        }
    }

    /// Queues an acknowledgement; false if the channel is gone.
    pub fn ack(&self, tag: u64, multiple: bool) -> bool {
        // The frame is queued by the first poll. Waiting until it is written would cost a round through the I/O thread each.
        let sent = self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
        !matches!(sent, Some(Err(_)))
    }

    /// Queues a return to the queue; false if the channel is gone.
    pub fn nack(&self, tag: u64) -> bool {
        let options = BasicNackOptions { multiple: false, requeue: true };
        !matches!(self.channel.basic_nack(tag, options).now_or_never(), Some(Err(_)))
    }

    /// The next thing from the consumer.
    pub fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        let Some(consumer) = &mut self.consumer else { return Poll::Pending };
        match Pin::new(consumer).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(delivery))) => Poll::Ready(Arrival::Message(Box::new(delivery))),
            Poll::Ready(Some(Err(error))) => {
                self.consumer = None;
                Poll::Ready(Arrival::Lost(BrokerError::from(error).to_string()))
            }
            Poll::Ready(None) => {
                self.consumer = None;
                Poll::Ready(match (self.is_open(), self.cancelled) {
                    (true, true) => Arrival::Cancelled,
                    (true, false) => Arrival::Lost(
                        "the broker cancelled the consumer: the queue was deleted or its node is gone"
                            .to_owned(),
                    ),
                    (false, _) => Arrival::Lost(CLOSED.to_owned()),
                })
            }
        }
    }

    /// Why the channel was closed, which the broker tells the consumer. What it delivered before is its own again.
    pub fn why_closed(&mut self) -> String {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match self.poll_arrival(&mut context) {
                Poll::Ready(Arrival::Message(_)) => {}
                Poll::Ready(Arrival::Lost(reason)) => return reason,
                Poll::Ready(Arrival::Cancelled) | Poll::Pending => return CLOSED.to_owned(),
            }
        }
    }
}

/// Closes a channel and waits until the broker has taken that in, and with it everything that was sent on it before.
pub async fn close(session: Session) {
    // A broker that says nothing will find out by itself.
    let _ = tokio::time::timeout(FLUSH, session.channel.close(200, "done".into())).await;
}

/// Closes a channel and waits until what it held is the broker's again, and tells whether the broker was silent. `done` tells when whoever
/// waits for a drain has waited for long enough.
pub async fn hand_back(session: Session, done: oneshot::Sender<()>) -> bool {
    let closing = patiently("the channel's end", session.channel.close(200, "done".into()));
    let mut closing = std::pin::pin!(closing);
    let early = tokio::time::timeout(FLUSH, &mut closing).await;
    // Nobody may wait.
    let _ = done.send(());
    let result = match early {
        Ok(result) => result,
        Err(_) => closing.await,
    };
    matches!(result, Err(BrokerError::TimedOut { .. }))
}

/// Waits until the broker has read everything that was sent on the channel before: it answers in order. It is asked for
/// what is so already, since a consumer may be started on the channel meanwhile.
pub async fn flush(channel: Channel) {
    let flow = channel.channel_flow(ChannelFlowOptions { active: true });
    // Whether it works or not, there is nothing more to be done for what was sent.
    let _ = tokio::time::timeout(FLUSH, flow).await;
}

/// Closes a channel that is of no more use, if it is not gone already.
pub fn discard(session: Session) {
    tokio::spawn(close(session));
}
