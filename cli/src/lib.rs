//! Warren's kubectl plugin.
//!
//! Each subcommand is `arguments -> read -> pure report -> text`: what is read from the cluster or from files is a value, and
//! the report is a function of it.

pub mod cluster;
pub mod doctor;
pub mod explain;
pub mod exposition;
pub mod simulate;
pub mod table;
pub mod top;

use clap::{Parser, Subcommand};

/// Warren's kubectl plugin: why a Worker has its pods, what waits where, what is wrong, and what a load would do.
#[derive(Debug, Parser)]
#[command(name = "kubectl warren", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show Queues with what waits in them, and Workers with their pods
    Top(top::Top),
    /// Say why a Worker has the replicas that it has
    Explain(explain::Explain),
    /// Check an installation and its Queues and Workers, and say what to do
    Doctor(doctor::Doctor),
    /// Run Warren's scaler, and KEDA with an HPA beside it, over a recorded load in virtual time
    Simulate(simulate::Simulate),
}

/// What a subcommand has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Whether all is well: the exit status.
    pub well: bool,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, well: true }
    }
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What cannot be read, as a sentence.
    pub async fn run(self) -> anyhow::Result<Answer> {
        match self.command {
            Command::Top(command) => command.run().await,
            Command::Explain(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::Simulate(command) => command.run(),
        }
    }
}
