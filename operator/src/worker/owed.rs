//! What is carried out where nothing else of a Worker can be applied: the number of pods that somebody else decides, and whether
//! and where consuming is held. Pure.

use warren_api::{SidecarConfig, Worker};

use super::dereference::{Surroundings, consumes};
use super::validate::{has_moved, held, leads_elsewhere, only_pod};

/// Pods that the Worker's Deployment asks for, and those that somebody else wants.
fn numbers(worker: &Worker, around: &Surroundings) -> Option<(i32, i32)> {
    let others = !worker.scales_itself();
    let deployment = around.deployment.as_deref().filter(|live| others && live.is_owned_by(worker))?;
    Some((deployment.facts.desired?, worker.spec.replicas.max(0)))
}

/// Whether pods that are wanted must not come: they would break an order, or consume what is somebody else's, and have not been
/// told that consuming is held. Without the Queue nobody knows who else consumes.
pub fn is_held_back(worker: &Worker, around: &Surroundings) -> bool {
    let is_held = || match around.queue.as_deref() {
        Some(queue) => held(worker, queue, around.beside.as_deref()),
        None => worker.spec.consumer.ordering_key.is_some(),
    };
    numbers(worker, around).is_some_and(|(live, wanted)| wanted > live)
        && !around.is_told_to_pause()
        && is_held()
}

/// The number to write, where it is another one.
pub fn owed(worker: &Worker, around: &Surroundings) -> Option<u32> {
    let (live, wanted) = numbers(worker, around)?;
    (wanted != live && !is_held_back(worker, around)).then_some(wanted.unsigned_abs())
}

