//! Which Workers' pods may hold messages of which Queue, also of Workers that are gone or have turned to another Queue. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::brokers::Key;

/// What each Worker's pods may work on. A Worker's Queue is in its own namespace: its name is enough.
#[derive(Debug, Default)]
pub struct Consumers {
    workers: HashMap<Key, History>,
    /// Who may hold messages of a Queue: those that do, and some that did.
    by_queue: HashMap<Key, BTreeSet<Key>>,
    /// Raised whenever a Worker is new or forgotten.
    version: u64,
}

/// The Queues that a Worker consumes, or did.
#[derive(Debug, Default)]
struct History {
    queues: Vec<Consumed>,
    /// Until when pods may work on messages of any Queue.
    unknown: Option<Instant>,
    /// Queues of which the sidecars are told, where they cannot be told of what the Worker names: they consume on.
    told: BTreeSet<String>,
}

/// What is known of a Worker whose pods may hold messages of a Queue. What is known for sure is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holding {
    /// It may have named the Queue before this process began, and pods that have to do with that may work on for so long.
    Unseen(Duration),
    /// It names the Queue or did, or was deleted before this process began.
    Known,
}

/// A Queue that a Worker consumes, or did.
#[derive(Debug)]
struct Consumed {
    queue: String,
    /// How long pods work on after they are told to end, or of another Queue.
    lasting: Duration,
    /// Until when pods work on that were to take longer for that.
    slower: Instant,
    /// Until when pods may work on its messages; none while the Worker names it.
    until: Option<Instant>,
}

impl Consumed {
    /// Whether pods may work on its messages, where sidecars are still `told` of some Queues.
    fn is_worked_on(&self, told: &BTreeSet<String>, now: Instant) -> bool {
        told.contains(&self.queue) || self.until.is_none_or(|until| now < until)
    }
}

impl Consumers {
    /// A Worker names `queue`, and its pods work on for `lasting` when it names another. One that was not seen before and may
    /// have `turned` unseen from any other Queue has pods that work on for that one. Gives whether the Queue is new.
    pub fn on(&mut self, worker: &Key, queue: &str, lasting: Duration, turned: bool, now: Instant) -> bool {
        let of_queue = Key { namespace: worker.namespace.clone(), name: queue.to_owned() };
        self.by_queue.entry(of_queue).or_default().insert(worker.clone());
        let history = self.workers.entry(worker.clone()).or_insert_with(|| {
            self.version += 1;
            History { unknown: turned.then(|| now + lasting), ..History::default() }
        });
        let queues = &mut history.queues;
        let told = &history.told;
        queues.retain(|one| one.queue == queue || one.is_worked_on(told, now));
        let before = queues.iter().position(|former| former.queue == queue).map(|at| queues.swap_remove(at));
        for former in queues.iter_mut() {
            // Pods that end already have the time that they were given.
            former.until.get_or_insert(former.slower.max(now + former.lasting.max(lasting)));
        }
        let slower = before.as_ref().map_or(now, |before| match before.until {
            Some(until) => until,
            None if before.lasting > lasting => before.slower.max(now + before.lasting),
            None => before.slower,
        });
        let new = before.is_none_or(|before| before.until.is_some());
        queues.push(Consumed { queue: queue.to_owned(), lasting, slower, until: None });
        new
    }

    /// The configuration of a Worker's sidecars cannot be written, and names these Queues; none where it is written. Pods work on
    /// for `lasting` for those that it names no more. Gives whether that is new.
    pub fn told(&mut self, worker: &Key, told: BTreeSet<String>, lasting: Duration, now: Instant) -> bool {
        let Some(history) = self.workers.get_mut(worker) else { return false };
        if history.told == told {
            return false;
        }
        for queue in &told {
            if history.queues.iter().all(|one| one.queue != *queue) {
                let of_queue = Key { namespace: worker.namespace.clone(), name: queue.clone() };
                self.by_queue.entry(of_queue).or_default().insert(worker.clone());
                history.queues.push(Consumed {
                    queue: queue.clone(),
                    lasting,
                    slower: now,
                    until: Some(now),
                });
            }
        }
        let before = std::mem::replace(&mut history.told, told);
        for former in history.queues.iter_mut().filter(|former| before.contains(&former.queue)) {
            former.until = former.until.map(|until| until.max(now + former.lasting.max(lasting)));
        }
        true
    }

    /// Whether pods of a Worker may hold messages of `queue`. Of one that was never seen, any may be: it was deleted before this
    /// process began.
    pub fn may_hold(&self, worker: &Key, queue: &str, now: Instant) -> Option<Holding> {
        if self.holds(worker, queue, now) {
            return Some(Holding::Known);
        }
        let until = self.workers.get(worker)?.unknown?;
        (now < until).then(|| Holding::Unseen(until - now))
    }

