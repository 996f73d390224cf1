//! What every reconcile of a scope (one namespace, or the whole cluster) works with.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use warren_api::{Queue, SidecarConfig, Worker};

use crate::brokers::{Brokers, Key};
use crate::condition::status_patch;
use crate::error::{Error, retry_delay};
use crate::locked::locked;
use crate::metrics::Metrics;
use crate::queue::consumers::{Consumers, Holding};
use crate::scaler::board::Board;
use crate::scaler::record::Records;
use crate::scaler::scrape::Scraper;
use crate::secrets::Secrets;
use crate::tolerant::Tolerant;
use crate::worker::dereference::{consumed_by, consumes};
use crate::worker::live::{LiveConfigMap, LiveDeployment, LiveDisruptionBudget};
use crate::worker::naming::Naming;
use crate::worker::pod_index::PodIndex;
use crate::worker::validate::drain_seconds;

/// The name under which the operator owns fields.
pub const FIELD_MANAGER: &str = "warren";
/// Failures in a row from which on they are told: fewer pass by themselves, mostly, such as while the API server starts.
pub const PASSING_FAILURES: u32 = 4;
/// How long sidecars may take to read a changed configuration: the kubelet's two minutes, and some.
pub const SIDECARS_LEARN: Duration = Duration::from_secs(150);
/// What has failed is tried again far sooner, if it is there.
const GONE: Duration = Duration::from_secs(600);

/// Caches of a scope, filled by watches.
#[derive(Clone)]
pub struct Stores {
    /// Queues.
    pub queues: Store<Queue>,
    /// Workers.
    pub workers: Store<Worker>,
    /// Deployments that the operator made.
    pub deployments: Store<LiveDeployment>,
    /// ConfigMaps that the operator made.
    pub config_maps: Store<LiveConfigMap>,
    /// PodDisruptionBudgets that the operator made.
    pub disruption_budgets: Store<LiveDisruptionBudget>,
}

/// Everything a reconcile needs.
pub struct Context {
    /// The namespace that is watched; none: all.
    pub namespace: Option<String>,
    /// The API server.
    pub client: Client,
    /// Who publishes events.
    pub reporter: Reporter,
    /// Publishes warnings: those that differ in their note alone are one event, with the first note and a count.
    pub recorder: Recorder,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Brokers of the process.
    pub brokers: Arc<Brokers>,
    /// Secrets of the process.
    pub secrets: Arc<Secrets>,
    /// What the scaler last decided and saw.
    pub board: Arc<Board>,
    /// Asks sidecars for their metrics.
    pub scraper: Scraper,
    /// The scaler's last decisions, of the process.
    pub records: Arc<Records>,
    /// Caches.
    pub stores: Stores,
    /// Pods of the Deployments that the operator made.
    pub pods: PodIndex,
    /// Brings a Queue to its reconcile.
    pub queue_changed: UnboundedSender<ObjectRef<Queue>>,
    /// Brings a Worker to its reconcile.
    pub worker_changed: UnboundedSender<ObjectRef<Worker>>,
    /// Failed reconciles in a row.
    pub retries: Retries,
    /// The sidecar image of this operator's version.
    pub sidecar_image: String,
    /// Whether every cache is filled.
    pub filled: watch::Receiver<bool>,
    /// Ends the controllers.
    pub shutdown: Shutdown,
    /// When this process began to look.
    pub since: Timestamp,
    /// Since when Queues are known as they are.
    pub seen: Mutex<Seen>,
    /// Which Workers consume which Queue, those that are gone included while they have pods.
    pub consumers: Mutex<Consumers>,
    /// Which Workers name which Queue.
    pub naming: Mutex<Naming>,
}

impl Context {
    /// Waits until every cache is filled: what is not in a cache before that may exist all the same.
    pub async fn caches_filled(&self) {
        // A sender that is gone means the end of the process.
        let _ = self.filled.clone().wait_for(|filled| *filled).await;
    }

