//! `cargo xtask bench NAME`: the budgets, measured against a peer or the raw client in the same run.
//!
//! The sidecar, the application and the raw clients are processes of their own, built as the images' are; the broker is one of
//! the project's test brokers. Pairs alternate, and medians count, because the machine is shared.

mod consume;
mod fleet;
mod ground;
mod loads;
mod peers;
mod queues;
mod replicas;
mod rest;
mod scale;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use warren_tests::broker::{Broker, Options, Version};

use self::peers::Peers;
use crate::prepare::{Consent, prepare};
use crate::progress::Terminal;

/// Measures one budget.
#[derive(Args)]
pub(crate) struct Bench {
    /// What to measure
    name: Name,

    /// End with one line of JSON
    #[arg(long)]
    json: bool,

    /// Alternating pairs to take medians of
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// For `soak`, and the steady load of `scale --long`: how long
    #[arg(long, default_value_t = 5)]
    minutes: u64,

    /// For `soak`: a slow handler that keeps the window full at 200 messages a second, instead of bursts
    #[arg(long)]
    paced: bool,

    /// For `consume`: every prefetch, queue type and size instead of the budgets' own
    #[arg(long)]
    matrix: bool,

    /// For `queues` and `operator`: how many [default: 1000, and 10000]
    #[arg(long)]
    queues: Option<usize>,

    /// For `operator` and `scale`: how many Workers at zero [default: 2000, and 150]
    #[arg(long)]
    workers: Option<usize>,

    /// For `scale`: how many of them are woken
    #[arg(long, default_value_t = 20)]
    wake_ups: usize,

    /// For `scale`: loads and faults that take minutes instead
    #[arg(long)]
    long: bool,

    /// For all but `queues`, `operator` and `scale`: on RabbitMQ 4.0 instead of 3.10
    #[arg(long)]
    new: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Through the handler at prefetch 200 and 1, against pika and raw consumers
    Consume,
    /// One message at a time, from publish to handler
    Latency,
    /// Batches of 100 at prefetch 1000
    Batch,
    /// Confirmed publishes, 64 callers
    Publish,
    /// At rest for a minute
    Idle,
    /// Memory over time at prefetch 200
    Soak,
    /// From the operator's start to all Queues Ready, a restart with nothing to change, and the deletion of all
    Queues,
    /// A fleet of Queues and Workers: the operator at rest, and what a Queue costs
    Operator,
    /// From a publish to a Worker at zero to the patch of its replicas, on a real cluster
    Scale,
}

impl Bench {
    #[allow(clippy::print_stdout, reason = "the result")]
    pub(crate) async fn run(self) -> Result<()> {
        let on_cluster = matches!(self.name, Name::Queues | Name::Operator | Name::Scale);
        ensure!(
            !(self.new && on_cluster),
            "--new is for what is measured of the sidecar: queues, operator and scale use 3.10"
        );
        prepare(&Terminal::new(), Consent::Ask).await?;
        let result = match self.name {
            Name::Queues => queues::queues(self.queues.unwrap_or(1_000)).await?,
            Name::Operator => {
                fleet::fleet(self.queues.unwrap_or(10_000), self.workers.unwrap_or(2_000)).await?
            }
            Name::Scale if self.long => loads::loads(self.minutes).await?,
            Name::Scale => scale::scale(self.workers.unwrap_or(150), self.wake_ups).await?,
            Name::Consume | Name::Latency | Name::Batch | Name::Publish | Name::Idle | Name::Soak => {
                self.of_sidecar().await?
            }
        };
        if self.json {
            println!("{result}");
        } else {
            println!("{}", serde_json::to_string_pretty(&result)?);
        }
        Ok(())
    }

    /// What is measured of the sidecar.
    async fn of_sidecar(&self) -> Result<Value> {
        let peers = Peers::build().await?;
        let version = if self.new { Version::V4_0 } else { Version::V3_10 };
        let broker = Broker::start(Options::new("bench").version(version)).await?;
        let amqp = broker.uri("/");
        Ok(match self.name {
            Name::Consume if self.matrix => consume::matrix(&peers, &amqp).await?,
            Name::Consume => consume::budgets(&peers, &amqp, self.rounds).await?,
            Name::Latency => rest::latency(&peers, &amqp, self.rounds).await?,
            Name::Batch => consume::batch(&peers, &amqp, self.rounds).await?,
            Name::Publish => rest::publish(&peers, &amqp, self.rounds).await?,
            Name::Idle => rest::idle(&peers, &amqp).await?,
            Name::Soak => rest::soak(&peers, &amqp, self.minutes, self.paced).await?,
            Name::Queues | Name::Operator | Name::Scale => Value::Null,
        })
    }
}

/// What goes on, for people; the last line of standard output is the result.
#[allow(clippy::print_stderr, reason = "a command's progress")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// The middle of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// A figure with two digits behind the point.
fn figure(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}
