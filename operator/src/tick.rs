//! Moments at which the process does together what comes due about then: to wake up for each of many small things costs more
//! than the things themselves, here and on the broker.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// The time between two of these moments.
pub const TICK: Duration = Duration::from_millis(20);

/// From where they are counted.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The last of them that is not after `at`.
pub fn before(at: Instant) -> Instant {
    at.checked_sub(past(*EPOCH, at)).unwrap_or(at)
}

/// The first of them that is not before `at`.
pub fn after(at: Instant) -> Instant {
    match past(*EPOCH, at) {
        Duration::ZERO => at,
        past => at + (TICK - past),
    }
}

/// How long ago the last of them was at `at`.
fn past(epoch: Instant, at: Instant) -> Duration {
    let nanos = at.saturating_duration_since(epoch).as_nanos() % TICK.as_nanos();
    // Less than a tick.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_between_two_moments_is_due_at_the_second() {
        let moment = after(Instant::now());
        assert_eq!((before(moment), after(moment)), (moment, moment));
        let between = moment + Duration::from_micros(1);
        assert_eq!((before(between), after(between)), (moment, moment + TICK));
        assert_eq!(after(moment + TICK - Duration::from_nanos(1)), moment + TICK);
    }
}
