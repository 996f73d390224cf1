//! The demo's story: orders arrive while no pod runs, pods appear, one is killed, all orders become invoices, the pods go.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use warren_tests::progress::step_noting;

use super::stage::{NAMESPACE, QUEUE, Stage};
use super::summary::Facts;
use super::watch::Moment;
use crate::progress::Terminal;

/// How often the view is renewed.
const TICK: Duration = Duration::from_secs(1);
/// A story that takes longer has gone wrong, but for [`PER_ORDER`].
const PATIENCE: Duration = Duration::from_secs(600);
/// The Worker's six pods do more than twice as much.
const PER_ORDER: Duration = Duration::from_millis(20);
/// Selects the Worker's pods.
const PODS: &str = "warren.dev/worker=invoices";

/// Tells the story and gives what was counted.
pub(crate) async fn tell(stage: &Stage<'_>, orders: u64, progress: &Terminal) -> Result<Facts> {
    let bodies = stage.orders(orders).await?;
    let first_publish = unix_milliseconds();
    let title = format!("Publishing {orders} orders to a queue without a pod");
    let published = step_noting(progress, &title, async |_| {
        Ok((stage.client.publish_all(QUEUE, bodies).await?, "all confirmed by the broker".to_owned()))
    })
    .await?;

    let mut view = View::new(stage, progress, published);
    let killed = view.kill_a_pod_at(published / 3).await?;
    view.until_done().await.with_context(|| format!("after {killed} was killed"))?;
    facts(stage, published, first_publish, view.peak).await
}

async fn facts(stage: &Stage<'_>, published: u64, first_publish: u64, peak: u64) -> Result<Facts> {
    let ledger = stage.ledger().await?;
    let dead_lettered = stage.client.ready(&format!("{QUEUE}.dlq")).await?.unwrap_or_default();
    let redelivered = r#"sum(max_over_time(warren_sidecar_redeliveries_total{namespace="shop"}[1h]))"#;
    let redelivered = stage.prometheus.value(redelivered).await?.unwrap_or_default();
    let first_handled = ledger.first_handled_unix_ms.context("no order was handled")?;
    Ok(Facts {
        published,
        invoices: ledger.invoices,
        dead_lettered: dead_lettered.into(),
        duplicates: ledger.duplicates,
        redelivered: redelivered as u64,
        peak_replicas: peak,
        final_replicas: pods(stage).await?.len() as u64,
        first_handled: Duration::from_millis(first_handled.saturating_sub(first_publish)),
    })
}

/// Looks once a second, and shows what it saw.
struct View<'a> {
    stage: &'a Stage<'a>,
    progress: &'a Terminal,
    started: Instant,
    most: u64,
    peak: u64,
    last: Option<Moment>,
}

impl<'a> View<'a> {
    fn new(stage: &'a Stage<'a>, progress: &'a Terminal, most: u64) -> Self {
        Self { stage, progress, started: Instant::now(), most, peak: 0, last: None }
    }

    async fn look(&mut self) -> Result<Moment> {
        tokio::time::sleep(TICK).await;
        let patience = PATIENCE.as_secs_f64() + PER_ORDER.as_secs_f64() * self.most as f64;
        ensure!(
            self.started.elapsed().as_secs_f64() < patience,
            "the story should be over by now:\n{}",
            self.stage.cluster.diagnostics(NAMESPACE).await
        );
        let moment = Moment::now(&self.stage.prometheus).await?;
        let ready = moment.ready as u64;
        self.peak = self.peak.max(ready);
        if self.last != Some(moment) {
            self.progress.show(&moment.line(self.started.elapsed().as_secs(), self.most));
            self.last = Some(moment);
        }
        Ok(moment)
    }

    /// Waits until so many orders are invoiced, then kills a pod that works, without any grace.
    async fn kill_a_pod_at(&mut self, invoices: u64) -> Result<String> {
        loop {
            self.look().await?;
            if self.stage.ledger().await?.invoices < invoices {
                continue;
            }
            let Some(pod) = pods(self.stage).await?.into_iter().next() else { continue };
            self.stage.cluster.kill(NAMESPACE, &[&pod]).await?;
            self.progress.show(&format!("        killed {pod} in the middle of its work"));
            return Ok(pod);
        }
    }

    /// Waits until every order is invoiced or dead-lettered and no pod is left.
    async fn until_done(&mut self) -> Result<()> {
        loop {
            self.look().await?;
            let ledger = self.stage.ledger().await?;
            let dead = self.stage.client.ready(&format!("{QUEUE}.dlq")).await?.unwrap_or_default();
            if ledger.invoices + u64::from(dead) >= self.most && pods(self.stage).await?.is_empty() {
                self.look().await?;
                return Ok(());
            }
        }
    }
}

/// The Worker's running pods, as `pod/NAME`.
async fn pods(stage: &Stage<'_>) -> Result<Vec<String>> {
    let running = "--field-selector=status.phase=Running";
    let args = ["get", "pods", "-n", NAMESPACE, "-l", PODS, running, "-o", "name"];
    Ok(stage.cluster.kubectl(&args).await?.lines().map(str::to_owned).collect())
}

fn unix_milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
