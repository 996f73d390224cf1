//! Queues with the default spec, from the operator's start to all Ready, against a raw client that declares the same broker
//! queues one after the other on one connection; and a restart with nothing to change.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use warren_api::QueueSpec;
use warren_broker::{declare, topology};
use warren_tests::Cluster;
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::progress::Lines;

use super::operator::Operator;
use super::{figure, say};

const NAMESPACE: &str = "bench-queues";
const READY: &str = "warren_operator_queues{ready=\"true\"}";
const WRITES: &str = "warren_operator_api_writes_total";
/// How long a restarted operator is watched for writes.
const QUIET: Duration = Duration::from_secs(10);

/// Declares `count` Queues.
pub(super) async fn queues(count: usize) -> Result<Value> {
    let cluster = Cluster::for_tests(&Lines).await?;
    let others = ["get", "deployments", "-A", "-l", "app.kubernetes.io/name=warren", "-o", "name"];
    let others = cluster.kubectl(&others).await?;
    ensure!(
        others.trim().is_empty(),
        "another operator runs in this cluster ({}): uninstall it",
        others.trim()
    );
    let broker = Broker::start(Options::new("bench-queues")).await?;
    let binary = Operator::build().await?;
    broker.vhost("raw").await?;
    broker.vhost("warren").await?;

    let raw_declare = raw(&broker.uri("raw"), count).await?;
    say(&format!("raw client: {count} Queues in {raw_declare:.1} s"));
    broker.delete_vhost("raw").await?;

    let made = create(&cluster, &broker.uri("warren"), count).await;
    let measured = match made {
        Ok(()) => measure(&cluster, &binary, count).await,
        Err(error) => Err(error),
    };
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
    let (ready, restart, writes) = measured?;
    let default = topology::plan("queue", &QueueSpec::default());
    Ok(json!({
        "queues": count,
        "broker_queues": count * default.queues.len(),
        "raw_declare_s": figure(raw_declare),
        "ready_s": figure(ready),
        "restart_s": figure(restart),
        "restart_writes": writes,
    }))
}

/// The same broker queues by a raw client.
async fn raw(uri: &str, count: usize) -> Result<f64> {
    let client = Client::connect(uri).await?;
    let channel = client.channel().await?;
    let begun = Instant::now();
    for number in 0..count {
        declare::declare(&channel, &topology::plan(&name(number), &QueueSpec::default())).await?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn name(number: usize) -> String {
    format!("queue-{number}")
}

/// Makes the resources while no operator runs.
async fn create(cluster: &Cluster, uri: &str, count: usize) -> Result<()> {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rabbitmq", "namespace": NAMESPACE},
               "stringData": {"uri": uri}}),
    ];
    items.extend((0..count).map(|number| {
        json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue",
               "metadata": {"name": name(number), "namespace": NAMESPACE}, "spec": {}})
    }));
    cluster.apply(include_str!("../../../crds/queues.warren.dev.yaml")).await?;
    cluster.apply(include_str!("../../../crds/workers.warren.dev.yaml")).await?;
    let established =
        ["wait", "--for=condition=Established", "crd/queues.warren.dev", "crd/workers.warren.dev"];
    cluster.kubectl(&established).await?;
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await?;
    Ok(())
}

async fn measure(cluster: &Cluster, binary: &std::path::Path, count: usize) -> Result<(f64, f64, f64)> {
    let wanted = count as f64;
    let operator = Operator::start(binary, cluster, NAMESPACE).await?;
    let ready = operator.until(READY, wanted).await?;
    say(&format!("operator: all Ready after {ready:.1} s, {} writes", operator.metric(WRITES).await?));
    let cold = operator.metric(WRITES).await?;
    ensure!(cold >= wanted, "only {cold} writes for {count} Queues");
    operator.stop().await?;

    let operator = Operator::start(binary, cluster, NAMESPACE).await?;
    let restart = operator.until(READY, wanted).await?;
    tokio::time::sleep(QUIET).await;
    let writes = operator.metric(WRITES).await?;
    say(&format!("restarted: all Ready after {restart:.1} s, {writes} writes"));
    operator.stop().await?;
    Ok((ready, restart, writes))
}
