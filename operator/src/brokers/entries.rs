//! The Queues of a lane: what each wants, what was last seen of it, and when it is due.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use warren_broker::declare::DeclareError;
use warren_broker::{BrokerError, Category};

use super::dates::{Date, Dates, Turn};
use super::host::Host;
use super::loss::{self, Back, Loss};
use super::rest::Rest;
use super::schedule::{Last, next_check};
use super::scopes::Scopes;
use super::{Key, Order, Outcome};
use crate::problem::{self, Problem};
use crate::tick;

/// Before a queue that is missing is declared again, its former consumers must have been told. RabbitMQ 3 has a channel
/// consume anew from a queue of the same name that is there by then, and forgets at once that it did: such a consumer takes
/// messages that its client never sees, until the connection ends (`handle_consuming_queue_down_or_eol` in rabbit_channel).
const CONSUMERS_TOLD: Duration = Duration::from_secs(1);
/// How long the words in which an outage was told stand, where only these change.
const OTHER_WORDS: Duration = Duration::from_secs(60);

/// The Queues of a lane.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: HashMap<Key, Entry>,
    due: Dates,
    /// Queues whose order is being carried out, those that were forgotten meanwhile included: the next order waits for its
    /// end, as what the older one still does would undo it.
    running: HashSet<Key>,
    /// Whose checks share a ceiling.
    host: Arc<Host>,
    /// Who is told of what is observed.
    scopes: Arc<Scopes>,
    /// What the present connection has shown.
    back: Back,
}

#[derive(Debug)]
struct Entry {
    _place: Arc<()>,
    order: Arc<Order>,
    /// There as long as the order stands.
    stands: Arc<()>,
    /// When the order was first carried out, after which sidecars learn of it.
    declared: Option<Instant>,
    /// How long its queues that are to go have read empty.
    rest: Rest,
    /// Whether its dead-letter queue was full when it was last looked at.
    full: bool,
    loss: Loss,
    /// What was last observed of the order; none before anything was.
    outcome: Option<Outcome>,
    /// Failures in a row.
    failures: u32,
    /// Refusals in a row, by the broker or of a queue that others are to make.
    refusals: u32,
    /// Whether the connection was lost while it was carried out, which it may have been the cause of.
    suspect: bool,
    /// When it was told last that the broker is down.
    down_told: Option<Instant>,
    /// When it is due; none while it is being carried out, and once everything is removed.
    due: Option<Date>,
    /// Looked at again as soon as what runs has ended.
    again: bool,
}

/// An order whose turn it is.
pub(super) struct Due {
    pub(super) key: Key,
    pub(super) order: Arc<Order>,
    /// There as long as the order stands: neither another one nor none is wanted meanwhile.
    pub(super) stands: Weak<()>,
    /// How long ago it was first carried out; zero before that.
    pub(super) age: Duration,
    /// How long its queues that are to go have read empty.
    pub(super) rest: Rest,
    /// Whether its dead-letter queue was full at the last look.
    pub(super) full: bool,
    /// Whether the main queue was there before.
    pub(super) there: bool,
    /// Whether it is kept away from the connection of the others, which may have ended over it.
    pub(super) apart: bool,
}

impl Entries {
    /// None yet, of a lane of this broker.
    pub(super) fn on(host: Arc<Host>, scopes: Arc<Scopes>) -> Self {
        Self { host, scopes, ..Self::default() }
    }

    /// Takes an order in; gives what has become of it. `down` is why nothing can be known.
    pub(super) fn order(
        &mut self,
        key: &Key,
        order: Order,
        down: Option<Problem>,
        now: Instant,
    ) -> Option<Outcome> {
        let entry = match self.entries.get_mut(key) {
            Some(entry) if *entry.order == order => return entry.outcome.clone(),
            Some(entry) => {
                entry.order = Arc::new(order);
                entry.stands = Arc::default();
                entry.declared = None;
                entry.rest.interrupted();
                entry.refusals = 0;
                entry
            }
            None => self.entries.entry(key.clone()).or_insert(Entry {
                _place: self.host.queue(),
                order: Arc::new(order),
                stands: Arc::default(),
                declared: None,
                rest: Rest::default(),
                full: false,
                loss: Loss::default(),
                outcome: None,
                failures: 0,
                refusals: 0,
                suspect: false,
                down_told: None,
                due: None,
                again: false,
            }),
        };
        // Of a broker that was there a moment ago it is told in its time.
        let told = !matches!(entry.outcome, Some(Outcome::Declared(_)));
        entry.outcome = down.filter(|_| told).map(Outcome::Unreachable);
        if self.running.contains(key) {
            entry.again = true;
            return entry.outcome.clone();
        }
        self.due.set(key, &mut entry.due, (Turn::Asked, now));
        entry.outcome.clone()
    }

