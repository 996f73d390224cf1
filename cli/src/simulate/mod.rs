//! `kubectl warren simulate`: `manifest + trace -> two runs -> figures -> text, JSON, HTML`.
//!
//! The scaler is the operator's own [`warren_operator::scaler::decide`], looked at as often as the operator looks. Beside it
//! runs a model of KEDA with an HPA. Everything but reading and writing files is pure.

pub mod book;
pub mod figures;
pub mod keda;
pub mod manifest;
pub mod picture;
pub mod setting;
pub mod shapes;
pub mod trace;
pub mod warren;
pub mod world;

use std::path::PathBuf;
use std::{fs, io};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use terminal_size::{Width, terminal_size};

use self::figures::Figures;
use self::keda::KedaHpa;
use self::manifest::Wanted;
use self::setting::{Protocol, Setting};
use self::trace::Trace;
use self::warren::Warren;
use self::world::{Run, simulate};
use crate::Answer;
use crate::table::table;

/// Runs Warren's scaler, and KEDA with an HPA beside it, over a recorded load in virtual time.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Manifest with the Worker, - for standard input; its Queue may be in it too
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// The Worker's name, where the manifest has several; --namespace chooses among those of a name
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,

    /// CSV of the load, a line an interval: the second at which it starts, the messages that arrive in it, and optionally the
    /// seconds of a handler call. An interval lasts until the next one starts: write empty ones, too
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,

    /// Seconds of a handler call
    #[arg(long, value_name = "SECONDS")]
    service_seconds: f64,

    /// Seconds from the request for a pod to its first message
    #[arg(long, value_name = "SECONDS")]
    startup_seconds: f64,

    /// What KEDA asks the broker by
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value_t)]
    keda: Protocol,

    /// Print the figures as one JSON object, on the last line
    #[arg(long)]
    json: bool,

    /// Write a page with the plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Both runs with their figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Warren's run.
    pub warren: (Run, Figures),
    /// KEDA's and the HPA's run.
    pub keda_hpa: (Run, Figures),
}

/// The figures as `--json` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Both {
    /// Warren's figures.
    pub warren: Figures,
    /// KEDA's and the HPA's figures.
    pub keda_hpa: Figures,
}

impl Comparison {
    /// Runs a trace through under both. Every call ends well, also one that outlasts the handler's time-out.
    pub fn of(setting: &Setting, trace: &Trace) -> Self {
        let spec = &setting.spec;
        let warren = simulate(trace, setting, &mut Warren::new(spec.clone()));
        let service = trace.mean_service(setting.pods.service_seconds);
        let mut keda =
            KedaHpa::new(spec.min, spec.max, spec.target_wait, service, spec.concurrency, setting.keda);
        let keda_hpa = simulate(trace, setting, &mut keda);
        let horizon = warren.ended_at.max(keda_hpa.ended_at);
        let figures = |run: &Run| Figures::of(run, spec.target_wait, spec.min, horizon);
        let (ours, theirs) = (figures(&warren), figures(&keda_hpa));
        Self { warren: (warren, ours), keda_hpa: (keda_hpa, theirs) }
    }

    /// The figures alone.
    pub const fn figures(&self) -> Both {
        Both { warren: self.warren.1, keda_hpa: self.keda_hpa.1 }
    }

    /// The figures for a reader: what it is, Warren's, and KEDA's and the HPA's.
    fn rows(&self) -> Vec<[String; 3]> {
        let both = rows(&self.warren.1).into_iter().zip(rows(&self.keda_hpa.1));
        both.map(|((name, ours), (_, theirs))| [name.to_owned(), ours, theirs]).collect()
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        table(["", "WARREN", "KEDA + HPA"], &self.rows())
    }
}

/// What a reader must know of how it was simulated: what KEDA asks by, unless that is as always, and calls that outlast the handler's
/// time-out, if there are any.
fn caveats(setting: &Setting, trace: &Trace) -> Vec<String> {
    let keda = match setting.keda {
        Protocol::Amqp => None,
        Protocol::Http => Some(
            "KEDA asks the management plugin (protocol: http), and counts what is not acknowledged, too."
                .to_owned(),
        ),
    };
    let (longest, allowed) =
        (trace.longest_service(setting.pods.service_seconds), setting.spec.handler_timeout);
    let outlast = (longest > allowed).then(|| {
        format!(
            "Calls of up to {longest} s outlast handler.http.timeoutSeconds, {allowed}. They are simulated as work that answers \"later\" and asks for more time; any other would be ended then and tried again: raise timeoutSeconds for it."
        )
    });
    keda.into_iter().chain(outlast).collect()
}

