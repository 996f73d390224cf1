//! How long queues that are to go have read empty. Pure.
//!
//! A quorum queue takes a message that expires out of its count, and holds it back until the queue that it goes to has taken
//! it. Where that one refuses, as it does when it is full, or is missing, the broker asks again, each three minutes, for what was
//! refused at least three minutes ago (`settle_timeout` of `rabbit_fifo_dlx_worker`): that may take nearly six. A queue that has read
//! empty for longer than that, while the other was there and had room, holds nothing back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Since when queues have read empty at every look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    since: BTreeMap<String, Instant>,
    /// When a queue that takes what others give up was last seen to be missing.
    missing: Option<Instant>,
}

impl Rest {
    /// Looks do not follow on each other: what they have seen of queues that are there says nothing any more.
    pub(super) fn interrupted(&mut self) {
        self.since.clear();
    }

    /// A queue that takes what others give up is missing, or was until now.
    pub(super) fn missed(&mut self, now: Instant) {
        self.missing = Some(now);
    }

    /// Takes over what another has seen to be missing.
    pub(super) fn missed_as(&mut self, other: &Self) {
        self.missing = self.missing.max(other.missing);
    }

    /// Takes over what another's looks have seen of queues that are there.
    pub(super) fn looked_as(&mut self, other: &Self) {
        self.since.clone_from(&other.since);
    }

    /// Whether one was missing less than `held_back` ago.
    pub(super) fn missed_within(&self, held_back: Duration, now: Instant) -> bool {
        self.missing.is_some_and(|missing| now.duration_since(missing) < held_back)
    }

    /// Takes in whether a queue was empty, and could give away what it held back, at a look; gives for how long it was at all
    /// of them.
    pub(super) fn seen(&mut self, queue: &str, empty: bool, now: Instant) -> Option<Duration> {
        if !empty {
            self.since.remove(queue);
            return None;
        }
        let since = self.since.entry(queue.to_owned()).or_insert(now);
        Some(now.duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_rests_from_the_first_look_since_which_none_found_it_otherwise() {
        let (mut rest, start) = (Rest::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rest.seen("orders.retry.5s", true, at(0)), Some(Duration::ZERO));
        assert_eq!(rest.seen("orders.retry.5s", true, at(30)), Some(Duration::from_secs(30)));
        assert_eq!(rest.seen("orders.retry.60s", true, at(30)), Some(Duration::ZERO));
        assert_eq!(rest.seen("orders.retry.5s", false, at(60)), None);
        assert_eq!(rest.seen("orders.retry.5s", true, at(90)), Some(Duration::ZERO));
        rest.interrupted();
        assert_eq!(rest.seen("orders.retry.60s", true, at(100)), Some(Duration::ZERO));
    }

    #[test]
    fn that_a_queue_was_missing_counts_from_the_last_time_and_through_interruptions() {
        let (mut rest, start) = (Rest::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let within = |rest: &Rest, seconds| rest.missed_within(Duration::from_secs(200), at(seconds));
        assert!(!within(&rest, 0));
        rest.missed(at(10));
        rest.interrupted();
        assert!(within(&rest, 209) && !within(&rest, 210));
        let mut later = Rest::default();
        later.missed(at(50));
        rest.missed_as(&later);
        rest.missed_as(&Rest::default());
        assert!(within(&rest, 249) && !within(&rest, 250));
    }
}