    /// Takes in whether the main queue of a Queue was declared before, where it is to be.
    pub(super) fn expect(&mut self, key: &Key, there: bool) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.loss.expect(entry.order.declares(), there);
        }
    }

    /// The order of a Queue.
    pub(super) fn order_of(&self, key: &Key) -> Option<&Order> {
        self.entries.get(key).map(|entry| &*entry.order)
    }

    /// Takes in that nothing is known of the time before: what takes in what others give up may have been missing just now.
    pub(super) fn unseen(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.rest.missed(now);
        }
    }

    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(mut entry) = self.entries.remove(key) {
            self.due.clear(key, &mut entry.due);
        }
    }

    /// Whether an order of a Queue is being carried out, be it one that does not stand any more.
    pub(super) fn carries_out(&self, key: &Key) -> bool {
        self.running.contains(key)
    }

    /// When the first is due.
    pub(super) fn first_due(&self) -> Option<Instant> {
        self.due.first()
    }

    /// The Queue whose turn it is.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        let key = self.due.next(now)?;
        let entry = self.entries.get_mut(&key)?;
        self.due.clear(&key, &mut entry.due);
        entry.again = false;
        self.running.insert(key.clone());
        let age = entry.declared.map_or(Duration::ZERO, |declared| now.duration_since(declared));
        let (rest, there) = (entry.rest.clone(), entry.loss.is_expected());
        entry.rest.interrupted();
        let (full, apart) = (entry.full, entry.suspect);
        let (order, stands) = (entry.order.clone(), Arc::downgrade(&entry.stands));
        Some(Due { order, stands, key, age, rest, full, there, apart })
    }

    /// Everything is looked at again, but what failed keeps its date: it may be what ended the connection. While there was
    /// none, nobody looked.
    pub(super) fn all_due(&mut self, now: Instant) {
        self.back = Back::at(now);
        for entry in self.entries.values_mut() {
            entry.rest.interrupted();
            entry.loss.connected();
        }
        let sound = self.entries.iter().filter(|(_, entry)| entry.failures == 0);
        let keys: Vec<Key> = sound.map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.due_by(key, now));
    }

    /// A main queue is missing that was there: its Queue is looked at again [`soon`](CONSUMERS_TOLD), and says so where that takes
    /// longer. One that is refused keeps its date.
    pub(super) fn missing(&mut self, main: &str, now: Instant) {
        let declared = |entry: &Entry| matches!(entry.outcome, Some(Outcome::Declared(_)));
        let mut entries = self.entries.iter_mut();
        let Some((key, entry)) = entries.find(|(_, entry)| entry.order.main == main && declared(entry))
        else {
            return;
        };
        match entry.due {
            Some((Turn::Asked, _)) => {}
            Some((Turn::Check, _)) => {
                self.due.set(key, &mut entry.due, (Turn::Asked, now + CONSUMERS_TOLD));
            }
            None => entry.again = !entry.removed(),
        }
        if entry.loss.missed(now) {
            entry.observe_problem(key, loss::gone(main), &self.scopes);
        }
    }

    /// A look at a main queue that was there has seen it, or missed it.
    pub(super) fn looked(&mut self, key: &Key, gone: bool, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.loss.looked(gone);
            if gone {
                entry.rest.missed(now);
            }
        }
        if self.back.looked(gone, now) {
            for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.loss.may_be_gone()) {
                entry.observe_problem(key, loss::presumed_gone(&entry.order.main), &self.scopes);
            }
        }
    }

    /// A main queue that is gone is not declared again within a moment.
    pub(super) fn still_gone(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.loss.is_gone()) {
            entry.observe_problem(key, loss::gone(&entry.order.main), &self.scopes);
        }
    }

    /// Whether the main queue of a Queue was gone, and is declared again; told once.
    pub(super) fn take_recreated(&mut self, key: &Key) -> bool {
        self.entries.get_mut(key).is_some_and(|entry| entry.loss.take_recreated())
    }

    /// A Queue is due at `at`, if it is not earlier.
    fn due_by(&mut self, key: &Key, at: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match entry.due {
            Some((turn, before)) => self.due.set(key, &mut entry.due, (turn, at.min(before))),
            None => entry.again = !entry.removed(),
        }
    }

    /// Every Queue learns that the broker cannot be used.
    pub(super) fn broker_is_down(&mut self, problem: &Problem, now: Instant) {
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| !entry.removed()) {
            // Addresses that fail by turns, each in its own words, are no news to all Queues each time.
            let lately = entry.down_told.is_some_and(|told| now - told < OTHER_WORDS);
            let same =
                matches!(&entry.outcome, Some(Outcome::Unreachable(told)) if told.reason == problem.reason);
            if lately && same {
                continue;
            }
            entry.down_told = Some(now);
            entry.observe(key, Outcome::Unreachable(problem.clone()), &self.scopes);
        }
    }

    /// Takes the result of an order in, and sets when the Queue is due again. A look that failed has not seen anything rest.
    pub(super) fn done(
        &mut self,
        Due { key, order, stands, rest, .. }: &Due,
        result: Result<Outcome, DeclareError>,
        drift_check: Duration,
        now: Instant,
    ) {
        self.running.remove(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let stands = stands.strong_count() > 0;
        entry.rest.missed_as(rest);
        if stands {
            if result.is_ok() {
                entry.rest.looked_as(rest);
            }
            if let Ok(Outcome::Declared(seen)) = &result {
                entry.declared.get_or_insert(now);
                entry.full = seen.dead_letter_full == Some(true);
            }
        }
        if entry.loss.ended(order.declares(), &result) {
            self.scopes.tell(key);
        }
        let last = match result {
            Ok(outcome) => {
                (entry.failures, entry.suspect) = (0, false);
                // Looking for a queue that somebody else is to make is refused by the broker each time.
                entry.refused(matches!(outcome, Outcome::Refused(_)) && order.must_exist());
                let last = match &outcome {
                    Outcome::Refused(_) | Outcome::Unreachable(_) => {
                        Last::Refused { in_a_row: entry.refusals }
                    }
                    Outcome::Declared(_) | Outcome::Absent | Outcome::Removed => Last::Declared,
                };
                if stands {
                    entry.observe(key, outcome, &self.scopes);
                }
                last
            }
            Err(error) => {
                let terminal = error.error.category() != Category::Retryable;
                // A refusal says nothing of how long the connection has failed since, nor the other way round.
                if terminal != (entry.refusals > 0) {
                    entry.failures = 0;
                }
                entry.failures = entry.failures.saturating_add(1);
                // One that could not have a connection of its own, where their number is limited, has its turn on the shared one.
                let no_own = error.error.is_at_limit();
                // A sentence over a long name that the broker cuts within a character ends it, too.
                let ended =
                    matches!(error.error, BrokerError::Closed { .. } | BrokerError::Unreadable { .. });
                entry.suspect = !terminal && !no_own && (entry.suspect || ended);
                // One lost channel is no news; the link tells of a lost connection.
                if stands && (terminal || entry.failures > 2) {
                    entry.observe(key, Outcome::Refused(problem::refused(&error)), &self.scopes);
                } else if entry.loss.is_gone() {
                    entry.observe_problem(key, loss::gone(&order.main), &self.scopes);
                }
                entry.refused(terminal);
                match terminal {
                    true => Last::Refused { in_a_row: entry.refusals },
                    false => Last::Failed { in_a_row: entry.failures },
                }
            }
        };
        let (turn, wait) = match std::mem::take(&mut entry.again) {
            true => (Turn::Asked, Duration::ZERO),
            false => (Turn::Check, next_check(last, drift_check, self.host.queues(), rand::random())),
        };
        // What is removed is not looked for again.
        if !entry.removed() {
            self.due.set(key, &mut entry.due, (turn, tick::after(now + wait)));
        }
    }
}

