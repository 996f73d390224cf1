//! The scaler on a real cluster, installed by its chart: from a confirmed publish to a Worker at zero to the patch of its
//! Deployment, among many Workers at zero. There is no peer to run beside it here: KEDA is a model in `kubectl warren simulate`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::namespace::Namespace;
use warren_tests::{Cluster, images, install, progress};

use super::replicas::Replicas;
use super::{figure, median, say};

const NAMESPACE: &str = "bench-scale";
/// Messages of a publish: few enough to be there all at once, many enough to be told from a first guess.
const MESSAGES: u64 = 10;
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a Deployment is watched after its first patch for another one.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// One wake-up.
struct Woken {
    seconds: f64,
    first: u32,
    wanted: u32,
}

/// Publishes to `rounds` of `workers` Workers at zero, one after the other.
pub(super) async fn scale(workers: usize, rounds: usize) -> Result<Value> {
    ensure!(workers >= rounds, "--workers must be at least --wake-ups: each Worker is woken once");
    let cluster = Cluster::for_tests(&progress::Lines).await?;
    let built = images::warren(&cluster, &progress::Lines).await?;
    install::warren(&cluster, &built).await?;
    let broker = Broker::start(Options::new(NAMESPACE)).await?;
    let namespace = Namespace::anew(&cluster, NAMESPACE).await?;
    let made = create(&namespace, &broker, workers).await;
    let woken = match made {
        Ok(()) => wake_all(&cluster, &broker, rounds).await,
        Err(error) => Err(error),
    };
    namespace.delete().await?;
    broker.remove().await?;
    let woken = woken?;
    let mut seconds: Vec<f64> = woken.iter().map(|woken| woken.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let p95 = seconds.get((seconds.len() * 95).div_ceil(100).saturating_sub(1)).copied();
    Ok(json!({
        "workers_at_zero": workers,
        "wake_ups": woken.len(),
        "decision_p50_s": figure(median(seconds.clone())),
        "decision_p95_s": figure(p95.context("no wake-up was measured")?),
        "decision_max_s": figure(seconds.last().copied().unwrap_or_default()),
        "first_patch_replicas": median(woken.iter().map(|woken| f64::from(woken.first)).collect()),
        "wanted_replicas": median(woken.iter().map(|woken| f64::from(woken.wanted)).collect()),
        // A look may fall between the first message and the last one of a publish.
        "wake_ups_in_one_step": woken.iter().filter(|woken| woken.first == woken.wanted).count(),
    }))
}

fn name(number: usize) -> String {
    format!("worker-{number}")
}

/// Makes Queues and Workers and waits until all are Ready at zero. No node takes the pods: what is measured ends with the
/// patch, and the machine stays quiet.
async fn create(namespace: &Namespace, broker: &Broker, workers: usize) -> Result<()> {
    namespace.secret("rabbitmq", &broker.uri_at(namespace.cluster.host_address(), "/")).await?;
    let mut items = Vec::new();
    let container = json!({"name": "app", "image": "none", "ports": [{"containerPort": 8080}]});
    let pod = json!({"nodeSelector": {"warren.dev/bench": "none"}, "containers": [container]});
    for number in 0..workers {
        let name = name(number);
        items.push(namespace.object("Queue", &name, &json!({"retry": {"delaysSeconds": []}})));
        let spec = json!({
            "queueRef": {"name": name}, "scaling": {"targetWaitSeconds": 1}, "template": {"spec": pod},
        });
        items.push(namespace.object("Worker", &name, &spec));
    }
    namespace.apply_all(items).await?;
    let wait = ["wait", "--for=condition=Ready", "wq,wk", "--all", "--timeout=300s"];
    namespace.kubectl(&wait).await?;
    say(&format!("{workers} Workers are Ready at zero"));
    Ok(())
}

async fn wake_all(cluster: &Cluster, broker: &Broker, rounds: usize) -> Result<Vec<Woken>> {
    let client = Client::connect(&broker.uri("/")).await?;
    let mut all = Vec::new();
    for number in 0..rounds {
        let woken = wake(cluster, &client, &name(number)).await?;
        say(&format!(
            "{}: {} replicas {:.2} s after the publish, {} wanted",
            name(number),
            woken.first,
            woken.seconds,
            woken.wanted
        ));
        all.push(woken);
    }
    Ok(all)
}

/// Publishes to a Worker at zero and watches its Deployment.
async fn wake(cluster: &Cluster, client: &Client, worker: &str) -> Result<Woken> {
    let mut replicas = Replicas::watch(cluster, NAMESPACE, worker)?;
    ensure!(replicas.next(PATIENCE).await? == Some(0), "{worker} is not at zero");
    client.publish_all(worker, (0..MESSAGES).map(|number| number.to_string().into_bytes())).await?;
    let published = Instant::now();
    let first = loop {
        match replicas.next(PATIENCE).await? {
            Some(0) => {}
            Some(first) => break first,
            None => bail!("{worker} was not scaled within {} s", PATIENCE.as_secs()),
        }
    };
    let seconds = published.elapsed().as_secs_f64();
    let mut wanted = first;
    while let Some(later) = replicas.next(AFTERWARDS).await? {
        wanted = wanted.max(later);
    }
    // No further wake-up finds work here.
    client.purge(worker).await?;
    Ok(Woken { seconds, first, wanted })
}
