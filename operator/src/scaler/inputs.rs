//! What a scaling decision is made from. Values only.

use std::sync::Arc;

use super::history::RATE_WINDOW;

/// What a Worker asks of its scaling, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Fewest pods.
    pub min: u32,
    /// Most pods, at least `min`.
    pub max: u32,
    /// Seconds within which a waiting message should start; positive.
    pub target_wait: f64,
    /// Seconds whose arrivals decide how many pods are kept.
    pub stabilization: f64,
    /// Messages at the handler at once in a pod, at least 1: a call of a batch carries several.
    pub concurrency: u32,
    /// Seconds after which a handler call counts as failed.
    pub handler_timeout: f64,
    /// Whether one pod at most gets messages.
    pub single: bool,
    /// Whether the queue is a quorum queue, whose zero needs confirming.
    pub quorum: bool,
    /// Whether consuming is paused.
    pub paused: bool,
    /// Whether an ordering key has a message that failed wait in its pod for the next attempt, for a minute at most.
    pub ordered: bool,
}

impl Spec {
    /// Seconds over which the lasting load is averaged.
    pub const fn window(&self) -> f64 {
        self.stabilization.max(RATE_WINDOW)
    }

    /// Messages at the handler at once in a pod.
    pub(super) fn at_once(&self) -> f64 {
        f64::from(self.concurrency)
    }

    /// What sets the most pods.
    pub(super) const fn limit(&self) -> &'static str {
        if self.single { "the Queue's singleActiveConsumer" } else { "scaling.maxReplicas" }
    }
}

/// What was read, each with its age; the Deployment and its pods are watched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Ready messages and the age of that reading in seconds; none: never read, or the broker does not answer.
    pub ready: Option<(u64, f64)>,
    /// Whether the broker counts no consumer while a sidecar consumes, as a quorum queue without a leader does: then its zero
    /// says nothing.
    pub contradicted: bool,
    /// Whether the broker counts no consumer.
    pub unconsumed: bool,
    /// Whether other Workers consume the same Queue.
    pub shared: bool,
    /// Whether somebody consumes while this Worker has no pod.
    pub elsewhere: bool,
    /// The Deployment and its pods.
    pub workload: Workload,
    /// The sum of the sidecars' own metrics.
    pub sidecars: Sidecars,
    /// Seconds since they were asked: none of the answers is older.
    pub sidecars_age: f64,
    /// What the schedule that counts now asks for; none without schedules.
    pub floor: Option<Floor>,
}

/// Fewest pods by a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Fewest pods.
    pub replicas: u32,
    /// The schedule, as the Worker writes it.
    pub schedule: Arc<str>,
}

/// The Deployment and its pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// Replicas that the Deployment asks for.
    pub replicas: u32,
    /// Whether a rollout is under way.
    pub rolling: bool,
    /// Whether one has stopped half way: the last pod is then one that works, and the idlest do not always go first.
    pub half_rolled: bool,
    /// Whether pods crash or cannot start. One that waits for a node or an image is on its way.
    pub failing: bool,
    /// Whether messages are at the handler of a pod that is not Ready: such a pod is deleted first, whatever its cost.
    pub exposed: bool,
}

/// The sum of the sidecars' own metrics; counters never fall (resets are taken out before).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sidecars {
    /// Pods that stay and whose sidecar has started.
    pub started: u32,
    /// Of these, how many had a handler that took calls since they are known: the others are on their way.
    pub able: u32,
    /// Of these, how many have no handler that takes calls just now, or did not answer: nobody knows of a free place there.
    pub away: u32,
    /// Of those that have started, how many answered just now.
    pub scraped: u32,
    /// Of these, how many have messages at the handler.
    pub busy: u32,
    /// Messages delivered to pods that stay, and not settled.
    pub unsettled: u64,
    /// Of these, how many are at the handler, late ones included.
    pub in_flight: u64,
    /// Of these, how many the application ends later, and may ask for more time for.
    pub late: u64,
    /// Of those that are not settled, how many are in pods that have none at the handler: they wait for another try, for the broker, or for
    /// more to make a batch, and not for a pod.
    pub put_off: u64,
    /// Pods that hold such messages, and whose handler takes calls: without them the messages' work would be done again.
    pub holding: u32,
    /// Messages that pods hold which end: they are done there, or come back.
    pub ending: u64,
    /// Deliveries so far.
    pub deliveries: u64,
    /// Settled deliveries so far.
    pub settled: u64,
    /// Times so far that a handler asked for more time for a delivery that it ends later.
    pub extensions: u64,
    /// Tries so far at which the broker did not take a copy of a failed message.
    pub copies_failed: u64,
    /// Pods from which the broker takes no publishes.
    pub blocked: u32,
    /// Ended handler calls so far.
    pub calls: u64,
    /// Of those, how many failed.
    pub failed: u64,
    /// Of these, how many were a message's first: others' failures, and not the same one's again.
    pub failed_first: u64,
    /// Seconds of those calls.
    pub call_seconds: f64,
    /// Calls that the pods which answered have ended since their own start: what an operator that takes over can know.
    pub lifetime_calls: u64,
    /// Seconds of those calls.
    pub lifetime_seconds: f64,
    /// Pods that hold consuming back because their handler fails, or does not listen yet for longer than a start takes.
    pub held: u32,
    /// Of these, those of which it is sure that they are not only slow to start.
    pub failing: u32,
}
