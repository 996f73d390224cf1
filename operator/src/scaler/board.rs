//! What the scaler last decided and saw of each Worker: written by its task, read by the Worker's reconcile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;
use warren_api::Worker;

use super::decide::Decision;
use super::share::share;
use crate::brokers::Key;
use crate::locked::locked;
use crate::problem::Problem;

/// Pods are marked for the same replicas at most so often.
const MARKED_AGAIN: Duration = Duration::from_secs(20);

/// How the handlers of a Worker's pods do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handlers {
    /// Pods whose sidecar answered.
    pub scraped: u32,
    /// Of these, how many hold consuming back because their handler fails.
    pub held: u32,
    /// Whether one has ever listened.
    pub listened: bool,
    /// The HTTP status that tells of a wrong path or missing rights.
    pub misconfigured: Option<u16>,
    /// Whether sidecars answer, and most have not been connected to the broker for longer than connecting takes.
    pub disconnected: bool,
}

impl Handlers {
    /// Whether the handlers of most pods take no messages: where the scaler says so, this does too.
    pub const fn most_held(&self) -> bool {
        self.held > self.scraped / 2
    }
}

/// What sidecars have lately counted of deliveries without `delivery_mode=2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Deliveries.
    pub deliveries: u64,
    /// Of these, those that a restart of the broker would lose on a classic queue.
    pub transient: u64,
}

impl Durability {
    /// The share of the transient ones in percent, rounded up: none only where there are none.
    pub fn percent(self) -> u64 {
        (self.transient * 100).div_ceil(self.deliveries.max(1)).min(100)
    }
}

impl std::ops::Add for Durability {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { deliveries: self.deliveries + other.deliveries, transient: self.transient + other.transient }
    }
}

/// The scaler's view of one Worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The Worker that was looked at, by its uid.
    pub worker: Option<String>,
    /// The Queue that was looked at.
    pub queue: Option<Key>,
    /// The last decision of mode Builtin.
    pub decision: Option<Decision>,
    /// Whether one of its sidecars consumed at the last look.
    pub consumes: bool,
    /// Measured seconds per message; none before the first call has ended.
    pub service_seconds: Option<f64>,
    /// The handlers, from the last scrape.
    pub handlers: Handlers,
    /// What the sidecars have lately counted.
    pub durability: Durability,
    /// Messages settled in the last while, which shares a Queue's backlog among its Workers; none before the first look.
    pub settled_lately: Option<f64>,
    /// What the API server said to the last decision, where it does not take that.
    pub refused: Option<String>,
    /// What is wrong with `scaling.schedules`.
    pub misread: Option<Problem>,
}

impl View {
    /// What the sidecars have lately counted of a Queue. A Worker that names it may have been looked at under another one last.
    pub fn durability_of(&self, queue: &Key) -> Durability {
        if self.queue.as_ref() == Some(queue) { self.durability } else { Durability::default() }
    }
}

/// One Worker.
#[derive(Debug, Default)]
pub struct Entry {
    view: Mutex<View>,
    /// Held while replicas are written, so that a reconcile never puts back a number that the scaler has just changed.
    pub writing: tokio::sync::Mutex<()>,
    /// Replicas that a reconcile wrote last.
    written: Mutex<Option<u32>>,
    /// Whether the sidecars are told to hold consuming, for whatever reason.
    told_to_pause: AtomicBool,
    /// For which replicas pods were marked last, and when.
    marked: Mutex<Option<(u32, Instant)>>,
}

impl Entry {
    /// What is known.
    pub fn view(&self) -> View {
        locked(&self.view).clone()
    }

    /// What is known of this Worker: what is known of one of the same name that it has replaced says nothing of it.
    pub fn view_of(&self, worker: &Worker) -> View {
        Some(self.view()).filter(|view| view.worker == worker.uid()).unwrap_or_default()
    }

