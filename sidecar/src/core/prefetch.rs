//! The window that follows the load: large enough that the handler never waits for the broker, small enough that nothing is
//! held that could not start within a second.

use std::time::Duration;

use super::event::Time;
use super::settings::Settings;

/// How often the window may change: each change cancels the consumer and starts another.
const INTERVAL: Duration = Duration::from_secs(10);
/// Calls that must have been measured for a new look.
const FEWEST_CALLS: u32 = 10;
/// What is held should start within this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A round trip is never taken to be shorter: the broker itself needs a moment.
const SHORTEST_ROUND_TRIP: Duration = Duration::from_millis(1);

/// Measures and decides.
#[derive(Debug, Default)]
pub(super) struct AutoPrefetch {
    window: Option<u16>,
    looked: Time,
    round_trip: Duration,
    calls: u32,
    messages: u64,
    busy: Duration,
}

impl AutoPrefetch {
    /// A call ended.
    pub fn called(&mut self, took: Duration, messages: usize) {
        self.calls = self.calls.saturating_add(1);
        self.messages += messages as u64;
        self.busy += took;
    }

    /// The broker answered a request.
    pub fn round_trip(&mut self, took: Duration) {
        self.round_trip = took;
    }

    /// When the window may change next.
    pub fn next_look(&self) -> Option<Time> {
        Some(self.looked + INTERVAL)
    }

    /// The window to ask for now.
    pub fn target(&mut self, settings: &Settings, now: Time) -> u16 {
        if !settings.auto_prefetch {
            self.window = None;
            return settings.prefetch;
        }
        let per_call = settings.batch.map_or(1, |batch| batch.max_messages.max(1));
        let at_work = settings.concurrency.saturating_mul(per_call).clamp(1, settings.prefetch);
        let current =
            self.window.unwrap_or_else(|| at_work.saturating_mul(2)).clamp(at_work, settings.prefetch);
        self.window = Some(current);
        if now < self.looked + INTERVAL {
            return current;
        }
        self.looked = now;
        if self.calls < FEWEST_CALLS {
            return current;
        }
        let seconds_each = self.busy.as_secs_f64() / f64::from(self.calls);
        let (calls, messages) = (self.calls, self.messages);
        self.busy = Duration::ZERO;
        self.calls = 0;
        self.messages = 0;
        let batch = (messages as f64 / f64::from(calls)).max(1.0);
        let rate = f64::from(settings.concurrency) * batch / seconds_each.max(1e-5);
        let ahead = rate * 2.0 * self.round_trip.max(SHORTEST_ROUND_TRIP).as_secs_f64();
        let most = rate * LONGEST_WAIT.as_secs_f64();
        let wanted = f64::from(at_work) + ahead.max(1.0).min(most);
        let wanted = (wanted.ceil().min(f64::from(u16::MAX)) as u16).clamp(at_work, settings.prefetch);
        // A change costs a round trip without messages: small ones are not worth it.
        if wanted.abs_diff(current) * 4 > current {
            self.window = Some(wanted);
        }
        self.window.unwrap_or(current)
    }
}
