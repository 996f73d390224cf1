//! Loads and faults that take minutes, on a real cluster with real pods: a burst, a broker that is away for a minute, an
//! operator that is killed in the middle, and a steady load with noise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::desk::{self, Desk, Order};
use warren_tests::namespace::Namespace;
use warren_tests::wait::eventually;
use warren_tests::{Cluster, images, install, progress};

use super::replicas::Replicas;
use super::{figure, say};

const QUEUE: &str = "orders";
const WORKER: &str = "invoices";
const PATIENCE: Duration = Duration::from_secs(300);

/// A namespace with a broker, a Worker and a desk of its own, and its wanted replicas as they change.
struct Ground {
    namespace: Namespace,
    broker: Broker,
    desk: Desk,
    client: Client,
    changes: Arc<Mutex<Vec<(Instant, u32)>>>,
    watch: JoinHandle<()>,
}

impl Ground {
    async fn new(cluster: &Cluster, name: &str, work: Duration, scaling: Value) -> Result<Self> {
        let namespace = Namespace::anew(cluster, &format!("bench-{name}")).await?;
        let broker = Broker::start(Options::new(&namespace.name)).await?;
        let desk = Desk::open(cluster.host_address(), move |_| Order::work(work)).await?;
        namespace.secret("rabbitmq", &broker.uri_at(cluster.host_address(), "/")).await?;
        namespace.queue(QUEUE, json!({})).await?;
        let worker = json!({
            "queueRef": {"name": QUEUE}, "scaling": scaling,
            "template": {"spec": {"containers": [desk.container()]}},
        });
        namespace.apply("Worker", WORKER, worker).await?;
        namespace.ready("wq", QUEUE).await?;
        namespace.ready("wk", WORKER).await?;
        let client = Client::connect(&broker.uri("/")).await?;
        let mut replicas = Replicas::watch(cluster, &namespace.name, WORKER)?;
        let first = replicas.next(PATIENCE).await?.context("no Deployment")?;
        let changes = Arc::new(Mutex::new(vec![(Instant::now(), first)]));
        let watch = tokio::spawn(record(replicas, Arc::clone(&changes)));
        Ok(Self { namespace, broker, desk, client, changes, watch })
    }

    async fn publish(&self, from: usize, count: usize) -> Result<()> {
        let bodies = (from..from + count).map(|number| format!("message {number}").into_bytes());
        self.client.publish_all(QUEUE, bodies).await.map(drop)
    }

    async fn handled(&self, count: usize) -> Result<()> {
        let enough = async || {
            let handled = self.desk.handled().len();
            ensure!(handled >= count, "{handled} of {count}");
            Ok(())
        };
        let Namespace { cluster, name } = &self.namespace;
        cluster.eventually(name, PATIENCE, &format!("{count} messages are handled"), enough).await
    }

    /// Every number of replicas that was wanted since a time, with what was wanted then.
    fn replicas(&self, since: Instant) -> Vec<u32> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = changes.partition_point(|(at, _)| *at < since).saturating_sub(1);
        changes.iter().skip(before).map(|(_, replicas)| *replicas).collect()
    }

    async fn clear(self) -> Result<()> {
        self.watch.abort();
        self.namespace.delete().await?;
        self.broker.remove().await
    }
}

/// Notes each change of the wanted replicas.
async fn record(mut replicas: Replicas, changes: Arc<Mutex<Vec<(Instant, u32)>>>) {
    while let Ok(seen) = replicas.next(PATIENCE).await {
        let Some(seen) = seen else { continue };
        let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.last().is_none_or(|(_, last)| *last != seen) {
            changes.push((Instant::now(), seen));
        }
    }
}

/// All of them: the steady load beside the burst and the broker's outage, and the operator's end alone.
pub(super) async fn loads(minutes: u64) -> Result<Value> {
    let cluster = Cluster::for_tests(&progress::Lines).await?;
    let built = images::warren(&cluster, &progress::Lines).await?;
    desk::image(&cluster).await?;
    install::warren(&cluster, &built).await?;
    let others = async {
        let burst = burst(&cluster).await?;
        let outage = outage(&cluster).await?;
        anyhow::Ok((burst, outage))
    };
    let (steady, others) = tokio::join!(steady(&cluster, Duration::from_secs(minutes * 60)), others);
    let ((burst, outage), steady) = (others?, steady?);
    let killed = killed(&cluster).await?;
    Ok(json!({"burst": burst, "outage": outage, "steady": steady, "killed": killed}))
}

