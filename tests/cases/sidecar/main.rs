//! The sidecar against real brokers and real applications: each row of the response table, the copies, the modes, the
//! publish API, and the broker's moods. Rows run on every release of RabbitMQ that is supported.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod copies;
mod harness;
mod headers;
mod later;
mod modes;
mod moods;
mod odd;
mod order;
mod process;
mod publish;
mod responses;
