//! What the lanes of one broker share: each vhost or user is a lane of its own, and what a broker stands is the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::pace::{Turns, WIDEST};
use crate::tick;

/// For how long a declaration counts: one that takes longer waits, as for the majority of a quorum queue, and is no work for the
/// broker. Those of other vhosts do not wait for it.
const WORKING: Duration = Duration::from_secs(2);

/// One broker, by its hosts.
#[derive(Debug)]
pub(super) struct Host {
    /// Whose turn it is to probe.
    pub(super) turns: Mutex<Turns>,
    /// Held by each declaration that runs, for [`WORKING`] at most.
    declaring: Semaphore,
    probers: Arc<()>,
    queues: Arc<()>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            turns: Mutex::new(Turns::from(tick::before(Instant::now()))),
            declaring: Semaphore::new(WIDEST),
            probers: Arc::default(),
            queues: Arc::default(),
        }
    }
}

impl Host {
    /// A Queue's place among those that are kept here, until it is dropped.
    pub(super) fn queue(&self) -> Arc<()> {
        self.queues.clone()
    }

    /// Carries a declaration out when its turn comes.
    pub(super) async fn declare<T>(&self, mut declaration: impl Future<Output = T> + Unpin) -> T {
        // The semaphore is never closed.
        let permit = self.declaring.acquire().await;
        match tokio::time::timeout(WORKING, &mut declaration).await {
            Ok(result) => result,
            Err(_) => {
                drop(permit);
                declaration.await
            }
        }
    }

    /// How many Queues are kept.
    pub(super) fn queues(&self) -> usize {
        others(&self.queues)
    }

    /// A Worker's place among those whose queues are probed; `former` is kept where it is one.
    pub(super) fn prober(&self, former: Option<Prober>) -> Prober {
        let here = |former: &Prober| Arc::ptr_eq(&former.0, &self.probers);
        former.filter(here).unwrap_or_else(|| Prober(self.probers.clone()))
    }

    /// How many Workers' queues are probed.
    pub(super) fn probers(&self) -> usize {
        others(&self.probers)
    }
}

/// A Worker's place among those whose queues are probed on a broker, until it is dropped.
#[derive(Debug)]
pub struct Prober(Arc<()>);

impl Prober {
    /// How many there are on its broker.
    pub fn all(&self) -> usize {
        others(&self.0)
    }
}

/// How many have a place: the host's own is none.
fn others(place: &Arc<()>) -> usize {
    Arc::strong_count(place).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_declarations_run_at_once_and_those_that_hang_hold_up_no_other_for_long() {
        let host = Host::default();
        let hanging =
            futures::future::join_all((0..WIDEST).map(|_| host.declare(std::future::pending::<()>())));
        let begun = Instant::now();
        tokio::select! {
            biased;
            _ = hanging => panic!("they hang"),
            () = host.declare(std::future::ready(())) => {}
        }
        assert_eq!(begun.elapsed(), WORKING);
    }
}
