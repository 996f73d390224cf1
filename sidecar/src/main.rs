//! The `warren-sidecar` program.

use std::process::ExitCode;

use clap::Parser;
use warren_sidecar::cli::Cli;

/// Bytes of stack, of which only what is used takes memory. A message's headers may be nested as deep as a frame is long, and
/// what reads or copies them calls itself for each level: 26,000 levels, the most that are let in, take 32 MiB to read and 8 MiB to
/// copy. The AMQP library's own thread has as much by `RUST_MIN_STACK`, which the image sets.
const STACK: usize = 64 * 1024 * 1024;

fn main() -> ExitCode {
    match std::thread::Builder::new().name("main".to_owned()).stack_size(STACK).spawn(run) {
        Ok(running) => running.join().unwrap_or(ExitCode::FAILURE),
        // Without so much room it does for all but such messages.
        Err(_) => run(),
    }
}

fn run() -> ExitCode {
    warren_broker::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Into::into).and_then(|runtime| {
        let ended = runtime.block_on(Cli::parse().run());
        // A name that is being looked up may take the resolver half a minute, and nobody waits for it.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
