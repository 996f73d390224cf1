//! What the sidecar counts. Names that the operator's scaler reads are in `warren_api::metrics`; labels are namespace, worker,
//! queue and enums.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use warren_api::metrics as names;

use crate::copy::cut;
use crate::core::{Answers, Observation, Outcome, Snapshot, Target, has_failed, is_misconfigured, is_work};
use crate::locked::locked;

/// Seconds of a handler call: from a tenth of a millisecond to ten minutes.
const HANDLER_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 120.0, 300.0, 600.0,
];
const DRAIN_BUCKETS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const ACK_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 2000.0];

/// All metrics of a sidecar.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The queue's label now: a Worker may turn to another one.
    queue: Mutex<String>,
    pub(crate) unsettled: IntGauge,
    pub(crate) in_flight: IntGauge,
    pub(crate) late: IntGauge,
    pub(crate) prefetch: IntGauge,
    pub(crate) connected: IntGauge,
    pub(crate) handler_up: IntGauge,
    pub(crate) breaker_open: IntGauge,
    pub(crate) misconfigured: IntGauge,
    pub(crate) draining: IntGauge,
    pub(crate) blocked: IntGauge,
    pub(crate) deliveries: IntCounter,
    pub(crate) redeliveries: IntCounter,
    pub(crate) extensions: IntCounter,
    pub(crate) transient: IntCounter,
    pub(crate) without_id: IntCounter,
    pub(crate) headers_omitted: IntCounter,
    pub(crate) reconnects: IntCounter,
    pub(crate) stale: IntCounter,
    pub(crate) stale_acks: IntCounter,
    pub(crate) undrained: IntCounter,
    pub(crate) unreadable: IntCounter,
    pub(crate) replies_dropped: IntCounter,
    pub(crate) held_long: IntCounter,
    pub(crate) spans_dropped: IntCounter,
    pub(crate) handler_seconds: Histogram,
    pub(crate) drain_seconds: Histogram,
    pub(crate) ack_batch: Histogram,
    outcomes: [IntCounter; 4],
    unpublished: [IntCounter; 2],
    failures: [IntCounter; 2],
    answers: IntCounterVec,
    publishes: IntCounterVec,
}

/// Whose metrics they are: nobody's where nothing is consumed.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Namespace of the Worker.
    pub namespace: String,
    /// Name of the Worker.
    pub worker: String,
    /// Queue on the broker.
    pub queue: String,
}

/// How the handler answered: a label of bounded size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerClass {
    /// 2xx.
    Success,
    /// 4xx but 429.
    ClientError,
    /// 429 or 503.
    NotNow,
    /// 5xx but 503.
    ServerError,
    /// Any other status.
    Other,
    /// No answer in time.
    TimedOut,
    /// Half an answer, or none that is HTTP.
    Broken,
    /// No connection.
    Unreached,
}

impl AnswerClass {
    const ALL: [Self; 8] = [
        Self::Success,
        Self::ClientError,
        Self::NotNow,
        Self::ServerError,
        Self::Other,
        Self::TimedOut,
        Self::Broken,
        Self::Unreached,
    ];

    /// The class of a status.
    pub const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Success,
            429 | 503 => Self::NotNow,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            _ => Self::Other,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ClientError => "client_error",
            Self::NotNow => "not_now",
            Self::ServerError => "server_error",
            Self::Other => "other",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::Unreached => "unreached",
        }
    }
}

/// How a publish through the publish API ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishClass {
    /// The broker has it.
    Confirmed,
    /// No queue took it, or no exchange is there.
    Unroutable,
    /// The broker refused it, or the user may not publish there.
    Refused,
    /// It was too large or its headers were not usable.
    Invalid,
    /// The broker blocks publishing, or too much is on its way.
    Blocked,
    /// There was no connection, or no confirm in time.
    Failed,
}

impl PublishClass {
    const ALL: [Self; 6] =
        [Self::Confirmed, Self::Unroutable, Self::Refused, Self::Invalid, Self::Blocked, Self::Failed];

    const fn label(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Unroutable => "unroutable",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
        }
    }
}

/// Makes metrics with the same constant labels.
struct Maker {
    registry: Registry,
    labels: HashMap<String, String>,
}

impl Maker {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::with_opts(self.opts(name, help))?;
        self.registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::with_opts(self.opts(name, help))?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(self.opts(name, help), &[label])?;
        self.registry.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(opts)?;
        self.registry.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}

