//! A plain AMQP client for producers and for looks at a broker: what a user's own program would do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use warren_broker::BrokerError;
use warren_broker::lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};

use warren_broker::lapin::types::{AMQPValue, FieldTable};
use warren_broker::lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm,
};

use crate::wait::eventually;

/// How long the leader of a queue may take to be there.
const LEADER: Duration = Duration::from_secs(60);
/// How many publishes wait for their confirm at once.
const WINDOW: usize = 256;

/// A connection with one channel in confirm mode.
pub struct Client {
    connection: Connection,
    channel: Channel,
}

impl Client {
    /// Connects and turns publisher confirms on.
    pub async fn connect(uri: &str) -> Result<Self> {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// The connection, for what this client has no word for.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A channel of its own: a refused command closes the channel it came on.
    pub async fn channel(&self) -> Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    /// Publishes one persistent message to a queue and waits until the broker has it.
    pub async fn publish(&self, queue: &str, body: &[u8]) -> Result<()> {
        self.publish_with(queue, body, persistent()).await
    }

    /// Publishes one message with the properties given and waits until the broker has it.
    pub async fn publish_with(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<()> {
        settled(self.send(queue, body, properties).await?).await
    }

    /// Publishes persistent messages, many at once, and waits until the broker has them all.
    pub async fn publish_all(&self, queue: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Result<u64> {
        let mut waiting = FuturesUnordered::new();
        let mut published = 0;
        for body in bodies {
            waiting.push(settled(self.send(queue, &body, persistent()).await?));
            published += 1;
            if waiting.len() >= WINDOW {
                waiting.next().await.transpose()?;
            }
        }
        while waiting.next().await.transpose()?.is_some() {}
        Ok(published)
    }

    async fn send(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<PublisherConfirm> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        Ok(self.channel.basic_publish("".into(), queue.into(), options, body, properties).await?)
    }

    /// Declares a queue on a channel of its own.
    pub async fn declare(
        &self,
        queue: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<()> {
        let channel = self.channel().await?;
        channel.queue_declare(queue.into(), options, arguments).await?;
        Ok(())
    }

    /// Declares a durable queue of a type, such as "classic".
    pub async fn declare_durable(&self, queue: &str, queue_type: &str) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.declare(queue, options, queue_type_argument(queue_type)).await
    }

    /// How many messages of a queue are ready; none where there is no such queue.
    pub async fn ready(&self, queue: &str) -> Result<Option<u32>> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looked = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        match looked.map_err(BrokerError::from) {
            Ok(answer) => Ok(Some(answer.message_count())),
            Err(BrokerError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes sure that so many messages are ready. Of a quorum queue whose leader takes longer than a moment the broker says 0, which alone
    /// is asked again.
    pub async fn holds(&self, queue: &str, count: u32) -> Result<()> {
        let what = format!("{queue} holds {count}");
        let ready = eventually(LEADER, &what, async || {
            let ready = self.ready(queue).await?;
            ensure!(ready != Some(0), "it says 0");
            Ok(ready)
        });
        let ready = ready.await?;
        ensure!(ready == Some(count), "{queue}: {ready:?}, and not {count}");
        Ok(())
    }

    /// Takes one message, if there is one, and acknowledges it.
    pub async fn take(&self, queue: &str) -> Result<Option<(Vec<u8>, BasicProperties)>> {
        let Some(message) = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await? else {
            return Ok(None);
        };
        message.delivery.acker.ack(BasicAckOptions::default()).await?;
        Ok(Some((message.delivery.data, message.delivery.properties)))
    }

    /// Deletes a queue with all that is in it.
    pub async fn delete(&self, queue: &str) -> Result<()> {
        self.channel().await?.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// Empties a queue.
    pub async fn purge(&self, queue: &str) -> Result<()> {
        self.channel().await?.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }
}

async fn settled(confirm: PublisherConfirm) -> Result<()> {
    let confirmation = confirm.await.context("wait for the publisher confirm")?;
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker did not take it: {confirmation:?}");
    Ok(())
}

/// Properties of a message that a durable queue keeps over a restart.
pub fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// The argument that names a queue's type.
pub fn queue_type_argument(queue_type: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.into()));
    arguments
}
