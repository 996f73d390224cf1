//! Warren's operator.
//!
//! Queues: `dereference -> validate -> plan -> declare -> status`. Workers: `dereference -> validate -> build -> apply ->
//! status`. The scaler: `signals -> decide -> act`. Reconciles never wait for a broker: each broker has a lane of its own
//! that declares and probes, and its observations bring the Queues concerned back to their reconcile.

// Tests build their values from literals.
#![cfg_attr(test, allow(clippy::needless_pass_by_value))]

pub mod app;
pub mod args;
pub mod brokers;
pub mod condition;
pub mod context;
mod controller;
pub mod error;
pub mod leader;
mod locked;
pub mod metrics;
pub mod problem;
pub mod queue;
pub mod rbac;
pub mod scaler;
mod scope;
pub mod secrets;
pub mod server;
pub mod tick;
pub mod tolerant;
pub mod watch;
pub mod worker;
