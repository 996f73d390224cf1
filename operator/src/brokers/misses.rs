//! Queues that a broker has said it does not have, or does not tell of, for a while. Pure.
//!
//! Each such refusal takes one of the 2,047 channel numbers of its connection for good (`warren_broker::channel`), and when all
//! are gone the connection of all Queues is given up. So the longer a queue has been refused, the more rarely it is asked
//! for, unless a declaration has ended meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use warren_broker::BrokerError;
use warren_broker::declare::DeclareError;

use super::Outcome;
use super::loss::makes_main;

/// How long the first refusal counts.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long a refusal counts at most.
const LONGEST: Duration = Duration::from_secs(60);

/// What one connection's broker does not have, or does not tell of, as where the node of a classic queue is down, or a right is missing.
#[derive(Debug, Default)]
pub(super) struct Misses(HashMap<String, Miss>);

#[derive(Debug)]
struct Miss {
    since: Instant,
    asked: Instant,
    error: BrokerError,
}

impl Miss {
    fn counts_until(&self) -> Instant {
        self.asked + self.asked.duration_since(self.since).clamp(SHORTEST, LONGEST)
    }
}

impl Misses {
    /// What was said of a queue, where that still counts.
    pub(super) fn of(&self, queue: &str, now: Instant) -> Option<BrokerError> {
        let miss = self.0.get(queue).filter(|miss| now < miss.counts_until())?;
        Some(miss.error.clone())
    }

    /// Takes in what was said of a queue that was asked for.
    pub(super) fn answered<T>(&mut self, queue: &str, answer: &Result<T, BrokerError>, now: Instant) {
        match answer {
            Ok(_) => _ = self.0.remove(queue),
            Err(error) if error.says_no_queue(queue) || error.is_of_channel() && !error.names_no_queue() => {
                let since = self.0.get(queue).map_or(now, |miss| miss.since);
                // What nobody asks for any more is forgotten.
                self.0.retain(|_, miss| now < miss.counts_until() + LONGEST);
                self.0.insert(queue.to_owned(), Miss { since, asked: now, error: error.clone() });
            }
            Err(_) => {}
        }
    }

    /// What declares a queue, and those that are derived from it, has ended.
    pub(super) fn declared(&mut self, main: &str, result: &Result<Outcome, DeclareError>) {
        // An order that is refused is repeated again and again, and makes nothing.
        if makes_main(result) {
            let derived = |queue: &str| queue.strip_prefix(main).is_some_and(|rest| rest.starts_with('.'));
            self.0.retain(|queue, _| queue != main && !derived(queue));
        }
    }

    /// There is another connection.
    pub(super) fn connected(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Seen;
    use super::*;
    use crate::problem::Problem;

    fn missing(queue: &str) -> Result<(), BrokerError> {
        Err(BrokerError::NotFound { detail: format!("NOT_FOUND - no queue '{queue}' in vhost '/'") })
    }

    #[test]
    fn a_queue_that_is_not_told_of_is_asked_for_as_rarely_and_what_ends_a_connection_is_no_word_on_one() {
        let (now, mut misses) = (Instant::now(), Misses::default());
        let down = "NOT_FOUND - home node 'b' of durable queue 'q' in vhost '/' is down or inaccessible";
        let down = BrokerError::NotFound { detail: down.to_owned() };
        let refused = BrokerError::AccessRefused { detail: "q".to_owned() };
        let mut counts = |error: &BrokerError| {
            misses.answered::<()>("q", &Err(error.clone()), now);
            misses.of("q", now).as_ref() == Some(error)
        };
        assert!(counts(&down) && counts(&refused));
        let BrokerError::NotFound { detail } = missing("other").unwrap_err() else { panic!() };
        assert!(!counts(&BrokerError::NotFound { detail }) && !counts(&BrokerError::closed("x")));
        assert_eq!(misses.of("q", now), Some(refused), "nothing else was said of it");
    }

    #[test]
    fn a_queue_that_stays_missing_is_asked_for_ever_more_rarely() {
        let (start, mut misses, mut asked) = (Instant::now(), Misses::default(), 0);
        for tenth in 0..36_000 {
            let now = start + Duration::from_millis(tenth * 100);
            if misses.of("orders", now).is_none() {
                asked += 1;
                misses.answered("orders", &missing("orders"), now);
            }
        }
        assert!((60..=70).contains(&asked), "{asked} in an hour");
    }

    #[test]
    fn a_queue_that_is_there_or_was_declared_is_asked_for_at_once_and_a_refused_order_declares_none() {
        let (now, mut misses) = (Instant::now(), Misses::default());
        for queue in ["orders", "orders.dlq", "orders2"] {
            misses.answered(queue, &missing(queue), now);
        }
        misses.declared("orders", &Ok(Outcome::Refused(Problem::new("TopologyReady", "Refused", "no"))));
        misses.declared("orders", &Ok(Outcome::Absent));
        assert!(misses.of("orders", now).is_some() && misses.of("orders.dlq", now).is_some());
        misses.declared("orders", &Ok(Outcome::Declared(Seen::default())));
        assert!(misses.of("orders", now).is_none() && misses.of("orders.dlq", now).is_none());
        assert!(misses.of("orders2", now).is_some());
        misses.answered("orders2", &Ok(()), now);
        assert!(misses.of("orders2", now).is_none());
        misses.answered("orders2", &missing("another"), now);
        assert!(misses.of("orders2", now).is_none());
    }

    #[test]
    fn what_one_connection_s_broker_did_not_have_is_asked_of_the_next_at_once() {
        let (now, mut misses) = (Instant::now(), Misses::default());
        misses.answered("orders", &missing("orders"), now);
        assert!(misses.of("orders", now).is_some());
        misses.connected();
        assert!(misses.of("orders", now).is_none());
    }

    #[test]
    fn of_several_queues_that_stay_missing_each_is_asked_for_ever_more_rarely_and_then_forgotten() {
        let (start, mut misses) = (Instant::now(), Misses::default());
        let queues = ["orders", "bills", "letters"];
        let mut asked = [0; 3];
        for tenth in 0..36_000_u32 {
            let now = start + Duration::from_millis(100) * tenth;
            for (queue, asked) in queues.iter().zip(&mut asked) {
                if misses.of(queue, now).is_none() {
                    *asked += 1;
                    misses.answered(queue, &missing(queue), now);
                }
            }
        }
        assert!(asked.iter().all(|asked| (60..=70).contains(asked)), "{asked:?} in an hour");
        let later = start + Duration::from_secs(7200);
        misses.answered("new", &missing("new"), later);
        assert_eq!(misses.0.keys().collect::<Vec<_>>(), ["new"], "nobody asks for the others any more");
    }
}
