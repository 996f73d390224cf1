//! One broker: a connection, the Queues that are kept on it, and probes of their depth.

use std::collections::{BTreeSet, HashMap};
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
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError, Category};

use super::pace::{Pace, patience};
use super::schedule::{Last, next_check};
use super::work::carry_out;
use super::{Key, LaneOptions, Observation, Order, Outcome};
use crate::problem;

/// Depth probes of a broker at once.
const PROBES_AT_ONCE: usize = 8;
/// Shortest time between two probes: 400 a second at most.
const PROBE_SPACING: Duration = Duration::from_micros(2500);
/// How long sidecars may take to read a changed ladder: the kubelet's two minutes, and some.
const SIDECARS_LEARN: Duration = Duration::from_secs(150);
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
    drift_check: Duration,
    state: Mutex<State>,
    changed: Notify,
    probes: Semaphore,
    next_probe: Mutex<Instant>,
    probe_channels: Mutex<Channels>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    due: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Entry {
    order: Arc<Order>,
    /// When the order was placed.
    placed: Instant,
    changed: UnboundedSender<ObjectRef<Queue>>,
    observation: Option<Observation>,
    failures: u32,
    /// When it is due; none while it is being declared.
    due: Option<Instant>,
    /// Looked at again as soon as the running declaration ends.
    again: bool,
}

/// Open channels of one connection that wait for use.
#[derive(Debug, Default)]
pub(super) struct Channels {
    generation: u64,
    idle: Vec<Channel>,
}

impl Channels {
    pub(super) fn take(&mut self, generation: u64) -> Option<Channel> {
        if self.generation != generation {
            (self.generation, self.idle) = (generation, Vec::new());
        }
        self.idle.pop()
    }

