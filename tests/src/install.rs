//! Warren on a cluster, the one way it is installed anywhere: by its Helm chart.

use anyhow::{Result, bail};

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
    refuse_another(cluster).await?;
    let uninstall = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait"];
    cluster.helm(&uninstall).await.map(drop)
}

/// Installs or upgrades Warren with the images given, and waits until the operator is ready.
pub async fn warren(cluster: &Cluster, images: &[Image]) -> Result<()> {
    refuse_another(cluster).await?;
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
    let installed = cluster.helm(&["list", "--namespace", NAMESPACE, "--short"]).await?.contains(RELEASE);
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

/// Leaves a cluster alone that is not our own and has a Warren of somebody else's, whose definitions and Workers would be taken over.
async fn refuse_another(cluster: &Cluster) -> Result<()> {
    if cluster.site().is_some() {
        return Ok(());
    }
    let operators =
        ["get", "deployments", "--all-namespaces", "-l", "app.kubernetes.io/part-of=warren", "-o"];
    let each = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.spec.template.spec.containers[0].image}{\"\\n\"}{end}";
    let operators = cluster.kubectl(&[&operators[..], &[each]].concat()).await?;
    if let Some(another) = another(&operators) {
        bail!(
            "this cluster has a Warren of its own, Deployment {another}: use another cluster, or uninstall it first"
        );
    }
    Ok(())
}

/// One that is not installed from here, of lines of `namespace/name image`.
fn another(operators: &str) -> Option<&str> {
    let ours = |(name, image): &(&str, &str)| {
        name.starts_with(&format!("{NAMESPACE}/")) && image.ends_with(&format!(":{TAG}"))
    };
    operators.lines().filter_map(|line| line.split_once(' ')).find(|one| !ours(one)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_of_another_namespace_or_image_is_another_s() {
        let ours = "warren-system/warren-operator localhost/warren-operator:dev\n";
        assert_eq!(another(ours), None);
        assert_eq!(another(""), None);
        let elsewhere = "messaging/warren-operator localhost/warren-operator:dev\n";
        assert_eq!(another(&format!("{ours}{elsewhere}")), Some("messaging/warren-operator"));
        let released = "warren-system/warren-operator example.com/warren-operator:0.1.0\n";
        assert_eq!(another(released), Some("warren-system/warren-operator"));
    }
}