    /// Takes in whether the sidecars are told to hold consuming.
    pub fn tell_to_pause(&self, so: bool) {
        self.told_to_pause.store(so, Ordering::Relaxed);
    }

    /// Whether they are.
    pub fn is_told_to_pause(&self) -> bool {
        self.told_to_pause.load(Ordering::Relaxed)
    }

    /// A reconcile has written replicas.
    pub fn wrote(&self, replicas: u32) {
        *locked(&self.written) = Some(replicas);
    }

    /// Whether a reconcile wrote so many replicas last.
    pub fn has_written(&self, replicas: u32) -> bool {
        *locked(&self.written) == Some(replicas)
    }

    /// No pods are let go now: the next time they are marked anew.
    pub fn forget_marks(&self) {
        *locked(&self.marked) = None;
    }

    /// Whether pods are to be marked before replicas become so many. Not again and again where that is refused: a mark changes
    /// the pod, which brings the Worker to its reconcile.
    pub fn may_mark(&self, replicas: u32) -> bool {
        let mut marked = locked(&self.marked);
        let now = Instant::now();
        let before = marked.filter(|(former, at)| *former == replicas && now - *at < MARKED_AGAIN);
        if before.is_none() {
            *marked = Some((replicas, now));
        }
        before.is_none()
    }

    /// Replaces what is known; gives what was.
    pub fn replace(&self, view: View) -> View {
        std::mem::replace(&mut locked(&self.view), view)
    }
}

/// Every Worker.
#[derive(Debug, Default)]
pub struct Board {
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    sharing: Mutex<HashMap<Key, Arc<[Key]>>>,
}

impl Board {
    /// Says which Workers share a Queue, each with all that do.
    pub fn share(&self, sharing: HashMap<Key, Arc<[Key]>>) {
        *locked(&self.sharing) = sharing;
    }

    /// A Worker's part of its Queue's backlog, from 0 to 1: as much as it settled lately of what all did.
    pub fn part(&self, worker: &Key) -> f64 {
        let Some(all) = locked(&self.sharing).get(worker).cloned() else { return 1.0 };
        let lately = |key: &Key| self.settled_lately(key).unwrap_or_default();
        share(lately(worker), all.iter().map(lately).sum(), all.len())
    }

    /// Whether all Workers that share a Queue with this one have looked at their pods.
    pub fn all_have_looked(&self, worker: &Key) -> bool {
        let all = locked(&self.sharing).get(worker).cloned();
        all.is_none_or(|all| all.iter().all(|key| self.settled_lately(key).is_some()))
    }

    /// What is known of a Worker: nothing where it has no entry.
    pub fn view(&self, worker: &Key) -> View {
        self.read(worker, View::clone)
    }

    /// Whether one of a Worker's sidecars consumed when it was looked at last.
    pub fn consumes(&self, worker: &Key) -> bool {
        self.read(worker, |view| view.consumes)
    }

    fn settled_lately(&self, worker: &Key) -> Option<f64> {
        self.read(worker, |view| view.settled_lately)
    }

    /// A part of what is known of a Worker: nothing where it has no entry.
    fn read<T: Default>(&self, worker: &Key, part: impl FnOnce(&View) -> T) -> T {
        let entry = locked(&self.entries).get(worker).cloned();
        entry.map(|entry| part(&locked(&entry.view))).unwrap_or_default()
    }

    /// A Worker's entry, made at first need.
    pub fn entry(&self, worker: &Key) -> Arc<Entry> {
        locked(&self.entries).entry(worker.clone()).or_default().clone()
    }

    /// Forgets a Worker.
    pub fn forget(&self, worker: &Key) {
        locked(&self.entries).remove(worker);
    }

