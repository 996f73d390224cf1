//! The consuming connection and the channel on it: opened, lost, opened again.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use warren_broker::BrokerError;
use warren_broker::lapin::{Channel, Consumer};
use warren_broker::supervisor::Link;

use super::Runtime;
use crate::amqp::session::{self, Session};
use crate::core::Event;
use crate::core::backoff::Backoff;
use crate::inbox::Inbox;

/// When the next channel is opened.
#[derive(Debug)]
pub(super) struct Opening {
    link: Option<Link>,
    due: Option<Instant>,
    running: bool,
    /// Whether the next channel comes after one that was closed on purpose.
    planned: bool,
    /// Ends when the last channel that was closed on purpose is closed.
    closed: Option<oneshot::Receiver<()>>,
    backoff: Backoff,
    /// What went wrong last, so that it is logged once.
    problem: String,
}

impl Default for Opening {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), rand::random());
        Self {
            link: None,
            due: None,
            running: false,
            planned: false,
            closed: None,
            backoff,
            problem: String::new(),
        }
    }
}

impl Opening {
    /// Ends when a channel should be opened.
    pub(super) async fn due(&self) {
        super::sleep_until(self.due).await;
    }

    /// Whether channels are opened on this connection.
    fn is_on(&self, link: &Link) -> bool {
        self.link.as_ref().is_some_and(|current| current.generation == link.generation)
    }

    /// What ends when the last channel that was closed on purpose is closed, to be waited for once.
    pub(super) fn closed(&mut self) -> Option<oneshot::Receiver<()>> {
        self.closed.take()
    }
}

impl Runtime {
    pub(super) fn link_up(&mut self, link: &Link) {
        if self.opening.is_on(link) {
            return;
        }
        self.lose_session("the connection was replaced");
        self.opening.link = Some(link.clone());
        self.opening.due = Some(Instant::now());
    }

    pub(super) fn link_down(&mut self, reason: &str) {
        self.opening.link = None;
        self.opening.due = None;
        self.opening.planned = false;
        self.lose_session(reason);
    }

    /// Opens a channel if there is a connection and no channel yet.
    pub(super) fn open_session(&mut self) {
        self.opening.due = None;
        let Some(link) = self.opening.link.clone() else { return };
        if self.session.is_some() || self.opening.running {
            return;
        }
        self.opening.running = true;
        let (queue, sender) = (self.config.queue.name.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = session::open(&link, &queue).await;
            // Without a loop there is nobody to tell.
            let _ = sender.send(Inbox::Opened { link, result });
        });
    }

    pub(super) fn opened(&mut self, link: &Link, result: Result<Channel, BrokerError>) {
        self.opening.running = false;
        let current = self.opening.is_on(link);
        match result {
            _ if !current => self.opening.due = self.opening.link.as_ref().map(|_| Instant::now()),
            Ok(channel) => {
                if self.generations > 0 && !std::mem::take(&mut self.opening.planned) {
                    self.metrics.reconnects.inc();
                }
                self.generations += 1;
                let generation = self.generations;
                self.opening.problem.clear();
                tracing::info!(queue = %self.config.queue.name, generation, "ready to consume");
                self.session = Some(Session::new(generation, channel));
                self.metrics.connected.set(1);
                self.health.connected();
                self.step(Event::Opened { generation });
            }
            Err(error) => {
                if matches!(error, BrokerError::TimedOut { .. }) {
                    link.give_up();
                }
                let problem = error.to_string();
                if problem != self.opening.problem {
                    tracing::warn!(queue = %self.config.queue.name, %error, "the queue cannot be consumed yet");
                    self.opening.problem = problem;
                }
                self.opening.due = Some(Instant::now() + self.opening.backoff.pause());
            }
        }
    }

    pub(super) fn consuming(&mut self, generation: u64, result: Result<Consumer, BrokerError>) {
        let Some(session) = self.session.as_mut().filter(|session| session.generation == generation) else {
            return;
        };
        match result {
            Ok(consumer) => {
                session.set_consumer(consumer);
                self.opening.backoff.reset();
                self.step(Event::Subscribed { generation });
            }
            Err(error) => self.lose_session(&error.to_string()),
        }
    }

    /// Gives the channel up, if there is one, and opens another after a pause.
    pub(super) fn lose_session(&mut self, reason: &str) {
        let Some(session) = self.session.take() else { return };
        let generation = session.generation;
        self.metrics.connected.set(0);
        tracing::warn!(queue = %self.config.queue.name, generation, reason, "consuming was interrupted");
        session::discard(session);
        if self.opening.link.is_some() {
            self.opening.due = Some(Instant::now() + self.opening.backoff.pause());
        }
        self.step(Event::Lost { generation });
    }

    /// Closes the channel, whose acknowledgements have been sent, and opens another once the broker has taken it in: the one
    /// must not consume beside the other.
    pub(super) fn hand_back(&mut self, generation: u64) {
        let Some(session) = self.session.take_if(|session| session.generation == generation) else { return };
        tracing::info!(queue = %self.config.queue.name, generation, "what is held goes back to the broker at once, in its order");
        self.metrics.connected.set(0);
        let Some(link) = self.opening.link.clone() else { return };
        let (done, closed) = oneshot::channel();
        self.opening.closed = Some(closed);
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let silent = session::hand_back(session, done).await;
            // Without a loop there is nobody to tell.
            let _ = sender.send(Inbox::HandedBack { link, silent });
        });
    }

    pub(super) fn handed_back(&mut self, link: &Link, silent: bool) {
        if silent {
            link.give_up();
        } else if self.opening.link.is_some() && self.session.is_none() {
            self.opening.planned = true;
            self.opening.due = Some(Instant::now() + self.opening.backoff.pause());
        }
    }

    /// Notices a channel that the broker has closed, such as over its delivery time-out.
    pub(super) fn check_session(&mut self) {
        let Some(session) = self.session.as_mut().filter(|session| !session.is_open()) else { return };
        let reason = session.why_closed();
        self.lose_session(&reason);
    }
}
