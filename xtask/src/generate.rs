//! `cargo xtask generate`: writes the committed files that come from code.

use anyhow::{Result, ensure};
use clap::Args;
use warren_tests::command;

/// The files are made where they are checked, by one test, so that the two cannot differ.
#[derive(Args)]
pub(crate) struct Generate {}

impl Generate {
    pub(crate) fn run(self) -> Result<()> {
        let status = command::cargo()
            .into_std()
            .args(["test", "--quiet", "--workspace", "--test", "project", "--", "--nocapture"])
            .env("WARREN_GENERATE", "1")
            .status()?;
        ensure!(status.success(), "the generator failed; its messages are above");
        Ok(())
    }
}