    /// Forgets all Workers but these: one that was gone before it was followed has an entry, too.
    pub fn retain(&self, is_living: impl Fn(&Key) -> bool) {
        locked(&self.entries).retain(|worker, _| is_living(worker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_of_a_former_queue_is_not_told_of_the_next() {
        let [former, next] =
            ["former", "next"].map(|name| Key { namespace: "shop".to_owned(), name: name.to_owned() });
        let durability = Durability { deliveries: 9, transient: 9 };
        let view = View { queue: Some(former.clone()), durability, ..View::default() };
        assert_eq!(
            (view.durability_of(&former), view.durability_of(&next)),
            (durability, Durability::default())
        );
    }

    #[test]
    fn what_was_decided_for_a_worker_is_not_for_one_that_replaces_it() {
        let worker = |uid: &str| {
            let mut worker = Worker::new(
                "one",
                serde_json::from_str(r#"{"queueRef": {"name": "orders"}, "template": {}}"#).unwrap(),
            );
            worker.metadata.uid = Some(uid.to_owned());
            worker
        };
        let entry = Entry::default();
        entry.replace(View {
            worker: Some("former".to_owned()),
            service_seconds: Some(1.0),
            ..View::default()
        });
        let known = |uid| entry.view_of(&worker(uid)).service_seconds;
        assert_eq!((known("former"), known("next")), (Some(1.0), None));
    }

    #[test]
    fn a_worker_that_is_gone_has_settled_nothing_and_gets_no_entry() {
        let board = Board::default();
        let [here, gone] =
            ["here", "gone"].map(|name| Key { namespace: "shop".to_owned(), name: name.to_owned() });
        board.entry(&here).replace(View { settled_lately: Some(8.0), ..View::default() });
        let all: Arc<[Key]> = [here.clone(), gone.clone()].into();
        board.share([(here.clone(), all.clone()), (gone, all)].into());
        assert_eq!((board.part(&here), board.all_have_looked(&here)), (0.9, false));
        assert_eq!(locked(&board.entries).len(), 1);
        board.retain(|key| key.name == "gone");
        assert!(locked(&board.entries).is_empty());
    }

    #[test]
    fn one_transient_message_of_many_is_no_share_of_nothing() {
        let percent = |transient, deliveries| Durability { deliveries, transient }.percent();
        assert_eq!([percent(0, 1000), percent(1, 1000), percent(500, 1000), percent(0, 0)], [0, 1, 50, 0]);
    }

    #[test]
    fn pods_are_marked_again_for_other_replicas_at_once_and_for_the_same_after_a_while() {
        let entry = Entry::default();
        assert_eq!(
            [3, 3, 2, 2, 3].map(|replicas| entry.may_mark(replicas)),
            [true, false, true, false, true]
        );
        *locked(&entry.marked) = Instant::now().checked_sub(MARKED_AGAIN).map(|at| (3, at));
        assert!(entry.may_mark(3));
    }

    #[test]
    fn a_worker_gets_its_part_by_what_all_that_share_the_queue_have_settled() {
        let board = Board::default();
        let [one, other] =
            ["one", "other"].map(|name| Key { namespace: "shop".to_owned(), name: name.to_owned() });
        for (worker, settled) in [(&one, 1.0), (&other, 7.0)] {
            board.entry(worker).replace(View { settled_lately: Some(settled), ..View::default() });
        }
        let all: Arc<[Key]> = [one.clone(), other.clone()].into();
        board.share([(one.clone(), all.clone()), (other.clone(), all)].into());
        assert_eq!((board.part(&one), board.part(&other)), (0.2, 0.8));
        assert!(board.all_have_looked(&one));
    }

    #[test]
    fn a_worker_consumes_where_it_was_seen_to_do_so_last() {
        let board = Board::default();
        let worker = Key { namespace: "shop".to_owned(), name: "one".to_owned() };
        assert!(!board.consumes(&worker), "nobody has looked");
        let looked = |consumes| {
            board.entry(&worker).replace(View { consumes, ..View::default() });
            board.consumes(&worker)
        };
        assert_eq!([looked(true), looked(false)], [true, false]);
    }
}
