//! Which Workers' pods may hold messages of which Queue, also of Workers that are gone or have turned to another Queue. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::brokers::Key;

/// The Queues of each Worker, by name: a Worker's Queue is in its own namespace.
#[derive(Debug, Default)]
pub struct Consumers(HashMap<Key, Vec<Consumed>>);

/// A Queue that a Worker consumes, or did.
#[derive(Debug)]
struct Consumed {
    queue: String,
    /// Until when pods may work on its messages; none while the Worker names it.
    until: Option<Instant>,
}

impl Consumers {
    /// A Worker names `queue`. Its pods may work on messages of the one before for `lasting`. Gives whether that is new.
    pub fn on(&mut self, worker: &Key, queue: &str, lasting: Duration, now: Instant) -> bool {
        let consumed = self.0.entry(worker.clone()).or_default();
        let new = !consumed.iter().any(|former| former.queue == queue && former.until.is_none());
        consumed.retain(|former| former.queue != queue && former.until.is_none_or(|until| now < until));
        for former in consumed.iter_mut() {
            former.until.get_or_insert(now + lasting);
        }
        consumed.push(Consumed { queue: queue.to_owned(), until: None });
        new
    }

    /// Whether pods of a Worker may hold messages of `queue`. Of one that was never seen, any may be: it was deleted before this
    /// process began.
    pub fn may_hold(&self, worker: &Key, queue: &str, now: Instant) -> bool {
        let Some(consumed) = self.0.get(worker) else { return true };
        consumed.iter().any(|one| one.queue == queue && one.until.is_none_or(|until| now < until))
    }

    /// Forgets Workers.
    pub fn retain(&mut self, known: impl Fn(&Key) -> bool) {
        self.0.retain(|worker, _| known(worker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> Key {
        Key { namespace: "shop".to_owned(), name: "invoices".to_owned() }
    }

    #[test]
    fn pods_of_a_worker_hold_messages_of_its_queue_alone_also_once_it_is_gone() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        assert!(consumers.may_hold(&worker(), "orders", now), "nothing is known of it");
        consumers.on(&worker(), "orders", Duration::from_secs(60), now);
        let late = now + Duration::from_secs(3600);
        assert_eq!(
            (consumers.may_hold(&worker(), "orders", late), consumers.may_hold(&worker(), "other", late)),
            (true, false)
        );
        consumers.retain(|_| false);
        assert!(consumers.may_hold(&worker(), "other", late), "nothing is known of it any more");
    }

    #[test]
    fn a_worker_that_turns_to_another_queue_holds_messages_of_the_former_for_a_while() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        assert!(consumers.on(&worker(), "orders", minute, now));
        assert!(consumers.on(&worker(), "other", minute, at(10)));
        // Seen again, as at each change of its status.
        assert!(!consumers.on(&worker(), "other", minute, at(50)));
        let holds = |queue, seconds| consumers.may_hold(&worker(), queue, at(seconds));
        assert_eq!((holds("orders", 69), holds("orders", 71), holds("other", 500)), (true, false, true));
        assert!(consumers.on(&worker(), "orders", minute, at(60)));
        assert!(consumers.may_hold(&worker(), "orders", at(500)), "it is back");
    }
}
