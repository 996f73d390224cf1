//! Warren's sidecar: consumes a queue for the application beside it, over HTTP on localhost.
//!
//! | Module | What |
//! |---|---|
//! | [`core`] | the engine: pure, `step(event, now) -> effects` |
//! | [`runtime`] | the one loop that feeds the engine and performs its effects |
//! | [`handler`] | the application over HTTP: requests, answers, connections |
//! | [`amqp`] | the consuming and the publishing connection |
//! | [`message`], [`copy`] | a message, and the copies that replace it |
//! | [`server`] | the ports 9400 and 9401 |
//! | [`config`], [`cli`], [`app`] | what the sidecar is told, and how it is put together |

pub mod amqp;
pub mod app;
pub mod cli;
pub mod config;
pub mod copy;
pub mod core;
pub mod delivery_id;
pub mod handler;
pub mod health;
pub mod inbox;
mod locked;
pub mod logging;
pub mod message;
pub mod metrics;
pub mod otlp;
pub mod repeats;
pub mod runtime;
pub mod server;
