//! Takes retry queues away that the spec has dropped.

use warren_api::QueueType;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::supervisor::Link;
use warren_broker::topology::QueuePlan;
use warren_broker::{BrokerError, Category};

use super::counted::{count, depth_of};
use super::link::on_own_channel;

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
        let empty = match count(link, channel, &[&rung.name], queue_type).await {
            Ok(counted) => counted == [QueueDepth::default()],
            // One without a leader says nothing of what it has.
            Err(error) if error.category() == Category::Retryable => false,
            Err(error) => return Err(error),
        };
        if !may_go(empty) {
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
