//! How full queues are, told in a way that deletions may trust.

use std::time::Duration;

use lapin::Channel;
use warren_api::QueueType;
use warren_broker::BrokerError;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::supervisor::Link;

use super::lane::open;

/// Reads of zero in a row that make the zero of a quorum queue believable.
const AGREEING_ZEROS: usize = 3;
/// Time between two of these: longer than a broker waits for a quorum queue's leader.
const ZERO_SPACING: Duration = Duration::from_millis(300);

/// How full a queue is; none where it does not exist. A missing one closes the channel that asked: it is a channel of its own.
pub(super) async fn depth_of(link: &Link, queue: &str) -> Result<Option<QueueDepth>, BrokerError> {
    let channel = open(link).await?;
    match declare::depth(&channel, queue).await {
        Ok(depth) => {
            close(&channel).await;
            Ok(Some(depth))
        }
        Err(BrokerError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Counts queues' messages and consumers; a quorum queue's zero is confirmed, as one without a leader says zero too.
pub(super) async fn count(
    link: &Link,
    channel: &Channel,
    queues: &[&str],
    queue_type: QueueType,
) -> Result<Vec<QueueDepth>, BrokerError> {
    let none = QueueDepth::default();
    let mut depths = vec![none; queues.len()];
    let reads = if queue_type == QueueType::Quorum { AGREEING_ZEROS } else { 1 };
    for read in 0..reads {
        if read > 0 {
            tokio::time::sleep(ZERO_SPACING).await;
        }
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = declare::depth(channel, queue).await?;
        }
    }
    if queue_type == QueueType::Quorum {
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = of_leader(link, queue).await?;
        }
    }
    Ok(depths)
}

/// What the leader of a quorum queue that read empty says. The question may close the channel: it is one of its own.
async fn of_leader(link: &Link, queue: &str) -> Result<QueueDepth, BrokerError> {
    let channel = open(link).await?;
    match declare::gives_nothing(&channel, queue).await {
        Ok(nothing) => {
            close(&channel).await;
            Ok(QueueDepth { ready: u32::from(!nothing), consumers: 0 })
        }
        // A quorum queue is never exclusive: its leader has answered that a single active consumer is all it gives messages to.
        // It is there, so that the depth that follows is its own.
        Err(BrokerError::Locked { .. }) => Ok(depth_of(link, queue).await?.unwrap_or_default()),
        Err(error) => Err(error),
    }
}

/// Closes a channel of one's own.
pub(super) async fn close(channel: &Channel) {
    // One that does not close goes with the connection.
    let _ = channel.close(200, "done".into()).await;
}
