//! `cargo xtask down`

use anyhow::Result;
use clap::Args;
use warren_tests::Cluster;

use crate::progress::Terminal;

/// Ends and removes what this checkout has on this machine; caches of binaries stay in `target/`.
#[derive(Args)]
pub(crate) struct Down {}

impl Down {
    pub(crate) async fn run(self) -> Result<()> {
        Cluster::down(&Terminal::new()).await
    }
}
