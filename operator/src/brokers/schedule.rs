//! When a lane looks at a Queue again: pure.

use std::time::Duration;

/// Drift checks a second that a broker gets at most.
const CHECKS_A_SECOND: f64 = 100.0;
/// The longest wait after a refusal that a person may mend at any time.
const REFUSED_RETRY: Duration = Duration::from_secs(10);
/// Refusals in a row, some two minutes of them, from which on it is looked at [`SELDOM`]: each costs a channel's number for good, and
/// with the last of these the connection of all Queues is made anew.
const SOON_MENDED: u32 = 12;
/// So many times as rarely.
const SELDOM: u32 = 6;
/// The first wait after a failure that may pass by itself.
const FAILED_RETRY: Duration = Duration::from_secs(1);

/// What became of the last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Declared,
    Refused { in_a_row: u32 },
    Failed { in_a_row: u32 },
}

/// The time between two drift checks of each of `queues` on one broker, before jitter: their pace has a ceiling.
pub(super) fn interval(drift_check: Duration, queues: usize) -> Duration {
    drift_check.max(Duration::from_secs_f64(queues as f64 / CHECKS_A_SECOND))
}

/// How long until the next check. `jitter` is random in 0..1 and spreads the checks of a fleet of `queues`.
pub(super) fn next_check(last: Last, drift_check: Duration, queues: usize, jitter: f64) -> Duration {
    let spread = jitter.mul_add(0.3, 0.7);
    match last {
        Last::Declared => interval(drift_check, queues).mul_f64(spread),
        Last::Refused { in_a_row } => {
            let times = if in_a_row > SOON_MENDED { SELDOM } else { 1 };
            let wait = (drift_check.min(REFUSED_RETRY) * times).min(drift_check.max(REFUSED_RETRY));
            interval(wait, queues).mul_f64(spread)
        }
        Last::Failed { in_a_row } => {
            let backoff = FAILED_RETRY.saturating_mul(1 << in_a_row.clamp(1, 6).saturating_sub(1));
            backoff.min(drift_check.max(FAILED_RETRY)).mul_f64(spread)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFT: Duration = Duration::from_secs(30);

    #[test]
    fn a_declared_queue_is_checked_within_the_drift_interval() {
        assert!(next_check(Last::Declared, DRIFT, 10, 1.0) <= DRIFT);
        assert!(next_check(Last::Declared, DRIFT, 10, 0.0) >= DRIFT / 2);
    }

    #[test]
    fn a_fleet_that_would_pass_the_ceiling_is_checked_less_often() {
        assert_eq!(next_check(Last::Declared, DRIFT, 10_000, 1.0), Duration::from_secs(100));
    }

    #[test]
    fn what_a_person_may_mend_is_looked_at_sooner() {
        let wait = |in_a_row| next_check(Last::Refused { in_a_row }, DRIFT, 10, 1.0);
        assert_eq!((wait(1), wait(12)), (REFUSED_RETRY, REFUSED_RETRY));
        assert_eq!(wait(13), DRIFT, "nobody has mended it for two minutes");
        let rarely = next_check(Last::Refused { in_a_row: 13 }, DRIFT * 10, 10, 1.0);
        assert_eq!(rarely, Duration::from_secs(60));
    }

    #[test]
    fn failures_back_off_up_to_the_drift_interval() {
        let waits: Vec<_> =
            (1..8).map(|n| next_check(Last::Failed { in_a_row: n }, DRIFT, 10, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_fleet_that_is_refused_keeps_to_the_ceiling_too() {
        assert_eq!(next_check(Last::Refused { in_a_row: 1 }, DRIFT, 10_000, 1.0), Duration::from_secs(100));
    }
}
