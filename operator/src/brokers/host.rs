//! What the lanes of one broker share: each vhost or user is a lane of its own, and what a broker stands is the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::pace::{Turns, WIDEST};
use crate::tick;

/// For how long a declaration counts: one that takes longer waits, as for the majority of a quorum queue, and is no work for the
/// broker. No other one waits for it any longer.
pub(super) const WORKING: Duration = Duration::from_secs(2);

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

    /// Begins a declaration when its turn comes. Gives what comes of it, or, where it waits for more than the broker, itself.
    pub(super) async fn begin<F: Future + Unpin>(&self, mut declaration: F) -> Result<F::Output, F> {
        // The semaphore is never closed.
        let _permit = self.declaring.acquire().await;
        tokio::time::timeout(WORKING, &mut declaration).await.map_err(|_| declaration)
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
