//! The demo's live view: replicas and backlog as Prometheus scraped them.

use anyhow::Result;
use warren_tests::prometheus::Prometheus;

/// What is shown of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moment {
    /// Messages ready in the queue.
    pub(crate) backlog: f64,
    /// Pods that Warren wants.
    pub(crate) desired: f64,
    /// Pods that are ready.
    pub(crate) ready: f64,
    /// Deliveries acknowledged by all pods together, a second.
    pub(crate) rate: f64,
}

/// Widest bar, in characters.
const BAR: usize = 30;

impl Moment {
    /// Asks Prometheus; what it has not scraped yet counts as 0.
    pub(crate) async fn now(prometheus: &Prometheus) -> Result<Self> {
        let ask = async |query: &str| prometheus.value(query).await.map(Option::unwrap_or_default);
        Ok(Self {
            backlog: ask(r#"max(warren_operator_queue_ready_messages{namespace="shop"})"#).await?,
            desired: ask(r#"max(warren_operator_worker_replicas{namespace="shop",state="desired"})"#).await?,
            ready: ask(r#"max(warren_operator_worker_replicas{namespace="shop",state="ready"})"#).await?,
            rate: ask(r#"sum(irate(warren_sidecar_outcomes_total{namespace="shop"}[5s]))"#).await?,
        })
    }

    /// One line: a bar of the backlog and a box a pod.
    pub(crate) fn line(&self, seconds: u64, most: u64) -> String {
        let share = if most == 0 { 0.0 } else { (self.backlog / most as f64).clamp(0.0, 1.0) };
        let filled = (share * BAR as f64).ceil() as usize;
        let (ready, desired) = (self.ready as usize, self.desired as usize);
        let pods = "■".repeat(ready) + &"□".repeat(desired.saturating_sub(ready));
        format!(
            "{seconds:>4} s  backlog {:>5.0} {:<BAR$}  pods {ready:>2}/{desired:<2} {pods:<8} {:>5.0} orders/s",
            self.backlog,
            "▇".repeat(filled),
            self.rate,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_a_box_a_pod() {
        let moment = Moment { backlog: 50.0, desired: 3.0, ready: 1.0, rate: 2.0 };
        let line = moment.line(7, 100);
        assert!(
            line.contains("■□□") && line.contains("pods  1/3") && line.contains("backlog    50"),
            "{line}"
        );
        assert_eq!(line.matches('▇').count(), 15);
    }
}
