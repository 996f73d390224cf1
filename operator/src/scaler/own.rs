//! What this process has made of a Deployment's replicas, where a cache does not know of it yet. Pure.
//!
//! Times are seconds of a monotonic clock.

/// How long a change of the Deployment may take to come back in the cache.
const SETTLE: f64 = 3.0;
/// The same of a patch whose answer was lost, and which may have been made all the same.
const LOST: f64 = 30.0;

/// What was decided last, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Own {
    decided: Option<u32>,
    patched: Option<f64>,
    lost: Option<f64>,
}

impl Own {
    /// Replicas to decide from, where the cache says `live`. A Deployment that is gone is made again with as many as before, and with
    /// `least` where nothing was decided yet.
    pub fn current(&self, live: Option<u32>, least: u32, now: f64) -> u32 {
        let Some(live) = live else { return self.decided.unwrap_or(least) };
        // Whether it was made shows in the cache.
        let sure = self.lost.is_none_or(|at| now - at > LOST);
        self.decided.filter(|_| sure).unwrap_or(live)
    }

    /// Whether another number in the cache is somebody else's: the cache had the time to know of the last patch.
    pub fn settled(&self, now: f64) -> bool {
        self.patched.is_none_or(|at| now - at > SETTLE)
    }

    /// So many are decided on.
    pub const fn decided(&mut self, replicas: u32) {
        self.decided = Some(replicas);
    }

    /// The patch was made.
    pub const fn patched(&mut self, now: f64) {
        (self.patched, self.lost) = (Some(now), None);
    }

    /// The patch was not made.
    pub const fn not_patched(&mut self) {
        self.decided = None;
    }

    /// Whether the patch was made is not known.
    pub const fn lost(&mut self, now: f64) {
        (self.decided, self.lost) = (None, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_lags_behind_a_patch_is_not_believed() {
        let mut own = Own::default();
        assert_eq!((own.current(Some(4), 1, 0.0), own.settled(0.0)), (4, true));
        own.decided(9);
        own.patched(10.0);
        assert_eq!((own.current(Some(4), 1, 11.0), own.settled(11.0)), (9, false));
        assert!(own.settled(14.0));
    }

    #[test]
    fn a_patch_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
        let mut own = Own::default();
        own.decided(5);
        own.lost(10.0);
        // What is decided from a cache that does not know of it yet is not believed later.
        assert_eq!(own.current(Some(0), 1, 11.0), 0);
        own.decided(0);
        assert_eq!(own.current(Some(5), 1, 12.0), 5);
        own.decided(5);
        assert_eq!(own.current(Some(7), 1, 41.0), 5, "by then another number is somebody else's");
    }

    #[test]
    fn a_deployment_that_is_gone_has_as_many_replicas_as_before() {
        let mut own = Own::default();
        assert_eq!(own.current(None, 1, 0.0), 1, "nothing was decided yet");
        own.decided(7);
        assert_eq!(own.current(None, 1, 10.0), 7);
    }

    #[test]
    fn a_patch_that_was_made_ends_the_doubt_about_one_before_it() {
        let mut own = Own::default();
        own.lost(10.0);
        own.decided(5);
        own.patched(11.0);
        assert_eq!(own.current(Some(0), 1, 11.5), 5);
    }

    #[test]
    fn what_was_decided_and_not_done_is_not_what_is_there() {
        let mut own = Own::default();
        own.decided(9);
        own.not_patched();
        assert_eq!(own.current(Some(4), 1, 1.0), 4);
        own.decided(9);
        own.lost(1.0);
        assert_eq!(own.current(Some(4), 1, 100.0), 4);
    }
}
