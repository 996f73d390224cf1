//! `warren-operator`.

use clap::Parser;
use warren_operator::args::Args;

fn main() -> anyhow::Result<()> {
    warren_broker::install_crypto_provider();
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(warren_operator::app::run(args))
}
