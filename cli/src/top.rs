//! `kubectl warren top`: `read twice, a second apart -> rows -> tables`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::try_join;
use kube::ResourceExt;
use kube::api::ListParams;
use warren_api::conditions::READY;
use warren_api::metrics::{IN_FLIGHT, OUTCOMES, UNSETTLED};
use warren_api::{Queue, Worker};

use crate::Answer;
use crate::cluster::{Cluster, Target};
use crate::exposition::Exposition;
use crate::table::table;

/// Seconds over which rates are measured.
const OVER: Duration = Duration::from_secs(1);
/// What cannot be told.
const UNKNOWN: &str = "?";

/// Shows Queues with what waits in them, and Workers with their pods.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    target: Target,
}

/// Sidecars' answers by Worker.
type Sidecars = BTreeMap<String, Vec<Option<Exposition>>>;

/// Everything that was read.
#[derive(Debug, Default)]
struct Seen {
    namespace: String,
    queues: Vec<Queue>,
    workers: Vec<Worker>,
    operator: Option<Exposition>,
    before: Sidecars,
    after: Sidecars,
}

impl Top {
    /// Reads and prints.
    ///
    /// # Errors
    /// The API server cannot be reached or refuses.
    pub async fn run(&self) -> anyhow::Result<Answer> {
        let cluster = Cluster::connect(&self.target).await?;
        let all = ListParams::default();
        let (queue_api, worker_api) = (cluster.api::<Queue>(), cluster.api::<Worker>());
        let (queues, workers) =
            try_join!(queue_api.list(&all), worker_api.list(&all)).context("list Queues and Workers")?;
        let before = cluster.sidecars(None).await.context("list pods")?;
        tokio::time::sleep(OVER).await;
        let after = cluster.sidecars(None).await.context("list pods")?;
        let (operator, note) = match cluster.operator_metrics().await {
            Ok(metrics) => (Some(metrics), String::new()),
            Err(error) => {
                (None, format!("\nWhat waits is not known: {error:#}. See kubectl warren doctor.\n"))
            }
        };
        let seen = Seen {
            namespace: cluster.namespace.clone(),
            queues: queues.items,
            workers: workers.items,
            operator,
            before,
            after,
        };
        Ok((seen.text() + &note).into())
    }
}

impl Seen {
    fn text(&self) -> String {
        if self.queues.is_empty() && self.workers.is_empty() {
            return format!("No Queues and Workers in namespace {}.\n", self.namespace);
        }
        let queues: Vec<_> = self.queues.iter().map(|queue| self.queue(queue)).collect();
        let workers: Vec<_> = self.workers.iter().map(|worker| self.worker(worker)).collect();
        let queues =
            table(["QUEUE", "OK", "TYPE", "READY", "UNACKED", "RETRYING", "DEAD", "WORKERS"], &queues);
        let workers =
            table(["WORKER", "OK", "PODS", "DESIRED", "RUNNING", "HELD", "PER SECOND", "SCALING"], &workers);
        format!("{queues}\n{workers}")
    }

    fn queue(&self, queue: &Queue) -> [String; 8] {
        let name = queue.name_any();
        let labels = [("namespace", self.namespace.as_str()), ("queue", name.as_str())];
        let messages = |metric| {
            let known = self.operator.as_ref().and_then(|metrics| metrics.sum(metric, &labels));
            known.map_or_else(|| UNKNOWN.to_owned(), |messages| format!("{messages:.0}"))
        };
        let workers: Vec<String> = self
            .workers
            .iter()
            .filter(|worker| worker.spec.queue_ref.name == name)
            .map(ResourceExt::name_any)
            .collect();
        let held = workers.iter().filter_map(|worker| sum(&self.after, worker, UNSETTLED));
        // An empty sum of floats would be -0.
        let unacked = held.fold(0.0, |sum, held| sum + held);
        let conditions = queue.status.iter().flat_map(|status| &status.conditions);
        [
            name.clone(),
            condition(conditions.map(|c| (c.type_.as_str(), c.status.as_str()))),
            format!("{:?}", queue.spec.queue_type),
            messages("warren_operator_queue_ready_messages"),
            format!("{unacked:.0}"),
            messages("warren_operator_queue_retrying_messages"),
            messages("warren_operator_queue_dead_messages"),
            if workers.is_empty() { "-".to_owned() } else { workers.join(",") },
        ]
    }

