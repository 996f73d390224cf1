//! What moves at the sidecars of a Worker, and since when nothing does. Pure.

use super::inputs::Sidecars;

/// Seconds within which a copy that the broker does not take has been tried again: twice as long as a sidecar pauses.
const COPIES_AGAIN: f64 = 60.0;

/// What was seen of that.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Movement {
    /// The last that was different.
    last: Option<Mark>,
    /// Another operator has found that nothing moves, which stands until this one sees something move.
    stalled_before: bool,
    /// The first of the calls that run began then at the latest; none where one has ended since, or nothing runs.
    calling_since: Option<f64>,
    /// When a delivery was settled last.
    ended_at: Option<f64>,
    /// Extensions of late deliveries so far, and when they last became more.
    extended: (u64, f64),
    /// Tries so far at which the broker did not take a copy, and when they last became more.
    copies_failed: (u64, f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    at: f64,
    settled: u64,
    in_flight: u64,
    deliveries: u64,
    /// One that fails and is tried again in place settles nothing.
    calls: u64,
    extensions: u64,
}

impl Movement {
    /// Nothing moved for long, as another operator has seen.
    pub(super) fn stalled() -> Self {
        Self { stalled_before: true, ..Self::default() }
    }

    /// Takes in what sidecars say while `ready` messages wait.
    pub(super) fn observe(&mut self, ready: u64, sidecars: &Sidecars, now: f64) {
        let Sidecars { settled, in_flight, deliveries, calls, extensions, .. } = *sidecars;
        let seen = Mark { at: now, settled, in_flight, deliveries, calls, extensions };
        if extensions > self.extended.0 {
            self.extended = (extensions, now);
        }
        if sidecars.copies_failed > self.copies_failed.0 {
            self.copies_failed = (sidecars.copies_failed, now);
        }
        let ended = self.last.is_some_and(|before| before.settled != settled);
        if ended {
            self.ended_at = Some(now);
        }
        match in_flight {
            0 => self.calling_since = None,
            _ if ended => self.calling_since = Some(now),
            _ => _ = self.calling_since.get_or_insert(now),
        }
        // Before an application listens for the first time, nothing moves.
        let could = ready > 0 && sidecars.scraped > 0 && sidecars.able > 0;
        let stands = self.last.is_some_and(|before| Mark { at: now, ..before } == seen);
        if !stands || !could {
            self.last = Some(seen);
        }
        if sidecars.scraped > 0 && std::mem::take(&mut self.stalled_before) && could {
            self.last = Some(Mark { at: f64::NEG_INFINITY, ..seen });
        }
    }

    /// Nothing is expected to move now: what stalls is counted from here.
    pub(super) const fn progressed(&mut self, now: f64) {
        if let Some(last) = &mut self.last {
            last.at = now;
        }
    }

    /// Seconds for which nothing has moved while there was something to do.
    pub(super) fn seconds_without(&self, now: f64) -> f64 {
        self.last.map_or(0.0, |last| now - last.at)
    }

    /// Whether copies of failed messages wait for the broker.
    pub(super) fn copies_fail(&self, now: f64) -> bool {
        self.copies_failed.0 > 0 && now - self.copies_failed.1 <= COPIES_AGAIN
    }

    /// Seconds that some call has run for at least, while none has ended.
    pub(super) fn seconds_of_the_first_call(&self, now: f64) -> f64 {
        self.calling_since.map_or(0.0, |since| now - since)
    }

    /// Whether work may outlast a drain: it asks for more time, within the `handler_timeout` each time, or may do so, where
    /// nothing has ended for `window` seconds.
    pub(super) fn has_long_work(
        &self,
        sidecars: &Sidecars,
        handler_timeout: f64,
        window: f64,
        now: f64,
    ) -> bool {
        let asks = self.extended.0 > 0 && now - self.extended.1 <= handler_timeout;
        let ended_lately = self.ended_at.is_some_and(|at| now - at <= window);
        asks || sidecars.late > 0 && !ended_lately
    }
}