impl Metrics {
    /// Fresh metrics of a sidecar that starts now.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn new(labels: Labels) -> Result<Self, prometheus::Error> {
        let Labels { namespace, worker, queue } = labels;
        let current = Mutex::new(cut(&queue, 255).to_owned());
        let labels = [("namespace", namespace), ("worker", worker), ("queue", queue)]
            .map(|(name, value)| (name.to_owned(), cut(&value, 255).to_owned()))
            .into();
        let make = Maker { registry: Registry::new(), labels };
        let outcomes = make.counters(
            names::OUTCOMES,
            "Settled deliveries, by outcome: ack, retry, dead_letter, or returned to the queue unhandled",
            "outcome",
        )?;
        let unpublished = make.counters(names::COPIES_FAILED, "Copies for the retry ladder or the dead-letter queue that the broker did not take; their deliveries stay unacknowledged, and the copies are tried again", "target")?;
        let answers = make.counters("warren_sidecar_answers_total", "Handler calls that ended, by how: success (2xx), client_error, not_now (429, 503), server_error, other, timed_out, broken, unreached", "answer")?;
        let failures = make.counters(names::HANDLER_FAILURES, "Of the calls and late deliveries in the handler's duration, those that failed so that their messages are to be tried again, by attempt: the message's first, with batches also its first by itself, or a further one", "attempt")?;
        for class in AnswerClass::ALL {
            answers.with_label_values(&[class.label()]);
        }
        let publishes = make.counters(
            "warren_sidecar_publishes_total",
            "Messages published through the publish API, by result",
            "result",
        )?;
        for class in PublishClass::ALL {
            publishes.with_label_values(&[class.label()]);
        }
        let started = Gauge::with_opts(
            make.opts("warren_sidecar_start_time_seconds", "When the sidecar started, in seconds since 1970"),
        )?;
        if let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) {
            started.set(since.as_secs_f64());
        }
        make.registry.register(Box::new(started))?;
        Ok(Self {
            unsettled: make.gauge(names::UNSETTLED, "Messages delivered and not settled")?,
            in_flight: make.gauge(names::IN_FLIGHT, "Messages at the handler")?,
            late: make.gauge(names::LATE, "Of these, messages that the application has answered with `later` and not ended yet")?,
            prefetch: make.gauge("warren_sidecar_prefetch", "Messages held unacknowledged at most; 0 while not consuming")?,
            connected: make.gauge(names::CONNECTED, "1 while the consuming connection is up and the queue is there")?,
            handler_up: make.gauge(names::HANDLER_UP, "1 while the handler takes calls, 0 while consuming is held because it does not")?,
            breaker_open: make.gauge(names::BREAKER_OPEN, "1 while most handler calls fail and consuming is held for that")?,
            misconfigured: make.gauge(names::HANDLER_MISCONFIGURED, "The HTTP status (401, 403, 404, 405 or 431) that failed calls have while the breaker is open: the handler's address or rights are wrong; 0 otherwise")?,
            draining: make.gauge("warren_sidecar_draining", "1 from the begin of a drain until it is taken back")?,
            blocked: make.gauge(names::PUBLISH_BLOCKED, "1 while the broker takes no publishes (memory or disk alarm)")?,
            deliveries: make.counter(names::DELIVERIES, "Messages delivered by the broker")?,
            redeliveries: make.counter("warren_sidecar_redeliveries_total", "Messages delivered with the broker's redelivered flag")?,
            extensions: make.counter(names::EXTENSIONS, "Times that the application asked for more time for a delivery that it ends later")?,
            transient: make.counter(names::TRANSIENT, "Messages of a classic queue without delivery_mode 2, which it loses with a broker restart")?,
            without_id: make.counter("warren_sidecar_messages_without_id_total", "Messages without a message id: the handler cannot tell a redelivery from another message")?,
            headers_omitted: make.counter("warren_sidecar_headers_omitted_total", "Message headers that could not be handed to the handler")?,
            reconnects: make.counter("warren_sidecar_reconnects_total", "Consuming channels opened again after one was lost, or was given up for a changed Secret, virtual host or queue")?,
            stale: make.counter("warren_sidecar_stale_answers_total", "Handler answers for deliveries whose connection was gone: the broker delivers those again")?,
            stale_acks: make.counter("warren_sidecar_stale_acks_total", "Acknowledgements that were dropped because their channel was gone")?,
            undrained: make.counter("warren_sidecar_undrained_terminations_total", "SIGTERMs without a drain before them")?,
            unreadable: make.counter("warren_sidecar_unreadable_total", "Times that the consuming connection ended over a message that cannot be read, as a property, the routing key or a header's name is no UTF-8")?,
            replies_dropped: make.counter("warren_sidecar_replies_dropped_total", "Replies that were given up since their reply_to queue was gone, full or not to be published to; their messages are acknowledged, since the work is done")?,
            held_long: make.counter("warren_sidecar_deliveries_held_long_total", "Deliveries held for most of the broker's delivery acknowledgement time-out")?,
            spans_dropped: make.counter("warren_sidecar_spans_dropped_total", "Trace spans that the collector did not get")?,
            handler_seconds: make.histogram(names::HANDLER_SECONDS, "Seconds of a handler call, or from the call to the end of a delivery that was answered with later; without calls that were answered with not now (429, 503) or did not reach the handler", HANDLER_BUCKETS)?,
            drain_seconds: make.histogram("warren_sidecar_drain_duration_seconds", "Seconds of a drain", DRAIN_BUCKETS)?,
            ack_batch: make.histogram("warren_sidecar_ack_batch_size", "Deliveries settled by one acknowledgement", ACK_BUCKETS)?,
            outcomes: ["ack", "retry", "dead_letter", "returned"].map(|label| outcomes.with_label_values(&[label])),
            failures: ["first", "further"].map(|label| failures.with_label_values(&[label])),
            unpublished: ["retry", "dead_letter"].map(|label| unpublished.with_label_values(&[label])),
            answers,
            publishes,
            queue: current,
            registry: make.registry,
        })
    }

    /// Counts how a handler call ended. Its duration counts only where it is that of work: the scaler takes it for what a
    /// message costs.
    pub fn answered(&self, class: AnswerClass, answers: &Answers, first: bool, took: Duration) {
        self.answers.with_label_values(&[class.label()]).inc();
        if is_work(answers) {
            self.worked(took, first, has_failed(answers));
        }
    }

    fn worked(&self, took: Duration, is_first: bool, failed: bool) {
        self.handler_seconds.observe(took.as_secs_f64());
        if failed {
            let [first, further] = &self.failures;
            if is_first { first.inc() } else { further.inc() }
        }
    }

    /// Counts a publish through the publish API.
    pub fn published(&self, class: PublishClass) {
        self.publishes.with_label_values(&[class.label()]).inc();
    }

    /// Counts what the engine saw.
    pub fn observe(&self, observation: &Observation) {
        match observation {
            Observation::Settled(outcome) => {
                let [ack, retry, dead_letter, returned] = &self.outcomes;
                match outcome {
                    Outcome::Ack => ack,
                    Outcome::Retry => retry,
                    Outcome::DeadLetter => dead_letter,
                    Outcome::Returned => returned,
                }
                .inc();
            }
            Observation::Stale => self.stale.inc(),
            Observation::Unacknowledged { count } => {
                self.stale_acks.inc_by(u64::try_from(*count).unwrap_or(u64::MAX));
            }
            Observation::Unpublished { target, .. } => {
                let [retry, dead_letter] = &self.unpublished;
                match target {
                    Target::Retry => retry.inc(),
                    Target::DeadLetter => dead_letter.inc(),
                    // No copy: it counts once it is given up.
                    Target::Reply => {}
                }
            }
            Observation::ReplyDropped { .. } => self.replies_dropped.inc(),
            Observation::Unreadable => self.unreadable.inc(),
            Observation::LateEnded { took, first, failed } => self.worked(*took, *first, *failed),
            Observation::DrainEnded { took, .. } => self.drain_seconds.observe(took.as_secs_f64()),
            Observation::TerminatedUndrained => self.undrained.inc(),
            Observation::HeldLong { count, .. } => self.held_long.inc_by(*count),
            Observation::HandlerDown
            | Observation::HandlerUp
            | Observation::BreakerOpened { .. }
            | Observation::BreakerClosed
            | Observation::DrainBegan
            | Observation::DrainReversed => {}
        }
    }

    /// Sets the gauges.
    pub fn set(&self, snapshot: &Snapshot) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.unsettled.set(count(snapshot.unsettled));
        self.in_flight.set(count(snapshot.in_flight));
        self.late.set(count(snapshot.late));
        self.prefetch.set(i64::from(snapshot.prefetch));
        self.handler_up.set(i64::from(snapshot.handler_accepts && snapshot.breaker.is_none()));
        self.breaker_open.set(i64::from(snapshot.breaker.is_some()));
        let status = snapshot.breaker.filter(|status| is_misconfigured(*status));
        self.misconfigured.set(i64::from(status.unwrap_or(0)));
        self.draining.set(i64::from(snapshot.draining));
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.families()).unwrap_or_default()
    }

    /// Names another queue from now on. What was counted goes on counting.
    pub fn follow(&self, queue: &str) {
        cut(queue, 255).clone_into(&mut locked(&self.queue));
    }

    /// All metrics. The library's labels cannot change, so the queue's is written over.
    fn families(&self) -> Vec<prometheus::proto::MetricFamily> {
        let queue = locked(&self.queue).clone();
        let mut families = self.registry.gather();
        let metrics = families.iter_mut().flat_map(|family| family.mut_metric());
        for label in metrics.flat_map(|metric| metric.mut_label()).filter(|label| label.name() == "queue") {
            label.set_value(queue.clone());
        }
        families
    }
}

