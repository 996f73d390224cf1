//! How long queues that are to go have read empty. Pure.
//!
//! A quorum queue takes a message that expires out of its count, and holds it back until the queue that it goes to has taken
//! it. Where that one refuses, as it does when it is full, the broker asks again after three minutes (`settle_timeout` of
//! `rabbit_fifo_dlx_worker`). A queue that has read empty for longer than that, while the other had room, holds nothing back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Since when queues have read empty at every look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    since: BTreeMap<String, Instant>,
}

impl Rest {
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
    }
}
