//! The finalizer: there only where a deletion has something to do on the broker.

use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use warren_api::Queue;
use warren_api::queue::DeletionPolicy;

use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::tolerant::Tolerant;

/// Its name.
const FINALIZER: &str = "warren.dev/broker-queue";

/// Whether a Queue has it.
pub fn is_set(queue: &Queue) -> bool {
    queue.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Those of Kubernetes, which its garbage collector removes by itself, see
/// <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.
const COLLECTORS: [&str; 2] = ["foregroundDeletion", "orphan"];

/// Another's, which nobody may remove unless somebody is told.
pub fn of_another(queue: &Queue) -> Option<&str> {
    let mut all = queue.finalizers().iter().map(String::as_str);
    all.find(|finalizer| *finalizer != FINALIZER && !COLLECTORS.contains(finalizer))
}

/// Sets or removes it as the deletion policy asks.
pub async fn follow_policy(queue: &Queue, context: &Context) -> Result<(), Error> {
    match (queue.spec.deletion_policy, is_set(queue)) {
        (DeletionPolicy::Retain, true) => remove(queue, context).await,
        (DeletionPolicy::DeleteIfEmpty | DeletionPolicy::Delete, false) => {
            let mut finalizers = queue.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            write(queue, finalizers, context).await
        }
        (DeletionPolicy::Retain, false) | (DeletionPolicy::DeleteIfEmpty | DeletionPolicy::Delete, true) => {
            Ok(())
        }
    }
}

/// Removes it, which lets the deletion end.
pub async fn remove(queue: &Queue, context: &Context) -> Result<(), Error> {
    if !is_set(queue) {
        return Ok(());
    }
    let finalizers = queue.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    write(queue, finalizers, context).await
}

/// Guarded by the resource version: another's finalizer is never lost.
async fn write(queue: &Queue, finalizers: Vec<String>, context: &Context) -> Result<(), Error> {
    let namespace = queue.namespace().unwrap_or_default();
    let queues: Api<Tolerant<Queue>> = Api::namespaced(context.client.clone(), &namespace);
    let metadata = json!({"finalizers": finalizers, "resourceVersion": queue.resource_version()});
    let params = PatchParams::apply(FIELD_MANAGER);
    match queues.patch(&queue.name_any(), &params, &Patch::Merge(json!({"metadata": metadata}))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizers_of_the_garbage_collector_are_nobody_s_to_see_to() {
        let queue = |finalizers: &[&str]| {
            let mut queue: Queue = serde_json::from_value(json!({"metadata": {}, "spec": {}})).unwrap();
            queue.metadata.finalizers = Some(finalizers.iter().map(|&name| name.to_owned()).collect());
            queue
        };
        assert_eq!(of_another(&queue(&[FINALIZER, "foregroundDeletion", "orphan"])), None);
        assert_eq!(of_another(&queue(&["foregroundDeletion", "example.com/x"])), Some("example.com/x"));
    }
}
