//! Warren's kubectl plugin.
//!
//! Each subcommand is `arguments -> read -> pure report -> text`: what is read from the cluster or from files is a value, and
//! the report is a function of it.

pub mod cluster;
pub mod doctor;
pub mod explain;
pub mod exposition;
pub mod read;
pub mod simulate;
pub mod table;
pub mod top;

use std::io::{ErrorKind, Write};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use self::cluster::{Cluster, Target};

/// Warren's kubectl plugin: why a Worker has its pods, what waits where, what is wrong, and what a load would do.
#[derive(Debug, Parser)]
#[command(name = "kubectl warren", version)]
pub struct Cli {
    #[command(flatten)]
    target: Target,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show Queues with what waits in them, and Workers with their pods
    Top(top::Top),
    /// Say why a Worker has the replicas that it has
    Explain(explain::Explain),
    /// Check an installation and its Queues and Workers, and say what to do
    Doctor(doctor::Doctor),
    /// Run Warren's scaler, and KEDA with an HPA beside it, over a recorded load in virtual time
    Simulate(simulate::Simulate),
}

/// What a subcommand has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Whether all is well: the exit status.
    pub well: bool,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, well: true }
    }
}

impl Answer {
    /// Writes the text, and gives whether all is well. A reader that has gone away, such as `head`, is no failure.
    ///
    /// # Errors
    /// It cannot be written, to a full disk for instance.
    pub fn write(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        match out.write_all(harmless(&self.text).as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(self.well),
            written => written.context("write the answer").map(|()| self.well),
        }
    }
}

/// A text in which nothing moves a terminal's cursor or speaks to it otherwise: parts of it were written by whoever may write
/// events, or runs a broker.
pub fn harmless(text: &str) -> String {
    let harmless = |character: char| match character {
        '\n' => character,
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    };
    text.chars().map(harmless).collect()
}

/// A text of others within a line of ours: its own line ends would make it look like several.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// Says of a namespace that there is nothing of Warren in it.
fn nothing_in(namespace: &str) -> String {
    format!("No Queues and Workers in namespace {namespace}.\n")
}

/// The name in `KIND/NAME`, or NAME alone; `kinds`: the kind as kubectl takes it, the plainest first.
fn name<const N: usize>(text: &str, kinds: [&str; N]) -> Result<String, String> {
    let (kind, name) = text.split_once('/').unwrap_or((kinds[0], text));
    match kinds.contains(&&*kind.to_ascii_lowercase()) && !name.is_empty() {
        true => Ok(name.to_owned()),
        false => Err(format!("write {}/NAME", kinds[0])),
    }
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What cannot be read, as a sentence.
    pub async fn run(mut self) -> anyhow::Result<Answer> {
        self.target.tidy();
        let cluster = Cluster::connect(&self.target);
        match self.command {
            Command::Top(command) => command.run(&cluster.await?).await,
            Command::Explain(command) => command.run(&cluster.await?).await,
            Command::Doctor(command) => command.run(&cluster.await?).await,
            Command::Simulate(command) => command.run(self.target.namespace.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_written() {
        let answer = Answer::from("ok\n\u{1b}[1A\u{9b}2K\rwell\u{7}\n".to_owned());
        let mut out = Vec::new();
        answer.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "ok\n\u{fffd}[1A\u{fffd}2K\u{fffd}well\u{fffd}\n");
    }

    #[test]
    fn the_cluster_is_named_before_or_after_the_subcommand() {
        for arguments in [["-n", "shop", "top"], ["top", "-n", "shop"], ["top", "--namespace", "shop"]] {
            let cli = Cli::try_parse_from([&["kubectl-warren"], &arguments[..]].concat()).unwrap();
            assert_eq!(cli.target.namespace.as_deref(), Some("shop"), "{arguments:?}");
        }
    }

    #[test]
    fn what_a_script_leaves_empty_says_nothing() {
        let empty = ["kubectl-warren", "top", "--kubeconfig", "", "--context", "", "-n", ""];
        let mut target = Cli::try_parse_from(empty).unwrap().target;
        target.tidy();
        assert_eq!((target.kubeconfig, target.context, target.namespace), (None, None, None));
    }

    #[test]
    fn a_thing_is_named_with_or_without_its_kind() {
        let worker = |text| name(text, ["worker", "wk"]);
        assert_eq!((worker("a").unwrap(), worker("wk/a").unwrap()), ("a".to_owned(), "a".to_owned()));
        assert_eq!(worker("queue/a"), Err("write worker/NAME".to_owned()));
        assert!(worker("worker/").is_err() && worker("").is_err());
        for printed in
            [["explain", "worker.warren.dev/a"], ["doctor", "queue.warren.dev/a"], ["explain", "Worker/a"]]
        {
            assert!(Cli::try_parse_from([&["kubectl-warren"], &printed[..]].concat()).is_ok(), "{printed:?}");
        }
        assert!(Cli::try_parse_from(["kubectl-warren", "explain", "queue/a"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-warren", "doctor", "worker/a"]).is_err());
    }

    /// Takes nothing, or takes all and fails when it is to keep it.
    struct Failing {
        at_once: bool,
        kind: ErrorKind,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.at_once { Err(self.kind.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.kind.into())
        }
    }

    #[test]
    fn a_full_disk_is_a_failure_and_a_reader_that_has_gone_away_is_none() {
        let answer = Answer { text: "12 ok\n".to_owned(), well: false };
        for at_once in [true, false] {
            assert!(answer.write(&mut Failing { at_once, kind: ErrorKind::StorageFull }).is_err());
            assert!(!answer.write(&mut Failing { at_once, kind: ErrorKind::BrokenPipe }).unwrap());
        }
    }
}
