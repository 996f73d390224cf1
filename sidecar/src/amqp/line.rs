//! One channel in confirm mode, and the task that sends on it and sorts out what becomes of each message.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use warren_broker::lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use warren_broker::lapin::types::ShortString;
use warren_broker::lapin::{BasicProperties, Channel, Confirmation, Error};
use warren_broker::supervisor::Link;
use warren_broker::{BrokerError, channel};

use super::publisher::{PublishError, broken};
use super::returns::{Identity, Ledger, Strange, Verdict};
use crate::copy::{fits, fitting};

/// What the names begin with that the broker gives to requesters who take their replies directly
/// (<https://www.rabbitmq.com/docs/direct-reply-to>).
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to.";

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The exchange; empty: the default one.
    pub exchange: ShortString,
    /// The routing key.
    pub routing_key: ShortString,
    /// Properties and headers.
    pub properties: BasicProperties,
    /// The payload.
    pub body: Bytes,
}

impl Letter {
    /// The id that the message has; empty if it has none.
    pub fn message_id(&self) -> &str {
        self.properties.message_id().as_ref().map_or("", |id| id.as_str())
    }

    /// Whether the broker is to give it back where no queue takes it. A direct reply goes to no queue: until RabbitMQ 4.1 the
    /// broker hands it over and gives it back as well.
    fn is_mandatory(&self) -> bool {
        !(self.exchange.as_str().is_empty() && self.routing_key.as_str().starts_with(DIRECT_REPLY))
    }
}

/// What a message takes of its sender's room, whether anybody still waits for it or not.
#[derive(Debug, Default)]
pub struct Room {
    /// For its bytes, until they are written.
    pub bytes: Option<Arc<OwnedSemaphorePermit>>,
    /// For the message itself, until its fate is known: a queue may confirm nothing for days.
    pub place: Option<OwnedSemaphorePermit>,
}

/// How a publish ended.
pub type Outcome = Result<(), PublishError>;

struct Job {
    letter: Letter,
    room: Room,
    done: oneshot::Sender<Outcome>,
}

/// A channel that publishes. The task ends when this is gone and everything sent is settled, or with the channel.
#[derive(Debug)]
pub struct Line {
    channel: Channel,
    jobs: mpsc::UnboundedSender<Job>,
    /// The frame in bytes that properties must fit.
    largest: Option<usize>,
}

impl Line {
    /// Opens a channel on a connection.
    ///
    /// # Errors
    /// Why there is no channel.
    pub async fn open(link: &Link) -> Result<Self, BrokerError> {
        let channel = channel::open(link).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (jobs, inbox) = mpsc::unbounded_channel();
        let largest = link.frame.and_then(|frame| usize::try_from(frame).ok());
        tokio::spawn(work(channel.clone(), inbox));
        Ok(Self { channel, jobs, largest })
    }

    /// Whether the channel still works.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected() && !self.jobs.is_closed()
    }

    /// Sends a copy, without what does not fit a frame of its properties.
    pub fn send_copy(&self, letter: Letter, room: Room) -> oneshot::Receiver<Outcome> {
        let properties = match self.largest {
            Some(frame) => fitting(letter.properties, frame),
            None => letter.properties,
        };
        self.send(Letter { properties, ..letter }, room)
    }

    /// Sends a message as it is.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`] if its properties do not fit a frame: the broker would end the connection.
    pub fn send_whole(&self, letter: Letter, room: Room) -> Result<oneshot::Receiver<Outcome>, PublishError> {
        match self.largest {
            Some(frame) if !fits(&letter.properties, frame) => Err(PublishError::TooLarge { frame }),
            _ => Ok(self.send(letter, room)),
        }
    }

    /// Sends a message after all that were sent before; the receiver gets its outcome, or nothing if the channel ends.
    fn send(&self, letter: Letter, room: Room) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        // A task that has ended drops the job, and its sender with it.
        let _ = self.jobs.send(Job { letter, room, done });
        outcome
    }
}

/// Who waits for a message, and the place that it takes.
struct Waiting {
    done: oneshot::Sender<Outcome>,
    _place: Option<OwnedSemaphorePermit>,
}

/// The messages in flight, and who waits for each.
#[derive(Default)]
struct Flight {
    ledger: Ledger,
    /// Whether the broker has given back what was not sent, so that the ledger knows of no message what became of it.
    strange: bool,
    waiting: HashMap<u64, Waiting>,
}

impl Flight {
    /// Notes how one message ended; an error is the channel's end.
    fn note(&mut self, number: u64, result: Result<Confirmation, Error>) -> Result<(), PublishError> {
        let (acked, returned) = match result {
            Ok(Confirmation::Ack(returned)) => (true, returned),
            Ok(Confirmation::Nack(returned)) => (false, returned),
            Ok(Confirmation::NotRequested) => (false, None),
            // The broker closes a channel over one message. Which one, it says to a message that was alone.
            Err(error) => {
                return Err(match (broken(error.into()), self.ledger.len()) {
                    (PublishError::Broker(error), 2..) => PublishError::OfAnother(error),
                    (error, _) => error,
                });
            }
        };
        let returned = returned.map(|message| {
            let id = message.delivery.properties.message_id().clone();
            Identity::of(message.delivery.exchange, message.delivery.routing_key, id, &message.delivery.data)
        });
        self.ledger.confirmed(number, acked, returned.as_ref()).map_err(|Strange| {
            tracing::error!(
                ?returned,
                "the broker gave a message back that was not sent: what is in flight is sent again"
            );
            self.strange = true;
            PublishError::Disconnected
        })
    }

