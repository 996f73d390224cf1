//! What callers of the publish API send, parsed into a message: foreign bytes, so every mistake is an answer and none a crash.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use percent_encoding::percent_decode_str;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use warren_api::headers as names;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::amqp::line::Letter;
use crate::handler::trace;
use crate::message::fresh_id;

/// Headers and properties must fit one frame, whatever its size.
const HEADERS: usize = 24 * 1024;

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A field cannot be sent.
    #[error("{field} {problem}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A line of a batch is no message.
    #[error("the line is no message: {0}")]
    Line(String),
    /// The headers are too many.
    #[error("headers and properties have {0} bytes, more than {HEADERS}")]
    TooLarge(usize),
}

fn invalid(field: &str, problem: &'static str) -> Invalid {
    Invalid::Field { field: field.to_owned(), problem }
}

fn short(field: &str, value: &str) -> Result<ShortString, Invalid> {
    ShortString::try_new(value).map_err(|_| invalid(field, "is longer than 255 bytes"))
}

/// A message of `POST /publish`: exchange and routing key in the query, everything else in headers.
///
/// # Errors
/// What cannot be sent.
pub fn single(query: &str, headers: &HeaderMap, body: Bytes) -> Result<Letter, Invalid> {
    let mut given = Given::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(&value.replace('+', " "))
            .decode_utf8()
            .map_err(|_| invalid(name, "is not UTF-8"))?
            .into_owned();
        match name {
            "exchange" => given.exchange = value,
            "routingKey" => given.routing_key = value,
            other => return Err(invalid(other, "is no parameter: here are exchange and routingKey")),
        }
    }
    let mut states = Vec::new();
    for (name, value) in headers {
        let name = name.as_str();
        let plain = |problem| value.to_str().map_err(|_| invalid(name, problem));
        // What HTTP itself or another standard defines is meant as it is written.
        let standard = || plain("is not ASCII").map(str::to_owned);
        let text = || -> Result<String, Invalid> {
            let value = plain("is not ASCII: percent-encode it")?;
            let decoded =
                percent_decode_str(value).decode_utf8().map_err(|_| invalid(name, "is not UTF-8"))?;
            Ok(decoded.into_owned())
        };
        match name {
            names::MESSAGE_ID => given.message_id = Some(text()?),
            names::CORRELATION_ID => given.correlation_id = Some(text()?),
            names::REPLY_TO => given.reply_to = Some(text()?),
            names::EXPIRATION => given.expiration = Some(text()?),
            names::PRIORITY => {
                given.priority =
                    Some(text()?.parse().map_err(|_| invalid(name, "is no number from 0 to 255"))?);
            }
            trace::TRACEPARENT => {
                given.headers.insert(name.to_owned(), AMQPValue::LongString(standard()?.into()));
            }
            // Its entries may come in several lines (W3C Trace Context, 3.3.1).
            trace::TRACESTATE => states.push(standard()?),
            _ if name == CONTENT_TYPE.as_str() => given.content_type = Some(standard()?),
            _ if name == CONTENT_ENCODING.as_str() => given.content_encoding = Some(standard()?),
            _ => {
                if let Some(own) = name.strip_prefix(names::HEADER_PREFIX) {
                    given.headers.insert(own.to_owned(), AMQPValue::LongString(text()?.into()));
                }
            }
        }
    }
    if !states.is_empty() {
        let states = AMQPValue::LongString(states.join(",").into());
        given.headers.insert(trace::TRACESTATE.to_owned(), states);
    }
    given.outgoing(body)
}

/// A line of `POST /publish/batch`.
///
/// # Errors
/// What cannot be read or sent.
pub fn line(line: &[u8]) -> Result<Letter, Invalid> {
    let mut given: Given<'_> =
        serde_json::from_slice(line).map_err(|error| Invalid::Line(error.to_string()))?;
    let body = match (given.text.take(), given.base64.take(), given.json.take()) {
        (Some(text), None, None) => text.into_bytes(),
        (None, Some(base64), None) => {
            STANDARD.decode(base64).map_err(|_| invalid("base64", "is not Base64"))?
        }
        (None, None, Some(json)) => {
            given.content_type.get_or_insert_with(|| "application/json".to_owned());
            json.get().as_bytes().to_vec()
        }
        (None, None, None) => {
            return Err(invalid("the body", "is missing: give one of text, base64 and json"));
        }
        _ => return Err(invalid("the body", "is given twice: use one of text, base64 and json")),
    };
    given.outgoing(body.into())
}

