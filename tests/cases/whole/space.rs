//! What each test has to itself: a namespace, a virtual host, a desk, and Warren installed for all.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use warren_tests::amqp::Client;
use warren_tests::broker::Broker;
use warren_tests::desk::{Call, Desk, Order};
use warren_tests::progress::Lines;
use warren_tests::{Cluster, golang, images, install};

const APP: &str = "localhost/warren-test-app:dev";
/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster with Warren on it, for all tests of this process.
pub(crate) async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    let set_up = async || -> Result<Cluster> {
        let cluster = Cluster::for_tests(&Lines).await?;
        let images = images::warren(&cluster, &Lines).await?;
        images::program(&cluster, APP, &golang::program("tests/cluster/app").await?).await?;
        install::warren(&cluster, &images).await?;
        Ok(cluster)
    };
    CLUSTER.get_or_init(|| async { set_up().await.expect("a cluster with Warren") }).await
}

/// A namespace with a virtual host of the same name on the broker that the tests share, and a desk.
pub(crate) struct Space {
    pub(crate) cluster: &'static Cluster,
    pub(crate) broker: Arc<Broker>,
    pub(crate) desk: Desk,
    pub(crate) name: String,
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
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        cluster.apply(&namespace.to_string()).await?;
        Ok(Self { cluster, broker, desk, name })
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
        self.secret_of(json!({"uri": uri})).await
    }

    pub(crate) async fn secret_of(&self, keys: Value) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "rabbitmq", "namespace": self.name}, "stringData": keys,
        });
        self.cluster.apply(&secret.to_string()).await.map(drop)
    }

    /// Applies a Queue.
    pub(crate) async fn queue(&self, name: &str, spec: Value) -> Result<()> {
        self.apply("Queue", name, spec).await
    }

    /// Applies a Worker of Queue "orders" that runs the test application; `fields` add to its spec.
    pub(crate) async fn worker(&self, name: &str, fields: Value) -> Result<()> {
        let mut spec = json!({"queueRef": {"name": "orders"}, "template": self.template()});
        merge(&mut spec, fields);
        self.apply("Worker", name, spec).await
    }

    /// The pod template of the test application.
    pub(crate) fn template(&self) -> Value {
        json!({"spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "app", "image": APP, "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080}],
                "env": [
                    {"name": "DESK_URL", "value": self.desk.url()},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        }})
    }

    async fn apply(&self, kind: &str, name: &str, spec: Value) -> Result<()> {
        let object = json!({
            "apiVersion": "warren.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": self.name}, "spec": spec,
        });
        self.cluster.apply(&object.to_string()).await.map(drop)
    }

    /// `kubectl` in this namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.name], args].concat()).await
    }

    /// An object, such as `get("wk", "invoices")`.
    pub(crate) async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.cluster.get(&["-n", &self.name, kind, name]).await
    }

    /// Waits until a condition has the status, the reason and a message that holds each of `words`; gives the message.
    pub(crate) async fn condition(
        &self,
        (kind, name): (&str, &str),
        condition: &str,
        (status, reason): (&str, &str),
        words: &[&str],
    ) -> Result<String> {
        self.eventually(&format!("{kind}/{name} has {condition}={status}, reason {reason}"), async || {
            let object = self.get(kind, name).await?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
            let found = conditions.iter().find(|c| c["type"] == condition).context("no such condition")?;
            ensure!(found["status"] == status && found["reason"] == reason, "{found}");
            let message = found["message"].as_str().unwrap_or_default();
            ensure!(words.iter().all(|word| message.contains(word)), "{message}");
            Ok(message.to_owned())
        })
        .await
    }

    /// Waits until the resource's summary condition is True.
    pub(crate) async fn ready(&self, kind: &str, name: &str) -> Result<()> {
        self.eventually(&format!("{kind}/{name} is Ready"), async || {
            let object = self.get(kind, name).await?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ensure!(ready, "{}", object["status"]);
            Ok(())
        })
        .await
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

    /// Waits until so many different messages are handled.
    pub(crate) async fn handled(&self, count: usize) -> Result<()> {
        self.eventually(&format!("{count} messages are handled"), async || {
            let handled = self.desk.handled().len();
            ensure!(handled >= count, "{handled} of {count}");
            Ok(())
        })
        .await
    }

    /// Waits with this namespace's pods, events and logs shown when it takes too long.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        condition: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        self.cluster.eventually(&self.name, PATIENCE, what, condition).await
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let mut kubectl = std::process::Command::new(self.cluster.kubectl_path());
        kubectl.env("KUBECONFIG", self.cluster.kubeconfig());
        kubectl.args(["delete", "namespace", &self.name, "--wait=false"]).stdout(Stdio::null());
        // A namespace that stays goes with the cluster.
        let _ = kubectl.status();
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
