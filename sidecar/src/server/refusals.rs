//! What the broker has refused to take of late, and of whom: a channel is closed over one message under all that are in flight on it,
//! and the broker's sentence alone says which. Pure but for the clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use warren_broker::BrokerError;
use warren_broker::lapin::types::ShortString;

use super::publish::EXCHANGES;
use crate::amqp::line::Letter;
use crate::amqp::publisher::PublishError;

/// How long a refusal counts after the first message that met it. Each such message costs a channel, and a connection has 2047 that
/// the broker may close.
const REFUSAL_KNOWN: Duration = Duration::from_secs(2);
/// The same at most, after many: as long as it has been so.
const REFUSAL_KNOWN_AT_MOST: Duration = Duration::from_secs(20);

/// What of a message the broker may refuse.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    /// The body's size in bytes.
    pub size: usize,
}

impl Sent {
    pub fn of(letter: &Letter) -> Self {
        Self {
            exchange: letter.exchange.clone(),
            routing_key: letter.routing_key.clone(),
            size: letter.body.len(),
        }
    }

    /// An error as it is this message's: over what another one has done its fate is not known, over its own it is refused.
    pub fn own(&self, error: PublishError) -> PublishError {
        match error {
            PublishError::OfAnother(error) if self.is_meant(&error) => PublishError::Broker(error),
            other => other,
        }
    }

    /// An exchange that goes away has taken what came before: that is no message's own fault, and the next one to it goes alone.
    fn is_meant(&self, error: &BrokerError) -> bool {
        let Self { exchange, routing_key, size } = self;
        match error {
            BrokerError::AccessRefused { detail } => {
                let refused = format!("access to topic '{routing_key}' in exchange '{exchange}' in vhost");
                // A broker says 255 bytes at most, and ends them with dots where it had more to say: after the key, or it may be
                // another one that begins so.
                let cut = || {
                    let said = detail.strip_suffix("...")?;
                    said.get(said.find("access to topic '")?..)
                        .filter(|said| said.contains(&format!("'{routing_key}' ")))
                };
                detail.contains(&refused) || cut().is_some_and(|said| refused.starts_with(said))
            }
            BrokerError::Precondition { detail } => limit(detail).is_some_and(|most| *size > most),
            _ => false,
        }
    }
}

/// The rights on a topic exchange may differ from one routing key to another.
fn is_of_topic(detail: &str) -> bool {
    detail.contains("access to topic")
}

/// The broker's largest message in bytes, where it says that one is larger: `message size 9 is larger than configured max size 8`.
pub(super) fn limit(detail: &str) -> Option<usize> {
    let (_, rest) = detail.split_once("max size ")?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// What was refused lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Where no message could go to: an exchange, and the routing key if it was about that.
    places: HashMap<(ShortString, Option<ShortString>), Refusal>,
    /// Which size was too large.
    size: Option<(usize, Refusal)>,
}

#[derive(Debug)]
struct Refusal {
    since: Instant,
    at: Instant,
    error: BrokerError,
}

impl Refusal {
    fn counts_until(&self) -> Instant {
        self.at + self.at.duration_since(self.since).clamp(REFUSAL_KNOWN, REFUSAL_KNOWN_AT_MOST)
    }

    fn told(&self) -> Option<PublishError> {
        (Instant::now() < self.counts_until()).then(|| PublishError::Broker(self.error.clone()))
    }

    /// The next one after another of its kind: what was asked for again as soon as that did not count any more has been so all the
    /// time.
    fn after(former: Option<&Self>, error: &BrokerError) -> Self {
        let at = Instant::now();
        let goes_on = former.filter(|former| at < former.counts_until() + REFUSAL_KNOWN);
        Self { since: goes_on.map_or(at, |former| former.since), at, error: error.clone() }
    }
}

impl Refusals {
    /// The error that a message would have.
    pub fn of(&self, sent: &Sent) -> Option<PublishError> {
        let place = |key| self.places.get(&(sent.exchange.clone(), key))?.told();
        let size = || self.size.as_ref().filter(|(most, _)| sent.size > *most)?.1.told();
        place(None).or_else(|| place(Some(sent.routing_key.clone()))).or_else(size)
    }

