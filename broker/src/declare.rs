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

/// What the arguments of a binding may take on the wire, in bytes: with its names they fit the smallest frame that a broker may
/// insist on, 4096 bytes. A larger frame ends the connection, and with it the work of every other Queue there.
const LARGEST_ARGUMENTS: usize = 3 * 1024;
/// What an argument takes beside its name and value: their lengths, and its type.
const ARGUMENT_OVERHEAD: usize = 6;

/// What was being declared when the broker refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// An exchange.
    Exchange(String),
    /// A queue.
    Queue(String),
    /// A binding of the main queue.
    Binding(Box<DeclaredBinding>),
}

impl Object {
    /// The exchange, or that of the binding; none of a queue.
    pub fn exchange(&self) -> Option<&str> {
        match self {
            Self::Exchange(name) => Some(name),
            Self::Binding(binding) => Some(&binding.exchange),
            Self::Queue(_) => None,
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange \"{name}\""),
            Self::Queue(name) => write!(f, "queue \"{name}\""),
            Self::Binding(binding) => {
                let DeclaredBinding { exchange, routing_key, .. } = &**binding;
                write!(f, "binding to exchange \"{exchange}\" by \"{routing_key}\"")
            }
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
        .map(|(queue, answer)| answer.map_err(|error| refused(Object::Queue(queue.name.clone()), error)));
    let depths = depths.collect::<Result<_, _>>()?;
    let answers = join_all(exchanges.iter().map(|exchange| declare_exchange(channel, exchange))).await;
    for (exchange, answer) in exchanges.iter().zip(answers) {
        answer.map_err(|error| refused(Object::Exchange(exchange.name.clone()), error))?;
    }
    let answers = join_all(bindings.iter().map(|binding| bind(channel, main, binding))).await;
    for (binding, answer) in bindings.iter().zip(answers) {
        answer.map_err(|error| refused(Object::Binding(Box::new(binding.clone())), error))?;
    }
    Ok(depths)
}

fn refused(object: Object, error: BrokerError) -> DeclareError {
    DeclareError { object, error }
}

/// Text for a field of AMQP that takes at most 255 bytes; the library's own conversion panics over a longer one.
///
/// # Errors
/// [`BrokerError::Precondition`] where it is longer, with `what` it is.
pub fn short(what: &str, text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::Precondition {
        detail: format!("{what} has {} bytes, and AMQP takes at most 255", text.len()),
    })
}

/// A queue's name, as [`short`].
///
/// # Errors
/// See [`short`].
pub fn queue_name(name: &str) -> Result<ShortString, BrokerError> {
    short("the queue's name", name)
}

fn exchange_name(name: &str) -> Result<ShortString, BrokerError> {
    short("the exchange's name", name)
}

async fn declare_exchange(channel: &Channel, plan: &ExchangePlan) -> Result<(), BrokerError> {
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
    let name = exchange_name(&plan.name)?;
    Ok(channel.exchange_declare(name, kind, options, FieldTable::default()).await?)
}

/// Declares one queue; gives how full it is.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn declare_queue(channel: &Channel, plan: &QueuePlan) -> Result<QueueDepth, BrokerError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    Ok(depth_of(&channel.queue_declare(queue_name(&plan.name)?, options, table(&plan.arguments)).await?))
}

fn depth_of(answer: &lapin::Queue) -> QueueDepth {
    QueueDepth { ready: answer.message_count(), consumers: answer.consumer_count() }
}

/// A binding as AMQP says it.
struct Route {
    queue: ShortString,
    exchange: ShortString,
    routing_key: ShortString,
    arguments: FieldTable,
}

impl Route {
    fn parse(queue: &str, plan: &DeclaredBinding) -> Result<Self, BrokerError> {
        let DeclaredBinding { exchange, routing_key, arguments } = plan;
        Ok(Self {
            queue: queue_name(queue)?,
            exchange: exchange_name(exchange)?,
            routing_key: short("the routing key", routing_key)?,
            arguments: text_table(arguments)?,
        })
    }
}

async fn bind(channel: &Channel, queue: &str, plan: &DeclaredBinding) -> Result<(), BrokerError> {
    let Route { queue, exchange, routing_key, arguments } = Route::parse(queue, plan)?;
    Ok(channel.queue_bind(queue, exchange, routing_key, QueueBindOptions::default(), arguments).await?)
}

