//! The custom resources against a real API server: what is taken, what is refused, and with which words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod alerts;
mod bindings;
mod operator;
mod outage;
mod queue;
mod worker;

use serde_json::Value;
use tokio::sync::OnceCell;
use warren_tests::progress::Lines;
use warren_tests::{Cluster, command, install, site};

/// A namespace that nothing else uses.
const NAMESPACE: &str = "warren-api-tests";

/// The cluster with the definitions applied, as a user without Helm applies them.
async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_init(|| async {
            let cluster = Cluster::for_tests(&Lines).await.expect("a cluster");
            // What tests of the whole have left there.
            install::none(&cluster).await.expect("no other operator");
            let crds = site::workspace().join("crds");
            cluster.kubectl(&["apply", "-f", &crds.to_string_lossy()]).await.expect("definitions");
            cluster.until_established().await.expect("established");
            let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
            cluster.apply(&namespace).await.expect("namespace");
            cluster
        })
        .await
}

/// Sends a manifest to the API server without keeping it; gives the object with its defaults, or the refusal.
async fn send(manifest: &str) -> Result<Value, String> {
    let cluster = cluster().await;
    let mut kubectl = cluster.kubectl_command();
    kubectl.args(["apply", "-n", NAMESPACE, "--dry-run=server", "-o", "json", "-f", "-"]);
    match command::run_with_input(&mut kubectl, manifest).await {
        Ok(output) => Ok(serde_json::from_str(&output).expect("JSON")),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// The manifest is refused with words that hold `expected`.
async fn refused(manifest: &str, expected: &str) {
    match send(manifest).await {
        Ok(object) => panic!("taken, but should be refused ({expected}): {object}"),
        Err(error) => assert!(error.contains(expected), "expected {expected:?} in:\n{error}"),
    }
}

/// Makes an object, then changes it as `patch` says; gives the refusal or the object.
async fn patched(kind: &str, name: &str, manifest: &str, patch: &str) -> Result<String, String> {
    let cluster = cluster().await;
    let mut create = cluster.kubectl_command();
    create.args(["apply", "-n", NAMESPACE, "-f", "-"]);
    command::run_with_input(&mut create, manifest).await.expect("the object itself is valid");
    let result = cluster.kubectl(&["patch", "-n", NAMESPACE, kind, name, "--type=merge", "-p", patch]).await;
    cluster.kubectl(&["delete", "-n", NAMESPACE, kind, name, "--wait=false"]).await.expect("delete");
    result.map_err(|error| format!("{error:#}"))
}
