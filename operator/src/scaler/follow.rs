//! The loop of one Worker: reads the signals, has `decide` judge them, carries the decision out.

mod carry;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use warren_api::conditions::READY;
use warren_api::conditions::worker::AVAILABLE;
use warren_api::{Queue, Worker};
use warren_broker::declare::QueueDepth;

use super::act::PATCHED_FOR;
use super::asked::{decided_before, measured_before, spec};
use super::board::{Entry, Handlers, View};
use super::cadence::{AT_ZERO, pause};
use super::decide::{Decision, decide, long_work};
use super::history::History;
use super::inputs::Sidecars;
use super::look::Look;
use super::own::Own;
use super::sample::{Answer, Tracker};
use super::schedule::Timetable;
use super::share::Lately;
use super::side::Side;
use super::tell;
use crate::brokers::{Key, Prober};
use crate::condition::{find, is_false, is_true};
use crate::context::{Context, SIDECARS_LEARN};
use crate::tick;
use crate::worker::dereference::beside;
use crate::worker::pods;
use crate::worker::status::SIDECARS_DISCONNECTED;

/// How often a Worker is looked at whose replicas are not Warren's business.
const OBSERVED: Duration = Duration::from_secs(5);
/// How long the scrapes of a round may take: the depth that was read beside them must stay fresh.
const SCRAPING: Duration = Duration::from_secs(3);
/// How long the queue's depth may take, the wait for a turn to ask included.
const DEPTH: Duration = Duration::from_secs(3);
/// How long a queue beside the Queue's own may hold up a look.
const BESIDE: Duration = Duration::from_millis(500);
/// How long sidecars may take to connect, in seconds.
const CONNECTING_SECONDS: f64 = 15.0;
/// How long the first depth may take before it counts as unknown.
const FIRST_DEPTH: Duration = Duration::from_secs(10);

struct Follower {
    key: Key,
    context: Arc<Context>,
    entry: Arc<Entry>,
    tracker: Tracker,
    history: History,
    timetable: Timetable,
    /// Since when sidecars answer and most are not connected.
    unconnected: Option<f64>,
    /// What `depth` is of: the Queue, its broker as its status has it, and the broker's queue.
    followed: Option<(Key, Option<String>, String)>,
    depth: Option<(QueueDepth, Instant)>,
    prober: Option<Prober>,
    side: Side,
    settled: Lately,
    long_work: bool,
    own: Own,
    /// What the API server has refused last.
    refused: Option<carry::Refused>,
    /// Patches in a row that failed.
    failed: u32,
    since: Instant,
    since_wall: Timestamp,
}

/// Follows a Worker until it is gone.
pub(super) async fn follow(key: Key, uid: Option<String>, context: Arc<Context>) {
    let entry = context.board.entry(&key);
    let mut follower = Follower {
        key,
        entry,
        tracker: Tracker::default(),
        history: History::default(),
        timetable: Timetable::default(),
        unconnected: None,
        followed: None,
        depth: None,
        prober: None,
        side: Side::default(),
        settled: Lately::default(),
        long_work: false,
        own: Own::default(),
        refused: None,
        failed: 0,
        since: Instant::now(),
        since_wall: Timestamp::now(),
        context,
    };
    // A fleet that starts together does not probe together.
    tokio::time::sleep_until(tick::after(Instant::now() + AT_ZERO.mul_f64(rand::random()))).await;
    loop {
        // One that has its place has a loop of its own.
        let worker = follower.context.worker(&follower.key).filter(|worker| worker.uid() == uid);
        let Some(worker) = worker else { return };
        // What a look needs is there while it looks: nearly all of these loops sleep.
        let pause = Box::pin(follower.round(&worker)).await;
        drop(worker);
        tokio::time::sleep_until(tick::after(Instant::now() + pause)).await;
    }
}