    pub(super) fn put_back(&mut self, generation: u64, channel: Channel) {
        if self.generation == generation && channel.status().connected() {
            self.idle.push(channel);
        }
    }
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
        let (_, access) = watch::channel(Arc::new(access));
        let supervisor = Supervisor::spawn(access, ConnectOptions::named(&options.connection_name));
        let shared = Arc::new(Shared {
            link: supervisor.state(),
            supervisor,
            address,
            drift_check: options.drift_check,
            state: Mutex::default(),
            changed: Notify::new(),
            probes: Semaphore::new(PROBES_AT_ONCE),
            next_probe: Mutex::new(Instant::now()),
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
        let now = Instant::now();
        let down = match &*self.shared.link.borrow() {
            LinkState::Down { error, .. } => Some(Outcome::Unreachable(problem::unreachable(error))),
            LinkState::Connecting | LinkState::Up(_) => None,
        };
        let mut state = locked(&self.shared.state);
        let State { entries, due } = &mut *state;
        let entry = match entries.get_mut(key) {
            Some(entry) if *entry.order == order => return entry.observation.clone(),
            Some(entry) => {
                entry.order = Arc::new(order);
                entry.placed = now;
                entry
            }
            None => entries.entry(key.clone()).or_insert(Entry {
                order: Arc::new(order),
                placed: now,
                changed: changed.clone(),
                observation: None,
                failures: 0,
                due: None,
                again: false,
            }),
        };
        entry.observation = down.map(|outcome| Observation { order: entry.order.clone(), outcome });
        match entry.due {
            Some(at) => {
                due.remove(&(at, key.clone()));
            }
            None => entry.again = true,
        }
        entry.due = Some(now);
        due.insert((now, key.clone()));
        let observation = entry.observation.clone();
        drop(state);
        self.shared.changed.notify_one();
        observation
    }

    pub(super) fn forget(&self, key: &Key) {
        let mut state = locked(&self.shared.state);
        if let Some(Entry { due: Some(at), .. }) = state.entries.remove(key) {
            state.due.remove(&(at, key.clone()));
        }
    }

    /// Declares a Queue again at once, such as when its consumers were cancelled.
    pub fn check_now(&self, key: &Key) {
        let now = Instant::now();
        locked(&self.shared.state).reschedule(key, now);
        self.shared.changed.notify_one();
    }

    /// How many ready messages a queue has.
    ///
    /// # Errors
    /// The broker is not connected, did not answer in time, or knows no such queue.
    pub async fn depth(&self, queue: &str) -> Result<QueueDepth, BrokerError> {
        let timeout = BrokerError::TimedOut { what: "queue depth", seconds: PROBE_TIMEOUT.as_secs() };
        tokio::time::timeout(PROBE_TIMEOUT, self.shared.depth(queue)).await.unwrap_or(Err(timeout))
    }

    /// How many Queues are kept here.
    pub fn queues(&self) -> usize {
        locked(&self.shared.state).entries.len()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn reschedule(&mut self, key: &Key, at: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match entry.due {
            Some(before) => {
                self.due.remove(&(before, key.clone()));
                entry.due = Some(at);
                self.due.insert((at, key.clone()));
            }
            None => entry.again = true,
        }
    }

    /// The Queue that is due first, if it is now.
    fn take_due(&mut self, now: Instant) -> Option<(Key, Arc<Order>, Duration)> {
        let first = self.due.first().filter(|(at, _)| *at <= now)?.clone();
        self.due.remove(&first);
        let key = first.1;
        let entry = self.entries.get_mut(&key)?;
        entry.due = None;
        entry.again = false;
        Some((key, entry.order.clone(), now.duration_since(entry.placed)))
    }
}

impl Entry {
    fn observe(&mut self, key: &Key, observation: Observation) {
        if self.observation.as_ref() != Some(&observation) {
            self.observation = Some(observation);
            // The receiver ends only with the process.
            let _ = self.changed.unbounded_send(ObjectRef::from(key));
        }
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
        let turn = {
            let mut next = locked(&self.next_probe);
            let turn = (*next).max(Instant::now());
            *next = turn + PROBE_SPACING;
            turn
        };
        tokio::time::sleep_until(turn).await;
        let link = self.link()?;
        let idle = locked(&self.probe_channels).take(link.generation);
        let channel = match idle {
            Some(channel) => channel,
            None => open(&link).await?,
        };
        let depth = declare::depth(&channel, queue).await?;
        locked(&self.probe_channels).put_back(link.generation, channel);
        Ok(depth)
    }

    /// Every Queue learns that the broker cannot be used.
    fn broker_is_down(&self, error: &BrokerError) {
        let problem = problem::unreachable(error);
        for (key, entry) in &mut locked(&self.state).entries {
            let order = entry.order.clone();
            entry.observe(key, Observation { order, outcome: Outcome::Unreachable(problem.clone()) });
        }
    }

    /// A new connection: everything is looked at, as the broker may have come back empty.
    fn broker_is_up(&self) {
        let now = Instant::now();
        let mut state = locked(&self.state);
        // What failed keeps its date: it may be what ended the connection.
        let sound = state.entries.iter().filter(|(_, entry)| entry.failures == 0);
        let keys: Vec<Key> = sound.map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| state.reschedule(key, now));
    }

    fn done(&self, key: &Key, order: &Arc<Order>, result: Result<Outcome, DeclareError>) {
        let mut state = locked(&self.state);
        let queues = state.entries.len();
        let Some(entry) = state.entries.get_mut(key) else { return };
        let last = match result {
            Ok(outcome) => {
                entry.failures = 0;
                let last = match &outcome {
                    Outcome::Refused(_) | Outcome::Unreachable(_) => Last::Refused,
                    Outcome::Declared { .. } | Outcome::Absent | Outcome::Removed => Last::Declared,
                };
                entry.observe(key, Observation { order: order.clone(), outcome });
                last
            }
            Err(error) => {
                entry.failures = entry.failures.saturating_add(1);
                let terminal = error.error.category() != Category::Retryable;
                // One lost channel is no news; the link tells of a lost connection.
                if terminal || entry.failures > 2 {
                    let outcome = Outcome::Refused(problem::refused(&error));
                    entry.observe(key, Observation { order: order.clone(), outcome });
                }
                if terminal { Last::Refused } else { Last::Failed { in_a_row: entry.failures } }
            }
        };
        let wait = match std::mem::take(&mut entry.again) {
            true => Duration::ZERO,
            false => next_check(last, self.drift_check, queues, rand::random()),
        };
        // An order that came meanwhile has put its own date.
        if entry.due.is_none() {
            let at = Instant::now() + wait;
            entry.due = Some(at);
            state.due.insert((at, key.clone()));
        }
    }
}

pub(super) async fn open(link: &Link) -> Result<Channel, BrokerError> {
    link.connection.create_channel().await.map_err(|error| BrokerError::from_lapin(&error))
}

/// The lane's loop: follows the link and declares what is due.
async fn run(shared: Arc<Shared>) {
    let mut states = shared.supervisor.state();
    let mut running = FuturesUnordered::new();
    let channels = Arc::new(Mutex::new(Channels::default()));
    let mut generation = 0;
    let mut pace = Pace::default();
    let mut down: Option<(Instant, Arc<BrokerError>)> = None;
    states.mark_changed();
    loop {
        let link = shared.link().ok();
        let next = if link.is_some() && running.len() < pace.width() {
            locked(&shared.state).due.first().map(|(at, _)| *at)
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
                        shared.broker_is_up();
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
                shared.done(&key, &order, result);
            }
            () = shared.changed.notified() => {}
            () = tokio::time::sleep_until(news.unwrap_or_else(Instant::now)), if news.is_some() => {
                if let Some((_, error)) = &mut down {
                    shared.broker_is_down(error);
                }
                // The next attempt brings the next error.
                down = None;
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let due = locked(&shared.state).take_due(Instant::now());
                if let (Some((key, order, age)), Some(link)) = (due, link) {
                    let channels = channels.clone();
                    let settled = age >= SIDECARS_LEARN;
                    running.push(async move {
                        let result = carry_out(&link, &channels, &order, settled).await;
                        (key, order, result)
                    });
                }
            }
        }
    }
}
