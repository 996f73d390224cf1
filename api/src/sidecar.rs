//! The sidecar's configuration: what the operator writes into a Worker's ConfigMap and the sidecar reads, live.
//!
//! The operator understands the sidecars of two minor versions back and a sidecar the operators after it, so a field is
//! only ever added, with a default. What must not change under running pods (the handler's port, the drain time-out, the log
//! level) is in the pod itself, as `WARREN_*` environment variables.

use serde::{Deserialize, Serialize};

use crate::queue::QueueType;
use crate::worker::PrefetchMode;

/// The live configuration of a sidecar, as JSON.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SidecarConfig {
    /// Namespace of the Worker: a metric label.
    pub namespace: String,
    /// Name of the Worker: a metric label.
    pub worker: String,
    /// The Secret that pods with this configuration mount; none: not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The queue to consume.
    pub queue: QueueConfig,
    /// Where messages go.
    pub handler: HandlerConfig,
    /// How they are consumed.
    pub consumer: ConsumerConfig,
}

/// The queue to consume and what surrounds it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QueueConfig {
    /// Name on the broker.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub queue_type: QueueType,
    /// Virtual host from the Queue's spec; none: the Secret's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<String>,
    /// Delays of the retry queues, in seconds, rising; empty: none.
    #[serde(default)]
    pub retry_delays_seconds: Vec<u32>,
    /// Attempts in all before a message is dead-lettered.
    pub max_attempts: u32,
    /// Seconds that the broker lets a delivery be unacknowledged; none: the broker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_timeout_seconds: Option<u32>,
}

/// Where messages go.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HandlerConfig {
    /// Path of the POST.
    pub path: String,
    /// Seconds after which a call counts as failed.
    pub timeout_seconds: u32,
    /// Whether the body of a 2xx goes to the message's `reply_to`.
    #[serde(default)]
    pub reply: bool,
    /// The largest body that is handed over, in bytes; larger messages are dead-lettered. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// Several messages in one POST; none: one message, one POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchConfig>,
}

/// Several messages in one POST.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BatchConfig {
    /// Messages in a POST at most.
    pub max_messages: u16,
    /// Milliseconds that the first message waits for others.
    pub max_wait_milliseconds: u32,
}

/// How messages are consumed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerConfig {
    /// Messages held unacknowledged at most.
    pub prefetch: u16,
    /// Handler calls at once.
    pub concurrency: u16,
    /// Whether consuming is held.
    #[serde(default)]
    pub paused: bool,
    /// Whether the window follows the load, with `prefetch` as its ceiling.
    #[serde(default)]
    pub prefetch_mode: PrefetchMode,
    /// Header name, or `routing-key`: messages with the same value go one at a time, in order. None: no order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<String>,
    /// The pod that alone may consume, where an order depends on that; empty: none yet. None: each may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_pod: Option<String>,
}
