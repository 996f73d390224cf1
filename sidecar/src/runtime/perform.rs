//! Performing effects, and what comes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_api::names;
use warren_broker::BrokerError;

use super::Runtime;
use crate::amqp::line::{Letter, Outcome};
use crate::amqp::publisher::{COPY_REFUSED, PublishError, REPLY_REFUSED};
use crate::amqp::session;
use crate::copy;
use crate::core::{
    Copy, DeliveryId, Effect, Event, LateReply, Observation, PublishResult, Seen, Target, is_misconfigured,
};
use crate::inbox::Inbox;
use crate::message::fresh_id;

impl Runtime {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Subscribe { generation, prefetch } => self.subscribe(generation, prefetch),
            Effect::Unsubscribe { .. } => {
                if let Some(session) = &mut self.session {
                    session.cancel();
                }
            }
            Effect::Call { call, deliveries } => self.call(call, &deliveries),
            Effect::Ack { id, multiple, count } => {
                self.metrics.ack_batch.observe(f64::from(count));
                self.settle(id, |session| session.ack(id.tag, multiple));
            }
            Effect::Nack { id } => self.settle(id, |session| session.nack(id.tag)),
            Effect::HandBack { generation } => self.hand_back(generation),
            Effect::Publish { id, copy, again } => self.publish(id, &copy, again),
            Effect::Forget { id } => {
                self.messages.remove(&id);
                self.replies.remove(&id);
                self.ids.remove(&id);
            }
            Effect::ForgetAll { generation } => {
                self.messages.retain(|id, _| id.generation != generation);
                self.replies.retain(|id, _| id.generation != generation);
                self.ids.retain(|id, _| id.generation != generation);
            }
            Effect::ProbeHandler { after } => self.probe(after),
            Effect::Drained { complete } => self.drained(complete),
            Effect::Exit => self.exit = true,
            Effect::Late(reply) => self.late_reply = Some(reply),
            Effect::Observe(observation) => {
                self.metrics.observe(&observation);
                self.log(&observation);
            }
        }
    }

    pub(super) fn receive(&mut self, message: Inbox) {
        match message {
            Inbox::Called(done) => self.called(done),
            Inbox::Published { id, result, refusal } => {
                if let Some((queue, error)) = refusal
                    && let Some(times) = self.repeats.news(&format!("{queue} {error}"), Instant::now())
                {
                    tracing::warn!(queue, %error, times, "the broker does not take a copy");
                }
                self.step(Event::Published { id, result });
            }
            Inbox::Port { seen } => self.step(Event::HandlerPort { seen }),
            Inbox::Opened { link, result } => self.opened(&link, result),
            Inbox::HandedBack { link, silent } => self.handed_back(&link, silent),
            Inbox::Consuming { generation, result } => self.consuming(generation, result),
            Inbox::Drain(reply) => {
                self.drains.push(reply);
                self.step(Event::Drain);
            }
            Inbox::Terminate => self.step(Event::Terminate),
            Inbox::Abandon => self.exit = true,
            Inbox::LateAnswer { id, verdict, body, reply } => {
                // What is refused must not put its reply in the place of the one that was accepted.
                let verdict = match self.engine.late_state(id) {
                    LateReply::Accepted => self.late_verdict(id, verdict, body),
                    LateReply::Ended | LateReply::Unknown => verdict,
                };
                self.step(Event::LateAnswer { id, verdict });
                if let Some(answer) = self.late_reply.take() {
                    // The application may have hung up.
                    let _ = reply.send(answer);
                }
            }
            Inbox::Extend { id, reply } => {
                self.step(Event::Extended { id });
                if let Some(answer) = self.late_reply.take() {
                    if answer == LateReply::Accepted {
                        self.metrics.extensions.inc();
                    }
                    let _ = reply.send(answer);
                }
            }
            Inbox::Status(reply) => {
                let _ = reply.send(self.engine.snapshot());
            }
        }
    }

    fn subscribe(&self, generation: u64, prefetch: u16) {
        let Some(session) = self.session.as_ref().filter(|session| session.generation == generation) else {
            return;
        };
        let (channel, queue, sender) =
            (session.channel().clone(), self.config.queue.name.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = session::consume(channel, queue, prefetch).await;
            // Without a loop there is nobody to tell.
            let _ = sender.send(Inbox::Consuming { generation, result });
        });
    }

    /// Sends an acknowledgement or a return, but only on the channel that delivered.
    fn settle(&self, id: DeliveryId, send: impl FnOnce(&session::Session) -> bool) {
        let sent = match &self.session {
            Some(session) if session.generation == id.generation => send(session),
            Some(_) | None => false,
        };
        if !sent {
            self.metrics.stale_acks.inc();
        }
    }

    /// Publishes a copy; its confirm comes back through the inbox. One that was not taken goes alone: the broker may close the
    /// channel over it, and so under others.
    fn publish(&mut self, id: DeliveryId, copy: &Copy, again: bool) {
        let Some(message) = self.messages.get(&id).cloned() else { return };
        let queue = &self.config.queue.name;
        let target = match copy {
            Copy::Retry { delay_seconds: Some(seconds), .. } => names::retry_queue(queue, *seconds),
            Copy::Retry { delay_seconds: None, .. } => queue.clone(),
            Copy::Dead { reason, detail, .. } => {
                if !again {
                    let reason = reason.as_str();
                    tracing::info!(id = message.id(), reason, detail, "a message is to be dead-lettered");
                }
                names::dead_letter_queue(queue)
            }
            Copy::Reply => {
                message.properties.reply_to().as_ref().map(ToString::to_string).unwrap_or_default()
            }
        };
        let (publisher, properties, body) = match copy {
            Copy::Reply => {
                let reply = self.replies.get(&id).cloned().unwrap_or_default();
                let reply_id = self.ids.entry(id).or_insert_with(fresh_id);
                (&self.replier, copy::reply_properties(&message, &reply, reply_id), reply.body)
            }
            Copy::Retry { .. } | Copy::Dead { .. } => {
                let copy_id = || self.ids.entry(id).or_insert_with(fresh_id).clone();
                let properties = copy::properties(&message, copy, queue, copy_id);
                (&self.publisher, properties, message.body.clone())
            }
        };
        let letter = Letter { exchange: "".into(), routing_key: copy::short(&target), properties, body };
        let place = if again { Arc::clone(&self.alone).try_acquire_owned().ok() } else { None };
        let publisher = if place.is_some() { publisher.on_own_channel() } else { publisher.clone() };
        let missing = if *copy == Copy::Reply { REPLY_REFUSED } else { COPY_REFUSED };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let (result, refusal) = result_of(publisher.publish(letter, missing).await, target);
            drop(place);
            // Without a loop there is nobody to tell.
            let _ = sender.send(Inbox::Published { id, result, refusal });
        });
    }

    fn probe(&self, after: Duration) {
        let (endpoint, sender) = (Arc::clone(self.pool.endpoint()), self.sender.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let seen = match endpoint.connect().await {
                Ok(_) => Seen::Accepting,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Seen::Refusing,
                Err(_) => Seen::Silent,
            };
            let _ = sender.send(Inbox::Port { seen });
        });
    }

    /// Answers those who asked for the drain once the broker has read every acknowledgement.
    fn drained(&mut self, complete: bool) {
        let waiting = std::mem::take(&mut self.drains);
        let channel = self.session.as_ref().map(|session| session.channel().clone());
        let closed = self.opening.closed();
        while self.drained.try_join_next().is_some() {}
        self.drained.spawn(async move {
            // Both end in time, also if the broker says nothing.
            if let Some(closed) = closed {
                let _ = closed.await;
            }
            if let Some(channel) = channel {
                session::flush(channel).await;
            }
            for reply in waiting {
                // Whoever asked may be gone.
                let _ = reply.send(complete);
            }
        });
    }

    fn log(&mut self, observation: &Observation) {
        // Most observations are of a settled message, and log nothing.
        let url = || self.pool.endpoint().url();
        match observation {
            Observation::Settled(_) | Observation::LateEnded { .. } | Observation::Unacknowledged { .. } => {}
            Observation::Stale => tracing::info!(
                "an answer came too late: its connection is gone and the broker delivers the message again"
            ),
            Observation::Unpublished { result, target } => {
                let queue = match target {
                    Target::Retry => format!("{}.retry.*", self.config.queue.name),
                    Target::DeadLetter => names::dead_letter_queue(&self.config.queue.name),
                    Target::Reply => "reply_to".to_owned(),
                };
                // Each message that a full queue keeps waiting comes again and again.
                if let Some(times) = self.repeats.news(&format!("{queue} {result:?}"), Instant::now()) {
                    tracing::warn!(
                        queue,
                        ?result,
                        times,
                        "a copy was not taken: the message stays unacknowledged and is tried again"
                    );
                }
            }
            Observation::ReplyDropped { id: _, result } => tracing::warn!(
                ?result,
                "a reply was given up: its reply_to queue is gone, full or not to be published to. The message is acknowledged, since its work is done"
            ),
            Observation::Unreadable => tracing::error!(
                queue = %self.config.queue.name,
                "the connection has ended over a message that cannot be read: most likely a property, the routing key or a header's name is no UTF-8. One message at a time is taken for a while, so that the queue's delivery limit takes out that one alone. A classic queue has no such limit: take it out by hand"
            ),
            Observation::HandlerDown => {
                tracing::warn!(url = url(), "the handler does not accept connections: consuming is held");
            }
            Observation::HandlerUp => tracing::info!(url = url(), "the handler accepts connections"),
            Observation::BreakerOpened { status: Some(status) } if is_misconfigured(*status) => {
                tracing::error!(
                    url = url(),
                    status,
                    "the handler refuses nearly every call: its path, method or permissions are wrong. Consuming is held"
                );
            }
            Observation::BreakerOpened { status } => {
                tracing::error!(
                    url = url(),
                    status,
                    "nearly every call fails: consuming is held, no attempts are counted, and one message at a time is tried"
                );
            }
            Observation::BreakerClosed => {
                tracing::info!(url = url(), "a call has succeeded: consuming goes on");
            }
            Observation::DrainBegan => tracing::info!("draining: nothing new is taken, what runs may end"),
            Observation::DrainEnded { took, complete: true } => tracing::info!(?took, "drained"),
            Observation::DrainEnded { took, complete: false } => {
                tracing::warn!(?took, "the drain's time is over with work still running");
            }
            Observation::DrainReversed => tracing::info!("the application lives on: the drain is taken back"),
            Observation::TerminatedUndrained => tracing::warn!("SIGTERM came without a drain before it"),
            Observation::HeldLong { id, held, count } => {
                tracing::warn!(
                    tag = id.tag,
                    ?held,
                    count,
                    "messages are held so long that the broker will soon take everything back: raise consumerTimeoutSeconds of the Queue, answer sooner, or lower consumer.prefetch"
                );
            }
        }
    }
}