    fn worker(&self, worker: &Worker) -> [String; 8] {
        let name = worker.name_any();
        let status = worker.status.clone().unwrap_or_default();
        let number = |value: Option<f64>| value.map_or_else(|| "0".to_owned(), |value| format!("{value:.0}"));
        let (before, after) = (sum(&self.before, &name, OUTCOMES), sum(&self.after, &name, OUTCOMES));
        // Less than before: a pod has gone meanwhile.
        let rate = before.zip(after).map(|(before, after)| (after - before).max(0.0) / OVER.as_secs_f64());
        [
            name.clone(),
            condition(status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str()))),
            status.replicas.to_string(),
            status.desired_replicas.to_string(),
            number(sum(&self.after, &name, IN_FLIGHT)),
            number(sum(&self.after, &name, UNSETTLED)),
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
            status
                .scaling
                .map_or_else(|| format!("{:?}", worker.spec.scaling.mode), |scaling| scaling.reason),
        ]
    }
}

/// Sum over the sidecars that answered.
fn sum(sidecars: &Sidecars, worker: &str, metric: &str) -> Option<f64> {
    let answers = sidecars.get(worker)?;
    let mut found = answers.iter().flatten().filter_map(|metrics| metrics.sum(metric, &[])).peekable();
    found.peek()?;
    Some(found.fold(0.0, |sum, value| sum + value))
}

fn condition<'a>(mut conditions: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    conditions.find(|(kind, _)| *kind == READY).map_or(UNKNOWN, |(_, status)| status).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(in_flight: u32, outcomes: u32) -> Option<Exposition> {
        Some(Exposition::parse(&format!(
            "warren_sidecar_in_flight {in_flight}\nwarren_sidecar_unsettled {in_flight}\nwarren_sidecar_outcomes_total{{outcome=\"ack\"}} {outcomes}\n"
        )))
    }

    #[test]
    fn queues_and_workers_are_shown_with_what_waits_runs_and_passes() {
        let queue = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue", "metadata": {"name": "orders"}, "spec": {}});
        let worker = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "metadata": {"name": "invoices"},
            "spec": {"queueRef": {"name": "orders"}, "template": {}},
            "status": {"replicas": 2, "desiredReplicas": 3, "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                       "scaling": {"replicas": 3, "raw": 3, "reason": "ScaledOut", "message": ""}}});
        let of = |answers: Vec<Option<Exposition>>| Sidecars::from([("invoices".to_owned(), answers)]);
        let seen = Seen {
            namespace: "shop".to_owned(),
            queues: vec![serde_json::from_value(queue).unwrap()],
            workers: vec![serde_json::from_value(worker).unwrap()],
            operator: Some(Exposition::parse(
                "warren_operator_queue_ready_messages{namespace=\"shop\",queue=\"orders\"} 42\nwarren_operator_queue_dead_messages{namespace=\"shop\",queue=\"orders\"} 3\nwarren_operator_queue_ready_messages{namespace=\"other\",queue=\"orders\"} 1\n",
            )),
            before: of(vec![answer(1, 10), answer(1, 20)]),
            after: of(vec![answer(1, 14), answer(1, 25), None]),
        };
        let text = seen.text();
        let line = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("orders"), ["orders", "?", "Quorum", "42", "2", "?", "3", "invoices"]);
        assert_eq!(line("invoices"), ["invoices", "True", "2", "3", "2", "2", "9.0", "ScaledOut"]);
    }

    #[test]
    fn an_empty_namespace_is_said() {
        let seen = Seen { namespace: "shop".to_owned(), ..Seen::default() };
        assert_eq!(seen.text(), "No Queues and Workers in namespace shop.\n");
    }
}
