//! What a run amounts to, as a few numbers.

use serde::Serialize;

use super::world::Run;

/// The figures of a run; waiting is from a message's arrival to the beginning of its handler call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Median seconds of waiting.
    pub wait_p50: f64,
    /// Seconds within which 95 of 100 messages began.
    pub wait_p95: f64,
    /// Longest wait in seconds.
    pub wait_max: f64,
    /// Seconds that pods existed, starting and ending included, summed over the pods.
    pub replica_seconds: f64,
    /// Most pods asked for.
    pub peak_replicas: u32,
    /// How often the number of pods asked for changed.
    pub changes: u32,
    /// Seconds during which some message had waited for longer than `targetWaitSeconds`.
    pub seconds_over_target: f64,
    /// Messages not done at the end.
    pub unfinished: u64,
}

impl Figures {
    /// Sums a run up. `horizon` is until when it is counted: the pods that are there at its own end, `least`, stay until then.
    pub fn of(run: &Run, target_wait: f64, least: u32, horizon: f64) -> Self {
        let never = run.never_begun.iter().map(|arrival| (*arrival, run.ended_at));
        let all: Vec<(f64, f64)> = run.begun.iter().copied().chain(never).collect();
        let mut waits: Vec<f64> = all.iter().map(|(arrival, begun)| begun - arrival).collect();
        waits.sort_unstable_by(f64::total_cmp);
        let rest = f64::from(least) * (horizon - run.ended_at).max(0.0);
        Self {
            wait_p50: millis(percentile(&waits, 0.5)),
            wait_p95: millis(percentile(&waits, 0.95)),
            wait_max: millis(waits.last().copied().unwrap_or_default()),
            replica_seconds: millis(run.replica_seconds + rest),
            peak_replicas: run.peak_replicas,
            changes: run.changes,
            seconds_over_target: millis(seconds_over(all, target_wait)),
            unfinished: run.unfinished,
        }
    }
}

fn millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// The nearest-rank percentile of sorted values; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Seconds covered by the spans in which a message waits longer than `target`.
fn seconds_over(waits: Vec<(f64, f64)>, target: f64) -> f64 {
    let mut spans: Vec<(f64, f64)> = waits
        .into_iter()
        .map(|(arrival, begun)| (arrival + target, begun))
        .filter(|(from, to)| to > from)
        .collect();
    spans.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut covered, mut until) = (0.0, f64::NEG_INFINITY);
    for (from, to) in spans {
        covered += (to - from.max(until)).max(0.0);
        until = until.max(to);
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.95)), (10.0, 19.0));
        assert_eq!((percentile(&[], 0.5), percentile(&[7.0], 0.95)), (0.0, 7.0));
    }

    #[test]
    fn seconds_over_target_count_once_however_many_wait() {
        let waits = vec![(0.0, 15.0), (1.0, 14.0), (20.0, 25.0), (30.0, 42.0)];
        assert_eq!(seconds_over(waits, 10.0), 5.0 + 2.0);
    }

    #[test]
    fn what_never_began_waits_to_the_end_and_the_least_pods_stay() {
        let run = Run {
            never_begun: vec![10.0],
            ended_at: 110.0,
            unfinished: 1,
            replica_seconds: 5.0,
            ..Run::default()
        };
        let figures = Figures::of(&run, 10.0, 2, 120.0);
        assert_eq!((figures.wait_max, figures.seconds_over_target, figures.unfinished), (100.0, 90.0, 1));
        assert_eq!(figures.replica_seconds, 25.0);
    }
}
