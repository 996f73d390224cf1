//! Tests that run on every release of RabbitMQ that is supported.

use anyhow::Result;

use super::{Options, Version, Vhost};

/// What a test of each release is given, by the type that it takes.
pub trait OfRelease: Sized {
    /// One for the test of this name.
    fn of_release(version: Version, test: &str) -> impl Future<Output = Result<Self>>;
}

/// A vhost of its own on the shared broker.
impl OfRelease for Vhost {
    async fn of_release(version: Version, test: &str) -> Result<Self> {
        Self::on(version, test).await
    }
}

/// For a broker of its own, which it may harm.
impl OfRelease for Options {
    async fn of_release(version: Version, test: &str) -> Result<Self> {
        Ok(Self::new(test).version(version))
    }
}

/// Runs a test on a release; for [`crate::on_each_release`].
pub async fn run<T: OfRelease>(
    version: Version,
    name: &str,
    test: impl AsyncFnOnce(T) -> Result<()>,
) -> Result<()> {
    test(T::of_release(version, name).await?).await
}

/// Runs each of these functions as a test on each release, with what its argument's type stands for:
/// [`OfRelease`](crate::broker::each_release::OfRelease).
#[macro_export]
macro_rules! on_each_release {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use $crate::broker::{Version, each_release::run};

            #[tokio::test]
            async fn on_3_10() -> anyhow::Result<()> {
                run(Version::V3_10, stringify!($name), super::$name).await
            }

            #[tokio::test]
            async fn on_4_0() -> anyhow::Result<()> {
                run(Version::V4_0, stringify!($name), super::$name).await
            }
        })*
    };
}
