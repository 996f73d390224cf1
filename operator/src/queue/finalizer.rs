//! The finalizer: there only where a deletion has something to do on the broker.

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use warren_api::Queue;
use warren_api::queue::DeletionPolicy;

use crate::context::FIELD_MANAGER;
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

/// Sets or removes it as the deletion policy asks; gives whether the Queue is there. One that is gone before it has its finalizer
/// would leave behind what is declared for it.
pub async fn follow_policy(queue: &Queue, client: &Client) -> Result<bool, Error> {
    match (queue.spec.deletion_policy, is_set(queue)) {
        (DeletionPolicy::Retain, true) => remove(queue, client).await,
        (DeletionPolicy::DeleteIfEmpty | DeletionPolicy::Delete, false) => {
            let mut finalizers = queue.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            write(queue, finalizers, client).await
        }
        (DeletionPolicy::Retain, false) | (DeletionPolicy::DeleteIfEmpty | DeletionPolicy::Delete, true) => {
            Ok(true)
        }
    }
}

/// Removes it, which lets the deletion end; gives whether the Queue was there.
pub async fn remove(queue: &Queue, client: &Client) -> Result<bool, Error> {
    if !is_set(queue) {
        return Ok(true);
    }
    let finalizers = queue.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    write(queue, finalizers, client).await
}

/// Guarded by the resource version: another's finalizer is never lost.
async fn write(queue: &Queue, finalizers: Vec<String>, client: &Client) -> Result<bool, Error> {
    let namespace = queue.namespace().unwrap_or_default();
    let queues: Api<Tolerant<Queue>> = Api::namespaced(client.clone(), &namespace);
    let metadata = json!({"finalizers": finalizers, "resourceVersion": queue.resource_version()});
    let params = PatchParams::apply(FIELD_MANAGER);
    match queues.patch(&queue.name_any(), &params, &Patch::Merge(json!({"metadata": metadata}))).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn a_queue_that_is_gone_before_it_has_its_finalizer_is_told_from_one_that_is_there() {
        for (code, there) in [(404, false), (200, true)] {
            let answer = move |_: http::Request<Body>| async move {
                let body =
                    json!({"code": code, "reason": "NotFound", "metadata": {}, "spec": {}}).to_string();
                let answer = http::Response::builder().status(code).body(Body::from(body.into_bytes()));
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            };
            let client = Client::new(tower::util::service_fn(answer), "shop");
            let object = json!({"metadata": {"name": "orders"}, "spec": {"deletionPolicy": "Delete"}});
            let queue: Queue = serde_json::from_value(object).unwrap();
            assert_eq!(follow_policy(&queue, &client).await.unwrap(), there, "{code}");
        }
    }

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
