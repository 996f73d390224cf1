//! The kubectl plugin against a real cluster.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;
use warren_cli::{Answer, Cli};
use warren_tests::desk::{Call, Order};

use crate::space::Space;

/// `kubectl warren ARGS` in the namespace.
pub(crate) async fn warren(space: &Space, args: &[&str]) -> Result<Answer> {
    with(space, space.cluster.kubeconfig(), args).await
}

/// The same with another kubeconfig.
async fn with(space: &Space, kubeconfig: &Path, args: &[&str]) -> Result<Answer> {
    warren_broker::install_crypto_provider();
    let kubeconfig = kubeconfig.to_string_lossy();
    let target = ["kubectl-warren", "--namespace", &space.name, "--kubeconfig", &kubeconfig];
    Cli::try_parse_from([&target, args].concat())?.run().await
}

/// The columns of the row that begins with a name.
fn row<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    row.unwrap_or_default().split_whitespace().collect()
}

#[tokio::test]
async fn top_explain_and_doctor_tell_what_a_cluster_does() -> Result<()> {
    let poison = |call: &Call| match call.body.starts_with("poison") {
        true => Order::answer(422),
        false => Order::work(Duration::from_millis(500)),
    };
    let space = Space::new("plugin", poison).await?;
    space.queue("orders", json!({"retry": {"delaysSeconds": []}})).await?;
    let scaling = json!({"maxReplicas": 2, "targetWaitSeconds": 1, "scaleInStabilizationSeconds": 0});
    space.worker("invoices", json!({"scaling": scaling})).await?;
    space.ready("wk", "invoices").await?;
    let nothing = warren(&space, &["top"]).await?.text;
    assert_eq!(row(&nothing, "invoices")[2..4], ["0", "0"], "{nothing}");

    let client = space.client().await?;
    client.publish("orders", b"poison").await?;
    client.publish_all("orders", (0..2_000).map(|n| format!("message {n}").into_bytes())).await?;
    space.pods_ready("invoices", 2).await?;
    let top = async || {
        let text = warren(&space, &["top"]).await?.text;
        let (queue, worker) = (row(&text, "orders"), row(&text, "invoices"));
        ensure!(queue.len() == 8 && worker.len() == 8, "{text}");
        ensure!(queue[1..3] == ["True", "Quorum"] && queue[3] != "0", "{text}");
        ensure!(queue[5..] == ["0", "1", "invoices"], "retrying, dead\n{text}");
        ensure!(worker[2..4] == ["2", "2"] && worker[4] != "0", "{text}");
        ensure!(worker[6].parse::<f64>()? > 0.0, "{text}");
        Ok(())
    };
    space.eventually("top shows what waits, is dead, runs and passes", top).await?;
    let explain = async || {
        let text = warren(&space, &["explain", "worker/invoices"]).await?.text;
        for said in [
            "has 2 pods and wants 2",
            "Decision: 2 replicas, AtMaximum, made ",
            "raised no further than maxReplicas 2",
            "counted 0.",
            "2 of 2 that started answered",
            "s per message (measured)",
            "Last decisions that differ",
        ] {
            ensure!(text.contains(said), "{said}\n{text}");
        }
        Ok(())
    };
    // Other tests kill the operator: what it remembers may be young, and need not reach back to the first pods.
    space
        .eventually("explain tells inputs with ages, formula, limits, reason and decisions", explain)
        .await?;
    let doctor = async || {
        let checklist = warren(&space, &["doctor"]).await?;
        ensure!(checklist.well && checklist.text.contains(" 0 wrong, 0 unknown"), "{}", checklist.text);
        Ok(())
    };
    space.eventually("doctor finds nothing wrong", doctor).await?;

    client.purge("orders").await?;
    let back = async || {
        let text = warren(&space, &["explain", "invoices"]).await?.text;
        ensure!(text.contains("has 0 pods and wants 0") && text.contains(" to 0 pods"), "{text}");
        Ok(())
    };
    space.eventually("explain tells of the way back to zero", back).await
}

#[tokio::test]
async fn who_may_only_view_is_told_what_cannot_be_read() -> Result<()> {
    let space = Space::new("viewer", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}})).await?;
    space.pods_ready("invoices", 1).await?;
    space.kubectl(&["create", "rolebinding", "jane", "--clusterrole=view", "--user=jane"]).await?;
    let mut config: serde_yaml::Value = serde_yaml::from_slice(&std::fs::read(space.cluster.kubeconfig())?)?;
    let users = config["users"].as_sequence_mut().context("no users")?;
    users.iter_mut().for_each(|user| user["user"]["as"] = "jane".into());
    let jane = tempfile::NamedTempFile::new()?;
    std::fs::write(jane.path(), serde_yaml::to_string(&config)?)?;
    let told = async || {
        let top = with(&space, jane.path(), &["top"]).await?.text;
        ensure!(row(&top, "invoices")[2..7] == ["1", "1", "?", "?", "?"], "{top}");
        ensure!(row(&top, "orders")[3..7] == ["?", "?", "?", "?"], "{top}");
        ensure!(top.contains("1 of 1 sidecars could not be read") && top.contains("pods/proxy"), "{top}");
        let explain = with(&space, jane.path(), &["explain", "worker/invoices"]).await?.text;
        ensure!(
            explain.contains("Decision: 1 replicas") && explain.contains("is not known: list"),
            "{explain}"
        );
        ensure!(!explain.contains("events is forbidden"), "{explain}");
        let doctor = with(&space, jane.path(), &["doctor"]).await?.text;
        ensure!(doctor.contains(" 0 wrong, "), "{doctor}");
        let all = [top, explain, doctor].concat();
        ensure!(all.contains("--operator-namespace") && !all.contains("Status {"), "{all}");
        Ok(())
    };
    space.eventually("top, explain and doctor say what a viewer may not read", told).await
}

#[tokio::test]
async fn doctor_names_what_is_wrong_and_says_so_by_its_exit_status() -> Result<()> {
    let space = Space::without_secret("sick", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    space.condition(("wq", "orders"), "Ready", ("False", "SecretNotFound"), &[]).await?;
    let checklist = warren(&space, &["doctor", "queue/orders"]).await?;
    assert!(!checklist.well, "{}", checklist.text);
    assert!(checklist.text.contains("rabbitmq"), "{}", checklist.text);
    Ok(())
}
