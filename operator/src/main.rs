//! `warren-operator`.

use clap::Parser;
use warren_operator::args::Args;

fn main() -> anyhow::Result<()> {
    warren_broker::install_crypto_provider();
    let args = Args::parse();
    // One thread: nothing here computes for long, two of them would mostly wake each other, and each would have a heap of its own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(warren_operator::app::run(args))
}
