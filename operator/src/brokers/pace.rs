//! How much of a broker's work goes on at once, and how long a lost connection is no news. Pure.
//!
//! A broker that is slow forms quorum queues badly (3.10 closes the connection with INTERNAL_ERROR, and its dead-letter
//! supervisor may die of many at once): after a loss a lane begins again with one declaration and widens while they succeed.

use std::time::Duration;

use tokio::time::Instant;
use warren_broker::{BrokerError, Category};

use crate::tick::TICK;

/// Queues of a broker that are declared at once, at most, by all its lanes together.
pub(super) const WIDEST: usize = 4;
/// Successes in a row that allow one more at once.
const SUCCESSES: u32 = 16;
/// How long a connection that was lost may take to come back before the Queues say so.
const BLINK: Duration = Duration::from_secs(3);

/// Probes of depth that a broker gets at each tick: 400 a second at most.
const PROBES_A_TICK: u32 = 8;

/// Whose turn it is to probe: so many at each tick.
#[derive(Debug)]
pub(super) struct Turns {
    tick: Instant,
    taken: u32,
}

impl Turns {
    /// The first is at `tick`.
    pub(super) const fn from(tick: Instant) -> Self {
        Self { tick, taken: 0 }
    }

    /// The next turn, for one who comes during `tick`; none where it is more than `patience` ahead: one that nobody waits for would
    /// be another's loss.
    pub(super) fn next(&mut self, tick: Instant, patience: Duration) -> Option<Instant> {
        if self.tick > tick + patience {
            return None;
        }
        if tick > self.tick {
            (self.tick, self.taken) = (tick, 0);
        } else if self.taken >= PROBES_A_TICK {
            (self.tick, self.taken) = (self.tick + TICK, 0);
        }
        self.taken += 1;
        Some(self.tick)
    }
}

/// The width of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    width: usize,
    successes: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { width: WIDEST, successes: 0 }
    }
}

impl Pace {
    /// How many declarations may be at work at once; one that hangs is not.
    pub(super) const fn width(self) -> usize {
        self.width
    }

    /// One more succeeded.
    pub(super) const fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= SUCCESSES && self.width < WIDEST {
            self.width += 1;
            self.successes = 0;
        }
    }

    /// The connection was lost, or the broker did not answer in time.
    pub(super) const fn lost(&mut self) {
        self.width = 1;
        self.successes = 0;
    }
}

/// How long to wait before telling the Queues of an error. A refusal does not pass by itself, and a broker that was never
/// reached has nothing to come back.
pub(super) fn patience(error: &BrokerError, was_up: bool) -> Duration {
    if was_up && error.category() != Category::Terminal { BLINK } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_begins_again_with_one_and_widens_while_declarations_succeed() {
        let mut pace = Pace::default();
        pace.lost();
        assert_eq!(pace.width(), 1);
        (0..SUCCESSES).for_each(|_| pace.succeeded());
        assert_eq!(pace.width(), 2);
        (0..SUCCESSES * 10).for_each(|_| pace.succeeded());
        assert_eq!(pace.width(), WIDEST);
    }

    #[test]
    fn a_broker_is_probed_at_most_400_times_a_second() {
        let start = Instant::now();
        let mut turns = Turns::from(start);
        let mut last = start;
        // Whoever comes at once waits for a turn.
        let second = Duration::from_secs(1);
        for _ in 0..400 {
            last = turns.next(start, second).unwrap();
        }
        assert_eq!(last, start + second - TICK);
        // Who would not wait for so long takes none.
        for _ in 0..400 {
            assert_eq!(turns.next(start, second / 2), None);
        }
        assert_eq!(turns.next(start, second), Some(start + second));
        // Turns that nobody took are gone.
        let later = start + Duration::from_secs(10);
        assert_eq!(turns.next(later, second), Some(later));
    }

    #[test]
    fn a_refusal_is_told_at_once_and_a_blink_is_not() {
        let closed = BrokerError::Closed { detail: "x".to_owned() };
        assert_eq!(patience(&closed, true), BLINK);
        assert_eq!(patience(&closed, false), Duration::ZERO);
        assert_eq!(patience(&BrokerError::AuthRefused { user: "u".to_owned() }, true), Duration::ZERO);
    }
}
