//! Logs to standard error, as text for people or JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging at a level such as `info`, or a filter of `tracing-subscriber`. Without a terminal each line is JSON.
pub fn start(level: &str) {
    // The AMQP library reports as errors what is the everyday life of a connection; Warren says the same in its own words.
    let filter = EnvFilter::try_new(format!("{level},lapin=off,async_rs=off,hyper=warn"))
        .unwrap_or_else(|_| EnvFilter::new("info,lapin=off"));
    let logger =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second start, such as in a test, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        logger.try_init()
    } else {
        logger.json().flatten_event(true).try_init()
    };
}
