//! A delivered message, with what Warren's own headers on it say.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use warren_api::headers;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::message::Delivery;
use warren_broker::lapin::types::{AMQPValue, FieldTable};

/// The quorum queue's own count of deliveries.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// A message as the handler and its copies see it.
#[derive(Clone, Debug)]
pub struct Message {
    /// The exchange that it was first published to.
    pub exchange: String,
    /// The routing key that it was first published with.
    pub routing_key: String,
    /// The broker's redelivered flag.
    pub redelivered: bool,
    /// Properties and headers as they came.
    pub properties: BasicProperties,
    /// The payload.
    pub body: Bytes,
    /// Attempts that earlier copies have used.
    pub attempts: u32,
}

impl Message {
    /// Takes a delivery apart.
    pub fn from_delivery(delivery: Delivery) -> Self {
        let Delivery { exchange, routing_key, redelivered, properties, data, .. } = delivery;
        Self::new(exchange.into(), routing_key.into(), redelivered, properties, data.into())
    }

    /// A message from its parts. A copy names where the original was published, and that is what counts. A message that
    /// comes back from the dead-letter queue starts anew.
    pub fn new(
        exchange: String,
        routing_key: String,
        redelivered: bool,
        properties: BasicProperties,
        body: Bytes,
    ) -> Self {
        let table = properties.headers().as_ref();
        let origin = |name| table.and_then(|table| text(table, name)).map(str::to_owned);
        let replayed = table.is_some_and(|table| table.inner().contains_key(headers::DEAD_REASON));
        let attempts = table.and_then(|table| integer(table, headers::ATTEMPTS)).unwrap_or(0);
        Self {
            exchange: origin(headers::ORIGIN_EXCHANGE).unwrap_or(exchange),
            routing_key: origin(headers::ORIGIN_ROUTING_KEY).unwrap_or(routing_key),
            redelivered,
            attempts: if replayed { 0 } else { u32::try_from(attempts).unwrap_or(0) },
            body,
            properties,
        }
    }

    /// The message's id, from its producer or from Warren.
    pub fn id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(|id| id.as_str()).filter(|id| !id.is_empty())
    }

    /// Whether a restart of the broker may lose it (on a classic queue).
    pub fn is_transient(&self) -> bool {
        *self.properties.delivery_mode() != Some(2)
    }

    /// How often the quorum queue has delivered it before.
    pub fn delivery_count(&self) -> Option<i64> {
        integer(self.headers()?, DELIVERY_COUNT)
    }

    /// The AMQP headers, if there are any.
    pub fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// A header as text, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        text(self.headers()?, name)
    }

    /// Hash of the message's id.
    pub fn identity(&self) -> Option<u64> {
        self.id().map(|id| hash(id.as_bytes()))
    }

    /// Hash of the ordering key: the value of a header, by its name in capitals or not, or the routing key if that is asked for by this name.
    pub fn ordering_key(&self, name: &str) -> Option<u64> {
        if name == "routing-key" {
            return Some(hash(self.routing_key.as_bytes()));
        }
        let table = self.headers()?.inner();
        // HTTP knows no capitals in names: what came through the publish API has none.
        let other_case = || table.iter().find(|(own, _)| own.as_str().eq_ignore_ascii_case(name));
        match table.get(name).or_else(|| other_case().map(|(_, value)| value))? {
            AMQPValue::LongString(value) => Some(hash(value.as_bytes())),
            AMQPValue::ShortString(value) => Some(hash(value.as_str().as_bytes())),
            other => as_integer(other).map(|value| hash(&value.to_be_bytes())),
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// A header as text, if it is UTF-8 text.
pub fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    match table.inner().get(name)? {
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok(),
        AMQPValue::ShortString(value) => Some(value.as_str()),
        _ => None,
    }
}

/// A header as a number, if it is an integer of any size.
pub fn integer(table: &FieldTable, name: &str) -> Option<i64> {
    as_integer(table.inner().get(name)?)
}

fn as_integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongInt(n) => Some(i64::from(*n)),
        AMQPValue::LongUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongLongInt(n) => Some(*n),
        AMQPValue::Boolean(_)
        | AMQPValue::Float(_)
        | AMQPValue::Double(_)
        | AMQPValue::DecimalValue(_)
        | AMQPValue::ShortString(_)
        | AMQPValue::LongString(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::Timestamp(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => None,
    }
}

/// An id for a message that came without one.
pub fn fresh_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, AMQPValue)]) -> Message {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        let properties = BasicProperties::default().with_headers(table);
        Message::new("shop".into(), "order.new".into(), false, properties, Bytes::new())
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn a_copy_shows_where_the_original_was_published_and_what_it_has_used() {
        let message = with(&[
            (headers::ORIGIN_EXCHANGE, long("first")),
            (headers::ORIGIN_ROUTING_KEY, long("key")),
            (headers::ATTEMPTS, AMQPValue::LongInt(3)),
        ]);
        assert_eq!(
            (message.exchange.as_str(), message.routing_key.as_str(), message.attempts),
            ("first", "key", 3)
        );
    }

    #[test]
    fn a_message_that_was_dead_starts_anew() {
        let message =
            with(&[(headers::ATTEMPTS, AMQPValue::LongInt(24)), (headers::DEAD_REASON, long("rejected"))]);
        assert_eq!(message.attempts, 0);
    }

    #[test]
    fn contradictory_headers_are_taken_as_none() {
        let message =
            with(&[(headers::ATTEMPTS, long("three")), (headers::ORIGIN_EXCHANGE, AMQPValue::Boolean(true))]);
        assert_eq!((message.attempts, message.exchange.as_str()), (0, "shop"));
        assert_eq!(with(&[(headers::ATTEMPTS, AMQPValue::LongInt(-7))]).attempts, 0);
    }

    #[test]
    fn the_ordering_key_is_a_header_or_the_routing_key() {
        let message = with(&[("x-customer", long("7")), ("x-number", AMQPValue::LongInt(7))]);
        assert!(message.ordering_key("x-customer").is_some());
        assert!(message.ordering_key("x-number").is_some());
        assert!(message.ordering_key("routing-key").is_some());
        assert_eq!(message.ordering_key("x-other"), None);
        assert_eq!(message.ordering_key("X-Customer"), message.ordering_key("x-customer"));
        let both = with(&[("Key", long("1")), ("key", long("2"))]);
        assert_ne!(both.ordering_key("Key"), both.ordering_key("key"), "the exact name comes first");
    }
}