    /// The same but for a Worker that may have turned unseen, before this process began: rather that than many that stand still
    /// at each start.
    pub fn holds(&self, worker: &Key, queue: &str, now: Instant) -> bool {
        let Some(History { queues, told, .. }) = self.workers.get(worker) else { return true };
        queues.iter().any(|one| one.queue == queue && one.is_worked_on(told, now))
    }

    /// Workers that were seen and of which [`Self::holds`] is true.
    pub fn seen_to_hold<'a>(&'a self, queue: &'a Key, now: Instant) -> impl Iterator<Item = &'a Key> {
        let workers = self.by_queue.get(queue).into_iter().flatten();
        workers.filter(move |worker| self.holds(worker, &queue.name, now))
    }

    /// Whether a Worker's sidecars, those of pods that come later included, go on with a Queue that it names no more.
    pub fn is_told(&self, worker: &Key, queue: &str) -> bool {
        self.workers.get(worker).is_some_and(|history| history.told.contains(queue))
    }

    /// The Queues that a Worker names, or did.
    pub fn queues(&self, worker: &Key) -> impl Iterator<Item = Key> {
        let queues = self.workers.get(worker).into_iter().flat_map(|history| &history.queues);
        queues.map(|one| Key { namespace: worker.namespace.clone(), name: one.queue.clone() })
    }

    /// Whether a Worker was seen.
    pub fn knows(&self, worker: &Key) -> bool {
        self.workers.contains_key(worker)
    }

    /// Another number whenever other Workers are known.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Forgets Workers.
    pub fn retain(&mut self, known: impl Fn(&Key) -> bool) {
        let before = self.workers.len();
        self.workers.retain(|worker, _| known(worker));
        if self.workers.len() < before {
            self.version += 1;
        }
        let workers = &self.workers;
        self.by_queue.retain(|queue, holding| {
            let names = |history: &History| history.queues.iter().any(|one| one.queue == queue.name);
            holding.retain(|worker| workers.get(worker).is_some_and(names));
            !holding.is_empty()
        });
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
        assert!(consumers.may_hold(&worker(), "orders", now).is_some(), "nothing is known of it");
        consumers.on(&worker(), "orders", Duration::from_secs(60), false, now);
        let late = now + Duration::from_secs(3600);
        assert_eq!(
            (consumers.may_hold(&worker(), "orders", late), consumers.may_hold(&worker(), "other", late)),
            (Some(Holding::Known), None)
        );
        consumers.retain(|_| false);
        assert!(consumers.may_hold(&worker(), "other", late).is_some(), "nothing is known of it any more");
    }

