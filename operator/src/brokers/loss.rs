//! What is known of a main queue that was declared before, and may be gone with its messages. Pure.
//!
//! A declaration does not say whether it has made the queue. Each one of a queue that is known to have been there follows a
//! look, which changes nothing; what a look has missed stays gone until a declaration has made it again, however many attempts
//! that takes, and is told once.

use std::time::Duration;

use tokio::time::Instant;
use warren_api::conditions::queue::DECLARED;
use warren_broker::declare::{DeclareError, Object};

use super::Outcome;
use crate::problem::{Problem, QUEUE_NOT_FOUND};

/// A queue that is missing for no longer is no reason to say that its Queue is not Ready.
pub(super) const MOMENT: Duration = Duration::from_secs(3);

/// A main queue.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// Whether it was declared before, where it is to be.
    there: bool,
    /// Whether an attempt of this process has made it, or found it there.
    made: bool,
    /// Whether nobody has looked since the connection was made.
    unseen: bool,
    /// Since when probes have missed it.
    missed: Option<Instant>,
    /// Whether a look has missed it, and nothing has made it since.
    gone: bool,
    /// Whether it was made again, and nobody has been told.
    recreated: bool,
}

impl Loss {
    /// Takes in whether it is Warren's to declare, and was there before. One that is not, or was not, cannot be gone.
    pub(super) fn expect(&mut self, declares: bool, there: bool) {
        self.made &= declares;
        self.there = declares && (there || self.made);
        if !self.there {
            (self.missed, self.gone, self.recreated) = (None, false, false);
        }
    }

    /// Whether it is worth a look.
    pub(super) fn is_expected(&self) -> bool {
        self.there
    }

    /// There is another connection.
    pub(super) fn connected(&mut self) {
        self.unseen = true;
    }

    /// A probe has missed it; gives whether that goes on for longer than a moment.
    pub(super) fn missed(&mut self, now: Instant) -> bool {
        let since = *self.missed.get_or_insert(now);
        self.there && now.duration_since(since) >= MOMENT
    }

    /// A look has seen it, or missed it, which is no news of one that is not to be there any more.
    pub(super) fn looked(&mut self, gone: bool) {
        self.unseen = false;
        self.gone |= gone && self.there;
    }

    /// Whether it is known to be missing.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether it may have gone with the others, as nobody has looked yet.
    pub(super) fn may_be_gone(&self) -> bool {
        self.there && self.unseen
    }

    /// An attempt has ended, of an order that declares the main queue, or only looks for it; gives whether there is news.
    pub(super) fn ended(&mut self, declares: bool, result: &Result<Outcome, DeclareError>) -> bool {
        self.unseen = false;
        if !makes_main(result) {
            return false;
        }
        self.missed = None;
        self.made = declares;
        let news = std::mem::take(&mut self.gone);
        self.recreated |= news;
        news
    }

    /// Whether it was made again since this was last asked.
    pub(super) fn take_recreated(&mut self) -> bool {
        std::mem::take(&mut self.recreated)
    }
}

/// Whether the main queue is there after an attempt: queues come before exchanges and bindings.
pub(super) fn makes_main(result: &Result<Outcome, DeclareError>) -> bool {
    match result {
        Ok(Outcome::Declared(_)) => true,
        Ok(Outcome::Absent | Outcome::Removed | Outcome::Refused(_) | Outcome::Unreachable(_)) => false,
        Err(DeclareError { object: Object::Exchange(_) | Object::Binding(..), .. }) => true,
        Err(DeclareError { object: Object::Queue(_), .. }) => false,
    }
}

/// What the looks at a broker's queues say of it since the connection was made.
#[derive(Debug, Default)]
pub(super) struct Back {
    since: Option<Instant>,
    found: bool,
}

impl Back {
    /// The connection was made.
    pub(super) fn at(now: Instant) -> Self {
        Self { since: Some(now), found: false }
    }

    /// A look has seen a queue, or missed one. Gives, once, whether the broker has come back empty, as far as anybody has seen
    /// in more than a moment.
    pub(super) fn looked(&mut self, gone: bool, now: Instant) -> bool {
        self.found |= !gone;
        let empty = !self.found && self.since.is_some_and(|since| now.duration_since(since) >= MOMENT);
        if empty {
            self.since = None;
        }
        empty
    }
}

/// A main queue is missing for longer than a moment.
pub(super) fn gone(main: &str) -> Problem {
    problem(format!("queue \"{main}\" is gone, with its messages, and is being declared again"))
}

/// A main queue waits for its turn while those that were looked at are missing.
pub(super) fn presumed_gone(main: &str) -> Problem {
    problem(format!(
        "the broker has come back empty as far as it was looked at: queue \"{main}\" has most likely gone too, with its messages, and is declared again in its turn"
    ))
}

fn problem(message: String) -> Problem {
    Problem::new(DECLARED, QUEUE_NOT_FOUND, message)
}