/// A message as given: by a line of a batch, or by query and headers, which have its body elsewhere.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Given<'a> {
    exchange: String,
    routing_key: String,
    text: Option<String>,
    base64: Option<String>,
    /// As it is written: parsed, it would lose digits, the order of its fields and what is there twice. `null` is a body too.
    #[serde(borrow, deserialize_with = "also_null")]
    json: Option<&'a RawValue>,
    message_id: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    expiration: Option<String>,
    priority: Option<u8>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    #[serde(deserialize_with = "own_headers")]
    headers: BTreeMap<String, AMQPValue>,
}

fn also_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

fn own_headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, AMQPValue>, D::Error> {
    let written = BTreeMap::<String, &RawValue>::deserialize(deserializer)?;
    let own = written.into_iter().map(|(name, value)| match own_header(&name, value) {
        Ok(value) => Ok((name, value)),
        Err(error) => Err(D::Error::custom(error)),
    });
    own.collect()
}

/// A header of a line: text, a number or a boolean.
fn own_header(name: &str, written: &RawValue) -> Result<AMQPValue, Invalid> {
    let written = written.get();
    match serde_json::from_str(written) {
        Ok(Value::String(text)) => Ok(AMQPValue::LongString(text.into())),
        Ok(Value::Bool(value)) => Ok(AMQPValue::Boolean(value)),
        Ok(Value::Number(number)) => match (written.parse(), number.as_f64()) {
            (Ok(integer), _) => Ok(AMQPValue::LongLongInt(integer)),
            (Err(_), Some(float)) if written.contains(['.', 'e', 'E']) => Ok(AMQPValue::Double(float)),
            (Err(_), _) => Err(invalid(name, "is an integer beyond a signed 64-bit one: give it as text")),
        },
        Ok(Value::Null | Value::Array(_) | Value::Object(_)) | Err(_) => {
            Err(invalid(name, "is no header value: use text, a number or a boolean"))
        }
    }
}

