//! How often a Worker is looked at. Pure.

use std::time::Duration;

use super::side;

/// How often a Worker at zero is looked at: a message wakes it within a second.
pub(super) const AT_ZERO: Duration = Duration::from_millis(400);
/// How often a Worker with pods is looked at.
const WITH_PODS: Duration = Duration::from_secs(1);
/// Probes of depth a second on one broker that are aimed at; those of the queues beside a Queue's own count too.
const PROBES_A_SECOND: f64 = 400.0;

/// The time between two looks at a Worker with so many replicas, where so many `workers` of its broker are looked at: the more there
/// are, the longer, so that the broker is not probed too often.
pub fn pause(replicas: u32, workers: usize) -> Duration {
    let base = if replicas == 0 { AT_ZERO } else { WITH_PODS };
    let probes = workers as f64 * (1.0 + 1.0 / f64::from(side::LOOKS));
    base.max(Duration::from_secs_f64(probes / PROBES_A_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_at_zero_is_looked_at_each_400_ms_and_one_with_pods_each_second() {
        assert_eq!([0, 1, 50].map(|replicas| pause(replicas, 1).as_millis()), [400, 1000, 1000]);
    }

    #[test]
    fn many_workers_are_looked_at_more_rarely_so_that_their_broker_is_probed_400_times_a_second() {
        // Each look is a probe, and each fifth another one, of a queue beside the Queue's own.
        let probes_a_second = |replicas| 2_000.0 * 1.2 / pause(replicas, 2_000).as_secs_f64();
        assert_eq!([0, 1].map(probes_a_second), [400.0; 2]);
    }
}
