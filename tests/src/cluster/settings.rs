//! What is chosen once for a cluster and stays: ports and addresses that are free on this machine.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::run_program;
use crate::site::Site;
use crate::{golang, ports};

/// Raised when a change of this code needs a new cluster.
const GENERATION: u32 = 1;

/// The bridge between this machine and the pods.
pub(crate) const BRIDGE: &str = "warren0";

/// Choices that the parts of a cluster share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What the cluster was made by; another value means that it must be made anew.
    pub made_by: String,
    /// First three octets of the pods' network, which has 24 bits.
    pub network: [u8; 3],
    /// Ports on this machine.
    pub ports: Ports,
    /// Kernel settings as they were before.
    pub sysctls: Vec<(String, String)>,
}

/// Ports on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// etcd for the API server.
    pub etcd: u16,
    /// etcd for its peers, of which there are none.
    pub etcd_peer: u16,
    /// The API server.
    pub apiserver: u16,
    /// The controller manager's own.
    pub controller_manager: u16,
    /// The scheduler's own.
    pub scheduler: u16,
    /// The kubelet, for logs and exec.
    pub kubelet: u16,
    /// The kubelet's health.
    pub kubelet_health: u16,
    /// kube-proxy's health.
    pub proxy_health: u16,
    /// kube-proxy's metrics.
    pub proxy_metrics: u16,
    /// CoreDNS's readiness.
    pub dns_ready: u16,
}

impl Settings {
    /// Chooses what is free now.
    pub(crate) async fn choose(site: &Site) -> Result<Self> {
        let ports = Ports {
            etcd: ports::prefer(22_379)?,
            etcd_peer: ports::prefer(22_380)?,
            apiserver: ports::prefer(26_443)?,
            controller_manager: ports::prefer(20_257)?,
            scheduler: ports::prefer(20_259)?,
            kubelet: ports::prefer(20_250)?,
            kubelet_health: ports::prefer(20_248)?,
            proxy_health: ports::prefer(20_256)?,
            proxy_metrics: ports::prefer(20_249)?,
            dns_ready: ports::prefer(28_181)?,
        };
        let addresses = run_program("ip", ["-4", "-o", "addr", "show"]).await?;
        Ok(Self { made_by: made_by(site), network: free_network(&addresses)?, ports, sysctls: Vec::new() })
    }

    /// The settings of the cluster that was brought up here, if it was made by this code.
    pub(crate) fn load(site: &Site) -> Option<Self> {
        let text = std::fs::read_to_string(path(site)).ok()?;
        serde_json::from_str::<Self>(&text).ok().filter(|settings| settings.made_by == made_by(site))
    }

    pub(crate) fn save(&self, site: &Site) -> Result<()> {
        std::fs::write(path(site), serde_json::to_vec_pretty(self)?).context("write the cluster's settings")
    }

    /// Whether a cluster was brought up here, by whatever code.
    pub(crate) fn exists(site: &Site) -> bool {
        path(site).exists()
    }

    /// The settings of a cluster that may have been made by other code, for taking it down.
    pub(crate) fn load_any(site: &Site) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path(site)).ok()?).ok()
    }

    /// This machine, as the pods reach it.
    pub fn host_address(&self) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The pods' network.
    pub fn pod_network(&self) -> String {
        let [a, b, c] = self.network;
        format!("{a}.{b}.{c}.0/24")
    }
}

fn made_by(site: &Site) -> String {
    format!("{GENERATION}-{}", golang::fingerprint(site))
}

fn path(site: &Site) -> PathBuf {
    site.run.join("cluster.json")
}

/// A network that no other interface of this machine is in. `addresses` is what `ip -4 -o addr show` prints.
fn free_network(addresses: &str) -> Result<[u8; 3]> {
    let taken: Vec<(Ipv4Addr, u32)> = addresses
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (name, cidr) = (words.next()?, words.nth(1)?);
            let (address, bits) = cidr.split_once('/')?;
            (name != BRIDGE).then_some((address.parse().ok()?, bits.parse().ok()?))
        })
        .collect();
    let overlaps = |network: [u8; 3]| {
        let [a, b, c] = network;
        taken.iter().any(|(address, bits)| {
            let mask = u32::MAX.checked_shl(32 - (*bits).clamp(1, 24)).unwrap_or(0);
            u32::from(*address) & mask == u32::from(Ipv4Addr::new(a, b, c, 0)) & mask
        })
    };
    let Some(network) = (244..=254).map(|second| [10, second, 0]).find(|network| !overlaps(*network)) else {
        bail!("no network from 10.244.0.0/24 to 10.254.0.0/24 is free");
    };
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_in_which_another_interface_lives_is_not_taken() {
        assert_eq!(free_network("1: lo    inet 127.0.0.1/8 scope host lo").unwrap(), [10, 244, 0]);
        assert_eq!(free_network("3: cni0    inet 10.244.0.1/24 scope global cni0").unwrap(), [10, 245, 0]);
        assert_eq!(free_network("3: net    inet 10.240.0.9/12 scope global net").ok(), None);
    }

    #[test]
    fn our_own_bridge_does_not_take_its_network() {
        assert_eq!(
            free_network("3: warren0    inet 10.244.0.1/24 scope global warren0").unwrap(),
            [10, 244, 0]
        );
    }
}
