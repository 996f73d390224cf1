//! What a look at a Worker has found, and what that makes the decision's inputs. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use warren_broker::declare::QueueDepth;

use super::board::Board;
use super::decide::STALE_SECONDS;
use super::inputs::{Floor, Inputs, Sidecars, Workload};
use super::sample::Tracker;
use super::share::part;
use crate::brokers::Key;
use crate::worker::live::Scale;
use crate::worker::pods;

/// What was found, the sidecars' sums apart.
pub(super) struct Look<'a> {
    pub worker: &'a Key,
    /// Workers of its Queue, itself included.
    pub workers: Vec<Key>,
    pub board: &'a Board,
    /// What the queue holds, and how many seconds ago that was read.
    pub depth: Option<(QueueDepth, f64)>,
    /// Its Deployment.
    pub scale: Option<&'a Scale>,
    pub pods: &'a [Arc<Pod>],
    pub tracker: &'a Tracker,
    /// Whether one of its own sidecars consumes.
    pub consumes: bool,
}

impl Look<'_> {
    /// What is decided from, at `current` replicas; the sidecars come with the seconds since they were asked.
    pub fn inputs(
        &self,
        current: u32,
        (sidecars, sidecars_age): (Sidecars, f64),
        floor: Option<Floor>,
    ) -> Inputs {
        let share = self.board.part(self.worker);
        let consumers = self.depth.map_or(0, |(depth, _)| depth.consumers);
        Inputs {
            ready: self.depth.map(|(depth, age)| (part(depth.ready.into(), share), age)),
            contradicted: self.contradicted(),
            unconsumed: self.unconsumed(),
            shared: share < 1.0 || self.another_consumes(),
            elsewhere: current == 0 && self.pods.iter().all(|pod| pods::ended(pod)) && consumers > 0,
            workload: Workload {
                replicas: current,
                rolling: self.scale.is_some_and(|scale| scale.rolling),
                half_rolled: self.scale.is_some_and(|scale| scale.half_rolled),
                failing: pods::cannot_start(self.pods),
                exposed: self.exposed(),
            },
            sidecars,
            sidecars_age,
            floor,
        }
    }

    /// How many messages are ready, for whoever scales by it; none where that is not known.
    pub fn ready(&self) -> Option<u64> {
        let fresh = self.depth.filter(|(_, age)| *age <= STALE_SECONDS);
        // A zero that a queue without a leader says would scale others' autoscalers in.
        let fresh = fresh.filter(|(depth, _)| depth.ready > 0 || !self.contradicted());
        fresh.map(|(depth, _)| depth.ready.into())
    }

    /// Whether sidecars consume, and the broker counts no consumer.
    fn contradicted(&self) -> bool {
        self.unconsumed() && (self.consumes || self.another_consumes())
    }

    fn unconsumed(&self) -> bool {
        self.depth.is_some_and(|(depth, _)| depth.consumers == 0)
    }

    fn another_consumes(&self) -> bool {
        self.workers.iter().any(|other| other != self.worker && self.board.consumes(other))
    }

    /// Whether messages are at the handler of a pod that is not Ready.
    fn exposed(&self) -> bool {
        let busy = |pod: &Pod| {
            let work = pod.uid().and_then(|uid| self.tracker.work(&uid));
            work.is_some_and(|work| work.at_handler > 0)
        };
        self.pods.iter().any(|pod| !pods::ending(pod) && !pods::ready(pod) && busy(pod))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::board::View;
    use super::super::sample::{Answer, Sample};
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn pod(status: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// A look at Worker "one", beside Worker "other", of a queue with so many messages and consumers.
    fn look<R>(ready: u32, consumers: u32, seen: impl FnOnce(Look<'_>, &Board) -> R) -> R {
        let (worker, board, tracker) = (key("one"), Board::default(), Tracker::default());
        let look = Look {
            worker: &worker,
            workers: vec![key("one"), key("other")],
            board: &board,
            depth: Some((QueueDepth { ready, consumers }, 0.5)),
            scale: None,
            pods: &[],
            tracker: &tracker,
            consumes: false,
        };
        seen(look, &board)
    }

    fn inputs(look: &Look<'_>, current: u32) -> Inputs {
        look.inputs(current, (Sidecars::default(), 0.0), None)
    }

    /// Another Worker's sidecars consume.
    fn other_consumes(board: &Board) {
        board.entry(&key("other")).replace(View { consumes: true, ..View::default() });
    }

    #[test]
    fn a_queue_without_consumers_is_contradicted_by_own_sidecars_and_by_those_of_another_worker() {
        let found = |consumers, own, other: bool| {
            look(0, consumers, |look, board| {
                if other {
                    other_consumes(board);
                }
                let look = Look { consumes: own, ..look };
                (inputs(&look, 1).contradicted, look.ready())
            })
        };
        assert_eq!(found(0, false, false), (false, Some(0)));
        assert_eq!(found(0, true, false), (true, None), "its zero is not told, either");
        assert_eq!(found(0, false, true), (true, None));
        assert_eq!(found(1, true, true), (false, Some(0)));
    }

    #[test]
    fn a_depth_that_is_old_or_was_never_read_is_not_told() {
        look(7, 0, |look, _| {
            let told = |look: &Look<'_>| (look.ready(), inputs(look, 1).ready);
            assert_eq!(told(&look), (Some(7), Some((7, 0.5))));
            let old = look.depth.map(|(depth, _)| (depth, STALE_SECONDS + 1.0));
            let look = Look { depth: old, ..look };
            assert_eq!(told(&look), (None, Some((7, STALE_SECONDS + 1.0))));
            assert_eq!(told(&Look { depth: None, ..look }), (None, None));
        });
    }

    #[test]
    fn workers_of_one_queue_get_their_parts_of_its_backlog_and_know_of_each_other() {
        look(10, 2, |look, board| {
            let found = || {
                let inputs = inputs(&look, 1);
                (inputs.ready, inputs.shared)
            };
            assert_eq!(found(), (Some((10, 0.5)), false));
            let all: Arc<[Key]> = [key("one"), key("other")].into();
            board.share([(key("one"), all)].into());
            assert_eq!(found(), (Some((5, 0.5)), true));
            // One whose replicas somebody else decides gets no part, and consumes all the same.
            board.share([].into());
            board.entry(&key("one")).replace(View { consumes: true, ..View::default() });
            assert_eq!(found(), (Some((10, 0.5)), false), "it does not share with itself");
            other_consumes(board);
            assert_eq!(found(), (Some((10, 0.5)), true));
        });
    }

    #[test]
    fn others_consume_where_the_broker_counts_consumers_and_the_worker_has_no_pods() {
        let elsewhere = |consumers, current, pods: &[Arc<Pod>]| {
            look(1, consumers, |look, _| inputs(&Look { pods, ..look }, current).elsewhere)
        };
        let phase = |phase: &str| [pod(json!({"phase": phase}))];
        assert!(elsewhere(1, 0, &[]) && elsewhere(1, 0, &phase("Succeeded")));
        assert!(!elsewhere(0, 0, &[]));
        assert!(!elsewhere(1, 1, &[]) && !elsewhere(1, 0, &phase("Running")), "they may be its own");
    }

    #[test]
    fn a_rollout_and_pods_that_cannot_start_are_seen() {
        look(0, 0, |look, _| {
            let calm = Workload { replicas: 3, ..Workload::default() };
            assert_eq!(inputs(&look, 3).workload, calm);
            let rolling = Scale { rolling: true, ..Scale::default() };
            let look = Look { scale: Some(&rolling), ..look };
            assert_eq!(inputs(&look, 3).workload, Workload { rolling: true, ..calm });
            let half_rolled = Scale { half_rolled: true, ..Scale::default() };
            let look = Look { scale: Some(&half_rolled), ..look };
            assert_eq!(inputs(&look, 3).workload, Workload { half_rolled: true, ..calm });
            let crash = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
            let pods = [pod(json!({"containerStatuses": [crash]}))];
            let look = Look { scale: None, pods: &pods, ..look };
            assert_eq!(inputs(&look, 3).workload, Workload { failing: true, ..calm });
        });
    }

    #[test]
    fn work_in_a_pod_that_is_not_ready_is_exposed() {
        let exposed = |in_flight, ready: &str| {
            let mut tracker = Tracker::default();
            let uid = BTreeSet::from(["u".to_owned()]);
            let sample = Sample { in_flight, ..Sample::default() };
            let answer =
                Answer { pod: "u".to_owned(), whole: true, ran: 0.0, ending: false, crashes: false, sample };
            tracker.observe(vec![answer], &uid, &uid, 0.0);
            let pods = [pod(json!({"conditions": [{"type": "Ready", "status": ready}]}))];
            look(0, 0, |look, _| inputs(&Look { pods: &pods, tracker: &tracker, ..look }, 1).workload.exposed)
        };
        assert!(exposed(1, "False"));
        assert!(!exposed(0, "False") && !exposed(1, "True"));
    }

    #[test]
    fn messages_that_are_ready_are_told_of_whoever_consumes() {
        look(7, 0, |look, board| {
            other_consumes(board);
            assert_eq!((look.ready(), inputs(&look, 1).contradicted), (Some(7), true));
        });
        look(0, 0, |look, board| {
            other_consumes(board);
            assert_eq!(look.ready(), None);
        });
    }

    #[test]
    fn work_in_a_pod_that_ends_is_not_exposed_any_more() {
        let mut tracker = Tracker::default();
        let uid = BTreeSet::from(["u".to_owned()]);
        let sample = Sample { in_flight: 1, ..Sample::default() };
        let answer =
            Answer { pod: "u".to_owned(), whole: true, ran: 0.0, ending: true, crashes: false, sample };
        tracker.observe(vec![answer], &uid, &uid, 0.0);
        let exposed = |deleted: Option<&str>| {
            let metadata = json!({"name": "p", "uid": "u", "deletionTimestamp": deleted});
            let pods = [Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())];
            look(0, 0, |look, _| inputs(&Look { pods: &pods, tracker: &tracker, ..look }, 1).workload.exposed)
        };
        assert_eq!((exposed(None), exposed(Some("2026-11-23T08:00:00Z"))), (true, false));
    }
}
