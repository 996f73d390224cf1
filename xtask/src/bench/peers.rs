//! The processes that are measured, and those that measure.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use warren_tests::images::{static_binaries, static_binary};
use warren_tests::{ports, process};

use super::say;

/// The release of pika that is compared with: budgets are shares of it, for years.
const PIKA_VERSION: &str = "1.4.4";
/// The consumer of the tutorials: pika, one ack a message.
const PIKA: &str = r#"
import json, os, pika, sys, time
uri, queue, count, prefetch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
connection = pika.BlockingConnection(pika.URLParameters(uri))
channel = connection.channel()
channel.basic_qos(prefetch_count=prefetch)
seen, first, cpu = 0, None, None
def handle(channel, method, properties, body):
    global seen, first, cpu
    if first is None:
        first, cpu = time.monotonic(), time.process_time()
    seen += 1
    channel.basic_ack(method.delivery_tag)
    if seen == count:
        channel.stop_consuming()
channel.basic_consume(queue, handle)
channel.start_consuming()
seconds, used = time.monotonic() - first, time.process_time() - cpu
print(json.dumps({"rate": seen / seconds, "cpu_us": used / seen * 1e6, "seconds": seconds}))
connection.close()
"#;

/// How long one measurement may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The programs.
pub(super) struct Peers {
    sidecar: PathBuf,
    peer: PathBuf,
    python: PathBuf,
    pika: PathBuf,
}

/// A program that runs, and what it prints.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// The next line, as JSON.
    pub(super) async fn json(&mut self) -> Result<Value> {
        let line =
            tokio::time::timeout(PATIENCE, self.lines.next_line()).await??.context("it ended early")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Ends it with SIGTERM and waits: a sidecar's acknowledgements are with the broker then, and nothing comes back to the
    /// queue in the midst of the next measurement.
    pub(super) async fn terminate(mut self) -> Result<()> {
        let sent = Command::new("kill").arg(self.pid().to_string()).status().await?;
        ensure!(sent.success(), "it had ended");
        tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// CPU seconds so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.pid())
    }

    /// A line of `/proc/PID/status` in KiB, such as `VmHWM` for the peak.
    pub(super) fn memory_kib(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("no such line")?;
        Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
    }
}

impl Peers {
    /// Builds what is measured, and gets pika.
    pub(super) async fn build() -> Result<Self> {
        say("Building the sidecar as its image has it, and its peers alike");
        let sidecar = static_binaries(&["warren-sidecar"]).await?.remove(0);
        let peer = static_binary("peer", &["-p", "warren-sidecar", "--example", "peer"]).await?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        let venv = target.join("bench/venv");
        let python = venv.join("bin/python");
        let check = format!("import pika; assert pika.__version__ == '{PIKA_VERSION}'");
        let has_pika = Command::new(&python).args(["-c", &check]).stderr(Stdio::null()).status().await;
        if !has_pika.is_ok_and(|status| status.success()) {
            say("Getting pika from PyPI");
            std::fs::create_dir_all(target.join("bench"))?;
            let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).status().await;
            let made = made.context("run python3, which is missing")?;
            ensure!(made.success(), "python3 -m venv failed: install python3-venv");
            let pika = format!("pika=={PIKA_VERSION}");
            let pip = Command::new(venv.join("bin/pip")).args(["install", "--quiet", &pika]).status().await?;
            ensure!(pip.success(), "pip install pika failed");
        }
        let pika = target.join("bench/pika_consumer.py");
        std::fs::write(&pika, PIKA)?;
        Ok(Self { sidecar, peer, python, pika })
    }

    fn start(program: &PathBuf, arguments: &[&str]) -> Result<Running> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let lines = BufReader::new(child.stdout.take().context("it prints")?).lines();
        Ok(Running { child, lines })
    }

    /// A raw client or the application.
    pub(super) fn peer(&self, arguments: &[&str]) -> Result<Running> {
        Self::start(&self.peer, arguments)
    }

    /// A sidecar between a queue and an application on this machine.
    pub(super) fn sidecar(&self, amqp: &str, queue: &str, app: u16, more: &[&str]) -> Result<(Running, u16)> {
        let (handler, local) = (format!("http://localhost:{app}/messages"), ports::free()?);
        let port = local.to_string();
        let mut arguments = vec!["local", "--amqp", amqp, "--queue", queue, "--handler", &handler];
        arguments.extend(["--admin-port", "0", "--local-port", &port, "--log-level", "error"]);
        arguments.extend(more);
        Ok((Self::start(&self.sidecar, &arguments)?, local))
    }

    /// The pika consumer's result.
    pub(super) async fn pika(&self, amqp: &str, queue: &str, count: u64, prefetch: u16) -> Result<Value> {
        let script = self.pika.to_string_lossy().into_owned();
        let arguments = [script.as_str(), amqp, queue, &count.to_string(), &prefetch.to_string()];
        Self::start(&self.python, &arguments)?.json().await
    }
}
