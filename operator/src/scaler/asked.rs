//! What the resources say, as the decision's values. Pure.

use warren_api::worker::ScalingStatus;
use warren_api::{Queue, QueueType, Worker};

use super::inputs::Spec;
use crate::worker::validate::held;

/// What a Worker asks of its scaling; `beside`: whose pods may consume, too, where an order is asked for.
pub fn spec(worker: &Worker, queue: Option<&Queue>, beside: Option<&str>) -> Spec {
    let (scaling, consumer) = (&worker.spec.scaling, &worker.spec.consumer);
    let per_call = worker.spec.handler.batch.as_ref().map_or(1, |batch| batch.max_messages.max(1));
    let calls = consumer.concurrency.unwrap_or(consumer.prefetch).max(1);
    // A pod holds no more than its prefetch, however many calls it may make of it.
    let concurrency = calls.saturating_mul(per_call).clamp(1, consumer.prefetch.max(1)).unsigned_abs();
    // Of such a queue one pod gets messages, and the others stand by.
    let single = queue.is_some_and(|queue| queue.spec.single_active_consumer);
    let most = if single { 1 } else { scaling.max_replicas };
    Spec {
        min: scaling.min_replicas.max(0).unsigned_abs(),
        max: most.max(scaling.min_replicas).max(0).unsigned_abs(),
        target_wait: f64::from(scaling.target_wait_seconds.max(1)),
        stabilization: f64::from(scaling.scale_in_stabilization_seconds.max(0)),
        concurrency,
        handler_timeout: f64::from(worker.spec.handler.http.timeout_seconds),
        single,
        quorum: queue.is_none_or(|queue| queue.spec.queue_type == QueueType::Quorum),
        paused: queue.map_or(consumer.paused, |queue| held(worker, queue, beside)),
        ordered: consumer.ordering_key.is_some(),
    }
}

/// Whether the Worker is as its status was written for.
pub fn unchanged(worker: &Worker) -> bool {
    worker.status.as_ref().is_some_and(|status| status.observed_generation == worker.metadata.generation)
}

/// The last decision that is written down, unless the Worker was changed since.
pub fn decided_before(worker: &Worker) -> Option<&ScalingStatus> {
    worker.status.as_ref().filter(|_| unchanged(worker))?.scaling.as_ref()
}

/// Seconds per message that were measured by that.
pub fn measured_before(worker: &Worker) -> Option<f64> {
    decided_before(worker)?.seconds_per_message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use warren_api::queue::AdoptionPolicy;

    use super::*;
    use crate::worker::validate::tests::declared;

    fn worker(consumer: serde_json::Value, handler: serde_json::Value) -> Worker {
        let spec =
            json!({"queueRef": {"name": "q"}, "consumer": consumer, "handler": handler, "template": {}});
        serde_json::from_value(json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker",
            "metadata": {"name": "w"}, "spec": spec}))
        .unwrap()
    }

    #[test]
    fn a_pod_has_as_many_messages_at_the_handler_as_its_calls_carry_and_its_prefetch_holds() {
        let asked =
            spec(&worker(json!({"prefetch": 200}), json!({"batch": {"maxMessages": 100}})), None, None);
        assert_eq!(asked.concurrency, 200);
        let asked =
            spec(&worker(json!({"prefetch": 50}), json!({"batch": {"maxMessages": 100}})), None, None);
        assert_eq!(asked.concurrency, 50);
        let one_call = json!({"prefetch": 200, "concurrency": 1});
        assert_eq!(
            spec(&worker(one_call, json!({"batch": {"maxMessages": 100}})), None, None).concurrency,
            100
        );
        assert_eq!(
            spec(&worker(json!({"prefetch": 200, "concurrency": 20}), json!({})), None, None).concurrency,
            20
        );
    }

    #[test]
    fn one_pod_is_enough_for_a_single_active_consumer() {
        let queue: Queue =
            serde_json::from_value(json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue",
            "metadata": {"name": "q"}, "spec": {"singleActiveConsumer": true}}))
            .unwrap();
        assert_eq!(spec(&worker(json!({}), json!({})), Some(&queue), None).max, 1);
        let mut standby = worker(json!({}), json!({}));
        standby.spec.scaling.min_replicas = 2;
        assert_eq!(spec(&standby, Some(&queue), None).max, 2);
    }

    #[test]
    fn a_worker_of_a_queue_that_is_somebody_else_s_consumes_nothing() {
        let paused = |status, reason| {
            spec(&worker(json!({}), json!({})), Some(&declared(status, reason)), None).paused
        };
        assert!(paused("False", "AlreadyExists") && paused("False", "Conflict"));
        assert!(!paused("Unknown", "BrokerUnreachable"));
        let mut wary = declared("Unknown", "Connecting");
        wary.spec.adoption_policy = AdoptionPolicy::FailIfExists;
        let asked = |queue: &Queue| spec(&worker(json!({}), json!({})), Some(queue), None).paused;
        assert!(asked(&wary), "whether it exists is not known yet");
        wary.status.as_mut().unwrap().created = Some(true);
        assert!(!asked(&wary));
    }

    #[test]
    fn a_worker_whose_order_another_one_would_break_consumes_nothing() {
        let one = json!({"orderingKey": "x-customer"});
        let mut worker = worker(one, json!({}));
        worker.spec.scaling.max_replicas = 1;
        let queue = Queue::new("q", warren_api::QueueSpec::default());
        assert!(!spec(&worker, Some(&queue), None).paused);
        assert!(spec(&worker, Some(&queue), Some("other")).paused);
    }

    #[test]
    fn what_is_decided_by_is_what_the_worker_and_its_queue_say() {
        let handler = json!({"http": {"timeoutSeconds": 600}});
        let mut worker = worker(json!({"paused": true}), handler);
        let scaling = &mut worker.spec.scaling;
        (scaling.min_replicas, scaling.max_replicas) = (2, 7);
        (scaling.target_wait_seconds, scaling.scale_in_stabilization_seconds) = (20, 300);
        let alone = spec(&worker, None, None);
        assert_eq!((alone.min, alone.max, alone.target_wait, alone.stabilization), (2, 7, 20.0, 300.0));
        assert_eq!((alone.handler_timeout, alone.quorum, alone.paused), (600.0, true, true), "no Queue yet");
        let mut queue = Queue::new("q", warren_api::QueueSpec::default());
        let of = |queue: &Queue| spec(&worker, Some(queue), None);
        assert_eq!((of(&queue).quorum, of(&queue).single), (true, false));
        queue.spec.queue_type = QueueType::Classic;
        assert!(!of(&queue).quorum);
    }

    #[test]
    fn what_was_decided_for_a_worker_that_was_changed_since_says_nothing() {
        let mut worker = worker(json!({}), json!({}));
        worker.metadata.generation = Some(2);
        let mut known = |observed: i64| {
            let status = json!({"observedGeneration": observed, "conditions": [],
                "scaling": {"replicas": 1, "raw": 1, "reason": "Stalled", "message": "", "secondsPerMessage": 0.5}});
            worker.status = serde_json::from_value(status).unwrap();
            (decided_before(&worker).map(|last| last.reason.clone()), measured_before(&worker))
        };
        assert_eq!(known(2), (Some("Stalled".to_owned()), Some(0.5)));
        assert_eq!(known(1), (None, None));
    }
}
