//! One loop a Worker: reads the signals, has `decide` judge them, carries the decision out.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use warren_api::worker::ScalingMode;
use warren_api::{Queue, QueueType, Worker};

use super::act;
use super::board::{Entry, Handlers, View};
use super::decide::{Decision, Inputs, Sidecars, Spec, Workload, decide};
use super::history::History;
use super::sample::Tracker;
use super::scrape::Scraper;
use crate::brokers::Key;
use crate::context::Context;
use crate::worker::dereference::pods_of;
use crate::worker::pods;
use crate::worker::validate::unordered;

/// How often the set of Workers is looked through.
const SWEEP: Duration = Duration::from_millis(500);
/// How often a Worker at zero is looked at: a message wakes it within a second.
const AT_ZERO: Duration = Duration::from_millis(400);
/// How often a Worker with pods is looked at.
const WITH_PODS: Duration = Duration::from_secs(1);
/// How often a Worker is looked at whose replicas are not Warren's business.
const OBSERVED: Duration = Duration::from_secs(5);
/// Probes a second, over all Workers, that are aimed at.
const PROBES_A_SECOND: f64 = 400.0;
/// How long the first depth may take before it counts as unknown.
const FIRST_DEPTH: Duration = Duration::from_secs(10);
/// How long a change of the Deployment may take to come back in the cache.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs a loop for each Worker of the scope until `context.shutdown`.
pub async fn run(context: Arc<Context>) {
    let scraper = Arc::new(Scraper::default());
    let mut loops: HashMap<Key, JoinHandle<()>> = HashMap::new();
    let mut ended = std::pin::pin!(context.shutdown.clone().cancelled());
    loop {
        let all = context.stores.workers.state();
        context.board.share(sharing(&all));
        let living: HashMap<Key, ()> = all.iter().map(|w| (worker_key(w), ())).collect();
        loops.retain(|key, task| {
            let lives = living.contains_key(key) && !task.is_finished();
            if !living.contains_key(key) {
                task.abort();
                context.board.forget(key);
                context.records.forget(key);
                context.metrics.forget_worker(key);
            }
            lives
        });
        for key in living.into_keys() {
            loops
                .entry(key.clone())
                .or_insert_with(|| tokio::spawn(follow(key, context.clone(), scraper.clone())));
        }
        let workers = loops.len();
        context.metrics.followed_workers(workers, fleet_pause(workers).max(AT_ZERO).as_secs_f64());
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = &mut ended => {
                loops.values().for_each(JoinHandle::abort);
                return;
            }
        }
    }
}

/// A Worker's namespace and name.
pub fn worker_key(worker: &Worker) -> Key {
    Key { namespace: worker.namespace().unwrap_or_default(), name: worker.name_any() }
}

/// Each Builtin Worker that shares its Queue with others, with all that do.
fn sharing(workers: &[Arc<Worker>]) -> HashMap<Key, Arc<[Key]>> {
    let mut by_queue: HashMap<(String, &str), Vec<Key>> = HashMap::new();
    for worker in workers.iter().filter(|w| w.spec.scaling.mode == ScalingMode::Builtin) {
        let queue = (worker.namespace().unwrap_or_default(), worker.spec.queue_ref.name.as_str());
        by_queue.entry(queue).or_default().push(worker_key(worker));
    }
    let shared = by_queue.into_values().filter(|workers| workers.len() > 1).map(Arc::<[Key]>::from);
    shared.flat_map(|all| all.iter().map(|key| (key.clone(), all.clone())).collect::<Vec<_>>()).collect()
}

struct Follower {
    key: Key,
    context: Arc<Context>,
    scraper: Arc<Scraper>,
    entry: Arc<Entry>,
    tracker: Tracker,
    history: History,
    depth: Option<(u64, Instant)>,
    settled: Lately,
    decided: Option<u32>,
    patched: Option<Instant>,
    since: Instant,
    since_wall: Timestamp,
}

