//! One channel in confirm mode, and the task that sends on it and sorts out what becomes of each message.

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use warren_broker::connect::ConnectOptions;
use warren_broker::lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use warren_broker::lapin::types::ShortString;
use warren_broker::lapin::{BasicProperties, Channel, Confirmation, Connection, Error};

use super::publisher::{PublishError, broken};
use super::returns::{Identity, Ledger, Strange, Verdict};
use crate::copy::fitting;

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
}

/// How a publish ended.
pub type Outcome = Result<(), PublishError>;

struct Job {
    letter: Letter,
    done: oneshot::Sender<Outcome>,
}

/// A channel that publishes. The task ends when this is gone and everything sent is settled, or with the channel.
#[derive(Debug)]
pub struct Line {
    channel: Channel,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Line {
    /// Opens a channel on a connection.
    ///
    /// # Errors
    /// Why there is no channel.
    pub async fn open(connection: &Connection) -> Result<Self, Error> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (jobs, inbox) = mpsc::unbounded_channel();
        // Over a small frame the broker ends the connection, and the next one has the largest that the broker takes.
        let largest =
            Some(connection.configuration().frame_max()).filter(|frame| *frame > ConnectOptions::SMALL_FRAME);
        tokio::spawn(work(channel.clone(), inbox, largest.and_then(|frame| usize::try_from(frame).ok())));
        Ok(Self { channel, jobs })
    }

    /// Whether the channel still works.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected() && !self.jobs.is_closed()
    }

    /// Sends a message after all that were sent before; the receiver gets its outcome, or nothing if the channel ends.
    pub fn send(&self, letter: Letter) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        // A task that has ended drops the job, and its sender with it.
        let _ = self.jobs.send(Job { letter, done });
        outcome
    }
}

/// The messages in flight, and who waits for each.
#[derive(Default)]
struct Flight {
    ledger: Ledger,
    waiting: std::collections::HashMap<u64, oneshot::Sender<Outcome>>,
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
                return Err(match (broken(&error), self.ledger.len()) {
                    (PublishError::Broker(error), 2..) => PublishError::OfAnother(error),
                    (error, _) => error,
                });
            }
        };
        let returned = returned.map(|message| Identity {
            exchange: message.delivery.exchange,
            routing_key: message.delivery.routing_key,
            message_id: message.delivery.properties.message_id().clone(),
            body: message.delivery.data.into(),
        });
        self.ledger.confirmed(number, acked, returned.as_ref()).map_err(|Strange| {
            tracing::error!(
                ?returned,
                "the broker gave a message back that was not sent: what is in flight is sent again"
            );
            PublishError::Disconnected
        })
    }

    /// Tells everybody whose message's fate is certain.
    fn tell(&mut self) {
        for (number, verdict) in self.ledger.decide() {
            self.end(
                number,
                match verdict {
                    Verdict::Stored => Ok(()),
                    Verdict::Unroutable => Err(PublishError::Unroutable),
                    Verdict::Refused => Err(PublishError::Refused),
                },
            );
        }
    }

    fn end(&mut self, number: u64, outcome: Outcome) {
        if let Some(done) = self.waiting.remove(&number) {
            // Whoever asked may have given up.
            let _ = done.send(outcome);
        }
    }
}

/// `largest`: bytes of the largest frame, where properties must be made to fit.
async fn work(channel: Channel, mut inbox: mpsc::UnboundedReceiver<Job>, largest: Option<usize>) {
    let (mut flight, mut sending) = (Flight::default(), FuturesUnordered::new());
    let mut open = true;
    while open || !sending.is_empty() {
        tokio::select! {
            job = inbox.recv(), if open => match job {
                Some(Job { letter, done }) => {
                    let Letter { exchange, routing_key, properties, body } = letter;
                    let number = flight.ledger.sent(Identity {
                        exchange: exchange.clone(),
                        routing_key: routing_key.clone(),
                        message_id: properties.message_id().clone(),
                        body: body.clone(),
                    });
                    flight.waiting.insert(number, done);
                    let properties = match largest {
                        Some(frame) => fitting(properties, frame),
                        None => properties,
                    };
                    let channel = &channel;
                    let mut publishing = Box::pin(async move {
                        let options = BasicPublishOptions { mandatory: true, immediate: false };
                        let confirm = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
                        (number, match confirm {
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
                None => open = false,
            },
            Some((number, result)) = sending.next() => {
                let mut noted = flight.note(number, result);
                // Confirms that came before this one may not have had their turn yet: those that are ready are all taken in,
                // twice, because the first time around may stop early to let others run.
                for _ in 0..2 {
                    while let Some(Some((number, result))) = sending.next().now_or_never() {
                        let ended = flight.note(number, result);
                        noted = noted.and(ended);
                    }
                }
                if noted.is_ok() {
                    flight.tell();
                }
                if let Err(error) = noted {
                    for (_, done) in flight.waiting.drain() {
                        let _ = done.send(Err(error.clone()));
                    }
                    // A channel that is gone already needs no closing.
                    let _ = channel.close(200, "done".into()).now_or_never();
                    return;
                }
            }
        }
    }
    // Nobody publishes here any more, and nothing is in flight.
    let _ = channel.close(200, "done".into()).await;
}
