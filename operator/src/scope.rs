//! A scope, which is one namespace or the whole cluster: its caches, its controllers and its scaler.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::channel::mpsc;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;
use warren_api::names::WORKER_LABEL;
use warren_api::{Queue, Worker};

use crate::app::Shared;
use crate::brokers::{Changes, Key};
use crate::context::{Context, Retries, Stores};
use crate::locked::locked;
use crate::scaler::board::Board;
use crate::scaler::scrape::Scraper;
use crate::watch::{Complaints, cached};
use crate::worker::dereference::told_by;
use crate::worker::live::{LiveConfigMap, LiveDeployment, LiveDisruptionBudget, OfWorker};
use crate::worker::pod_index::PodIndex;
use crate::worker::pods::POD_TEMPLATE_HASH;
use crate::{queue, scaler, worker};

/// How long caches may take to be filled before that is said, and said again.
const INSIST: Duration = Duration::from_secs(30);
/// How often what is gone is swept out.
const SWEEP: Duration = Duration::from_secs(10);

/// Fills the caches of a scope and gives its controllers, ready to run.
pub(crate) async fn start(
    shared: &Shared,
    namespace: Option<String>,
    (queue_changed, queue_triggers): Changes,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let scope = namespace.as_deref();
    let client = &shared.client;
    let (queues, queue_events) = cached::<Queue>(client, scope, None, |queue| queue.metadata.labels = None);
    let (workers, worker_events) =
        cached::<Worker>(client, scope, None, |worker| worker.metadata.labels = None);
    let (deployments, deployment_events) =
        cached::<LiveDeployment>(client, scope, Some(WORKER_LABEL), |_| {});
    let (config_maps, config_map_events) = cached::<LiveConfigMap>(client, scope, Some(WORKER_LABEL), |_| {});
    let (disruption_budgets, budget_events) =
        cached::<LiveDisruptionBudget>(client, scope, Some(WORKER_LABEL), |_| {});
    let (pods, pod_events) = cached::<Pod>(client, scope, Some(WORKER_LABEL), prune_pod);
    let (worker_changed, worker_triggers) = mpsc::unbounded();
    let (say_filled, all_filled) = watch::channel(false);
    let context = Arc::new(Context {
        namespace,
        client: client.clone(),
        reporter: shared.reporter.clone(),
        recorder: shared.recorder.clone(),
        metrics: shared.metrics.clone(),
        brokers: shared.brokers.clone(),
        secrets: shared.secrets.clone(),
        board: Arc::new(Board::default()),
        scraper: Scraper::default(),
        records: shared.records.clone(),
        stores: Stores { queues, workers, deployments, config_maps, disruption_budgets },
        pods: PodIndex::new(pods.clone()),
        queue_changed,
        worker_changed,
        retries: Retries::default(),
        sidecar_image: shared.args.sidecar_image.clone(),
        filled: all_filled,
        shutdown: shared.shutdown.clone(),
        since: Timestamp::now(),
        seen: Default::default(),
        consumers: Default::default(),
        naming: Default::default(),
    });

    // A Worker's condition QueueReady and its sidecars' ladder follow the Queue's status.
    let of_queue = context.clone();
    let (queues_listed, mut queues_filled) = watch::channel(false);
    let (workers_listed, mut workers_filled) = watch::channel(false);
    let queue_events = queue_events
        .inspect_ok(move |event| queue_event(event, &of_queue))
        .inspect_ok(move |event| note_end_of_list(event, &queues_listed));
    let of_workers = context.clone();
    let worker_events = worker_events
        .inspect_ok(move |event| worker_event(event, &of_workers))
        .inspect_ok(move |event| note_end_of_list(event, &workers_listed));
    let mut watches = JoinSet::new();
    watches.spawn(follow(deployment_events, context.clone()));
    watches.spawn(follow(config_map_events, context.clone()));
    watches.spawn(follow(budget_events, context.clone()));
    let of_pods = context.clone();
    let pod_events = pod_events.inspect_ok(move |_| of_pods.pods.changed());
    watches.spawn(follow(pod_events, context.clone()));

    // Every change brings a resource to its reconcile, its own status too: a reconcile that ran before the cache had that status
    // compared with an older one.
    let workers = worker::run(worker_events.touched_objects(), worker_triggers, context.clone());
    let queues = queue::run(queue_events.touched_objects(), queue_triggers, context.clone());
    let mut controllers = JoinSet::new();
    controllers.spawn(workers);
    controllers.spawn(queues);

    let stores = &context.stores;
    let filled = async {
        stores.deployments.wait_until_ready().await?;
        stores.config_maps.wait_until_ready().await?;
        stores.disruption_budgets.wait_until_ready().await?;
        pods.wait_until_ready().await?;
        context.pods.changed();
        // A controller waits for its own store, and a store wakes one waiter only.
        queues_filled.wait_for(|filled| *filled).await?;
        workers_filled.wait_for(|filled| *filled).await?;
        anyhow::Ok(())
    };
    insisted(context.namespace.as_deref(), filled)
        .await
        .context("a watch ended before its cache was filled")?;
    worker::note_all_told(&context);
    say_filled.send_replace(true);
    let scaler = scaler::task::run(context.clone());
    let sweeper = sweep(context.clone());
    Ok(async move {
        // What ends first, ends all: a controller that is gone must not go unnoticed.
        tokio::select! {
            _ = controllers.join_next() => {}
            _ = watches.join_next() => {}
            () = scaler => {}
            () = sweeper => {}
        }
        if context.shutdown.is_cancelled() {
            while controllers.join_next().await.is_some() {}
        }
    })
}

