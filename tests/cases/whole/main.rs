//! Warren as users meet it: installed by its chart on a real Kubernetes, with real pods and a real RabbitMQ.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bad_input;
mod consuming;
mod experiments;
mod life_cycle;
mod modes;
mod plugin;
mod scaling;
mod space;