impl Given<'_> {
    fn outgoing(self, body: Bytes) -> Result<Letter, Invalid> {
        let mut size = 0;
        let mut table = FieldTable::default();
        for (name, value) in self.headers {
            let name = name.as_str();
            size += name.len() + if let AMQPValue::LongString(text) = &value { text.len() } else { 8 } + 8;
            if name.starts_with("warren-") {
                return Err(invalid(name, "is Warren's own"));
            }
            // The broker routes by these two, spelled so. Given anything but a list it closes the channel under everybody.
            if matches!(name, "CC" | "BCC") {
                return Err(invalid(
                    name,
                    "names further queues to the broker: publish to each of them, or to an exchange",
                ));
            }
            table.insert(short(name, name)?, value);
        }
        if size > HEADERS {
            return Err(Invalid::TooLarge(size));
        }
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if !table.inner().is_empty() {
            properties = properties.with_headers(table);
        }
        let id = self.message_id.filter(|id| !id.is_empty()).unwrap_or_else(fresh_id);
        properties = properties.with_message_id(short(names::MESSAGE_ID, &id)?);
        if let Some(expiration) = &self.expiration {
            if expiration.parse::<u32>().is_err() {
                return Err(invalid(names::EXPIRATION, "is no number of milliseconds"));
            }
            properties = properties.with_expiration(short(names::EXPIRATION, expiration)?);
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        if let Some(value) = &self.correlation_id {
            properties = properties.with_correlation_id(short(names::CORRELATION_ID, value)?);
        }
        if let Some(value) = &self.reply_to {
            // The broker closes the channel under everybody where the channel does not consume from it itself.
            if value == "amq.rabbitmq.reply-to" {
                return Err(invalid(
                    names::REPLY_TO,
                    "asks for replies on the very channel that publishes: name a queue of your own",
                ));
            }
            properties = properties.with_reply_to(short(names::REPLY_TO, value)?);
        }
        if let Some(value) = &self.content_type {
            properties = properties.with_content_type(short("content-type", value)?);
        }
        if let Some(value) = &self.content_encoding {
            properties = properties.with_content_encoding(short("content-encoding", value)?);
        }
        Ok(Letter {
            exchange: short("exchange", &self.exchange)?,
            routing_key: short("routingKey", &self.routing_key)?,
            properties,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn headers_become_properties_and_headers() {
        let headers = headers(&[
            ("warren-message-id", "m-1"),
            ("warren-priority", "3"),
            ("warren-correlation-id", "c"),
            ("warren-reply-to", "r"),
            ("warren-expiration", "5000"),
            ("warren-header-x-customer", "Zo%C3%AB"),
            ("content-type", "text/plain"),
            ("user-agent", "curl"),
        ]);
        let out = single("exchange=shop.events&routingKey=order%2Enew", &headers, Bytes::new()).unwrap();
        assert_eq!((out.exchange.as_str(), out.routing_key.as_str()), ("shop.events", "order.new"));
        assert_eq!(out.message_id(), "m-1");
        assert_eq!(*out.properties.delivery_mode(), Some(2));
        assert_eq!(*out.properties.priority(), Some(3));
        let table = out.properties.headers().as_ref().unwrap();
        assert_eq!(crate::message::text(table, "x-customer"), Some("Zoë"));
        assert_eq!(table.inner().len(), 1);
    }

    #[test]
    fn what_another_standard_defines_is_published_as_it_is_written() {
        let headers = headers(&[
            ("content-type", "text/plain; title=%41"),
            ("tracestate", "v=%41%"),
            ("tracestate", "w=1"),
            ("warren-header-own", "%41"),
        ]);
        let out = single("routingKey=q", &headers, Bytes::new()).unwrap();
        assert_eq!(out.properties.content_type().as_ref().unwrap().as_str(), "text/plain; title=%41");
        let table = out.properties.headers().as_ref().unwrap();
        assert_eq!(crate::message::text(table, "tracestate"), Some("v=%41%,w=1"));
        assert_eq!(crate::message::text(table, "own"), Some("A"));
    }

    #[test]
    fn a_message_without_an_id_gets_a_random_one() {
        let first = single("routingKey=q", &HeaderMap::new(), Bytes::new()).unwrap();
        let second = single("routingKey=q", &HeaderMap::new(), Bytes::new()).unwrap();
        assert_eq!(first.message_id().len(), 32);
        assert_ne!(first.message_id(), second.message_id());
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_name() {
        for (query, pairs) in [
            ("routingkey=q", &[][..]),
            ("routingKey=%FF", &[]),
            ("routingKey=q", &[("warren-priority", "300")]),
            ("routingKey=q", &[("warren-expiration", "soon")]),
            ("routingKey=q", &[("warren-header-warren-attempts", "1")]),
        ] {
            assert!(single(query, &headers(pairs), Bytes::new()).is_err(), "{query} {pairs:?}");
        }
        let long = "x".repeat(300);
        assert!(single(&format!("routingKey={long}"), &HeaderMap::new(), Bytes::new()).is_err());
        let huge = "x".repeat(30_000);
        assert!(matches!(
            single("routingKey=q", &headers(&[("warren-header-a", &huge)]), Bytes::new()),
            Err(Invalid::TooLarge(_))
        ));
    }

    #[test]
    fn a_line_carries_text_base64_or_json() {
        let body = |line: &[u8]| super::line(line).unwrap().body;
        assert_eq!(body(br#"{"routingKey":"q","text":"hi"}"#), "hi");
        assert_eq!(body(br#"{"routingKey":"q","base64":"/w=="}"#), [0xFF][..]);
        assert_eq!(body(br#"{"routingKey":"q","json":{"a":1}}"#), r#"{"a":1}"#);
        assert!(line(br#"{"routingKey":"q","text":"a","json":1}"#).is_err());
    }

    #[test]
    fn a_line_without_a_body_or_with_a_field_that_is_none_is_refused_by_name() {
        for (bad, named) in [
            (r#"{"routingKey":"q"}"#, "text, base64 and json"),
            (r#"{"routingKey":"q","text":null}"#, "text, base64 and json"),
            (r#"{"routingKey":"q","body":{"a":1}}"#, "`body`"),
            (r#"{"routingKey":"q","text":"a","messageid":"1"}"#, "`messageid`"),
        ] {
            let refused = line(bad.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(named), "{refused}");
        }
        assert_eq!(line(br#"{"routingKey":"q","text":""}"#).unwrap().body, "");
    }

    #[test]
    fn the_json_of_a_line_is_published_as_it_is_written() {
        for json in [
            "12345678901234567890123",
            "0.10000000000000000555",
            r#"{ "z": 1.0, "a": 1, "a": 2 }"#,
            r#""\u00e9""#,
            "null",
        ] {
            let letter = line(format!(r#"{{"routingKey":"q","json": {json} }}"#).as_bytes()).unwrap();
            assert_eq!(letter.body, json);
            assert_eq!(letter.properties.content_type().as_ref().unwrap().as_str(), "application/json");
        }
        let other = line(br#"{"routingKey":"q","json":1,"contentType":"application/ld+json"}"#).unwrap();
        assert_eq!(other.properties.content_type().as_ref().unwrap().as_str(), "application/ld+json");
    }

    #[test]
    fn a_header_of_a_line_keeps_its_type_and_an_integer_that_would_lose_digits_is_refused() {
        let header = |value: &str| {
            let letter = line(format!(r#"{{"text":"","headers":{{"own": {value}}}}}"#).as_bytes())?;
            Ok::<_, Invalid>(letter.properties.headers().as_ref().unwrap().inner()["own"].clone())
        };
        assert_eq!(header("9223372036854775807").unwrap(), AMQPValue::LongLongInt(i64::MAX));
        assert_eq!(header("-0").unwrap(), AMQPValue::LongLongInt(0));
        assert_eq!(header("1e3").unwrap(), AMQPValue::Double(1000.0));
        assert_eq!(header("true").unwrap(), AMQPValue::Boolean(true));
        assert_eq!(header(r#""a""#).unwrap(), AMQPValue::LongString("a".into()));
        for bad in ["9223372036854775808", "12345678901234567890123", "1e400", "[1]", "{}", "null"] {
            assert!(header(bad).unwrap_err().to_string().contains("own"), "{bad}");
        }
    }

    #[test]
    fn headers_that_the_broker_routes_by_are_refused_and_what_only_looks_like_them_is_not() {
        for name in ["CC", "BCC"] {
            let refused =
                line(format!(r#"{{"text":"","headers":{{"{name}":"a"}}}}"#).as_bytes()).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
        assert!(line(br#"{"text":"","headers":{"cc":"a@example.com"}}"#).is_ok());
    }

    #[test]
    fn direct_replies_are_refused_where_no_caller_can_get_them_and_answers_to_them_are_not() {
        let asks = |reply_to: &str| line(format!(r#"{{"text":"","replyTo":"{reply_to}"}}"#).as_bytes());
        assert!(asks("amq.rabbitmq.reply-to").unwrap_err().to_string().contains("a queue of your own"));
        assert!(asks("amq.rabbitmq.reply-to.g1h2").is_ok() && asks("replies").is_ok());
    }

    proptest! {
        #[test]
        fn foreign_lines_never_crash_it(bytes in any::<Vec<u8>>()) {
            let _ = line(&bytes);
        }

        /// Bytes at random hardly ever get past the JSON: these do, with any text or type in any field.
        #[test]
        fn almost_right_lines_neither_and_what_passes_is_what_was_given(
            field in prop::sample::select(vec![
                "exchange", "routingKey", "text", "base64", "json", "messageId", "expiration", "priority", "contentType", "headers",
            ]),
            text in ".{0,300}",
            number in any::<i64>(),
            kind in 0..4,
        ) {
            let value = match kind {
                0 => Value::from(text.as_str()),
                1 => Value::from(number),
                2 => Value::from(vec![text.as_str()]),
                _ => serde_json::json!({ text.as_str(): number }),
            };
            let bytes = serde_json::json!({ field: &value }).to_string();
            if let Ok(message) = line(bytes.as_bytes()) && field == "text" {
                prop_assert_eq!(Some(message.body.as_ref()), value.as_str().map(str::as_bytes));
            }
        }

        #[test]
        fn foreign_queries_and_headers_never_crash_it(query in ".{0,80}", value in "[ -~]{0,80}") {
            let headers = headers(&[("warren-header-a", &value), ("warren-priority", &value), ("warren-message-id", &value)]);
            let _ = single(&query, &headers, Bytes::new());
        }
    }
}