fn rows(figures: &Figures) -> [(&'static str, String); 8] {
    let Figures {
        wait_p50,
        wait_p95,
        wait_max,
        replica_seconds,
        peak_replicas,
        changes,
        seconds_over_target,
        unfinished,
    } = figures;
    [
        ("wait p50", format!("{wait_p50:.1} s")),
        ("wait p95", format!("{wait_p95:.1} s")),
        ("wait max", format!("{wait_max:.1} s")),
        ("replica-seconds", format!("{replica_seconds:.0}")),
        ("peak replicas", peak_replicas.to_string()),
        ("changes", changes.to_string()),
        ("seconds over target", format!("{seconds_over_target:.0}")),
        ("unfinished", unfinished.to_string()),
    ]
}

impl Simulate {
    /// Reads, runs, prints. `namespace`: the Worker's, where the manifest has several.
    ///
    /// # Errors
    /// A file that cannot be read or written, or what is wrong in it.
    pub fn run(&self, namespace: Option<&str>) -> anyhow::Result<Answer> {
        let read = |path: &PathBuf| {
            let text = if path.as_os_str() == "-" {
                io::read_to_string(io::stdin())
            } else {
                fs::read_to_string(path)
            };
            text.with_context(|| format!("read {}", path.display()))
        };
        let manifest = read(&self.file)?;
        let name = self.worker.as_deref().filter(|name| !name.is_empty());
        let wanted = Wanted { name, namespace };
        let mut setting = Setting::parse(&manifest, wanted, self.service_seconds, self.startup_seconds)?;
        setting.keda = self.keda;
        let trace = Trace::parse(&read(&self.trace)?)?;
        let comparison = Comparison::of(&setting, &trace);
        if let Some(path) = &self.html {
            let page = picture::page(&setting, &trace, &comparison);
            fs::write(path, page).with_context(|| format!("write {}", path.display()))?;
        }
        let width = terminal_size().map_or(usize::MAX, |(Width(width), _)| usize::from(width));
        let mut text = picture::terminal(&comparison, width);
        text += &comparison.table();
        for caveat in caveats(&setting, &trace) {
            text += &format!("\n{caveat}\n");
        }
        if self.json {
            text += &serde_json::to_string(&comparison.figures())?;
            text.push('\n');
        }
        Ok(text.into())
    }
}

#[cfg(test)]
mod random_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::Cli;

    #[tokio::test]
    async fn with_json_the_last_line_is_one_object_with_the_figures_of_both() {
        let example = |file: &str| format!("{}/../examples/traces/{file}", env!("CARGO_MANIFEST_DIR"));
        let (worker, trace) = (example("worker.yaml"), example("step.csv"));
        let files = ["kubectl-warren", "simulate", "--file", &worker, "--trace", &trace];
        let rest = ["--service-seconds", "0.5", "--startup-seconds", "5", "--json"];
        let cli = Cli::try_parse_from([&files[..], &rest].concat()).unwrap();
        let text = cli.run().await.unwrap().text;
        let last = text.lines().last().unwrap();
        let both: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_str(last).unwrap();
        assert!(both.keys().eq(["keda_hpa", "warren"]), "{last}");
        let figures = [
            "changes",
            "peak_replicas",
            "replica_seconds",
            "seconds_over_target",
            "unfinished",
            "wait_max",
            "wait_p50",
            "wait_p95",
        ];
        assert!(both.values().all(|of_one| of_one.keys().eq(figures)), "{last}");
        assert!(both["warren"]["wait_p95"] < both["keda_hpa"]["wait_p95"], "{last}");
        assert!(both["warren"]["wait_p50"] < both["warren"]["wait_max"], "{last}");
    }

    #[test]
    fn both_know_how_long_the_trace_says_that_calls_take() {
        let trace = Trace::parse("0,300,2\n60,0,2").unwrap();
        let [fast, slow] = [0.1, 2.0].map(|otherwise| {
            Comparison::of(&Setting::parse(book::WORKER, Wanted::default(), otherwise, 5.0).unwrap(), &trace)
        });
        assert_eq!(fast, slow);
    }

    #[test]
    fn pods_that_keda_lets_go_begin_what_they_hold_too() {
        let wide = "consumer: {prefetch: 200, concurrency: 1}\n  queueRef";
        let mut setting =
            Setting::parse(&book::WORKER.replace("queueRef", wide), Wanted::default(), 2.0, 5.0).unwrap();
        // What pods hold is no load to KEDA: it lets them go with it.
        let trace = Trace::parse("0,2000\n10,0").unwrap();
        let [at_once, in_time] = [0.0, 15.0].map(|starts| {
            setting.pods.drain_starts_seconds = starts;
            Comparison::of(&setting, &trace).keda_hpa.1
        });
        assert!(in_time.wait_max < at_once.wait_max, "{in_time:?} {at_once:?}");
        assert!(in_time.changes < at_once.changes, "{in_time:?} {at_once:?}");
    }

    #[test]
    fn calls_that_outlast_the_time_out_are_no_stall() {
        let mut setting = Setting::parse(book::WORKER, Wanted::default(), 100.0, 120.0).unwrap();
        setting.spec.min = 1;
        // The one pod is at work for 100 seconds, and for 60 of them nothing moves: those that come then get their pods at once.
        let both = Comparison::of(&setting, &Trace::parse("0,10\n1,0\n70,100\n71,0").unwrap());
        let asked = both.warren.0.points.iter().find(|point| point.pods > 40).unwrap();
        assert!(asked.at < 75.0, "{asked:?}");
    }
}
