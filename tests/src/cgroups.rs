//! The control group under which the kubelet of a site puts its pods, in both versions of control groups.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::site::Site;

/// Where the processes of a container's own root go: a group of version 2 that has groups with limits below it has no processes.
const CONTAINER: &str = "warren-container";

/// The name of a site's group, from the root of a hierarchy.
pub(crate) fn name(site: &Site) -> String {
    let name = site.run.file_name().unwrap_or_default().to_string_lossy();
    format!("/warren-test-{name}")
}

/// Makes the group of a site in each hierarchy, with all that the kubelet may limit.
pub(crate) fn make(site: &Site) -> Result<()> {
    for root in roots() {
        let dir = root.join(name(site).trim_start_matches('/'));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        if is_second(&root) {
            delegate(&root)?;
            continue;
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // In version 1 a group of the cpuset hierarchy has no processor until it is given some.
            if let Ok(all) = fs::read_to_string(root.join(file)) {
                let own = dir.join(file);
                fs::write(&own, all.trim()).with_context(|| format!("write {}", own.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes what is left of it.
pub(crate) fn remove(site: &Site) {
    for root in roots() {
        remove_group(&root.join(name(site).trim_start_matches('/')));
    }
}

fn remove_group(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // A group with a process in it stays; the kernel frees one whose last process has just ended a little later.
    let _ = fs::remove_dir(dir);
}

/// One folder in version 2; one a hierarchy in version 1.
fn roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if is_second(root) {
        return vec![root.to_path_buf()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink())
        .collect()
}

/// Whether this is a group of version 2.
fn is_second(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// Hands all controllers of a root of version 2 down to its groups, which has to be asked for there: the kubelet refuses a group
/// that lacks one, and systemd does not hand down each. See <https://docs.kernel.org/admin-guide/cgroup-v2.html#enabling-and-disabling>.
fn delegate(root: &Path) -> Result<()> {
    let listed = |file: &str| {
        let path = root.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let (offered, given) = (listed("cgroup.controllers")?, listed("cgroup.subtree_control")?);
    for controller in
        offered.split_whitespace().filter(|one| !given.split_whitespace().any(|had| had == *one))
    {
        let hand_down = || fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        let mut handed = hand_down();
        // In a container the root is a group as any other, in which its processes are.
        if handed.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::EBUSY as i32)) {
            make_room(root)?;
            handed = hand_down();
        }
        handed.with_context(|| format!("hand {controller} down from {}", root.display()))?;
    }
    Ok(())
}

/// Moves the processes of a group into one below it.
fn make_room(root: &Path) -> Result<()> {
    let into = root.join(CONTAINER);
    fs::create_dir_all(&into).with_context(|| format!("make {}", into.display()))?;
    for process in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        // One that has ended meanwhile is in nobody's way.
        match fs::write(into.join("cgroup.procs"), process) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            moved => moved.with_context(|| format!("move process {process} into {}", into.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_root_does_not_hand_down_yet_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let asked = root.path().join("cgroup.subtree_control");
        fs::write(root.path().join("cgroup.controllers"), "cpu hugetlb\n").unwrap();
        fs::write(&asked, "cpu\n").unwrap();
        delegate(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&asked).unwrap(), "+hugetlb");
    }

    #[test]
    fn only_a_group_of_version_2_hands_controllers_down() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_second(root.path()));
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert!(is_second(root.path()));
    }
}
