//! Takes retry queues away that the spec has dropped.

use warren_api::QueueType;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::supervisor::{Another, Link};
use warren_broker::topology::QueuePlan;
use warren_broker::{BrokerError, Category};

use super::counted::{count, depth_of};
use super::link::on_own_channel;

/// Deletes a rung if it may go, which depends on whether it is empty and unused; says whether none of Warren's is left. `leaders`: see
/// [`count`]; without them, a quorum queue's rung stays.
pub(super) async fn retired(
    link: &Link,
    rung: &QueuePlan,
    queue_type: QueueType,
    leaders: &mut Option<Another>,
    may_go: &mut (dyn FnMut(bool) -> bool + Send),
) -> Result<bool, BrokerError> {
    // A declaration alone would make one that is gone.
    match depth_of(link, &rung.name).await {
        Ok(None) | Err(BrokerError::Locked { .. }) => return Ok(true),
        Ok(Some(_)) => {}
        // Of a classic one whose node is down: that says nothing of the Queue, and it may come back.
        Err(BrokerError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    on_own_channel(link, async |channel| {
        match declare::declare_queue(channel, rung).await {
            Ok(_) => {}
            // Somebody's own, which happens to have the name: an order that never ended is recorded with all its rungs.
            Err(BrokerError::Precondition { .. } | BrokerError::Locked { .. }) => return Ok(true),
            Err(error) => return Err(error),
        }
        let counted = match (queue_type, leaders.as_ref()) {
            (QueueType::Quorum, None) => None,
            (_, leaders) => match count(link, channel, &[&rung.name], leaders).await {
                Ok(counted) => Some(counted),
                Err(error) if error.category() == Category::Retryable => None,
                Err(error) => return Err(error),
            },
        };
        if counted.is_none() {
            // One without a leader does not say what it has, and each of the others would take as long.
            *leaders = None;
        }
        if !may_go(counted.is_some_and(|counted| counted == [QueueDepth::default()])) {
            return Ok(false);
        }
        match declare::delete(channel, &rung.name, queue_type == QueueType::Classic).await {
            // Something has come since it was counted.
            Err(BrokerError::Precondition { .. }) => Ok(false),
            deleted => deleted.map(|()| true),
        }
    })
    .await
}
