//! The text that the parts of the cluster are started with: arguments and configuration files, as values.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};

use super::certificates::NODE;
use super::settings::{BRIDGE, Settings};
use crate::images::PAUSE;
use crate::site::Site;

/// The Services' network.
pub(crate) const SERVICE_NETWORK: &str = "10.96.0.0/16";

/// Paths that several parts share.
pub(crate) struct Paths {
    pub(crate) pki: std::path::PathBuf,
    pub(crate) config: std::path::PathBuf,
    pub(crate) containerd_root: std::path::PathBuf,
    pub(crate) containerd_state: std::path::PathBuf,
    pub(crate) containerd_socket: std::path::PathBuf,
    pub(crate) kubelet_root: std::path::PathBuf,
    pub(crate) etcd: std::path::PathBuf,
}

impl Paths {
    pub(crate) fn of(site: &Site) -> Self {
        Self {
            pki: site.state.join("pki"),
            config: site.state.join("config"),
            containerd_root: site.state.join("containerd"),
            containerd_state: site.run.join("containerd"),
            containerd_socket: site.run.join("containerd.sock"),
            kubelet_root: site.run.join("kubelet"),
            etcd: site.state.join("etcd"),
        }
    }
}

fn flags(list: &[(&str, String)]) -> Vec<String> {
    list.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn file(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

pub(crate) fn etcd(paths: &Paths, settings: &Settings) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", settings.ports.etcd);
    let peer = format!("http://127.0.0.1:{}", settings.ports.etcd_peer);
    flags(&[
        ("name", "warren".into()),
        ("data-dir", paths.etcd.display().to_string()),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer.clone()),
        ("initial-cluster", format!("warren={peer}")),
        ("log-level", "warn".into()),
        // A test cluster need not survive a loss of power, and a shared disk is slow to sync.
        ("unsafe-no-fsync", "true".into()),
        ("auto-compaction-mode", "revision".into()),
        ("auto-compaction-retention", "10000".into()),
        ("quota-backend-bytes", "4294967296".into()),
    ])
}

pub(crate) fn apiserver(paths: &Paths, settings: &Settings) -> Vec<String> {
    let pki = &paths.pki;
    let host = settings.host_address();
    flags(&[
        ("etcd-servers", format!("http://127.0.0.1:{}", settings.ports.etcd)),
        ("secure-port", settings.ports.apiserver.to_string()),
        ("advertise-address", host.to_string()),
        ("endpoint-reconciler-type", "lease".into()),
        ("service-cluster-ip-range", SERVICE_NETWORK.into()),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("allow-privileged", "true".into()),
        ("tls-cert-file", file(pki, "apiserver.crt")),
        ("tls-private-key-file", file(pki, "apiserver.key")),
        ("client-ca-file", file(pki, "ca.crt")),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
        ("service-account-key-file", file(pki, "service-accounts.pub")),
        ("service-account-signing-key-file", file(pki, "service-accounts.key")),
        ("kubelet-certificate-authority", file(pki, "ca.crt")),
        ("kubelet-client-certificate", file(pki, "apiserver-to-kubelet.crt")),
        ("kubelet-client-key", file(pki, "apiserver-to-kubelet.key")),
        // Otherwise logs and exec look up the node's name, which no DNS knows.
        ("kubelet-preferred-address-types", "InternalIP".into()),
        // For APIs that a pod serves, such as external metrics.
        ("requestheader-client-ca-file", file(pki, "ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client".into()),
        ("requestheader-username-headers", "X-Remote-User".into()),
        ("requestheader-group-headers", "X-Remote-Group".into()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
        ("proxy-client-cert-file", file(pki, "front-proxy.crt")),
        ("proxy-client-key-file", file(pki, "front-proxy.key")),
        ("enable-aggregator-routing", "true".into()),
        ("event-ttl", "1h".into()),
        ("shutdown-delay-duration", "0s".into()),
        ("profiling", "false".into()),
    ])
}

pub(crate) fn controller_manager(paths: &Paths, settings: &Settings) -> Vec<String> {
    flags(&[
        ("kubeconfig", file(&paths.pki, "kube-controller-manager.kubeconfig")),
        ("bind-address", "127.0.0.1".into()),
        ("secure-port", settings.ports.controller_manager.to_string()),
        ("cert-dir", file(&paths.config, "kube-controller-manager")),
        ("root-ca-file", file(&paths.pki, "ca.crt")),
        ("service-account-private-key-file", file(&paths.pki, "service-accounts.key")),
        ("use-service-account-credentials", "true".into()),
        ("leader-elect", "false".into()),
        // Twenty requests a second, the default, keep thousands of Deployments busy for minutes.
        ("kube-api-qps", "100".into()),
        ("kube-api-burst", "200".into()),
        ("horizontal-pod-autoscaler-sync-period", "5s".into()),
        ("profiling", "false".into()),
    ])
}

pub(crate) fn scheduler(paths: &Paths, settings: &Settings) -> Vec<String> {
    flags(&[
        ("kubeconfig", file(&paths.pki, "kube-scheduler.kubeconfig")),
        ("bind-address", "127.0.0.1".into()),
        ("secure-port", settings.ports.scheduler.to_string()),
        ("cert-dir", file(&paths.config, "kube-scheduler")),
        ("leader-elect", "false".into()),
        ("profiling", "false".into()),
    ])
}

pub(crate) fn kube_proxy(paths: &Paths, settings: &Settings, masquerade_all: bool) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": file(&paths.pki, "kube-proxy.kubeconfig")},
        "hostnameOverride": NODE,
        "clusterCIDR": settings.pod_network(),
        "healthzBindAddress": format!("127.0.0.1:{}", settings.ports.proxy_health),
        "metricsBindAddress": format!("127.0.0.1:{}", settings.ports.proxy_metrics),
        "iptables": {"masqueradeAll": masquerade_all, "minSyncPeriod": "100ms", "syncPeriod": "30s"},
        // The machine's limits stay as they are: raising them needs rights that not every machine gives.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nodePortAddresses": ["127.0.0.0/8", settings.pod_network()],
    })
}

