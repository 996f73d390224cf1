//! A delivered message, with what Warren's own headers on it say.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use warren_api::headers;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::message::Delivery;
use warren_broker::lapin::types::{AMQPValue, FieldTable};

/// The quorum queue's own count of deliveries.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
/// The broker's own record of how a message came back, which is no header of its producer.
pub(crate) const DEATHS: &str = "x-death";

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
    /// Takes a delivery of a queue apart. One that the broker itself had dead-lettered there starts anew, too.
    pub fn from_delivery(delivery: Delivery, queue: &str) -> Self {
        let Delivery { exchange, routing_key, redelivered, properties, data, .. } = delivery;
        let message = Self::new(exchange.into(), routing_key.into(), redelivered, properties, data.into());
        let replayed = message.headers().is_some_and(|table| has_died_in(table, queue));
        Self { attempts: if replayed { 0 } else { message.attempts }, ..message }
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
        match Scalar::of(table.get(name).or_else(|| other_case().map(|(_, value)| value))?)? {
            Scalar::Bytes(bytes) => Some(hash(bytes)),
            plain => plain.text().map(|text| hash(text.as_bytes())),
        }
    }
}

/// What a header's value says, where that is one plain thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A boolean.
    Flag(bool),
    /// An integer of any size, or a time in seconds since 1970.
    Integer(i64),
    /// A number that is finite.
    Float(f64),
    /// Text.
    Text(&'a str),
    /// Bytes that are no text.
    Bytes(&'a [u8]),
}

impl<'a> Scalar<'a> {
    /// A value's; none for lists, tables, decimals, nothing, and what is no finite number.
    pub fn of(value: &'a AMQPValue) -> Option<Self> {
        let bytes = |bytes| std::str::from_utf8(bytes).map_or(Self::Bytes(bytes), Self::Text);
        let float = |float: f64| float.is_finite().then_some(Self::Float(float));
        match value {
            AMQPValue::Boolean(flag) => Some(Self::Flag(*flag)),
            AMQPValue::ShortShortInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::ShortShortUInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::ShortInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::ShortUInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::LongInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::LongUInt(n) => Some(Self::Integer(i64::from(*n))),
            AMQPValue::LongLongInt(n) => Some(Self::Integer(*n)),
            AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok().map(Self::Integer),
            // By way of its digits: 0.1 stays 0.1.
            AMQPValue::Float(value) => value.to_string().parse().ok().and_then(float),
            AMQPValue::Double(value) => float(*value),
            AMQPValue::ShortString(text) => Some(Self::Text(text.as_str())),
            AMQPValue::LongString(text) => Some(bytes(text.as_bytes())),
            AMQPValue::ByteArray(array) => Some(Self::Bytes(array.as_slice())),
            AMQPValue::DecimalValue(_)
            | AMQPValue::FieldArray(_)
            | AMQPValue::FieldTable(_)
            | AMQPValue::Void => None,
        }
    }

    /// As text, which bytes are not.
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Flag(flag) => Some(if flag { "true" } else { "false" }.into()),
            Self::Integer(integer) => Some(integer.to_string().into()),
            Self::Float(float) => Some(float.to_string().into()),
            Self::Text(text) => Some(text.into()),
            Self::Bytes(_) => None,
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
    match Scalar::of(table.inner().get(name)?)? {
        Scalar::Text(text) => Some(text),
        Scalar::Flag(_) | Scalar::Integer(_) | Scalar::Float(_) | Scalar::Bytes(_) => None,
    }
}

/// A header as a number, if it is an integer of any size.
pub fn integer(table: &FieldTable, name: &str) -> Option<i64> {
    match Scalar::of(table.inner().get(name)?)? {
        Scalar::Integer(integer) => Some(integer),
        Scalar::Flag(_) | Scalar::Float(_) | Scalar::Text(_) | Scalar::Bytes(_) => None,
    }
}

/// Whether the broker has dead-lettered a message from a queue, such as over its delivery limit. No copy tells of that
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
fn has_died_in(table: &FieldTable, queue: &str) -> bool {
    let Some(AMQPValue::FieldArray(deaths)) = table.inner().get(DEATHS) else { return false };
    let of_queue = |death: &AMQPValue| matches!(death, AMQPValue::FieldTable(death) if text(death, "queue") == Some(queue));
    deaths.as_slice().iter().any(of_queue)
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
        let mut death = FieldTable::default();
        death.insert("queue".into(), long("orders"));
        let by_broker =
            with(&[("x-death", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()))]);
        let died_in = |queue| has_died_in(by_broker.headers().unwrap(), queue);
        assert!(died_in("orders") && !died_in("orders.retry.5s"));
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

    #[test]
    fn every_plain_value_is_an_ordering_key_and_the_same_value_of_another_type_the_same_one() {
        let key = |value: AMQPValue| with(&[("key", value)]).ordering_key("key");
        assert!(key(AMQPValue::Boolean(true)).is_some_and(|key| Some(key) != key_of("false")));
        assert_eq!(key(AMQPValue::Timestamp(1_700_000_000)), key_of("1700000000"));
        assert_eq!(key(AMQPValue::LongLongInt(-7)), key_of("-7"));
        assert_eq!(key(AMQPValue::Float(0.1)), key(AMQPValue::Double(0.1)));
        assert_eq!(
            key(AMQPValue::ByteArray(vec![0xFF].into())),
            key(AMQPValue::LongString(vec![0xFF].into()))
        );
        assert_eq!(key(AMQPValue::Double(f64::NAN)), None);
        assert_eq!(key(AMQPValue::Void), None);
    }

    fn key_of(text: &str) -> Option<u64> {
        with(&[("key", long(text))]).ordering_key("key")
    }

    #[test]
    fn a_message_without_a_delivery_mode_may_be_lost_as_one_that_says_so() {
        let transient = |mode: Option<u8>| {
            let properties = BasicProperties::default();
            let properties = mode.map_or(properties.clone(), |mode| properties.with_delivery_mode(mode));
            Message::new(String::new(), String::new(), false, properties, Bytes::new()).is_transient()
        };
        assert_eq!([None, Some(1), Some(2)].map(transient), [true, true, false]);
    }
}
