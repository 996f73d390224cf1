//! The test cluster and the test brokers: a real Kubernetes and a real RabbitMQ without Docker, and what tests ask them.
//!
//! | What | How |
//! |---|---|
//! | A cluster | [`Cluster::for_tests`] brings up our own, or takes the one that `WARREN_KUBECONFIG` names |
//! | A namespace in it | [`namespace::Namespace::new`], then Warren's resources and waits for their conditions |
//! | Objects in it | [`Cluster::apply`], [`Cluster::get`], [`Cluster::kubectl`], [`Cluster::helm`] |
//! | Waiting | [`Cluster::eventually`] shows pods, events and logs when it fails; [`wait::eventually`] needs no cluster |
//! | Images | [`images::warren`] for the operator and the sidecar, [`images::program`] for any static program |
//! | A broker to share | [`broker::Vhost::new`]: one broker a process, a vhost a test |
//! | A test on each release | [`on_each_release`], with a vhost or a broker of its own |
//! | A broker to harm | [`broker::Broker::start`], then `kill9`, `sigterm`, `start_again`, `wipe`, `freeze`, `stop_app`, `set_alarm` |
//! | Where pods reach it | [`broker::Broker::uri_at`] with [`Cluster::host_address`] |
//! | An operator beside the cluster | [`operator::Operator::start`], watched through its metrics |
//! | Metrics | [`prometheus::Prometheus::start`], then `query` or `value` |
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use warren_tests::broker::{Broker, Options, Version};
//! use warren_tests::progress::Lines;
//! use warren_tests::Cluster;
//!
//! let cluster = Cluster::for_tests(&Lines).await?;
//! let broker = Broker::start(Options::new("restarts").version(Version::V4_0)).await?;
//! let uri = broker.uri_at(cluster.host_address(), "/");
//! cluster.kubectl(&["create", "secret", "generic", "rabbitmq", "--from-literal", &format!("uri={uri}")]).await?;
//! broker.kill9().await?;
//! broker.start_again().await?;
//! cluster
//!     .eventually("default", Duration::from_secs(30), "the queue is ready", async || {
//!         let ready = cluster.kubectl(&["wait", "--for=condition=Ready", "wq/orders", "--timeout=1s"]).await?;
//!         anyhow::ensure!(ready.contains("met"), "{ready}");
//!         Ok(())
//!     })
//!     .await
//! # }
//! ```
//!
//! All of it needs root, Debian's packages (see [`packages`]) and Go. What is started is recorded, so that
//! `cargo xtask down` ends it, and nothing else, whatever has crashed; brokers also end with the process that started
//! them. Files are kept in `target/cluster`, or where `WARREN_STATE_DIR` says; logs in its folder `logs`.

pub mod amqp;
pub mod app;
pub mod authority;
pub mod broker;
pub(crate) mod cgroups;
pub mod cluster;
pub mod command;
pub mod desk;
pub mod golang;
pub mod http;
pub mod images;
pub mod install;
mod kubectl;
pub mod leftovers;
mod lifeline;
pub mod namespace;
pub mod operator;
pub mod packages;
pub mod ports;
pub mod process;
pub mod progress;
pub mod prometheus;
pub mod site;
pub mod wait;
pub mod way;

pub use cluster::Cluster;
