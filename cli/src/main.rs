//! `kubectl warren`: kubectl finds this program by its name, `kubectl-warren`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use warren_cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    warren_broker::install_crypto_provider();
    let outcome = Cli::parse().run().await;
    // A reader that has gone away, such as `head`, is no failure.
    match outcome {
        Ok(answer) => {
            let _ = write!(std::io::stdout(), "{}", answer.text);
            if answer.well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
