//! Step 1: what the Worker points to and what exists of it, all from caches.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use warren_api::names::{CONFIG_KEY, config_map};
use warren_api::{Queue, SidecarConfig, Worker};

use super::live::{LiveConfigMap, LiveDeployment, LiveDisruptionBudget};
use super::pods;
use crate::brokers::Key;
use crate::context::Context;
use crate::error::Error;
use crate::queue::validate::key;
use crate::scaler::task::worker_key;
use crate::secrets::{SecretState, User};

/// Everything that surrounds a Worker.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Its Queue.
    pub queue: Option<Arc<Queue>>,
    /// See [`beside`].
    pub beside: Option<String>,
    /// The Secret that the sidecars use; none without a Queue.
    pub secret: Option<SecretState>,
    /// Its Deployment.
    pub deployment: Option<Arc<LiveDeployment>>,
    /// Its ConfigMap.
    pub config_map: Option<Arc<LiveConfigMap>>,
    /// Its PodDisruptionBudget.
    pub disruption_budget: Option<Arc<LiveDisruptionBudget>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

impl Surroundings {
    /// The configuration that the sidecars read.
    fn told(&self) -> Option<SidecarConfig> {
        told(self.config_map.as_deref()?)
    }

    /// Whether the configuration that the sidecars read holds consuming.
    pub fn is_told_to_pause(&self) -> bool {
        self.told().is_some_and(|config| config.consumer.paused)
    }

    /// The broker's queue that the sidecars are told to consume.
    pub fn told_queue(&self) -> Option<String> {
        self.told().map(|config| config.queue.name)
    }
}

/// The configuration that a ConfigMap holds.
fn told(config_map: &LiveConfigMap) -> Option<SidecarConfig> {
    serde_json::from_str(config_map.object()["data"][CONFIG_KEY].as_str()?).ok()
}

/// The broker's queue that a Worker's sidecars are told to consume.
pub fn told_queue(worker: &Worker, context: &Context) -> Option<String> {
    let config_map = ObjectRef::new(&config_map(&worker.name_any())).within(&worker.namespace()?);
    Some(told(context.stores.config_maps.get(&config_map)?.as_ref())?.queue.name)
}

/// The Secret that the sidecars of a Queue's Workers use.
pub fn worker_secret(queue: &Queue) -> &str {
    let broker = &queue.spec.broker;
    &broker.worker_secret_ref.as_ref().unwrap_or(&broker.secret_ref).name
}

/// Looks everything up.
pub async fn dereference(worker: &Worker, context: &Context) -> Result<Surroundings, Error> {
    let namespace = worker.namespace().unwrap_or_default();
    let name = worker.name_any();
    let stores = &context.stores;
    let queue = stores.queues.get(&ObjectRef::new(&worker.spec.queue_ref.name).within(&namespace));
    let secret = match &queue {
        None => None,
        Some(queue) => {
            let user = User::Worker(ObjectRef::from_obj(worker), context.worker_changed.clone());
            Some(context.secrets.get(&namespace, worker_secret(queue), user).await?)
        }
    };
    let beside = queue.as_deref().and_then(|queue| beside(worker, queue, context));
    Ok(Surroundings {
        queue,
        beside,
        secret,
        deployment: stores.deployments.get(&ObjectRef::new(&name).within(&namespace)),
        config_map: stores.config_maps.get(&ObjectRef::new(&config_map(&name)).within(&namespace)),
        disruption_budget: stores.disruption_budgets.get(&ObjectRef::new(&name).within(&namespace)),
        pods: context.pods.of(&Key { namespace, name }),
    })
}

/// Whose pods may consume beside a Worker's only pod, and what to do about it; looked up where an order is asked for.
pub fn beside(worker: &Worker, queue: &Queue, context: &Context) -> Option<String> {
    worker.spec.consumer.ordering_key.as_ref()?;
    let own = worker_key(worker);
    if let Some(Key { name, .. }) = context.beside(&own, &key(queue)) {
        return Some(format!(
            "the pods of Worker \"{name}\" consume the same Queue. Use a Queue with singleActiveConsumer: true, or give each Worker a Queue of its own"
        ));
    }
    pods::extra(&context.pods.of(&own)).map(|pod| {
        format!("pod {pod} has not ended. It goes on by itself then; where the pod's node is lost, delete that Node")
    })
}
