//! The engine's settings: parsed once, in units that it can use.

use std::time::Duration;

/// What the engine needs of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Messages held unacknowledged at most, from 1.
    pub prefetch: u16,
    /// Whether the window follows the load, with `prefetch` as its ceiling.
    pub auto_prefetch: bool,
    /// Whether messages of one key keep their order.
    pub ordered: bool,
    /// Messages at work at once, from 1.
    pub concurrency: u16,
    /// Whether consuming is held.
    pub paused: bool,
    /// The retry ladder.
    pub ladder: Ladder,
    /// Several messages a call, if asked for.
    pub batch: Option<Batch>,
    /// How long a call may take, and how long the application may be silent about a delivery that it answered with `later`.
    pub late_timeout: Duration,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// How long after a drain's begin the pod is ended at the latest: one that lives on after that was not to be ended.
    pub grace_period: Duration,
    /// How long the broker lets a delivery be unacknowledged.
    pub consumer_timeout: Duration,
}

impl Settings {
    /// Whether an attempt is a message's first, or the first by itself: that a batch has failed says little of each of its messages.
    pub fn is_first(&self, attempt: u32) -> bool {
        attempt <= 1 + u32::from(self.batch.is_some())
    }

    /// How long after a drain's begin calls may start: those that do end before the drain does.
    pub fn starts_while_draining(&self) -> Duration {
        (self.drain_timeout / 2).min(self.drain_timeout.saturating_sub(self.late_timeout))
    }
}

/// Several messages a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Messages in a call at most, from 1.
    pub max_messages: u16,
    /// How long the first message waits for others.
    pub max_wait: Duration,
}

/// The retry ladder: attempt n waits `delays_seconds[n - 1]`, the last delay repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// Seconds of each rung, rising; empty for none.
    pub delays_seconds: Vec<u32>,
    /// Attempts in all, the first included.
    pub max_attempts: u32,
}

/// Where a message goes after its attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// To the retry queue of that delay.
    Delay(u32),
    /// To the dead-letter queue.
    Exhausted,
}

impl Ladder {
    /// How many attempts a message has: without a rung there is no second one.
    pub fn attempts(&self) -> u32 {
        if self.delays_seconds.is_empty() { 1 } else { self.max_attempts }
    }

    /// Where a message goes whose attempt number `attempts` has just failed. A wish of the handler takes the first rung that
    /// is not shorter, else the last.
    pub fn after(&self, attempts: u32, wish: Option<Duration>) -> Rung {
        if attempts >= self.max_attempts {
            return Rung::Exhausted;
        }
        let Some(last) = self.delays_seconds.last() else {
            return Rung::Exhausted;
        };
        let rung = match wish {
            Some(wish) => {
                self.delays_seconds.iter().find(|delay| Duration::from_secs(u64::from(**delay)) >= wish)
            }
            None => self.delays_seconds.get(attempts.saturating_sub(1) as usize),
        };
        Rung::Delay(*rung.unwrap_or(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Ladder {
        Ladder { delays_seconds: vec![5, 60, 600], max_attempts: 5 }
    }

    #[test]
    fn attempt_n_waits_the_nth_delay_and_the_last_repeats() {
        let waits: Vec<_> = (1..=5).map(|attempt| ladder().after(attempt, None)).collect();
        assert_eq!(
            waits,
            [Rung::Delay(5), Rung::Delay(60), Rung::Delay(600), Rung::Delay(600), Rung::Exhausted]
        );
    }

    #[test]
    fn retry_after_takes_the_first_rung_that_is_not_shorter_else_the_last() {
        let wish = |seconds| ladder().after(1, Some(Duration::from_secs(seconds)));
        assert_eq!(wish(0), Rung::Delay(5));
        assert_eq!(wish(5), Rung::Delay(5));
        assert_eq!(wish(6), Rung::Delay(60));
        assert_eq!(wish(4000), Rung::Delay(600));
    }

    #[test]
    fn without_rungs_the_first_failure_is_the_last() {
        let none = Ladder { delays_seconds: vec![], max_attempts: 24 };
        assert_eq!(none.after(1, None), Rung::Exhausted);
        assert_eq!((none.attempts(), ladder().attempts()), (1, 5));
    }

    #[test]
    fn calls_of_a_drain_start_in_its_first_half_and_only_where_they_end_in_time() {
        let starts = |drain: u64, call: u64| {
            let drain_timeout = Duration::from_secs(drain);
            let late_timeout = Duration::from_secs(call);
            let ladder = ladder();
            let settings = Settings {
                prefetch: 1,
                auto_prefetch: false,
                ordered: false,
                concurrency: 1,
                paused: false,
                ladder,
                batch: None,
                late_timeout,
                drain_timeout,
                grace_period: drain_timeout,
                consumer_timeout: drain_timeout,
            };
            settings.starts_while_draining().as_secs()
        };
        assert_eq!([starts(60, 50), starts(600, 30), starts(30, 60)], [10, 300, 0]);
    }
}