/// Waits for the caches of a scope, and says from time to time that it does.
async fn insisted<T>(scope: Option<&str>, filled: impl Future<Output = T>) -> T {
    let mut filled = std::pin::pin!(filled);
    loop {
        match tokio::time::timeout(INSIST, &mut filled).await {
            Ok(filled) => return filled,
            Err(_) => tracing::warn!(
                namespace = scope.unwrap_or("all"),
                "its objects cannot be listed yet, and nothing is done there: see that the namespace exists, that the operator has its Role there (chart value watchNamespaces), and that the definitions are installed"
            ),
        }
    }
}

fn prune_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = Default::default();
    }
    pod.labels_mut().retain(|label, _| [WORKER_LABEL, POD_TEMPLATE_HASH].contains(&label.as_str()));
    pod.metadata.owner_references = None;
}

fn note_end_of_list<K>(event: &watcher::Event<K>, listed: &watch::Sender<bool>) {
    if matches!(event, watcher::Event::InitDone) {
        listed.send_replace(true);
    }
}

fn queue_event(event: &watcher::Event<Queue>, context: &Context) {
    match event {
        watcher::Event::Apply(queue) | watcher::Event::InitApply(queue) => {
            queue::place::expect(queue, context);
            reconcile(&context.workers_of(queue), context);
        }
        watcher::Event::Delete(queue) => {
            let key = Key::of(queue);
            context.brokers.gone(&key);
            context.metrics.forget_queue(&key);
            reconcile(&context.workers_of(queue), context);
        }
        watcher::Event::InitDone => {
            context.brokers.listed(context.namespace.as_deref());
            queues_listed_again(context);
            listed_again(context);
        }
        watcher::Event::Init => {}
    }
}

/// An object of a list goes to its reconcile with its page, before the cache has it, which takes a list in as a whole: all Queues look
/// again.
fn queues_listed_again(context: &Context) {
    if *context.filled.borrow() {
        for queue in context.stores.queues.state() {
            // The receiver ends only with the process.
            let _ = context.queue_changed.unbounded_send(ObjectRef::from_obj(&*queue));
        }
    }
}

/// The same of Workers; and what vanished while a watch was down has no event of its own.
fn listed_again(context: &Context) {
    if *context.filled.borrow() {
        reconcile(&context.stores.workers.state(), context);
    }
}