impl Follower {
    /// One look; gives the time until the next.
    async fn round(&mut self, worker: &Worker) -> Duration {
        let context = self.context.clone();
        let queue = context.queue_of(worker);
        let deployment = context.stores.deployments.get(&ObjectRef::from(&self.key));
        let deployment = deployment.filter(|deployment| deployment.is_warrens());
        let pods = context.pods.of(&self.key);
        let lane = queue.as_deref().and_then(|queue| context.brokers.lane_of(&Key::of(queue)));
        // One that is looked at now and then is none of those whose looks are spread.
        let builtin = worker.scales_itself() && worker.metadata.deletion_timestamp.is_none();
        self.prober = lane.filter(|_| builtin).map(|lane| lane.prober(self.prober.take()));
        let name = queue.as_deref().map(Queue::broker_name);
        let followed = queue.as_deref().map(followed);
        let live =
            deployment.as_deref().and_then(|deployment| deployment.facts.desired).map(i32::unsigned_abs);
        let now = self.now();
        let at_zero = live.is_some() && self.own.current(live, 0, now) == 0;
        if self.followed != followed {
            let first = self.followed.is_none();
            // Of pods that are gone, or have yet to start, nobody else knows how long calls take; those that run say it themselves.
            let none_runs = !pods::staying(&pods).any(|pod| pods::sidecar_runs(pod));
            let measured = measured_before(worker).filter(|_| none_runs && first);
            // Until its sidecars have learned of that, a Worker may go on with the queue before, if there was one.
            let before = self.followed.as_ref().is_some_and(|(_, address, _)| address.is_some());
            let learning = if before { SIDECARS_LEARN } else { Duration::ZERO };
            // What is known of another queue's load says nothing of this one's.
            (self.followed, self.depth, self.side) = (followed, None, Side::default());
            self.settled = Lately::default();
            let history = measured.map_or_else(History::default, History::with_service_seconds);
            self.history = match decided_before(worker).filter(|_| first) {
                Some(last) => history.after(&last.reason, now),
                None => history,
            };
            if first && was_disconnected(worker) {
                self.unconnected = Some(f64::NEG_INFINITY);
            }
            self.tracker.turned(now + learning.as_secs_f64());
        }
        let side = queue.as_deref().and_then(|queue| self.side.next(queue, builtin));
        let asked = Instant::now();
        let (depth, side_depth, sidecars) = tokio::join!(
            self.read_depth(queue.as_deref(), name, DEPTH),
            self.read_depth(queue.as_deref(), side.as_deref(), BESIDE),
            // At zero nothing depends on what pods say that end, and a message is to be seen at once.
            self.scrape(&pods, if at_zero { AT_ZERO / 2 } else { SCRAPING })
        );
        self.depth = depth.or(self.depth);
        if let Some(name) = side {
            self.side.note(name, side_depth.map(|(depth, _)| u64::from(depth.ready)));
        }
        let beside = queue.as_deref().and_then(|queue| beside(worker, queue, &context));
        let mut spec = spec(worker, queue.as_deref(), beside.as_deref());
        // As over a Secret that leads elsewhere.
        spec.paused |= self.entry.is_told_to_pause();
        let takes = |answer: &Answer| !answer.ending && answer.sample.connected && answer.sample.handler_up;
        let consumes = !spec.paused && sidecars.iter().any(takes);
        let (sidecars, handlers) = self.fold(&pods, sidecars);
        self.settled.observe(sidecars.settled, sidecars.started, self.now());
        let workers = queue.as_deref().map(|queue| context.workers_of(queue)).unwrap_or_default();
        let look = Look {
            worker: &self.key,
            workers: workers.iter().map(|worker| Key::of(worker.as_ref())).collect(),
            board: &context.board,
            depth: self.depth.map(|(depth, at)| (depth, at.elapsed().as_secs_f64())),
            scale: deployment.as_deref().map(|deployment| &deployment.facts),
            pods: &pods,
            tracker: &self.tracker,
            consumes,
        };
        self.publish_metrics(worker, queue.as_deref(), &look);

        if !builtin {
            self.own = Own::default();
            // What was seen before somebody else's time says nothing of the load after it.
            self.history = History::default();
            context.records.forget(&self.key);
            self.show(worker, &self.view(worker, None, handlers, consumes));
            return OBSERVED;
        }
        self.context.metrics.scales(&self.key, &PATCHED_FOR);
        let floor = self.timetable.floor(&worker.spec.scaling.schedules, Timestamp::now());
        // A broker that is being connected to is not unknown yet, nor is a share before all have looked.
        let early = self.depth.is_none() || !context.board.all_have_looked(&self.key);
        if early && self.since.elapsed() < FIRST_DEPTH {
            self.show(worker, &self.view(worker, None, handlers, consumes));
            return AT_ZERO;
        }
        let now = self.now();
        let current = self.own.current(live, spec.min, now);
        let inputs = look.inputs(current, (sidecars, asked.elapsed().as_secs_f64()), floor);
        let (decision, history) = decide(std::mem::take(&mut self.history), &inputs, &spec, now);
        self.long_work = long_work(&history, &inputs, &spec, now);
        self.history = history;
        self.own.decided(decision.replicas);
        context.records.note(&self.key, inputs, self.history.service_measured(now), &decision);
        let view = self.view(worker, Some(decision.clone()), handlers, consumes);
        self.carry_out(worker, live, current, decision, view, &pods).await;
        self.pause(current)
    }

    fn view(&self, worker: &Worker, decision: Option<Decision>, handlers: Handlers, consumes: bool) -> View {
        View {
            worker: worker.uid(),
            queue: self.followed.as_ref().map(|(queue, ..)| queue.clone()),
            decision,
            consumes,
            service_seconds: self.history.service_seconds(),
            handlers,
            durability: self.tracker.durability(),
            settled_lately: Some(self.settled.amount),
            refused: None,
            misread: self.timetable.wrong(),
        }
    }

