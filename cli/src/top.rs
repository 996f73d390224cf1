//! `kubectl warren top`: `read twice, a second apart -> rows -> tables`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::{join, try_join};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::ListParams;
use warren_api::conditions::READY;
use warren_api::metrics::{DEAD_MESSAGES, READY_MESSAGES, RETRYING_MESSAGES};
use warren_api::{Queue, Worker};
use warren_operator::condition::find;

use crate::cluster::{Cluster, Sidecar};
use crate::exposition::Exposition;
use crate::read::{Read, said};
use crate::table::table;
use crate::{Answer, nothing_in};

/// The least time over which rates are measured.
const OVER: Duration = Duration::from_secs(1);
/// What cannot be told.
const UNKNOWN: &str = "?";
/// What there is none of, and what nobody counts.
const NONE: &str = "-";

/// Shows Queues with what waits in them, and Workers with their pods.
#[derive(Debug, Args)]
pub struct Top {}

/// Everything that was read.
#[derive(Debug)]
struct Seen {
    namespace: String,
    queues: Vec<Queue>,
    workers: Vec<Worker>,
    /// Of the one that leads.
    operator: Read<Exposition>,
    before: Read<Vec<Sidecar>>,
    after: Read<Vec<Sidecar>>,
}

impl Top {
    /// Reads and prints.
    ///
    /// # Errors
    /// The API server cannot be reached, or refuses the Queues and Workers.
    pub async fn run(&self, cluster: &Cluster) -> anyhow::Result<Answer> {
        let all = ListParams::default();
        let (queue_api, worker_api) = (cluster.api::<Queue>(), cluster.api::<Worker>());
        let (queues, workers) =
            try_join!(queue_api.list(&all), worker_api.list(&all)).context("list Queues and Workers")?;
        let before = cluster.sidecars().await.map_err(said);
        let (operator, ()) = join!(cluster.operator_metrics(), tokio::time::sleep(OVER));
        let seen = Seen {
            namespace: cluster.namespace.clone(),
            queues: queues.items,
            workers: workers.items,
            operator: operator
                .map_err(said)
                .and_then(|metrics| metrics.ok_or("no operator leads".to_owned())),
            before,
            after: cluster.sidecars().await.map_err(said),
        };
        Ok(seen.text().into())
    }
}

impl Seen {
    fn text(&self) -> String {
        if self.queues.is_empty() && self.workers.is_empty() {
            return nothing_in(&self.namespace);
        }
        let queues: Vec<_> = self.queues.iter().map(|queue| self.queue(queue)).collect();
        let workers: Vec<_> = self.workers.iter().map(|worker| self.worker(worker)).collect();
        let queues =
            table(["QUEUE", "OK", "TYPE", "READY", "UNACKED", "RETRYING", "DEAD", "WORKERS"], &queues);
        let workers =
            table(["WORKER", "OK", "PODS", "DESIRED", "RUNNING", "HELD", "PER SECOND", "SCALING"], &workers);
        format!("{queues}\n{workers}{}", self.notes())
    }

    /// What is not counted, and what could not be read, and why.
    fn notes(&self) -> String {
        let mut notes = String::new();
        let uncounted = |queue: &Queue| self.queue(queue)[3..7].iter().any(|cell| cell == NONE);
        // Writing to a String cannot fail, here and below.
        if self.queues.iter().any(uncounted) {
            let _ = writeln!(
                notes,
                "\n- in READY, UNACKED, RETRYING and DEAD: no Worker, not counted (a Queue's messages are counted for its Workers)."
            );
        }
        if let Err(why) = &self.operator {
            let _ = writeln!(notes, "\nWhat waits is not known: {why}. See kubectl warren doctor.");
        }
        match (&self.before, &self.after) {
            (Err(why), _) | (_, Err(why)) => {
                let _ = writeln!(notes, "\nWhat the pods do is not known: {why}.");
            }
            (Ok(before), Ok(after)) => {
                let why = |sidecar: &Sidecar| {
                    let former = former(before, sidecar).and_then(|former| former.said.as_ref().err());
                    sidecar.said.as_ref().err().or(former).cloned()
                };
                let unread: Vec<String> = after.iter().filter_map(why).collect();
                if let Some(why) = unread.first() {
                    let (unread, all) = (unread.len(), after.len());
                    let _ = writeln!(
                        notes,
                        "\n{unread} of {all} sidecars could not be read (+ at least, ? not known): {why}."
                    );
                }
            }
        }
        notes
    }

