//! The orders of a lane that are being carried out: one that hangs holds up no other for long.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::host::Host;

/// Orders, each of which ends with a `T`.
pub(super) struct Running<T> {
    host: Arc<Host>,
    working: FuturesUnordered<BoxFuture<'static, Result<T, BoxFuture<'static, T>>>>,
    /// Those that wait for more than the broker's work. They are few, as each was first among those that work.
    hanging: FuturesUnordered<BoxFuture<'static, T>>,
}

impl<T: Send + 'static> Running<T> {
    /// None yet, of a lane of this broker.
    pub(super) fn on(host: Arc<Host>) -> Self {
        Self { host, working: FuturesUnordered::new(), hanging: FuturesUnordered::new() }
    }

    /// How many are at work, or wait for their turn.
    pub(super) fn working(&self) -> usize {
        self.working.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.working.is_empty() && self.hanging.is_empty()
    }

    /// Takes one more in.
    pub(super) fn push(&mut self, order: BoxFuture<'static, T>) {
        let host = self.host.clone();
        self.working.push(Box::pin(async move { host.begin(order).await }));
    }

    /// The next one that ends; none where there is room for another instead, as one turns out to hang.
    pub(super) async fn next(&mut self) -> Option<T> {
        tokio::select! {
            Some(begun) = self.working.next() => {
                begun.map_err(|hangs| self.hanging.push(hangs)).ok()
            }
            Some(ended) = self.hanging.next() => Some(ended),
            else => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::super::host::WORKING;
    use super::super::pace::WIDEST;
    use super::*;

    /// An order that takes so many seconds.
    fn order(seconds: u64) -> BoxFuture<'static, u64> {
        Box::pin(async move {
            sleep(Duration::from_secs(seconds)).await;
            seconds
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_hangs_takes_a_place_of_its_lane_for_so_long_only_and_ends_all_the_same() {
        let (mut running, begun) = (Running::on(Arc::default()), Instant::now());
        running.push(order(20));
        assert_eq!((running.working(), running.next().await), (1, None));
        assert_eq!((begun.elapsed(), running.working(), running.is_empty()), (WORKING, 0, false));
        running.push(order(1));
        assert_eq!((running.next().await, running.next().await), (Some(1), Some(20)));
        assert!(running.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_orders_of_a_broker_work_at_once_and_those_that_hang_hold_up_no_other_lane_for_long() {
        let host = Arc::<Host>::default();
        let (mut one, mut other, begun) = (Running::on(host.clone()), Running::on(host), Instant::now());
        (0..WIDEST).for_each(|_| one.push(order(20)));
        let hanging = async {
            while !one.is_empty() {
                one.next().await;
            }
        };
        other.push(order(0));
        tokio::select! {
            biased;
            () = hanging => panic!("they hang"),
            ended = other.next() => assert_eq!(ended, Some(0)),
        }
        assert_eq!(begun.elapsed(), WORKING);
    }
}