async fn follow(key: Key, context: Arc<Context>, scraper: Arc<Scraper>) {
    let entry = context.board.entry(&key);
    let mut follower = Follower {
        key,
        entry,
        scraper,
        tracker: Tracker::default(),
        history: History::default(),
        depth: None,
        settled: Lately::default(),
        decided: None,
        patched: None,
        since: Instant::now(),
        since_wall: Timestamp::now(),
        context,
    };
    let reference = ObjectRef::new(&follower.key.name).within(&follower.key.namespace);
    // A fleet that starts together does not probe together.
    tokio::time::sleep(AT_ZERO.mul_f64(rand::random())).await;
    loop {
        let Some(worker) = follower.context.stores.workers.get(&reference) else { return };
        let pause = follower.round(&worker).await;
        tokio::time::sleep(pause).await;
    }
}

impl Follower {
    /// One look; gives the time until the next.
    async fn round(&mut self, worker: &Worker) -> Duration {
        let context = self.context.clone();
        let stores = &context.stores;
        let namespace = &self.key.namespace;
        let queue = stores.queues.get(&ObjectRef::new(&worker.spec.queue_ref.name).within(namespace));
        let deployment = stores.deployments.get(&ObjectRef::new(&self.key.name).within(namespace));
        let pods = pods_of(worker, &context);
        let (ready, sidecars) = tokio::join!(self.read_depth(queue.as_deref()), self.scrape(&pods));
        if let Some(ready) = ready {
            self.depth = Some((ready, Instant::now()));
        }
        let (mut sidecars, handlers) = self.fold(&pods, sidecars);
        self.settled.observe(sidecars.settled, self.since.elapsed().as_secs_f64());
        // A call that carries many messages takes its time once for all of them.
        if worker.spec.handler.batch.is_some() {
            sidecars.calls = sidecars.settled;
        }
        self.publish_metrics(worker, queue.as_deref(), deployment.as_deref(), &pods);

        if worker.spec.scaling.mode != ScalingMode::Builtin || worker.metadata.deletion_timestamp.is_some() {
            self.decided = None;
            context.records.forget(&self.key);
            self.show(worker, &self.view(None, handlers));
            return OBSERVED;
        }
        // A broker that is being connected to is not unknown yet.
        if self.depth.is_none() && self.since.elapsed() < FIRST_DEPTH {
            self.show(worker, &self.view(None, handlers));
            return AT_ZERO;
        }
        let live = deployment.as_deref().and_then(|d| d.spec.as_ref()?.replicas).map(|r| r.unsigned_abs());
        let spec = spec(worker, queue.as_deref());
        let current = self.decided.or(live).unwrap_or(spec.min);
        let share = context.board.part(&self.key);
        let inputs = Inputs {
            ready: self
                .depth
                .filter(|_| queue.is_some())
                .map(|(ready, at)| (part(ready, share), at.elapsed().as_secs_f64())),
            workload: Workload {
                replicas: current,
                rolling: deployment.as_deref().is_some_and(rolling),
                failing: pods::trouble(&pods).is_some(),
            },
            sidecars,
        };
        let now = self.since.elapsed().as_secs_f64();
        let (decision, history) = decide(std::mem::take(&mut self.history), &inputs, &spec, now);
        self.history = history;
        self.decided = Some(decision.replicas);
        context.records.note(&self.key, inputs, &decision);
        self.carry_out(worker, live, current, decision, handlers, &pods).await;
        self.pause(current)
    }

    fn view(&self, decision: Option<Decision>, handlers: Handlers) -> View {
        let durability = self.tracker.durability();
        View { decision, handlers, durability, settled_lately: self.settled.amount }
    }

    async fn read_depth(&self, queue: Option<&Queue>) -> Option<u64> {
        let queue = queue?;
        let key = Key { namespace: self.key.namespace.clone(), name: queue.name_any() };
        let lane = self.context.brokers.lane_of(&key)?;
        match lane.depth(queue.broker_name()).await {
            Ok(depth) => Some(u64::from(depth.ready)),
            Err(error) => {
                tracing::debug!(namespace = %key.namespace, queue = %key.name, %error, "depth not read");
                None
            }
        }
    }

