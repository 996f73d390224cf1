//! What is simulated: a Worker from a manifest, with how its pods behave. Parsed once.

use clap::ValueEnum;
use thiserror::Error;
use warren_api::queue::AdoptionPolicy;
use warren_api::worker::{PrefetchMode, ScalingMode};
use warren_operator::scaler::inputs::Spec;
use warren_operator::worker::validate::drain_seconds;

use super::manifest::{self, ManifestError, Wanted};
use super::trace::SERVICE_SECONDS;

/// What is wrong with the manifest or the numbers.
#[derive(Debug, Error)]
pub enum SettingError {
    /// It cannot be read, or has no Worker to simulate.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Warren does not scale it.
    #[error(
        "the Worker's scaling.mode is {0:?}, in which Warren does not choose the replicas: simulate one with mode Builtin"
    )]
    NotBuiltin(ScalingMode),
    /// A number that cannot be.
    #[error("{name} must be {what}, not {value}")]
    Number {
        /// Of the option.
        name: &'static str,
        /// What it may be.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// What the API server refuses.
    #[error("{0}")]
    Refused(&'static str),
}

/// What the simulated pods are like, besides what the scaler knows of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pods {
    /// Seconds of a handler call, where the trace says nothing else.
    pub service_seconds: f64,
    /// Seconds from the request for a pod to its first message.
    pub startup_seconds: f64,
    /// Messages that a pod holds at most.
    pub prefetch: u32,
    /// Seconds after which a pod that is let go begins no more calls.
    pub drain_starts_seconds: f64,
}

/// A Worker to simulate.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its `metadata.name`.
    pub name: String,
    /// What it asks of its scaling.
    pub spec: Spec,
    /// How its pods behave.
    pub pods: Pods,
    /// What the model of KEDA asks the broker by.
    pub keda: Protocol,
}

/// How KEDA's scaler reads a queue (<https://keda.sh/docs/latest/scalers/rabbitmq-queue/>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Ready messages
    #[default]
    Amqp,
    /// Ready messages and those that are not acknowledged, from the management plugin
    Http,
}