    fn queue(&self, queue: &Queue) -> [String; 8] {
        let name = queue.name_any();
        let workers = self.workers_of(&name);
        [
            name,
            ready(queue.conditions()),
            format!("{:?}", queue.spec.queue_type),
            self.messages(queue, READY_MESSAGES),
            if workers.is_empty() { NONE.to_owned() } else { self.sum(&workers, 0, held) },
            self.messages(queue, RETRYING_MESSAGES),
            self.messages(queue, DEAD_MESSAGES),
            if workers.is_empty() { NONE.to_owned() } else { workers.join(",") },
        ]
    }

    /// What a metric of the operator says of a Queue, as a cell. The operator counts for Workers only: without one it is not
    /// that the number cannot be read.
    fn messages(&self, queue: &Queue, metric: &str) -> String {
        let name = queue.name_any();
        let labels = [("namespace", self.namespace.as_str()), ("queue", name.as_str())];
        let Ok(metrics) = &self.operator else { return UNKNOWN.to_owned() };
        let known = metrics.sum(metric, &labels).map(|messages| format!("{messages:.0}"));
        let none = if self.workers_of(&name).is_empty() { NONE } else { UNKNOWN };
        known.unwrap_or_else(|| none.to_owned())
    }

    fn workers_of(&self, queue: &str) -> Vec<String> {
        let of = self.workers.iter().filter(|worker| worker.spec.queue_ref.name == queue);
        of.map(ResourceExt::name_any).collect()
    }

    fn worker(&self, worker: &Worker) -> [String; 8] {
        let name = worker.name_any();
        let status = worker.status.clone().unwrap_or_default();
        let own = std::slice::from_ref(&name);
        [
            name.clone(),
            ready(&status.conditions),
            status.replicas.to_string(),
            status.desired_replicas.to_string(),
            self.sum(own, 0, |sidecar| Some(sidecar.said.as_ref().ok()?.in_flight as f64)),
            self.sum(own, 0, held),
            self.sum(own, 1, |sidecar| rate(self.before.as_ref().ok()?, sidecar)),
            status
                .scaling
                .map_or_else(|| format!("{:?}", worker.spec.scaling.mode), |scaling| scaling.reason),
        ]
    }

    /// A sum over the sidecars of some Workers, as a cell that says whether some or all of it is not known.
    fn sum(&self, workers: &[String], digits: usize, of: impl Fn(&Sidecar) -> Option<f64>) -> String {
        let Ok(after) = &self.after else { return UNKNOWN.to_owned() };
        let all = after.iter().filter(|sidecar| workers.iter().any(|worker| sidecar.is_of(worker)));
        let (known, unknown): (Vec<_>, Vec<_>) = all.map(of).partition(Option::is_some);
        // An empty sum of floats would be -0.
        let sum = known.iter().flatten().fold(0.0, |sum, value| sum + value);
        match (known.len(), unknown.len()) {
            (_, 0) => format!("{sum:.digits$}"),
            (0, _) => UNKNOWN.to_owned(),
            _ => format!("{sum:.digits$}+"),
        }
    }
}

/// Messages that a sidecar has and has not settled.
fn held(sidecar: &Sidecar) -> Option<f64> {
    Some(sidecar.said.as_ref().ok()?.unsettled as f64)
}

