//! What is wrong shows as a condition with a reason and a sentence, and heals by itself when it is mended.

use anyhow::Result;
use serde_json::json;
use warren_tests::desk::Order;

use crate::space::Space;

const QUEUE: (&str, &str) = ("wq", "orders");
const WORKER: (&str, &str) = ("wk", "invoices");

async fn space(name: &str) -> Result<Space> {
    Space::without_secret(name, |_| Order::answer(200)).await
}

#[tokio::test]
async fn a_missing_secret_is_named_and_used_once_it_is_there() -> Result<()> {
    let space = space("no-secret").await?;
    space.queue("orders", json!({})).await?;
    space.condition(QUEUE, "Ready", ("False", "SecretNotFound"), &["\"rabbitmq\""]).await?;
    space.secret(&space.uri()).await?;
    space.ready("wq", "orders").await
}

#[tokio::test]
async fn a_secret_without_the_needed_keys_says_which() -> Result<()> {
    let space = space("keyless").await?;
    space.secret_of("rabbitmq", json!({"host": "rabbit", "username": "warren"})).await?;
    space.queue("orders", json!({})).await?;
    space.condition(QUEUE, "Ready", ("False", "SecretInvalid"), &["password"]).await?;
    space.secret(&space.uri()).await?;
    space.ready("wq", "orders").await
}

#[tokio::test]
async fn a_secret_full_of_nonsense_says_what_is_expected() -> Result<()> {
    let space = space("nonsense").await?;
    space.secret("colourless green ideas").await?;
    space.queue("orders", json!({})).await?;
    let message =
        space.condition(QUEUE, "Ready", ("False", "SecretInvalid"), &["\"uri\"", "amqp://"]).await?;
    assert!(!message.contains("colourless"), "a value is shown: {message}");
    space.secret(&space.uri()).await?;
    space.ready("wq", "orders").await
}

#[tokio::test]
async fn a_wrong_password_is_told_and_a_mended_one_is_used_without_a_restart() -> Result<()> {
    let space = space("password").await?;
    space.secret(&space.uri().replace(space.broker.password(), "wrong")).await?;
    space.queue("orders", json!({})).await?;
    space.condition(QUEUE, "Ready", ("False", "AuthRefused"), &["username and password"]).await?;
    space.secret(&space.uri()).await?;
    space.ready("wq", "orders").await
}

#[tokio::test]
async fn an_unknown_host_is_told_and_does_not_delay_other_queues() -> Result<()> {
    let broken = space("no-host").await?;
    broken.secret("amqp://warren:secret@no-such-host.invalid:5672/").await?;
    for name in ["orders", "more", "yet-more"] {
        broken.queue(name, json!({})).await?;
    }
    broken
        .condition(QUEUE, "BrokerReachable", ("False", "BrokerUnreachable"), &["no-such-host.invalid"])
        .await?;
    let healthy = space("beside-no-host").await?;
    healthy.secret(&healthy.uri()).await?;
    healthy.queue("orders", json!({})).await?;
    healthy.ready("wq", "orders").await?;
    broken.secret(&broken.uri()).await?;
    broken.ready("wq", "orders").await
}

#[tokio::test]
async fn a_worker_whose_queue_is_missing_waits_for_it() -> Result<()> {
    let space = space("no-queue").await?;
    space.secret(&space.uri()).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}})).await?;
    space.condition(WORKER, "QueueReady", ("False", "QueueNotFound"), &["\"orders\""]).await?;
    space.queue("orders", json!({})).await?;
    space.ready("wk", "invoices").await
}

#[tokio::test]
async fn a_template_whose_container_takes_the_sidecar_s_port_is_told_and_heals() -> Result<()> {
    let space = space("port").await?;
    space.secret(&space.uri()).await?;
    space.queue("orders", json!({})).await?;
    let mut template = space.template();
    template["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080}, {"containerPort": 9400}]);
    space.worker("invoices", json!({"template": template})).await?;
    space.condition(WORKER, "TemplateValid", ("False", "PortTaken"), &["9400"]).await?;
    space.worker("invoices", json!({"scaling": {"minReplicas": 1}, "template": space.template()})).await?;
    space.ready("wk", "invoices").await
}

#[tokio::test]
async fn a_template_without_any_port_is_told_and_heals() -> Result<()> {
    let space = space("portless").await?;
    space.secret(&space.uri()).await?;
    space.queue("orders", json!({})).await?;
    let mut template = space.template();
    template["spec"]["containers"][0]["ports"] = json!([]);
    space.worker("invoices", json!({"template": template})).await?;
    space.condition(WORKER, "TemplateValid", ("False", "PortMissing"), &["handler.http.port"]).await?;
    space
        .worker("invoices", json!({"handler": {"http": {"port": 8080}}, "scaling": {"minReplicas": 1}}))
        .await?;
    space.ready("wk", "invoices").await
}

#[tokio::test]
async fn a_handler_path_that_answers_404_is_named_and_loses_nothing() -> Result<()> {
    let only_work =
        |call: &warren_tests::desk::Call| Order::answer(if call.path == "/work" { 200 } else { 404 });
    let space = Space::new("path", only_work).await?;
    space.queue("orders", json!({})).await?;
    // One pod, which judges by its own last calls: of several, each would see too few, and the ladder's longest rung begins.
    let worker = |path: &str| json!({"handler": {"http": {"path": path}}, "scaling": {"maxReplicas": 1}});
    space.worker("invoices", worker("/wrong")).await?;
    space.ready("wq", "orders").await?;
    let client = space.client().await?;
    client.publish_all("orders", (0..30).map(|n| format!("message {n}").into_bytes())).await?;
    let expected = ("False", "HandlerMisconfigured");
    space.condition(WORKER, "HandlerHealthy", expected, &["/wrong", "404"]).await?;
    space.worker("invoices", worker("/work")).await?;
    space
        .eventually("all messages are handled at the right path", async || {
            let entries = space.desk.entries();
            let mut bodies: Vec<_> =
                entries.iter().filter(|e| e.call.path == "/work").map(|e| e.call.body.as_str()).collect();
            bodies.sort_unstable();
            bodies.dedup();
            anyhow::ensure!(bodies.len() == 30, "{} of 30", bodies.len());
            Ok(())
        })
        .await?;
    assert_eq!(client.ready("orders.dlq").await?, Some(0), "nothing is dead-lettered");
    Ok(())
}
