//! How full queues are, told in a way that deletions may trust.

use std::time::Duration;

use warren_api::QueueType;
use warren_broker::BrokerError;
use warren_broker::channel::open;
use warren_broker::declare::{self, QueueDepth};
use warren_broker::lapin::Channel;
use warren_broker::supervisor::{Another, Link};

use super::link::on_own_channel;

/// Reads of zero in a row that make the zero of a quorum queue believable.
const AGREEING_ZEROS: usize = 3;
/// Time between two of these: longer than a broker waits for a quorum queue's leader.
const ZERO_SPACING: Duration = Duration::from_millis(300);
/// How long a quorum queue's leader is waited for: the broker itself waits a minute for one.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How full a queue is; none where it does not exist.
pub(super) async fn depth_of(link: &Link, queue: &str) -> Result<Option<QueueDepth>, BrokerError> {
    match on_own_channel(link, async |channel| declare::depth(channel, queue).await).await {
        Ok(depth) => Ok(Some(depth)),
        Err(error) if error.says_no_queue(queue) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A connection on which the leaders of quorum queues are asked, which the broker ends where there is none; none for classic
/// queues, which need no leader.
///
/// # Errors
/// As of [`Link::another`].
pub(super) async fn leaders(link: &Link, queue_type: QueueType) -> Result<Option<Another>, BrokerError> {
    match queue_type {
        QueueType::Quorum => link.another().await.map(Some),
        QueueType::Classic => Ok(None),
    }
}

/// Counts queues' messages and consumers; the zero of a quorum queue, of which `leaders` are given, is confirmed, as one without a
/// leader says zero too.
pub(super) async fn count(
    link: &Link,
    channel: &Channel,
    queues: &[&str],
    leaders: Option<&Another>,
) -> Result<Vec<QueueDepth>, BrokerError> {
    let none = QueueDepth::default();
    let mut depths = vec![none; queues.len()];
    let reads = if leaders.is_some() { AGREEING_ZEROS } else { 1 };
    for read in 0..reads {
        if read > 0 {
            if !depths.contains(&none) {
                break;
            }
            tokio::time::sleep(ZERO_SPACING).await;
        }
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = declare::depth(channel, queue).await?;
        }
    }
    if let Some(leaders) = leaders {
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = of_leader(link, leaders, queue).await?;
        }
    }
    Ok(depths)
}

/// What the leader of a quorum queue that read empty says.
pub(super) async fn of_leader(
    link: &Link,
    leaders: &Another,
    queue: &str,
) -> Result<QueueDepth, BrokerError> {
    let asking = async { declare::gives_nothing(&open(leaders.link()).await?, queue).await };
    let asked = tokio::time::timeout(LEADER_TIMEOUT, asking).await;
    match asked.unwrap_or(Err(BrokerError::TimedOut { what: "leader", seconds: LEADER_TIMEOUT.as_secs() })) {
        Ok(nothing) => Ok(QueueDepth { ready: u32::from(!nothing), consumers: 0 }),
        // A quorum queue is never exclusive: its leader has answered that a single active consumer is all it gives messages to.
        // It is there, so that the depth that follows is its own.
        Err(BrokerError::Locked { .. }) => Ok(depth_of(link, queue).await?.unwrap_or_default()),
        Err(error) => Err(error),
    }
}
