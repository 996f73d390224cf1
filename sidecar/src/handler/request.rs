//! The request that carries one message: DESIGN's table of headers, built from a message without I/O.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use warren_api::headers as names;
use warren_broker::lapin::types::AMQPValue;

use super::trace::{self, Context};
use crate::message::{DEATHS, DELIVERY_COUNT, Message, Scalar};

/// Room for the message's own headers, in bytes.
const ROOM: usize = 8 * 1024;
/// How many of them there may be. Many servers take 100 headers in all and answer more with a 431 or 400, and up to 20 are ours
/// and HTTP's.
const OWN: usize = 64;
/// Room for the names of those that did not fit.
const OMITTED_ROOM: usize = 1024;

/// The end of the year 9999, in seconds since 1970.
const YEAR_10000: u64 = 253_402_300_800;

/// Bytes of a header value that are percent-encoded: controls, everything beyond ASCII, and the percent sign itself.
const VALUE: &AsciiSet = &CONTROLS.add(b'%');
/// The same for a name in the list of omitted ones, which commas separate.
const NAME: &AsciiSet = &VALUE.add(b',').add(b' ');

/// What is the same for every request.
#[derive(Clone, Debug)]
pub struct Constant {
    queue: HeaderValue,
    max_attempts: HeaderValue,
}

impl Constant {
    /// For messages of this queue.
    pub fn new(queue: &str, max_attempts: u32) -> Self {
        Self { queue: encoded(queue), max_attempts: HeaderValue::from(max_attempts) }
    }
}

/// A request's headers, and what had to be left out.
#[derive(Clone, Debug)]
pub struct Head {
    /// The headers.
    pub headers: HeaderMap,
    /// How many AMQP headers did not fit or cannot be said in HTTP.
    pub omitted: usize,
}

/// The headers for one message. `delivery` names it for an answer that comes later; `traceparent` the trace that the call belongs to.
pub fn head(message: &Message, delivery: &str, attempt: u32, constant: &Constant, traceparent: &str) -> Head {
    let properties = &message.properties;
    let ours = HeaderName::from_static;
    let mut headers = HeaderMap::with_capacity(24);
    headers.insert(ours(names::QUEUE), constant.queue.clone());
    headers.insert(ours(names::MAX_ATTEMPTS), constant.max_attempts.clone());
    headers.insert(ours(names::EXCHANGE), encoded(&message.exchange));
    headers.insert(ours(names::ROUTING_KEY), encoded(&message.routing_key));
    headers.insert(ours(names::DELIVERY_ID), encoded(delivery));
    headers.insert(ours(names::ATTEMPT), HeaderValue::from(attempt));
    let redelivered = if message.redelivered { "true" } else { "false" };
    headers.insert(ours(names::REDELIVERED), HeaderValue::from_static(redelivered));
    if let Some(id) = message.id() {
        let id = encoded(id);
        headers.insert(ours(names::MESSAGE_ID), id.clone());
        headers.insert(ours(names::IDEMPOTENCY_KEY), id);
    }
    for (name, value, say) in [
        (CONTENT_TYPE, properties.content_type(), standard as fn(&str) -> HeaderValue),
        (CONTENT_ENCODING, properties.content_encoding(), standard),
        (ours(names::CORRELATION_ID), properties.correlation_id(), encoded),
        (ours(names::REPLY_TO), properties.reply_to(), encoded),
    ] {
        if let Some(value) = value {
            headers.insert(name, say(value.as_str()));
        }
    }
    if let Some(timestamp) = properties.timestamp() {
        headers.insert(ours(names::TIMESTAMP), HeaderValue::from(*timestamp));
    }
    if let Some(priority) = properties.priority() {
        headers.insert(ours(names::PRIORITY), HeaderValue::from(u16::from(*priority)));
    }
    if let Some(count) = message.delivery_count() {
        headers.insert(ours(names::DELIVERY_COUNT), HeaderValue::from(count));
    }
    headers.insert(HeaderName::from_static(trace::TRACEPARENT), standard(traceparent));
    let omitted = own_headers(message, &mut headers);
    Head { headers, omitted }
}

