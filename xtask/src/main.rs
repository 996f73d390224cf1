//! Developer commands: `cargo xtask COMMAND`.

mod bench;
mod demo;
mod down;
mod generate;
mod prepare;
mod progress;
mod test;
mod up;

use clap::{Parser, Subcommand};

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
    let result = match Arguments::parse().command {
        Task::Demo(task) => task.run().await,
        Task::Test(task) => task.run().await,
        Task::Up(task) => task.run().await,
        Task::Down(task) => task.run().await,
        Task::Bench(task) => task.run().await,
        Task::Generate(task) => task.run(),
    };
    progress::exit(result)
}
