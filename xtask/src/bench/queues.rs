//! Queues with the default spec, from the operator's start to all Ready, against a raw client that declares the same broker
//! queues one after the other on one connection; a restart with nothing to change; and the deletion of all.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use warren_api::QueueSpec;
use warren_broker::{declare, topology};
use warren_tests::amqp::Client;

use super::ground::{Ground, name};
use super::{figure, say};
use warren_tests::operator::{READY, WRITES};

/// How long a restarted operator is watched for writes.
const QUIET: Duration = Duration::from_secs(10);

/// Declares `count` Queues.
pub(super) async fn queues(count: usize) -> Result<Value> {
    let ground = Ground::new("bench-queues").await?;
    let measured = measure(&ground, count).await;
    ground.clear().await?;
    measured
}

/// The same broker queues by a raw client: seconds to declare them, and to delete them.
async fn raw(uri: &str, count: usize) -> Result<(f64, f64)> {
    let client = Client::connect(uri).await?;
    let channel = client.channel().await?;
    let plans: Vec<_> =
        (0..count).map(|number| topology::plan(&name(number), &QueueSpec::default())).collect();
    let begun = Instant::now();
    for plan in &plans {
        declare::declare(&channel, plan).await?;
    }
    let declared = begun.elapsed();
    for queue in plans.iter().flat_map(|plan| &plan.queues) {
        declare::delete(&channel, &queue.name, false).await?;
    }
    Ok((declared.as_secs_f64(), (begun.elapsed() - declared).as_secs_f64()))
}

async fn measure(ground: &Ground, count: usize) -> Result<Value> {
    let wanted = count as f64;
    // While no operator runs.
    ground.create_queues(0..count, &QueueSpec::default()).await?;
    ground.broker.vhost("raw").await?;
    let (raw_declare, raw_delete) = raw(&ground.broker.uri("raw"), count).await?;
    say(&format!("raw client: {count} Queues in {raw_declare:.1} s, deleted in {raw_delete:.1} s"));
    ground.broker.delete_vhost("raw").await?;

    let operator = ground.operator().await?;
    let ready = operator.until(READY, wanted).await?;
    let cold = operator.metric(WRITES).await?;
    say(&format!("operator: all Ready after {ready:.1} s, {cold} writes"));
    ensure!(cold >= wanted, "only {cold} writes for {count} Queues");
    operator.stop().await?;

    let operator = ground.operator().await?;
    let restart = operator.until(READY, wanted).await?;
    tokio::time::sleep(QUIET).await;
    let writes = operator.metric(WRITES).await?;
    say(&format!("restarted: all Ready after {restart:.1} s, {writes} writes"));

    ground.delete_with_queues(count).await?;
    let deletion = ground.delete_queues().await?;
    say(&format!("all deleted, with their queues, after {deletion:.1} s"));
    operator.stop().await?;
    Ok(json!({
        "queues": count,
        "broker_queues": count * topology::plan("queue", &QueueSpec::default()).queues.len(),
        "raw_declare_s": figure(raw_declare),
        "raw_delete_s": figure(raw_delete),
        "ready_s": figure(ready),
        "restart_s": figure(restart),
        "restart_writes": writes,
        "delete_s": figure(deletion),
    }))
}