/// The configuration to write, where it is another one. Sidecars of the Queue that the Worker names hold consuming or go on as they
/// would if all could be applied, and one pod that takes the place of another for an order is named: neither waits for what is to be
/// mended. Others stop where the user has paused the Worker.
pub fn owed_config(worker: &Worker, around: &Surroundings) -> Option<SidecarConfig> {
    let told = around.config_map.as_deref().filter(|live| live.is_owned_by(worker)).and(around.told())?;
    let mut config = told.clone();
    let consumer = &mut config.consumer;
    match around.queue.as_deref().filter(|queue| consumes(&told, queue)) {
        Some(queue) => {
            // Nobody knows with a Secret that cannot be used, unless it names another virtual host, to which the sidecars turn.
            let moved = has_moved(queue, around)
                .unwrap_or_else(|_| told.consumer.paused || leads_elsewhere(queue, around));
            consumer.paused = moved || held(worker, queue, around.beside.as_deref());
            // While there are others that may consume, each stays as it is.
            let only = only_pod(worker, queue, &around.pods);
            if only.is_none() || around.beside.is_none() {
                consumer.only_pod = only;
            }
        }
        None => consumer.paused |= worker.spec.consumer.paused,
    }
    (config != told).then_some(config)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::build::{Rolled, build};
    use super::super::live::LiveDeployment;
    use super::super::validate::tests::{declared, surroundings, worker};
    use super::super::validate::validate;
    use super::*;

    /// What surrounds a Worker whose Deployment has so many replicas.
    pub(crate) fn around(replicas: i32, owner: &str) -> Surroundings {
        let metadata = json!({"name": "invoices", "namespace": "shop", "ownerReferences": [{"uid": owner}]});
        let deployment = json!({"metadata": metadata, "spec": {"replicas": replicas}});
        let live: LiveDeployment = serde_json::from_value(deployment).unwrap();
        Surroundings { deployment: Some(Arc::new(live)), ..surroundings() }
    }

    fn scaled(mode: &str, replicas: i32, fields: Value) -> Worker {
        let mut spec = json!({"scaling": {"mode": mode}, "replicas": replicas});
        spec.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap());
        worker(spec)
    }

    #[test]
    fn a_worker_that_cannot_be_applied_still_owes_the_replicas_that_somebody_else_decides() {
        for mode in ["Manual", "External"] {
            assert_eq!(owed(&scaled(mode, 0, json!({})), &around(2, "u-1")), Some(0));
            assert_eq!(owed(&scaled(mode, 3, json!({})), &around(2, "u-1")), Some(3));
            assert_eq!(owed(&scaled(mode, 2, json!({})), &around(2, "u-1")), None);
            assert_eq!(owed(&scaled(mode, 0, json!({})), &around(2, "another")), None, "not its own");
            assert_eq!(owed(&scaled(mode, 0, json!({})), &surroundings()), None, "there is none");
        }
        assert_eq!(owed(&scaled("Builtin", 0, json!({})), &around(2, "u-1")), None);
    }

    #[test]
    fn no_pod_is_owed_that_would_break_an_order() {
        let ordered =
            |replicas| scaled("Manual", replicas, json!({"consumer": {"orderingKey": "x-customer"}}));
        assert_eq!(owed(&ordered(1), &around(2, "u-1")), Some(1));
        assert_eq!(owed(&ordered(2), &around(1, "u-1")), None);
        assert!(
            is_held_back(&ordered(2), &around(1, "u-1")) && !is_held_back(&ordered(1), &around(0, "u-1"))
        );
        assert_eq!(owed(&ordered(1), &around(0, "u-1")), Some(1));
        let unknown = Surroundings { queue: None, ..around(0, "u-1") };
        assert_eq!(owed(&ordered(1), &unknown), None, "another Worker may consume");
        assert!(is_held_back(&ordered(1), &unknown));
        let hold = told(&worker(json!({"consumer": {"paused": true}})), &[], around(0, "u-1"));
        assert_eq!(owed(&ordered(2), &hold), Some(2), "they hold");
        let none = Surroundings { deployment: None, ..unknown };
        assert!(!is_held_back(&ordered(1), &none), "there is nothing to add to");
    }

    #[test]
    fn no_pod_is_owed_that_would_consume_somebody_else_s_queue() {
        let others = |replicas| {
            let queue = Some(Arc::new(declared("False", "AlreadyExists")));
            Surroundings { queue, ..around(replicas, "u-1") }
        };
        assert_eq!(owed(&scaled("Manual", 3, json!({})), &others(2)), None);
        assert_eq!(owed(&scaled("Manual", 0, json!({})), &others(2)), Some(0));
    }

    /// The same with pods of those names, which read what was built of `before`.
    fn told(before: &Worker, pods: &[&str], around: Surroundings) -> Surroundings {
        let pod = |name| Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap());
        let around = Surroundings { pods: pods.iter().map(pod).collect(), ..around };
        let built = build(&validate(before, &around).unwrap(), &Rolled::default(), "sidecar:1", 1);
        Surroundings {
            config_map: Some(Arc::new(serde_json::from_value(built.config_map).unwrap())),
            ..around
        }
    }

    fn consumer(worker: &Worker, around: &Surroundings) -> Option<(bool, Option<String>)> {
        owed_config(worker, around).map(|SidecarConfig { consumer, .. }| (consumer.paused, consumer.only_pod))
    }

    #[test]
    fn sidecars_hold_and_go_on_though_nothing_else_of_their_worker_can_be_applied() {
        let runs = worker(json!({}));
        let paused = worker(json!({"consumer": {"paused": true}}));
        let around = told(&runs, &["a"], around(1, "u-1"));
        assert_eq!(consumer(&runs, &around), None, "they do already");
        assert_eq!(consumer(&paused, &around), Some((true, None)));
        let stopped = told(&paused, &["a"], around.clone());
        assert_eq!(consumer(&runs, &stopped), Some((false, None)));
        let taken = Some(Arc::new(declared("False", "AlreadyExists")));
        assert_eq!(consumer(&runs, &Surroundings { queue: taken, ..around.clone() }), Some((true, None)));

        let without = |around: &Surroundings| Surroundings { queue: None, ..around.clone() };
        assert_eq!(consumer(&runs, &without(&around)), None, "they go on with what they have");
        assert_eq!(consumer(&paused, &without(&around)), Some((true, None)), "and stop when told to");
        assert_eq!(consumer(&runs, &without(&stopped)), None, "nobody knows what has them held");

        let mut other = worker(json!({}));
        other.metadata.uid = Some("u-9".to_owned());
        assert_eq!(consumer(&other, &stopped), None, "it is another's configuration");
    }

    #[test]
    fn one_pod_of_an_order_goes_on_as_soon_as_the_one_before_has_ended_whatever_else_is_wrong() {
        let one = worker(json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}}));
        let beside = Some("pod a has not ended".to_owned());
        let two = told(&one, &["a", "b"], Surroundings { beside: beside.clone(), ..around(1, "u-1") });
        assert_eq!(consumer(&one, &two), None, "it is held");
        let left = Surroundings { beside: None, pods: vec![two.pods[1].clone()], ..two };
        assert_eq!(consumer(&one, &left), Some((false, Some("b".to_owned()))));
        let alone = told(&one, &["a"], around(1, "u-1"));
        let joined = Surroundings { beside, ..alone };
        assert_eq!(consumer(&one, &joined), Some((true, Some("a".to_owned()))));
        let more = Surroundings {
            pods: joined.pods.iter().cycle().take(2).cloned().collect(),
            ..told(&one, &["a"], around(1, "u-1"))
        };
        assert_eq!(
            consumer(&worker(json!({})), &more),
            Some((false, None)),
            "no order is asked for any more"
        );
        let unsure = Surroundings { secret: None, ..left };
        assert_eq!(consumer(&one, &unsure), Some((true, Some("b".to_owned()))), "its broker is not known");
    }
}