/// 5,000 messages of 100 ms at a Worker at zero.
async fn burst(cluster: &Cluster) -> Result<Value> {
    let scaling = json!({"maxReplicas": 10});
    let ground = Ground::new(cluster, "burst", Duration::from_millis(100), scaling).await?;
    let begun = Instant::now();
    ground.publish(0, 5000).await?;
    let published = begun.elapsed();
    ground.handled(5000).await?;
    let handled = begun.elapsed();
    let first = ground.desk.entries().first().context("no call")?.began.saturating_duration_since(begun);
    let report = json!({
        "published_s": figure(published.as_secs_f64()),
        "first_call_s": figure(first.as_secs_f64()),
        "handled_s": figure(handled.as_secs_f64()),
        "replicas": ground.replicas(begun),
        "called_again": ground.desk.called_again().len(),
    });
    say(&format!("burst: {report}"));
    ground.clear().await?;
    Ok(report)
}

/// A broker that is away for a minute, with pods.
async fn outage(cluster: &Cluster) -> Result<Value> {
    let scaling = json!({"minReplicas": 1, "maxReplicas": 4, "targetWaitSeconds": 1});
    let ground = Ground::new(cluster, "outage", Duration::from_millis(50), scaling).await?;
    ground.publish(0, 100).await?;
    ground.handled(100).await?;
    ground.broker.stop_app().await?;
    let away = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let replicas = ground.replicas(away);
    ground.broker.start_app().await?;
    let back = Instant::now();
    let again = async || Client::connect(&ground.broker.uri("/")).await;
    let client = eventually(PATIENCE, "the broker takes connections", again).await?;
    client.publish_all(QUEUE, (100..120).map(|n| format!("message {n}").into_bytes())).await?;
    ground.handled(120).await?;
    let report = json!({
        "replicas_while_away": replicas,
        "consuming_again_s": figure(back.elapsed().as_secs_f64()),
    });
    say(&format!("outage: {report}"));
    ground.clear().await?;
    Ok(report)
}

/// An operator that is killed in the middle of a backlog.
async fn killed(cluster: &Cluster) -> Result<Value> {
    let ground =
        Ground::new(cluster, "killed", Duration::from_millis(100), json!({"maxReplicas": 6})).await?;
    ground.publish(0, 2000).await?;
    ground.handled(500).await?;
    let killed = Instant::now();
    install::kill_operator(cluster).await?;
    ground.handled(1800).await?;
    let replicas = ground.replicas(killed);
    ground.handled(2000).await?;
    let report = json!({
        "replicas_after_the_kill": replicas,
        "called_again": ground.desk.called_again().len(),
    });
    say(&format!("killed: {report}"));
    ground.clear().await?;
    Ok(report)
}

/// About 8 messages a second of half a second each, every quarter of a second up to half more or less.
async fn steady(cluster: &Cluster, time: Duration) -> Result<Value> {
    const A_TICK: f64 = 2.0;
    let tick = Duration::from_millis(250);
    let ground =
        Ground::new(cluster, "steady", Duration::from_millis(500), json!({"maxReplicas": 20})).await?;
    let begun = Instant::now();
    // Until then it is a load that has just begun.
    let settled = begun + Duration::from_secs(60);
    let (mut ticks, mut published) = (tokio::time::interval(tick), 0_usize);
    let (mut owed, mut chance) = (0.0, 7_u32);
    while begun.elapsed() < time + Duration::from_secs(60) {
        ticks.tick().await;
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = f64::from(chance) / f64::from(u32::MAX) - 0.5;
        owed += A_TICK * (1.0 + noise);
        let count = owed as usize;
        owed -= count as f64;
        ground.publish(published, count).await?;
        published += count;
    }
    let (start, after) = (ground.replicas(begun), ground.replicas(settled));
    ground.handled(published).await?;
    let report = json!({
        "minutes": figure(time.as_secs_f64() / 60.0),
        "messages": published,
        "changes": after.len().saturating_sub(1),
        "replicas": after,
        "replicas_from_the_start": start,
        "called_again": ground.desk.called_again().len(),
    });
    say(&format!("steady: {report}"));
    ground.clear().await?;
    Ok(report)
}
