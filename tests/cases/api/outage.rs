//! The API server goes away, for a sidecar and for the operator.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use warren_tests::amqp::Client;
use warren_tests::app::App;
use warren_tests::images::static_binaries;
use warren_tests::operator::{Operator, READY};
use warren_tests::way::Way;

use crate::operator::Room;

/// A way to the cluster's API server, and a kubeconfig that goes it.
async fn way_to_the_api(room: &Room) -> Result<(Way, tempfile::NamedTempFile)> {
    let raw = ["config", "view", "--raw", "--flatten", "-o", "json"];
    let mut config: Value = serde_json::from_str(&room.cluster.kubectl(&raw).await?)?;
    let server = &mut config["clusters"][0]["cluster"]["server"];
    let target: SocketAddr =
        server.as_str().and_then(|url| url.strip_prefix("https://")).context("no server")?.parse()?;
    let way = Way::to(target).await?;
    // The certificate is for the host alone, whatever the port.
    ensure!(target.ip() == way.address().ip(), "the API server is not on this machine: {target}");
    *server = format!("https://{}", way.address()).into();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    Ok((way, file))
}

#[tokio::test]
async fn consumers_do_not_notice_that_the_api_server_is_gone_and_the_operator_resumes() -> Result<()> {
    let room = Room::new("outage").await?;
    let binaries = static_binaries(&["warren-operator", "warren-sidecar"]).await?;
    let (way, kubeconfig) = way_to_the_api(&room).await?;
    let operator = async || Operator::watching(&binaries[0], kubeconfig.path(), &[&room.name], "one").await;
    let mut first = operator().await?;
    room.queue("orders", json!({})).await?;
    room.queue("later", json!({})).await?;
    room.worker("sleeper", "later", json!({})).await?;
    room.ready("orders").await?;
    room.ready("later").await?;

    let app = App::start().await?;
    let handler = format!("http://127.0.0.1:{}/", app.port());
    let _sidecar = Command::new(&binaries[1])
        .args(["local", "--queue", "orders", "--handler", &handler, "--amqp", &room.vhost.uri()])
        .args(["--admin-port", "0", "--local-port", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let client = Client::connect(&room.vhost.uri()).await?;
    let handled = async |count: usize| {
        client.publish("orders", count.to_string().as_bytes()).await?;
        room.eventually("one more message is handled", async || {
            let calls = app.calls().len();
            ensure!(calls == count, "{calls} of {count}");
            Ok(())
        })
        .await
    };
    let mut count = 1;
    handled(count).await?;

    way.cut();
    // A leader that cannot renew its Lease ends, and its kubelet starts it again.
    while first.runs()? {
        count += 1;
        handled(count).await?;
    }
    let second = operator().await?;
    count += 1;
    handled(count).await?;
    way.mend();
    second.until(READY, 2.0).await?;
    client.publish("later", b"wakes the Worker").await?;
    room.eventually("the Worker is scaled", async || {
        let deployment = room.get("deployment", "sleeper").await?;
        ensure!(deployment["spec"]["replicas"] == 1, "{}", deployment["spec"]["replicas"]);
        Ok(())
    })
    .await?;
    assert_eq!(app.calls().len(), count, "nothing was called again");
    Ok(())
}
