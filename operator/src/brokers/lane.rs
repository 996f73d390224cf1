//! One broker: a connection, the Queues that are kept on it, and probes of their depth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedSender;
use futures::stream::FuturesUnordered;
use kube::runtime::reflector::ObjectRef;
use lapin::Channel;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use warren_api::Queue;
use warren_broker::connect::ConnectOptions;
use warren_broker::declare::{self, DeclareError, QueueDepth};
use warren_broker::release::{self, Release};
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError, Category};

use super::channels::{Channels, Pooled};
use super::entries::{Due, Entries};
use super::pace::{Pace, Turns, patience};
use super::schedule::interval;
use super::work::carry_out;
use super::{Key, LaneOptions, Observation, Order, Outcome};
use crate::{problem, tick};

/// Depth probes of a broker at once, those that wait for their turn included.
const PROBES_AT_ONCE: usize = 24;
/// How long a broker may take to say which release it is.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a probe may take, the wait for its turn included.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// One broker. Dropping it closes its connection.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    supervisor: Supervisor,
    link: watch::Receiver<LinkState>,
    address: String,
    access: BrokerAccess,
    drift_check: Duration,
    sidecars_learn: Duration,
    entries: Mutex<Entries>,
    changed: Notify,
    channels: Mutex<Channels<Channel>>,
    release: tokio::sync::Mutex<Option<(u64, Option<Release>)>>,
    probes: Semaphore,
    turns: Mutex<Turns>,
    probe_channels: Mutex<Channels<Channel>>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed by single inserts and removes, which a panic cannot leave half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// Starts connecting.
    pub(super) fn spawn(access: BrokerAccess, options: &LaneOptions) -> Self {
        let address = access.address();
        // Another access is another lane: this one never changes.
        let (_, fixed) = watch::channel(Arc::new(access.clone()));
        let supervisor = Supervisor::spawn(fixed, ConnectOptions::named(&options.connection_name));
        let shared = Arc::new(Shared {
            link: supervisor.state(),
            supervisor,
            address,
            access,
            drift_check: options.drift_check,
            sidecars_learn: options.sidecars_learn,
            entries: Mutex::default(),
            changed: Notify::new(),
            channels: Mutex::default(),
            release: tokio::sync::Mutex::default(),
            probes: Semaphore::new(PROBES_AT_ONCE),
            turns: Mutex::new(Turns::from(tick::before(Instant::now()))),
            probe_channels: Mutex::default(),
        });
        let task = tokio::spawn(run(shared.clone()));
        Self { shared, task }
    }

    /// The broker's address, without credentials.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.shared.link.borrow().link().is_some()
    }

    pub(super) fn order(
        &self,
        key: &Key,
        order: Order,
        changed: &UnboundedSender<ObjectRef<Queue>>,
    ) -> Option<Observation> {
        let down = match &*self.shared.link.borrow() {
            LinkState::Down { error, .. } => Some(problem::unreachable(error)),
            LinkState::Connecting | LinkState::Up(_) => None,
        };
        let observation = locked(&self.shared.entries).order(key, order, changed, down, Instant::now());
        self.shared.changed.notify_one();
        observation
    }

    pub(super) fn forget(&self, key: &Key) {
        locked(&self.shared.entries).forget(key);
    }

    /// How many ready messages a queue has. One that is missing, and was there, is declared again at once.
    ///
    /// # Errors
    /// The broker is not connected, did not answer in time, or knows no such queue.
    pub async fn depth(&self, queue: &str) -> Result<QueueDepth, BrokerError> {
        let timeout = BrokerError::TimedOut { what: "queue depth", seconds: PROBE_TIMEOUT.as_secs() };
        let depth =
            tokio::time::timeout(PROBE_TIMEOUT, self.shared.depth(queue)).await.unwrap_or(Err(timeout));
        if let Err(BrokerError::NotFound { .. }) = depth {
            locked(&self.shared.entries).missing(queue, Instant::now());
            self.shared.changed.notify_one();
        }
        depth
    }

    /// The time between two drift checks of a Queue, before jitter.
    pub(super) fn drift_check(&self) -> Duration {
        interval(self.shared.drift_check, locked(&self.shared.entries).len())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn link(&self) -> Result<Link, BrokerError> {
        match &*self.link.borrow() {
            LinkState::Up(link) => Ok(link.clone()),
            LinkState::Down { error, .. } => Err(error.as_ref().clone()),
            LinkState::Connecting => {
                Err(BrokerError::Closed { detail: "connecting for the first time".to_owned() })
            }
        }
    }

    async fn depth(&self, queue: &str) -> Result<QueueDepth, BrokerError> {
        // The semaphore is never closed.
        let _permit = self.probes.acquire().await;
        let now = Instant::now();
        let turn = locked(&self.turns).next(tick::before(now));
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
        let link = self.link()?;
        let idle = locked(&self.probe_channels).take(link.generation);
        let pooled = match idle {
            Some(pooled) => pooled,
            None => Pooled::fresh(open(&link).await?),
        };
        let depth = declare::depth(&pooled.channel, queue).await?;
        if pooled.channel.status().connected() {
            locked(&self.probe_channels).put_back(link.generation, pooled);
        }
        Ok(depth)
    }

    /// The broker's release, asked for once a connection.
    async fn release(&self, generation: u64) -> Option<Release> {
        let mut known = self.release.lock().await;
        match &*known {
            Some((of, release)) if *of == generation => release.clone(),
            _ => known.insert((generation, release::ask(&self.access, RELEASE_TIMEOUT).await)).1.clone(),
        }
    }

    /// Carries an order out.
    async fn carry_out(
        &self,
        link: &Link,
        order: &Arc<Order>,
        settled: bool,
    ) -> Result<Outcome, DeclareError> {
        let mut outcome = carry_out(link, &self.channels, order, settled).await?;
        if let Outcome::Declared(seen) = &mut outcome
            && order.topology.main().is_some_and(|main| main.arguments.contains_key("x-consumer-timeout"))
        {
            seen.release = self.release(link.generation).await;
        }
        Ok(outcome)
    }
}

