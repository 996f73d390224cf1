//! What the operator's benchmarks stand on: a cluster without another operator, a broker, and resources made quickly.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use warren_api::{Queue, QueueSpec, Worker};
use warren_tests::Cluster;
use warren_tests::broker::{Broker, Options};
use warren_tests::namespace::Namespace;
use warren_tests::operator::Operator;
use warren_tests::progress::Lines;
use warren_tests::wait::eventually;

/// Requests to the API server at once.
const AT_ONCE: usize = 32;
/// How long a deletion may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The cluster, the broker with a vhost "warren", the operator's binary, and a namespace with a Secret.
pub(super) struct Ground {
    pub(super) broker: Broker,
    binary: PathBuf,
    namespace: Namespace,
    client: Client,
}

impl Ground {
    pub(super) async fn new(namespace: &str) -> Result<Self> {
        let cluster = Cluster::for_tests(&Lines).await?;
        let others = ["get", "deployments", "-A", "-l", "app.kubernetes.io/name=warren", "-o", "name"];
        let others = cluster.kubectl(&others).await?;
        let others = others.trim();
        ensure!(others.is_empty(), "another operator runs in this cluster ({others}): uninstall it");
        let broker = Broker::start(Options::new(namespace)).await?;
        broker.vhost("warren").await?;
        let binary = Operator::build().await?;
        cluster.apply(include_str!("../../../crds/queues.warren.dev.yaml")).await?;
        cluster.apply(include_str!("../../../crds/workers.warren.dev.yaml")).await?;
        cluster.until_established().await?;
        let namespace = Namespace::anew(&cluster, namespace).await?;
        namespace.secret("rabbitmq", &broker.uri("warren")).await?;
        warren_broker::install_crypto_provider();
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { broker, binary, namespace, client: Client::try_from(config)? })
    }

    /// Starts the operator.
    pub(super) async fn operator(&self) -> Result<Operator> {
        let Namespace { cluster, name } = &self.namespace;
        Operator::start(&self.binary, cluster, name, "bench").await
    }

    fn queues(&self) -> Api<Queue> {
        Api::namespaced(self.client.clone(), &self.namespace.name)
    }

    /// Makes Queues.
    pub(super) async fn create_queues(&self, numbers: Range<usize>, spec: &QueueSpec) -> Result<()> {
        let queues = self.queues();
        let made = stream::iter(numbers).map(|number| {
            let (queues, queue) = (queues.clone(), Queue::new(&name(number), spec.clone()));
            async move { queues.create(&PostParams::default(), &queue).await.map(drop) }
        });
        Ok(made.buffer_unordered(AT_ONCE).try_collect().await?)
    }

    /// Makes Workers without pods, each of a Queue of its own.
    pub(super) async fn create_workers(&self, numbers: Range<usize>) -> Result<()> {
        let workers: Api<Worker> = Api::namespaced(self.client.clone(), &self.namespace.name);
        let made = stream::iter(numbers).map(|number| {
            let workers = workers.clone();
            async move {
                let container = json!({"name": "app", "image": "app", "ports": [{"containerPort": 8080}]});
                let worker: Worker = serde_json::from_value(json!({
                    "apiVersion": "warren.dev/v1alpha1", "kind": "Worker",
                    "metadata": {"name": format!("worker-{number}")},
                    "spec": {"queueRef": {"name": name(number)}, "template": {"spec": {"containers": [container]}}},
                }))?;
                workers.create(&PostParams::default(), &worker).await?;
                anyhow::Ok(())
            }
        });
        made.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Waits until the operator has made so many Deployments.
    pub(super) async fn until_deployments(&self, count: usize) -> Result<()> {
        // A Deployment that its controller has not looked at yet is going to change.
        let seen = "jsonpath={range .items[*]}{.status.observedGeneration}{\"\\n\"}{end}";
        let missing = async || {
            let all = self.namespace.kubectl(&["get", "deployments", "-o", seen]).await?;
            Ok(count.saturating_sub(all.lines().filter(|line| !line.is_empty()).count()))
        };
        self.until_none(missing).await
    }

    /// Has the broker's queues go with the Queues.
    pub(super) async fn delete_with_queues(&self, count: usize) -> Result<()> {
        let queues = self.queues();
        let changed = stream::iter(0..count).map(|number| {
            let queues = queues.clone();
            let patch = Patch::Merge(json!({"spec": {"deletionPolicy": "Delete"}}));
            async move { queues.patch(&name(number), &PatchParams::default(), &patch).await.map(drop) }
        });
        changed.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let pending = async || {
            let queues = queues.list_metadata(&Default::default()).await?.items;
            anyhow::Ok(queues.iter().filter(|queue| queue.metadata.finalizers.is_none()).count())
        };
        self.until_none(pending).await
    }

    /// Deletes all Queues; gives the seconds until they, and their queues on the broker, are gone.
    pub(super) async fn delete_queues(&self) -> Result<f64> {
        let (queues, begun) = (self.queues(), Instant::now());
        queues.delete_collection(&DeleteParams::default(), &Default::default()).await?;
        self.until_none(async || Ok(queues.list_metadata(&Default::default()).await?.items.len())).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let left = self.broker.eval("length(rabbit_amqqueue:list(<<\"warren\">>))").await?;
        ensure!(left.contains("{ok, 0}"), "queues are left on the broker: {left}");
        Ok(seconds)
    }

    async fn until_none(&self, left: impl AsyncFn() -> Result<usize>) -> Result<()> {
        eventually(PATIENCE, "none is left", async || {
            let left = left().await?;
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    }

    /// Connections to the broker.
    pub(super) async fn connections(&self) -> Result<usize> {
        let answer = self.broker.eval("length(rabbit_networking:connections())").await?;
        let digits: String = answer.chars().filter(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// Takes the namespace away, without waiting for it.
    pub(super) async fn clear(&self) -> Result<()> {
        self.namespace.delete().await
    }
}

/// The name of a Queue.
pub(super) fn name(number: usize) -> String {
    format!("queue-{number}")
}
