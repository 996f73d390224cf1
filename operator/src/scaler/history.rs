//! What the scaler remembers of a Worker between two decisions: arrivals, seconds per message, what was wanted, progress.
//!
//! Times are seconds of a monotonic clock, given by the caller.

use std::collections::VecDeque;

use super::inputs::{Inputs, Sidecars};

/// Seconds over which arrivals are averaged.
pub const RATE_WINDOW: f64 = 30.0;
/// Seconds that tell a load that has just begun from a burst that has passed.
const RECENT_WINDOW: f64 = 10.0;
/// Seconds after which half of the weight of a measured handler call is gone.
const SERVICE_HALF_LIFE: f64 = 60.0;
/// Least seconds between two kept samples, which bounds their number.
const SAMPLE_SPACING: f64 = 0.9;
/// Readings of the queue's depth are at least this far apart, in seconds.
const SAME_READING: f64 = 0.1;
/// A handler call takes at least this long, in seconds: the broker's round trip counts too.
const LEAST_SERVICE: f64 = 0.001;

/// What is remembered of one Worker. The default is that of a Worker never seen before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    started_at: Option<f64>,
    samples: VecDeque<Sample>,
    calls: Option<(u64, f64)>,
    service: Option<Service>,
    wanted: VecDeque<(f64, f64)>,
    zero_reads: u32,
    read_at: Option<f64>,
    progress: Option<Progress>,
    unscraped_since: Option<f64>,
    last_scale_in: Option<f64>,
    last_scale_out: Option<f64>,
    took_over: bool,
    asked: Option<Asked>,
    startup: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    at: f64,
    held: u64,
    settled: u64,
}

/// Pods that were asked for and have not all started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Asked {
    at: f64,
    replicas: u32,
    started: bool,
}

/// Decayed sums of handler calls.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Service {
    at: f64,
    calls: f64,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Progress {
    at: f64,
    settled: u64,
    in_flight: u64,
    deliveries: u64,
}

impl History {
    /// A Worker whose seconds per message are known from before, such as from its status.
    pub fn with_service_seconds(seconds: f64) -> Self {
        let service =
            (seconds.is_finite() && seconds > 0.0).then_some(Service { at: 0.0, calls: 1.0, seconds });
        Self { service, ..Self::default() }
    }

