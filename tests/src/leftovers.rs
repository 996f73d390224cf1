//! Ends and removes everything that a checkout has on this machine, in whatever state a crash left it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::cgroups;
use crate::cluster::{Settings, network};
use crate::process::{Identity, Record};
use crate::site::Site;

/// Everything of the cluster goes with it, so nobody needs long to say goodbye.
const GRACE: Duration = Duration::from_millis(1500);

/// What is kept in the state folder: the rest is made anew with each cluster.
const KEPT: &[&str] = &["bin", "logs", "cache"];

/// Ends all processes of a site and removes its mounts, network, cgroups and files. Caches and logs are kept.
pub async fn clear(site: &Site) -> Result<()> {
    let records = Record::all(site)?;
    // The kubelet first: it would start again what is ended after it.
    if let Some(kubelet) = records.get("kubelet") {
        kubelet.end(site, Duration::ZERO).await?;
    }
    let ends = records.values().map(|record| record.end(site, GRACE));
    futures::future::try_join_all(ends).await?;
    end_containers(site).await?;
    unmount(&[&site.run, &site.state])?;
    if let Some(settings) = Settings::load_any(site) {
        network::tear_down(&settings).await?;
    }
    cgroups::remove(site);
    remove_files(site)
}

/// Ends the brokers and other processes of a site that belong to a process which is gone, and removes their data.
pub async fn reap(site: &Site) -> Result<()> {
    for record in Record::all(site)?.values().filter(|record| record.is_orphan()) {
        record.process.signal_group(Signal::SIGKILL);
        record.end(site, Duration::ZERO).await?;
        remove(&site.run.join(&record.name))?;
        remove(&site.run.join("brokers").join(&record.name))?;
    }
    Ok(())
}

/// Ends containers, and the shims that would otherwise live on without their containerd.
async fn end_containers(site: &Site) -> Result<()> {
    for _ in 0..50 {
        let found = container_processes(site)?;
        if found.is_empty() {
            return Ok(());
        }
        for process in &found {
            process.signal(Signal::SIGKILL);
        }
        for process in &found {
            process.gone_within(Duration::from_secs(2)).await;
        }
    }
    bail!("containers of {} do not end", site.state.display())
}

fn container_processes(site: &Site) -> Result<Vec<Identity>> {
    let socket = site.run.join("containerd.sock").display().to_string();
    let group = cgroups::name(site);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let Some(pid) = dir.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else { continue };
        let command = fs::read(dir.join("cmdline")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let is_shim = command.is_ok_and(|line| line.contains("containerd-shim") && line.contains(&socket));
        let in_container =
            fs::read_to_string(dir.join("cgroup")).is_ok_and(|groups| is_below(&groups, &group));
        if (is_shim || in_container)
            && let Some(process) = Identity::of(pid)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Whether a process with these control groups is in one below `group`, as all are that the kubelet has started.
fn is_below(groups: &str, group: &str) -> bool {
    groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.contains(&format!("{group}/")))
}

/// Removes all mounts under the folders.
pub(crate) fn unmount(roots: &[&Path]) -> Result<()> {
    for _ in 0..5 {
        let mounts = mounts_under(&fs::read_to_string("/proc/self/mountinfo")?, roots);
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
    bail!(
        "mounts under {} can't be removed",
        roots.iter().map(|root| root.display().to_string()).collect::<String>()
    )
}

/// Mount points under any of the folders, in the order in which they were made.
fn mounts_under(mountinfo: &str, roots: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| roots.iter().any(|root| point.starts_with(root))).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let (tab, newline) = ("\t", "\n");
    text.replace("\\040", " ").replace("\\011", tab).replace("\\012", newline).replace("\\134", "\\").into()
}

fn remove_files(site: &Site) -> Result<()> {
    let logs = site.logs();
    for entry in fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&logs)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for entry in fs::read_dir(&site.state).into_iter().flatten().flatten() {
        if !KEPT.iter().any(|kept| entry.file_name() == *kept) {
            remove(&entry.path())?;
        }
    }
    remove(&site.run)
}

/// Removes a file or a folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let result =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw - ext4 /dev/vda rw
30 22 0:30 / /run/w/containerd/rootfs rw - overlay overlay rw,lowerdir=/state/containerd/1/fs:/state/containerd/2/fs
31 22 0:31 / /run/w/a\\040b rw - tmpfs tmpfs rw
32 22 0:32 / /run/ww rw - tmpfs tmpfs rw
";

    #[test]
    fn mounts_are_found_by_whole_names_of_folders() {
        let found = mounts_under(MOUNTS, &[Path::new("/run/w")]);
        assert_eq!(found, [PathBuf::from("/run/w/containerd/rootfs"), PathBuf::from("/run/w/a b")]);
    }

    #[test]
    fn a_process_is_in_our_container_only_when_its_control_group_is_below_ours() {
        let first = "12:cpuset:/warren-test-1a/kubepods/pod1/c1\n0::/\n";
        assert!(is_below(first, "/warren-test-1a"));
        assert!(is_below("0::/docker/7/warren-test-1a/kubepods/pod1/c1\n", "/warren-test-1a"));
        assert!(!is_below(first, "/warren-test-1"));
        assert!(!is_below("0::/user.slice\n", "/warren-test-1a"));
    }
}