fn worker_event(event: &watcher::Event<Worker>, context: &Context) {
    match event {
        watcher::Event::Apply(worker) | watcher::Event::InitApply(worker) => {
            locked(&context.naming).names(Key::of(worker), Key::named_by(worker));
            if context.note_consumer(worker) {
                // They go on with that until the configuration is written, however long its reconcile waits for a place.
                context.note_told(worker, told_by(worker, context).as_ref());
                tell_ordered(worker, context);
            }
        }
        watcher::Event::Delete(worker) => {
            locked(&context.naming).forget(&Key::of(worker));
            // What it has consumed counts while it has pods.
            tell_ordered(worker, context);
        }
        watcher::Event::InitDone => {
            let living =
                context.stores.workers.state().iter().map(|worker| Key::of(worker.as_ref())).collect();
            locked(&context.naming).retain(&living);
            listed_again(context);
        }
        watcher::Event::Init => {}
    }
}

/// Sends the Workers beside one that comes, goes or turns to another Queue to their reconcile, if they are to keep an order.
/// Where more than two share a Queue, they hold consuming anyhow, and look again by themselves.
pub(crate) fn tell_ordered(worker: &Worker, context: &Context) {
    let queues: Vec<Key> = locked(&context.consumers).queues(&Key::of(worker)).collect();
    let naming = locked(&context.naming);
    let beside = queues.iter().flat_map(|queue| naming.of(queue).take(2));
    let beside = beside.filter_map(|other| context.worker(other));
    let ordered = beside.filter(|other| other.spec.consumer.ordering_key.is_some());
    reconcile(&ordered.collect::<Vec<_>>(), context);
}

/// Sends Workers to their reconcile.
fn reconcile(workers: &[Arc<Worker>], context: &Context) {
    for worker in workers {
        // The receiver ends only with the process.
        let _ = context.worker_changed.unbounded_send(ObjectRef::from_obj(&**worker));
    }
}

/// Sends the Worker of each object that changes to its reconcile.
async fn follow<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send,
    context: Arc<Context>,
) where
    K: OfWorker + Clone,
{
    let again = context.clone();
    let events = events.inspect_ok(move |event| {
        if matches!(event, watcher::Event::InitDone) {
            listed_again(&again);
        }
    });
    let mut objects = std::pin::pin!(events.touched_objects());
    let mut complaints = Complaints::about(K::kind(&()), context.namespace.as_deref());
    while let Some(object) = objects.next().await {
        let object = match object {
            Ok(object) => object,
            Err(error) => {
                complaints.tell(&error);
                continue;
            }
        };
        if let (Some(worker), Some(namespace)) = (object.worker(), object.namespace()) {
            let _ = context.worker_changed.unbounded_send(ObjectRef::new(worker).within(&namespace));
        }
    }
}

/// Forgets Queues that went while a watch was down, and how full those are that no Worker consumes any more.
async fn sweep(context: Arc<Context>) {
    let mut ended = std::pin::pin!(context.shutdown.clone().cancelled());
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = &mut ended => return,
        }
        let queues = context.stores.queues.state();
        context.forget_seen(&queues.iter().filter_map(|queue| queue.uid()).collect());
        let living: BTreeSet<Key> = queues.iter().map(|queue| Key::of(queue.as_ref())).collect();
        let workers = context.stores.workers.state();
        let watched = workers.iter().map(|worker| Key::named_by(worker));
        let mut known: HashSet<Key> = workers.iter().map(|worker| Key::of(worker.as_ref())).collect();
        known.extend(context.pods.all_workers());
        context.forget_consumers(&known);
        let watched = watched.filter(|queue| living.contains(queue)).collect();
        // Metrics and brokers are the process's, and other scopes have theirs there.
        let scope = context.namespace.as_deref();
        context.metrics.retain_queues(scope, &living, &watched);
        context.brokers.retain(scope, &living);
    }
}
