//! Takes retry queues away that the spec has dropped.

use warren_api::QueueType;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::lapin::Channel;
use warren_broker::supervisor::{Another, Link};
use warren_broker::topology::QueuePlan;
use warren_broker::{BrokerError, Category};

use super::Order;
use super::counted::{count, depth_of, leaders};
use super::link::on_own_channel;

/// A connection to ask the leaders of rungs on that are to go, made when it is needed; none of classic queues, and where the main
/// queue does not take what they give back: one without a leader takes nothing, and says that it is empty.
pub(super) struct Leaders<'a> {
    link: &'a Link,
    channel: &'a Channel,
    order: &'a Order,
    main: (bool, QueueDepth),
    asked: Option<Option<Another>>,
}

impl<'a> Leaders<'a> {
    /// For an order whose `main` queue has room, or not, and holds so much.
    pub(super) const fn of(
        link: &'a Link,
        channel: &'a Channel,
        order: &'a Order,
        main: (bool, QueueDepth),
    ) -> Self {
        Self { link, channel, order, main, asked: None }
    }

    async fn ask(&mut self) -> Option<&Another> {
        if self.asked.is_none() {
            let asked = self.connect().await.inspect_err(
                |error| tracing::debug!(queue = self.order.main, %error, "no rung goes for now"),
            );
            self.asked = Some(asked.unwrap_or_default());
        }
        self.asked.as_ref()?.as_ref()
    }

    async fn connect(&self) -> Result<Option<Another>, BrokerError> {
        let Self { link, channel, order, main: (room, depth), asked: _ } = *self;
        if !room {
            return Ok(None);
        }
        let leaders = leaders(link, order.queue_type).await?;
        if depth == QueueDepth::default() {
            count(link, channel, &[&order.main], leaders.as_ref()).await?;
        }
        Ok(leaders)
    }
}

/// Deletes a rung if it may go, which depends on whether it is empty and unused; says whether none of Warren's is left.
pub(super) async fn retired(
    rung: &QueuePlan,
    leaders: &mut Leaders<'_>,
    may_go: &mut (dyn FnMut(bool) -> bool + Send),
) -> Result<bool, BrokerError> {
    let (link, queue_type) = (leaders.link, leaders.order.queue_type);
    // A declaration alone would make one that is gone.
    match depth_of(link, &rung.name).await {
        Ok(None) | Err(BrokerError::Locked { .. }) => return Ok(true),
        Ok(Some(_)) => {}
        // Of a classic one whose node is down: that says nothing of the Queue, and it may come back.
        Err(BrokerError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    on_own_channel(link, async |channel| {
        let depth = match declare::declare_queue(channel, rung).await {
            Ok(depth) => depth,
            // Somebody's own, which happens to have the name: an order that never ended is recorded with all its rungs.
            Err(BrokerError::Precondition { .. } | BrokerError::Locked { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        let empty = depth == QueueDepth::default()
            && match (queue_type, leaders.ask().await) {
                (QueueType::Quorum, None) => false,
                (_, asked) => match count(link, channel, &[&rung.name], asked).await {
                    Ok(counted) => counted == [depth],
                    Err(error) if error.category() == Category::Retryable => {
                        // One without a leader does not say what it has, and each of the others would take as long.
                        leaders.asked = Some(None);
                        false
                    }
                    Err(error) => return Err(error),
                },
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
