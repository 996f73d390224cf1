//! `kubectl warren`: kubectl finds this program by its name, `kubectl-warren`.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use clap::Parser;
use warren_cli::read::said;
use warren_cli::{Cli, harmless};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    warren_broker::install_crypto_provider();
    let told = Cli::parse().run().await.and_then(|answer| answer.write(&mut stdout()));
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // There is nowhere else to say it.
            let _ = writeln!(stderr(), "error: {}", harmless(&said(error)));
            ExitCode::FAILURE
        }
    }
}
