//! Condition types, as `metav1.Condition` sees them.

/// Whether a Queue takes and gives messages, and whether a Worker's pods can work: what only warns leaves it True.
pub const READY: &str = "Ready";

/// Condition types of a Queue.
pub mod queue {
    /// The broker answered.
    pub const BROKER_REACHABLE: &str = "BrokerReachable";
    /// Everything the spec asks for is on the broker.
    pub const DECLARED: &str = "Declared";
    /// The producers' messages survive a broker restart.
    pub const PERSISTENT_MESSAGES: &str = "PersistentMessages";
    /// What keeps a deletion from finishing.
    pub const DELETION_BLOCKED: &str = "DeletionBlocked";
    /// The dead-letter queue takes messages; said where it has a limit.
    pub const DEAD_LETTER_AVAILABLE: &str = "DeadLetterAvailable";
    /// The broker keeps to the queue's own consumer timeout; said where the spec asks for one.
    pub const CONSUMER_TIMEOUT_EFFECTIVE: &str = "ConsumerTimeoutEffective";
}

/// Condition types of a Worker.
pub mod worker {
    /// The Worker's Queue is Ready.
    pub const QUEUE_READY: &str = "QueueReady";
    /// The wanted pods are there, with their sidecars connected.
    pub const AVAILABLE: &str = "Available";
    /// The scaler decides on fresh inputs; its reason is that of the last decision.
    pub const SCALING_ACTIVE: &str = "ScalingActive";
    /// The template can become pods.
    pub const TEMPLATE_VALID: &str = "TemplateValid";
    /// The handler answers as a handler should.
    pub const HANDLER_HEALTHY: &str = "HandlerHealthy";
}