/// Takes back a binding of `queue`; one that is not there is no error.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn unbind(channel: &Channel, queue: &str, plan: &DeclaredBinding) -> Result<(), BrokerError> {
    // What cannot be said was never made.
    let Ok(Route { queue, exchange, routing_key, arguments }) = Route::parse(queue, plan) else {
        return Ok(());
    };
    Ok(channel.queue_unbind(queue, exchange, routing_key, arguments).await?)
}

/// Asks for a queue's depth without changing anything.
///
/// # Errors
/// [`BrokerError::NotFound`] where the queue is missing; `channel` is closed by any error.
pub async fn depth(channel: &Channel, queue: &str) -> Result<QueueDepth, BrokerError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(depth_of(&channel.queue_declare(queue_name(queue)?, options, FieldTable::default()).await?))
}

/// Whether a queue gives no message, which a quorum queue without a leader cannot answer; a message that it gives is put
/// back.
///
/// # Errors
/// Why the broker refused; `channel` is closed then.
pub async fn gives_nothing(channel: &Channel, queue: &str) -> Result<bool, BrokerError> {
    let got = channel.basic_get(queue_name(queue)?, BasicGetOptions::default()).await?;
    let Some(message) = got else { return Ok(true) };
    let put_back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    message.delivery.acker.nack(put_back).await?;
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
    channel.queue_delete(queue_name(queue)?, options).await?;
    Ok(())
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

fn text_table(arguments: &BTreeMap<String, String>) -> Result<FieldTable, BrokerError> {
    let size: usize =
        arguments.iter().map(|(name, value)| name.len() + value.len() + ARGUMENT_OVERHEAD).sum();
    if size > LARGEST_ARGUMENTS {
        let detail = format!("its arguments take {size} bytes, and at most {LARGEST_ARGUMENTS} can be sent");
        return Err(BrokerError::Precondition { detail });
    }
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(short("an argument's name", name)?, AMQPValue::LongString(value.as_str().into()));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use lapin::types::generation::gen_field_table;
    use warren_api::QueueSpec;
    use warren_api::queue::Binding;

    use super::*;
    use crate::error::Category;
    use crate::topology::plan;

    /// The binding of a Queue that no API server has looked at, or what keeps it from being sent.
    fn route(exchange: &str, routing_key: &str, arguments: &[(&str, &str)]) -> Result<Route, String> {
        let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let binding = Binding {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            arguments: arguments.collect(),
            declare: None,
        };
        let topology = plan("orders", &QueueSpec { bindings: vec![binding], ..QueueSpec::default() });
        Route::parse("orders", &topology.bindings[0]).map_err(|error| {
            assert_eq!(error.category(), Category::Terminal);
            error.to_string()
        })
    }

    #[test]
    fn what_amqp_cannot_say_is_refused_by_its_bytes_and_not_its_characters() {
        let (most, over) = ("x".repeat(255), "ж".repeat(128));
        assert!(route(&most, &most, &[("x-match", "all"), (&most, "")]).is_ok());
        for (route, what) in [
            (route(&over, "", &[]), "the exchange's name has 256 bytes"),
            (route("shop", &over, &[]), "the routing key has 256 bytes"),
            (route("shop", "", &[(&over, "")]), "an argument's name has 256 bytes"),
            (route("shop", "", &[("kind", &"x".repeat(4000))]), "its arguments take 4010 bytes"),
        ] {
            let refused = route.err();
            assert!(refused.as_ref().is_some_and(|refused| refused.contains(what)), "{what}: {refused:?}");
        }
        assert!(queue_name(&over).is_err());
    }

    #[test]
    fn a_binding_of_the_longest_names_and_arguments_fits_the_smallest_frame() {
        let most = "x".repeat(255);
        let names: Vec<_> = (0..LARGEST_ARGUMENTS / 256).map(|number| format!("{number:0>250}")).collect();
        let arguments: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        let route = route(&most, &most, &arguments).unwrap();
        let table = gen_field_table(&route.arguments)(Vec::new().into()).unwrap().into_inner().0;
        // The frame's head and end, class and method, a reserved number, three names, and a flag.
        let rest = 8 + 4 + 2 + 3 * 256 + 1;
        assert!(table.len() + rest <= 4096);
    }
}
