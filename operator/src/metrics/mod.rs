//! The operator's own metrics, `warren_operator_*`. Labels are names of resources and enums, nothing unbounded.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::brokers::Key;
use crate::scaler::reason::Reason;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile_seconds: HistogramVec,
    reconcile_errors: IntCounterVec,
    queues: IntGaugeVec,
    brokers: IntGaugeVec,
    ready_messages: IntGaugeVec,
    retrying_messages: IntGaugeVec,
    dead_messages: IntGaugeVec,
    worker_replicas: IntGaugeVec,
    decisions: IntCounterVec,
    scalings: IntCounterVec,
    service_seconds: GaugeVec,
    probe_interval: Gauge,
    drift_interval: Gauge,
    leader: IntGauge,
    api_writes: IntCounter,
    followed: AtomicUsize,
    ready_queues: Mutex<QueueStates>,
}

#[derive(Debug, Default)]
struct QueueStates {
    ready: HashSet<Key>,
    not_ready: HashSet<Key>,
}

/// The definition of a metric, for the registry and for the reference page alike.
struct Definition {
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
}

const RECONCILE_SECONDS: Definition = Definition {
    name: "warren_operator_reconcile_duration_seconds",
    kind: "histogram",
    labels: &["kind"],
    help: "Seconds of a reconcile, by kind of resource (queue, worker).",
};
const RECONCILE_ERRORS: Definition = Definition {
    name: "warren_operator_reconcile_errors_total",
    kind: "counter",
    labels: &["kind", "category"],
    help: "Reconciles that failed and are tried again, by category (conflict, gone, forbidden, refused, unreachable, json).",
};
const QUEUES: Definition = Definition {
    name: "warren_operator_queues",
    kind: "gauge",
    labels: &["ready"],
    help: "Queues, by whether they are Ready.",
};
const BROKERS: Definition = Definition {
    name: "warren_operator_brokers",
    kind: "gauge",
    labels: &["state"],
    help: "Connections to brokers, one a distinct address, vhost and identity, by state (up, down).",
};
const READY_MESSAGES: Definition = Definition {
    name: "warren_operator_queue_ready_messages",
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages of a Queue that are ready for delivery, as last read; Queues without a Worker are not read.",
};
const RETRYING_MESSAGES: Definition = Definition {
    name: "warren_operator_queue_retrying_messages",
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages in the retry queues of a Queue, which wait to be tried again, as read in turn within half a minute.",
};
const DEAD_MESSAGES: Definition = Definition {
    name: "warren_operator_queue_dead_messages",
    kind: "gauge",
    labels: &["namespace", "queue"],
    help: "Messages in the dead-letter queue of a Queue, as read within half a minute.",
};
const WORKER_REPLICAS: Definition = Definition {
    name: "warren_operator_worker_replicas",
    kind: "gauge",
    labels: &["namespace", "worker", "state"],
    help: "Pods of a Worker, by state: desired (asked of the Deployment), current (existing), ready.",
};
const DECISIONS: Definition = Definition {
    name: "warren_operator_scale_decisions_total",
    kind: "counter",
    labels: &["namespace", "worker", "reason"],
    help: "Changes of the scaling decision, by reason.",
};
const SCALINGS: Definition = Definition {
    name: "warren_operator_scalings_total",
    kind: "counter",
    labels: &["namespace", "worker", "reason"],
    help: "Patches of a Worker's replicas, by reason.",
};
const SERVICE_SECONDS: Definition = Definition {
    name: "warren_operator_worker_service_seconds",
    kind: "gauge",
    labels: &["namespace", "worker"],
    help: "Measured seconds of a handler call, as the scaler uses them.",
};
const PROBE_INTERVAL: Definition = Definition {
    name: "warren_operator_probe_interval_seconds",
    kind: "gauge",
    labels: &[],
    help: "Least seconds between two depth probes of a Worker: it grows with the fleet, so that a broker is probed at most 400 times a second.",
};
const DRIFT_INTERVAL: Definition = Definition {
    name: "warren_operator_drift_check_interval_seconds",
    kind: "gauge",
    labels: &[],
    help: "Longest seconds between two checks that a Queue is still on its broker as declared: it grows with the Queues of a broker, so that each broker gets at most 100 checks a second.",
};
const LEADER: Definition = Definition {
    name: "warren_operator_leader",
    kind: "gauge",
    labels: &[],
    help: "1 on the replica that leads, 0 on those that stand by.",
};
const API_WRITES: Definition = Definition {
    name: "warren_operator_api_writes_total",
    kind: "counter",
    labels: &[],
    help: "Requests to the API server that change something, the Lease's renewals apart.",
};
const DEFINITIONS: [&Definition; 15] = [
    &RECONCILE_SECONDS,
    &RECONCILE_ERRORS,
    &QUEUES,
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
    let mut page = "# The operator's metrics\n\nGenerated by `cargo xtask generate`. Port 8080, `/metrics`.\n\n| Metric | Type | Labels | What |\n|---|---|---|---|\n".to_owned();
    for Definition { name, kind, labels, help } in DEFINITIONS {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page.push_str("\nThe process's own `process_*` metrics come with them.\n");
    page
}

impl Definition {
    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn int_gauges(&self) -> prometheus::Result<IntGaugeVec> {
        IntGaugeVec::new(self.opts(), self.labels)
    }

    fn counters(&self) -> prometheus::Result<IntCounterVec> {
        IntCounterVec::new(self.opts(), self.labels)
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            reconcile_seconds: HistogramVec::new(
                HistogramOpts::from(RECONCILE_SECONDS.opts())
                    .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0]),
                RECONCILE_SECONDS.labels,
            )?,
            reconcile_errors: RECONCILE_ERRORS.counters()?,
            queues: QUEUES.int_gauges()?,
            brokers: BROKERS.int_gauges()?,
            ready_messages: READY_MESSAGES.int_gauges()?,
            retrying_messages: RETRYING_MESSAGES.int_gauges()?,
            dead_messages: DEAD_MESSAGES.int_gauges()?,
            worker_replicas: WORKER_REPLICAS.int_gauges()?,
            decisions: DECISIONS.counters()?,
            scalings: SCALINGS.counters()?,
            service_seconds: GaugeVec::new(SERVICE_SECONDS.opts(), SERVICE_SECONDS.labels)?,
            probe_interval: Gauge::with_opts(PROBE_INTERVAL.opts())?,
            drift_interval: Gauge::with_opts(DRIFT_INTERVAL.opts())?,
            leader: IntGauge::with_opts(LEADER.opts())?,
            api_writes: IntCounter::with_opts(API_WRITES.opts())?,
            followed: AtomicUsize::new(0),
            ready_queues: Mutex::default(),
        };
        metrics.register_all()?;
        Ok(metrics)
    }

    fn register_all(&self) -> prometheus::Result<()> {
        let Self {
            registry,
            reconcile_seconds,
            reconcile_errors,
            queues,
            brokers,
            ready_messages,
            retrying_messages,
            dead_messages,
            worker_replicas,
            decisions,
            scalings,
            service_seconds,
            probe_interval,
            drift_interval,
            leader,
            api_writes,
            followed: _,
            ready_queues: _,
        } = self;
        let collectors: [Box<dyn Collector>; 15] = [
            Box::new(reconcile_seconds.clone()),
            Box::new(reconcile_errors.clone()),
            Box::new(queues.clone()),
            Box::new(brokers.clone()),
            Box::new(ready_messages.clone()),
            Box::new(retrying_messages.clone()),
            Box::new(dead_messages.clone()),
            Box::new(worker_replicas.clone()),
            Box::new(decisions.clone()),
            Box::new(scalings.clone()),
            Box::new(service_seconds.clone()),
            Box::new(probe_interval.clone()),
            Box::new(drift_interval.clone()),
            Box::new(leader.clone()),
            Box::new(api_writes.clone()),
        ];
        collectors.into_iter().try_for_each(|collector| registry.register(collector))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// A metric that cannot be written as text.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Names of the registered metrics.
    pub fn names(&self) -> Vec<String> {
        let all: [&dyn Collector; 3] = [&self.worker_replicas, &self.ready_messages, &self.decisions];
        all.iter().flat_map(|collector| collector.desc()).map(|desc: &Desc| desc.fq_name.clone()).collect()
    }

    /// Times a reconcile until dropped.
    pub fn reconciling(&self, kind: &'static str) -> HistogramTimer {
        self.reconcile_seconds.with_label_values(&[kind]).start_timer()
    }

    /// Counts a failed reconcile.
    pub fn reconcile_failed(&self, kind: &'static str, category: &'static str) {
        self.reconcile_errors.with_label_values(&[kind, category]).inc();
    }

    fn queue_states(&self) -> MutexGuard<'_, QueueStates> {
        // Single inserts and removes: a panic leaves nothing half done.
        self.ready_queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a Queue is Ready.
    pub fn queue_ready(&self, queue: &Key, ready: bool) {
        let mut states = self.queue_states();
        let QueueStates { ready: yes, not_ready: no } = &mut *states;
        let (to, from) = if ready { (yes, no) } else { (no, yes) };
        from.remove(queue);
        to.insert(queue.clone());
        self.count_queues(&states);
    }

    /// A Queue is gone.
    pub fn forget_queue(&self, queue: &Key) {
        let mut states = self.queue_states();
        states.ready.remove(queue);
        states.not_ready.remove(queue);
        self.count_queues(&states);
        drop(states);
        // An error means that it was never read.
        for gauges in [&self.ready_messages, &self.retrying_messages, &self.dead_messages] {
            let _ = gauges.remove_label_values(&[queue.namespace.as_str(), queue.name.as_str()]);
        }
    }

    fn count_queues(&self, states: &QueueStates) {
        self.queues.with_label_values(&["true"]).set(gauge(states.ready.len()));
        self.queues.with_label_values(&["false"]).set(gauge(states.not_ready.len()));
    }

    /// Says how many brokers are connected.
    pub fn brokers(&self, up: usize, down: usize) {
        self.brokers.with_label_values(&["up"]).set(gauge(up));
        self.brokers.with_label_values(&["down"]).set(gauge(down));
    }

    /// Says how many messages of a Queue wait, wait to be tried again, and are dead, as far as that is known.
    pub fn queue_messages(&self, queue: &Key, ready: Option<u64>, retrying: Option<u64>, dead: Option<u64>) {
        let gauges = [&self.ready_messages, &self.retrying_messages, &self.dead_messages];
        for (gauge, messages) in gauges.into_iter().zip([ready, retrying, dead]) {
            if let Some(messages) = messages {
                gauge
                    .with_label_values(&[queue.namespace.as_str(), queue.name.as_str()])
                    .set(i64::try_from(messages).unwrap_or(i64::MAX));
            }
        }
    }

    /// Says how many pods a Worker has.
    pub fn worker_replicas(&self, worker: &Key, desired: u32, current: u32, ready: u32) {
        for (state, number) in [("desired", desired), ("current", current), ("ready", ready)] {
            self.worker_replicas
                .with_label_values(&[worker.namespace.as_str(), worker.name.as_str(), state])
                .set(i64::from(number));
        }
    }

    /// Counts a decision that differs from the one before.
    pub fn decided(&self, worker: &Key, reason: Reason) {
        self.decisions
            .with_label_values(&[worker.namespace.as_str(), worker.name.as_str(), reason.as_str()])
            .inc();
    }

    /// Counts a patch of replicas.
    pub fn scaled(&self, worker: &Key, reason: &'static str) {
        self.scalings.with_label_values(&[worker.namespace.as_str(), worker.name.as_str(), reason]).inc();
    }

    /// Says how long a handler call takes.
    pub fn service_seconds(&self, worker: &Key, seconds: f64) {
        self.service_seconds
            .with_label_values(&[worker.namespace.as_str(), worker.name.as_str()])
            .set(seconds);
    }

    /// A Worker is gone.
    pub fn forget_worker(&self, worker: &Key) {
        let names = [worker.namespace.as_str(), worker.name.as_str()];
        // Errors mean that there was nothing.
        let _ = self.service_seconds.remove_label_values(&names);
        for state in ["desired", "current", "ready"] {
            let _ = self.worker_replicas.remove_label_values(&[names[0], names[1], state]);
        }
        for reason in Reason::ALL {
            let _ = self.decisions.remove_label_values(&[names[0], names[1], reason.as_str()]);
            let _ = self.scalings.remove_label_values(&[names[0], names[1], reason.as_str()]);
        }
        let _ = self.scalings.remove_label_values(&[names[0], names[1], "ScaleReverted"]);
    }

    /// Says how many Workers are looked at, and how often each can be.
    pub fn followed_workers(&self, workers: usize, least_interval: f64) {
        self.followed.store(workers, Ordering::Relaxed);
        self.probe_interval.set(least_interval);
    }

    /// Says how long two drift checks of a Queue are apart at most.
    pub fn drift_check(&self, interval: Duration) {
        self.drift_interval.set(interval.as_secs_f64());
    }

    /// How many Workers are looked at.
    pub fn followed(&self) -> usize {
        self.followed.load(Ordering::Relaxed)
    }

    /// Says how many requests have changed something in all.
    pub fn api_writes(&self, total: u64) {
        self.api_writes.inc_by(total.saturating_sub(self.api_writes.get()));
    }

    /// Says whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_is_in_the_reference() {
        let metrics = Metrics::new().unwrap();
        metrics.worker_replicas(&Key { namespace: "n".to_owned(), name: "w".to_owned() }, 3, 2, 1);
        let text = metrics.text().unwrap();
        assert!(
            text.contains(
                "warren_operator_worker_replicas{namespace=\"n\",state=\"desired\",worker=\"w\"} 3"
            ),
            "{text}"
        );
        let reference = reference();
        for name in metrics.names() {
            assert!(reference.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_queue_is_counted_once_and_forgotten() {
        let metrics = Metrics::new().unwrap();
        let queue = Key { namespace: "n".to_owned(), name: "q".to_owned() };
        metrics.queue_ready(&queue, false);
        metrics.queue_ready(&queue, true);
        let text = metrics.text().unwrap();
        assert!(text.contains("warren_operator_queues{ready=\"true\"} 1"), "{text}");
        assert!(text.contains("warren_operator_queues{ready=\"false\"} 0"), "{text}");
        metrics.forget_queue(&queue);
        assert!(metrics.text().unwrap().contains("warren_operator_queues{ready=\"true\"} 0"));
    }
}