    async fn scrape(&self, pods: &[Arc<Pod>]) -> Vec<(String, bool, super::sample::Sample)> {
        let running = pods.iter().filter(|pod| pods::sidecar_runs(pod));
        let mut scrapes: FuturesUnordered<_> = running
            .filter_map(|pod| {
                let address: IpAddr = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
                let whole = pod.creation_timestamp().is_some_and(|created| created.0 > self.since_wall);
                Some(async move { Some((pod.uid()?, whole, self.scraper.scrape(address).await?)) })
            })
            .collect();
        let mut answers = Vec::new();
        while let Some(answer) = scrapes.next().await {
            answers.extend(answer);
        }
        answers
    }

    fn fold(
        &mut self,
        pods: &[Arc<Pod>],
        answers: Vec<(String, bool, super::sample::Sample)>,
    ) -> (Sidecars, Handlers) {
        let living: BTreeSet<String> =
            pods.iter().filter(|pod| !pods::ended(pod)).filter_map(|pod| pod.uid()).collect();
        let started = pods.iter().filter(|pod| pods::sidecar_runs(pod) && !pods::ended(pod)).count();
        let misconfigured = answers.iter().find_map(|(_, _, sample)| sample.misconfigured);
        let connected = answers.iter().filter(|(_, _, sample)| sample.connected).count();
        let now = self.since.elapsed().as_secs_f64();
        let sidecars = self.tracker.observe(answers, &living, count(started), now);
        let handlers = Handlers {
            scraped: sidecars.scraped,
            held: sidecars.held,
            misconfigured,
            connected: count(connected),
        };
        (sidecars, handlers)
    }

    async fn carry_out(
        &mut self,
        worker: &Worker,
        live: Option<u32>,
        current: u32,
        decision: Decision,
        handlers: Handlers,
        pods: &[Arc<Pod>],
    ) {
        let wanted = decision.replicas;
        let view = self.view(Some(decision.clone()), handlers);
        let settled = self.patched.is_none_or(|at| at.elapsed() > SETTLE);
        if live.is_none_or(|live| live == wanted) || (wanted == current && !settled) {
            self.show(worker, &view);
            return;
        }
        if live.is_some_and(|live| wanted < live) {
            act::mark_costs(&self.context, pods, &self.tracker).await;
        }
        let former = self.entry.view();
        match act::scale(&self.context, &self.key, &self.entry, view.clone(), wanted).await {
            Ok(()) => {
                self.patched = Some(Instant::now());
                let Decision { reason, message, .. } = &decision;
                let foreign = wanted == current;
                let reason = if foreign { "ScaleReverted" } else { reason.as_str() };
                tracing::info!(namespace = %self.key.namespace, worker = %self.key.name, replicas = wanted, live, reason, message, "scaled");
                let message = match foreign {
                    true => format!(
                        "someone else set {} replicas; scaling.mode Builtin puts back {wanted}",
                        live.unwrap_or_default()
                    ),
                    false => message.clone(),
                };
                self.context.event(&worker.object_ref(&()), EventType::Normal, reason, &message, "Scale");
                self.context.metrics.scaled(&self.key, reason);
                self.tell_if_news(worker, &former, &view);
            }
            Err(error) => {
                tracing::warn!(namespace = %self.key.namespace, worker = %self.key.name, %error, "not scaled, tried again");
            }
        }
    }

    /// Makes a view known, and has the Worker's status follow where it says something new.
    fn show(&self, worker: &Worker, view: &View) {
        let former = self.entry.replace(view.clone());
        self.tell_if_news(worker, &former, view);
    }

