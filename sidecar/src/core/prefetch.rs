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
    pub fn next_look(&self) -> Time {
        self.looked + INTERVAL
    }

    /// The window to ask for now.
    pub fn target(&mut self, settings: &Settings, now: Time) -> u16 {
        if !settings.auto_prefetch {
            self.window = None;
            return settings.prefetch;
        }
        let per_call = settings.batch.map_or(1, |batch| batch.max_messages);
        let at_work = settings.concurrency.saturating_mul(per_call).clamp(1, settings.prefetch);
        let current =
            self.window.unwrap_or_else(|| at_work.saturating_mul(2)).clamp(at_work, settings.prefetch);
        self.window = Some(current);
        if now < self.next_look() {
            return current;
        }
        self.looked = now;
        if self.calls < FEWEST_CALLS {
            return current;
        }
        let seconds_each = self.busy.as_secs_f64() / f64::from(self.calls);
        let batch = (self.messages as f64 / f64::from(self.calls)).max(1.0);
        (self.calls, self.messages, self.busy) = (0, 0, Duration::ZERO);
        let rate = f64::from(settings.concurrency) * batch / seconds_each.max(1e-5);
        let ahead = rate * 2.0 * self.round_trip.max(SHORTEST_ROUND_TRIP).as_secs_f64();
        // Whole messages: half a message that could start in time is none.
        let most = whole(rate * LONGEST_WAIT.as_secs_f64());
        let window = |waiting: u16| at_work.saturating_add(waiting).clamp(at_work, settings.prefetch);
        let wanted = window(whole(ahead.ceil()).max(1).min(most));
        // A change costs a round trip without messages: small ones are not worth it, unless too much is held.
        if u32::from(wanted.abs_diff(current)) * 4 > u32::from(current) || current > window(most) {
            self.window = Some(wanted);
        }
        self.window.unwrap_or(current)
    }
}

fn whole(number: f64) -> u16 {
    // The cast saturates.
    number as u16
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Batch, Ladder};
    use super::*;

    fn settings(prefetch: u16, concurrency: u16) -> Settings {
        Settings {
            prefetch,
            auto_prefetch: true,
            ordered: false,
            concurrency,
            paused: false,
            ladder: Ladder { delays_seconds: vec![], max_attempts: 1 },
            batch: None,
            late_timeout: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            grace_period: Duration::ZERO,
            consumer_timeout: Duration::ZERO,
        }
    }

    /// The window at the next look, after calls that took so long each.
    fn after(auto: &mut AutoPrefetch, settings: &Settings, call: Duration, look: u64) -> u16 {
        for _ in 0..100 {
            auto.called(call, 1);
        }
        auto.target(settings, INTERVAL * u32::try_from(look).unwrap())
    }

    #[test]
    fn it_grows_to_what_two_round_trips_use_up_and_never_above_the_ceiling() {
        for (ceiling, window) in [(500, 82), (50, 50)] {
            let mut auto = AutoPrefetch::default();
            auto.round_trip(Duration::from_millis(10));
            let settings = settings(ceiling, 2);
            assert_eq!(auto.target(&settings, Time::ZERO), 4, "twice what is at work to begin with");
            // Two calls at once of half a millisecond: 4,000 a second, 80 in 20 ms.
            assert_eq!(after(&mut auto, &settings, Duration::from_micros(500), 1), window);
        }
    }

    #[test]
    fn it_shrinks_with_a_slow_handler_to_what_starts_within_a_second() {
        let mut auto = AutoPrefetch::default();
        auto.round_trip(Duration::from_millis(10));
        let settings = settings(500, 2);
        assert_eq!(after(&mut auto, &settings, Duration::from_micros(500), 1), 82);
        assert_eq!(after(&mut auto, &settings, Duration::from_millis(500), 2), 3);
        assert_eq!(after(&mut auto, &settings, Duration::from_secs(4), 3), 2, "none would start in a second");
    }

    #[test]
    fn it_gives_up_the_window_that_it_began_with_if_the_handler_is_slow() {
        let mut auto = AutoPrefetch::default();
        for (concurrency, began) in [(1, 2), (8, 16)] {
            let settings = settings(500, concurrency);
            auto = AutoPrefetch::default();
            assert_eq!(auto.target(&settings, Time::ZERO), began);
            assert_eq!(after(&mut auto, &settings, Duration::from_secs(30), 1), concurrency);
        }
        assert_eq!(after(&mut auto, &settings(500, 8), Duration::from_secs(30), 2), 8, "and stays there");
    }

    #[test]
    fn it_changes_at_most_every_ten_seconds_and_only_for_a_good_part() {
        let mut auto = AutoPrefetch::default();
        let settings = settings(500, 2);
        let mut changes = Vec::new();
        let mut window = auto.target(&settings, Time::ZERO);
        for tick in 1..600 {
            let call = if tick % 7 < 4 { Duration::from_micros(100) } else { Duration::from_secs(1) };
            for _ in 0..20 {
                auto.called(call, 1);
            }
            let now = Duration::from_millis(500) * tick;
            let next = auto.target(&settings, now);
            if next != window {
                changes.push(now);
                window = next;
            }
        }
        assert!(changes.windows(2).all(|pair| pair[1] - pair[0] >= INTERVAL), "{changes:?}");
        let mut auto = AutoPrefetch::default();
        auto.round_trip(Duration::from_millis(10));
        assert_eq!(after(&mut auto, &settings, Duration::from_micros(500), 1), 82);
        assert_eq!(after(&mut auto, &settings, Duration::from_micros(450), 2), 82);
    }

    #[test]
    fn a_few_calls_say_nothing() {
        let mut auto = AutoPrefetch::default();
        let settings = settings(500, 2);
        assert_eq!(auto.target(&settings, Time::ZERO), 4);
        for _ in 1..FEWEST_CALLS {
            auto.called(Duration::from_micros(1), 1);
        }
        assert_eq!(auto.target(&settings, INTERVAL), 4);
    }

    #[test]
    fn one_message_too_many_is_given_up_though_the_change_is_a_small_one() {
        let mut auto = AutoPrefetch::default();
        let settings = settings(500, 8);
        auto.target(&settings, Time::ZERO);
        assert_eq!(after(&mut auto, &settings, Duration::from_millis(500), 1), 9);
        assert_eq!(after(&mut auto, &settings, Duration::from_secs(30), 2), 8);
    }

    #[test]
    fn a_call_of_many_messages_uses_up_as_many() {
        let mut auto = AutoPrefetch::default();
        auto.round_trip(Duration::from_millis(10));
        let batch = Some(Batch { max_messages: 100, max_wait: Duration::ZERO });
        let settings = Settings { batch, ..settings(1000, 1) };
        assert_eq!(auto.target(&settings, Time::ZERO), 200);
        for _ in 0..100 {
            auto.called(Duration::from_millis(10), 100);
        }
        // A hundred in ten milliseconds, and two hundred in two round trips.
        assert_eq!(auto.target(&settings, INTERVAL), 300);
    }
}