    #[test]
    fn who_holds_messages_of_a_queue_is_found_by_it() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let (queue, minute) =
            (|name: &str| Key { name: name.to_owned(), ..worker() }, Duration::from_secs(60));
        let version = consumers.version();
        consumers.on(&worker(), "orders", minute, false, now);
        assert!(consumers.knows(&worker()) && consumers.version() != version);
        consumers.on(&worker(), "other", minute, false, at(10));
        let found = |consumers: &Consumers, name, at| consumers.seen_to_hold(&queue(name), at).count();
        assert_eq!((found(&consumers, "orders", at(69)), found(&consumers, "orders", at(71))), (1, 0));
        assert_eq!((found(&consumers, "other", at(71)), consumers.queues(&worker()).count()), (1, 2));
        consumers.on(&worker(), "other", minute, false, at(71));
        consumers.retain(|_| true);
        assert_eq!(consumers.by_queue.len(), 1, "what is over is forgotten");
        let version = consumers.version();
        consumers.retain(|_| false);
        assert!(consumers.by_queue.is_empty() && consumers.version() != version);
    }

    #[test]
    fn a_worker_that_turns_to_another_queue_holds_messages_of_the_former_for_a_while() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        assert!(consumers.on(&worker(), "orders", minute, false, now));
        assert!(consumers.on(&worker(), "other", minute, false, at(10)));
        // Seen again, as at each change of its status.
        assert!(!consumers.on(&worker(), "other", minute, false, at(50)));
        let holds = |queue, seconds| consumers.may_hold(&worker(), queue, at(seconds)).is_some();
        assert_eq!((holds("orders", 69), holds("orders", 71), holds("other", 500)), (true, false, true));
        assert!(consumers.on(&worker(), "orders", minute, false, at(60)));
        assert!(consumers.may_hold(&worker(), "orders", at(500)).is_some(), "it is back");
    }

    #[test]
    fn a_worker_whose_sidecars_cannot_be_told_holds_messages_of_the_former_queue_until_they_are() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        consumers.on(&worker(), "orders", minute, false, now);
        consumers.on(&worker(), "mistyped", minute, false, at(10));
        let orders = || BTreeSet::from(["orders".to_owned()]);
        assert!(consumers.told(&worker(), orders(), minute, at(10)));
        assert!(!consumers.told(&worker(), orders(), minute, at(500)));
        consumers.on(&worker(), "other", minute, false, at(1000));
        let holds = |consumers: &Consumers, queue, seconds| consumers.holds(&worker(), queue, at(seconds));
        assert!(holds(&consumers, "orders", 5000));
        assert!(!holds(&consumers, "mistyped", 5000), "it has never consumed that");
        assert!(consumers.told(&worker(), BTreeSet::new(), minute, at(5000)));
        assert!(!consumers.told(&worker(), BTreeSet::new(), minute, at(5001)));
        assert_eq!((holds(&consumers, "orders", 5059), holds(&consumers, "orders", 5061)), (true, false));

        // It turned before this process began.
        let mut consumers = Consumers::default();
        consumers.on(&worker(), "mistyped", minute, true, now);
        assert!(!holds(&consumers, "orders", 0));
        consumers.told(&worker(), orders(), minute, at(1));
        assert!(holds(&consumers, "orders", 5000) && !holds(&consumers, "others", 5000));
        let queue = Key { name: "orders".to_owned(), ..worker() };
        assert_eq!(consumers.seen_to_hold(&queue, at(5000)).count(), 1);
    }

    #[test]
    fn a_worker_that_has_turned_with_a_shorter_drain_holds_messages_for_the_longer_one() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        consumers.on(&worker(), "orders", hour, false, now);
        consumers.on(&worker(), "other", minute, false, at(10));
        let holds =
            |consumers: &Consumers, seconds| consumers.may_hold(&worker(), "orders", at(seconds)).is_some();
        assert_eq!((holds(&consumers, 3609), holds(&consumers, 3611)), (true, false));

        // The drain is shorter first, and pods that have begun the longer one are still there.
        let mut consumers = Consumers::default();
        consumers.on(&worker(), "orders", hour, false, now);
        consumers.on(&worker(), "orders", minute, false, at(10));
        consumers.on(&worker(), "other", minute, false, at(20));
        assert_eq!((holds(&consumers, 3609), holds(&consumers, 3611)), (true, false));

        // And once they are gone, the shorter one counts.
        let mut consumers = Consumers::default();
        consumers.on(&worker(), "orders", hour, false, now);
        consumers.on(&worker(), "orders", minute, false, at(10));
        consumers.on(&worker(), "other", minute, false, at(5000));
        assert_eq!((holds(&consumers, 5059), holds(&consumers, 5061)), (true, false));
    }

    #[test]
    fn a_worker_that_may_have_turned_unseen_holds_messages_of_any_queue_for_a_while() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        consumers.on(&worker(), "orders", minute, true, now);
        consumers.on(&worker(), "orders", minute, true, at(50));
        let holds = |queue, seconds| consumers.may_hold(&worker(), queue, at(seconds));
        let (unseen, known) = (Some(Holding::Unseen(Duration::from_secs(1))), Some(Holding::Known));
        assert_eq!((holds("other", 59), holds("other", 61), holds("orders", 59)), (unseen, None, known));
        assert!(!consumers.holds(&worker(), "other", at(59)), "as far as is known");
    }

    #[test]
    fn a_drain_that_pods_may_have_begun_counts_however_often_the_worker_is_seen_or_changed_after_it() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let turns = |seen: &[(&str, Duration, u64)]| {
            let mut consumers = Consumers::default();
            for (queue, lasting, seconds) in seen {
                consumers.on(&worker(), queue, *lasting, false, at(*seconds));
            }
            [3609, 3631].map(|seconds| consumers.holds(&worker(), "orders", at(seconds)))
        };
        let orders = |lasting, seconds| ("orders", lasting, seconds);
        // Its drain is shorter, and then it is only looked at again, or its drain is shorter still.
        assert_eq!(
            turns(&[orders(hour, 0), orders(minute, 10), orders(minute, 15), ("other", minute, 20)]),
            [true, false]
        );
        assert_eq!(
            turns(&[orders(hour, 0), orders(minute * 2, 10), orders(minute, 15), ("other", minute, 20)]),
            [true, false]
        );
        // It turns away, comes back, and turns away again.
        assert_eq!(
            turns(&[orders(hour, 0), ("other", minute, 10), orders(minute, 15), ("other", minute, 20)]),
            [true, false]
        );
        // Its drain is longer as it turns away.
        assert_eq!(turns(&[orders(minute, 0), ("other", hour, 20)]), [true, false]);
    }

    #[test]
    fn a_worker_whose_sidecars_learn_late_of_another_queue_holds_messages_for_the_drain_that_they_have_then()
    {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        consumers.on(&worker(), "orders", minute, false, now);
        consumers.on(&worker(), "other", minute, false, at(10));
        consumers.told(&worker(), BTreeSet::from(["orders".to_owned()]), minute, at(10));
        consumers.told(&worker(), BTreeSet::new(), hour, at(500));
        let holds = |seconds| consumers.holds(&worker(), "orders", at(seconds));
        assert_eq!((holds(4099), holds(4101)), (true, false));
    }
}