/// Whether a header is Warren's, the broker's or the trace's, and no handler is handed it as one of the message's own.
pub(super) fn is_no_own_header(name: &str) -> bool {
    name.starts_with("warren-") || matches!(name, trace::TRACEPARENT | DELIVERY_COUNT | DEATHS)
}

/// The message's own headers: those that are text, numbers or booleans, under names that HTTP allows, while they fit.
fn own_headers(message: &Message, headers: &mut HeaderMap) -> usize {
    let Some(table) = message.headers() else { return 0 };
    let (mut room, mut places) = (ROOM, OWN);
    let mut omitted = Vec::new();
    for (name, value) in table.inner() {
        let name = name.as_str();
        if is_no_own_header(name) {
            continue;
        }
        let (target, value) = if name == trace::TRACESTATE {
            if Context::of(message).is_none() {
                // It belongs to a trace that is not there: the standard has it discarded.
                continue;
            }
            (name.to_owned(), message.header(name).map(standard))
        } else if let Some(attribute) = cloud_event(name) {
            let value = match value {
                AMQPValue::Timestamp(seconds) => {
                    rfc_3339(*seconds).and_then(|time| HeaderValue::try_from(time).ok())
                }
                value => plain(value),
            };
            (format!("ce-{attribute}"), value)
        } else {
            (format!("{}{name}", names::HEADER_PREFIX), plain(value))
        };
        match (HeaderName::try_from(target).ok(), value) {
            (Some(target), Some(value)) if places > 0 && target.as_str().len() + value.len() <= room => {
                room -= target.as_str().len() + value.len();
                places -= 1;
                headers.append(target, value);
            }
            (Some(_) | None, _) => omitted.push(name),
        }
    }
    if !omitted.is_empty() {
        let mut list = String::new();
        for name in &omitted {
            let name = utf8_percent_encode(name, NAME).to_string();
            if list.len() + name.len() + 1 > OMITTED_ROOM {
                break;
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&name);
        }
        // Encoded already, name by name.
        if let Ok(list) = HeaderValue::try_from(list) {
            headers.insert(HeaderName::from_static(names::HEADERS_OMITTED), list);
        }
    }
    omitted.len()
}

/// The attribute of a `CloudEvents` header: both spellings of the AMQP binding's prefix.
fn cloud_event(name: &str) -> Option<&str> {
    name.strip_prefix("cloudEvents:").or_else(|| name.strip_prefix("cloudEvents_"))
}

/// A time as `CloudEvents` says it in HTTP, until the year 9999
/// (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#type-system>).
fn rfc_3339(seconds: u64) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let since_1970 = Some(seconds).filter(|seconds| *seconds < YEAR_10000).map(Duration::from_secs)?;
    // Such as "Sun, 06 Nov 1994 08:49:37 GMT".
    let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since_1970);
    let mut parts = date.split(' ').skip(1);
    let (day, month, year, clock) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    Some(format!("{year}-{month:02}-{day}T{clock}Z"))
}

fn plain(value: &AMQPValue) -> Option<HeaderValue> {
    Scalar::of(value)?.text().map(|text| encoded(&text))
}

/// The value of a header that HTTP or another standard defines: as it is, where HTTP allows that.
fn standard(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| encoded(value))
}

