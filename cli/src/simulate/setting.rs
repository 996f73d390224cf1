//! What is simulated: a Worker from a manifest, with how its pods behave. Parsed once.

use serde::Deserialize;
use thiserror::Error;
use warren_api::worker::ScalingMode;
use warren_api::{Queue, Worker};
use warren_operator::scaler::inputs::Spec;

use super::world::Pods;

/// What is wrong with the manifest or the numbers.
#[derive(Debug, Error)]
pub enum SettingError {
    /// It is no YAML, or not the YAML of a Worker.
    #[error("the manifest cannot be read: {0}")]
    Manifest(#[from] serde_yaml::Error),
    /// There is no Worker in it.
    #[error("the manifest has no Worker (kind: Worker, apiVersion: warren.dev/v1alpha1)")]
    NoWorker,
    /// There is more than one.
    #[error("the manifest has {0} Workers: give one of them with --worker NAME")]
    ManyWorkers(usize),
    /// The one that was asked for is not there.
    #[error("the manifest has no Worker \"{0}\"")]
    NotFound(String),
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

/// A Worker to simulate.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its `metadata.name`.
    pub name: String,
    /// What it asks of its scaling.
    pub spec: Spec,
    /// How its pods behave.
    pub pods: Pods,
}

impl Setting {
    /// Reads the Worker `wanted`, or the only one, of a manifest with one or more documents. A Queue in it says whether the
    /// Worker's queue is a quorum queue, which is the default.
    ///
    /// # Errors
    /// See [`SettingError`].
    pub fn parse(
        manifest: &str,
        wanted: Option<&str>,
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
            (0.001..=86_400.0).contains(&service_seconds),
        )?;
        number(
            "--startup-seconds",
            "between 0 and 3600",
            startup_seconds,
            (0.0..=3600.0).contains(&startup_seconds),
        )?;
        let (workers, queues) = read(manifest)?;
        let worker = choose(&workers, wanted)?;
        let queue =
            queues.iter().find(|queue| queue.metadata.name.as_ref() == Some(&worker.spec.queue_ref.name));
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
        {
            return Err(SettingError::Refused(
                "targetWaitSeconds must be at least 1, prefetch between 1 and 2000, scaleInStabilizationSeconds at least 0",
            ));
        }
        if consumer.concurrency.is_some_and(|concurrency| concurrency < 1 || concurrency > consumer.prefetch)
        {
            return Err(SettingError::Refused(
                "consumer.concurrency must be between 1 and consumer.prefetch",
            ));
        }
        let spec = warren_operator::scaler::asked::spec(worker, queue, None);
        if spec.paused {
            return Err(SettingError::Refused(
                "nothing would be consumed: consumer.paused is set, or consumer.orderingKey without singleActiveConsumer asks for more than one pod",
            ));
        }
        let pods = Pods {
            service_seconds,
            startup_seconds,
            prefetch: consumer.prefetch.unsigned_abs(),
            concurrency: spec.concurrency,
            min: spec.min,
        };
        Ok(Self { name: worker.metadata.name.clone().unwrap_or_default(), spec, pods })
    }
}

fn read(manifest: &str) -> Result<(Vec<Worker>, Vec<Queue>), SettingError> {
    let (mut workers, mut queues) = (Vec::new(), Vec::new());
    for document in serde_yaml::Deserializer::from_str(manifest) {
        let value = serde_yaml::Value::deserialize(document)?;
        match value.get("kind").and_then(serde_yaml::Value::as_str) {
            Some("Worker") => workers.push(serde_yaml::from_value(value)?),
            Some("Queue") => queues.push(serde_yaml::from_value(value)?),
            _ => {}
        }
    }
    Ok((workers, queues))
}

fn choose<'a>(workers: &'a [Worker], wanted: Option<&str>) -> Result<&'a Worker, SettingError> {
    match (wanted, workers) {
        (Some(name), _) => workers
            .iter()
            .find(|worker| worker.metadata.name.as_deref() == Some(name))
            .ok_or_else(|| SettingError::NotFound(name.to_owned())),
        (None, [worker]) => Ok(worker),
        (None, []) => Err(SettingError::NoWorker),
        (None, many) => Err(SettingError::ManyWorkers(many.len())),
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
        Setting::parse(manifest, None, service, 5.0).unwrap_err().to_string()
    }

    #[test]
    fn a_worker_is_read_with_its_defaults_and_its_queues_type() {
        let setting = Setting::parse(WORKER, None, 0.5, 5.0).unwrap();
        assert_eq!((setting.spec.max, setting.spec.target_wait, setting.spec.quorum), (50, 10.0, true));
        let queue = "apiVersion: warren.dev/v1alpha1\nkind: Queue\nmetadata: {name: orders}\nspec: {type: Classic}\n---";
        let setting = Setting::parse(&format!("{queue}{WORKER}"), Some("invoices"), 0.5, 5.0).unwrap();
        assert!(!setting.spec.quorum);
    }

    #[test]
    fn what_cannot_be_simulated_is_refused_with_what_to_do() {
        assert!(refused("kind: Deployment", 1.0).contains("no Worker"));
        assert!(refused(&format!("{WORKER}---{WORKER}"), 1.0).contains("--worker"));
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
    }
}
