//! The sidecar against real brokers and real applications: each row of the response table, the copies, the modes, the
//! publish API, and the broker's moods. Rows run on every release of RabbitMQ that is supported.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

/// Runs a test on each release, in a vhost of its own.
macro_rules! on_each_release {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use warren_tests::broker::Version;

            #[tokio::test]
            async fn on_3_10() -> anyhow::Result<()> {
                super::$name(crate::harness::Place::new(Version::V3_10, stringify!($name)).await?).await
            }

            #[tokio::test]
            async fn on_4_0() -> anyhow::Result<()> {
                super::$name(crate::harness::Place::new(Version::V4_0, stringify!($name)).await?).await
            }
        })*
    };
}

/// Runs a test on each release, with a broker of its own that it may harm.
macro_rules! on_a_broker_of_each_release {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use warren_tests::broker::{Options, Version};

            #[tokio::test]
            async fn on_3_10() -> anyhow::Result<()> {
                super::$name(Options::new("mood").version(Version::V3_10)).await
            }

            #[tokio::test]
            async fn on_4_0() -> anyhow::Result<()> {
                super::$name(Options::new("mood").version(Version::V4_0)).await
            }
        })*
    };
}

mod copies;
mod harness;
mod headers;
mod later;
mod modes;
mod moods;
mod odd;
mod process;
mod publish;
mod responses;