    /// Workers that consume a Queue.
    pub fn workers_of(&self, queue: &Queue) -> Vec<Arc<Worker>> {
        let naming = locked(&self.naming);
        naming.of(&Key::of(queue)).filter_map(|worker| self.worker(worker)).collect()
    }

    /// A Worker that is there.
    pub fn worker(&self, key: &Key) -> Option<Arc<Worker>> {
        self.stores.workers.get(&ObjectRef::from(key))
    }

    /// The Queue that a Worker names, if it is there.
    pub fn queue_of(&self, worker: &Worker) -> Option<Arc<Queue>> {
        self.stores.queues.get(&ObjectRef::from(&Key::named_by(worker)))
    }

    /// Another Worker than `own` whose pods may consume a Queue, as far as is known: one that names it, or one that is gone or
    /// has turned to another Queue and has pods that have not ended or not learned of it, or whose next ones will not have.
    pub fn beside(&self, own: &Key, queue: &Key) -> Option<Key> {
        if let Some(naming) = locked(&self.naming).of(queue).find(|worker| *worker != own) {
            return Some(naming.clone());
        }
        let consumers = locked(&self.consumers);
        let mut holding = consumers.seen_to_hold(queue, Instant::now()).filter(|worker| *worker != own);
        let lives = |worker: &&Key| self.pods.lives(worker) || consumers.is_told(worker, &queue.name);
        let holding = holding.find(lives).cloned();
        let stranger = || self.pods.stranger(&queue.namespace, &consumers);
        holding.or_else(|| stranger().filter(|worker| worker != own))
    }

    /// See [`Consumers::is_told`].
    pub fn is_told(&self, worker: &Key, queue: &str) -> bool {
        locked(&self.consumers).is_told(worker, queue)
    }

    /// Notes which Queue a Worker consumes; gives whether that is new.
    pub fn note_consumer(&self, worker: &Worker) -> bool {
        let queue = &worker.spec.queue_ref.name;
        let turned = turned_before(worker, self.since);
        locked(&self.consumers).on(&Key::of(worker), queue, lasting(worker), turned, Instant::now())
    }

    /// Notes that a Worker's sidecars could not be told what it names, and what they go on with; none where they could. Gives
    /// whether that is new.
    pub fn note_told(&self, worker: &Worker, told: Option<&SidecarConfig>) -> bool {
        // What was written for it as it was before says nothing of what it names now.
        let known = self.worker(&Key::of(worker));
        if known.is_some_and(|known| known.metadata.generation > worker.metadata.generation) {
            return false;
        }
        // Nearly all of them: no look at every Queue is needed for these.
        let told = told.filter(|told| !self.queue_of(worker).is_some_and(|queue| consumes(told, &queue)));
        let mut queues = told.map(|told| consumed_by(told, &self.stores.queues.state())).unwrap_or_default();
        queues.remove(&worker.spec.queue_ref.name);
        locked(&self.consumers).told(&Key::of(worker), queues, lasting(worker), Instant::now())
    }

