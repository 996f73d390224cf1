//! Warren on a cluster, the one way it is installed anywhere: by its Helm chart.

use anyhow::Result;

use crate::cluster::Cluster;
use crate::images::Image;
use crate::site::workspace;

/// The namespace of the operator.
pub const NAMESPACE: &str = "warren-system";
const RELEASE: &str = "warren";

/// Ends the operator's pods, all of them at once, with the second or two that the kubelet gives them even so.
pub async fn kill_operator(cluster: &Cluster) -> Result<()> {
    cluster.kill(NAMESPACE, &["pods", "-l", "app.kubernetes.io/name=warren"]).await
}

/// Takes Warren off a cluster, if it is there: its operator would change what another one on the same cluster keeps.
pub async fn none(cluster: &Cluster) -> Result<()> {
    let uninstall = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait"];
    cluster.helm(&uninstall).await.map(drop)
}

/// Installs or upgrades Warren with the images given, and waits until the operator is ready.
pub async fn warren(cluster: &Cluster, images: &[Image]) -> Result<()> {
    let chart = workspace().join("charts/warren");
    let chart = chart.to_string_lossy();
    let release = ["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE, "--create-namespace"];
    let values = ["--set", "image.tag=dev,sidecarImage.tag=dev", "--wait", "--timeout", "3m"];
    // API-server tests apply the definitions by kubectl, to a cluster that may be the same one.
    let adopt = ["--take-ownership", "--force-conflicts"];
    let installed = cluster.helm(&["list", "--namespace", NAMESPACE, "--short"]).await?.contains(RELEASE);
    let result = cluster.helm(&[&release[..], &values, &adopt].concat()).await;
    if let Err(error) = result {
        return Err(error.context(cluster.diagnostics(NAMESPACE).await));
    }
    // The tag is always "dev": an operator that ran before this build would go on with the old program.
    if installed && images.iter().any(|image| image.changed) {
        let deployment = ["deployment", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=warren"];
        cluster.kubectl(&[&["rollout", "restart"], &deployment[..]].concat()).await?;
        let status = ["rollout", "status", "--timeout=120s"];
        cluster.kubectl(&[&status[..], &deployment].concat()).await?;
    }
    Ok(())
}
