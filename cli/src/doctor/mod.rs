//! `kubectl warren doctor`: `read -> facts -> checks -> checklist`. What can be told from outside, as the user who asks.

mod checks;
mod facts;

use clap::Args;

use self::checks::{Check, Verdict, checks};
use self::facts::Facts;
use crate::cluster::Cluster;
use crate::{Answer, name, nothing_in, one_line};

/// The kind as kubectl takes it, and as it prints it.
const KINDS: [&str; 5] = ["queue", "queues", "wq", "queues.warren.dev", "queue.warren.dev"];

/// Checks an installation and its Queues and Workers, and says what to do.
#[derive(Debug, Args)]
pub struct Doctor {
    /// queue/NAME: only this Queue and its Workers; default: all of the namespace
    #[arg(value_parser = |text: &str| name(text, KINDS))]
    queue: Option<String>,
}

impl Doctor {
    /// Reads and prints; the exit status says whether all is well.
    ///
    /// # Errors
    /// The API server cannot be reached, or there is no such Queue.
    pub async fn run(&self, cluster: &Cluster) -> anyhow::Result<Answer> {
        let facts = facts::read(cluster, self.queue.as_deref()).await?;
        let checks = checks(&facts);
        Ok(Answer { text: checklist(&checks, &nothing(&facts)), well: is_well(&facts, &checks) })
    }
}

/// Whether nothing is wrong, as far as can be seen, and Queues and Workers can be: else nothing was checked.
fn is_well(facts: &Facts, checks: &[Check]) -> bool {
    let is_seen = facts.queues.is_ok() && facts.workers.is_ok();
    is_seen && checks.iter().all(|check| check.verdict != Verdict::Bad)
}

/// What is said where there is nothing to check, lest that be taken for all being well.
fn nothing(facts: &Facts) -> String {
    match (&facts.queues, &facts.workers) {
        (Ok(queues), Ok(workers)) if queues.is_empty() && workers.is_empty() => {
            format!("\n{}", nothing_in(&facts.namespace))
        }
        _ => String::new(),
    }
}

/// A line a check, and below it what to do; then a remark and the counts.
fn checklist(checks: &[Check], remark: &str) -> String {
    let mut text = String::new();
    for Check { verdict, what, detail } in checks {
        let mark = match verdict {
            Verdict::Good => "ok     ",
            Verdict::Bad => "WRONG  ",
            Verdict::Unknown => "unknown",
        };
        text += &format!("{mark}  {}\n", one_line(what));
        if let Some(detail) = detail {
            text += &format!("           {}\n", one_line(detail));
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    text + remark
        + &format!(
            "\n{} ok, {} wrong, {} unknown\n",
            count(Verdict::Good),
            count(Verdict::Bad),
            count(Verdict::Unknown)
        )
}

#[cfg(test)]
mod tests {
    use super::checks::tests::facts;
    use super::*;

    #[test]
    fn a_checklist_ends_with_its_counts() {
        let checks = [Check::good("a"), Check::bad("b", "do c"), Check::unknown("d", "needs e\nok f")];
        let text = checklist(&checks, "");
        assert_eq!(
            text,
            "ok       a\nWRONG    b\n           do c\nunknown  d\n           needs e ok f\n\n1 ok, 1 wrong, 1 unknown\n"
        );
    }

    #[test]
    fn a_namespace_without_queues_and_workers_is_said_to_be_one() {
        let nothing_there = || Facts { queues: Ok(vec![]), workers: Ok(vec![]), ..facts() };
        let text = checklist(&[Check::good("a")], &nothing(&nothing_there()));
        assert_eq!(
            text,
            "ok       a\n\nNo Queues and Workers in namespace shop.\n\n1 ok, 0 wrong, 0 unknown\n"
        );
        assert_eq!(nothing(&facts()), "");
        let unread = Facts { queues: Err("queues is forbidden".to_owned()), ..nothing_there() };
        assert_eq!(nothing(&unread), "", "there may be some");
        let sound = [Check::good("a"), Check::unknown("d", "needs e")];
        assert!(is_well(&nothing_there(), &sound) && !is_well(&unread, &sound), "nothing was checked");
    }
}
