//! A Deployment's wanted replicas, as a watch of them tells.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use warren_tests::Cluster;

/// A watch; it ends with the value.
pub(super) struct Replicas {
    lines: Lines<BufReader<ChildStdout>>,
    _kubectl: Child,
}

impl Replicas {
    /// Begins to watch; what is wanted now is the first that [`Replicas::next`] gives.
    pub(super) fn watch(cluster: &Cluster, namespace: &str, deployment: &str) -> Result<Self> {
        let mut kubectl = cluster.kubectl_command();
        kubectl.args(["get", "deployment", "-n", namespace, deployment, "--watch"]);
        kubectl.args(["--output=jsonpath={.spec.replicas}{\"\\n\"}"]);
        let mut kubectl = kubectl.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let lines = BufReader::new(kubectl.stdout.take().context("kubectl has no output")?).lines();
        Ok(Self { lines, _kubectl: kubectl })
    }

    /// The replicas at the next event of the Deployment; none where there is none for so long.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Option<u32>> {
        match tokio::time::timeout(within, self.lines.next_line()).await {
            Err(_) => Ok(None),
            Ok(line) => Ok(Some(line?.context("the watch ended")?.parse()?)),
        }
    }
}
