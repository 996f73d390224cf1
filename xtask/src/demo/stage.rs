//! Everything the demo's story needs: broker, Prometheus, Warren by its chart, and the orders example.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::process::Command;
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::namespace::Namespace;
use warren_tests::progress::{Progress, step};
use warren_tests::prometheus::Prometheus;
use warren_tests::site::workspace;
use warren_tests::wait::eventually;
use warren_tests::{Cluster, command, golang, images, install};

/// The example's namespace and queue, as its manifests name them.
pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const QUEUE: &str = "orders";
const LEDGER: &str = "deployment/ledger";
const PATIENCE: &str = "--timeout=120s";
const DECLARED: Duration = Duration::from_secs(120);
const IMAGE: &str = "localhost/warren-example-orders:dev";
const MANIFESTS: [&str; 4] = ["1-namespace.yaml", "2-ledger.yaml", "3-queue.yaml", "4-worker.yaml"];
/// How long the demo's handler works on an order, so that there is something to scale for.
const WORK_MILLISECONDS: &str = "50";

/// What is set up.
pub(crate) struct Stage<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) prometheus: Prometheus,
    pub(crate) client: Client,
    _broker: Broker,
    orders: PathBuf,
}

/// The ledger's own count.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) invoices: u64,
    pub(crate) duplicates: u64,
    pub(crate) first_handled_unix_ms: Option<u64>,
}

impl<'a> Stage<'a> {
    pub(crate) async fn set_up(cluster: &'a Cluster, keep: bool, progress: &dyn Progress) -> Result<Self> {
        let images = images::warren(cluster, progress).await?;
        let orders = step(progress, "The orders example", build_example(cluster)).await?;
        let options = Options::new("demo");
        let options = if keep { options.lasting() } else { options };
        let broker = step(progress, "RabbitMQ", Broker::start(options)).await?;
        let prometheus = step(progress, "Prometheus", Prometheus::start(cluster, &[])).await?;
        step(progress, "Warren, by its Helm chart", install::warren(cluster, &images)).await?;
        let uri = broker.uri_at(cluster.host_address(), "/");
        let apply = apply_example(cluster, &uri);
        step(progress, "A Queue, a Worker and a ledger in namespace \"shop\"", apply).await?;
        let client = Client::connect(&broker.uri("/")).await?;
        let stage = Self { cluster, prometheus, client, _broker: broker, orders };
        stage.forget_former_orders().await?;
        Ok(stage)
    }

    /// An earlier demo's orders have the same ids: of those in the ledger nothing would be seen of this one's.
    async fn forget_former_orders(&self) -> Result<()> {
        for queue in [QUEUE, &format!("{QUEUE}.dlq")] {
            // A Queue that was Ready on another broker says so until the operator has read the Secret again.
            let what = format!("{queue} is declared");
            eventually(DECLARED, &what, async || self.client.ready(queue).await?.context("not yet")).await?;
            self.client.purge(queue).await?;
        }
        if self.ledger().await?.invoices > 0 {
            self.cluster.kubectl(&["rollout", "restart", "-n", NAMESPACE, LEDGER]).await?;
            ledger_runs(self.cluster).await?;
        }
        Ok(())
    }

    /// The JSON of made-up orders 1 to `count`, one an element.
    pub(crate) async fn orders(&self, count: u64) -> Result<Vec<Vec<u8>>> {
        let mut program = Command::new(&self.orders);
        let lines = command::run(program.args(["order", "1", &count.to_string()])).await?;
        Ok(lines.lines().map(|line| line.as_bytes().to_vec()).collect())
    }

    /// Asks the ledger through the API server, which works on every cluster.
    pub(crate) async fn ledger(&self) -> Result<Ledger> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/services/ledger:http/proxy/summary");
        let text = self.cluster.kubectl(&["get", "--raw", &path]).await?;
        serde_json::from_str(&text).context("read the ledger's summary")
    }
}

/// What a reader can type next.
pub(crate) fn hints(cluster: &Cluster) -> String {
    let path = cluster.kubectl_path().parent().map(|bin| format!("export PATH={}:$PATH\n", bin.display()));
    let uri =
        format!("uri=$(kubectl -n {NAMESPACE} get secret rabbitmq -o jsonpath='{{.data.uri}}' | base64 -d)");
    format!(
        "export KUBECONFIG={}\n{}kubectl -n {NAMESPACE} get wq,wk,pods\nkubectl -n {NAMESPACE} describe wk invoices\n{uri}",
        cluster.kubeconfig().display(),
        path.filter(|_| cluster.site().is_some()).unwrap_or_default(),
    )
}

/// The example as a static program, for this machine and as an image.
async fn build_example(cluster: &Cluster) -> Result<PathBuf> {
    let binary = golang::program("examples/orders").await?;
    images::program(cluster, IMAGE, &binary).await?;
    Ok(binary)
}

/// The example's manifests as they are, but for the broker's address and the time that work takes.
async fn apply_example(cluster: &Cluster, uri: &str) -> Result<()> {
    for file in MANIFESTS {
        let path = workspace().join("examples/orders").join(file);
        let manifest = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let slow = format!("WORK_MILLISECONDS, value: \"{WORK_MILLISECONDS}\"");
        cluster.apply(&manifest.replace("WORK_MILLISECONDS, value: \"0\"", &slow)).await?;
        if file == MANIFESTS[0] {
            let namespace = Namespace { cluster: cluster.clone(), name: NAMESPACE.to_owned() };
            namespace.secret("rabbitmq", uri).await?;
        }
    }
    cluster.kubectl(&["wait", "-n", NAMESPACE, "--for=condition=Ready", "wq/orders", PATIENCE]).await?;
    ledger_runs(cluster).await
}

/// Waits until the ledger runs as it was asked for last.
async fn ledger_runs(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["rollout", "status", "-n", NAMESPACE, LEDGER, PATIENCE]).await.map(drop)
}