/// Messages a second that a sidecar settled since it was read before; of one that has just come none.
fn rate(before: &[Sidecar], after: &Sidecar) -> Option<f64> {
    let now = after.said.as_ref().ok()?.settled;
    let Some(former) = former(before, after) else { return Some(0.0) };
    let then = former.said.as_ref().ok()?.settled;
    // One that was started again counts from zero.
    let settled = now.checked_sub(then).unwrap_or(now);
    Some(settled as f64 / after.at.duration_since(former.at).as_secs_f64())
}

fn former<'a>(before: &'a [Sidecar], sidecar: &Sidecar) -> Option<&'a Sidecar> {
    before.iter().find(|former| former.pod.metadata.uid == sidecar.pod.metadata.uid)
}

/// Whether a resource is well, as its summary condition says.
fn ready(conditions: &[Condition]) -> String {
    let ready = find(conditions, READY);
    ready.map_or(UNKNOWN, |condition| &condition.status).to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;
    use warren_operator::scaler::sample::Sample;

    use super::*;
    use crate::cluster::tests::sidecar;

    const REFUSED: &str = "pods \"b\" is forbidden";

    fn work(in_flight: u64, settled: u64) -> Read<Sample> {
        Ok(Sample { in_flight, unsettled: in_flight + 1, settled, ..Sample::default() })
    }

    /// Pods of Worker "invoices" with what each said.
    fn pods(at: Instant, said: Vec<(&str, Read<Sample>)>) -> Read<Vec<Sidecar>> {
        Ok(said.into_iter().map(|(uid, said)| sidecar("invoices", uid, at, said)).collect())
    }

    fn seen(before: Read<Vec<Sidecar>>, after: Read<Vec<Sidecar>>) -> Seen {
        let queue = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue", "metadata": {"name": "orders"}, "spec": {}});
        let worker = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "metadata": {"name": "invoices"},
            "spec": {"queueRef": {"name": "orders"}, "template": {}},
            "status": {"replicas": 2, "desiredReplicas": 3, "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                       "scaling": {"replicas": 3, "raw": 3, "reason": "ScaledOut", "message": ""}}});
        Seen {
            namespace: "shop".to_owned(),
            queues: vec![serde_json::from_value(queue).unwrap()],
            workers: vec![serde_json::from_value(worker).unwrap()],
            operator: Ok(Exposition::new(
                "warren_operator_queue_ready_messages{namespace=\"shop\",queue=\"orders\"} 42\nwarren_operator_queue_dead_messages{namespace=\"shop\",queue=\"orders\"} 3\nwarren_operator_queue_ready_messages{namespace=\"other\",queue=\"orders\"} 1\n".to_owned(),
            )),
            before,
            after,
        }
    }

    /// The row that begins with a name.
    fn row(text: &str, name: &str) -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn queues_and_workers_are_shown_with_what_waits_runs_and_passes() {
        let start = Instant::now();
        let before = pods(start, vec![("a", work(1, 10)), ("b", work(1, 20))]);
        let text = seen(before, pods(start + 2 * OVER, vec![("a", work(1, 14)), ("b", work(2, 25))])).text();
        assert_eq!(row(&text, "orders"), ["orders", "?", "Quorum", "42", "5", "?", "3", "invoices"]);
        assert_eq!(row(&text, "invoices"), ["invoices", "True", "2", "3", "3", "5", "4.5", "ScaledOut"]);
        assert!(text.ends_with("ScaledOut\n"), "no notes\n{text}");
    }

    #[test]
    fn a_rate_is_of_the_pods_that_were_read_twice_each_over_its_own_time() {
        // One has gone, one was started again, one has just come with a life's work.
        let start = Instant::now();
        let before =
            pods(start, vec![("gone", work(0, 500)), ("stays", work(0, 10)), ("again", work(0, 90))]);
        let said = vec![("stays", work(0, 30)), ("again", work(0, 8)), ("new", work(0, 700))];
        let mut after = pods(start + 4 * OVER, said);
        after.as_mut().unwrap()[1].at = start + 2 * OVER;
        let text = seen(before, after).text();
        assert_eq!(row(&text, "invoices")[6], "9.0", "20 in 4 s and 8 in 2 s\n{text}");
    }

    #[test]
    fn what_a_pod_does_that_does_not_answer_is_not_zero() {
        let none =
            || pods(Instant::now(), vec![("a", Err(REFUSED.to_owned())), ("b", Err(REFUSED.to_owned()))]);
        let text = seen(none(), none()).text();
        assert_eq!(row(&text, "orders")[4], "?", "{text}");
        assert_eq!(row(&text, "invoices")[4..7], ["?", "?", "?"], "{text}");
        assert!(
            text.contains("2 of 2 sidecars could not be read (+ at least, ? not known): pods \"b\""),
            "{text}"
        );
    }

    #[test]
    fn what_some_pods_do_is_the_least_that_all_do() {
        let start = Instant::now();
        let before = || pods(start, vec![("a", work(1, 10)), ("b", Err(REFUSED.to_owned()))]);
        let text =
            seen(before(), pods(start + OVER, vec![("a", work(1, 14)), ("b", Err(REFUSED.to_owned()))]))
                .text();
        assert_eq!(row(&text, "orders")[4], "2+", "{text}");
        assert_eq!(row(&text, "invoices")[4..7], ["1+", "2+", "4.0+"], "{text}");
        // Its lifetime's count is not what it did in a second.
        let text =
            seen(before(), pods(start + OVER, vec![("a", work(1, 14)), ("b", work(1, 90_000))])).text();
        assert_eq!(row(&text, "invoices")[4..7], ["2", "4", "4.0+"], "{text}");
        assert!(text.contains("1 of 2 sidecars could not be read"), "{text}");
    }

    #[test]
    fn who_may_not_list_pods_sees_the_tables_all_the_same() {
        let refused = || Err("list pods: pods is forbidden".to_owned());
        let mut seen = seen(refused(), refused());
        seen.operator = Err("no operator leads".to_owned());
        let text = seen.text();
        assert_eq!(row(&text, "orders")[3..7], ["?", "?", "?", "?"], "{text}");
        assert_eq!(row(&text, "invoices")[2..7], ["2", "3", "?", "?", "?"], "{text}");
        assert!(text.contains("What the pods do is not known: list pods: pods is forbidden.\n"), "{text}");
        assert!(
            text.contains("What waits is not known: no operator leads. See kubectl warren doctor.\n"),
            "{text}"
        );
    }

    #[test]
    fn what_nobody_counts_for_want_of_a_worker_is_told_apart_from_what_is_not_known() {
        let idle = || Seen { workers: vec![], ..seen(Ok(vec![]), Ok(vec![])) };
        let none = Seen { operator: Ok(Exposition::default()), ..idle() }.text();
        assert_eq!(row(&none, "orders"), ["orders", "?", "Quorum", "-", "-", "-", "-", "-"]);
        let note = "- in READY, UNACKED, RETRYING and DEAD: no Worker, not counted";
        assert!(none.contains(note), "{none}");
        // What is still told of a Worker that has just gone is shown.
        assert_eq!(row(&idle().text(), "orders")[3..7], ["42", "-", "-", "3"]);
        let unread = Seen { operator: Err("no operator leads".to_owned()), ..idle() }.text();
        assert_eq!(row(&unread, "orders")[3..7], ["?", "-", "?", "?"]);
        assert!(unread.contains(note), "{unread}");
        let early = Seen { operator: Ok(Exposition::default()), ..seen(Ok(vec![]), Ok(vec![])) }.text();
        assert_eq!(row(&early, "orders")[3..7], ["?", "0", "?", "?"], "its Worker has just come");
        assert!(!early.contains(note), "{early}");
    }

    #[test]
    fn an_empty_namespace_is_said() {
        let seen = Seen { queues: vec![], workers: vec![], ..seen(Ok(vec![]), Ok(vec![])) };
        assert_eq!(seen.text(), "No Queues and Workers in namespace shop.\n");
    }
}
