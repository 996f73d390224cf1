//! Removes what a Queue declared, as its deletion policy has it.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use warren_api::QueueType;
use warren_api::conditions::queue::DELETION_BLOCKED;
use warren_api::queue::DeclaredBinding;
use warren_broker::channel::open;
use warren_broker::declare::{self, DeclareError, Object, QueueDepth};
use warren_broker::lapin::Channel;
use warren_broker::supervisor::Link;
use warren_broker::topology::{QueuePlan, Role, Topology};
use warren_broker::{BrokerError, Category};

use super::counted::{count, depth_of, leaders, of_leader};
use super::link::close;
use super::rest::Rest;
use super::work::{Patience, declare_all, of_main};
use super::{Order, Outcome};
use crate::problem::Problem;

/// Deletes everything that is as Warren declares it, or says what keeps it; the main queue may be unbound by then. The
/// dead-letter queue goes last: what the others give up while they go is not lost.
pub(super) async fn remove(
    link: &Link,
    channel: &mut Channel,
    order: &Order,
    (only_if_empty, unbind): (bool, &[DeclaredBinding]),
    patience: Patience<'_>,
    rest: &mut Rest,
) -> Result<Outcome, DeclareError> {
    if only_if_empty && order.queue_type == QueueType::Quorum && is_any_target_missing(link, order).await? {
        rest.missed(Instant::now());
    }
    let ours = ours(link, channel, order).await?;
    if only_if_empty
        && let Some(kept) = kept(link, channel, order, &ours, unbind, patience.held_back, rest).await?
    {
        return Ok(Outcome::Refused(kept));
    }
    let guarded = only_if_empty && order.queue_type == QueueType::Classic;
    for (QueuePlan { name, .. }, _) in ours.iter().rev() {
        if patience.stands.strong_count() == 0 {
            // Nobody is told: it was another order that this one gave way to.
            let message = "the deletion was taken back".to_owned();
            return Ok(Outcome::Refused(Problem::new(DELETION_BLOCKED, "TakenBack", message)));
        }
        match declare::delete(channel, name, guarded).await {
            Ok(()) => {}
            Err(BrokerError::Precondition { .. }) if guarded => {
                let came = format!("\"{name}\" has got messages or consumers since they were counted");
                return Ok(Outcome::Refused(not_empty(&[came])));
            }
            Err(error) => return Err(of_main(order, error)),
        }
    }
    Ok(Outcome::Removed)
}

/// What keeps queues that may go only when they are empty.
async fn kept(
    link: &Link,
    channel: &Channel,
    order: &Order,
    ours: &[(&QueuePlan, QueueDepth)],
    unbind: &[DeclaredBinding],
    held_back: Duration,
    rest: &mut Rest,
) -> Result<Option<Problem>, DeclareError> {
    let mut kept: Vec<String> = ours.iter().filter_map(|(queue, depth)| holds(&queue.name, *depth)).collect();
    let now = Instant::now();
    let rested = rest.seen(&order.main, kept.is_empty(), now);
    let settles = |rested| {
        rested < held_back && may_be_refused(order)
            || rest.missed_within(held_back, now) && order.queue_type == QueueType::Quorum
    };
    if rested.is_some_and(settles) {
        let message = "every queue reads empty, and deletionPolicy DeleteIfEmpty waits a little longer than six minutes: so long may the broker hold back a message that a full or missing queue has not taken";
        return Ok(Some(Problem::new(DELETION_BLOCKED, "Settling", message)));
    }
    // Only what looks empty is unbound and counted again: without its bindings, what producers send is dropped.
    if kept.is_empty() {
        kept = count_unbound(link, channel, order, ours, unbind).await?;
    }
    Ok((!kept.is_empty()).then(|| not_empty(&kept)))
}

fn not_empty(kept: &[String]) -> Problem {
    let message = format!(
        "deletionPolicy DeleteIfEmpty keeps the queues: {}. Consume or purge them, or set deletionPolicy to Retain or Delete",
        kept.join(", ")
    );
    Problem::new(DELETION_BLOCKED, "NotEmpty", message)
}

/// Whether one of the queues may hold messages back that another has refused.
fn may_be_refused(order: &Order) -> bool {
    order.queue_type == QueueType::Quorum && order.topology.queues.iter().any(QueuePlan::refuses_when_full)
}

/// Whether a queue is missing that takes what others give up, which may have done so since: the main queue from the rungs, and the
/// dead-letter queue from the main queue.
async fn is_any_target_missing(link: &Link, order: &Order) -> Result<bool, DeclareError> {
    let (mut missing, mut there) = (false, false);
    for QueuePlan { name, role, .. } in &order.topology.queues {
        let is_there = match depth_of(link, name).await {
            Ok(depth) => depth.is_some(),
            Err(failed) if failed.category() == Category::Retryable => return Err(of_main(order, failed)),
            // It is somebody's.
            Err(_) => true,
        };
        there |= is_there;
        missing |= !is_there && matches!(role, Role::Main | Role::DeadLetter);
    }
    Ok(missing && there)
}

