//! Processes that outlive the command that started them, and that only their records can end.
//!
//! Each one has a session of its own, writes to a log file, and is recorded by process id *and* start time, so that a
//! number that the kernel has given to another process since then is never signalled.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use crate::command::tail;
use crate::site::Site;

/// How often a process that was told to end is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since the machine's start: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// The machine's start that the time counts from.
    pub boot: String,
}

impl Identity {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, threads, start_time) = parse_stat(&stat)?;
        // A zombie is dead: only its parent has not asked yet. While one of its threads waits for a disk, its files are open still.
        let is_dead = state == 'X' || state == 'Z' && threads <= 1;
        (!is_dead).then(|| Self { pid, start_time, boot: boot() })
    }

    /// This very process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal to the process, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Sends a signal to the process and to all of its session's first group, if it still runs.
    pub fn signal_group(&self, signal: Signal) {
        if self.is_alive() {
            let _ = killpg(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until the process is gone; false when `timeout` has passed first.
    pub async fn gone_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// Ends the process and its group: SIGTERM, and SIGKILL when `grace` has passed.
    pub async fn end(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM);
        if !self.gone_within(grace).await {
            self.signal_group(Signal::SIGKILL);
            if !self.gone_within(Duration::from_secs(10)).await {
                bail!("process {} does not end", self.pid);
            }
        }
        Ok(())
    }
}

/// What is written down about a process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the record and of the log file.
    pub name: String,
    /// The process.
    pub process: Identity,
    /// The process whose end makes this one useless; none for the cluster's own parts.
    pub owner: Option<Identity>,
}

impl Record {
    /// All records of a site, by name.
    pub fn all(site: &Site) -> Result<BTreeMap<String, Self>> {
        let Ok(entries) = std::fs::read_dir(site.processes()) else { return Ok(BTreeMap::new()) };
        let mut records = BTreeMap::new();
        for entry in entries {
            // A record that was being written when the machine stopped has no process.
            if let Ok(text) = std::fs::read_to_string(entry?.path())
                && let Ok(record) = serde_json::from_str::<Self>(&text)
            {
                records.insert(record.name.clone(), record);
            }
        }
        Ok(records)
    }

    /// The record of that name, if its process runs.
    pub fn running(site: &Site, name: &str) -> Result<Option<Self>> {
        Ok(Self::all(site)?.remove(name).filter(|record| record.process.is_alive()))
    }

    /// Whether the process that needed this one is gone.
    pub fn is_orphan(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is_alive())
    }

    /// Ends the process and forgets it.
    pub async fn end(&self, site: &Site, grace: Duration) -> Result<()> {
        self.process.end(grace).await.with_context(|| format!("end {}", self.name))?;
        let _ = std::fs::remove_file(record_path(site, &self.name));
        Ok(())
    }

    fn write(&self, site: &Site) -> Result<()> {
        let path = record_path(site, &self.name);
        let partial = path.with_extension("partial");
        std::fs::create_dir_all(site.processes())?;
        std::fs::write(&partial, serde_json::to_vec(self)?)?;
        std::fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))
    }
}

/// Where the record of a name is.
pub(crate) fn record_path(site: &Site, name: &str) -> PathBuf {
    site.processes().join(format!("{name}.json"))
}

/// A process to start.
#[derive(Debug, Clone)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    owned: bool,
    log: String,
}

impl Daemon {
    /// A process with a name for its record and log.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        let name = name.into();
        let log = name.clone();
        Self { name, program: program.into(), args: Vec::new(), env: Vec::new(), owned: false, log }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Ties the process to this one: later commands end it when this one is gone.
    #[must_use]
    pub fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// Writes to the log of another name.
    #[must_use]
    pub fn log(mut self, name: &str) -> Self {
        name.clone_into(&mut self.log);
        self
    }

    /// Starts the process in a session of its own and records it.
    pub async fn start(self, site: &Site) -> Result<Running> {
        let log = log_path(site, &self.log);
        let out = open_log(&log)?;
        let mut command = Command::new("setsid");
        command.arg(&self.program).args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).current_dir("/");
        let child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let Some(process) = pid.and_then(Identity::of) else {
            bail!("{} ended at once:\n{}", self.name, log_tail(&log));
        };
        let owner = if self.owned { Identity::own() } else { None };
        let record = Record { name: self.name, process, owner };
        record.write(site)?;
        Ok(Running { record, log, child })
    }
}

/// A process that this one has started.
#[derive(Debug)]
pub struct Running {
    /// What was written down about it.
    pub record: Record,
    log: PathBuf,
    child: Child,
}

impl Running {
    /// Waits until `ready` says yes. Fails with the end of the log when the process ends first or `timeout` passes.
    pub async fn until_ready<F>(mut self, timeout: Duration, mut ready: impl FnMut() -> F) -> Result<Record>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + timeout;
        loop {
            // First the process, then the question: another process may answer on its port.
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.record.name, log_tail(&self.log));
            }
            if ready().await {
                return Ok(self.record);
            }
            if Instant::now() >= deadline {
                let log = log_tail(&self.log);
                bail!("{} is not ready after {} s:\n{log}", self.record.name, timeout.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The log of a process.
fn log_path(site: &Site, name: &str) -> PathBuf {
    site.logs().join(format!("{name}.log"))
}

/// The last lines of a log file.
pub fn log_tail(path: &Path) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    format!("{}(the rest is in {})", tail(&text), path.display())
}

fn open_log(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// State, number of threads and start time from `/proc/PID/stat`. The name, in parentheses, may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    Some((state, threads, fields.nth(1)?.parse().ok()?))
}

/// The CPU seconds that a process has used so far, to a hundredth.
///
/// # Errors
/// There is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 9 0 987654 1 2 3";

    #[test]
    fn the_start_time_is_found_behind_a_name_with_parentheses() {
        assert_eq!(parse_stat(STAT), Some(('S', 9, 987_654)));
    }

    #[test]
    fn a_broken_stat_is_no_process() {
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_stat("42 (a) S 1 2"), None);
    }

    #[test]
    fn a_number_with_another_start_time_is_another_process() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        assert!(!Identity { start_time: own.start_time + 1, ..own.clone() }.is_alive());
        assert!(!Identity { boot: "another".into(), ..own }.is_alive());
    }

    #[tokio::test]
    async fn a_daemon_is_recorded_and_only_its_record_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { state: dir.path().join("state"), run: dir.path().join("run") };
        let running = Daemon::new("sleeper", "sleep").args(["60"]).owned().start(&site).await.unwrap();
        let record = Record::running(&site, "sleeper").unwrap().unwrap();
        assert_eq!(record, running.record);
        assert!(!record.is_orphan());
        record.end(&site, Duration::from_secs(5)).await.unwrap();
        assert!(!record.process.is_alive());
        assert!(Record::all(&site).unwrap().is_empty());
    }
}
