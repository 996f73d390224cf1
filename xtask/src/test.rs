//! `cargo xtask test`: every check of the project, one line a stage.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use warren_tests::cluster::{Cluster, KUBECONFIG_VARIABLE};
use warren_tests::command;
use warren_tests::progress::{Progress, step};
use warren_tests::site;

use crate::prepare::{Consent, prepare};
use crate::progress::Terminal;

/// Runs every check; stops after the stage that fails and shows its output.
#[derive(Args)]
pub(crate) struct Test {
    /// Only what needs neither broker nor cluster: formatting, lints, unit and property tests
    #[arg(long)]
    fast: bool,

    /// Leave the test cluster running
    #[arg(long)]
    keep: bool,

    /// Use the cluster of this kubeconfig, such as kind's, instead of one of our own
    #[arg(long, value_name = "FILE", env = KUBECONFIG_VARIABLE)]
    kubeconfig: Option<PathBuf>,
}

/// A stage: what a reader calls it, and cargo's arguments.
struct Stage {
    name: &'static str,
    cargo: &'static [&'static str],
}

const FAST: &[Stage] = &[
    Stage { name: "Formatting", cargo: &["fmt", "--all", "--check"] },
    Stage {
        name: "Lints",
        cargo: &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    },
    Stage {
        name: "Unit and property tests",
        cargo: &["test", "--workspace", "--lib", "--bins", "--test", "project", "--locked"],
    },
];

// All stages build for the whole workspace: for one package cargo would choose other features and compile everything again.
const BROKER: &[Stage] = &[
    Stage { name: "Test brokers", cargo: &["test", "--workspace", "--test", "broker", "--locked"] },
    Stage {
        name: "Broker tests",
        cargo: &["test", "--workspace", "--test", "amqp", "--test", "durability", "--locked"],
    },
    Stage { name: "Sidecar tests", cargo: &["test", "--workspace", "--test", "sidecar", "--locked"] },
];

const CLUSTER: &[Stage] = &[
    Stage {
        name: "Cluster and API-server tests",
        cargo: &["test", "--workspace", "--test", "kubernetes", "--test", "api", "--locked"],
    },
    Stage {
        name: "Whole-cluster tests",
        // They wait for pods most of the time.
        cargo: &["test", "--workspace", "--test", "whole", "--locked", "--", "--test-threads=4"],
    },
];

impl Test {
    pub(crate) async fn run(self) -> Result<()> {
        let progress = Terminal::new();
        if !self.fast {
            // First, while somebody is there who may be asked.
            prepare(&progress, Consent::Ask).await?;
        }
        let mut passed = run_stages(FAST, None, &progress).await?;
        if !self.fast {
            passed += run_stages(BROKER, None, &progress).await?;
            passed += self.with_cluster(&progress).await?;
        }
        progress.print(&format!("{passed} passed, 0 failed"));
        Ok(())
    }

    /// The stages that need a cluster. One of our own that nobody asked to keep is taken down again, also when a stage fails.
    async fn with_cluster(&self, progress: &Terminal) -> Result<u32> {
        let cluster = Cluster::of(self.kubeconfig.as_deref(), progress).await?;
        if self.keep {
            cluster.keep()?;
        }
        // Cargo runs tests in another folder: a relative path would lead elsewhere.
        let attached = self.kubeconfig.is_some().then(|| cluster.kubeconfig());
        let result = run_stages(CLUSTER, attached, progress).await;
        // What failed first says more than what failed after it.
        let left = cluster.leave(progress).await;
        let passed = result?;
        left?;
        Ok(passed)
    }
}

async fn run_stages(stages: &[Stage], kubeconfig: Option<&Path>, progress: &dyn Progress) -> Result<u32> {
    let mut passed = 0;
    for stage in stages {
        passed += step(progress, stage.name, run(stage, kubeconfig)).await?;
    }
    Ok(passed)
}

/// Runs a stage with its output in a file, and counts the tests that passed.
async fn run(stage: &Stage, kubeconfig: Option<&Path>) -> Result<u32> {
    let folder = site::workspace().join("target/test-logs");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}.log", stage.name.to_lowercase().replace(' ', "-")));
    let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut cargo = command::cargo();
    cargo.args(stage.cargo).current_dir(site::workspace());
    cargo.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if let Some(file) = kubeconfig {
        cargo.env(KUBECONFIG_VARIABLE, file);
    }
    let status = cargo.status().await.context("run cargo")?;
    let output = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
    if !status.success() {
        bail!("{output}\n{} failed; its output is above and in {}", stage.name, path.display());
    }
    Ok(count_passed(&output))
}

/// Sums the `test result: ok. 3 passed; ...` lines of cargo's test runner.
fn count_passed(output: &str) -> u32 {
    let results = output.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split_once(" passed")?.0.parse::<u32>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_of_all_runners_are_counted() {
        let output = "test a ... ok\n\ntest result: ok. 3 passed; 0 failed; 0 ignored\n\
                      test result: ok. 14 passed; 0 failed; 1 ignored\n";
        assert_eq!(count_passed(output), 17);
    }
}
