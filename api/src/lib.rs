//! Everything two of Warren's programs must agree on: the custom resources, the sidecar's configuration, the names of
//! derived objects, AMQP and HTTP headers, and metrics.
//!
//! This crate holds values only: no client, no clock, no I/O.

pub mod conditions;
pub mod crd;
pub mod headers;
pub mod listen;
pub mod metrics;
pub mod names;
pub mod queue;
pub mod sidecar;
pub mod template;
pub mod worker;

pub use queue::{Queue, QueueSpec, QueueStatus, QueueType};
pub use sidecar::SidecarConfig;
pub use worker::{Worker, WorkerSpec, WorkerStatus};

/// The API group of Warren's resources.
pub const GROUP: &str = "warren.dev";