/// A value as HTTP allows it: percent-encoded UTF-8, which plain ASCII text is already.
pub(crate) fn encoded(value: &str) -> HeaderValue {
    let inner = value.trim_matches(' ');
    if inner.len() < value.len() {
        // Blanks at either end are no part of a value to HTTP.
        let end = value.len() - value.trim_end_matches(' ').len();
        let (begin, end) = ("%20".repeat(value.len() - inner.len() - end), "%20".repeat(end));
        return HeaderValue::try_from(format!("{begin}{}{end}", utf8_percent_encode(inner, VALUE)))
            .unwrap_or_else(|_| HeaderValue::from_static(""));
    }
    let value = Cow::from(utf8_percent_encode(value, VALUE));
    HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use warren_broker::lapin::BasicProperties;
    use warren_broker::lapin::types::FieldTable;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn message(properties: BasicProperties) -> Message {
        Message::new("shop.events".into(), "order.new".into(), true, properties, Bytes::new())
    }

    fn headers_of(message: &Message) -> (HeaderMap, usize) {
        let head = head(message, "0-1-1", 2, &Constant::new("orders", 24), TRACE);
        (head.headers, head.omitted)
    }

    fn table(pairs: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in pairs {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn every_header_of_the_table_is_there() {
        let of_the_broker =
            [(DELIVERY_COUNT, AMQPValue::LongLongInt(1)), (DEATHS, AMQPValue::FieldArray(vec![].into()))];
        let properties = table(&of_the_broker)
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_message_id("m-1".into())
            .with_timestamp(1_700_000_000)
            .with_correlation_id("c-1".into())
            .with_reply_to("answers".into())
            .with_priority(3);
        let (headers, omitted) = headers_of(&message(properties));
        for (name, value) in [
            ("warren-queue", "orders"),
            ("warren-exchange", "shop.events"),
            ("warren-routing-key", "order.new"),
            ("warren-message-id", "m-1"),
            ("idempotency-key", "m-1"),
            ("warren-attempt", "2"),
            ("warren-delivery-id", "0-1-1"),
            ("warren-max-attempts", "24"),
            ("warren-redelivered", "true"),
            ("warren-delivery-count", "1"),
            ("warren-timestamp", "1700000000"),
            ("warren-correlation-id", "c-1"),
            ("warren-reply-to", "answers"),
            ("warren-priority", "3"),
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("traceparent", TRACE),
        ] {
            assert_eq!(headers.get(name).unwrap(), value, "{name}");
        }
        assert_eq!(omitted, 0);
    }

    #[test]
    fn a_message_without_properties_has_no_headers_about_them() {
        let (headers, _) = headers_of(&message(BasicProperties::default()));
        for name in [
            "warren-message-id",
            "idempotency-key",
            "content-type",
            "warren-priority",
            "warren-headers-omitted",
        ] {
            assert_eq!(headers.get(name), None, "{name}");
        }
    }

    #[test]
    fn text_numbers_and_booleans_go_along_percent_encoded() {
        let properties = table(&[
            ("x-customer", long("Zoë 100%")),
            ("count", AMQPValue::LongInt(-3)),
            ("ratio", AMQPValue::Double(0.5)),
            ("tenth", AMQPValue::Float(0.1)),
            ("vip", AMQPValue::Boolean(true)),
        ]);
        let (headers, _) = headers_of(&message(properties));
        assert_eq!(headers.get("warren-header-tenth").unwrap(), "0.1");
        assert_eq!(headers.get("warren-header-x-customer").unwrap(), "Zo%C3%AB 100%25");
        assert_eq!(headers.get("warren-header-count").unwrap(), "-3");
        assert_eq!(headers.get("warren-header-ratio").unwrap(), "0.5");
        assert_eq!(headers.get("warren-header-vip").unwrap(), "true");
    }

    #[test]
    fn what_another_standard_defines_goes_along_as_it_is_where_http_allows_it() {
        let sent = |content_type: &str| {
            let properties = BasicProperties::default().with_content_type(content_type.into());
            headers_of(&message(properties)).0["content-type"].clone()
        };
        assert_eq!(sent("text/plain; title=50%"), "text/plain; title=50%");
        assert_eq!(sent("text/\u{e9}\n"), "text/%C3%A9%0A");
    }

    #[test]
    fn blanks_at_either_end_of_a_value_arrive() {
        for (value, sent) in [(" a b  ", "%20a b%20%20"), ("  ", "%20%20"), ("a b", "a b")] {
            assert_eq!(encoded(value), sent, "{value:?}");
        }
    }

    #[test]
    fn what_http_cannot_say_and_what_does_not_fit_is_named() {
        let properties = table(&[
            ("a b", long("name with a blank")),
            ("bytes", AMQPValue::ByteArray(vec![1].into())),
            ("huge", long(&"x".repeat(60_000))),
            ("latin", AMQPValue::LongString(vec![0xE9].into())),
            ("ratio", AMQPValue::Double(f64::NAN)),
            ("small", long("fits")),
        ]);
        let (headers, omitted) = headers_of(&message(properties));
        assert_eq!(omitted, 5);
        assert_eq!(headers.get("warren-headers-omitted").unwrap(), "a%20b,bytes,huge,latin,ratio");
        assert_eq!(headers.get("warren-header-small").unwrap(), "fits");
    }

    #[test]
    fn tracestate_goes_along_with_its_trace_and_not_with_a_new_one() {
        let trace = ("traceparent", long(TRACE));
        let state = ("tracestate", long("vendor=1"));
        let state_of = |pairs: &[(&str, AMQPValue)]| {
            let message = message(table(pairs));
            let constant = Constant::new("orders", 24);
            let head = head(&message, "0-1-1", 1, &constant, TRACE);
            assert_eq!(head.omitted, 0);
            head.headers.get("tracestate").cloned()
        };
        assert_eq!(state_of(&[trace.clone(), state.clone()]).unwrap(), "vendor=1");
        assert_eq!(state_of(&[trace, ("tracestate", long("v=50%"))]).unwrap(), "v=50%");
        assert_eq!(state_of(std::slice::from_ref(&state)), None);
        assert_eq!(state_of(&[("traceparent", long("00-no-trace-01")), state]), None);
    }

    #[test]
    fn cloud_events_attributes_become_ce_headers() {
        let properties = table(&[("cloudEvents:id", long("1")), ("cloudEvents_source", long("/s"))]);
        let (headers, _) = headers_of(&message(properties));
        assert_eq!(headers.get("ce-id").unwrap(), "1");
        assert_eq!(headers.get("ce-source").unwrap(), "/s");
    }

    #[test]
    fn a_time_in_cloud_events_is_said_as_http_says_it_there() {
        let time = |seconds| {
            let properties = table(&[
                ("cloudEvents:time", AMQPValue::Timestamp(seconds)),
                ("own", AMQPValue::Timestamp(seconds)),
            ]);
            let headers = headers_of(&message(properties)).0;
            let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text("ce-time"), text("warren-header-own"))
        };
        let both = |time: &str, own: &str| (Some(time.to_owned()), Some(own.to_owned()));
        assert_eq!(time(784_111_777), both("1994-11-06T08:49:37Z", "784111777"));
        assert_eq!(time(0), both("1970-01-01T00:00:00Z", "0"));
        assert_eq!(time(YEAR_10000 - 1), both("9999-12-31T23:59:59Z", "253402300799"));
        assert_eq!(time(YEAR_10000), (None, Some("253402300800".to_owned())));
    }

    #[test]
    fn a_server_that_takes_a_hundred_headers_takes_every_message() {
        let many: Vec<(String, AMQPValue)> = (10..99).map(|n| (format!("h{n}"), long("x"))).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let (headers, omitted) = headers_of(&message(table(&many)));
        assert_eq!(omitted, many.len() - OWN);
        let named = headers.get("warren-headers-omitted").unwrap().to_str().unwrap();
        assert!(named.starts_with("h74,h75,") && named.ends_with(",h98"), "{named}");
        // With every property there are nine more, and `host` and `content-length`.
        assert!(headers.len() + 11 < 100, "{}", headers.len());
    }

    proptest! {
        #[test]
        fn no_header_crashes_it_or_exceeds_the_room(
            pairs in prop::collection::vec((".{0,60}", prop::collection::vec(any::<u8>(), 0..3000)), 0..40)
        ) {
            let mut table = FieldTable::default();
            for (name, value) in pairs {
                table.insert(crate::copy::short(&name), AMQPValue::LongString(value.into()));
            }
            let (headers, _) = headers_of(&message(BasicProperties::default().with_headers(table)));
            let own: usize = headers
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("warren-header-"))
                .map(|(name, value)| name.as_str().len() + value.len())
                .sum();
            prop_assert!(own <= ROOM);
        }
    }
}
