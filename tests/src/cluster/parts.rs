//! The cluster's parts in the order in which they are started. A part that runs is left as it is, so that bringing up
//! a cluster of which something has died starts only what is missing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;

use super::certificates::{self, API_SERVICE, NODE};
use super::config::{self, Paths};
use super::network;
use super::settings::Settings;
use crate::command::run;
use crate::process::{Daemon, Record};
use crate::site::Site;
use crate::{cgroups, images};

/// A shared machine may be busy compiling.
const PATIENCE: Duration = Duration::from_secs(120);

/// What all parts need to know.
pub(crate) struct Parts<'a> {
    pub(crate) site: &'a Site,
    pub(crate) settings: &'a Settings,
    pub(crate) paths: Paths,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(site: &'a Site, settings: &'a Settings) -> Self {
        Self { site, settings, paths: Paths::of(site) }
    }

    /// Writes certificates and configuration files.
    pub(crate) fn write_files(&self) -> Result<()> {
        let Paths { pki, config, .. } = &self.paths;
        certificates::write_all(pki, self.settings)?;
        std::fs::create_dir_all(config.join("cni"))?;
        cgroups::make(self.site)?;
        let cgroup = cgroups::name(self.site);
        let kubelet = config::kubelet(&self.paths, self.settings, &cgroup, &self.site.logs().join("pods"));
        let proxy = config::kube_proxy(&self.paths, self.settings, network::needs_masquerade());
        let write = |name: &str, text: String| {
            let path = config.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("kubelet.json", kubelet.to_string())?;
        write("kube-proxy.json", proxy.to_string())?;
        let snapshotter = config::snapshotter(&self.site.state)?;
        write("containerd.toml", config::containerd(&self.paths, snapshotter))?;
        write("cni/10-warren.conflist", config::cni(self.settings, &self.site.run.join("ipam")).to_string())?;
        let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let upstream = resolver.lines().any(|line| line.starts_with("nameserver"));
        write("Corefile", config::corefile(&self.paths, self.settings, upstream))
    }

    /// etcd, then the API server.
    pub(crate) async fn api(&self) -> Result<()> {
        let etcd = SocketAddr::from(([127, 0, 0, 1], self.settings.ports.etcd));
        let args = config::etcd(&self.paths, self.settings);
        self.ensure(self.daemon("etcd").args(args), "etcd", || accepts(etcd)).await?;
        let args = config::apiserver(&self.paths, self.settings);
        self.ensure(self.daemon("kube-apiserver").args(args), "kube-apiserver", || self.answers("/readyz"))
            .await
    }

    /// The container runtime, with the image that every pod needs.
    pub(crate) async fn runtime(&self) -> Result<()> {
        let socket = &self.paths.containerd_socket;
        let config = self.paths.config.join("containerd.toml");
        let daemon =
            Daemon::new("containerd", "/usr/bin/containerd").args(["--config".as_ref(), config.as_os_str()]);
        self.ensure(daemon, "containerd", || async { UnixStream::connect(socket).await.is_ok() }).await?;
        images::pause(self.site).await
    }

    /// The controllers, the scheduler, the kubelet, Services and DNS: all at once.
    pub(crate) async fn workers(&self) -> Result<()> {
        let ports = &self.settings.ports;
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let proxy_config = format!("--config={}", self.paths.config.join("kube-proxy.json").display());
        let corefile = self.paths.config.join("Corefile");
        let dns =
            Daemon::new("dns", self.site.bin().join("dns")).args(["-conf".as_ref(), corefile.as_os_str()]);
        tokio::try_join!(
            self.ensure(
                self.daemon("kube-controller-manager")
                    .args(config::controller_manager(&self.paths, self.settings)),
                "kube-controller-manager",
                || accepts(local(ports.controller_manager))
            ),
            self.ensure(
                self.daemon("kube-scheduler").args(config::scheduler(&self.paths, self.settings)),
                "kube-scheduler",
                || accepts(local(ports.scheduler))
            ),
            self.ensure(
                self.daemon("kubelet").args(config::kubelet_flags(&self.paths, self.settings)),
                "kubelet",
                || accepts(local(ports.kubelet_health))
            ),
            self.ensure(self.daemon("kube-proxy").args([proxy_config]), "kube-proxy", || accepts(local(
                ports.proxy_health
            ))),
            self.ensure(dns, "dns", || accepts(local(ports.dns_ready))),
        )?;
        Ok(())
    }

    /// Waits until a pod could run: the node is ready, Services are reached, and the default account is there.
    pub(crate) async fn ready(&self) -> Result<()> {
        // Where pods reach the API server, which shows that Services work.
        let service = SocketAddr::new(API_SERVICE.parse()?, 443);
        crate::wait::eventually(PATIENCE, "the node and its Services are ready", || async {
            let node = self.kubectl(&["get", "node", NODE, "-o", "json"]).await?;
            anyhow::ensure!(is_ready(&serde_json::from_str(&node)?), "the node is not ready");
            self.kubectl(&["get", "serviceaccount", "default", "-n", "default"]).await?;
            anyhow::ensure!(accepts(service).await, "{service} can't be reached");
            Ok(())
        })
        .await
    }

    /// Whether every part runs and the API server answers.
    pub(crate) async fn are_healthy(&self) -> Result<bool> {
        let records = Record::all(self.site)?;
        let all = ["etcd", "kube-apiserver", "containerd", "kube-controller-manager", "kube-scheduler"];
        let all = all.into_iter().chain(["kubelet", "kube-proxy", "dns"]);
        let alive = |name: &str| records.get(name).is_some_and(|record| record.process.is_alive());
        Ok(all.into_iter().all(alive) && network::exists() && self.answers("/readyz").await)
    }

    /// Starts a daemon and waits until it is ready, unless it runs.
    async fn ensure<F>(&self, daemon: Daemon, name: &str, ready: impl FnMut() -> F) -> Result<()>
    where
        F: Future<Output = bool>,
    {
        if Record::running(self.site, name)?.is_none() {
            daemon.start(self.site).await?.until_ready(PATIENCE, ready).await?;
        }
        Ok(())
    }

    fn daemon(&self, name: &str) -> Daemon {
        Daemon::new(name, self.site.bin().join(name))
    }

    async fn answers(&self, path: &str) -> bool {
        self.kubectl(&["get", "--raw", path, "--request-timeout=5s"]).await.is_ok()
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.site.bin().join("kubectl"));
        run(command.arg("--kubeconfig").arg(self.paths.pki.join("admin.kubeconfig")).args(args)).await
    }
}

async fn accepts(address: SocketAddr) -> bool {
    let connect = TcpStream::connect(address);
    tokio::time::timeout(Duration::from_secs(1), connect).await.is_ok_and(|result| result.is_ok())
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|item| item["type"] == "Ready" && item["status"] == "True"))
}

/// Copies the administrator's kubeconfig to where users look for it.
pub(crate) fn publish_kubeconfig(paths: &Paths, to: &Path) -> Result<()> {
    std::fs::copy(paths.pki.join("admin.kubeconfig"), to)
        .with_context(|| format!("write {}", to.display()))?;
    Ok(())
}