impl Setting {
    /// Reads the Worker `wanted`, or the only one, of a manifest. Its Queue there says whether the queue is a quorum queue, which
    /// is the default, and whether one consumer at a time gets messages.
    ///
    /// # Errors
    /// See [`SettingError`].
    pub fn parse(
        manifest: &str,
        wanted: Wanted<'_>,
        service_seconds: f64,
        startup_seconds: f64,
    ) -> Result<Self, SettingError> {
        let number = |name, what, value: f64, sane: bool| {
            if value.is_finite() && sane { Ok(()) } else { Err(SettingError::Number { name, what, value }) }
        };
        number(
            "--service-seconds",
            "between 0.001 and 86400",
            service_seconds,
            SERVICE_SECONDS.contains(&service_seconds),
        )?;
        number(
            "--startup-seconds",
            "between 0 and 3600",
            startup_seconds,
            (0.0..=3600.0).contains(&startup_seconds),
        )?;
        let (worker, mut queue) = manifest::parse(manifest, wanted)?;
        // What has become of it on a broker is no part of a simulation: the spec is taken at its word.
        queue.status = None;
        queue.spec.adoption_policy = AdoptionPolicy::AsIs;
        let (scaling, consumer) = (&worker.spec.scaling, &worker.spec.consumer);
        if scaling.mode != ScalingMode::Builtin {
            return Err(SettingError::NotBuiltin(scaling.mode));
        }
        if worker.spec.handler.batch.is_some() {
            return Err(SettingError::Refused(
                "handler.batch is not simulated, since a trace does not say how full batches are: leave it out, and give --service-seconds for one message",
            ));
        }
        let replicas = (scaling.min_replicas, scaling.max_replicas);
        if !(0..=replicas.1).contains(&replicas.0) || !(1..=10_000).contains(&replicas.1) {
            return Err(SettingError::Refused(
                "scaling.minReplicas must be at least 0 and at most scaling.maxReplicas, and that between 1 and 10000",
            ));
        }
        if scaling.target_wait_seconds < 1
            || scaling.scale_in_stabilization_seconds < 0
            || !(1..=2000).contains(&consumer.prefetch)
            || worker.spec.handler.http.timeout_seconds < 1
        {
            return Err(SettingError::Refused(
                "targetWaitSeconds and handler.http.timeoutSeconds must be at least 1, prefetch between 1 and 2000, scaleInStabilizationSeconds at least 0",
            ));
        }
        if consumer.concurrency.is_some_and(|concurrency| concurrency < 1 || concurrency > consumer.prefetch)
        {
            return Err(SettingError::Refused(
                "consumer.concurrency must be between 1 and consumer.prefetch",
            ));
        }
        let spec = warren_operator::scaler::asked::spec(&worker, Some(&queue), None);
        if spec.paused {
            return Err(SettingError::Refused(
                "nothing would be consumed: consumer.paused is set, or consumer.orderingKey asks for more than one pod without a Queue in the manifest that has singleActiveConsumer",
            ));
        }
        if spec.single && spec.min > 1 {
            return Err(SettingError::Refused(
                "with the Queue's singleActiveConsumer one pod gets messages, and scaling.minReplicas above 1 is the pods that there are at all times: nothing is scaled. Set it to 0 or 1 to simulate that one pod",
            ));
        }
        let ordered = consumer.ordering_key.is_some();
        if ordered && spec.concurrency > 1 {
            return Err(SettingError::Refused(
                "consumer.orderingKey is not simulated, since a trace does not say which messages have the same value: leave it out, and let consumer.concurrency be as many calls as run at once for different values",
            ));
        }
        let prefetch = consumer.prefetch.unsigned_abs();
        // With an order the window stays, and it is never smaller than what calls take.
        if consumer.prefetch_mode == PrefetchMode::Auto && !ordered && spec.concurrency < prefetch {
            return Err(SettingError::Refused(
                "consumer.prefetchMode: Auto is not simulated, since its window follows the broker's round trips: leave it out, and let consumer.prefetch be the window",
            ));
        }
        let drain = f64::from(drain_seconds(&worker));
        // As the sidecar drains: calls that begin end before it does, and where an order is kept none begin.
        let drain_starts_seconds =
            if ordered { 0.0 } else { (drain / 2.0).min(drain - spec.handler_timeout) };
        let pods = Pods { service_seconds, startup_seconds, prefetch, drain_starts_seconds };
        Ok(Self {
            name: worker.metadata.name.clone().unwrap_or_default(),
            spec,
            pods,
            keda: Protocol::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "
apiVersion: warren.dev/v1alpha1
kind: Worker
metadata: {name: invoices}
spec:
  queueRef: {name: orders}
  template: {spec: {containers: [{name: app, image: app}]}}
";

    fn refused(manifest: &str, service: f64) -> String {
        Setting::parse(manifest, Wanted::default(), service, 5.0).unwrap_err().to_string()
    }

    #[test]
    fn a_worker_is_read_with_its_defaults_and_its_queues_type() {
        let setting = Setting::parse(WORKER, Wanted::default(), 0.5, 5.0).unwrap();
        assert_eq!((setting.spec.max, setting.spec.target_wait, setting.spec.quorum), (50, 10.0, true));
        let queue = "apiVersion: warren.dev/v1alpha1\nkind: Queue\nmetadata: {name: orders}\nspec: {type: Classic}\n---";
        let setting = Setting::parse(
            &format!("{queue}{WORKER}"),
            Wanted { name: Some("invoices"), namespace: None },
            0.5,
            5.0,
        )
        .unwrap();
        assert!(!setting.spec.quorum);
    }

    #[test]
    fn what_cannot_be_simulated_is_refused_with_what_to_do() {
        assert!(refused(WORKER, 0.0).contains("--service-seconds"));
        assert!(refused(WORKER, f64::NAN).contains("--service-seconds"));
        let manual = WORKER.replace("queueRef", "scaling: {mode: Manual}\n  queueRef");
        assert!(refused(&manual, 1.0).contains("Manual"));
        let upside_down = WORKER.replace("queueRef", "scaling: {minReplicas: 5, maxReplicas: 2}\n  queueRef");
        assert!(refused(&upside_down, 1.0).contains("minReplicas"));
        let batch = WORKER.replace("queueRef", "handler: {batch: {maxMessages: 10}}\n  queueRef");
        assert!(refused(&batch, 1.0).contains("handler.batch"));
        let huge = WORKER.replace("queueRef", "consumer: {prefetch: 2000000000}\n  queueRef");
        assert!(refused(&huge, 1.0).contains("prefetch between 1 and 2000"));
        let paused = WORKER.replace("queueRef", "consumer: {paused: true}\n  queueRef");
        assert!(refused(&paused, 1.0).contains("consumer.paused"));
        assert!(refused("kind: [", 1.0).contains("cannot be read"));
        assert!(refused("kind: Deployment", 1.0).contains("no Worker"));
    }

    #[test]
    fn a_pod_that_is_let_go_begins_calls_for_as_long_as_the_sidecar_s_drain_does() {
        let starts = |fields: &str| {
            let manifest = WORKER.replace("queueRef", &format!("{fields}\n  queueRef"));
            Setting::parse(&manifest, Wanted::default(), 1.0, 5.0).unwrap().pods.drain_starts_seconds
        };
        assert_eq!(starts("consumer: {prefetch: 20}"), 15.0);
        assert_eq!(starts("shutdown: {drainTimeoutSeconds: 600}"), 300.0);
        assert_eq!(starts("consumer: {orderingKey: x-customer}\n  scaling: {maxReplicas: 1}"), 0.0);
    }

    const ONE_CONSUMER: &str = "apiVersion: warren.dev/v1alpha1\nkind: Queue\nmetadata: {name: orders}\nspec: {singleActiveConsumer: true}\n---";

    #[test]
    fn of_a_single_active_consumer_one_pod_is_simulated_and_no_standby() {
        let one = format!("{ONE_CONSUMER}{WORKER}");
        assert_eq!(Setting::parse(&one, Wanted::default(), 1.0, 5.0).unwrap().spec.max, 1);
        let standby = one.replace("queueRef", "scaling: {minReplicas: 3}\n  queueRef");
        assert!(refused(&standby, 1.0).contains("minReplicas"));
    }

    #[test]
    fn an_order_is_simulated_one_call_at_a_time_and_a_window_only_where_it_is_fixed() {
        let with = |consumer: &str| {
            let manifest = format!("{ONE_CONSUMER}{WORKER}");
            manifest.replace("queueRef", &format!("consumer: {{{consumer}}}\n  queueRef"))
        };
        let order = "orderingKey: x-customer, prefetch: 20";
        assert!(refused(&with(order), 1.0).contains("orderingKey"));
        let one_at_a_time = with(&format!("{order}, concurrency: 1, prefetchMode: Auto"));
        assert!(Setting::parse(&one_at_a_time, Wanted::default(), 1.0, 5.0).is_ok());
        let elsewhere = one_at_a_time.replace("name: orders}\nspec", "name: other}\nspec");
        assert!(refused(&elsewhere, 1.0).contains("singleActiveConsumer"));
        assert!(refused(&with("prefetch: 20, concurrency: 5, prefetchMode: Auto"), 1.0).contains("Auto"));
        assert!(
            Setting::parse(&with("prefetch: 20, prefetchMode: Auto"), Wanted::default(), 1.0, 5.0).is_ok()
        );
    }
}
