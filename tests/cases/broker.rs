//! The test brokers are what the other tests stand on: each fault they offer is the fault it says.

#![allow(clippy::print_stderr, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warren_tests::broker::{Alarm, Broker, Options, Vhost};
use warren_tests::command::run_program;
use warren_tests::wait::eventually;

warren_tests::on_each_release!(a_broker_takes_every_fault);

async fn a_broker_takes_every_fault(options: Options) -> Result<()> {
    let since = Instant::now();
    let broker = Broker::start(options).await?;
    lap("start", since);
    let since = Instant::now();
    broker.vhost("faults").await?;
    lap("vhost", since);
    broker.user("guest of honour", "sécret").await?;
    broker.permissions("guest of honour", "faults", "^a", "^b", "^c").await?;
    let users = broker.rabbitmqctl(&["list_user_permissions", "guest of honour"]).await?;
    ensure!(users.contains("^b"), "{users}");
    let accepts = async || broker.rabbitmqctl(&["authenticate_user", "guest of honour", "sécret"]).await;
    accepts().await?;

    for alarm in [Alarm::Memory, Alarm::Disk] {
        broker.set_alarm(alarm).await?;
        let alarms = async || broker.eval("rabbit_alarm:get_alarms()").await;
        ensure!(alarms().await?.contains("resource_limit"), "no alarm");
        broker.clear_alarm(alarm).await?;
        eventually(Duration::from_secs(20), "the alarm is over", async || {
            let text = alarms().await?;
            ensure!(!text.contains("resource_limit"), "{text}");
            Ok(())
        })
        .await?;
    }
    for fault in ["sigterm", "kill9"] {
        let since = Instant::now();
        let process = broker.process().await?;
        if fault == "kill9" {
            broker.kill9().await?;
        } else {
            broker.sigterm().await?;
        }
        ensure!(!process.is_alive(), "still running");
        broker.start_again().await?;
        accepts().await?;
        lap(fault, since);
    }
    broker.stop_app().await?;
    ensure!(!broker.eval("rabbit:is_running()").await?.contains("true"), "still running");
    broker.start_app().await?;
    accepts().await?;
    let since = Instant::now();
    broker.wipe().await?;
    lap("wipe", since);
    ensure!(accepts().await.is_err(), "a wiped broker knows its users");
    let process = broker.process().await?;
    drop(broker);
    ensure!(process.gone_within(Duration::from_secs(5)).await, "the broker outlives its value");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    // With its slash: another test may be making the root, and that has mounts too.
    ensure!(!mounts.contains("rabbitmq-4.0/"), "mounts are left:\n{mounts}");
    Ok(())
}

fn lap(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f32());
}

#[tokio::test]
async fn a_shared_broker_has_a_vhost_for_each_test() -> Result<()> {
    let (one, two) = (Vhost::new("one").await?, Vhost::new("two").await?);
    ensure!(one.broker.process().await? == two.broker.process().await?, "two brokers");
    let names = one.broker.rabbitmqctl(&["list_vhosts"]).await?;
    ensure!(names.contains("one") && names.contains("two"), "{names}");
    Ok(())
}

#[tokio::test]
async fn a_lasting_broker_is_found_again() -> Result<()> {
    let options = || Options::new("lasting").lasting();
    let first = Broker::start(options()).await?;
    let (process, uri) = (first.process().await?, first.uri("/"));
    drop(first);
    let second = Broker::start(options()).await?;
    ensure!(second.process().await? == process && second.uri("/") == uri, "another broker");
    second.remove().await?;
    ensure!(!process.is_alive(), "still running");
    Ok(())
}

/// What a crash of a test process must not leave behind.
#[tokio::test]
async fn a_broker_ends_with_the_process_that_started_it() -> Result<()> {
    const CHILD: &str = "WARREN_TEST_START_AND_CRASH";
    if std::env::var_os(CHILD).is_some() {
        let broker = Broker::start(Options::new("crash")).await?;
        eprintln!("pid {}", broker.process().await?.pid);
        std::process::abort();
    }
    let this = std::env::current_exe()?;
    let name = "a_broker_ends_with_the_process_that_started_it";
    let script = format!("{CHILD}=1 {} --exact {name} --nocapture 2>&1; true", this.display());
    let output = run_program("sh", ["-c", &script]).await?;
    let pid = output.lines().find_map(|line| line.strip_prefix("pid "));
    let pid: i32 = pid.ok_or_else(|| anyhow::anyhow!("no broker was started:\n{output}"))?.parse()?;
    eventually(Duration::from_secs(10), "the broker ends", async || {
        ensure!(warren_tests::process::Identity::of(pid).is_none(), "{pid} runs");
        Ok(())
    })
    .await
}
