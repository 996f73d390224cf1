//! `kubectl warren doctor`: `read -> facts -> checks -> checklist`. What can be told from outside, as the user who asks.

mod checks;
mod facts;

use clap::Args;

use self::checks::{Check, Verdict, checks};
use crate::cluster::Cluster;
use crate::{Answer, name};

/// The kind as kubectl takes it.
const KINDS: [&str; 4] = ["queue", "queues", "wq", "queues.warren.dev"];

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
        let well = checks.iter().all(|check| check.verdict != Verdict::Bad);
        Ok(Answer { text: checklist(&checks), well })
    }
}

/// A line a check, and below it what to do.
fn checklist(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { verdict, what, detail } in checks {
        let mark = match verdict {
            Verdict::Good => "ok     ",
            Verdict::Bad => "WRONG  ",
            Verdict::Unknown => "unknown",
        };
        text += &format!("{mark}  {what}\n");
        if let Some(detail) = detail {
            text += &format!("           {detail}\n");
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    text + &format!(
        "\n{} ok, {} wrong, {} unknown\n",
        count(Verdict::Good),
        count(Verdict::Bad),
        count(Verdict::Unknown)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checklist_ends_with_its_counts() {
        let checks = [Check::good("a"), Check::bad("b", "do c"), Check::unknown("d", "needs e")];
        let text = checklist(&checks);
        assert_eq!(
            text,
            "ok       a\nWRONG    b\n           do c\nunknown  d\n           needs e\n\n1 ok, 1 wrong, 1 unknown\n"
        );
    }
}
