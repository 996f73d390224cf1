//! `cargo xtask demo`: the main job, on a real Kubernetes with a real RabbitMQ.
//!
//! [`stage`] sets up, [`story`] publishes, kills and waits while [`watch`] shows what Prometheus scraped, and [`summary`]
//! counts what became of every order.

mod stage;
mod story;
mod summary;
mod watch;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use warren_tests::Cluster;
use warren_tests::cluster::KUBECONFIG_VARIABLE;

use self::stage::Stage;
use self::summary::Summary;
use crate::prepare::{Consent, prepare};
use crate::progress::Terminal;

/// What `--keep` leaves. Not the Prometheus: the demo itself tells it of pods, and one that hears of none shows what is gone.
const KEPT: &str = "the cluster, RabbitMQ, Warren and the example";

/// Sets up a cluster, a broker and Warren, sends orders, kills a pod, and counts: nothing may be lost.
#[derive(Args)]
pub(crate) struct Demo {
    /// Install missing Debian packages without asking
    #[arg(long)]
    yes: bool,

    /// End with one line of JSON
    #[arg(long)]
    json: bool,

    /// Leave the cluster, RabbitMQ, Warren and the example running to play with, but not the demo's Prometheus;
    /// `cargo xtask down` removes them
    #[arg(long)]
    keep: bool,

    /// How many orders to send
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    orders: u64,

    /// Use the cluster of this kubeconfig, such as kind's, instead of one of our own
    #[arg(long, value_name = "FILE", env = KUBECONFIG_VARIABLE)]
    kubeconfig: Option<PathBuf>,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<()> {
        let started = Instant::now();
        let progress = Terminal::new();
        let consent = if self.yes { Consent::Given } else { Consent::Ask };
        prepare(&progress, consent).await?;
        let cluster = Cluster::of(self.kubeconfig.as_deref(), &progress).await?;
        if self.keep {
            cluster.keep()?;
        }
        // On a cluster that stays for another's sake the example stays, too, with the broker that it names.
        let keep = self.keep || cluster.is_kept();
        let result = self.tell(&cluster, keep, &progress, started).await;
        if keep {
            progress.print(&format!("\n{}\n{}", kept(), stage::hints(&cluster)));
        }
        let left = cluster.leave(&progress).await;
        let summary = result?;
        left?;
        progress.print(&summary.text());
        if self.json {
            progress.print(&serde_json::to_string(&summary)?);
        }
        ensure!(summary.lost == 0, "{} orders are lost", summary.lost);
        Ok(())
    }

    async fn tell(
        &self,
        cluster: &Cluster,
        keep: bool,
        progress: &Terminal,
        started: Instant,
    ) -> Result<Summary> {
        let stage = Stage::set_up(cluster, keep, progress).await?;
        let facts = story::tell(&stage, self.orders, progress).await?;
        Ok(Summary::of(&facts, started.elapsed()))
    }
}

/// What runs on, and what does not.
fn kept() -> String {
    format!("What runs on: {KEPT}; the demo's Prometheus has ended. To play with them:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keep_leaves_is_said_alike_by_the_demo_its_help_and_the_readme() {
        let command = Demo::augment_args(clap::Command::new("demo"));
        let keep = command.get_arguments().find(|argument| argument.get_id() == "keep").unwrap();
        let readme = include_str!("../../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
        for text in [kept(), keep.get_help().unwrap().to_string(), readme] {
            assert!(text.contains(KEPT) && text.contains("the demo's Prometheus"), "{text}");
        }
    }
}
