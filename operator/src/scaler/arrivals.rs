//! How many messages arrive in a second, from what is held and what was settled. Pure.

use std::collections::VecDeque;

/// Least seconds between two kept samples, which bounds their number.
const LEAST_SPACING: f64 = 0.9;
/// Samples that a window is kept in, where that makes them further apart.
const SAMPLES: f64 = 64.0;
/// Part of what was settled in the window that may lie between the two readings.
const BETWEEN: u64 = 8;
/// Fewest messages whose loss is told from those that are on their way between two readings.
const LEAST_LOST: u64 = 5;

/// Arrivals of the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Arrivals(VecDeque<Sample>);

/// What was counted at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// When, in seconds.
    pub at: f64,
    /// Messages ready, or delivered and not settled.
    pub held: u64,
    /// Settled so far.
    pub settled: u64,
}

impl Arrivals {
    /// Takes a sample in, and forgets what is older than `window` seconds.
    pub fn observe(&mut self, sample: Sample, window: f64) {
        let samples = &mut self.0;
        // A time that goes back, or a counter that does, means another epoch: rates start again.
        if samples.back().is_some_and(|last| sample.at < last.at || sample.settled < last.settled) {
            samples.clear();
        }
        let spacing = (window / SAMPLES).max(LEAST_SPACING);
        match samples.len() {
            length if length >= 2 && sample.at - samples[length - 2].at < spacing => {
                samples[length - 1] = sample;
            }
            _ => samples.push_back(sample),
        }
        while samples.len() > 2 && sample.at - samples[1].at >= window {
            samples.pop_front();
        }
    }

    /// How many messages have gone unsettled since the sample before, as of a queue that is purged or whose messages expire; none
    /// where that may be the time between the readings of the queue and of the pods.
    pub fn lost(&self, sample: Sample) -> u64 {
        let Some(last) = self.0.back() else { return 0 };
        let all = |sample: Sample| sample.held.saturating_add(sample.settled);
        let lost = all(*last).saturating_sub(all(sample));
        if lost > (self.settled() / BETWEEN).max(last.held / 2).max(LEAST_LOST) { lost } else { 0 }
    }

    /// Forgets that so many messages were held: their loss is not that fewer arrive.
    pub fn forget(&mut self, lost: u64) {
        self.0.iter_mut().for_each(|sample| sample.held = sample.held.saturating_sub(lost));
    }

    /// Arrivals a second of the last `window` seconds; what was before the first sample counts as nothing.
    pub fn rate(&self, window: f64) -> f64 {
        let Some(last) = self.0.back() else { return 0.0 };
        let before = self.0.partition_point(|sample| last.at - sample.at >= window).saturating_sub(1);
        let Some(first) = self.0.get(before) else { return 0.0 };
        let arrived = last.held as f64 - first.held as f64 + (last.settled - first.settled) as f64;
        arrived / (last.at - first.at).max(window)
    }

    /// Messages settled since the beginning of the window.
    pub fn settled(&self) -> u64 {
        self.0.back().zip(self.0.front()).map_or(0, |(last, first)| last.settled - first.settled)
    }

    /// How much more is held than at the beginning of the window: a first sample says nothing of that.
    pub fn growth(&self) -> f64 {
        match (self.0.front(), self.0.back()) {
            (Some(first), Some(last)) => last.held as f64 - first.held as f64,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u32, window: f64) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for second in 0..=seconds {
            // Two a second, of which one is settled.
            let count = u64::from(second);
            arrivals.observe(Sample { at: f64::from(second), held: count, settled: count }, window);
        }
        arrivals
    }

    #[test]
    fn what_arrives_is_what_is_held_more_and_what_was_settled() {
        assert_eq!(after(100, 30.0).rate(30.0), 2.0);
        assert_eq!(after(15, 30.0).rate(30.0), 1.0);
        assert_eq!((after(100, 30.0).settled(), after(100, 30.0).growth()), (30, 30.0));
    }

    #[test]
    fn an_hour_takes_no_more_samples_than_a_minute() {
        let arrivals = after(10_000, 3600.0);
        assert!(arrivals.0.len() <= 70, "{}", arrivals.0.len());
        assert!((arrivals.rate(3600.0) - 2.0).abs() < 0.01);
    }

    #[test]
    fn what_is_purged_was_never_there_and_what_is_between_two_readings_is_not_lost() {
        let rate = |held| {
            let mut arrivals = after(100, 30.0);
            let sample = Sample { at: 101.0, held, settled: 101 };
            arrivals.forget(arrivals.lost(sample));
            arrivals.observe(sample, 30.0);
            arrivals.rate(30.0)
        };
        // One of two stays a second, and half of all was settled.
        assert_eq!([101, 71, 51].map(rate), [2.0, 1.0, 10.0 / 30.0]);
        // What came since the last look is lost from sight with them, and of what is there none was lost before it came.
        assert_eq!([30, 0].map(rate), [58.0 / 30.0, 1.0]);
    }

    #[test]
    fn a_counter_that_falls_starts_again() {
        let mut arrivals = after(100, 30.0);
        arrivals.observe(Sample { at: 101.0, held: 7, settled: 0 }, 30.0);
        assert_eq!(arrivals.rate(30.0), 0.0);
    }

    #[test]
    fn what_came_between_two_looks_that_are_far_apart_came_within_that_time() {
        let mut arrivals = Arrivals::default();
        for at in [0.0, 100.0] {
            arrivals.observe(Sample { at, held: 0, settled: at as u64 }, 30.0);
        }
        assert_eq!(arrivals.rate(30.0), 1.0);
    }
}
