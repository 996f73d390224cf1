//! Ends processes together with this one, however this one ends.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{Identity, record_path};
use crate::site::Site;

/// A small process that waits for this one's end, and then ends what was noted and removes a folder.
#[derive(Debug)]
pub(crate) struct Lifeline {
    watcher: Child,
    // Closed by the kernel when this process is gone.
    open: Option<ChildStdin>,
}

impl Lifeline {
    /// Ties to this process what [`note`] is told of `dir`, and the records of these names.
    pub(crate) fn tie(site: &Site, dir: &Path, records: &[&str]) -> Result<Self> {
        let script =
            "read -r _; for p in $(cat \"$1/pids\"); do kill -s KILL -- \"-$p\"; done; rm -rf -- \"$@\"";
        let records = records.iter().map(|name| record_path(site, name));
        // In a session of its own: Ctrl-C ends the tests, and must not end the watcher first.
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script, "sh"]).arg(dir).args(records);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let mut watcher = command.spawn().context("start a watcher")?;
        Ok(Self { open: watcher.stdin.take(), watcher })
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        drop(self.open.take());
        let _ = self.watcher.wait();
    }
}

/// Tells the lifeline of this folder, if there is one, of a process that leads a group of its own.
pub(crate) fn note(dir: &Path, process: &Identity) -> Result<()> {
    let path = dir.join("pids");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{}", process.pid).with_context(|| format!("write {}", path.display()))
}
