//! The `warren-sidecar` program.

use std::process::ExitCode;

use clap::Parser;
use warren_sidecar::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    warren_broker::install_crypto_provider();
    match Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
