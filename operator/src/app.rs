//! Puts the parts together: one server, and a set of controllers for each scope.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::channel::mpsc;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Predicate, WatchStreamExt, predicates, watcher};
use kube::{Client, Config, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::filter::FilterLayer;
use warren_api::names::WORKER_LABEL;
use warren_api::{Queue, Worker};

use crate::args::{Args, LogFormat};
use crate::brokers::{Brokers, Key, LaneOptions};
use crate::context::{Context, Retries, SIDECARS_LEARN, Shutdown, Stores};
use crate::leader::{Elector, Leadership};
use crate::metrics::Metrics;
use crate::scaler::board::Board;
use crate::scaler::record::Records;
use crate::scaler::task::worker_key;
use crate::secrets::Secrets;
use crate::server::{Telling, serve};
use crate::watch::cached;
use crate::worker::live::{LiveConfigMap, LiveDeployment, LiveDisruptionBudget, OfWorker};
use crate::worker::pod_index::PodIndex;
use crate::{queue, scaler, worker};

/// How long a connection to the API server may say nothing while an answer is due: longer than a watch.
const SILENCE: Duration = Duration::from_secs(230);
/// How long controllers get to end what they are doing.
const GRACE: Duration = Duration::from_secs(5);
/// How long a quorum queue may hold back a message that it no longer counts: three minutes, and some.
const HELD_BACK: Duration = Duration::from_secs(200);
/// How often what is gone is swept out.
const SWEEP: Duration = Duration::from_secs(10);

/// Parts that all scopes share.
struct Shared {
    args: Args,
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    brokers: Arc<Brokers>,
    records: Arc<Records>,
    secrets: Arc<Secrets>,
    shutdown: Shutdown,
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// No API server to speak to, the listening address is taken, or the leadership was lost.
pub async fn run(args: Args) -> anyhow::Result<()> {
    init_logs(args.log_format);
    let mut config =
        Config::infer().await.context("no Kubernetes API server: run in a pod, or set KUBECONFIG")?;
    // An API server that dies between a request and its answer leaves a connection that never ends by itself.
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let leadership = Leadership::none();
    let guard = leadership.clone();
    let client = ClientBuilder::try_from(config)
        .context("the API server's address or credentials are not usable")?
        .with_layer(&FilterLayer::new(move |request| guard.guard(request)))
        .build();
    let (end, shutdown) = Shutdown::channel();
    let shared = Shared::new(args, client, shutdown.clone(), &leadership)?;
    let ready = Arc::new(AtomicBool::new(false));
    let telling = Telling {
        metrics: shared.metrics.clone(),
        brokers: shared.brokers.clone(),
        records: shared.records.clone(),
        leadership: leadership.clone(),
        ready: ready.clone(),
    };
    let mut server = tokio::spawn(serve(shared.args.listen, telling, shutdown));
    let elector = shared.elector(leadership.clone());
    let mut work = std::pin::pin!(lead(&shared, &elector, &leadership, &ready));
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        served = &mut server => served?.context("serving failed"),
        () = ended_by_signal() => {
            tracing::info!("ending");
            end.send_replace(true);
            // What has begun may end; then a standby may lead.
            tokio::time::timeout(GRACE, &mut work).await.unwrap_or_else(|_| {
                tracing::warn!("some work did not end in time");
                Ok(())
            })
        }
    };
    if shared.args.leader_elect {
        elector.release().await;
    }
    outcome
}

/// Waits for the leadership and works for as long as it lasts.
async fn lead(
    shared: &Shared,
    elector: &Elector,
    leadership: &Leadership,
    ready: &AtomicBool,
) -> anyhow::Result<()> {
    let lease = if shared.args.leader_elect {
        // A standby is as ready as it can be.
        ready.store(true, Ordering::Relaxed);
        tracing::info!("standing by");
        let lease = tokio::select! {
            lease = elector.acquire() => lease,
            () = shared.shutdown.clone().cancelled() => return Ok(()),
        };
        ready.store(false, Ordering::Relaxed);
        Some(lease)
    } else {
        leadership.permanent();
        None
    };
    tracing::info!("leading");
    shared.metrics.leads(true);
    let mut helpers = JoinSet::new();
    helpers.spawn(shared.secrets.clone().poll());
    let mut running = JoinSet::new();
    let work = async {
        let scopes =
            try_join_all(shared.args.scopes().into_iter().map(|scope| start_scope(shared, scope))).await?;
        scopes.into_iter().for_each(|scope| drop(running.spawn(scope)));
        ready.store(true, Ordering::Relaxed);
        tracing::info!("ready");
        running.join_next().await;
        anyhow::ensure!(shared.shutdown.is_cancelled(), "a controller ended by itself");
        while running.join_next().await.is_some() {}
        Ok(())
    };
    let kept = async {
        match lease {
            Some(lease) => elector.keep(lease).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        worked = work => worked,
        () = kept => anyhow::bail!("the leadership was lost: ending at once, another replica leads"),
    }
}

impl Shared {
    fn new(args: Args, client: Client, shutdown: Shutdown, leadership: &Leadership) -> anyhow::Result<Self> {
        let identity = args.identity();
        let options = LaneOptions {
            connection_name: format!("warren-operator {identity}"),
            drift_check: args.drift_check(),
            sidecars_learn: SIDECARS_LEARN,
            held_back: HELD_BACK,
            leadership: leadership.clone(),
        };
        let reporter = Reporter { controller: "warren-operator".to_owned(), instance: Some(identity) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            metrics: Arc::new(Metrics::new()?),
            brokers: Arc::new(Brokers::new(options)),
            secrets: Arc::new(Secrets::new(client.clone())),
            records: Arc::default(),
            shutdown,
            client,
            args,
        })
    }

    fn elector(&self, leadership: Leadership) -> Elector {
        let namespace = self.args.namespace.as_deref().unwrap_or_else(|| self.client.default_namespace());
        Elector::new(self.client.clone(), namespace, self.args.identity(), leadership)
    }
}

fn init_logs(format: LogFormat) {
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let mut wanted = wanted.unwrap_or_else(|| "info,kube=warn".to_owned());
    // The library logs each refusal as an error of its own; here refusals are conditions.
    if !wanted.contains("lapin") {
        wanted.push_str(",lapin=off");
    }
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(wanted);
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    // A second initialisation, which only tests do, leaves the first.
    let _ = match format {
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
        LogFormat::Text => logs.try_init(),
    };
}

async fn ended_by_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Fills the caches of a scope and gives its controllers, ready to run.
async fn start_scope(
    shared: &Shared,
    namespace: Option<String>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let scope = namespace.as_deref();
    let client = &shared.client;
    let (queues, queue_events) = cached::<Queue>(client, scope, None, |_| {});
    let (workers, worker_events) = cached::<Worker>(client, scope, None, |_| {});
    let (deployments, deployment_events) =
        cached::<LiveDeployment>(client, scope, Some(WORKER_LABEL), |_| {});
    let (config_maps, config_map_events) = cached::<LiveConfigMap>(client, scope, Some(WORKER_LABEL), |_| {});
    let (disruption_budgets, budget_events) =
        cached::<LiveDisruptionBudget>(client, scope, Some(WORKER_LABEL), |_| {});
    let (pods, pod_events) = cached::<Pod>(client, scope, Some(WORKER_LABEL), prune_pod);
    let (queue_changed, queue_triggers) = mpsc::unbounded();
    let (worker_changed, worker_triggers) = mpsc::unbounded();
    let (say_filled, all_filled) = watch::channel(false);
    let context = Arc::new(Context {
        namespace,
        client: client.clone(),
        recorder: shared.recorder.clone(),
        metrics: shared.metrics.clone(),
        brokers: shared.brokers.clone(),
        secrets: shared.secrets.clone(),
        board: Arc::new(Board::default()),
        records: shared.records.clone(),
        stores: Stores { queues, workers, deployments, config_maps, disruption_budgets },
        pods: PodIndex::new(pods.clone()),
        queue_changed,
        worker_changed,
        retries: Retries::default(),
        sidecar_image: shared.args.sidecar_image.clone(),
        filled: all_filled,
        shutdown: shared.shutdown.clone(),
        seen: Default::default(),
        consumers: Default::default(),
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

    // Only what was asked for brings a resource to its reconcile; its own status does not.
    let worker_changes = worker_events
        .touched_objects()
        .predicate_filter(predicates::generation.combine(predicates::finalizers), Default::default());
    let queue_changes = queue_events
        .touched_objects()
        .predicate_filter(predicates::generation.combine(predicates::finalizers), Default::default());
    let workers = worker::run(worker_changes, worker_triggers, context.clone());
    let queues = queue::run(queue_changes, queue_triggers, context.clone());
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
    filled.await.context("a watch ended before its cache was filled")?;
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

fn prune_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = Default::default();
    }
}

fn note_end_of_list<K>(event: &watcher::Event<K>, listed: &watch::Sender<bool>) {
    if matches!(event, watcher::Event::InitDone) {
        listed.send_replace(true);
    }
}

fn queue_event(event: &watcher::Event<Queue>, context: &Context) {
    match event {
        watcher::Event::Apply(queue) | watcher::Event::InitApply(queue) => {
            for worker in context.workers_of(queue) {
                // The receiver ends only with the process.
                let _ = context.worker_changed.unbounded_send(ObjectRef::from_obj(&*worker));
            }
        }
        watcher::Event::Delete(queue) => {
            let key = Key { namespace: queue.namespace().unwrap_or_default(), name: queue.name_any() };
            context.brokers.forget(&key);
            context.brokers.release(&key, &context.queue_changed);
            context.metrics.forget_queue(&key);
            for worker in context.workers_of(queue) {
                let _ = context.worker_changed.unbounded_send(ObjectRef::from_obj(&*worker));
            }
        }
        watcher::Event::Init | watcher::Event::InitDone => {}
    }
}

fn worker_event(event: &watcher::Event<Worker>, context: &Context) {
    match event {
        watcher::Event::Apply(worker) | watcher::Event::InitApply(worker) => {
            if context.note_consumer(worker) {
                tell_ordered(worker, context);
            }
        }
        // What it has consumed counts while it has pods.
        watcher::Event::Delete(worker) => tell_ordered(worker, context),
        watcher::Event::Init | watcher::Event::InitDone => {}
    }
}

/// Sends the Workers beside one that comes, goes or turns to another Queue to their reconcile, if they are to keep an order.
fn tell_ordered(worker: &Worker, context: &Context) {
    let beside = context.stores.workers.state_filter(|other| {
        other.spec.consumer.ordering_key.is_some() && other.namespace() == worker.namespace()
    });
    for other in beside {
        // The receiver ends only with the process.
        let _ = context.worker_changed.unbounded_send(ObjectRef::from_obj(&*other));
    }
}

/// Sends the Worker of each object that changes to its reconcile.
async fn follow<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send,
    context: Arc<Context>,
) where
    K: OfWorker + Clone,
{
    let mut objects = std::pin::pin!(events.touched_objects());
    while let Some(object) = objects.next().await {
        let object = match object {
            Ok(object) => object,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch");
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
        let living: BTreeSet<Key> = queues.iter().map(|queue| queue::validate::key(queue)).collect();
        let workers = context.stores.workers.state();
        let watched = workers.iter().map(|worker| Key {
            namespace: worker.namespace().unwrap_or_default(),
            name: worker.spec.queue_ref.name.clone(),
        });
        let mut known: HashSet<Key> = workers.iter().map(|worker| worker_key(worker)).collect();
        known.extend(context.pods.all_workers());
        context.forget_consumers(&known);
        context.metrics.retain_queues(&living, &watched.filter(|queue| living.contains(queue)).collect());
        context.brokers.retain(context.namespace.as_deref(), &living, &context.queue_changed);
    }
}