pub(crate) fn kubelet_flags(paths: &Paths, settings: &Settings) -> Vec<String> {
    flags(&[
        ("config", file(&paths.config, "kubelet.json")),
        ("kubeconfig", file(&paths.pki, "kubelet.kubeconfig")),
        ("root-dir", paths.kubelet_root.display().to_string()),
        ("hostname-override", NODE.into()),
        ("node-ip", settings.host_address().to_string()),
    ])
}

pub(crate) fn kubelet(paths: &Paths, settings: &Settings, cgroup_root: &str, pod_logs: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "port": settings.ports.kubelet,
        "healthzPort": settings.ports.kubelet_health,
        "tlsCertFile": file(&paths.pki, "kubelet-server.crt"),
        "tlsPrivateKeyFile": file(&paths.pki, "kubelet-server.key"),
        "authentication": {"x509": {"clientCAFile": file(&paths.pki, "ca.crt")}, "anonymous": {"enabled": false}},
        "clusterDNS": [settings.host_address().to_string()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", paths.containerd_socket.display()),
        "podLogsDir": pod_logs,
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
        "maxPods": 250,
        "serializeImagePulls": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            "nodefs.inodesFree": "1%"},
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "volumePluginDir": paths.kubelet_root.join("plugins"),
    })
}

/// The way in which containerd stacks the layers of an image. The kernel stacks none on an overlay, such as a container's own root is:
/// there they are copied.
pub(crate) fn snapshotter(state: &Path) -> Result<&'static str> {
    let kind = statfs(state).with_context(|| format!("look at the file system of {}", state.display()))?;
    Ok(if kind.filesystem_type() == OVERLAYFS_SUPER_MAGIC { "native" } else { "overlayfs" })
}

pub(crate) fn containerd(paths: &Paths, snapshotter: &str) -> String {
    let Paths { containerd_root, containerd_state, containerd_socket, config, .. } = paths;
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{socket}"
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Raising a process' importance needs a right that not every machine gives.
  restrict_oom_score_adj = true
  # So that "down" finds them.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
        root = containerd_root.display(),
        state = containerd_state.display(),
        socket = containerd_socket.display(),
        cni = config.join("cni").display(),
    )
}

pub(crate) fn cni(settings: &Settings, ipam_dir: &Path) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "warren",
        "plugins": [
            {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": ipam_dir,
                    "ranges": [[{"subnet": settings.pod_network(), "gateway": settings.host_address().to_string()}]],
                    "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

pub(crate) fn corefile(paths: &Paths, settings: &Settings, upstream: bool) -> String {
    let host = settings.host_address();
    let forward = if upstream { "  forward . /etc/resolv.conf\n" } else { "" };
    format!(
        r"cluster.local:53 in-addr.arpa:53 {{
  bind {host}
  errors
  ready 127.0.0.1:{ready}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} warren-test
    pods insecure
    fallthrough in-addr.arpa
    ttl 5
  }}
{forward}}}
.:53 {{
  bind {host}
  errors
{forward}  cache 30
}}
",
        ready = settings.ports.dns_ready,
        kubeconfig = file(&paths.pki, "dns.kubeconfig"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::settings::Ports;
    use super::*;

    fn fixture() -> (Paths, Settings) {
        let site = Site { state: "/state".into(), run: "/run/w".into() };
        let ports = Ports {
            etcd: 1,
            etcd_peer: 2,
            apiserver: 3,
            controller_manager: 4,
            scheduler: 5,
            kubelet: 6,
            kubelet_health: 7,
            proxy_health: 8,
            proxy_metrics: 9,
            dns_ready: 10,
        };
        (
            Paths::of(&site),
            Settings { made_by: "x".into(), network: [10, 245, 0], ports, sysctls: Vec::new() },
        )
    }

    #[test]
    fn pods_find_dns_and_their_gateway_at_the_bridge() {
        let (paths, settings) = fixture();
        let kubelet = kubelet(&paths, &settings, "/", Path::new("/logs"));
        assert_eq!(kubelet["clusterDNS"][0], "10.245.0.1");
        let cni = cni(&settings, Path::new("/ipam"));
        assert_eq!(cni["plugins"][0]["ipam"]["ranges"][0][0]["gateway"], "10.245.0.1");
        assert!(corefile(&paths, &settings, true).contains("bind 10.245.0.1"));
    }

    #[test]
    fn dns_forwards_only_when_the_machine_has_a_name_server() {
        let (paths, settings) = fixture();
        assert!(corefile(&paths, &settings, true).contains("forward ."));
        assert!(!corefile(&paths, &settings, false).contains("forward ."));
    }

    #[test]
    fn containerd_keeps_everything_in_our_own_folders() {
        let (paths, _) = fixture();
        let config = containerd(&paths, "overlayfs");
        for line in
            ["root = \"/state/containerd\"", "state = \"/run/w/containerd\"", "/run/w/containerd.sock"]
        {
            assert!(config.contains(line), "{line} is not in {config}");
        }
    }
}