/// The queues that are as Warren declares them, and how full they are: what exists otherwise belongs to others. A queue that
/// is missing is declared, as it could not be told apart or counted.
async fn ours<'a>(
    link: &Link,
    channel: &mut Channel,
    order: &'a Order,
) -> Result<Vec<(&'a QueuePlan, QueueDepth)>, DeclareError> {
    let mut ours = Vec::new();
    for queue in &order.topology.queues {
        match declare::declare_queue(channel, queue).await {
            Ok(depth) => ours.push((queue, depth)),
            Err(BrokerError::Precondition { .. } | BrokerError::Locked { .. }) => {
                *channel = open(link).await.map_err(|error| of_main(order, error))?;
            }
            Err(error) => return Err(DeclareError { object: Object::Queue(queue.name.clone()), error }),
        }
    }
    Ok(ours)
}

/// Unbinds the main queue, counts everything thoroughly, and says what is there.
async fn count_unbound(
    link: &Link,
    channel: &Channel,
    order: &Order,
    ours: &[(&QueuePlan, QueueDepth)],
    unbind: &[DeclaredBinding],
) -> Result<Vec<String>, DeclareError> {
    let failed = |error| of_main(order, error);
    // What is unbound drops what producers send: first it is asked whether the leaders are there, and find nothing.
    let leaders = leaders(link, order.queue_type).await.map_err(failed)?;
    if let Some(leaders) = &leaders {
        let mut kept = Vec::new();
        for (QueuePlan { name, .. }, _) in ours {
            kept.extend(holds(name, of_leader(link, leaders, name).await.map_err(failed)?));
        }
        if !kept.is_empty() {
            return Ok(kept);
        }
    }
    if ours.iter().any(|(queue, _)| queue.role == Role::Main) {
        let bindings = || order.topology.bindings.iter().chain(unbind);
        let unbound =
            join_all(bindings().map(|binding| declare::unbind(channel, &order.main, binding))).await;
        for (binding, unbound) in bindings().zip(unbound) {
            let object = Object::Binding(Box::new(binding.clone()));
            unbound.map_err(|error| DeclareError { object, error })?;
        }
    }
    let names: Vec<&str> = ours.iter().map(|(queue, _)| queue.name.as_str()).collect();
    let depths = count(link, channel, &names, leaders.as_ref()).await.map_err(failed)?;
    Ok(names.iter().zip(depths).filter_map(|(name, depth)| holds(name, depth)).collect())
}

/// What keeps a queue from being empty and unused.
fn holds(queue: &str, depth: QueueDepth) -> Option<String> {
    let QueueDepth { ready, consumers } = depth;
    (depth != QueueDepth::default())
        .then(|| format!("\"{queue}\" has {ready} messages and {consumers} consumers"))
}

/// Puts the bindings of the main queue back, where it is ours and the broker takes them. The channel is one of its own, as what
/// has been done before may have closed the other.
pub(super) async fn bind_again(link: &Link, order: &Order) -> Result<(), DeclareError> {
    let Some(main) = order.topology.main() else { return Ok(()) };
    let channel = open(link).await.map_err(|error| of_main(order, error))?;
    let bound = Topology { queues: vec![main.clone()], ..order.topology.clone() };
    match declare_all(link, &channel, &bound).await {
        Ok(_) => {
            close(&channel).await;
            Ok(())
        }
        Err(refused) if refused.error.category() == Category::Retryable => Err(refused),
        // Such as an exchange that is gone: it is no news beside what keeps the queue.
        Err(refused) => {
            tracing::debug!(queue = order.main, %refused, "not bound again");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_api::QueueSpec;
    use warren_api::queue::DeadLetter;
    use warren_broker::topology::plan;

    use super::super::Goal;
    use super::*;

    #[test]
    fn only_quorum_queues_beside_one_that_refuses_hold_messages_back() {
        let order = |spec: &QueueSpec| Order {
            main: "orders".to_owned(),
            queue_type: spec.queue_type,
            topology: plan("orders", spec),
            goal: Goal::Remove { only_if_empty: true, unbind: vec![] },
        };
        let dead_letter = DeadLetter { max_length: Some(2), ..DeadLetter::default() };
        let limited = QueueSpec { dead_letter, ..QueueSpec::default() };
        assert!(!may_be_refused(&order(&QueueSpec::default())));
        assert!(may_be_refused(&order(&limited)));
        assert!(!may_be_refused(&order(&QueueSpec { queue_type: QueueType::Classic, ..limited })));
    }
}
