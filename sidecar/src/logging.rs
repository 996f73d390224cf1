//! Logs to standard error, as text for people or JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging at a level such as `info`, or a filter of `tracing-subscriber`. Without a terminal each line is JSON.
pub fn start(level: &str) {
    let known = filter_of(level);
    let wanted = known.unwrap_or("info");
    // The AMQP library reports as errors what is the everyday life of a connection; Warren says the same in its own words.
    let filter = EnvFilter::try_new(format!("{wanted},lapin=off,async_rs=off,hyper=warn"))
        .unwrap_or_else(|_| EnvFilter::new("info,lapin=off"));
    let logs = tracing_subscriber::registry().with(filter).with(filter_fn(warren_broker::may_be_logged));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    // A second start, such as in a test, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        logs.with(lines).try_init()
    } else {
        logs.with(lines.json().flatten_event(true)).try_init()
    };
    if known.is_none() {
        tracing::warn!(
            level,
            "that is no log level: write error, warn, info, debug or trace. It is info until then"
        );
    }
}

/// What is no level at all is no filter: its words would be taken for the names of parts, and nothing else be logged.
fn filter_of(level: &str) -> Option<&str> {
    let known = level.contains('=')
        || level.split(',').any(|part| !part.is_empty() && part.parse::<LevelFilter>().is_ok());
    known.then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_and_no_filter_is_not_taken_for_one() {
        for (level, expected) in [
            ("debug", "debug"),
            ("WARN", "WARN"),
            ("warren_sidecar=debug", "warren_sidecar=debug"),
            ("info,warren_broker=off", "info,warren_broker=off"),
            ("warning", "info"),
            ("", "info"),
        ] {
            assert_eq!(filter_of(level).unwrap_or("info"), expected);
        }
    }

    #[test]
    fn frames_which_show_the_password_are_not_logged_whatever_is_asked_for() {
        use tracing::{Level, enabled};
        let wanted = EnvFilter::new("lapin=trace");
        let logs = tracing_subscriber::registry().with(wanted).with(filter_fn(warren_broker::may_be_logged));
        tracing::subscriber::with_default(logs, || {
            assert!(enabled!(target: "lapin::io_loop", Level::DEBUG));
            assert!(!enabled!(target: "lapin::io_loop", Level::TRACE));
        });
    }
}