    /// The one of `workers` of whose pods it is best known that they may hold messages of a Queue of their namespace.
    pub fn best_known_to_consume<'a>(
        &self,
        workers: &'a [Key],
        queue: &str,
        now: Instant,
    ) -> Option<(&'a Key, Holding)> {
        let consumers = locked(&self.consumers);
        let holding = |worker: &'a Key| Some((worker, consumers.may_hold(worker, queue, now)?));
        workers.iter().filter_map(holding).max_by_key(|(_, holding)| *holding)
    }

    /// Forgets what Workers other than `known` have consumed.
    pub fn forget_consumers(&self, known: &HashSet<Key>) {
        locked(&self.consumers).retain(|worker| known.contains(worker));
    }

    /// How long this process has known a Queue with its present spec.
    pub fn seen_for(&self, queue: &Queue) -> Duration {
        let now = Instant::now();
        now - locked(&self.seen).since(queue.uid().unwrap_or_default(), queue.metadata.generation, now)
    }

    /// Forgets when Queues other than `living`, by uid, were seen, and the failures of what is gone.
    pub fn forget_seen(&self, living: &HashSet<String>) {
        self.retries.forget_gone(Instant::now());
        locked(&self.seen).0.retain(|uid, _| living.contains(uid));
    }

    /// Writes an object's status where it differs from the former one; gives whether it was written.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn write_status<K, S>(&self, object: &K, former: Option<&S>, status: &S) -> Result<bool, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        S: Serialize + PartialEq,
    {
        let Some(patch) = status_patch(former, status)? else { return Ok(false) };
        match self.merge_status(object, patch).await {
            Ok(()) => Ok(true),
            // Deleted meanwhile.
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a merge patch of an object's status.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn merge_status<K>(&self, object: &K, patch: Value) -> kube::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let objects: Api<Tolerant<K>> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let params = PatchParams::apply(FIELD_MANAGER);
        objects.patch_status(&object.name_any(), &params, &Patch::Merge(patch)).await.map(drop)
    }

    /// Whether an object is still as it was read, as the API server knows it. Nothing is written.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn is_current<K>(&self, object: &K) -> Result<bool, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let same = json!({"metadata": {"resourceVersion": object.resource_version()}});
        match self.merge_status(object, same).await {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(answer)) if answer.code == 409 || answer.code == 404 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes an event about an object, without waiting for it.
    pub fn event<K>(&self, object: &K, type_: EventType, reason: &str, note: &str, action: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: action.to_owned(),
            secondary: None,
        };
        let recorder = match type_ {
            // What was done is told each time.
            EventType::Normal => Recorder::new(self.client.clone(), self.reporter.clone()),
            EventType::Warning => self.recorder.clone(),
        };
        let object = object.object_ref(&());
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &object).await {
                tracing::debug!(%error, reason = %event.reason, "event not published");
            }
        });
    }

    /// Publishes that a condition changed.
    pub fn condition_event<K>(&self, object: &K, condition: &Condition, action: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let type_ = if condition.status == "False" { EventType::Warning } else { EventType::Normal };
        self.event(object, type_, &condition.reason, &condition.message, action);
    }

    /// What to do after a failed reconcile.
    pub fn failed(&self, kind: &'static str, object: &impl ResourceExt, error: &Error) -> Action {
        let attempt = self.retries.failed(object, Instant::now());
        self.metrics.reconcile_failed(kind, error.category());
        tracing::warn!(%kind, name = %object.name_any(), namespace = object.namespace(), attempt, %error, "reconcile failed");
        Action::requeue(retry_delay(attempt, rand::random()))
    }
}

/// How long pods of a Worker may work on for a Queue that it names no more, once their configuration says so.
fn lasting(worker: &Worker) -> Duration {
    SIDECARS_LEARN + Duration::from_secs(u64::from(drain_seconds(worker).unsigned_abs()))
}

/// Whether a Worker may have named another Queue before `since`: it was there, and is not as it was made.
fn turned_before(worker: &Worker, since: Timestamp) -> bool {
    worker.creation_timestamp().is_some_and(|created| created.0 < since)
        && worker.metadata.generation.is_none_or(|generation| generation > 1)
}

/// An event's note holds 1024 bytes.
fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(1000)].to_owned()
}

/// When each Queue, by uid, was first seen with its present generation.
#[derive(Debug, Default)]
pub struct Seen(HashMap<String, (Option<i64>, Instant)>);

impl Seen {
    fn since(&mut self, uid: String, generation: Option<i64>, now: Instant) -> Instant {
        let (of, since) = self.0.entry(uid).or_insert((generation, now));
        if *of != generation {
            (*of, *since) = (generation, now);
        }
        *since
    }
}

/// Counts failed reconciles in a row, by uid: an object that has the name of another begins anew.
#[derive(Debug, Default)]
pub struct Retries {
    counts: Mutex<HashMap<String, (u32, Instant)>>,
}

