//! Certificates and kubeconfigs for the parts of the cluster.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::settings::Settings;
use crate::authority::{Authority, key_pair};

/// First address of the Services' network, at which pods find the API server.
pub(crate) const API_SERVICE: &str = "10.96.0.1";

/// The node's name.
pub(crate) const NODE: &str = "warren";

/// Who a client certificate speaks for: file name, user, group.
const CLIENTS: &[(&str, &str, &str)] = &[
    ("admin", "warren-admin", "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", "warren"),
    ("kube-scheduler", "system:kube-scheduler", "warren"),
    ("kube-proxy", "system:kube-proxy", "warren"),
    ("kubelet", "system:node:warren", "system:nodes"),
    ("apiserver-to-kubelet", "warren-apiserver", "system:masters"),
    ("dns", "warren-dns", "system:masters"),
    ("front-proxy", "front-proxy-client", "warren"),
];

/// Names by which the API server is asked for.
const NAMES: &[&str] = &[
    "localhost",
    NODE,
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
    API_SERVICE,
];

/// Writes all keys, certificates and kubeconfigs into `dir`, unless they are there.
pub(crate) fn write_all(dir: &Path, settings: &Settings) -> Result<()> {
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let authority = Authority::new("warren-test")?;
    std::fs::write(dir.join("ca.crt"), authority.certificate())?;
    let (private, public) = key_pair()?;
    std::fs::write(dir.join("service-accounts.key"), private)?;
    std::fs::write(dir.join("service-accounts.pub"), public)?;
    let mut addresses: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    addresses.push(settings.host_address().to_string());
    let issue = |file: &str, user: &str, group: &str, addresses: &[String]| -> Result<()> {
        let issued = authority.issue(user, group, addresses)?;
        std::fs::write(dir.join(format!("{file}.crt")), issued.certificate)?;
        Ok(std::fs::write(dir.join(format!("{file}.key")), issued.key)?)
    };
    for server in ["apiserver", "kubelet-server"] {
        issue(server, server, "warren", &addresses)?;
    }
    for (file, user, group) in CLIENTS {
        issue(file, user, group, &[])?;
        std::fs::write(
            dir.join(format!("{file}.kubeconfig")),
            kubeconfig(dir, file, settings.ports.apiserver),
        )?;
    }
    Ok(std::fs::write(complete, "")?)
}

/// A kubeconfig in JSON, which is YAML too. It names files, so that it holds no key itself.
fn kubeconfig(dir: &Path, user: &str, port: u16) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "warren-test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": dir.join("ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": dir.join(format!("{user}.crt")),
            "client-key": dir.join(format!("{user}.key")),
        }}],
        "contexts": [{"name": "warren-test", "context": {"cluster": "warren-test", "user": user}}],
        "current-context": "warren-test",
    })
    .to_string()
}
