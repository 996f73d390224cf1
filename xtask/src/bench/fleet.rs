//! A fleet of classic Queues without a ladder, and Workers without pods: what a Queue costs as they become more, and the
//! operator at rest.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use warren_api::QueueSpec;
use warren_api::queue::{QueueType, Retry};

use super::ground::Ground;
use super::{figure, say};
use warren_tests::operator::READY;

/// How long the operator is left alone before it counts as at rest.
const SETTLE: Duration = Duration::from_secs(30);
/// How long it is watched at rest.
const REST: Duration = Duration::from_secs(60);

const RSS: &str = "process_resident_memory_bytes";

/// Grows to `queues` by tens, then adds `workers`.
pub(super) async fn fleet(queues: usize, workers: usize) -> Result<Value> {
    let ground = Ground::new("bench-operator").await?;
    let measured = measure(&ground, queues, workers).await;
    ground.clear().await?;
    measured
}

async fn measure(ground: &Ground, queues: usize, workers: usize) -> Result<Value> {
    let spec = QueueSpec {
        queue_type: QueueType::Classic,
        retry: Retry { delays_seconds: Vec::new(), max_attempts: 1 },
        ..QueueSpec::default()
    };
    let operator = ground.operator().await?;
    operator.until("process_threads", 1.0).await?;
    let rss_kib = async || anyhow::Ok((operator.metric(RSS).await? / 1024.0).round());
    let mut curve = Vec::new();
    let mut made = 0;
    for total in [queues / 100, queues / 10, queues] {
        // Of few Queues a hundredth is none.
        if total == made {
            continue;
        }
        let (cpu, begun, more) = (operator.cpu_seconds()?, Instant::now(), (total - made) as f64);
        ground.create_queues(made..total, &spec).await?;
        operator.until(READY, total as f64).await?;
        let step = json!({
            "queues": total,
            "ms_per_queue": figure(begun.elapsed().as_secs_f64() * 1e3 / more),
            "cpu_ms_per_queue": figure((operator.cpu_seconds()? - cpu) * 1e3 / more),
            "rss_kib": rss_kib().await?,
        });
        say(&step.to_string());
        curve.push(step);
        made = total;
    }
    let workers = workers.min(queues);
    ground.create_workers(0..workers).await?;
    ground.until_deployments(workers).await?;
    say(&format!("{workers} Workers have their Deployments"));
    tokio::time::sleep(SETTLE).await;
    let cpu = operator.cpu_seconds()?;
    tokio::time::sleep(REST).await;
    let percent = (operator.cpu_seconds()? - cpu) / REST.as_secs_f64() * 100.0;
    let result = json!({
        "queues": queues,
        "workers": workers,
        "rss_kib": rss_kib().await?,
        "cpu_percent": figure(percent),
        "connections": ground.connections().await?,
        "drift_check_s": operator.metric("warren_operator_drift_check_interval_seconds").await?,
        "curve": curve,
    });
    operator.stop().await?;
    Ok(result)
}