/// What became of a copy to a queue, and this and what the broker said where it does not take it.
fn result_of(outcome: Outcome, queue: String) -> (PublishResult, Option<(String, PublishError)>) {
    let Err(error) = outcome else { return (PublishResult::Confirmed, None) };
    tracing::debug!(%queue, %error, "a copy was not published");
    let result = match &error {
        PublishError::Unroutable => PublishResult::Unroutable,
        PublishError::Refused
        | PublishError::TooLarge { .. }
        | PublishError::Broker(BrokerError::AccessRefused { .. } | BrokerError::Precondition { .. }) => {
            PublishResult::Refused
        }
        PublishError::Disconnected
        | PublishError::Blocked(_)
        | PublishError::TimedOut
        | PublishError::Broker(_)
        | PublishError::OfAnother(_) => PublishResult::Failed,
    };
    let refused = matches!(error, PublishError::Broker(_) | PublishError::OfAnother(_));
    (result, refused.then_some((queue, error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_may_have_closed_the_channel_over_is_not_refused_until_it_was_alone() {
        let error = || BrokerError::Precondition { detail: "message size 2 is larger than 1".to_owned() };
        assert_eq!(
            result_of(Err(PublishError::OfAnother(error())), "answers".to_owned()).0,
            PublishResult::Failed
        );
        assert_eq!(
            result_of(Err(PublishError::Broker(error())), "answers".to_owned()).0,
            PublishResult::Refused
        );
    }
}