impl Entry {
    /// Notes whether the broker has refused something.
    fn refused(&mut self, so: bool) {
        self.refusals = if so { self.refusals.saturating_add(1) } else { 0 };
    }

    fn observe(&mut self, key: &Key, outcome: Outcome, scopes: &Scopes) {
        if self.outcome.as_ref() != Some(&outcome) {
            self.outcome = Some(outcome);
            scopes.tell(key);
        }
    }

    /// Says what is wrong with a main queue that was there, unless something else is said to be wrong.
    fn observe_problem(&mut self, key: &Key, problem: Problem, scopes: &Scopes) {
        if matches!(self.outcome, None | Some(Outcome::Declared(_))) {
            self.observe(key, Outcome::Refused(problem), scopes);
        }
    }

    /// Whether the order was to remove everything, and that is done.
    fn removed(&self) -> bool {
        self.outcome == Some(Outcome::Removed)
    }
}

#[cfg(test)]
mod tests {
    use warren_api::QueueType;
    use warren_broker::declare::Object;
    use warren_broker::topology::Topology;

    use super::*;
    use crate::brokers::{Claim, Goal, Seen};

    const DRIFT: Duration = Duration::from_secs(60);

    fn order(goal: Goal) -> Order {
        let topology = Topology::of(vec![]);
        Order { main: "orders".to_owned(), queue_type: QueueType::Quorum, topology, goal }
    }

