//! Step 1: what the Queue points to.

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use warren_api::Queue;

use crate::context::Context;
use crate::error::Error;
use crate::secrets::{SecretState, User};

/// Reads the Queue's Secret.
pub async fn secret(queue: &Queue, context: &Context) -> Result<SecretState, Error> {
    let namespace = queue.namespace().unwrap_or_default();
    let name = &queue.spec.broker.secret_ref.name;
    let user = User::Queue(ObjectRef::from_obj(queue), context.queue_changed.clone());
    Ok(context.secrets.get(&namespace, name, user).await?)
}
