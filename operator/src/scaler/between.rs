//! What a message takes of its place beyond its call: the acknowledgement, and the next delivery. Of short calls, one at a time, that
//! is much, and it is seen where more waits than the pods take. Pure.

use super::history::{SERVICE_HALF_LIFE, TOO_FEW_SECONDS};
use super::inputs::{Inputs, Sidecars};

/// So many messages tell it.
const LEAST_MESSAGES: f64 = 50.0;
/// Share of a call from which on it counts: less is in the margin that is planned with, or noise.
const LEAST_SHARE: f64 = 0.2;
/// Seconds that it is taken for at most: a place that is free for longer has another reason.
const MOST_SECONDS: f64 = 0.05;

/// What pods settle while none of them waits for a message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Between {
    /// The last look, where all pods worked.
    last: Option<Seen>,
    /// When it was seen last.
    at: f64,
    /// Decayed sums: seconds of pods, seconds of calls, and messages.
    pods: f64,
    calls: f64,
    messages: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    at: f64,
    ready: u64,
    sidecars: Sidecars,
}

impl Between {
    /// What was settled meanwhile is not known to have been so without a pause.
    pub const fn interrupted(&mut self) {
        self.last = None;
    }

    /// Takes a look in. The queue was never empty since the one before if more was ready then than has been settled since.
    pub fn observe(&mut self, ready: u64, inputs: &Inputs, now: f64) {
        let sidecars = inputs.sidecars;
        let all_work = sidecars.started > 0
            && (sidecars.scraped, sidecars.able) == (sidecars.started, sidecars.started)
            && (sidecars.held, sidecars.put_off, sidecars.ending) == (0, 0, 0)
            && !inputs.workload.rolling;
        let seen = all_work.then_some(Seen { at: now, ready, sidecars });
        let (Some(before), Some(_)) = (std::mem::replace(&mut self.last, seen), seen) else { return };
        let (seconds, was) = (now - before.at, before.sidecars);
        let settled = sidecars.settled.saturating_sub(was.settled);
        let calls = sidecars.calls.saturating_sub(was.calls);
        if was.able != sidecars.able
            || before.ready <= settled
            || settled == 0
            || calls == 0
            || seconds <= 0.0
        {
            return;
        }
        let call = (sidecars.call_seconds - was.call_seconds) / calls as f64;
        if !(call.is_finite() && call >= 0.0) {
            return;
        }
        let kept = 0.5_f64.powf(seconds / SERVICE_HALF_LIFE);
        self.at = now;
        self.pods = self.pods * kept + f64::from(sidecars.able) * seconds;
        // Of what is tried again in place the calls are more, of batches the messages.
        self.calls = self.calls * kept + call * settled.max(calls) as f64;
        self.messages = self.messages * kept + settled as f64;
    }

    /// Seconds beyond its call for which a message takes one of `at_once` places of a pod.
    pub fn seconds(&self, at_once: f64, now: f64) -> f64 {
        let Self { at, pods, calls, messages, .. } = *self;
        let idle = pods * at_once - calls;
        if messages < LEAST_MESSAGES || now - at > TOO_FEW_SECONDS || idle < calls * LEAST_SHARE {
            return 0.0;
        }
        (idle / messages).min(MOST_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pods at calls of 5 ms for so many seconds, a place taken for `place` seconds, while `ready` messages wait.
    fn after(seconds: u64, place: f64, ready: u64) -> Between {
        let mut between = Between::default();
        for now in 0..=seconds {
            let settled = (2.0 * now as f64 / place) as u64;
            let call_seconds = settled as f64 * 0.005;
            let pods = Sidecars { started: 2, able: 2, scraped: 2, ..Sidecars::default() };
            let sidecars = Sidecars { settled, calls: settled, call_seconds, ..pods };
            between.observe(ready, &Inputs { sidecars, ..Inputs::default() }, now as f64);
        }
        between
    }

    #[test]
    fn what_a_place_is_taken_for_beyond_a_call_is_seen_while_the_queue_is_never_empty() {
        let between = after(30, 0.011, 1000);
        assert!((between.seconds(1.0, 30.0) - 0.006).abs() < 1e-4, "{between:?}");
        assert_eq!(between.seconds(1.0, 700.0), 0.0, "long ago");
        assert_eq!(after(30, 0.011, 100).seconds(1.0, 30.0), 0.0, "it was empty meanwhile");
        assert_eq!(after(30, 0.0055, 1000).seconds(1.0, 30.0), 0.0, "less is noise");
        assert_eq!(after(30, 0.5, 1000).seconds(1.0, 30.0), MOST_SECONDS, "something else keeps the places");
        assert_eq!(after(10, 0.5, 1000).seconds(1.0, 10.0), 0.0, "too few messages tell");
    }

    #[test]
    fn an_outage_is_nothing_between_calls() {
        let seen = |settled: u64| {
            let pods = Sidecars { started: 1, able: 1, scraped: 1, ..Sidecars::default() };
            Inputs {
                sidecars: Sidecars { settled, calls: settled, call_seconds: settled as f64 * 0.1, ..pods },
                ..Inputs::default()
            }
        };
        let mut between = Between::default();
        between.observe(1000, &seen(0), 0.0);
        between.interrupted();
        between.observe(1000, &seen(60), 60.0);
        assert_eq!(between, Between { last: between.last, ..Between::default() });
    }
}
