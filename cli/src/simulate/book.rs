//! The files in the repository that the simulator makes: example traces, their plots, and the table of `docs/scaling.md`.
//! Pure.

use std::fmt::Write as _;

use super::manifest::Wanted;
use super::setting::{Setting, SettingError};
use super::shapes::{ALL, Shape};
use super::trace::{Trace, TraceError};
use super::{Both, Comparison, picture};

/// The manifest that the example traces are run with.
pub const WORKER: &str = include_str!("../../../examples/traces/worker.yaml");
/// Seconds that a pod takes to start in the examples.
pub const STARTUP_SECONDS: f64 = 5.0;
/// Where in the page the table and plots are.
const BEGIN: &str = "<!-- made by `cargo xtask generate` from here -->\n";
const END: &str = "<!-- to here -->\n";

/// Why the files cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The manifest.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The page has no place for the table.
    #[error("docs/scaling.md has no lines {BEGIN:?} and {END:?}")]
    NoPlace,
}

/// An example load with what became of it.
#[derive(Clone, Debug)]
pub struct Chapter {
    /// The load.
    pub shape: Shape,
    /// Its trace.
    pub trace: Trace,
    /// Both runs.
    pub comparison: Comparison,
}

/// Runs every example.
///
/// # Errors
/// A manifest or trace that cannot be read, which a test rules out.
pub fn chapters() -> Result<Vec<Chapter>, BookError> {
    let run = |shape: &Shape| {
        let setting = Setting::parse(WORKER, Wanted::default(), shape.service_seconds, STARTUP_SECONDS)?;
        let trace = Trace::parse(&shape.csv())?;
        let comparison = Comparison::of(&setting, &trace);
        Ok(Chapter { shape: *shape, trace, comparison })
    };
    ALL.iter().map(run).collect()
}

/// Every file by its path from the repository's root, with its text; `page` is the `docs/scaling.md` that is there.
///
/// # Errors
/// See [`BookError`].
pub fn files(page: &str) -> Result<Vec<(String, String)>, BookError> {
    let chapters = chapters()?;
    let mut files = Vec::new();
    for Chapter { shape, trace, comparison } in &chapters {
        files.push((format!("examples/traces/{}.csv", shape.name), shape.csv()));
        let plot = picture::svg(shape.title, trace, comparison, "sans-serif");
        files.push((format!("docs/scaling/{}.svg", shape.name), plot));
    }
    let (before, rest) = page.split_once(BEGIN).ok_or(BookError::NoPlace)?;
    let (_, after) = rest.split_once(END).ok_or(BookError::NoPlace)?;
    files.push(("docs/scaling.md".to_owned(), format!("{before}{BEGIN}{}{END}{after}", section(&chapters))));
    Ok(files)
}

fn section(chapters: &[Chapter]) -> String {
    let mut text = "\n| Load | Wait p50, s | Wait p95, s | Wait max, s | Replica-seconds | Peak | Changes | Seconds over target |\n|---|---|---|---|---|---|---|---|\n".to_owned();
    for Chapter { shape, comparison, .. } in chapters {
        let Both { warren: w, keda_hpa: k } = comparison.figures();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.1} / {:.1} | **{:.1}** / {:.1} | {:.1} / {:.1} | {:.0} / {:.0} ({:.2}) | {} / {} | {} / {} | {:.0} / {:.0} |",
            shape.name,
            w.wait_p50,
            k.wait_p50,
            w.wait_p95,
            k.wait_p95,
            w.wait_max,
            k.wait_max,
            w.replica_seconds,
            k.replica_seconds,
            w.replica_seconds / k.replica_seconds.max(1.0),
            w.peak_replicas,
            k.peak_replicas,
            w.changes,
            k.changes,
            w.seconds_over_target,
            k.seconds_over_target,
        );
    }
    text.push('\n');
    for Chapter { shape, .. } in chapters {
        let _ = writeln!(
            text,
            "![{title}](scaling/{name}.svg)\n\n`--trace examples/traces/{name}.csv --service-seconds {service}`\n",
            title = shape.title,
            name = shape.name,
            service = shape.service_seconds,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_every_example_warren_waits_less_and_costs_no_more() {
        for Chapter { shape, comparison, .. } in chapters().unwrap() {
            let Both { warren, keda_hpa } = comparison.figures();
            let name = shape.name;
            let times = if shape.burst { 3.0 } else { 1.0 };
            assert!(warren.wait_p95 * times < keda_hpa.wait_p95, "{name}: {warren:?} {keda_hpa:?}");
            assert!(
                warren.replica_seconds <= 1.1 * keda_hpa.replica_seconds,
                "{name}: {warren:?} {keda_hpa:?}"
            );
            assert_eq!((warren.unfinished, keda_hpa.unfinished), (0, 0), "{name}");
        }
    }
}
