//! The program as a process of its own: its command line, its files, its signals. The process is this test binary, told to
//! run one "test" that is the program's `main`, so that nothing else need be built.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};
use warren_sidecar::cli::Cli;
use warren_tests::app::App;
use warren_tests::ports;
use warren_tests::wait::eventually;

use crate::harness::{PATIENCE, Place, QUEUE, config, message_of, request};

warren_tests::on_each_release!(
    publish_alone_serves_the_api_with_the_address_of_a_mounted_secret_and_follows_its_rotation,
    a_second_ctrl_c_does_not_wait_for_what_runs,
    local_mode_takes_what_a_pod_gets_from_a_file,
    a_drain_that_is_open_when_sigterm_comes_is_answered_before_the_process_ends,
);

/// The variable with the program's arguments, one a line, in the process that is to be the program.
const ARGUMENTS: &str = "WARREN_TEST_SIDECAR";

/// What the process of [`Program`] runs. Without arguments there is nothing to be.
#[tokio::test]
#[ignore = "this is the program that other tests start as a process"]
async fn the_program() -> Result<()> {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return Ok(()) };
    warren_broker::install_crypto_provider();
    let arguments = std::iter::once("warren-sidecar").chain(arguments.lines());
    Cli::try_parse_from(arguments)?.run().await.map_err(|error| anyhow!(error))
}

/// A running `warren-sidecar`. It ends with the value.
struct Program {
    process: Child,
    log: NamedTempFile,
    admin: SocketAddr,
    local: SocketAddr,
}

impl Program {
    /// Starts it with free ports, and waits until it is live.
    async fn start(arguments: &[&str]) -> Result<Self> {
        let free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)));
        let (admin, local) = (free()?, free()?);
        let ports = [format!("--admin-port={}", admin.port()), format!("--local-port={}", local.port())];
        let arguments: Vec<&str> =
            arguments.iter().copied().chain(ports.iter().map(String::as_str)).collect();
        let log = NamedTempFile::new()?;
        let process = Command::new(std::env::current_exe()?)
            .args(["--exact", "process::the_program", "--ignored", "--nocapture"])
            .env(ARGUMENTS, arguments.join("\n"))
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .kill_on_drop(true)
            .spawn()?;
        let program = Self { process, log, admin, local };
        let live = eventually(PATIENCE, "the program is live", async || {
            let live = request(admin, "GET", "/livez", &[], b"").await?;
            ensure!(live.status == 200, "{live:?}");
            Ok(())
        });
        live.await.with_context(|| program.said())?;
        Ok(program)
    }

    /// What it logged.
    fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// SIGTERM.
    fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.process.id().context("it runs")?;
        Ok(kill(Pid::from_raw(i32::try_from(id)?), signal)?)
    }

    /// Its end, which must be a good one.
    async fn ended(mut self) -> Result<()> {
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = ended.with_context(|| self.said())??;
        ensure!(status.success(), "{status}: {}", self.said());
        Ok(())
    }
}

async fn publish_alone_serves_the_api_with_the_address_of_a_mounted_secret_and_follows_its_rotation(
    place: Place,
) -> Result<()> {
    place.declare(&config()).await?;
    let secret = tempfile::tempdir()?;
    let mount = |uri: &str| std::fs::write(secret.path().join("uri"), uri);
    let good = place.uri();
    mount(&good.replace(place.broker.password(), "wrong"))?;
    let folder = secret.path().to_str().context("UTF-8")?;
    let program = Program::start(&["publish", "--broker", folder]).await?;
    let publish = || request(program.local, "POST", "/publish?routingKey=orders", &[], b"body");
    ensure!(request(program.admin, "GET", "/readyz", &[], b"").await?.status == 200);
    let refused = publish().await?;
    ensure!(refused.status == 503, "{refused:?}");
    mount(&good)?;
    eventually(PATIENCE, "the rotated Secret is taken over", async || {
        let answer = publish().await?;
        ensure!(answer.status == 202, "{answer:?}");
        Ok(())
    })
    .await?;
    ensure!(message_of(&place.client().await?, QUEUE).await?.0 == b"body");
    let drained = request(program.admin, "POST", "/drain", &[], b"").await?;
    ensure!(drained.status == 200 && drained.text() == "nothing to drain\n", "{drained:?}");
    program.terminate()?;
    program.ended().await
}

