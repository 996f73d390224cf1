//! Channels of a connection: opened, used again, and closed.

use std::sync::Mutex;

use warren_broker::BrokerError;
use warren_broker::channel::open;
use warren_broker::lapin::Channel;
use warren_broker::supervisor::Link;

use super::channels::{Channels, Pooled};
use crate::locked::locked;

/// A channel that waits for use, or another one.
pub(super) async fn take(
    link: &Link,
    channels: &Mutex<Channels<Channel>>,
) -> Result<Pooled<Channel>, BrokerError> {
    let idle = locked(channels).take(link.generation);
    match idle {
        Some(pooled) => Ok(pooled),
        None => Ok(Pooled::fresh(open(link).await?)),
    }
}

/// Has a channel wait for use, unless something was refused on it.
pub(super) fn put_back(link: &Link, channels: &Mutex<Channels<Channel>>, pooled: Pooled<Channel>) {
    if pooled.channel.status().connected() {
        locked(channels).put_back(link.generation, pooled);
    }
}

/// Does what may be refused, which closes a channel, on one of its own.
pub(super) async fn on_own_channel<T>(
    link: &Link,
    work: impl AsyncFnOnce(&Channel) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let channel = open(link).await?;
    let done = work(&channel).await?;
    close(&channel).await;
    Ok(done)
}

/// Closes a channel of one's own.
pub(super) async fn close(channel: &Channel) {
    // One that does not close goes with the connection.
    let _ = channel.close(200, "done".into()).await;
}
