//! An outage is not poison: when most recent answers are failures, it is the application that is broken, not the messages.
//!
//! Closed, the breaker counts. Open, messages are held and one at a time is tried with growing pauses; nothing counts as an
//! attempt. One success closes it.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::Backoff;
use super::event::{DeliveryId, Time};

/// How many recent answers are looked at.
pub const SAMPLES: usize = 20;
/// The share of failures among them that opens the breaker, in percent.
pub const SHARE_PERCENT: usize = 80;
/// A few poison messages that come again and again are no outage: this many different ones must have failed.
const DISTINCT: usize = 3;
/// How many failures tell the status while it is open: one that answers otherwise is no news, and a mended path is soon.
const LATEST: usize = 3;
/// How many probes a message may fail before others' success makes the failure its own, and how many may fail in all before one without
/// a key makes room at its first.
pub const PROBES: u32 = 3;

/// Which message an answer was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Identity {
    /// That of an id.
    Message(u64),
    /// One without an id, of which nothing but the attempts at one delivery are known to belong together.
    Delivery(DeliveryId),
}

/// One recent answer.
#[derive(Clone, Copy, Debug)]
struct Sample {
    failed: bool,
    status: Option<u16>,
    /// Whose failure it was; that of a whole batch is no one's.
    identity: Option<Identity>,
}

/// What the answers of late say about the application.
#[derive(Debug)]
pub(super) struct Breaker {
    recent: VecDeque<Sample>,
    open: Option<Open>,
    /// Successes ever: tells whether anything has succeeded since some moment.
    pub successes: u64,
}

#[derive(Debug)]
struct Open {
    since: Time,
    next_probe: Time,
    /// How many probes have failed.
    failed: u32,
    backoff: Backoff,
    status: Option<u16>,
}

/// What an answer did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// It opened; the status that most failures had.
    Opened(Option<u16>),
    /// It closed.
    Closed,
}

impl Breaker {
    pub fn new() -> Self {
        Self { recent: VecDeque::with_capacity(SAMPLES), open: None, successes: 0 }
    }

    /// Since when it is open.
    pub fn open_since(&self) -> Option<Time> {
        self.open.as_ref().map(|open| open.since)
    }

    /// Whether it is open, and was at that time: what was called before is no probe.
    pub fn is_open_at(&self, at: Time) -> bool {
        self.open.as_ref().is_some_and(|open| at > open.since)
    }

    /// How many probes have failed since it opened.
    pub fn failed_probes(&self) -> u32 {
        self.open.as_ref().map_or(0, |open| open.failed)
    }

    /// When the next message may be tried, while it is open.
    pub fn next_probe(&self) -> Option<Time> {
        self.open.as_ref().map(|open| open.next_probe)
    }

    /// The status that most failures had when it opened, or of late; none: they had no answer.
    pub fn status(&self) -> Option<u16> {
        self.open.as_ref().and_then(|open| open.status)
    }

    /// The application took a message and dealt with it, be it by refusing it.
    pub fn succeeded(&mut self) -> Change {
        self.successes += 1;
        if self.open.take().is_some() {
            self.recent.clear();
            return Change::Closed;
        }
        self.record(Sample { failed: false, status: None, identity: None });
        Change::None
    }

    /// The application failed on a message that it was called for then.
    pub fn failed(
        &mut self,
        identity: Option<Identity>,
        status: Option<u16>,
        called: Time,
        now: Time,
        seed: u64,
    ) -> Change {
        self.record(Sample { failed: true, status, identity });
        if let Some(open) = &mut self.open {
            // Calls that were on the way when it opened are no probes, however late they end.
            if called > open.since && now >= open.next_probe {
                open.next_probe = now + open.backoff.pause();
                open.failed = open.failed.saturating_add(1);
                open.status = common_status(&self.recent, LATEST);
            }
            return Change::None;
        }
        if !self.is_outage() {
            return Change::None;
        }
        let status = common_status(&self.recent, SAMPLES);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed);
        let next_probe = now + backoff.pause();
        self.open = Some(Open { since: now, next_probe, failed: 0, backoff, status });
        Change::Opened(status)
    }

    fn record(&mut self, sample: Sample) {
        if self.recent.len() == SAMPLES {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
    }

    fn is_outage(&self) -> bool {
        let failures: Vec<&Sample> = self.recent.iter().filter(|sample| sample.failed).collect();
        if self.recent.len() < SAMPLES || failures.len() * 100 < SAMPLES * SHARE_PERCENT {
            return false;
        }
        let mut known: Vec<Identity> = failures.iter().filter_map(|sample| sample.identity).collect();
        let anonymous = failures.len() - known.len();
        known.sort_unstable();
        known.dedup();
        known.len() + anonymous >= DISTINCT
    }
}

