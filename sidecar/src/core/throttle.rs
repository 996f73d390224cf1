//! How many calls run at once: the user's limit, fewer after "not now" answers, and started in bursts that a fast handler
//! answers before the next burst.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::Backoff;
use super::event::Time;

/// Calls that start at once. With a fast handler fewer connections are faster: a further burst starts only when this one has
/// been running for [`BURST_PAUSE`].
const BURST: usize = 32;
const BURST_PAUSE: Duration = Duration::from_millis(2);
/// Without another "not now" answer one call more may start each time this has passed: those that run may take an hour.
const ONE_MORE: Duration = Duration::from_secs(10);
/// The shortest pause after a "not now" answer: `Retry-After: 0`, or a date that is past, would else be a loop that only burns.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that a "not now" answer may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Limits the calls that run.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Calls at once, lowered by "not now" and raised by successes; never above the user's.
    limit: usize,
    ceiling: usize,
    /// No call starts before this.
    until: Time,
    backoff: Backoff,
    /// When the last calls started, oldest first.
    starts: VecDeque<Time>,
}

impl Throttle {
    pub fn new(ceiling: u16, seed: u64) -> Self {
        let ceiling = usize::from(ceiling.max(1));
        Self {
            limit: ceiling,
            ceiling,
            until: Time::ZERO,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed),
            starts: VecDeque::with_capacity(BURST),
        }
    }

    /// The user's limit has changed.
    pub fn set_ceiling(&mut self, ceiling: u16) {
        let ceiling = usize::from(ceiling.max(1));
        if self.limit == self.ceiling || self.limit > ceiling {
            self.limit = ceiling;
        }
        self.ceiling = ceiling;
    }

    /// When a call may start while this many run; none: not before one ends.
    pub fn may_start(&self, running: usize) -> Option<Time> {
        if running >= self.ceiling {
            return None;
        }
        if running >= self.limit {
            let more = u32::try_from(running + 1 - self.limit).unwrap_or(u32::MAX);
            return Some(self.until.saturating_add(ONE_MORE.saturating_mul(more)));
        }
        let burst = match self.starts.front() {
            Some(start) if running >= BURST && self.starts.len() == BURST => *start + BURST_PAUSE,
            _ => Time::ZERO,
        };
        Some(burst.max(self.until))
    }

    /// A call starts.
    pub fn started(&mut self, now: Time) {
        if self.ceiling > BURST {
            if self.starts.len() == BURST {
                self.starts.pop_front();
            }
            self.starts.push_back(now);
        }
    }

    /// The handler did its work.
    pub fn succeeded(&mut self) {
        if self.limit < self.ceiling {
            self.limit += 1;
        }
        self.backoff.reset();
    }

    /// The handler cannot take more now.
    pub fn not_now(&mut self, running: usize, after: Option<Duration>, now: Time) {
        // Calls that ran together answer together: they are one piece of news.
        let news = now >= self.until;
        if news {
            self.limit = (running.min(self.limit) / 2).max(1);
        }
        if let Some(pause) = after.or_else(|| news.then(|| self.backoff.pause())) {
            self.until = self.until.max(now + pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
        }
    }

    /// After an outage the load comes back call by call, beside those that still run: they may take long.
    pub fn restart(&mut self, running: usize, now: Time) {
        self.limit = (running + 1).min(self.ceiling);
        self.until = now;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_now_halves_the_calls_at_once_and_successes_bring_them_back() {
        let mut throttle = Throttle::new(8, 1);
        throttle.not_now(8, Some(Duration::from_secs(3)), Time::ZERO);
        assert_eq!(throttle.may_start(3), Some(Duration::from_secs(3)));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((throttle.may_start(4), throttle.may_start(7)), (seconds(13), seconds(43)));
        assert_eq!(throttle.may_start(8), None);
        for _ in 0..4 {
            throttle.succeeded();
        }
        assert_eq!(throttle.may_start(7), Some(Duration::from_secs(3)));
    }

    #[test]
    fn answers_of_one_burst_count_once() {
        let mut throttle = Throttle::new(8, 1);
        for _ in 0..8 {
            throttle.not_now(8, Some(Duration::from_secs(3)), Time::ZERO);
        }
        assert_eq!(throttle.limit, 4);
        let mut throttle = Throttle::new(8, 1);
        for _ in 0..8 {
            throttle.not_now(8, None, Time::ZERO);
        }
        assert!(throttle.may_start(0) <= Some(Duration::from_secs(1)), "{throttle:?}");
    }

    #[test]
    fn who_asks_for_no_pause_gets_a_short_one() {
        let mut throttle = Throttle::new(8, 1);
        throttle.not_now(1, Some(Duration::ZERO), Time::ZERO);
        assert_eq!(throttle.may_start(0), Some(SHORTEST_PAUSE));
    }

    #[test]
    fn a_wish_of_an_hour_is_cut_to_five_minutes() {
        let mut throttle = Throttle::new(8, 1);
        throttle.not_now(1, Some(Duration::from_secs(3600)), Time::ZERO);
        assert_eq!(throttle.may_start(0), Some(LONGEST_PAUSE));
    }

    #[test]
    fn a_second_burst_waits_two_milliseconds_so_slow_handlers_still_get_all_their_calls() {
        let mut throttle = Throttle::new(200, 1);
        for running in 0..BURST {
            assert_eq!(throttle.may_start(running), Some(Time::ZERO));
            throttle.started(Time::ZERO);
        }
        assert_eq!(throttle.may_start(BURST), Some(BURST_PAUSE));
        let mut now = Time::ZERO;
        for running in BURST..200 {
            now = now.max(throttle.may_start(running).unwrap());
            throttle.started(now);
        }
        assert!(now <= BURST_PAUSE * 7);
    }

    #[test]
    fn a_shorter_wish_shortens_no_longer_one_and_a_success_makes_the_next_pause_short_again() {
        let seconds = Duration::from_secs;
        let mut throttle = Throttle::new(8, 1);
        throttle.not_now(2, Some(seconds(60)), Time::ZERO);
        throttle.not_now(1, Some(seconds(3)), Time::ZERO);
        assert_eq!(throttle.may_start(0), Some(seconds(60)));
        let mut throttle = Throttle::new(8, 1);
        let mut now = Time::ZERO;
        for _ in 0..8 {
            throttle.not_now(1, None, now);
            now = throttle.may_start(0).unwrap();
        }
        throttle.succeeded();
        throttle.not_now(1, None, now);
        assert!(throttle.may_start(0).unwrap() <= now + seconds(1));
    }

    #[test]
    fn after_an_outage_nothing_waits_for_a_pause_that_was_asked_for_during_it() {
        let (mut throttle, now) = (Throttle::new(8, 1), Duration::from_secs(20));
        throttle.not_now(1, Some(LONGEST_PAUSE), Time::ZERO);
        throttle.restart(0, now);
        assert_eq!(throttle.may_start(0), Some(now));
    }

    #[test]
    fn after_an_outage_one_call_more_than_those_that_run_starts() {
        let mut throttle = Throttle::new(8, 1);
        throttle.restart(2, Time::ZERO);
        assert_eq!((throttle.may_start(2), throttle.may_start(3)), (Some(Time::ZERO), Some(ONE_MORE)));
    }

    #[test]
    fn not_now_halves_the_calls_that_run_where_fewer_do_than_may() {
        let mut throttle = Throttle::new(100, 1);
        throttle.not_now(6, Some(Duration::from_secs(3)), Time::ZERO);
        assert_eq!(throttle.may_start(2), Some(Duration::from_secs(3)));
        assert!(throttle.may_start(3) > Some(Duration::from_secs(3)));
    }

    #[test]
    fn after_an_outage_the_first_pause_is_a_short_one_again() {
        let (mut throttle, mut now) = (Throttle::new(8, 1), Time::ZERO);
        for _ in 0..8 {
            throttle.not_now(1, None, now);
            now = throttle.may_start(0).unwrap();
        }
        throttle.restart(0, now);
        throttle.not_now(1, None, now);
        assert!(throttle.may_start(0).unwrap() <= now + Duration::from_secs(1), "{throttle:?}");
    }
}