    /// Notes how a message ended.
    pub fn note(&mut self, sent: &Sent, error: &PublishError) {
        let PublishError::Broker(error) = error else { return };
        let key = match error {
            BrokerError::NotFound { .. } => None,
            BrokerError::AccessRefused { detail } => is_of_topic(detail).then(|| sent.routing_key.clone()),
            BrokerError::Precondition { detail } => {
                if let Some(most) = limit(detail) {
                    let former = self.size.as_ref().map(|(_, former)| former);
                    self.size = Some((most, Refusal::after(former, error)));
                }
                return;
            }
            _ => return,
        };
        if self.places.len() >= EXCHANGES {
            self.places.clear();
        }
        let place = (sent.exchange.clone(), key);
        let refusal = Refusal::after(self.places.get(&place), error);
        self.places.insert(place, refusal);
    }
}

#[cfg(test)]
impl Refusals {
    /// As if so much time had passed.
    pub fn as_if_later(&mut self, time: Duration) {
        let size = self.size.iter_mut().map(|(_, refusal)| refusal);
        for refusal in self.places.values_mut().chain(size) {
            for then in [&mut refusal.since, &mut refusal.at] {
                *then = then.checked_sub(time).unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(exchange: &str, routing_key: &str, size: usize) -> Sent {
        Sent { exchange: exchange.into(), routing_key: routing_key.into(), size }
    }

    #[test]
    fn whose_message_closed_the_channel_is_told_by_what_the_broker_says_of_it() {
        type Of = fn(String) -> BrokerError;
        let forbidden: Of = |detail| BrokerError::AccessRefused { detail };
        let too_large: Of = |detail| BrokerError::Precondition { detail };
        let size = "PRECONDITION_FAILED - message size 9 is larger than configured max size 8";
        for (of, detail, meant, others) in [
            (
                forbidden,
                "ACCESS_REFUSED - write access to topic 'k' in exchange 'a' in vhost '/' refused for user 'u'",
                sent("a", "k", 1),
                sent("a", "kk", 1),
            ),
            (
                forbidden,
                "ACCESS_REFUSED - write access to topic 'a.long.key' in exchange 'a.lo...",
                sent("a.long.name", "a.long.key", 1),
                sent("a.long.name", "a.long.k", 1),
            ),
            (too_large, size, sent("a", "k", 9), sent("a", "k", 8)),
        ] {
            let error = || PublishError::OfAnother(of(detail.to_owned()));
            assert!(matches!(meant.own(error()), PublishError::Broker(_)), "{detail}: {meant:?}");
            assert!(matches!(others.own(error()), PublishError::OfAnother(_)), "{detail}: {others:?}");
        }
        let gone = BrokerError::NotFound { detail: "NOT_FOUND - no exchange 'a' in vhost '/'".to_owned() };
        let cut = forbidden("ACCESS_REFUSED - write access to topic 'k...".to_owned());
        for unclear in [too_large("invalid expiration".to_owned()), gone, cut] {
            let own = sent("a", "k", 9).own(PublishError::OfAnother(unclear));
            assert!(matches!(own, PublishError::OfAnother(_)), "{own}");
        }
    }

    #[test]
    fn what_is_larger_than_the_broker_takes_is_refused_for_a_while_without_asking_it() {
        let mut refusals = Refusals::default();
        let detail = "PRECONDITION_FAILED - message size 9 is larger than configured max size 8".to_owned();
        refusals.note(&sent("a", "k", 9), &PublishError::Broker(BrokerError::Precondition { detail }));
        assert!(refusals.of(&sent("b", "l", 9)).is_some() && refusals.of(&sent("a", "k", 8)).is_none());
        refusals.as_if_later(REFUSAL_KNOWN);
        assert!(refusals.of(&sent("b", "l", 9)).is_none());
    }
}
