//! The kubectl plugin against a real cluster.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;
use warren_cli::{Answer, Cli};
use warren_tests::desk::{Call, Order};

use crate::space::Space;

/// `kubectl warren ARGS` in the namespace.
async fn warren(space: &Space, args: &[&str]) -> Result<Answer> {
    warren_broker::install_crypto_provider();
    let kubeconfig = space.cluster.kubeconfig().to_string_lossy().into_owned();
    let target = ["--namespace", &space.name, "--kubeconfig", &kubeconfig];
    Cli::try_parse_from([&["kubectl-warren"], args, &target].concat())?.run().await
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
    client.publish_all("orders", (0..150).map(|n| format!("message {n}").into_bytes())).await?;
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
            "AtMaximum",
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
async fn doctor_names_what_is_wrong_and_says_so_by_its_exit_status() -> Result<()> {
    let space = Space::without_secret("sick", |_| Order::answer(200)).await?;
    space.queue("orders", json!({})).await?;
    space.condition(("wq", "orders"), "Ready", ("False", "SecretNotFound"), &[]).await?;
    let checklist = warren(&space, &["doctor", "queue/orders"]).await?;
    assert!(!checklist.well, "{}", checklist.text);
    assert!(checklist.text.contains("rabbitmq"), "{}", checklist.text);
    Ok(())
}
