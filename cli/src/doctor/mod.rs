//! `kubectl warren doctor`: `read -> facts -> checks -> checklist`. What can be told from outside, as the user who asks.

mod checks;
mod facts;

use anyhow::bail;
use clap::Args;

use self::checks::{Check, Verdict, checks};
use crate::Answer;
use crate::cluster::{Cluster, Target};

/// Checks an installation and its Queues and Workers, and says what to do.
#[derive(Debug, Args)]
pub struct Doctor {
    /// queue/NAME: only this Queue and its Workers; default: all of the namespace
    queue: Option<String>,

    #[command(flatten)]
    target: Target,
}

impl Doctor {
    /// Reads and prints; the exit status says whether all is well.
    ///
    /// # Errors
    /// The API server cannot be reached, or there is no such Queue.
    pub async fn run(&self) -> anyhow::Result<Answer> {
        let queue = self.queue.as_deref().map(name).transpose()?;
        let cluster = Cluster::connect(&self.target).await?;
        let facts = facts::read(&cluster, queue).await?;
        let checks = checks(&facts);
        let well = checks.iter().all(|check| check.verdict != Verdict::Bad);
        Ok(Answer { text: checklist(&checks), well })
    }
}

/// The name in `queue/NAME`.
fn name(text: &str) -> anyhow::Result<&str> {
    match text.split_once('/') {
        None => Ok(text),
        Some(("queue" | "queues" | "wq" | "queues.warren.dev", name)) if !name.is_empty() => Ok(name),
        Some((kind, _)) => bail!("{kind} is no Queue: write queue/NAME"),
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
