//! Step 1: what the Worker points to and what exists of it, from caches, and its Secret, which is asked for at times.

use std::collections::BTreeSet;
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
    pub fn told(&self) -> Option<SidecarConfig> {
        told(self.config_map.as_deref()?)
    }

    /// Whether the configuration that the sidecars read holds consuming.
    pub fn is_told_to_pause(&self) -> bool {
        self.told().is_some_and(|config| config.consumer.paused)
    }
}

/// The configuration that a ConfigMap holds.
fn told(config_map: &LiveConfigMap) -> Option<SidecarConfig> {
    serde_json::from_str(config_map.object()["data"][CONFIG_KEY].as_str()?).ok()
}

/// What a Worker's sidecars are told.
pub fn told_by(worker: &Worker, context: &Context) -> Option<SidecarConfig> {
    let config_map = ObjectRef::new(&config_map(&worker.name_any())).within(&worker.namespace()?);
    told(context.stores.config_maps.get(&config_map)?.as_ref())
}

/// Whether sidecars with such a configuration surely consume a Queue of their namespace.
pub fn consumes(config: &SidecarConfig, queue: &Queue) -> bool {
    queue.broker_name() == config.queue.name
        && queue.spec.broker.vhost == config.queue.vhost
        && config.secret.as_deref() == Some(worker_secret(queue))
}

/// Those of `queues`, by name, that sidecars with such a configuration consume. With another Secret than theirs, one queue's name on
/// the broker may stand for any that has it.
pub fn consumed_by(config: &SidecarConfig, queues: &[Arc<Queue>]) -> BTreeSet<String> {
    let named = queues.iter().filter(|queue| {
        queue.broker_name() == config.queue.name && queue.namespace().as_ref() == Some(&config.namespace)
    });
    let (same, others): (Vec<_>, Vec<_>) = named.partition(|queue| consumes(config, queue));
    let of = if same.is_empty() { others } else { same };
    of.into_iter().map(|queue| queue.name_any()).collect()
}

/// The Secret that the sidecars of a Queue's Workers use.
pub fn worker_secret(queue: &Queue) -> &str {
    let broker = &queue.spec.broker;
    broker.worker_secret_ref.as_ref().map_or(&broker.secret_ref.name, |secret| &secret.name)
}

/// Looks everything up.
pub async fn dereference(worker: &Worker, context: &Context) -> Result<Surroundings, Error> {
    let own = Key::of(worker);
    let stores = &context.stores;
    let queue = context.queue_of(worker);
    let secret = match &queue {
        None => None,
        Some(queue) => {
            let user = User::Worker(ObjectRef::from_obj(worker), context.worker_changed.clone());
            Some(context.secrets.get(&own.namespace, worker_secret(queue), user).await?)
        }
    };
    let beside = queue.as_deref().and_then(|queue| beside(worker, queue, context));
    Ok(Surroundings {
        queue,
        beside,
        secret,
        deployment: stores.deployments.get(&ObjectRef::from(&own)),
        config_map: stores.config_maps.get(&ObjectRef::new(&config_map(&own.name)).within(&own.namespace)),
        disruption_budget: stores.disruption_budgets.get(&ObjectRef::from(&own)),
        pods: context.pods.of(&own),
    })
}

/// Whose pods may consume beside a Worker's only pod, and what to do about it; looked up where an order is asked for.
pub fn beside(worker: &Worker, queue: &Queue, context: &Context) -> Option<String> {
    worker.spec.consumer.ordering_key.as_ref()?;
    let own = Key::of(worker);
    if let Some(other @ Key { name, .. }) = &context.beside(&own, &Key::of(queue)) {
        if context.is_told(other, &queue.name_any()) {
            return Some(format!(
                "the sidecars of Worker \"{name}\", which has named the same Queue, have not been told of another yet: where that stays so, see its conditions, or delete it"
            ));
        }
        return Some(format!(
            "the pods of Worker \"{name}\" consume the same Queue. Use a Queue with singleActiveConsumer: true, or give each Worker a Queue of its own"
        ));
    }
    pods::extra(&context.pods.of(&own)).map(|pod| {
        format!(
            "pod {pod} has not ended. It goes on by itself then: one that is deleted and waits out its grace period ends soon with kubectl delete pod {pod} --grace-period=1; where the pod's node is lost, delete that Node"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue(name: &str, broker: Value) -> Arc<Queue> {
        let spec = json!({"queueName": "orders", "broker": broker});
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn sidecars_are_told_of_the_queue_of_their_address_and_after_its_secret_has_another_name_of_any_of_that_name()
     {
        let of_a = queue("of-a", json!({"secretRef": {"name": "a"}}));
        let of_b = queue("of-b", json!({"secretRef": {"name": "b"}}));
        let of_b_too = queue("of-b-too", json!({"secretRef": {"name": "b"}, "vhost": "too"}));
        let mut elsewhere = Arc::unwrap_or_clone(queue("elsewhere", json!({"secretRef": {"name": "a"}})));
        elsewhere.metadata.namespace = Some("mail".to_owned());
        let queues = [of_a, of_b, of_b_too, Arc::new(elsewhere)];
        let told_with = |secret: &str| {
            let config = json!({"namespace": "shop", "worker": "biller", "secret": secret,
                "queue": {"name": "orders", "type": "Quorum", "maxAttempts": 3},
                "handler": {"path": "/", "timeoutSeconds": 30}, "consumer": {"prefetch": 1, "concurrency": 1}});
            let config: SidecarConfig = serde_json::from_value(config).unwrap();
            consumed_by(&config, &queues).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(told_with("a"), ["of-a"]);
        assert_eq!(told_with("b"), ["of-b"]);
        assert_eq!(told_with("former"), ["of-a", "of-b", "of-b-too"]);
    }
}