pub(super) async fn open(link: &Link) -> Result<Channel, BrokerError> {
    link.connection.create_channel().await.map_err(|error| BrokerError::from_lapin(&error))
}

/// The lane's loop: follows the link and declares what is due.
async fn run(shared: Arc<Shared>) {
    let mut states = shared.supervisor.state();
    let mut running = FuturesUnordered::new();
    let mut generation = 0;
    let mut pace = Pace::default();
    let mut down: Option<(Instant, Arc<BrokerError>)> = None;
    states.mark_changed();
    loop {
        let link = shared.link().ok();
        let next = if link.is_some() && running.len() < pace.width() {
            locked(&shared.entries).first_due()
        } else {
            None
        };
        let news = down.as_ref().map(|(since, error)| *since + patience(error, generation > 0));
        tokio::select! {
            biased;
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                let state = states.borrow_and_update().clone();
                match state {
                    LinkState::Up(link) if link.generation != generation => {
                        generation = link.generation;
                        down = None;
                        // The broker may have come back empty.
                        locked(&shared.entries).all_due(Instant::now());
                    }
                    LinkState::Down { error, .. } => {
                        pace.lost();
                        let since = down.map_or_else(Instant::now, |(since, _)| since);
                        down = Some((since, error));
                    }
                    LinkState::Up(_) | LinkState::Connecting => {}
                }
            }
            Some((key, order, result)) = running.next() => {
                let result: Result<Outcome, DeclareError> = result;
                match &result {
                    Err(error) if error.error.category() == Category::Retryable => pace.lost(),
                    Err(_) | Ok(_) => pace.succeeded(),
                }
                locked(&shared.entries).done(&key, &order, result, shared.drift_check);
            }
            () = shared.changed.notified() => {}
            () = tokio::time::sleep_until(news.unwrap_or_else(Instant::now)), if news.is_some() => {
                if let Some((_, error)) = &mut down {
                    locked(&shared.entries).broker_is_down(&problem::unreachable(error));
                }
                // The next attempt brings the next error.
                down = None;
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let due = locked(&shared.entries).take_due(Instant::now());
                if let (Some(Due { key, order, age }), Some(link)) = (due, link) {
                    let shared = shared.clone();
                    running.push(async move {
                        let settled = age >= shared.sidecars_learn;
                        let result = shared.carry_out(&link, &order, settled).await;
                        (key, order, result)
                    });
                }
            }
        }
    }
}
