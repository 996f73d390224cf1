//! Names that are derived: broker queues from a queue's name, Kubernetes objects and labels from a Worker's.

use sha2::{Digest, Sha256};

/// Label with the Worker's name, on its Deployment, ConfigMap and pods.
pub const WORKER_LABEL: &str = "warren.dev/worker";
/// The value of `app.kubernetes.io/managed-by` on what the operator makes.
pub const MANAGED_BY: &str = "warren";
/// The label that says so.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The sidecar's container name.
pub const SIDECAR_CONTAINER: &str = "warren-sidecar";
/// The sidecar's port for metrics, probes and drain, on the pod's address.
pub const SIDECAR_PORT: u16 = 9400;
/// The sidecar's port for the application, on localhost.
pub const PUBLISH_PORT: u16 = 9401;
/// The ConfigMap key, and file name, of the sidecar's configuration.
pub const CONFIG_KEY: &str = "config.json";
/// Folder in the sidecar where the ConfigMap is mounted.
pub const CONFIG_DIR: &str = "/etc/warren/config";
/// Folder in the sidecar where the broker Secret is mounted.
pub const BROKER_DIR: &str = "/etc/warren/broker";

/// The dead-letter queue of a queue.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dlq")
}

/// The retry queue of a queue whose messages wait `delay_seconds`.
pub fn retry_queue(queue: &str, delay_seconds: u32) -> String {
    format!("{queue}.retry.{delay_seconds}s")
}

/// The ConfigMap that carries a Worker's [`crate::SidecarConfig`].
pub fn config_map(worker: &str) -> String {
    format!("{worker}-sidecar")
}

/// The token that a drain request must carry: it guards against accidents, not against who can read pods.
pub fn drain_token(worker_uid: &str) -> String {
    let digest = Sha256::digest(format!("warren-drain:{worker_uid}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_token_depends_on_the_uid_alone() {
        assert_eq!(drain_token("a"), drain_token("a"));
        assert_ne!(drain_token("a"), drain_token("b"));
        assert_eq!(drain_token("a").len(), 32);
    }
}
