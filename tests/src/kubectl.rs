//! `kubectl` and `helm` against a cluster.

use std::time::Duration;

use anyhow::Result;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::command::{run, run_with_input};
use crate::wait::eventually;

impl Cluster {
    /// `kubectl` with the cluster's kubeconfig, to add arguments to.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(self.kubectl_path());
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs `kubectl` and gives what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.kubectl_command().args(args)).await
    }

    /// Applies a manifest of one or more objects on the server's side.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        run_with_input(&mut kubectl, manifest).await
    }

    /// Deletes pods, such as `["pod", "NAME"]`, with the least grace and without waiting.
    pub async fn kill(&self, namespace: &str, pods: &[&str]) -> Result<()> {
        let now = ["--grace-period=0", "--force", "--wait=false"];
        self.kubectl(&[&["delete", "-n", namespace], pods, &now].concat()).await.map(drop)
    }

    /// Waits until the API server serves Warren's definitions. `kubectl wait` alone fails on one that has no status yet.
    pub async fn until_established(&self) -> Result<()> {
        let wait = ["wait", "--for=condition=Established", "--timeout=5s"];
        let args = [&wait[..], &["crd/queues.warren.dev", "crd/workers.warren.dev"]].concat();
        eventually(Duration::from_secs(30), "the definitions are established", async || {
            self.kubectl(&args).await.map(drop)
        })
        .await
    }

    /// `kubectl get ARGS -o json`, parsed.
    pub async fn get<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = run(self.kubectl_command().arg("get").args(args).args(["-o", "json"])).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs `helm` and gives what it printed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        run(Command::new(self.helm_path()).env("KUBECONFIG", self.kubeconfig()).args(args)).await
    }

    /// [`eventually`], which also shows the namespace's pods, events and logs when the condition stays false.
    pub async fn eventually<T>(
        &self,
        namespace: &str,
        timeout: Duration,
        what: &str,
        condition: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        match eventually(timeout, what, condition).await {
            Ok(value) => Ok(value),
            Err(error) => Err(error.context(self.diagnostics(namespace).await)),
        }
    }

    /// The pods, events and last lines of the logs of a namespace, as text.
    pub async fn diagnostics(&self, namespace: &str) -> String {
        let show = async |args: &[&str]| {
            let output = self.kubectl(args).await.unwrap_or_else(|error| format!("{error:#}"));
            format!("--- kubectl {}\n{output}\n", args.join(" "))
        };
        let mut text = show(&["get", "pods,deployments", "-n", namespace, "-o", "wide"]).await;
        text += &show(&["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"]).await;
        let names = self.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).await.unwrap_or_default();
        for pod in names.lines().take(10) {
            let options = ["--all-containers", "--prefix", "--tail=50", "--ignore-errors"];
            text += &show(&[&["logs", "-n", namespace, pod][..], &options].concat()).await;
        }
        text
    }
}
