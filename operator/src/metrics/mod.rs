//! The operator's own metrics, `warren_operator_*`. Labels are names of resources and enums, nothing unbounded.

mod definitions;
mod readiness;
mod series;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Gauge, HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

pub use definitions::reference;
use definitions::{
    API_WRITES, BROKERS, DEAD_MESSAGES, DECISIONS, DRIFT_INTERVAL, LEADER, PROBE_INTERVAL, QUEUE_NOT_READY,
    QUEUE_RECREATED, QUEUES, READY_MESSAGES, RECONCILE_ERRORS, RECONCILE_SECONDS, RETRYING_MESSAGES,
    SCALINGS, SERVICE_SECONDS, WORKER_NOT_READY, WORKER_REPLICAS, WORKERS,
};
use readiness::Readiness;
use series::Series;

use crate::brokers::Key;
use crate::scaler::reason::Reason;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile_seconds: HistogramVec,
    reconcile_errors: IntCounterVec,
    queues: Readiness,
    workers: Readiness,
    brokers: IntGaugeVec,
    losses: Series,
    of_queues: Series,
    of_workers: Series,
    probe_interval: Gauge,
    drift_interval: Gauge,
    leader: IntGauge,
    api_writes: IntCounter,
}

/// A collector that was made, once the registry has it.
fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name or label that Prometheus does not take, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            reconcile_seconds: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::from(RECONCILE_SECONDS.opts())
                        .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0]),
                    RECONCILE_SECONDS.labels,
                ),
            )?,
            reconcile_errors: registered(&registry, RECONCILE_ERRORS.counters())?,
            queues: Readiness::new(registered(&registry, QUEUES.int_gauges())?, &QUEUE_NOT_READY),
            workers: Readiness::new(registered(&registry, WORKERS.int_gauges())?, &WORKER_NOT_READY),
            brokers: registered(&registry, BROKERS.int_gauges())?,
            losses: Series::new(&[&QUEUE_RECREATED]),
            of_queues: Series::new(&[&READY_MESSAGES, &RETRYING_MESSAGES, &DEAD_MESSAGES]),
            of_workers: Series::new(&[&WORKER_REPLICAS, &DECISIONS, &SCALINGS, &SERVICE_SECONDS]),
            probe_interval: registered(&registry, Gauge::with_opts(PROBE_INTERVAL.opts()))?,
            drift_interval: registered(&registry, Gauge::with_opts(DRIFT_INTERVAL.opts()))?,
            leader: registered(&registry, IntGauge::with_opts(LEADER.opts()))?,
            api_writes: registered(&registry, IntCounter::with_opts(API_WRITES.opts()))?,
            registry,
        })
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// A metric that cannot be written as text.
    pub fn text(&self) -> prometheus::Result<String> {
        self.queues.count();
        self.workers.count();
        let mut text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        self.queues.write(&mut text);
        self.workers.write(&mut text);
        self.losses.write(&mut text);
        self.of_queues.write(&mut text);
        self.of_workers.write(&mut text);
        Ok(text)
    }

    /// Times a reconcile until dropped.
    pub fn reconciling(&self, kind: &'static str) -> HistogramTimer {
        self.reconcile_seconds.with_label_values(&[kind]).start_timer()
    }

    /// Counts a failed reconcile.
    pub fn reconcile_failed(&self, kind: &'static str, category: &'static str) {
        self.reconcile_errors.with_label_values(&[kind, category]).inc();
    }

    /// Says why a Queue is not Ready, or that it is.
    pub fn queue_ready(&self, queue: &Key, not_ready: Option<&'static str>) {
        self.queues.set(queue, not_ready);
    }

    /// The queue of a Queue was gone, and is declared again.
    pub fn queue_recreated(&self, queue: &Key, now: Timestamp) {
        self.losses.set(queue, &QUEUE_RECREATED, "", now.as_second() as f64);
    }

    /// A Queue is gone.
    pub fn forget_queue(&self, queue: &Key) {
        self.queues.forget(queue);
        self.losses.forget(queue);
        self.of_queues.forget(queue);
    }

    /// Only these Queues of `namespace` (none: of all) are left, and only the messages of those that are `watched` are still read.
    pub fn retain_queues(&self, namespace: Option<&str>, living: &BTreeSet<Key>, watched: &BTreeSet<Key>) {
        let elsewhere = |queue: &Key| namespace.is_some_and(|namespace| namespace != queue.namespace);
        self.queues.retain(|queue| elsewhere(queue) || living.contains(queue));
        self.losses.retain(|queue| elsewhere(queue) || living.contains(queue));
        self.of_queues.retain(|queue| elsewhere(queue) || watched.contains(queue));
    }

    /// Says how many brokers are connected.
    pub fn brokers(&self, up: usize, down: usize) {
        self.brokers.with_label_values(&["up"]).set(gauge(up));
        self.brokers.with_label_values(&["down"]).set(gauge(down));
    }

    /// Says how many messages of a Queue wait, wait to be tried again, and are dead, as far as that is known. Nothing is said any
    /// more when it is not known any more how many wait: who scales by it must not take an old number for a new one.
    pub fn queue_messages(&self, queue: &Key, ready: Option<u64>, retrying: Option<u64>, dead: Option<u64>) {
        let families = [&READY_MESSAGES, &RETRYING_MESSAGES, &DEAD_MESSAGES];
        for (family, messages) in families.into_iter().zip([ready, retrying, dead]) {
            match (ready, messages) {
                (None, _) => self.of_queues.unset(queue, family),
                (_, Some(messages)) => self.of_queues.set(queue, family, "", messages as f64),
                (_, None) => {}
            }
        }
    }

    /// Says why a Worker is not Ready, or that it is, or on its way there.
    pub fn worker_ready(&self, worker: &Key, not_ready: Option<&'static str>) {
        self.workers.set(worker, not_ready);
    }

    /// Says how many pods a Worker has.
    pub fn worker_replicas(&self, worker: &Key, desired: u32, current: u32, ready: u32) {
        for (state, number) in [("desired", desired), ("current", current), ("ready", ready)] {
            self.of_workers.set(worker, &WORKER_REPLICAS, state, f64::from(number));
        }
    }

    /// Counts a decision that differs from the one before.
    pub fn decided(&self, worker: &Key, reason: Reason) {
        self.of_workers.count(worker, &DECISIONS, reason.as_str());
    }

    /// Counts patches of a Worker's replicas for these reasons, from zero on.
    pub fn scales(&self, worker: &Key, reasons: &[&'static str]) {
        for reason in reasons {
            self.of_workers.begin(worker, &SCALINGS, reason);
        }
    }

    /// Counts a patch of replicas.
    pub fn scaled(&self, worker: &Key, reason: &'static str) {
        self.of_workers.count(worker, &SCALINGS, reason);
    }

    /// Says how long a handler call takes, if that is known.
    pub fn service_seconds(&self, worker: &Key, seconds: Option<f64>) {
        match seconds {
            Some(seconds) => self.of_workers.set(worker, &SERVICE_SECONDS, "", seconds),
            None => self.of_workers.unset(worker, &SERVICE_SECONDS),
        }
    }

    /// A Worker is gone.
    pub fn forget_worker(&self, worker: &Key) {
        self.workers.forget(worker);
        self.of_workers.forget(worker);
    }

    /// Says how often each Worker on the most probed broker can be looked at.
    pub fn probe_interval(&self, least: f64) {
        self.probe_interval.set(least);
    }

    /// Says how long two drift checks of a Queue are apart at most.
    pub fn drift_check(&self, interval: Duration) {
        self.drift_interval.set(interval.as_secs_f64());
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
        let text = Metrics::new().unwrap().text().unwrap();
        let reference = reference();
        let described = text.lines().filter_map(|line| line.strip_prefix("# HELP warren_operator_"));
        for line in described {
            let name = line.split(' ').next().unwrap();
            assert!(reference.contains(&format!("`warren_operator_{name}`")), "{name}");
        }
    }

    #[test]
    fn what_is_said_of_a_worker_and_of_a_queue_is_written_until_they_are_gone() {
        let metrics = Metrics::new().unwrap();
        let key = Key { namespace: "n".to_owned(), name: "a".to_owned() };
        metrics.worker_replicas(&key, 3, 2, 1);
        metrics.worker_replicas(&key, 4, 2, 1);
        metrics.worker_ready(&key, Some("queue"));
        metrics.queue_recreated(&key, Timestamp::UNIX_EPOCH);
        metrics.decided(&key, Reason::Idle);
        metrics.decided(&key, Reason::Idle);
        metrics.scaled(&key, "ScaledOut");
        metrics.scales(&key, &["ScaledOut", "ScaledIn"]);
        metrics.service_seconds(&key, Some(0.25));
        metrics.queue_messages(&key, Some(7), None, Some(0));
        let text = metrics.text().unwrap();
        for line in [
            "# TYPE warren_operator_worker_replicas gauge",
            "warren_operator_workers{ready=\"false\"} 1",
            "warren_operator_worker_not_ready{namespace=\"n\",worker=\"a\",cause=\"queue\"} 1",
            "warren_operator_queue_recreated_timestamp_seconds{namespace=\"n\",queue=\"a\"} 0",
            "warren_operator_worker_replicas{namespace=\"n\",worker=\"a\",state=\"desired\"} 4",
            "# TYPE warren_operator_scale_decisions_total counter",
            "warren_operator_scale_decisions_total{namespace=\"n\",worker=\"a\",reason=\"Idle\"} 2",
            "warren_operator_scalings_total{namespace=\"n\",worker=\"a\",reason=\"ScaledOut\"} 1",
            "warren_operator_scalings_total{namespace=\"n\",worker=\"a\",reason=\"ScaledIn\"} 0",
            "warren_operator_worker_service_seconds{namespace=\"n\",worker=\"a\"} 0.25",
            "warren_operator_queue_ready_messages{namespace=\"n\",queue=\"a\"} 7",
            "warren_operator_queue_dead_messages{namespace=\"n\",queue=\"a\"} 0",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
        }
        assert!(!text.contains("queue_retrying_messages{"), "{text}");
        metrics.queue_messages(&key, Some(8), None, None);
        let text = metrics.text().unwrap();
        assert!(text.contains("queue_dead_messages{"), "another Worker's pods may have counted them: {text}");
        metrics.queue_messages(&key, None, None, Some(3));
        let text = metrics.text().unwrap();
        assert!(!text.contains("queue_ready_messages{") && !text.contains("queue_dead_messages{"), "{text}");
        metrics.forget_worker(&key);
        metrics.forget_queue(&key);
        assert!(!metrics.text().unwrap().contains("namespace=\"n\""));
    }

    #[test]
    fn a_queue_is_counted_once_and_forgotten() {
        let metrics = Metrics::new().unwrap();
        let queue = Key { namespace: "n".to_owned(), name: "q".to_owned() };
        metrics.queue_ready(&queue, Some("broker"));
        let text = metrics.text().unwrap();
        let line = "warren_operator_queue_not_ready{namespace=\"n\",queue=\"q\",cause=\"broker\"} 1";
        assert!(text.contains(line), "{text}");
        metrics.queue_ready(&queue, None);
        let text = metrics.text().unwrap();
        assert!(!text.contains("queue_not_ready{"), "{text}");
        assert!(text.contains("warren_operator_queues{ready=\"true\"} 1"), "{text}");
        assert!(text.contains("warren_operator_queues{ready=\"false\"} 0"), "{text}");
        metrics.forget_queue(&queue);
        assert!(metrics.text().unwrap().contains("warren_operator_queues{ready=\"true\"} 0"));
    }

    #[test]
    fn queues_of_a_namespace_that_went_unseen_and_those_that_nobody_reads_are_forgotten() {
        let metrics = Metrics::new().unwrap();
        let key =
            |namespace: &str, name: &str| Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let [gone, alone, consumed] = ["gone", "alone", "consumed"].map(|name| key("n", name));
        let elsewhere = key("other", "elsewhere");
        for queue in [&gone, &alone, &consumed, &elsewhere] {
            metrics.queue_ready(queue, None);
            metrics.queue_recreated(queue, Timestamp::UNIX_EPOCH);
            metrics.queue_messages(queue, Some(1), None, None);
        }
        let (living, watched) = (BTreeSet::from([alone, consumed.clone()]), BTreeSet::from([consumed]));
        metrics.retain_queues(Some("n"), &living, &watched);
        let text = metrics.text().unwrap();
        assert!(text.contains("warren_operator_queues{ready=\"true\"} 3"), "{text}");
        assert!(
            !text.contains("queue=\"gone\"") && !text.contains("messages{namespace=\"n\",queue=\"alone\""),
            "{text}"
        );
        assert!(text.contains("recreated_timestamp_seconds{namespace=\"n\",queue=\"alone\"} 0"), "{text}");
        assert!(text.contains("queue=\"consumed\"") && text.contains("queue=\"elsewhere\""), "{text}");
        metrics.retain_queues(None, &living, &watched);
        let text = metrics.text().unwrap();
        assert!(text.contains("warren_operator_queues{ready=\"true\"} 2"), "{text}");
        assert!(!text.contains("queue=\"elsewhere\"") && text.contains("queue=\"consumed\""), "{text}");
    }
}
