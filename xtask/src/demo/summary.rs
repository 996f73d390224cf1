//! What became of every order.

use std::time::Duration;

use serde::Serialize;

/// What was counted while the story ran.
pub(crate) struct Facts {
    /// Orders that the broker confirmed.
    pub(crate) published: u64,
    /// Invoices in the ledger, one for each order.
    pub(crate) invoices: u64,
    /// Messages in the dead-letter queue.
    pub(crate) dead_lettered: u64,
    /// Orders that the ledger was told of again: handled twice, invoiced once.
    pub(crate) duplicates: u64,
    /// Deliveries that the broker marked as redelivered.
    pub(crate) redelivered: u64,
    /// Most pods at once.
    pub(crate) peak_replicas: u64,
    /// Pods in the end.
    pub(crate) final_replicas: u64,
    /// From the first publish to the first invoice.
    pub(crate) first_handled: Duration,
}

/// The demo's result; with `--json` its last line.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    published: u64,
    handled: u64,
    dead_lettered: u64,
    pub(crate) lost: u64,
    duplicates: u64,
    redelivered: u64,
    peak_replicas: u64,
    final_replicas: u64,
    seconds_to_first_handled: f64,
    seconds: f64,
}

impl Summary {
    pub(crate) fn of(facts: &Facts, whole: Duration) -> Self {
        let Facts { published, invoices, dead_lettered, duplicates, redelivered, .. } = *facts;
        Self {
            published,
            handled: invoices,
            dead_lettered,
            lost: published.saturating_sub(invoices + dead_lettered),
            duplicates,
            redelivered,
            peak_replicas: facts.peak_replicas,
            final_replicas: facts.final_replicas,
            seconds_to_first_handled: tenths(facts.first_handled),
            seconds: tenths(whole),
        }
    }

    /// The result for a reader.
    pub(crate) fn text(&self) -> String {
        format!(
            "
  orders published      {:>7}
  handled (invoiced)    {:>7}
  dead-lettered         {:>7}
  lost                  {:>7}
  handled twice         {:>7}   the killed pod's work, done again by another; invoiced once
  redelivered           {:>7}
  most pods at once     {:>7}
  pods in the end       {:>7}
  first order handled   {:>7.1} s after the first publish, from zero pods
",
            self.published,
            self.handled,
            self.dead_lettered,
            self.lost,
            self.duplicates,
            self.redelivered,
            self.peak_replicas,
            self.final_replicas,
            self.seconds_to_first_handled,
        )
    }
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_invoiced_nor_dead_lettered_is_lost() {
        let facts = Facts {
            published: 100,
            invoices: 90,
            dead_lettered: 4,
            duplicates: 1,
            redelivered: 1,
            peak_replicas: 3,
            final_replicas: 0,
            first_handled: Duration::from_millis(1234),
        };
        let summary = Summary::of(&facts, Duration::from_secs(9));
        assert_eq!(summary.lost, 6);
        assert!(serde_json::to_string(&summary).unwrap().contains("\"seconds_to_first_handled\":1.2"));
    }
}