#[cfg(test)]
mod tests {
    use warren_broker::BrokerError;

    use super::super::Seen;
    use super::*;

    fn declared() -> Result<Outcome, DeclareError> {
        Ok(Outcome::Declared(Seen::default()))
    }

    fn failed(object: Object) -> Result<Outcome, DeclareError> {
        Err(DeclareError { object, error: BrokerError::Closed { detail: "x".to_owned() } })
    }

    fn expected() -> Loss {
        Loss { there: true, ..Loss::default() }
    }

    #[test]
    fn a_queue_that_was_gone_is_told_once_when_it_is_made_again_however_many_attempts_that_takes() {
        let (mut loss, now) = (expected(), Instant::now());
        loss.missed(now);
        loss.looked(true);
        let of_dlq = || failed(Object::Queue("orders.dlq".to_owned()));
        assert_eq!(
            (loss.ended(true, &of_dlq()), loss.is_gone(), loss.take_recreated()),
            (false, true, false)
        );
        // The attempt that failed has made it all the same.
        loss.looked(false);
        assert_eq!((loss.ended(true, &declared()), loss.is_gone()), (true, false));
        assert_eq!((loss.take_recreated(), loss.take_recreated()), (true, false));
        loss.looked(false);
        assert_eq!((loss.ended(true, &declared()), loss.take_recreated()), (false, false));
    }

    #[test]
    fn a_queue_is_made_again_also_where_its_exchange_is_gone_too() {
        let mut loss = expected();
        loss.looked(true);
        assert!(loss.ended(true, &failed(Object::Exchange("shop".to_owned()))) && loss.take_recreated());
    }

    #[test]
    fn a_queue_that_was_made_is_looked_for_though_its_exchange_has_been_missing_all_along() {
        let mut loss = Loss::default();
        loss.expect(true, false);
        assert!(!loss.is_expected());
        loss.ended(true, &failed(Object::Exchange("shop".to_owned())));
        loss.expect(true, false);
        assert!(loss.is_expected());
    }

    #[test]
    fn a_queue_that_only_a_probe_has_missed_is_not_told() {
        let mut loss = expected();
        loss.missed(Instant::now());
        loss.looked(false);
        assert_eq!((loss.ended(true, &declared()), loss.take_recreated()), (false, false));
    }

    #[test]
    fn what_was_never_there_or_is_left_to_others_is_not_looked_for_and_not_told() {
        let mut loss = expected();
        loss.looked(true);
        loss.ended(true, &declared());
        loss.expect(false, true);
        assert_eq!((loss.is_expected(), loss.take_recreated()), (false, false));
        loss.expect(true, false);
        assert!(!loss.is_expected(), "it was somebody else's meanwhile");
        // Somebody else's is there as well, and theirs to lose when it is taken over.
        loss.ended(false, &declared());
        loss.expect(true, false);
        assert!(!loss.is_expected());
    }

    #[test]
    fn a_queue_is_missing_for_longer_than_a_moment_by_its_probes() {
        let (mut loss, now) = (expected(), Instant::now());
        assert!(!loss.missed(now) && loss.missed(now + MOMENT));
        loss.ended(true, &declared());
        assert!(!loss.missed(now + MOMENT * 2), "it was there between");
        let mut new = Loss::default();
        assert!(!new.missed(now) && !new.missed(now + MOMENT));
    }

    #[test]
    fn a_broker_has_come_back_empty_only_where_every_look_of_more_than_a_moment_says_so() {
        let now = Instant::now();
        let later = now + MOMENT;
        let looks = |found_first: bool| {
            let mut back = Back::at(now);
            let first = back.looked(!found_first, now);
            [first, back.looked(true, later), back.looked(true, later)]
        };
        assert_eq!((looks(false), looks(true)), ([false, true, false], [false, false, false]));
        assert!(!Back::default().looked(true, later));
    }

    #[test]
    fn what_is_new_or_was_seen_to_since_the_connection_was_made_is_not_presumed_gone() {
        let may_be_gone = |mut loss: Loss, result: Option<Result<Outcome, DeclareError>>| {
            loss.connected();
            if let Some(result) = result {
                loss.ended(true, &result);
            }
            loss.may_be_gone()
        };
        assert!(may_be_gone(expected(), None));
        assert!(!may_be_gone(Loss::default(), None), "it was never there");
        for result in [declared(), failed(Object::Exchange("shop".to_owned()))] {
            assert!(!may_be_gone(expected(), Some(result)));
        }
    }

    #[test]
    fn that_a_queue_was_made_again_is_told_however_often_it_is_looked_at_before_somebody_asks() {
        let mut loss = expected();
        loss.looked(true);
        assert!(loss.ended(true, &declared()));
        loss.looked(false);
        assert!(!loss.ended(true, &declared()));
        assert!(loss.take_recreated());
    }
}
