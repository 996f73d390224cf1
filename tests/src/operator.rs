//! An operator as a process of its own, beside the cluster, watched through its metrics.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::command::run_program;
use crate::wait::eventually;
use crate::{http, images, ports, process};

/// The metric of Ready Queues.
pub const READY: &str = "warren_operator_queues{ready=\"true\"}";
/// The metric of requests that changed something.
pub const WRITES: &str = "warren_operator_api_writes_total";
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(900);

/// A running operator; it ends with this value.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    port: u16,
    started: Instant,
}

impl Operator {
    /// Builds the release binary.
    pub async fn build() -> Result<PathBuf> {
        let built = images::static_binaries(&["warren-operator"]).await?;
        built.into_iter().next().context("no operator was built")
    }

    /// Starts it for one namespace, with what it says in a file of the system's temporary folder.
    /// Its Lease is in that namespace too; `identity` is its name in the election.
    pub async fn start(binary: &Path, cluster: &Cluster, namespace: &str, identity: &str) -> Result<Self> {
        Self::watching(binary, cluster.kubeconfig(), &[namespace], identity).await
    }

    /// The same with any kubeconfig, for several namespaces; the Lease is in the first.
    pub async fn watching(
        binary: &Path,
        kubeconfig: &Path,
        namespaces: &[&str],
        identity: &str,
    ) -> Result<Self> {
        let namespace = namespaces.first().context("no namespace")?;
        let port = ports::free()?;
        let log = std::env::temp_dir().join(format!("warren-operator-{namespace}-{identity}.log"));
        let log = std::fs::File::create(log)?;
        let child = Command::new(binary)
            .args([
                "--watch-namespaces",
                &namespaces.join(","),
                "--namespace",
                namespace,
                "--identity",
                identity,
            ])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, port, started: Instant::now() })
    }

    /// The value of a metric's line; 0 where it is not there yet.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = http::get(SocketAddr::from(([127, 0, 0, 1], self.port)), "/metrics").await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?.unwrap_or(0.0))
    }

    /// The CPU seconds that it has used so far; its own metric has whole seconds only.
    pub fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.child.id().context("it has ended")?)
    }

    /// Waits until a metric reaches a value; gives the seconds since the start.
    pub async fn until(&self, name: &str, at_least: f64) -> Result<f64> {
        eventually(PATIENCE, &format!("{name} is {at_least}"), async || {
            // Before it listens, there is nothing to read.
            let value = self.metric(name).await?;
            ensure!(value >= at_least, "it is {value}");
            Ok(self.started.elapsed().as_secs_f64())
        })
        .await
    }

    /// Whether it runs, and has not ended by itself.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it as a kubelet would, so that it gives its Lease back.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().context("it has ended")?.to_string();
        run_program("kill", ["-TERM", &pid]).await?;
        self.child.wait().await?;
        Ok(())
    }

    /// Ends it as a crash would.
    pub async fn kill9(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
