//! Takes retry queues away that the spec has dropped.

use warren_api::queue::Retry;
use warren_api::{QueueSpec, QueueType};
use warren_broker::BrokerError;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::supervisor::Link;
use warren_broker::topology::{QueuePlan, Role, plan};

use super::Order;
use super::counted::{alone, close, count, depth_of};
use super::lane::open;

/// The plan of a rung that the spec has dropped.
pub(super) fn rung(order: &Order, delay: u32) -> Option<QueuePlan> {
    let retry = Retry { delays_seconds: vec![i32::try_from(delay).ok()?], ..Retry::default() };
    let spec = QueueSpec { queue_type: order.queue_type, retry, ..QueueSpec::default() };
    plan(&order.main, &spec).queues.into_iter().find(|queue| queue.role == Role::Retry(delay))
}

/// Deletes a rung if it may go, which depends on whether it is empty and unused; says whether none of Warren's is left.
pub(super) async fn retired(
    link: &Link,
    rung: &QueuePlan,
    queue_type: QueueType,
    may_go: &mut (dyn FnMut(bool) -> bool + Send),
) -> Result<bool, BrokerError> {
    // A declaration alone would make one that is gone.
    match depth_of(link, &rung.name).await {
        Ok(None) | Err(BrokerError::Locked { .. }) => return Ok(true),
        Ok(Some(_)) => {}
        Err(error) => return Err(error),
    }
    let channel = open(link).await?;
    match declare::declare(&channel, &alone(rung)).await.map_err(|refused| refused.error) {
        Ok(_) => {}
        // Somebody's own, which happens to have the name: an order that never ended is recorded with all its rungs.
        Err(BrokerError::Precondition { .. } | BrokerError::Locked { .. }) => return Ok(true),
        Err(error) => return Err(error),
    }
    let counted = count(link, &channel, &[&rung.name], queue_type).await?;
    if !may_go(counted == [QueueDepth::default()]) {
        close(&channel).await;
        return Ok(false);
    }
    match declare::delete(&channel, &rung.name, queue_type == QueueType::Classic).await {
        Ok(()) => {}
        // Something has come since it was counted.
        Err(BrokerError::Precondition { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    close(&channel).await;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::Goal;
    use super::*;

    #[test]
    fn a_rung_that_the_spec_has_dropped_is_planned_as_it_was_in_the_spec() {
        for queue_type in [QueueType::Quorum, QueueType::Classic] {
            let topology = plan("orders", &QueueSpec { queue_type, ..QueueSpec::default() });
            let goal = Goal::Remove { only_if_empty: true, unbind: vec![] };
            let order = Order { main: "orders".to_owned(), queue_type, topology, goal };
            let planned = order.topology.queues.iter().filter(|queue| matches!(queue.role, Role::Retry(_)));
            let again: Vec<_> = [5, 60, 600].iter().filter_map(|delay| rung(&order, *delay)).collect();
            assert!(planned.eq(&again) && again.len() == 3, "{again:?}");
        }
    }
}
