//! Between steps 3 and 4: what an order may bind is in the status before the order is placed.

use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use warren_api::Queue;

use super::plan;
use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::tolerant::Tolerant;

/// Records it; gives false while the Queue is not known as it is now.
pub(super) async fn record(queue: &Queue, address: &str, context: &Context) -> Result<bool, Error> {
    let Some(patch) = plan::record(queue, address) else { return Ok(true) };
    let namespace = queue.namespace().unwrap_or_default();
    let queues: Api<Tolerant<Queue>> = Api::namespaced(context.client.clone(), &namespace);
    let params = PatchParams::apply(FIELD_MANAGER);
    match queues.patch_status(&queue.name_any(), &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        // Changed or deleted since it was read.
        Err(kube::Error::Api(answer)) if answer.code == 409 || answer.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}
