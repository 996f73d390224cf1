//! A planned topology sent to a broker, and what the broker has read back, over plain AMQP.
//!
//! A refused declaration closes its channel (<https://www.rabbitmq.com/docs/channels#error-handling>): whoever gets an error
//! here drops the channel and opens another.

use std::collections::BTreeMap;

use futures::future::join_all;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use warren_api::queue::{DeclaredBinding, ExchangeType};

use crate::error::BrokerError;
use crate::topology::{Argument, ExchangePlan, QueuePlan, Topology};

/// What was being declared when the broker refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// An exchange.
    Exchange(String),
    /// A queue.
    Queue(String),
    /// A binding of the main queue, by exchange and routing key.
    Binding(String, String),
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange \"{name}\""),
            Self::Queue(name) => write!(f, "queue \"{name}\""),
            Self::Binding(exchange, key) => write!(f, "binding to exchange \"{exchange}\" by \"{key}\""),
        }
    }
}

/// A refused declaration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {error}")]
pub struct DeclareError {
    /// What was being declared.
    pub object: Object,
    /// Why it was refused.
    pub error: BrokerError,
}

/// How full a queue is, as a passive declaration tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages ready for delivery; unacknowledged ones are not counted. For a quorum queue without a leader the broker
    /// answers 0 as a success.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

/// Declares queues, exchanges and bindings, and stops at the first refusal, which has closed `channel`. Gives how full each
/// queue is, in the topology's order. Queues are sent together, and so are bindings: a channel carries out one after the other,
/// and passes over what follows a refusal. Queues come first: an exchange that is missing keeps none of them away.
///
/// # Errors
/// What was refused, and why.
pub async fn declare(channel: &Channel, topology: &Topology) -> Result<Vec<QueueDepth>, DeclareError> {
    let Topology { exchanges, queues, bindings } = topology;
    let main = queues.last().map(|queue| queue.name.as_str()).unwrap_or_default();
    let answers = join_all(queues.iter().map(|queue| declare_queue(channel, queue))).await;
    let depths = queues
        .iter()
        .zip(answers)
        .map(|(queue, answer)| answer.map_err(|error| refused(Object::Queue(queue.name.clone()), &error)));
    let depths = depths.collect::<Result<_, _>>()?;
    for exchange in exchanges {
        let object = || Object::Exchange(exchange.name.clone());
        declare_exchange(channel, exchange).await.map_err(|e| refused(object(), &e))?;
    }
    let answers = join_all(bindings.iter().map(|binding| bind(channel, main, binding))).await;
    for (DeclaredBinding { exchange, routing_key, .. }, answer) in bindings.iter().zip(answers) {
        answer.map_err(|error| refused(Object::Binding(exchange.clone(), routing_key.clone()), &error))?;
    }
    Ok(depths)
}

fn refused(object: Object, error: &lapin::Error) -> DeclareError {
    DeclareError { object, error: BrokerError::from_lapin(error) }
}

async fn declare_exchange(channel: &Channel, plan: &ExchangePlan) -> lapin::Result<()> {
    let kind = match plan.declare {
        None | Some(ExchangeType::Direct) => ExchangeKind::Direct,
        Some(ExchangeType::Fanout) => ExchangeKind::Fanout,
        Some(ExchangeType::Topic) => ExchangeKind::Topic,
        Some(ExchangeType::Headers) => ExchangeKind::Headers,
    };
    let options = ExchangeDeclareOptions {
        durable: true,
        passive: plan.declare.is_none(),
        ..ExchangeDeclareOptions::default()
    };
    channel.exchange_declare(plan.name.as_str().into(), kind, options, FieldTable::default()).await
}

async fn declare_queue(channel: &Channel, plan: &QueuePlan) -> lapin::Result<QueueDepth> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(plan.name.as_str().into(), options, table(&plan.arguments)).await.map(depth_of)
}

#[expect(clippy::needless_pass_by_value, reason = "what a declaration answers")]
fn depth_of(answer: lapin::Queue) -> QueueDepth {
    QueueDepth { ready: answer.message_count(), consumers: answer.consumer_count() }
}

async fn bind(channel: &Channel, queue: &str, plan: &DeclaredBinding) -> lapin::Result<()> {
    let DeclaredBinding { exchange, routing_key, arguments } = plan;
    channel
        .queue_bind(
            queue.into(),
            exchange.as_str().into(),
            routing_key.as_str().into(),
            QueueBindOptions::default(),
            text_table(arguments),
        )
        .await
}

/// Takes back a binding of `queue`; one that is not there is no error.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn unbind(channel: &Channel, queue: &str, plan: &DeclaredBinding) -> Result<(), BrokerError> {
    let DeclaredBinding { exchange, routing_key, arguments } = plan;
    channel
        .queue_unbind(
            queue.into(),
            exchange.as_str().into(),
            routing_key.as_str().into(),
            text_table(arguments),
        )
        .await
        .map_err(|error| BrokerError::from_lapin(&error))
}

/// Asks for a queue's depth without changing anything.
///
/// # Errors
/// [`BrokerError::NotFound`] where the queue is missing; `channel` is closed by any error.
pub async fn depth(channel: &Channel, queue: &str) -> Result<QueueDepth, BrokerError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let answer = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
    answer.map(depth_of).map_err(|error| BrokerError::from_lapin(&error))
}

/// Whether a queue gives no message, which a quorum queue without a leader cannot answer; a message that it gives is put
/// back.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn gives_nothing(channel: &Channel, queue: &str) -> Result<bool, BrokerError> {
    let got = channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .map_err(|error| BrokerError::from_lapin(&error))?;
    let Some(message) = got else { return Ok(true) };
    let put_back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    message.delivery.acker.nack(put_back).await.map_err(|error| BrokerError::from_lapin(&error))?;
    Ok(false)
}

/// Deletes a queue; one that is not there is no error. `only_unused` has a classic queue refuse while it has messages or
/// consumers; a quorum queue knows no such condition.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn delete(channel: &Channel, queue: &str, only_unused: bool) -> Result<(), BrokerError> {
    let options =
        QueueDeleteOptions { if_empty: only_unused, if_unused: only_unused, ..QueueDeleteOptions::default() };
    let deleted = channel.queue_delete(queue.into(), options).await;
    deleted.map(drop).map_err(|error| BrokerError::from_lapin(&error))
}

fn table(arguments: &BTreeMap<&'static str, Argument>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in arguments {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert(ShortString::from(*name), value);
    }
    table
}

fn text_table(arguments: &BTreeMap<String, String>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    table
}
