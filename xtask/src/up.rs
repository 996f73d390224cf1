//! `cargo xtask up`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use warren_tests::cluster::{Cluster, KUBECONFIG_VARIABLE};

use crate::prepare::{Consent, prepare};
use crate::progress::Terminal;

/// Brings up the cluster, or only what of it does not run.
#[derive(Args)]
pub(crate) struct Up {
    /// Use the cluster of this kubeconfig, such as kind's, instead of one of our own
    #[arg(long, value_name = "FILE", env = KUBECONFIG_VARIABLE)]
    kubeconfig: Option<PathBuf>,
}

impl Up {
    pub(crate) async fn run(self) -> Result<()> {
        let progress = Terminal::new();
        if self.kubeconfig.is_none() {
            prepare(&progress, Consent::Ask).await?;
        }
        let cluster = Cluster::of(self.kubeconfig.as_deref(), &progress).await?;
        cluster.keep()?;
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).await?;
        progress.print(&format!("\n{}\n", nodes.trim_end()));
        progress.print(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
        if let Some(site) = cluster.site() {
            progress
                .print(&format!("export PATH={}:$PATH   # kubectl and helm that fit", site.bin().display()));
        }
        Ok(())
    }
}