    fn keep(retire: &[u32]) -> Order {
        order(Goal::Keep { claim: Claim::Declare, unbind: vec![], retire: retire.to_vec(), untold: false })
    }

    fn key() -> Key {
        Key { namespace: "shop".to_owned(), name: "orders".to_owned() }
    }

    fn declared() -> Result<Outcome, DeclareError> {
        Ok(Outcome::Declared(Seen::default()))
    }

    /// Has the next attempt fail; gives it, and when it was.
    fn fail(entries: &mut Entries, object: Object, error: BrokerError) -> (Due, Instant) {
        let at = entries.first_due().unwrap();
        let due = entries.take_due(at).unwrap();
        entries.done(&due, Err(DeclareError { object, error }), DRIFT, at);
        (due, at)
    }

    #[test]
    fn an_outage_that_is_told_in_other_words_is_no_news_for_a_minute() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), keep(&[]), None, now);
        let mut told = |after, reason, text: &str| {
            entries.broker_is_down(
                &Problem::new("BrokerReachable", reason, text),
                now + Duration::from_secs(after),
            );
            let seen = entries.entries.get(&key()).and_then(|entry| entry.outcome.clone());
            let Some(Outcome::Unreachable(problem)) = seen else { panic!("nothing") };
            problem.message
        };
        assert_eq!(told(0, "BrokerUnreachable", "refused"), "refused");
        assert_eq!(told(59, "BrokerUnreachable", "no answer"), "refused");
        assert_eq!(told(60, "BrokerUnreachable", "no answer"), "no answer", "it is another one by now");
        assert_eq!(told(61, "AuthRefused", "mend the password"), "mend the password");
    }

    #[test]
    fn a_change_while_a_broker_blinks_is_not_told_as_an_outage_and_one_in_an_outage_is() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let down = || Some(Problem::new("BrokerReachable", "BrokerUnreachable", "refused"));
        entries.order(&key(), keep(&[]), None, now);
        let due = entries.take_due(now).unwrap();
        entries.done(&due, declared(), DRIFT, now);
        assert_eq!(entries.order(&key(), keep(&[5]), down(), now), None);
        let told = entries.order(&key(), keep(&[60]), down(), now);
        assert_eq!(told, down().map(Outcome::Unreachable), "nothing was known of it any more");
    }

    #[test]
    fn an_order_waits_for_the_end_of_the_one_before_it() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        entries.order(&key(), keep(&[]), None, now);
        let first = entries.take_due(now).unwrap();
        entries.order(&key(), order(Goal::Remove { only_if_empty: false, unbind: vec![] }), None, now);
        entries.all_due(now);
        assert_eq!((entries.first_due(), entries.take_due(later).is_none()), (None, true));
        entries.done(&first, declared(), DRIFT, now);
        let second = entries.take_due(later).unwrap();
        assert!(matches!(second.order.goal, Goal::Remove { .. }));
        entries.done(&second, Ok(Outcome::Removed), DRIFT, later);
        assert_eq!(entries.first_due(), None);
    }

    #[test]
    fn a_queue_that_comes_back_waits_for_what_was_begun_before_it_went() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), keep(&[]), None, now);
        let first = entries.take_due(now).unwrap();
        entries.forget(&key());
        entries.order(&key(), keep(&[5]), None, now);
        assert!(entries.take_due(now).is_none());
        entries.done(&first, declared(), DRIFT, now);
        assert!(entries.take_due(now + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn sidecars_have_learned_of_an_order_some_time_after_it_was_carried_out_not_after_it_was_placed() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let at = |minutes: u64| now + Duration::from_secs(minutes * 60);
        entries.order(&key(), keep(&[5]), None, now);
        // The broker was away for long.
        let first = entries.take_due(at(10)).unwrap();
        assert_eq!(first.age, Duration::ZERO);
        entries.done(&first, declared(), DRIFT, at(10));
        let second = entries.take_due(at(12)).unwrap();
        assert_eq!(second.age, Duration::from_secs(120));
        entries.done(&second, declared(), DRIFT, at(12));
        assert_eq!(entries.take_due(at(14)).unwrap().age, Duration::from_secs(240));
    }

    #[test]
    fn that_a_dead_letter_queue_was_full_is_known_until_a_look_says_otherwise() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let at = |minutes: u64| now + Duration::from_secs(minutes * 60);
        entries.order(&key(), keep(&[5]), None, now);
        let mut look = |minute, result| {
            let due = entries.take_due(at(minute)).unwrap();
            entries.done(&due, result, DRIFT, at(minute));
            entries.all_due(at(minute));
            due.full
        };
        let seen = |full| Ok(Outcome::Declared(Seen { dead_letter_full: Some(full), ..Seen::default() }));
        let closed = warren_broker::BrokerError::Closed { detail: "x".to_owned() };
        let object = Object::Queue("orders".to_owned());
        assert!(!look(0, seen(true)), "nothing was seen before");
        assert!(look(2, Err(DeclareError { object, error: closed })));
        assert!(look(4, seen(false)));
        assert!(!look(6, seen(false)));
    }

    #[test]
    fn how_long_a_queue_has_read_empty_is_kept_until_a_look_fails_or_the_connection_is_another() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let at = |minutes: u64| now + Duration::from_secs(minutes * 60);
        let mut rested = Rest::default();
        rested.seen("orders.retry.5s", true, now);
        entries.order(&key(), keep(&[5]), None, now);
        let mut look = |minute, result, new_connection| {
            let mut due = entries.take_due(at(minute)).unwrap();
            let before = due.rest.clone();
            due.rest = rested.clone();
            entries.done(&due, result, DRIFT, at(minute));
            if new_connection {
                entries.all_due(at(minute));
            }
            before
        };
        let closed = warren_broker::BrokerError::Closed { detail: "x".to_owned() };
        let object = Object::Queue("orders".to_owned());
        look(0, declared(), false);
        assert_eq!(look(2, declared(), true), rested);
        assert_eq!(look(4, Err(DeclareError { object, error: closed }), false), Rest::default());
        assert_eq!(look(6, declared(), false), Rest::default());
    }

    #[test]
    fn an_order_over_which_the_connection_ended_is_tried_on_one_of_its_own_unless_none_can_be_had() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let mut hours = 0;
        entries.order(&key(), keep(&[]), None, now);
        let mut apart_after = |error| {
            hours += 1;
            let due = entries.take_due(now + Duration::from_secs(3600 * hours)).unwrap();
            let object = Object::Queue("orders".to_owned());
            entries.done(&due, Err(DeclareError { object, error }), DRIFT, now);
            entries.entries[&key()].suspect
        };
        let closed = || BrokerError::Closed { detail: "INTERNAL_ERROR".to_owned() };
        let timed_out = BrokerError::TimedOut { what: "declaring", seconds: 9 };
        let unreachable = |detail: &str| BrokerError::Unreachable {
            address: "h:5672".to_owned(),
            detail: detail.to_owned(),
        };
        let limited =
            "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (2) is reached";
        assert!(!apart_after(timed_out.clone()));
        assert!(apart_after(closed()));
        assert!(apart_after(timed_out), "it may be slow to end one");
        assert!(apart_after(unreachable("no answer within 10 s")), "the broker is busy");
        assert!(!apart_after(unreachable(limited)));
        assert!(apart_after(BrokerError::Unreadable { detail: "no UTF-8".to_owned() }));
        assert!(!apart_after(unreachable(limited)));
        assert!(apart_after(closed()));
    }

    #[test]
    fn a_queue_that_others_are_to_make_is_looked_for_more_rarely_after_two_minutes() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let claim = Claim::MustExist;
        let asis = order(Goal::Keep { claim, unbind: vec![], retire: vec![], untold: false });
        entries.order(&key(), asis, None, now);
        let mut at = now;
        for _ in 0..20 {
            let due = entries.take_due(at).unwrap();
            let missing = Outcome::Refused(Problem::new("Declared", "QueueNotFound", "create it"));
            entries.done(&due, Ok(missing), DRIFT, at);
            at = entries.first_due().unwrap();
        }
        let due = entries.take_due(at).unwrap();
        entries.done(&due, Ok(Outcome::Refused(Problem::new("Declared", "QueueNotFound", ""))), DRIFT, at);
        assert!(entries.first_due().unwrap() - at > Duration::from_secs(30));
    }

    #[test]
    fn a_queue_that_is_missing_is_declared_a_second_after_the_first_look_that_missed_it() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), keep(&[]), None, now);
        let due = entries.take_due(now).unwrap();
        entries.done(&due, declared(), DRIFT, now);

        entries.missing("orders", now);
        entries.missing("orders", now + Duration::from_millis(400));
        assert_eq!(entries.first_due(), Some(now + CONSUMERS_TOLD));
    }

    /// What is said of a Queue: the reason of what is wrong.
    fn wrong(entries: &mut Entries, name: &str) -> Option<&'static str> {
        match entries.order(&named(name), keep(&[]), None, Instant::now())? {
            Outcome::Refused(problem) => Some(problem.reason),
            _ => None,
        }
    }

    fn named(name: &str) -> Key {
        Key { name: name.to_owned(), ..key() }
    }

    /// Queues that were declared before, on a broker that has just come back.
    fn come_back(names: &[&str], now: Instant) -> Entries {
        let mut entries = Entries::default();
        for name in names {
            entries.order(&named(name), keep(&[]), None, now);
            let due = entries.take_due(now).unwrap();
            assert!(!due.there, "nobody looks for what is new");
            entries.done(&due, declared(), DRIFT, now);
            entries.expect(&named(name), true);
        }
        entries.all_due(now);
        entries
    }

    fn failed() -> Result<Outcome, DeclareError> {
        let object = Object::Queue("orders".to_owned());
        Err(DeclareError { object, error: warren_broker::BrokerError::Closed { detail: "x".to_owned() } })
    }

    #[test]
    fn what_somebody_waits_for_comes_before_checks_that_are_late() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let of = |name: &str| Order { main: name.to_owned(), ..keep(&[]) };
        for name in ["a", "b", "c"] {
            entries.order(&named(name), of(name), None, now);
            let due = entries.take_due(now).unwrap();
            entries.done(&due, declared(), DRIFT, now);
        }
        entries.all_due(now);
        let late = now + DRIFT;
        entries.order(&named("new"), of("new"), None, late);
        entries.missing("b", late);
        let mut turn = |at| entries.take_due(at).map(|due| due.key.name);
        assert_eq!(turn(late).unwrap(), "new");
        assert_eq!(turn(late + CONSUMERS_TOLD).unwrap(), "b");
        assert_eq!((turn(late).is_some(), turn(late).is_some(), turn(late)), (true, true, None));
    }

    #[test]
    fn a_queue_that_was_gone_is_told_once_and_is_not_said_to_be_there_while_it_cannot_be_declared() {
        let now = Instant::now();
        let mut entries = come_back(&["a"], now);
        let due = entries.take_due(now).unwrap();
        assert!(due.there);
        entries.looked(&due.key, true, now);
        assert_eq!(wrong(&mut entries, "a"), None, "a moment is no reason");
        entries.done(&due, failed(), DRIFT, now);
        assert_eq!(wrong(&mut entries, "a"), Some("QueueNotFound"));
        assert!(!entries.take_recreated(&due.key));
        let again = entries.take_due(now + DRIFT).unwrap();
        entries.done(&again, declared(), DRIFT, now + DRIFT);
        assert_eq!(wrong(&mut entries, "a"), None);
        assert_eq!((entries.take_recreated(&due.key), entries.take_recreated(&due.key)), (true, false));
    }

    #[test]
    fn a_queue_whose_declaration_takes_longer_than_a_moment_is_said_to_be_gone_only_if_it_is() {
        let now = Instant::now();
        let mut entries = come_back(&["a", "b"], now);
        entries.looked(&named("a"), true, now);
        entries.looked(&named("b"), false, now);
        ["a", "b"].iter().for_each(|name| entries.still_gone(&named(name)));
        assert_eq!((wrong(&mut entries, "a"), wrong(&mut entries, "b")), (Some("QueueNotFound"), None));
    }

    #[test]
    fn queues_of_a_broker_that_has_come_back_empty_are_not_said_to_be_there_while_they_wait_their_turn() {
        let now = Instant::now();
        let told = |found: bool| {
            let mut entries = come_back(&["a", "b", "c"], now);
            let first = entries.take_due(now).unwrap();
            entries.looked(&first.key, !found, now);
            entries.done(&first, declared(), DRIFT, now);
            entries.looked(&named("b"), true, now + loss::MOMENT);
            ["a", "b", "c"].map(|name| wrong(&mut entries, name))
        };
        assert_eq!(told(false), [None, None, Some("QueueNotFound")]);
        assert_eq!(told(true), [None, None, None], "one is gone, and the broker is not empty");
    }

    #[test]
    fn a_queue_that_probes_miss_is_not_said_to_be_there_for_longer_than_a_moment() {
        let now = Instant::now();
        let mut entries = come_back(&["a"], now);
        entries.missing("orders", now);
        assert_eq!(wrong(&mut entries, "a"), None);
        entries.missing("orders", now + loss::MOMENT);
        assert_eq!(wrong(&mut entries, "a"), Some("QueueNotFound"));
    }

    #[test]
    fn another_order_has_its_own_time_and_nothing_that_was_seen_under_the_one_before_counts_for_it() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let at = |minutes: u64| now + Duration::from_secs(minutes * 60);
        let mut rested = Rest::default();
        rested.seen("orders.retry.5s", true, now);
        let look = |entries: &mut Entries, minute, other: Option<Order>| {
            let mut due = entries.take_due(at(minute)).unwrap();
            let before = (due.age, std::mem::replace(&mut due.rest, rested.clone()));
            if let Some(other) = other {
                entries.order(&key(), other, None, at(minute));
                assert!(due.stands.upgrade().is_none());
            }
            entries.done(&due, declared(), DRIFT, at(minute));
            before
        };
        entries.order(&key(), keep(&[5]), None, now);
        look(&mut entries, 0, None);
        assert_eq!(look(&mut entries, 10, None), (Duration::from_secs(600), rested.clone()));
        // The rung was wanted again, and is to go again: sidecars know of that from now on.
        entries.order(&key(), keep(&[]), None, at(11));
        assert_eq!(look(&mut entries, 11, None), (Duration::ZERO, Rest::default()));
        // What ends after the next order has come says nothing of that one.
        look(&mut entries, 21, Some(keep(&[5])));
        assert_eq!(look(&mut entries, 31, None), (Duration::ZERO, Rest::default()));
    }

    #[test]
    fn a_queue_that_has_failed_and_is_well_again_is_as_any_other_and_one_that_fails_keeps_its_date() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let at = |minutes: u64| now + Duration::from_secs(minutes * 60);
        entries.order(&key(), keep(&[]), None, now);
        for minute in 0..8 {
            let due = entries.take_due(at(minute)).unwrap();
            assert_eq!(due.apart, minute > 0);
            entries.done(&due, failed(), DRIFT, at(minute));
        }
        assert!(wrong(&mut entries, "orders").is_some(), "it is told in the end");
        let date = entries.first_due();
        entries.all_due(at(7));
        assert_eq!(entries.first_due(), date);
        let due = entries.take_due(at(8)).unwrap();
        entries.done(&due, declared(), DRIFT, at(8));
        entries.all_due(at(8));
        assert_eq!(entries.first_due(), Some(at(8)));
        assert!(!entries.take_due(at(8)).unwrap().apart);
    }

    #[test]
    fn a_queue_that_is_removed_stays_so_when_the_broker_goes_down_and_another_order_is_carried_out() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let remove = || order(Goal::Remove { only_if_empty: false, unbind: vec![] });
        entries.order(&key(), remove(), None, now);
        let due = entries.take_due(now).unwrap();
        entries.done(&due, Ok(Outcome::Removed), DRIFT, now);
        entries.broker_is_down(&Problem::new("BrokerReachable", "BrokerUnreachable", "refused"), now);
        let seen = entries.order(&key(), remove(), None, now).unwrap();
        assert_eq!(seen, Outcome::Removed);
        // A Queue of the name comes while the broker is away, and its first attempt fails.
        entries.order(&key(), keep(&[]), None, now);
        let due = entries.take_due(now).unwrap();
        entries.done(&due, failed(), DRIFT, now);
        assert!(entries.first_due().is_some());
    }

    #[test]
    fn a_look_that_ends_late_says_nothing_of_a_removal() {
        for hangs in [true, false] {
            let (mut entries, now) = (Entries::default(), Instant::now());
            entries.order(&key(), keep(&[]), None, now);
            entries.expect(&key(), true);
            let due = entries.take_due(now).unwrap();
            // The Queue is deleted while the look is on its way.
            let remove = || order(Goal::Remove { only_if_empty: false, unbind: vec![] });
            entries.order(&key(), remove(), None, now);
            entries.expect(&key(), false);
            entries.looked(&due.key, true, now);
            if hangs {
                entries.still_gone(&due.key);
            } else {
                entries.done(&due, failed(), DRIFT, now);
            }
            assert_eq!(entries.order(&key(), remove(), None, now), None, "hangs: {hangs}");
        }
    }

    #[test]
    fn what_the_broker_refuses_is_asked_for_more_rarely_after_two_minutes_until_the_spec_is_another() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let refused = || {
            let object = Object::Queue("orders".to_owned());
            Err(DeclareError { object, error: BrokerError::AuthRefused { user: "u".to_owned() } })
        };
        let look = |entries: &mut Entries| {
            let at = entries.first_due().unwrap();
            let due = entries.take_due(at).unwrap();
            entries.done(&due, refused(), DRIFT, at);
            entries.first_due().unwrap() - at
        };
        entries.order(&key(), keep(&[]), None, now);
        let waits: Vec<_> = (0..20).map(|_| look(&mut entries)).collect();
        let soon = Duration::from_secs(12);
        assert!(waits[0] < soon && waits[19] > Duration::from_secs(30), "{waits:?}");
        entries.order(&key(), keep(&[5]), None, now);
        assert!(look(&mut entries) < soon, "a person is at it");
        // A queue that others are to make.
        let at = entries.first_due().unwrap();
        let due = entries.take_due(at).unwrap();
        let missing = Outcome::Refused(Problem::new("Declared", "QueueNotFound", "create it"));
        entries.done(&due, Ok(missing), DRIFT, at);
        assert!(entries.first_due().unwrap() - at < soon);
    }

    #[test]
    fn a_queue_of_which_something_else_is_wrong_goes_on_saying_that_and_has_its_own_date() {
        let now = Instant::now();
        let mut entries = come_back(&["a"], now);
        let due = entries.take_due(now).unwrap();
        entries.looked(&due.key, true, now);
        let error = BrokerError::AuthRefused { user: "u".to_owned() };
        let object = Object::Queue("orders".to_owned());
        entries.done(&due, Err(DeclareError { object, error }), DRIFT, now);
        let said = wrong(&mut entries, "a");
        assert!(said.is_some_and(|reason| reason != "QueueNotFound"), "{said:?}");
        let date = entries.first_due();
        entries.missing("orders", now);
        entries.still_gone(&named("a"));
        assert_eq!((wrong(&mut entries, "a"), entries.first_due()), (said, date));
    }

    #[test]
    fn a_deletion_that_messages_keep_is_looked_at_as_often_however_long_that_takes() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), order(Goal::Remove { only_if_empty: true, unbind: vec![] }), None, now);
        for _ in 0..20 {
            let at = entries.first_due().unwrap();
            let due = entries.take_due(at).unwrap();
            let kept = Outcome::Refused(Problem::new("DeletionBlocked", "NotEmpty", "consume them"));
            entries.done(&due, Ok(kept), DRIFT, at);
            let wait = entries.first_due().unwrap() - at;
            assert!(wait < Duration::from_secs(12), "{wait:?}");
        }
    }

    #[test]
    fn an_exchange_that_is_missing_is_told_at_the_first_attempt_and_a_lost_channel_at_the_third() {
        let told_after = |error: &BrokerError| {
            let (mut entries, now) = (Entries::default(), Instant::now());
            entries.order(&key(), keep(&[]), None, now);
            let attempts = (1..10_u32).find(|_| {
                fail(&mut entries, Object::Exchange("shop".to_owned()), error.clone());
                wrong(&mut entries, "orders").is_some()
            });
            attempts.unwrap()
        };
        let missing =
            BrokerError::NotFound { detail: "NOT_FOUND - no exchange 'shop' in vhost '/'".to_owned() };
        let closed = BrokerError::Closed { detail: "x".to_owned() };
        assert_eq!((told_after(&missing), told_after(&closed)), (1, 3));
    }

    #[test]
    fn a_lost_channel_after_refusals_is_no_news_either_and_is_tried_again_soon() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), keep(&[]), None, now);
        let mut attempt = |error| {
            let (_, at) = fail(&mut entries, Object::Exchange("shop".to_owned()), error);
            (wrong(&mut entries, "orders"), entries.first_due().unwrap() - at)
        };
        let missing =
            || BrokerError::NotFound { detail: "NOT_FOUND - no exchange 'shop' in vhost '/'".to_owned() };
        (0..10).for_each(|_| _ = attempt(missing()));
        let (told, wait) = attempt(BrokerError::Closed { detail: "x".to_owned() });
        assert_eq!(told, Some("ExchangeNotFound"));
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn that_a_queue_was_missing_is_known_to_the_removal_that_follows_whatever_comes_between() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        let missed = |due: &Due| due.rest.missed_within(Duration::from_secs(200), now);
        let remove = || order(Goal::Remove { only_if_empty: true, unbind: vec![] });
        entries.order(&key(), keep(&[]), None, now);
        entries.expect(&key(), true);
        let due = entries.take_due(now).unwrap();
        entries.looked(&key(), true, now);
        entries.order(&key(), remove(), None, now);
        entries.expect(&key(), true);
        entries.done(&due, declared(), DRIFT, now);
        entries.all_due(now);
        assert!(missed(&entries.take_due(now).unwrap()), "it was made again meanwhile");

        let mut entries = Entries::default();
        entries.order(&key(), remove(), None, now);
        let mut due = entries.take_due(now).unwrap();
        assert!(!missed(&due));
        due.rest.missed(now);
        let object = Object::Queue("orders".to_owned());
        let error = BrokerError::Closed { detail: "x".to_owned() };
        entries.done(&due, Err(DeclareError { object, error }), DRIFT, now);
        let at = entries.first_due().unwrap();
        assert!(missed(&entries.take_due(at).unwrap()), "an attempt that failed has seen it");
    }

    #[test]
    fn an_order_that_was_apart_and_is_refused_goes_back_to_the_connection_of_the_others() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.order(&key(), keep(&[]), None, now);
        let mut attempt = |error| fail(&mut entries, Object::Queue("orders".to_owned()), error).0.apart;
        let closed = || BrokerError::Closed { detail: "x".to_owned() };
        let refused = || BrokerError::AccessRefused { detail: "x".to_owned() };
        assert_eq!([attempt(closed()), attempt(refused()), attempt(refused())], [false, true, false]);
    }
}
