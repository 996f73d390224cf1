//! Queues kept on real brokers by the operator's own plan, lanes and status, without Kubernetes. Rows of the design's
//! behaviour and faults, on every release of RabbitMQ that is supported.

/// Runs a test on each release, in a vhost of its own.
macro_rules! on_each_release {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use warren_tests::broker::{Version, Vhost};

            #[tokio::test]
            async fn on_3_10() -> anyhow::Result<()> {
                super::$name(Vhost::on(Version::V3_10, stringify!($name)).await?).await
            }

            #[tokio::test]
            async fn on_4_0() -> anyhow::Result<()> {
                super::$name(Vhost::on(Version::V4_0, stringify!($name)).await?).await
            }
        })*
    };
}

mod adoption;
mod changing;
mod deletion;
mod differences;
mod drift;
mod faults;
mod fields;
mod kept;
mod look;
mod rights;
mod tls;
