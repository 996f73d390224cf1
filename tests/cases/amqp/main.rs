//! `warren-broker` against real brokers: what is planned is declared, and what is refused is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod refusals;
mod supervisor;
mod topology;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_api::queue::{Binding, DeclareExchange, ExchangeType, QueueSpec, QueueType, Retry};
use warren_broker::connect::{ConnectOptions, connect};
use warren_broker::lapin::Connection;
use warren_broker::topology::plan;
use warren_broker::{BrokerAccess, declare};
use warren_tests::amqp::Client;
use warren_tests::broker::{Broker, Options};
use warren_tests::wait::eventually;

async fn connection(uri: &str) -> Result<Connection> {
    Ok(connect(&BrokerAccess::from_uri(uri)?, &ConnectOptions::named("test")).await?)
}

/// A spec with every mutable part: a binding to an exchange that is declared, and a ladder of one second.
fn spec(queue_type: QueueType) -> QueueSpec {
    QueueSpec {
        queue_type,
        retry: Retry { delays_seconds: vec![1], max_attempts: 3 },
        bindings: vec![Binding {
            exchange: "shop.events".to_owned(),
            routing_key: "order.#".to_owned(),
            arguments: BTreeMap::new(),
            declare: Some(DeclareExchange { exchange_type: ExchangeType::Topic }),
        }],
        ..QueueSpec::default()
    }
}

warren_tests::on_each_release!(what_is_planned_is_declared_twice_without_a_difference);

async fn what_is_planned_is_declared_twice_without_a_difference(options: Options) -> Result<()> {
    let broker = Broker::start(options).await?;
    let connection = connection(&broker.uri("/")).await?;
    let client = Client::connect(&broker.uri("/")).await?;
    for (name, queue_type) in [("quorum", QueueType::Quorum), ("classic", QueueType::Classic)] {
        let topology = plan(name, &spec(queue_type));
        for _ in 0..2 {
            let channel = connection.create_channel().await?;
            declare::declare(&channel, &topology).await?;
        }
        // What a rung holds comes back to the main queue when its time is over.
        client.publish(&format!("{name}.retry.1s"), b"again").await?;
        eventually(Duration::from_secs(30), "the rung's message is back", async || {
            let message = client.take(name).await?;
            ensure!(message.is_some_and(|(body, _)| body == b"again"), "not yet");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