/// Writes a configuration as the operator's ConfigMap has it.
fn written(folder: &Path, config: &warren_api::sidecar::SidecarConfig) -> Result<String> {
    let path = folder.join("config.json");
    std::fs::write(&path, serde_json::to_vec(config)?)?;
    Ok(path.to_str().context("UTF-8")?.to_owned())
}

async fn local_mode_takes_what_a_pod_gets_from_a_file(place: Place) -> Result<()> {
    let app = App::start().await?;
    let mut config = config();
    config.queue.max_attempts = 7;
    (config.consumer.prefetch, config.consumer.concurrency) = (3, 3);
    let folder = tempfile::tempdir()?;
    let file = written(folder.path(), &config)?;
    let (uri, handler) = (place.uri(), format!("http://localhost:{}/", app.port()));
    let program =
        Program::start(&["local", "--amqp", &uri, "--handler", &handler, "--config", &file, "--declare"])
            .await?;
    place.client().await?.publish(QUEUE, b"x").await?;
    let call = eventually(PATIENCE, "the call", async || app.calls().pop().context("none yet")).await?;
    ensure!(call.header("warren-max-attempts") == "7" && call.header("warren-queue") == QUEUE, "{call:?}");
    let metrics = request(program.admin, "GET", "/metrics", &[], b"").await?.text();
    let window = metrics.lines().find(|line| line.starts_with("warren_sidecar_prefetch{"));
    ensure!(window.is_some_and(|line| line.ends_with(" 3")), "{window:?}");
    program.terminate()?;
    program.ended().await
}

async fn a_second_ctrl_c_does_not_wait_for_what_runs(place: Place) -> Result<()> {
    let app = App::working(Duration::from_secs(600)).await?;
    let (uri, handler) = (place.uri(), format!("http://localhost:{}/", app.port()));
    let at_work = ["--queue", QUEUE, "--timeout-seconds=600", "--drain-timeout-seconds=700", "--declare"];
    let program =
        Program::start(&[["local", "--amqp", &uri, "--handler", &handler].as_slice(), &at_work].concat())
            .await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    eventually(PATIENCE, "the call", async || app.calls().pop().context("none yet")).await?;
    program.signal(Signal::SIGINT)?;
    eventually(PATIENCE, "the drain", async || {
        ensure!(program.said().contains("draining"));
        Ok(())
    })
    .await?;
    program.signal(Signal::SIGINT)?;
    program.ended().await?;
    eventually(PATIENCE, "the message is the broker's again", async || {
        ensure!(client.ready(QUEUE).await? == Some(1));
        Ok(())
    })
    .await
}

async fn a_drain_that_is_open_when_sigterm_comes_is_answered_before_the_process_ends(
    place: Place,
) -> Result<()> {
    let app = App::working(Duration::from_secs(2)).await?;
    let folder = tempfile::tempdir()?;
    let file = written(folder.path(), &config())?;
    let (uri, handler) = (place.uri(), format!("http://localhost:{}/", app.port()));
    let arguments = ["local", "--amqp", &uri, "--handler", &handler, "--config", &file, "--declare"];
    let program = Program::start(&arguments).await?;
    let client = place.client().await?;
    client.publish(QUEUE, b"x").await?;
    eventually(PATIENCE, "the call", async || app.calls().pop().context("none yet")).await?;
    let admin = program.admin;
    let draining = tokio::spawn(async move { request(admin, "POST", "/drain", &[], b"").await });
    eventually(PATIENCE, "the drain has begun", async || {
        let metrics = request(admin, "GET", "/metrics", &[], b"").await?.text();
        let draining = metrics.lines().find(|line| line.starts_with("warren_sidecar_draining{"));
        ensure!(draining.is_some_and(|line| line.ends_with(" 1")), "{draining:?}");
        Ok(())
    })
    .await?;
    program.terminate()?;
    program.ended().await?;
    let drained = draining.await??;
    ensure!(drained.status == 200 && drained.text() == "drained\n", "{drained:?}");
    ensure!(client.ready(QUEUE).await? == Some(0) && app.calls().len() == 1);
    Ok(())
}
