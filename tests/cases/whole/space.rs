//! What each test has to itself: a namespace, a virtual host, a desk, and Warren installed for all.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};
use warren_tests::amqp::Client;
use warren_tests::broker::Broker;
use warren_tests::desk::{self, Call, Desk, Order};
use warren_tests::namespace::Namespace;
use warren_tests::progress::Lines;
use warren_tests::{Cluster, images, install};

/// The cluster with Warren on it, for all tests of this process.
pub(crate) async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    let set_up = async || -> Result<Cluster> {
        let cluster = Cluster::for_tests(&Lines).await?;
        let images = images::warren(&cluster, &Lines).await?;
        desk::image(&cluster).await?;
        install::warren(&cluster, &images).await?;
        Ok(cluster)
    };
    CLUSTER.get_or_init(|| async { set_up().await.expect("a cluster with Warren") }).await
}

/// The operator, which all tests have in common: one test at a time may end it, and what it remembers of the load is gone then.
static OPERATOR: RwLock<()> = RwLock::const_new(());

/// Waits for the turn to end the operator; until it is over, no other test does.
pub(crate) async fn turn() -> RwLockWriteGuard<'static, ()> {
    OPERATOR.write().await
}

/// For a test that counts on what the operator remembers of the load: until it is over, nobody ends the operator.
pub(crate) async fn undisturbed() -> RwLockReadGuard<'static, ()> {
    OPERATOR.read().await
}

/// A namespace with a virtual host of the same name on the broker that the tests share, and a desk.
pub(crate) struct Space {
    namespace: Namespace,
    pub(crate) broker: Arc<Broker>,
    pub(crate) desk: Desk,
}

impl Deref for Space {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Space {
    /// A space whose applications do what `decide` says, with a Secret "rabbitmq" that works.
    pub(crate) async fn new(
        name: &str,
        decide: impl Fn(&Call) -> Order + Send + Sync + 'static,
    ) -> Result<Self> {
        let space = Self::without_secret(name, decide).await?;
        space.secret(&space.uri()).await?;
        Ok(space)
    }

    pub(crate) async fn without_secret(
        name: &str,
        decide: impl Fn(&Call) -> Order + Send + Sync + 'static,
    ) -> Result<Self> {
        let cluster = cluster().await;
        let broker = Broker::shared().await?;
        let name = format!("{name}-{}", std::process::id());
        broker.vhost(&name).await?;
        let desk = Desk::open(cluster.host_address(), decide).await?;
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = Namespace::new(cluster, &name, labels).await?;
        Ok(Self { namespace, broker, desk })
    }

    /// The broker's address as pods reach it.
    pub(crate) fn uri(&self) -> String {
        self.broker.uri_at(self.cluster.host_address(), &self.name)
    }

    /// A client of the virtual host.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.broker.uri(&self.name)).await
    }

    /// Writes Secret "rabbitmq".
    pub(crate) async fn secret(&self, uri: &str) -> Result<()> {
        self.namespace.secret("rabbitmq", uri).await
    }

    /// Applies a Worker of Queue "orders" that runs the test application; `fields` add to its spec.
    pub(crate) async fn worker(&self, name: &str, fields: Value) -> Result<()> {
        let mut spec = json!({"queueRef": {"name": "orders"}, "template": self.template()});
        merge(&mut spec, fields);
        self.apply("Worker", name, spec).await
    }

    /// The pod template of the test application.
    pub(crate) fn template(&self) -> Value {
        let mut container = self.desk.container();
        container["securityContext"] = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        json!({"spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        }})
    }

    /// The names of a Worker's pods that run and are not ending.
    pub(crate) async fn pods(&self, worker: &str) -> Result<Vec<String>> {
        let selector = format!("warren.dev/worker={worker}");
        let list: Value = self.cluster.get(&["-n", &self.name, "pods", "-l", &selector]).await?;
        let pods = list["items"].as_array().context("no list")?.iter();
        let running = pods.filter(|pod| {
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        });
        Ok(running.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// Waits for so many pods, all of them ready.
    pub(crate) async fn pods_ready(&self, worker: &str, count: usize) -> Result<Vec<String>> {
        self.eventually(&format!("{count} ready pods of {worker}"), async || {
            let object = self.get("deployment", worker).await?;
            let ready = object["status"]["readyReplicas"].as_u64().unwrap_or(0);
            let pods = self.pods(worker).await?;
            ensure!(ready == count as u64 && pods.len() == count, "{ready} ready, {} running", pods.len());
            Ok(pods)
        })
        .await
    }

    /// Ends the operator, in a test's turn.
    pub(crate) async fn kill_operator(&self, _turn: &RwLockWriteGuard<'_, ()>) -> Result<()> {
        install::kill_operator(&self.cluster).await
    }

    /// Waits until so many different messages are handled.
    pub(crate) async fn handled(&self, count: usize) -> Result<()> {
        self.eventually(&format!("{count} messages are handled"), async || {
            let handled = self.desk.handled().len();
            ensure!(handled >= count, "{handled} of {count}");
            Ok(())
        })
        .await
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.namespace.discard();
    }
}

/// Adds fields to an object, deeply.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
