//! What each metric is, for the registry and for the reference page.

use std::fmt::Write as _;

use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use warren_api::metrics;

use crate::brokers::Key;

/// The definition of a metric, for the registry and for the reference page alike.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

pub(super) const RECONCILE_SECONDS: Definition = Definition {
    name: "warren_operator_reconcile_duration_seconds",
    kind: "histogram",
    labels: &["kind"],
    help: "Seconds of a reconcile, by kind of resource (queue, worker).",
};
pub(super) const RECONCILE_ERRORS: Definition = Definition {
    name: "warren_operator_reconcile_errors_total",
    kind: "counter",
    labels: &["kind", "category"],
    help: "Reconciles that failed and are tried again, by category (conflict, gone, forbidden, refused, unreachable, json).",
};
pub(super) const QUEUES: Definition = Definition {
    name: "warren_operator_queues",
    kind: "gauge",
    labels: &["ready"],
    help: "Queues, by whether they are Ready.",
};
pub(super) const WORKERS: Definition = Definition {
    name: "warren_operator_workers",
    kind: "gauge",
    labels: &["ready"],
    help: "Workers, by whether they are Ready; one whose pods are on their way counts as Ready.",
};
pub(super) const QUEUE_NOT_READY: Definition = Definition {
    name: "warren_operator_queue_not_ready",
    kind: "gauge",
    labels: &["namespace", "queue", "cause"],
    help: "1 for each Queue that is not Ready, by cause: broker (it cannot be used) or other; not there for those that are.",
};
pub(super) const WORKER_NOT_READY: Definition = Definition {
    name: "warren_operator_worker_not_ready",
    kind: "gauge",
    labels: &["namespace", "worker", "cause"],
    help: "1 for each Worker that is not Ready, by cause: queue (its Queue is not) or other; not there for those that are, or whose pods are on their way.",
};
pub(super) const QUEUE_RECREATED: Definition = Definition {
    name: "warren_operator_queue_recreated_timestamp_seconds",
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "When the queue of a Queue was gone last, with its messages, and was declared again, in seconds since 1970; not there where this operator has not seen that.",
};
pub(super) const BROKERS: Definition = Definition {
    name: "warren_operator_brokers",
    kind: "gauge",
    labels: &["state"],
    help: "Connections to brokers, one a distinct address, vhost and identity, by state (up, down).",
};
pub(super) const READY_MESSAGES: Definition = Definition {
    name: metrics::READY_MESSAGES,
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages of a Queue that are ready for delivery, as last read; not there while that is not known, and for Queues without a Worker.",
};
pub(super) const RETRYING_MESSAGES: Definition = Definition {
    name: metrics::RETRYING_MESSAGES,
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages in the retry queues of a Queue, which wait to be tried again, as read in turn, one queue every few seconds; not there while the depth is not known.",
};
pub(super) const DEAD_MESSAGES: Definition = Definition {
    name: metrics::DEAD_MESSAGES,
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages in the dead-letter queue of a Queue, as read in turn with the retry queues; not there while the depth is not known.",
};
pub(super) const WORKER_REPLICAS: Definition = Definition {
    name: "warren_operator_worker_replicas",
    kind: "gauge",
    labels: &["namespace", "worker", "state"],
    help: "Pods of a Worker, by state: desired (asked of the Deployment), current (existing), ready.",
};
pub(super) const DECISIONS: Definition = Definition {
    name: "warren_operator_scale_decisions_total",
    kind: "counter",
    labels: &["namespace", "worker", "reason"],
    help: "Changes of the scaling decision, by reason.",
};
pub(super) const SCALINGS: Definition = Definition {
    name: "warren_operator_scalings_total",
    kind: "counter",
    labels: &["namespace", "worker", "reason"],
    help: "Patches of a Worker's replicas, by reason.",
};
pub(super) const SERVICE_SECONDS: Definition = Definition {
    name: "warren_operator_worker_service_seconds",
    kind: "gauge",
    labels: &["namespace", "worker"],
    help: "Measured seconds of a handler call, as the scaler uses them.",
};
pub(super) const PROBE_INTERVAL: Definition = Definition {
    name: "warren_operator_probe_interval_seconds",
    kind: "gauge",
    labels: &[],
    help: "Least seconds between two depth probes of a Worker on the broker that has most of them: it grows with them, so that a broker is probed at most 400 times a second.",
};
pub(super) const DRIFT_INTERVAL: Definition = Definition {
    name: "warren_operator_drift_check_interval_seconds",
    kind: "gauge",
    labels: &[],
    help: "Longest seconds between two checks that a Queue is still on its broker as declared: it grows with the Queues of a broker, so that each broker gets at most 100 checks a second.",
};
pub(super) const LEADER: Definition = Definition {
    name: metrics::LEADER,
    kind: "gauge",
    labels: &[],
    help: "1 on the replica that leads, once the caches of a first namespace are filled, 0 on those that stand by.",
};
pub(super) const API_WRITES: Definition = Definition {
    name: "warren_operator_api_writes_total",
    kind: "counter",
    labels: &[],
    help: "Requests to the API server that change something, the Lease's renewals apart.",
};
pub(super) const DEFINITIONS: [&Definition; 19] = [
    &RECONCILE_SECONDS,
    &RECONCILE_ERRORS,
    &QUEUES,
    &WORKERS,
    &QUEUE_NOT_READY,
    &WORKER_NOT_READY,
    &QUEUE_RECREATED,
    &BROKERS,
    &READY_MESSAGES,
    &RETRYING_MESSAGES,
    &DEAD_MESSAGES,
    &WORKER_REPLICAS,
    &DECISIONS,
    &SCALINGS,
    &SERVICE_SECONDS,
    &PROBE_INTERVAL,
    &DRIFT_INTERVAL,
    &LEADER,
    &API_WRITES,
];

/// The reference page of the operator's metrics, in Markdown.
pub fn reference() -> String {
    let mut page = "# The operator's metrics\n\nGenerated by `cargo xtask generate`. Port 8080, `/metrics`. The label `queue` is the Queue's `metadata.name`; in the sidecars' metrics it is the name on\nthe broker, which `spec.queueName` may make another.\n\n| Metric | Type | Labels | What |\n|---|---|---|---|\n".to_owned();
    for Definition { name, kind, labels, help } in DEFINITIONS {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page.push_str("\nThe process's own `process_*` metrics come with them.\n");
    page
}

impl Definition {
    pub(super) fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    pub(super) fn int_gauges(&self) -> prometheus::Result<IntGaugeVec> {
        IntGaugeVec::new(self.opts(), self.labels)
    }

    /// Appends what comes before its lines in the Prometheus text format.
    pub(super) fn write_head(&self, text: &mut String) {
        let Self { name, kind, help, .. } = self;
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Appends a number of one resource, whose namespace and name are the first labels; `label` is the third, where there is one.
    pub(super) fn write_line(&self, text: &mut String, key: &Key, label: &str, value: f64) {
        let of = |place: usize| match place {
            0 => key.namespace.as_str(),
            1 => key.name.as_str(),
            _ => label,
        };
        // Names of resources and words of ours: nothing in them is to be escaped.
        let pairs = self.labels.iter().enumerate().map(|(place, label)| format!("{label}=\"{}\"", of(place)));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{{{}}} {value}", self.name, pairs.collect::<Vec<_>>().join(","));
    }

    pub(super) fn counters(&self) -> prometheus::Result<IntCounterVec> {
        IntCounterVec::new(self.opts(), self.labels)
    }
}