    /// Takes one reading in. `ready` is the fresh ready count.
    pub(super) fn observe(&mut self, ready: u64, inputs: &Inputs, now: f64) {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.took_over = inputs.workload.replicas > 0;
        }
        let sidecars = &inputs.sidecars;
        // One reading that grows old, while the broker does not answer, is one reading.
        let read_at = now - inputs.ready.map_or(0.0, |(_, age)| age);
        if self.read_at.is_none_or(|before| (read_at - before).abs() > SAME_READING) {
            self.read_at = Some(read_at);
            self.zero_reads = if ready == 0 { self.zero_reads.saturating_add(1) } else { 0 };
        }
        self.observe_startup(inputs, now);
        self.observe_arrivals(ready, sidecars, now);
        self.observe_service(inputs, now);
        self.observe_progress(ready, sidecars, now);
        if sidecars.started > 0 && sidecars.scraped == 0 {
            self.unscraped_since.get_or_insert(now);
        } else {
            self.unscraped_since = None;
        }
    }

    fn observe_arrivals(&mut self, ready: u64, sidecars: &Sidecars, now: f64) {
        let sample =
            Sample { at: now, held: ready.saturating_add(sidecars.unsettled), settled: sidecars.settled };
        // A time that goes back, or a counter that does, means another epoch: rates start again.
        if self.samples.back().is_some_and(|last| now < last.at || sample.settled < last.settled) {
            self.samples.clear();
        }
        match self.samples.len() {
            length if length >= 2 && now - self.samples[length - 2].at < SAMPLE_SPACING => {
                self.samples[length - 1] = sample;
            }
            _ => self.samples.push_back(sample),
        }
        while self.samples.len() > 2 && now - self.samples[1].at >= RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    fn observe_startup(&mut self, inputs: &Inputs, now: f64) {
        let (replicas, running) = (inputs.workload.replicas, inputs.sidecars.started);
        match &mut self.asked {
            Some(asked) if replicas <= asked.replicas => {
                asked.replicas = replicas;
                if running >= replicas && !std::mem::replace(&mut asked.started, true) {
                    self.startup = Some(now - asked.at).filter(|seconds| *seconds > 0.0);
                }
            }
            _ => self.asked = Some(Asked { at: now, replicas, started: running >= replicas }),
        }
    }

    /// Seconds that the last pods took from their request to their start; none before.
    pub(super) const fn startup_seconds(&self) -> Option<f64> {
        self.startup
    }

    fn observe_service(&mut self, inputs: &Inputs, now: f64) {
        let Sidecars { calls, call_seconds, .. } = inputs.sidecars;
        let before = self.calls.replace((calls, call_seconds));
        let Some((calls_before, seconds_before)) = before else { return };
        if inputs.workload.rolling || inputs.workload.failing || calls <= calls_before {
            return;
        }
        let new_calls = (calls - calls_before) as f64;
        let new_seconds = call_seconds - seconds_before;
        if !new_seconds.is_finite() || new_seconds < 0.0 {
            return;
        }
        let old = self.service.unwrap_or(Service { at: now, calls: 0.0, seconds: 0.0 });
        let decay = 0.5_f64.powf((now - old.at).max(0.0) / SERVICE_HALF_LIFE);
        self.service = Some(Service {
            at: now,
            calls: old.calls * decay + new_calls,
            seconds: old.seconds * decay + new_seconds,
        });
    }

    fn observe_progress(&mut self, ready: u64, sidecars: &Sidecars, now: f64) {
        let Sidecars { settled, in_flight, deliveries, .. } = *sidecars;
        let moved = self
            .progress
            .is_none_or(|p| (p.settled, p.in_flight, p.deliveries) != (settled, in_flight, deliveries));
        if moved || ready == 0 || sidecars.scraped == 0 {
            self.progress = Some(Progress { at: now, settled, in_flight, deliveries });
        }
    }

    /// Arrivals a second that are not still waiting: those are counted once, as backlog, which is due within
    /// `target_wait` seconds.
    pub(super) fn arrival_rate(&self, backlog: f64, target_wait: f64) -> f64 {
        let still_waiting = backlog * (1.0 / RATE_WINDOW).min(1.0 / target_wait);
        (self.arrivals_within(RATE_WINDOW) / RATE_WINDOW - still_waiting).max(0.0)
    }

    /// Arrivals a second of the last [`RECENT_WINDOW`]: what a load that has just begun amounts to.
    pub(super) fn recent_rate(&self) -> f64 {
        self.arrivals_within(RECENT_WINDOW) / RECENT_WINDOW
    }

    fn arrivals_within(&self, window: f64) -> f64 {
        let Some(last) = self.samples.back() else { return 0.0 };
        let before = self.samples.partition_point(|sample| last.at - sample.at >= window).saturating_sub(1);
        let Some(first) = self.samples.get(before) else { return 0.0 };
        last.held as f64 - first.held as f64 + (last.settled - first.settled) as f64
    }

    /// Measured seconds of a handler call; none before the first.
    pub fn service_seconds(&self) -> Option<f64> {
        let service = self.service.filter(|s| s.calls > 0.0)?;
        let seconds = service.seconds / service.calls;
        seconds.is_finite().then(|| seconds.max(LEAST_SERVICE))
    }

    /// How many reads in a row said zero.
    pub(super) const fn zero_reads(&self) -> u32 {
        self.zero_reads
    }

    /// Seconds without any progress while there was something to do.
    pub(super) fn seconds_without_progress(&self, now: f64) -> f64 {
        self.progress.map_or(0.0, |p| now - p.at)
    }

    /// Seconds during which no started pod could be scraped.
    pub(super) fn seconds_unscraped(&self, now: f64) -> f64 {
        self.unscraped_since.map_or(0.0, |since| now - since)
    }

    /// Whether there were pods when the Worker was first seen, so that it had a load that is not known.
    pub(super) const fn took_over(&self) -> bool {
        self.took_over
    }

    /// Seconds since the first reading.
    pub(super) fn age(&self, now: f64) -> f64 {
        self.started_at.map_or(0.0, |at| now - at)
    }

    /// Pods were asked for.
    pub(super) const fn scaled_out(&mut self, now: f64) {
        self.last_scale_out = Some(now);
    }

    /// Pods were let go.
    pub(super) const fn scaled_in(&mut self, now: f64) {
        self.last_scale_in = Some(now);
    }

    /// Seconds since pods were asked for last; infinite before.
    pub(super) fn seconds_since_scale_out(&self, now: f64) -> f64 {
        self.last_scale_out.map_or(f64::INFINITY, |at| now - at)
    }

    /// Seconds since pods were let go last; infinite before.
    pub(super) fn seconds_since_scale_in(&self, now: f64) -> f64 {
        self.last_scale_in.map_or(f64::INFINITY, |at| now - at)
    }

    /// Remembers what is wanted now and gives the most that was wanted in the last `window` seconds. `current` is what was
    /// wanted before the first call.
    pub(super) fn most_wanted(&mut self, wanted: f64, current: f64, window: f64, now: f64) -> f64 {
        if self.wanted.is_empty() {
            self.wanted.push_back((now, current.max(wanted)));
        }
        // Kept falling: an entry below a newer one can never be the most again.
        while self.wanted.back().is_some_and(|(_, value)| *value <= wanted) {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now, wanted));
        while self.wanted.len() > 1 && now - self.wanted[0].0 >= window {
            self.wanted.pop_front();
        }
        self.wanted.front().map_or(wanted, |(_, value)| *value)
    }
}
