//! Where a checkout keeps its cluster, and which other checkouts have one on this machine.
//!
//! Two folders: the *state* folder (`target/cluster`, or `WARREN_STATE_DIR`) holds what is large or worth keeping, and
//! the *run* folder (`/var/lib/warren-test/<hash>`) holds sockets, records of processes and the kubelet's root. The run
//! folder has a short path, because a unix socket's path may have 108 bytes only, and it is outside the checkout, so
//! that leftovers can be cleared even when the checkout that made them is gone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// Parent of all run folders: what is in it is the list of the checkouts that may have something running.
const REGISTRY: &str = "/var/lib/warren-test";

/// The folders of one checkout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Large and lasting things: binaries, etcd's data, images, logs.
    pub state: PathBuf,
    /// Sockets, process records and the kubelet's root, at a short path.
    pub run: PathBuf,
}

impl Site {
    /// The folders of this checkout, made if they are missing. Fails when the caller is not root.
    pub fn current() -> Result<Self> {
        need_root()?;
        let site = Self::locate()?;
        for dir in [&site.state, &site.logs(), &site.bin(), &site.processes()] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        std::fs::write(site.run.join("state-dir"), site.state.as_os_str().as_encoded_bytes())?;
        Ok(site)
    }

    /// The folders of this checkout, without making or asking for anything.
    pub fn locate() -> Result<Self> {
        let state = match std::env::var_os("WARREN_STATE_DIR") {
            Some(dir) => std::path::absolute(PathBuf::from(dir))?,
            None => workspace().join("target/cluster"),
        };
        Ok(Self { run: Path::new(REGISTRY).join(&digest(state.as_os_str().as_encoded_bytes())[..8]), state })
    }

    /// Other checkouts that have, or had when they crashed, something running on this machine.
    pub fn others(&self) -> Result<Vec<Self>> {
        let Ok(entries) = std::fs::read_dir(REGISTRY) else { return Ok(Vec::new()) };
        let mut others = Vec::new();
        for entry in entries {
            let run = entry?.path();
            if run == self.run {
                continue;
            }
            if let Ok(state) = std::fs::read_to_string(run.join("state-dir")) {
                others.push(Self { state: state.into(), run });
            }
        }
        Ok(others)
    }

    /// Held while a cluster is brought up or down: two at once would use the same bridge. Ends with the value.
    pub async fn lock(&self) -> Result<Flock<File>> {
        std::fs::create_dir_all(REGISTRY)?;
        lock(&Path::new(REGISTRY).join("lock")).await
    }

    /// Says that this process uses the site's cluster, until the value goes or the process ends in any way.
    pub fn use_cluster(&self) -> Result<Flock<File>> {
        let file = File::create(self.in_use()).context("note that the cluster is in use")?;
        let lock = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno);
        lock.context("note that the cluster is in use")
    }

    /// Keeps all from using the site's cluster; none while somebody, this process included, uses it.
    pub(crate) fn claim_cluster(&self) -> Option<Flock<File>> {
        Flock::lock(File::create(self.in_use()).ok()?, FlockArg::LockExclusiveNonblock).ok()
    }

    fn in_use(&self) -> PathBuf {
        self.run.join("in-use")
    }

    /// Programs that were built for the cluster.
    pub fn bin(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// One log file a process.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// One record a process that was started and not yet ended.
    pub fn processes(&self) -> PathBuf {
        self.run.join("processes")
    }
}

/// Fails when the caller is not root.
pub fn need_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the test cluster needs root: it makes network namespaces, mounts and iptables rules");
    }
    Ok(())
}

/// Locks a file against other processes; ends with the value.
pub(crate) async fn lock(path: &Path) -> Result<Flock<File>> {
    let mut file = File::create(path).with_context(|| format!("open {}", path.display()))?;
    loop {
        // Asked for again and again, because waiting in the kernel would stop the thread's other tasks.
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) => file = again,
            Err((_, errno)) => return Err(errno).with_context(|| format!("lock {}", path.display())),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The root of this workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_used_as_long_as_somebody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { state: dir.path().to_path_buf(), run: dir.path().to_path_buf() };
        assert!(site.claim_cluster().is_some());
        let first = site.use_cluster().unwrap();
        let second = site.use_cluster().unwrap();
        drop(first);
        assert!(site.claim_cluster().is_none());
        drop(second);
        assert!(site.claim_cluster().is_some());
    }

    #[test]
    fn the_run_folder_is_short_enough_for_a_socket_however_deep_the_checkout_is() {
        let site = Site::locate().unwrap();
        let socket = site.run.join("containerd/containerd.sock.ttrpc");
        assert!(socket.as_os_str().len() < 100, "{}", socket.display());
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(&digest("")[..16], "e3b0c44298fc1c14");
    }
}