    /// What a queue on the broker of `queue` holds, and when that was.
    async fn read_depth(
        &self,
        queue: Option<&Queue>,
        name: Option<&str>,
        within: Duration,
    ) -> Option<(QueueDepth, Instant)> {
        let (queue, name) = (queue?, name?);
        let key = Key::of(queue);
        let lane = self.context.brokers.lane_of(&key)?;
        match lane.depth(name, within).await {
            Ok(depth) => Some((depth, Instant::now())),
            Err(error) => {
                tracing::debug!(namespace = %key.namespace, queue = name, %error, "depth not read");
                None
            }
        }
    }

    async fn scrape(&self, pods: &[Arc<Pod>], limit: Duration) -> Vec<Answer> {
        let answers = self.context.scraper.scrape(pods, limit).await;
        let answer = |(pod, sample): (Arc<Pod>, _)| {
            let whole = pod.creation_timestamp().is_some_and(|created| created.0 > self.since_wall);
            // The clocks of nodes differ: they count only where nothing else does.
            let ran = pods::sidecar_since(&pod).filter(|_| !whole);
            let ran = ran.map_or(0.0, |since| self.since_wall.duration_since(since).as_secs_f64().max(0.0));
            let (ending, crashes) = (pods::ending(&pod), pods::crashes(&pod));
            Some(Answer { pod: pod.uid()?, whole, ran, ending, crashes, sample })
        };
        answers.into_iter().filter_map(answer).collect()
    }

    fn fold(&mut self, pods: &[Arc<Pod>], answers: Vec<Answer>) -> (Sidecars, Handlers) {
        let living: BTreeSet<String> =
            pods.iter().filter(|pod| !pods::ended(pod)).filter_map(|pod| pod.uid()).collect();
        let running = pods::staying(pods).filter(|pod| pods::sidecar_runs(pod));
        let staying = running.filter_map(|pod| pod.uid()).collect();
        let misconfigured = answers
            .iter()
            .filter(|answer| !answer.ending)
            .filter_map(|answer| answer.sample.misconfigured)
            .min();
        let now = self.now();
        let answering = answers.iter().filter(|answer| !answer.ending);
        let connected = answering.clone().filter(|answer| answer.sample.connected).count();
        let most_connected = connected * 2 >= answering.count();
        let sidecars = self.tracker.observe(answers, &living, &staying, now);
        self.unconnected = match sidecars {
            Sidecars { started: 0, .. } => None,
            // Nobody says anything else.
            Sidecars { scraped: 0, .. } => self.unconnected,
            _ if most_connected => None,
            _ => self.unconnected.or(Some(now)),
        };
        let handlers = Handlers {
            scraped: sidecars.scraped,
            held: sidecars.held,
            misconfigured,
            listened: sidecars.able > 0,
            disconnected: self.unconnected.is_some_and(|since| now - since >= CONNECTING_SECONDS),
        };
        (sidecars, handlers)
    }

    /// Makes a view known, and has the Worker's status follow where it says something new.
    fn show(&self, worker: &Worker, view: &View) {
        let former = self.entry.replace(view.clone());
        tell::if_news(&self.context, worker, &former, view);
    }

    fn publish_metrics(&self, worker: &Worker, queue: Option<&Queue>, look: &Look<'_>) {
        self.context.metrics.worker_ready(&self.key, not_ready(worker, queue));
        let desired = look.scale.and_then(|scale| scale.desired).unwrap_or_default();
        let living = look.pods.iter().filter(|pod| !pods::ended(pod)).count();
        let ready = look.pods.iter().filter(|pod| pods::ready(pod)).count();
        self.context.metrics.worker_replicas(&self.key, desired.unsigned_abs(), count(living), count(ready));
        if let Some(queue) = queue {
            let key = Key::of(queue);
            let (retrying, dead) = (self.side.retrying(queue), self.side.dead(queue));
            self.context.metrics.queue_messages(&key, look.ready(), retrying, dead);
        }
        self.context.metrics.service_seconds(&self.key, self.history.service_seconds());
    }

    /// Seconds since this Worker is followed.
    fn now(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    fn pause(&self, current: u32) -> Duration {
        let workers = self.prober.as_ref().map_or(0, Prober::all);
        pause(current, workers).mul_f64(rand::random_range(0.9..1.0))
    }
}

/// Whether another operator has found most sidecars without a connection last.
fn was_disconnected(worker: &Worker) -> bool {
    let available = find(worker.conditions(), AVAILABLE);
    available.is_some_and(|available| available.reason == SIDECARS_DISCONNECTED)
}

/// Why a Worker is not Ready, in a word, for its metric; none where it is, or is on its way there. Of a Queue that is not there, or is
/// Ready, nothing else tells.
fn not_ready(worker: &Worker, queue: Option<&Queue>) -> Option<&'static str> {
    let of_queue = queue.is_some_and(|queue| !is_true(queue.conditions(), READY));
    is_false(worker.conditions(), READY).then_some(if of_queue { "queue" } else { "other" })
}

/// Where a Queue's messages are.
fn followed(queue: &Queue) -> (Key, Option<String>, String) {
    let address = queue.status.as_ref().and_then(|status| status.broker_address.clone());
    (Key::of(queue), address, queue.broker_name().to_owned())
}

/// Pods as a number.
pub(super) fn count(number: usize) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
