//! Warren on a cluster, the one way it is installed anywhere: by its Helm chart.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::images::Image;
use crate::site::workspace;

/// The namespace of the operator.
pub const NAMESPACE: &str = "warren-system";
const RELEASE: &str = "warren";
/// The tag of the images that are built here.
const TAG: &str = "dev";

/// Ends the operator's pods, all of them at once, with the second or two that the kubelet gives them even so.
pub async fn kill_operator(cluster: &Cluster) -> Result<()> {
    cluster.kill(NAMESPACE, &["pods", "-l", "app.kubernetes.io/name=warren"]).await
}

/// Takes Warren off a cluster, if it is there: its operator would change what another one on the same cluster keeps.
pub async fn none(cluster: &Cluster) -> Result<()> {
    // Another's is refused; one whose installation was broken off is in no list.
    is_installed(cluster).await?;
    let uninstall = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait"];
    cluster.helm(&uninstall).await.map(drop)
}

/// Installs or upgrades Warren with the images given, and waits until the operator is ready.
pub async fn warren(cluster: &Cluster, images: &[Image]) -> Result<()> {
    let chart = workspace().join("charts/warren");
    let chart = chart.to_string_lossy();
    let release = ["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE, "--create-namespace"];
    let tags = format!("image.tag={TAG},sidecarImage.tag={TAG}");
    let values = ["--set", &tags, "--wait", "--timeout", "3m"];
    // API-server tests apply the definitions by kubectl, to a cluster that may be the same one.
    let is_third = cluster.helm(&["version", "--short"]).await?.starts_with("v3.");
    // Helm 3, which applies from its own side, has no conflicts.
    let adopt: &[&str] =
        if is_third { &["--take-ownership"] } else { &["--take-ownership", "--force-conflicts"] };
    let installed = is_installed(cluster).await?;
    let result = cluster.helm(&[&release[..], &values, adopt].concat()).await;
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

/// Whether Warren is installed by this module. On a cluster that is not our own it may be somebody else's, which is left alone.
async fn is_installed(cluster: &Cluster) -> Result<bool> {
    let releases = cluster.helm(&["list", "--namespace", NAMESPACE, "--short"]).await?;
    if !releases.lines().any(|name| name == RELEASE) {
        return Ok(false);
    }
    let values = ["get", "values", RELEASE, "--namespace", NAMESPACE, "--output", "json"];
    let values: Value = serde_json::from_str(&cluster.helm(&values).await?)?;
    ensure!(
        values["image"]["tag"] == TAG,
        "this cluster has a Warren of its own (release {RELEASE} in namespace {NAMESPACE}), which would be replaced: use another cluster, or uninstall it first"
    );
    Ok(true)
}
