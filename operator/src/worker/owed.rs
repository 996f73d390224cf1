//! The number of pods that somebody else decides, where nothing else of a Worker can be applied. Pure.

use warren_api::Worker;

use super::dereference::Surroundings;
use super::validate::held;

/// Pods that the Worker's Deployment asks for, and those that somebody else wants.
fn numbers(worker: &Worker, around: &Surroundings) -> Option<(i32, i32)> {
    let others = !worker.scales_itself();
    let deployment = around.deployment.as_deref().filter(|live| others && live.is_owned_by(worker))?;
    Some((deployment.facts.desired?, worker.spec.replicas.max(0)))
}

/// Whether pods that are wanted must not come: they would break an order, or consume what is somebody else's, and cannot be
/// told that consuming is held. Without the Queue nobody knows who else consumes.
pub fn is_held_back(worker: &Worker, around: &Surroundings) -> bool {
    let is_held = || match around.queue.as_deref() {
        Some(queue) => held(worker, queue, around.beside.as_deref()),
        None => worker.spec.consumer.ordering_key.is_some(),
    };
    numbers(worker, around).is_some_and(|(live, wanted)| wanted > live) && is_held()
}

/// The number to write, where it is another one.
pub fn owed(worker: &Worker, around: &Surroundings) -> Option<u32> {
    let (live, wanted) = numbers(worker, around)?;
    (wanted != live && !is_held_back(worker, around)).then_some(wanted.unsigned_abs())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::live::LiveDeployment;
    use super::super::validate::tests::{declared, surroundings, worker};
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
}
