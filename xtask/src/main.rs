//! Developer commands: `cargo xtask COMMAND`.

mod bench;
mod demo;
mod down;
mod generate;
mod prepare;
mod progress;
mod test;
mod up;

use std::fs::{File, TryLockError};

use anyhow::Result;
use clap::{Parser, Subcommand};
use warren_tests::site;

use crate::progress::Terminal;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Warren's developer commands")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the main job on a real Kubernetes and a real RabbitMQ, and count what became of every order
    Demo(demo::Demo),
    /// Run every check of the project
    Test(test::Test),
    /// Bring up a real Kubernetes on this machine, without Docker
    Up(up::Up),
    /// Take down what `up`, the demo and the tests have left on this machine
    Down(down::Down),
    /// Measure a budget against a peer or the raw client in the same run
    Bench(bench::Bench),
    /// Write the committed files that come from code: CRDs, RBAC rules, references
    Generate(generate::Generate),
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    progress::exit(run(Arguments::parse().command).await)
}

async fn run(task: Task) -> Result<()> {
    let _alone = alone()?;
    match task {
        Task::Demo(task) => task.run().await,
        Task::Test(task) => task.run().await,
        Task::Up(task) => task.run().await,
        Task::Down(task) => task.run().await,
        Task::Bench(task) => task.run().await,
        Task::Generate(task) => task.run(),
    }
}

/// The right to what this checkout runs on the machine, until it is dropped: of two commands at once the first to end would take the
/// other one's broker and cluster down.
fn alone() -> Result<File> {
    let folder = site::workspace().join("target");
    std::fs::create_dir_all(&folder)?;
    let file = File::create(folder.join("xtask.lock"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            Terminal::new()
                .show("another `cargo xtask` command of this checkout runs: waiting until it has ended");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    Ok(file)
}
