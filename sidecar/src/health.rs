//! What the kubelet's probes ask. Nothing here depends on the broker's or the application's health of the moment: a probe that
//! did would restart pods for an outage that a restart does not mend.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A loop that has not turned for so long hangs.
const HANGS: Duration = Duration::from_secs(30);

/// The state that probes see.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds from the start to the last turn of the loop.
    beat: AtomicU64,
    connected: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self { started: Instant::now(), beat: AtomicU64::new(0), connected: AtomicBool::new(false) }
    }
}

impl Health {
    /// The loop has turned.
    pub fn beat(&self) {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(since, Ordering::Relaxed);
    }

    /// The broker was reached.
    pub fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
    }

    /// Whether the loop turns.
    pub fn is_live(&self) -> bool {
        let last = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) < HANGS
    }

    /// Whether the broker was reached once since the start.
    pub fn is_ready(&self) -> bool {
        self.connected.load(Ordering::Relaxed) && self.is_live()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_not_live_and_one_that_turns_again_is() {
        let health = Health::default();
        assert_eq!((health.is_live(), health.is_ready()), (true, false), "not connected yet");
        health.connected();
        tokio::time::advance(HANGS - Duration::from_millis(1)).await;
        assert_eq!((health.is_live(), health.is_ready()), (true, true));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((health.is_live(), health.is_ready()), (false, false));
        health.beat();
        assert_eq!((health.is_live(), health.is_ready()), (true, true));
    }
}