impl Retries {
    /// Counts one more; gives the number of those before.
    pub(crate) fn failed(&self, object: &impl ResourceExt, now: Instant) -> u32 {
        let mut counts = locked(&self.counts);
        let (count, last) = counts.entry(object.uid().unwrap_or_default()).or_insert((0, now));
        (*count, *last) = (count.saturating_add(1), now);
        *count - 1
    }

    /// It is tried again later: it is not gone.
    pub(crate) fn waits(&self, object: &impl ResourceExt, now: Instant) {
        if let Some((_, last)) = locked(&self.counts).get_mut(&object.uid().unwrap_or_default()) {
            *last = now;
        }
    }

    /// How many there were in a row.
    pub fn in_a_row(&self, object: &impl ResourceExt) -> u32 {
        locked(&self.counts).get(&object.uid().unwrap_or_default()).map_or(0, |(count, _)| *count)
    }

    /// Forgets the failures.
    pub fn succeeded(&self, object: &impl ResourceExt) {
        locked(&self.counts).remove(&object.uid().unwrap_or_default());
    }

    /// Forgets those of objects that are not tried again: they are gone.
    fn forget_gone(&self, now: Instant) {
        locked(&self.counts).retain(|_, (_, last)| now - *last < GONE);
    }
}

/// Tells every part of the process to end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// The one who ends, and those who are ended.
    pub fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits for the end.
    pub async fn cancelled(mut self) {
        // A sender that is gone means the end too.
        let _ = self.0.wait_for(|ended| *ended).await;
    }

    /// Whether the end has come.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn an_events_note_holds_what_the_api_server_takes_whatever_its_letters() {
        assert_eq!(shortened("gewählt"), "gewählt");
        for letter in ["a", "ü", "載"] {
            let note = shortened(&letter.repeat(2000));
            assert!((997..=1000).contains(&note.len()), "{}", note.len());
        }
    }

    #[test]
    fn what_a_queue_waits_for_is_counted_from_the_change_that_it_waits_for() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let mut waits =
            |generation, minutes| at(minutes) - seen.since("uid".to_owned(), Some(generation), at(minutes));
        assert_eq!(waits(1, 0), Duration::ZERO);
        assert_eq!(waits(1, 10), Duration::from_secs(600));
        assert_eq!(waits(2, 10), Duration::ZERO);
        assert_eq!(waits(2, 11), Duration::from_secs(60));
    }

    #[test]
    fn failures_are_those_of_one_object_and_end_with_it() {
        let (retries, now) = (Retries::default(), Instant::now());
        let queue = |uid: &str| {
            let mut queue = Queue::new("orders", Default::default());
            queue.metadata.uid = Some(uid.to_owned());
            queue
        };
        assert_eq!((retries.failed(&queue("a"), now), retries.failed(&queue("a"), now)), (0, 1));
        assert_eq!(retries.failed(&queue("b"), now), 0, "another one of that name");
        retries.succeeded(&queue("b"));
        assert_eq!((retries.failed(&queue("b"), now), retries.failed(&queue("a"), now)), (0, 2));
        retries.failed(&queue("b"), now + GONE);
        retries.failed(&queue("c"), now);
        retries.waits(&queue("c"), now + GONE);
        retries.waits(&queue("d"), now + GONE);
        retries.forget_gone(now + GONE);
        assert_eq!(["a", "b", "c", "d"].map(|uid| retries.in_a_row(&queue(uid))), [0, 2, 1, 0]);
    }

    #[test]
    fn only_a_worker_that_was_changed_before_this_process_looked_may_have_turned_unseen() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let container = json!({"name": "app"});
        let spec = json!({"queueRef": {"name": "orders"}, "template": {"spec": {"containers": [container]}}});
        let mut worker = Worker::new("invoices", serde_json::from_value(spec).unwrap());
        worker.metadata.creation_timestamp = Some(Time(at(10)));
        worker.metadata.generation = Some(2);
        assert!(turned_before(&worker, at(20)));
        assert!(!turned_before(&worker, at(10)), "its changes were all seen");
        worker.metadata.generation = Some(1);
        assert!(!turned_before(&worker, at(20)));
    }
}
