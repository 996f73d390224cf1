//! Names of metrics that another program reads: the sidecar's, for the operator's scaler and the plugin, and the operator's, for
//! the plugin.

/// Gauge: messages delivered to the sidecar and not settled.
pub const UNSETTLED: &str = "warren_sidecar_unsettled";
/// Gauge: messages at the handler, late ones included.
pub const IN_FLIGHT: &str = "warren_sidecar_in_flight";
/// Gauge: of those, the ones that the application has answered with `later`.
pub const LATE: &str = "warren_sidecar_late";
/// Counter: deliveries received.
pub const DELIVERIES: &str = "warren_sidecar_deliveries_total";
/// Counter: settled deliveries, by `outcome`.
pub const OUTCOMES: &str = "warren_sidecar_outcomes_total";
/// Counter: copies for the retry ladder or the dead-letter queue that the broker did not take, by `target`; each is tried again at least
/// once a minute.
pub const COPIES_FAILED: &str = "warren_sidecar_copies_failed_total";
/// Histogram: seconds of a handler call that was work, or from the call to the end of a late delivery.
pub const HANDLER_SECONDS: &str = "warren_sidecar_handler_duration_seconds";
/// Counter: of what [`HANDLER_SECONDS`] counts, what failed so that its messages are to be tried again, by `attempt` (`first`,
/// `further`).
pub const HANDLER_FAILURES: &str = "warren_sidecar_handler_failures_total";
/// Gauge: 1 while the consuming connection is up.
pub const CONNECTED: &str = "warren_sidecar_connected";
/// Gauge: 1 while the handler takes calls, 0 while consuming is held back because it does not.
pub const HANDLER_UP: &str = "warren_sidecar_handler_up";
/// Counter: times that the application asked for more time for a delivery that it ends later.
pub const EXTENSIONS: &str = "warren_sidecar_late_extensions_total";
/// Counter: deliveries without `delivery_mode=2`.
pub const TRANSIENT: &str = "warren_sidecar_transient_messages_total";
/// Gauge: the HTTP status (401, 403, 404, 405 or 431) with which the handler answers while consuming is held back because of
/// it, 0 otherwise: not the messages are at fault then, but the handler's address or rights.
pub const HANDLER_MISCONFIGURED: &str = "warren_sidecar_handler_misconfigured_status";
/// Gauge: 1 while the broker takes no publishes, by a memory or disk alarm.
pub const PUBLISH_BLOCKED: &str = "warren_sidecar_publish_blocked";
/// Gauge: 1 while the breaker is open: most handler calls fail, and consuming is held for that.
pub const BREAKER_OPEN: &str = "warren_sidecar_breaker_open";

/// Gauge: 1 on the operator's replica that leads.
pub const LEADER: &str = "warren_operator_leader";
/// Gauge: messages of a Queue that are ready for delivery.
pub const READY_MESSAGES: &str = "warren_operator_queue_ready_messages";
/// Gauge: messages in the retry queues of a Queue.
pub const RETRYING_MESSAGES: &str = "warren_operator_queue_retrying_messages";
/// Gauge: messages in the dead-letter queue of a Queue.
pub const DEAD_MESSAGES: &str = "warren_operator_queue_dead_messages";