    /// Tells everybody whose message's fate is certain.
    fn tell(&mut self) {
        if self.strange {
            return;
        }
        for (number, verdict) in self.ledger.decide() {
            let outcome = match verdict {
                Verdict::Stored => Ok(()),
                Verdict::Unroutable => Err(PublishError::Unroutable),
                Verdict::Refused => Err(PublishError::Refused),
            };
            self.end(number, outcome);
        }
    }

    /// Tells everybody whose message's fate is certain, and where the channel has ended the others of that: what the broker has
    /// confirmed before must not be sent again.
    fn settle(&mut self, noted: Result<(), PublishError>) -> Result<(), PublishError> {
        self.tell();
        noted.inspect_err(|error| {
            for (_, waiting) in self.waiting.drain() {
                let _ = waiting.done.send(Err(error.clone()));
            }
        })
    }

    fn end(&mut self, number: u64, outcome: Outcome) {
        if let Some(waiting) = self.waiting.remove(&number) {
            // Whoever asked may have given up.
            let _ = waiting.done.send(outcome);
        }
    }

    /// Ends when nobody waits for any message any more.
    async fn abandoned(&mut self) {
        join_all(self.waiting.values_mut().map(|waiting| waiting.done.closed())).await;
    }
}

async fn work(channel: Channel, mut inbox: mpsc::UnboundedReceiver<Job>) {
    let (mut flight, mut sending) = (Flight::default(), FuturesUnordered::new());
    // Held by each message until it is written, and by the line itself while more may come.
    let (writing, mut written) = mpsc::channel::<Infallible>(1);
    let mut writing = Some(writing);
    let mut open = true;
    while open || !sending.is_empty() {
        tokio::select! {
            job = inbox.recv(), if open => match job {
                Some(Job { letter, room, done }) => {
                    let mandatory = letter.is_mandatory();
                    let Letter { exchange, routing_key, properties, body } = letter;
                    let Room { bytes, place } = room;
                    let id = properties.message_id().clone();
                    let identity = Identity::of(exchange.clone(), routing_key.clone(), id, &body);
                    let number = flight.ledger.sent(identity);
                    flight.waiting.insert(number, Waiting { done, _place: place });
                    let (channel, writing) = (&channel, writing.clone());
                    let mut publishing = Box::pin(async move {
                        let options = BasicPublishOptions { mandatory, immediate: false };
                        let sent = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
                        // Written: nothing of it is needed for the confirm.
                        drop((body, bytes, writing));
                        (number, match sent {
                            Ok(confirm) => confirm.await,
                            Err(error) => Err(error),
                        })
                    });
                    // The first poll queues the frames, so that messages are sent in the order of the jobs.
                    match (&mut publishing).now_or_never() {
                        Some(ended) => sending.push(futures::future::ready(ended).left_future()),
                        None => sending.push(publishing.right_future()),
                    }
                }
                None => {
                    open = false;
                    writing = None;
                }
            },
            // A channel of one message that is not confirmed ends with whoever waits for it. Its end would overtake what is not
            // written yet, and the broker ends the connection over a message on a channel that is closed.
            () = async { written.recv().await; flight.abandoned().await }, if !open => break,
            Some((number, result)) = sending.next() => {
                let mut noted = flight.note(number, result);
                // Confirms that came before this one may not have had their turn yet: those that are ready are all taken in,
                // twice, because the first time around may stop early to let others run.
                for _ in 0..2 {
                    while let Some(Some((number, result))) = sending.next().now_or_never() {
                        noted = noted.and(flight.note(number, result));
                    }
                }
                if flight.settle(noted).is_err() {
                    // A channel that is gone already needs no closing.
                    let _ = channel.close(200, "done".into()).now_or_never();
                    return;
                }
            }
        }
    }
    // Nobody publishes here any more, and nobody waits for what is in flight.
    let _ = channel.close(200, "done".into()).await;
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use warren_broker::lapin::ErrorKind;
    use warren_broker::lapin::protocol::{AMQPError, AMQPErrorKind, AMQPSoftError};

    use super::*;

    #[test]
    fn what_was_confirmed_before_the_channel_ended_over_another_message_is_stored() {
        let mut flight = Flight::default();
        let mut sent = || {
            let identity = Identity::of("t".into(), "k".into(), None, &Bytes::from_static(b"x"));
            let (done, outcome) = oneshot::channel();
            let number = flight.ledger.sent(identity);
            flight.waiting.insert(number, Waiting { done, _place: None });
            (number, outcome)
        };
        let ((first, mut stored), (second, mut refused)) = (sent(), sent());
        let noted = flight.note(first, Ok(Confirmation::Ack(None)));
        let kind = AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
        let closed = ErrorKind::ProtocolError(AMQPError::new(kind, "access to topic".into())).into();
        let ended = flight.note(second, Err(closed));
        assert!(flight.settle(noted.and(ended)).is_err());
        assert!(matches!(stored.try_recv(), Ok(Ok(()))));
        assert!(matches!(refused.try_recv(), Ok(Err(_))));
    }
}