    fn tell_if_news(&self, worker: &Worker, former: &View, view: &View) {
        let said = |view: &View| {
            let decision = view.decision.as_ref().map(|d| (d.replicas, d.reason));
            (
                decision,
                view.handlers.held > 0,
                view.handlers.misconfigured,
                view.handlers.scraped > view.handlers.connected,
                // What the Queue tells of its messages.
                (view.durability.deliveries > 0, view.durability.transient > 0),
            )
        };
        if said(former) == said(view) {
            return;
        }
        if let Some(decision) = &view.decision {
            self.context.metrics.decided(&self.key, decision.reason);
        }
        // The Queue tells of its messages' durability. The receivers end only with the process.
        let queue = ObjectRef::new(&worker.spec.queue_ref.name).within(&self.key.namespace);
        let _ = self.context.queue_changed.unbounded_send(queue);
        let _ = self.context.worker_changed.unbounded_send(ObjectRef::from_obj(worker));
    }

    fn publish_metrics(
        &self,
        worker: &Worker,
        queue: Option<&Queue>,
        deployment: Option<&Deployment>,
        pods: &[Arc<Pod>],
    ) {
        let desired = deployment.and_then(|d| d.spec.as_ref()?.replicas).unwrap_or_default();
        let ready = pods.iter().filter(|pod| pods::ready(pod)).count();
        self.context.metrics.worker_replicas(
            &self.key,
            desired.unsigned_abs(),
            count(pods.len()),
            count(ready),
        );
        if let (Some(queue), Some((depth, _))) = (queue, self.depth) {
            self.context.metrics.queue_depth(
                &worker.namespace().unwrap_or_default(),
                &queue.name_any(),
                depth,
            );
        }
        if let Some(seconds) = self.history.service_seconds() {
            self.context.metrics.service_seconds(&self.key, seconds);
        }
    }

    fn pause(&self, current: u32) -> Duration {
        let base = if current == 0 { AT_ZERO } else { WITH_PODS };
        base.max(fleet_pause(self.context.metrics.followed())).mul_f64(rand::random_range(0.9..1.0))
    }
}

/// What was settled in the last while, with a weight that halves each minute.
#[derive(Debug, Default)]
struct Lately {
    amount: f64,
    last: Option<(u64, f64)>,
}

impl Lately {
    fn observe(&mut self, settled: u64, now: f64) {
        if let Some((before, at)) = self.last.replace((settled, now)) {
            self.amount =
                self.amount * 0.5_f64.powf((now - at) / 60.0) + settled.saturating_sub(before) as f64;
        }
    }
}

/// A part of a backlog; the part of something is never nothing.
fn part(ready: u64, share: f64) -> u64 {
    (ready as f64 * share).ceil() as u64
}

/// The pause that keeps a fleet of so many Workers below the ceiling of probes.
fn fleet_pause(workers: usize) -> Duration {
    Duration::from_secs_f64(workers as f64 / PROBES_A_SECOND)
}

fn count(number: usize) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

/// Whether pods of an older template are still there.
fn rolling(deployment: &Deployment) -> bool {
    let generation = deployment.metadata.generation;
    deployment.status.as_ref().is_none_or(|status| {
        status.observed_generation < generation
            || status.updated_replicas.unwrap_or(0) < status.replicas.unwrap_or(0)
    })
}

/// What a Worker asks of its scaling.
pub fn spec(worker: &Worker, queue: Option<&Queue>) -> Spec {
    let (scaling, consumer) = (&worker.spec.scaling, &worker.spec.consumer);
    let concurrency = consumer.concurrency.unwrap_or(consumer.prefetch).max(1).unsigned_abs();
    Spec {
        min: scaling.min_replicas.max(0).unsigned_abs(),
        max: scaling.max_replicas.max(scaling.min_replicas).max(0).unsigned_abs(),
        target_wait: f64::from(scaling.target_wait_seconds.max(1)),
        stabilization: f64::from(scaling.scale_in_stabilization_seconds.max(0)),
        concurrency,
        handler_timeout: f64::from(worker.spec.handler.http.timeout_seconds),
        quorum: queue.is_none_or(|queue| queue.spec.queue_type == QueueType::Quorum),
        paused: consumer.paused || queue.is_some_and(|queue| unordered(worker, queue).is_some()),
    }
}