/// The status that most of the latest failures had: having none, as without an answer, is one of its own.
fn common_status(recent: &VecDeque<Sample>, latest: usize) -> Option<u16> {
    let failures = recent.iter().rev().filter(|sample| sample.failed);
    let mut statuses: Vec<Option<u16>> = failures.take(latest).map(|sample| sample.status).collect();
    statuses.sort_unstable();
    statuses.chunk_by(|a, b| a == b).max_by_key(|run| run.len())?.first().copied().flatten()
}

/// Whether a status says that the handler's address or permissions are wrong, rather than its work.
pub fn is_misconfigured(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 405 | 431)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &mut Breaker, identity: u64) -> Change {
        breaker.failed(Some(Identity::Message(identity)), Some(500), Time::ZERO, Time::ZERO, 1)
    }

    #[test]
    fn it_opens_when_eighty_percent_of_the_last_twenty_failed() {
        let mut breaker = Breaker::new();
        for _ in 0..4 {
            breaker.succeeded();
        }
        for n in 0..15 {
            assert_eq!(fail(&mut breaker, n), Change::None);
        }
        assert_eq!(fail(&mut breaker, 15), Change::Opened(Some(500)));
    }

    #[test]
    fn a_fifth_of_successes_and_more_keeps_it_closed() {
        let mut breaker = Breaker::new();
        for n in 0..200 {
            let change = if n % 4 == 0 { breaker.succeeded() } else { fail(&mut breaker, n) };
            assert_eq!(change, Change::None);
        }
    }

    #[test]
    fn one_poison_message_that_comes_again_and_again_is_no_outage() {
        let mut breaker = Breaker::new();
        for n in 0..200 {
            assert_eq!(fail(&mut breaker, n % 2), Change::None);
        }
    }

    #[test]
    fn failures_without_an_answer_count_against_a_status_that_few_have() {
        let mut breaker = Breaker::new();
        breaker.failed(Some(Identity::Message(0)), Some(404), Time::ZERO, Time::ZERO, 1);
        let mut change = Change::None;
        for n in 1..20 {
            change = breaker.failed(Some(Identity::Message(n)), None, Time::ZERO, Time::ZERO, 1);
        }
        assert_eq!(change, Change::Opened(None));
    }

    #[test]
    fn one_probe_that_answers_otherwise_is_no_news_and_two_are() {
        let mut breaker = Breaker::new();
        for n in 0..20 {
            fail(&mut breaker, n);
        }
        let mut told = Vec::new();
        for status in [Some(404), Some(500), Some(404), Some(404), None, None] {
            let now = breaker.next_probe().unwrap();
            breaker.failed(Some(Identity::Message(1)), status, now, now, 1);
            told.push(breaker.status());
        }
        assert_eq!(told, [Some(500), Some(500), Some(404), Some(404), Some(404), None]);
    }

    #[test]
    fn a_success_closes_it_and_forgets_the_past() {
        let mut breaker = Breaker::new();
        for n in 0..20 {
            fail(&mut breaker, n);
        }
        assert!(breaker.open_since().is_some());
        assert_eq!(breaker.succeeded(), Change::Closed);
        assert_eq!(fail(&mut breaker, 99), Change::None);
    }

    #[test]
    fn probes_come_with_growing_pauses_of_at_most_half_a_minute() {
        let mut breaker = Breaker::new();
        for n in 0..20 {
            fail(&mut breaker, n);
        }
        let mut now = Time::ZERO;
        for n in 0..20 {
            let next = breaker.next_probe().unwrap();
            assert!(next > now && next - now <= Duration::from_secs(30));
            now = next;
            breaker.failed(Some(Identity::Message(n)), None, now, now, 1);
        }
        assert!(now > Duration::from_secs(200));
    }

    #[test]
    fn calls_that_were_on_the_way_when_it_opened_put_the_next_probe_off_by_nothing() {
        let mut breaker = Breaker::new();
        for n in 0..20 {
            fail(&mut breaker, n);
        }
        let next = breaker.next_probe();
        for n in 0..100 {
            fail(&mut breaker, n);
            // Also those that end long after.
            breaker.failed(Some(Identity::Message(n)), Some(500), Time::ZERO, Duration::from_secs(n), 1);
        }
        assert_eq!((breaker.next_probe(), breaker.failed_probes()), (next, 0));
    }

    #[test]
    fn a_status_of_the_address_or_its_permissions_is_told_from_one_of_the_work() {
        let wrong: Vec<u16> = (100..600).filter(|status| is_misconfigured(*status)).collect();
        assert_eq!(wrong, [401, 403, 404, 405, 431]);
    }
}
