//! What the benchmarks measure the sidecar against and with: a minimal HTTP application, raw AMQP consumers and producers.
//! Each command prints one JSON object when it is done. Built in release mode by `cargo xtask bench`.

#![allow(clippy::print_stdout, reason = "the results are its output")]

mod app;
mod latency;
mod publish;
mod raw;

use clap::{Parser, Subcommand};

/// What ends a command.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An application that answers 200 at once; says when it got the first and the last of `count` messages
    App {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        batch: bool,
    },
    /// Fill a queue
    Fill {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        size: usize,
    },
    /// Consume without an application: ack each, or many at once
    Raw {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        prefetch: u16,
        #[arg(long)]
        multiple: bool,
    },
    /// One message at a time, from publish to handler: through a sidecar, or by a consumer of its own that posts by hand
    Latency {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        raw: bool,
    },
    /// Publish over AMQP, with so many confirms in flight
    Publish {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        callers: usize,
    },
    /// Publish through a sidecar, with so many callers
    Post {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        callers: usize,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let result = match Arguments::parse().command {
        Command::App { port, count, batch } => app::run(port, count, batch).await?,
        Command::Fill { amqp, queue, count, size } => publish::fill(&amqp, &queue, count, size).await?,
        Command::Raw { amqp, queue, count, prefetch, multiple } => {
            raw::run(&amqp, &queue, count, prefetch, multiple).await?
        }
        Command::Latency { amqp, queue, count, port, raw } => {
            latency::run(&amqp, &queue, count, port, raw).await?
        }
        Command::Publish { amqp, queue, count, callers } => {
            publish::fill_with(&amqp, &queue, count, 256, callers).await?
        }
        Command::Post { port, queue, count, callers } => publish::post(port, &queue, count, callers).await?,
    };
    println!("{result}");
    Ok(())
}
