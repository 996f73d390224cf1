//! What the resources say, as the decision's values. Pure.

use warren_api::{Queue, QueueType, Worker};

use super::inputs::Spec;
use crate::worker::validate::unordered;

/// What a Worker asks of its scaling.
pub fn spec(worker: &Worker, queue: Option<&Queue>) -> Spec {
    let (scaling, consumer) = (&worker.spec.scaling, &worker.spec.consumer);
    let concurrency = consumer.concurrency.unwrap_or(consumer.prefetch).max(1).unsigned_abs();
    Spec {
        min: scaling.min_replicas.max(0).unsigned_abs(),
        max: scaling.max_replicas.max(scaling.min_replicas).max(0).unsigned_abs(),
        target_wait: f64::from(scaling.target_wait_seconds.max(1)),
        stabilization: f64::from(scaling.scale_in_stabilization_seconds.max(0)),
        concurrency,
        handler_timeout: f64::from(worker.spec.handler.http.timeout_seconds),
        quorum: queue.is_none_or(|queue| queue.spec.queue_type == QueueType::Quorum),
        paused: consumer.paused || queue.is_some_and(|queue| unordered(worker, queue).is_some()),
    }
}