/// The reference page of all metrics, in Markdown.
pub fn reference() -> String {
    use std::fmt::Write;
    let mut page = String::from(
        "# Sidecar metrics\n\nServed on port 9400 at `/metrics`. Every metric has the labels `namespace`, `worker` and `queue`: the queue's name on the broker,\n\
         which is the Queue's `metadata.name` unless it has a `spec.queueName`. They are empty where `warren-sidecar publish` runs alone.\n\
         Generated by `cargo xtask generate`: do not edit.\n\n| Metric | Type | Labels | What |\n|---|---|---|---|\n",
    );
    let Ok(metrics) = Metrics::new(Labels::default()) else { return page };
    for family in metrics.families() {
        let mut labels: Vec<String> = Vec::new();
        for metric in family.get_metric() {
            for label in metric.get_label() {
                let (name, value) = (label.name(), label.value());
                if !matches!(name, "namespace" | "worker" | "queue") {
                    labels.push(format!("`{name}=\"{value}\"`"));
                }
            }
        }
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        // Writing to a string cannot fail.
        let _ = writeln!(page, "| `{}` | {kind} | {} | {} |", family.name(), labels.join(" "), family.help());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Failure, Verdict};

    fn metrics() -> Metrics {
        Metrics::new(Labels { namespace: "shop".into(), worker: "invoices".into(), queue: "orders".into() })
            .unwrap()
    }

    #[test]
    fn every_metric_has_the_three_labels_and_the_prefix() {
        let text = metrics().render();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("warren_sidecar_"), "{line}");
            assert!(line.contains("namespace=\"shop\""), "{line}");
        }
        for outcome in ["ack", "retry", "dead_letter", "returned"] {
            assert!(text.contains(&format!("outcome=\"{outcome}\"")));
        }
    }

    #[test]
    fn the_handlers_duration_is_that_of_work_alone() {
        let metrics = metrics();
        let seconds = Duration::from_secs;
        let calls = |answers, took| metrics.answered(AnswerClass::Success, &answers, false, took);
        for verdict in [
            Verdict::Later,
            Verdict::NotNow { after: None, status: 429 },
            Verdict::NotNow { after: None, status: 503 },
            Verdict::Unreached,
        ] {
            calls(Answers::All(verdict), seconds(1000));
        }
        calls(Answers::Each(vec![Verdict::Later, Verdict::Later]), seconds(1000));
        assert_eq!(metrics.handler_seconds.get_sample_count(), 0);
        calls(Answers::All(Verdict::Ack), seconds(1));
        calls(Answers::All(Verdict::Retry(Failure::default())), seconds(2));
        calls(Answers::Each(vec![Verdict::Later, Verdict::Ack]), seconds(4));
        metrics.observe(&Observation::LateEnded { took: seconds(8), first: true, failed: true });
        let (count, sum) =
            (metrics.handler_seconds.get_sample_count(), metrics.handler_seconds.get_sample_sum());
        assert!(count == 4 && (sum - 15.0).abs() < 1e-9, "{count} {sum}");
        calls(Answers::Each(vec![Verdict::Retry(Failure::default()), Verdict::Ack]), seconds(1));
        assert_eq!(metrics.failures.each_ref().map(IntCounter::get), [1, 1]);
    }

    #[test]
    fn the_queues_label_follows_and_what_was_counted_stays() {
        let metrics = metrics();
        metrics.deliveries.inc();
        metrics.follow("orders-v2");
        let text = metrics.render();
        assert!(!text.contains("queue=\"orders\""), "{text}");
        let line = text.lines().find(|line| line.starts_with(names::DELIVERIES)).unwrap();
        assert!(line.contains("queue=\"orders-v2\"") && line.ends_with(" 1"), "{line}");
    }

    #[test]
    fn the_reference_names_every_metric_and_its_help_fits_a_table() {
        let page = reference();
        for family in metrics().families() {
            assert!(page.contains(family.name()));
            assert!(!family.help().contains('|') && !family.help().is_empty());
        }
    }
}
