//! The bridge between this machine and the pods, and what the kernel has to be told for it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::settings::{BRIDGE, Settings};
use crate::command::{run, run_program, run_with_input};
use crate::process::Record;
use crate::site::Site;

/// Chains that the cluster's parts make; no other program may use them while the cluster is up.
const OUR_CHAINS: &[&str] = &["KUBE-", "CNI-", "WARREN-"];

/// Bridged packets pass iptables, without which answers of a Service's pod to its neighbour keep the wrong sender.
const BRIDGE_FILTER: &str = "net/bridge/bridge-nf-call-iptables";

/// Whether kube-proxy must hide the sender of every packet, because the kernel does not show it bridged packets.
pub(crate) fn needs_masquerade() -> bool {
    !Path::new("/proc/sys").join(BRIDGE_FILTER).exists()
}

/// Makes the bridge and the rules, whether or not they are there, and notes in `settings` what the kernel had before.
pub(crate) async fn set_up(settings: &mut Settings) -> Result<()> {
    for name in ["net/ipv4/ip_forward", BRIDGE_FILTER] {
        let path = Path::new("/proc/sys").join(name);
        let Ok(before) = std::fs::read_to_string(&path) else { continue };
        if before.trim() != "1" {
            std::fs::write(&path, "1").with_context(|| format!("write {}", path.display()))?;
            settings.sysctls.push((name.to_owned(), before.trim().to_owned()));
        }
    }
    if !exists() {
        run_program("ip", ["link", "add", BRIDGE, "type", "bridge"]).await?;
    }
    let [_, second, _] = settings.network;
    // A fixed address: otherwise the bridge takes the lowest of its ports' and changes it with each pod.
    let mac = format!("0a:58:0a:{second:02x}:00:01");
    run_program("ip", ["link", "set", BRIDGE, "address", &mac, "up"]).await?;
    let address = format!("{}/24", settings.host_address());
    run_program("ip", ["addr", "replace", &address, "dev", BRIDGE]).await?;
    run_with_input(Command::new("iptables-restore").args(["--noflush", "--wait"]), &our_rules(settings))
        .await?;
    for (table, from, to) in
        [("nat", "POSTROUTING", "WARREN-POSTROUTING"), ("filter", "FORWARD", "WARREN-FORWARD")]
    {
        let iptables = |action: &str| {
            let mut command = Command::new("iptables");
            command.args(["--wait", "-t", table, action, from, "-j", to]);
            command
        };
        if run(&mut iptables("-C")).await.is_err() {
            // At the end, so that kube-proxy's refusals come first.
            run(&mut iptables("-A")).await?;
        }
    }
    Ok(())
}

fn our_rules(settings: &Settings) -> String {
    let pods = settings.pod_network();
    format!(
        "*nat\n:WARREN-POSTROUTING - [0:0]\n-A WARREN-POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE\nCOMMIT\n\
         *filter\n:WARREN-FORWARD - [0:0]\n-A WARREN-FORWARD -i {BRIDGE} -j ACCEPT\n\
         -A WARREN-FORWARD -o {BRIDGE} -j ACCEPT\nCOMMIT\n"
    )
}

/// Whether the bridge is there.
pub(crate) fn exists() -> bool {
    Path::new("/sys/class/net").join(BRIDGE).exists()
}

/// Removes the bridge and all rules of the cluster, and gives the kernel back the settings it had.
pub(crate) async fn tear_down(settings: &Settings) -> Result<()> {
    if exists() {
        run_program("ip", ["link", "del", BRIDGE]).await?;
    }
    for family in ["iptables", "ip6tables"] {
        // A machine without IPv6 has nothing to clear there.
        let Ok(rules) = run_program(&format!("{family}-save"), [""; 0]).await else { continue };
        let script = removal(&rules);
        if !script.is_empty() {
            let mut restore = Command::new(format!("{family}-restore"));
            run_with_input(restore.args(["--noflush", "--wait"]), &script).await?;
        }
    }
    for (name, before) in &settings.sysctls {
        let _ = std::fs::write(Path::new("/proc/sys").join(name), before);
    }
    Ok(())
}

/// From what iptables-save prints, what iptables-restore needs to remove our chains and the jumps into them.
fn removal(rules: &str) -> String {
    let ours = |chain: &str| OUR_CHAINS.iter().any(|prefix| chain.starts_with(prefix));
    let mut script = String::new();
    for table in rules.split('*').skip(1) {
        let mut lines = table.lines();
        let Some(name) = lines.next() else { continue };
        let (mut declare, mut jumps, mut delete) = (String::new(), String::new(), String::new());
        for line in lines {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next())
                && ours(chain)
            {
                // Declaring a chain again empties it, so that none is in use when it is deleted.
                let _ = writeln!(declare, ":{chain} - [0:0]");
                let _ = writeln!(delete, "-X {chain}");
            }
            if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default();
                let target = rule.split_once(" -j ").map(|(_, rest)| rest).unwrap_or_default();
                if !ours(chain) && ours(target) {
                    let _ = writeln!(jumps, "-D {rule}");
                }
            }
        }
        if !declare.is_empty() {
            let _ = write!(script, "*{name}\n{declare}{jumps}{delete}COMMIT\n");
        }
    }
    script
}

/// Refuses a machine on which another Kubernetes node runs in the same network: both would write the same rules.
pub(crate) fn refuse_other_nodes(site: &Site) -> Result<()> {
    let own: Vec<i32> = Record::all(site)?.values().map(|record| record.process.pid).collect();
    let network = std::fs::read_link("/proc/self/ns/net")?;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else {
            continue;
        };
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let same = std::fs::read_link(path.join("ns/net")).is_ok_and(|other| other == network);
        if same
            && matches!(name.trim(), "kubelet" | "kube-proxy" | "k3s-server" | "k3s-agent")
            && !own.contains(&pid)
        {
            bail!(
                "another Kubernetes node runs on this machine (process {pid}, {}); use it by --kubeconfig, or end it",
                name.trim()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated
*filter
:INPUT ACCEPT [1:2]
:KUBE-SERVICES - [0:0]
:USER - [0:0]
-A INPUT -m comment --comment \"kubernetes\" -j KUBE-SERVICES
-A INPUT -j USER
-A KUBE-SERVICES -d 10.96.0.10/32 -j REJECT
COMMIT
*mangle
:INPUT ACCEPT [1:2]
COMMIT
";

    #[test]
    fn only_our_chains_and_the_jumps_into_them_are_removed() {
        let script = removal(SAVED);
        assert_eq!(
            script,
            "*filter\n:KUBE-SERVICES - [0:0]\n-D INPUT -m comment --comment \"kubernetes\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\nCOMMIT\n"
        );
    }

    #[test]
    fn where_nothing_is_ours_nothing_is_done() {
        assert_eq!(removal("*nat\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n"), "");
    }
}
