//! The experiments of docs/durability.md that need a broker and no Kubernetes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::options::QueueDeclareOptions;
use warren_tests::amqp::{Client, persistent, queue_type_argument};
use warren_tests::app::App;
use warren_tests::broker::{Broker, Options};
use warren_tests::images::static_binaries;
use warren_tests::wait::eventually;

const MESSAGES: u32 = 20;

/// Delivery mode 1: the broker need not write the message to disk.
fn transient() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(1)
}

async fn fill(client: &Client, queue: &str, properties: BasicProperties) -> Result<()> {
    for number in 0..MESSAGES {
        client.publish_with(queue, format!("message {number}").as_bytes(), properties.clone()).await?;
    }
    client.holds(queue, MESSAGES).await
}

/// The administrator's restart: SIGTERM, then start.
async fn restart(broker: &Broker) -> Result<Client> {
    broker.sigterm().await?;
    broker.start_again().await?;
    Client::connect(&broker.uri("/")).await
}

/// A new classic queue has its count at once; a quorum queue answers 0 until it has elected a leader.
async fn ready_again(client: &Client, queue: &str, expected: u32) -> Result<()> {
    eventually(Duration::from_secs(180), "the messages are back", async || {
        let ready = client.ready(queue).await?;
        ensure!(ready == Some(expected), "{ready:?} messages");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_queue_that_is_not_durable_is_gone_after_a_broker_restart_with_its_messages() -> Result<()> {
    let broker = Broker::start(Options::new("transient-queue")).await?;
    let client = Client::connect(&broker.uri("/")).await?;
    client.declare("work", QueueDeclareOptions::default(), queue_type_argument("classic")).await?;
    fill(&client, "work", persistent()).await?;
    let client = restart(&broker).await?;
    assert_eq!(client.ready("work").await?, None, "the queue survived");
    Ok(())
}

#[tokio::test]
async fn messages_that_are_not_persistent_are_gone_after_a_restart_but_their_durable_queue_is_not()
-> Result<()> {
    let broker = Broker::start(Options::new("transient-messages")).await?;
    let client = Client::connect(&broker.uri("/")).await?;
    client.declare_durable("work", "classic").await?;
    fill(&client, "work", transient()).await?;
    let client = restart(&broker).await?;
    assert_eq!(client.ready("work").await?, Some(0), "the queue is there, and empty");
    Ok(())
}

#[tokio::test]
async fn persistent_messages_in_durable_queues_survive_every_kind_of_restart() -> Result<()> {
    let broker = Broker::start(Options::new("persistent")).await?;
    let client = Client::connect(&broker.uri("/")).await?;
    for queue_type in ["classic", "quorum"] {
        client.declare_durable(queue_type, queue_type).await?;
        fill(&client, queue_type, persistent()).await?;
    }
    for fault in ["stop_app", "SIGTERM", "kill -9"] {
        match fault {
            "stop_app" => {
                broker.stop_app().await?;
                broker.start_app().await?;
            }
            "SIGTERM" => {
                broker.sigterm().await?;
                broker.start_again().await?;
            }
            _ => {
                broker.kill9().await?;
                broker.start_again().await?;
            }
        }
        let client = Client::connect(&broker.uri("/")).await?;
        for queue in ["classic", "quorum"] {
            ready_again(&client, queue, MESSAGES).await?;
        }
        println!("{fault}: all {MESSAGES} messages of both queues are there");
    }
    Ok(())
}

#[tokio::test]
async fn through_warren_every_message_is_handled_while_the_broker_is_killed() -> Result<()> {
    let broker = Broker::start(Options::new("handled")).await?;
    let app = App::start().await?;
    let binary = static_binaries(&["warren-sidecar"]).await?.remove(0);
    let handler = format!("http://127.0.0.1:{}/", app.port());
    let mut sidecar = tokio::process::Command::new(binary);
    sidecar.args([
        "local",
        "--amqp",
        &broker.uri("/"),
        "--queue",
        "work",
        "--handler",
        &handler,
        "--declare",
    ]);
    sidecar.args(["--admin-port", "0", "--local-port", "0"]);
    let mut sidecar = sidecar.kill_on_drop(true).spawn()?;

    // A queue that has no leader yet takes no message.
    eventually(Duration::from_secs(60), "the sidecar consumes", async || {
        let consumers = broker.eval("length(rabbit_amqqueue:consumers_all(<<\"/\">>))").await?;
        ensure!(consumers.contains("ok, 1"), "{consumers}");
        Ok(())
    })
    .await?;
    let handled = async |expected: usize| {
        eventually(Duration::from_secs(60), "every message is handled", async || {
            let mut bodies: Vec<_> = app.calls().iter().map(|call| call.text()).collect();
            bodies.sort();
            bodies.dedup();
            ensure!(bodies.len() == expected, "{} of {expected}", bodies.len());
            Ok(())
        })
        .await
    };
    for (round, fault) in ["SIGTERM", "kill -9", "none"].into_iter().enumerate() {
        let client = Client::connect(&broker.uri("/")).await?;
        let bodies = (0..MESSAGES).map(|n| format!("round {round} message {n}").into_bytes());
        client.publish_all("work", bodies).await?;
        match fault {
            // First, because RabbitMQ 3.10 writes the names of new quorum queues to disk seconds later, or when it ends in
            // order: a queue that was declared just before a crash never elects a leader again.
            "SIGTERM" => broker.sigterm().await?,
            "kill -9" => broker.kill9().await?,
            _ => {}
        }
        broker.start_again().await?;
        handled((round + 1) * MESSAGES as usize).await?;
    }
    sidecar.kill().await?;
    Ok(())
}
