//! What the benchmarks measure the sidecar against and with: a minimal HTTP application, raw AMQP consumers and producers.
//! Each command prints one JSON object when it is done. Built in release mode by `cargo xtask bench`.

#![allow(clippy::print_stdout, reason = "the results are its output")]

mod app;
mod by_hand;
mod latency;
mod publish;
mod raw;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// What ends a command.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// A queue on a broker, and how many messages.
#[derive(Args)]
struct At {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    queue: String,
    #[arg(long)]
    count: u64,
}

#[derive(Subcommand)]
enum Command {
    /// An application that answers 200; says when it got the first and the last of `count` messages
    App {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        batch: bool,
        /// How long each answer takes
        #[arg(long, default_value_t = 0)]
        delay_milliseconds: u64,
    },
    /// Fill a queue
    Fill {
        #[command(flatten)]
        at: At,
        #[arg(long)]
        size: usize,
    },
    /// Consume without an application: ack each, or many at once
    Raw {
        #[command(flatten)]
        at: At,
        #[arg(long)]
        prefetch: u16,
        #[arg(long)]
        multiple: bool,
    },
    /// Consume at prefetch 1 and post each message to an application by hand, until ended
    ByHand {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        port: u16,
    },
    /// One message at a time, from publish to the handler, which is this process
    Latency {
        #[command(flatten)]
        at: At,
        #[arg(long)]
        port: u16,
    },
    /// Publish over AMQP, with so many confirms in flight
    Publish {
        #[command(flatten)]
        at: At,
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
        Command::App { port, count, batch, delay_milliseconds } => {
            app::run(port, count, batch, Duration::from_millis(delay_milliseconds)).await?
        }
        Command::Fill { at, size } => publish::fill(&at.amqp, &at.queue, at.count, size).await?,
        Command::Raw { at, prefetch, multiple } => {
            raw::run(&at.amqp, &at.queue, at.count, prefetch, multiple).await?
        }
        Command::ByHand { amqp, queue, port } => by_hand::run(&amqp, &queue, port).await?,
        Command::Latency { at, port } => latency::run(&at.amqp, &at.queue, at.count, port).await?,
        Command::Publish { at, callers } => {
            publish::fill_with(&at.amqp, &at.queue, at.count, 256, callers).await?
        }
        Command::Post { port, queue, count, callers } => publish::post(port, &queue, count, callers).await?,
    };
    println!("{result}");
    Ok(())
}
