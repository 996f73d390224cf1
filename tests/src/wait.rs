//! Waiting for conditions instead of for time to pass.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Waits until `condition` gives a value. What it says in its errors is what it still waits for; the last one is shown
/// when `timeout` passes.
///
/// ```no_run
/// # async fn example(depth: impl AsyncFn() -> anyhow::Result<u64>) -> anyhow::Result<()> {
/// use std::time::Duration;
/// use warren_tests::wait::eventually;
/// eventually(Duration::from_secs(10), "the queue is empty", async || {
///     let left = depth().await?;
///     anyhow::ensure!(left == 0, "{left} messages are left");
///     Ok(())
/// })
/// .await
/// # }
/// ```
pub async fn eventually<T>(
    timeout: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let attempt = tokio::time::timeout_at(deadline.into(), condition()).await;
        let reason = match attempt {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) => reason,
            Err(_) => anyhow::anyhow!("no answer before the time was up"),
        };
        if Instant::now() + POLL >= deadline {
            return Err(reason)
                .with_context(|| format!("after {} s not yet so: {what}", timeout.as_secs_f32()));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_gives_its_value() {
        let mut tries = 0;
        let value = eventually(Duration::from_secs(5), "third time", async || {
            tries += 1;
            anyhow::ensure!(tries == 3, "only {tries}");
            Ok(tries)
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_stays_false_says_why() {
        let never = eventually(Duration::from_millis(250), "the moon is blue", async || {
            Err::<(), _>(anyhow::anyhow!("it is grey"))
        });
        let error = format!("{:#}", never.await.unwrap_err());
        assert!(error.contains("the moon is blue") && error.contains("it is grey"), "{error}");
    }
}
