//! The properties of a copy that goes to the retry or dead-letter queue: everything of the original but what would lose the
//! copy, multiply it, or make the broker take it for a cycle.

use std::collections::BTreeMap;

use http::HeaderValue;
use warren_api::headers;
use warren_broker::lapin::BasicProperties;
use warren_broker::lapin::protocol::basic::gen_properties;
use warren_broker::lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::core::Copy;
use crate::handler::trace::TRACEPARENT;
use crate::inbox::ReplyBody;
use crate::message::{DEATHS, DELIVERY_COUNT, Message};

/// The longest text of why a message is dead: header frames have a size limit.
const LONGEST_DETAIL: usize = 1024;

/// What a header frame has besides the properties, rounded up: its own head and end, the class and the body's size.
const FRAME_OVERHEAD: usize = 64;

/// Headers that the broker sets or acts on, which a copy must not carry.
fn is_dropped(name: &str) -> bool {
    matches!(name, "CC" | "BCC" | DEATHS | DELIVERY_COUNT)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
        || matches!(name, headers::DEAD_REASON | headers::DEAD_DETAIL | headers::ORIGIN_QUEUE)
}

/// The properties of a copy of `message`, which was consumed from `queue`. A message without an id gets `fresh_id`, so that
/// the handler can tell its attempts from other messages.
pub fn properties(
    message: &Message,
    copy: &Copy,
    queue: &str,
    fresh_id: impl FnOnce() -> String,
) -> BasicProperties {
    let original = &message.properties;
    let mut table = FieldTable::default();
    if let Some(given) = original.headers() {
        for (name, value) in given.inner() {
            if !is_dropped(name.as_str()) {
                table.insert(name.clone(), value.clone());
            }
        }
    }
    set_text_once(&mut table, headers::ORIGIN_EXCHANGE, &message.exchange);
    set_text_once(&mut table, headers::ORIGIN_ROUTING_KEY, &message.routing_key);
    if let Some(expiration) = original.expiration() {
        set_text_once(&mut table, headers::ORIGINAL_EXPIRATION, expiration.as_str());
    }
    if let Some(user) = original.user_id() {
        set_text_once(&mut table, headers::ORIGINAL_USER_ID, user.as_str());
    }
    match copy {
        Copy::Retry { attempts, .. } => set_attempts(&mut table, *attempts),
        Copy::Dead { reason, detail, attempts } => {
            set_attempts(&mut table, *attempts);
            set_text(&mut table, headers::DEAD_REASON, reason.as_str());
            set_text(&mut table, headers::DEAD_DETAIL, cut(detail, LONGEST_DETAIL));
            set_text(&mut table, headers::ORIGIN_QUEUE, queue);
        }
        Copy::Reply => {}
    }
    let id = message.id().map_or_else(fresh_id, str::to_owned);
    let mut properties =
        BasicProperties::default().with_headers(table).with_delivery_mode(2).with_message_id(short(&id));
    macro_rules! keep {
        ($($get:ident $with:ident),*) => {
            $(if let Some(value) = original.$get() { properties = properties.$with(value.clone()); })*
        };
    }
    keep!(
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, reply_to with_reply_to, timestamp with_timestamp, kind with_type,
        app_id with_app_id, cluster_id with_cluster_id
    );
    properties
}

/// The properties, if they fit a frame of so many bytes; else without what can be done without: the detail of a death first,
/// then the longest headers, which are named in [`headers::HEADERS_DROPPED`]. A message that came in one frame is too large for
/// one only by what Warren adds, and would otherwise never leave the queue.
pub fn fitting(properties: BasicProperties, frame: usize) -> BasicProperties {
    let Some(table) = properties.headers().clone().filter(|_| !fits(&properties, frame)) else {
        return properties;
    };
    let mut left: BTreeMap<ShortString, AMQPValue> = table.inner().clone();
    let mut size = size(&properties);
    if let Some(detail) = left.remove(headers::DEAD_DETAIL) {
        size -= 1 + headers::DEAD_DETAIL.len() + value_size(&detail);
    }
    let foreign = left.iter().filter(|(name, value)| !is_needed(name.as_str(), value));
    let mut foreign: Vec<_> = foreign.map(|(name, value)| (value_size(value), name.clone())).collect();
    // Once, and not for each that is dropped: a frame holds tens of thousands.
    foreign.sort();
    let mut dropped = String::new();
    while size + named(&dropped) + FRAME_OVERHEAD > frame {
        let Some((value, name)) = foreign.pop() else { break };
        left.remove(&name);
        size -= 1 + name.as_str().len() + value;
        let comma = if dropped.is_empty() { "" } else { "," };
        dropped.push_str(&format!("{comma}{name}"));
    }
    let mut table = FieldTable::from(left);
    if !dropped.is_empty() {
        set_text(&mut table, headers::HEADERS_DROPPED, cut(&dropped, LONGEST_DETAIL));
    }
    properties.with_headers(table)
}

/// Whether a header is one that Warren goes by, or people who look at a dead message. A producer may have given it as well, and of
/// any length.
fn is_needed(name: &str, value: &AMQPValue) -> bool {
    const NEEDED: [&str; 8] = [
        headers::ATTEMPTS,
        headers::ORIGIN_EXCHANGE,
        headers::ORIGIN_ROUTING_KEY,
        headers::ORIGIN_QUEUE,
        headers::ORIGINAL_EXPIRATION,
        headers::ORIGINAL_USER_ID,
        headers::DEAD_REASON,
        headers::HEADERS_DROPPED,
    ];
    NEEDED.contains(&name) && value_size(value) <= LONGEST_DETAIL + 5
}

/// What the names of the dropped headers take at most, in bytes.
fn named(dropped: &str) -> usize {
    if dropped.is_empty() {
        0
    } else {
        headers::HEADERS_DROPPED.len() + 6 + dropped.len().min(LONGEST_DETAIL)
    }
}

/// Whether properties fit a frame of so many bytes.
pub fn fits(properties: &BasicProperties, frame: usize) -> bool {
    size(properties) + FRAME_OVERHEAD <= frame
}

/// What properties take on the wire, in bytes.
fn size(properties: &BasicProperties) -> usize {
    // Writing to memory cannot fail.
    gen_properties(properties)(Vec::new().into()).map_or(0, |written| written.into_inner().0.len())
}

/// What a header's value takes on the wire, in bytes.
fn value_size(value: &AMQPValue) -> usize {
    /// Flags, the table's length and that of an empty name.
    const AROUND: usize = 7;
    match value {
        // Its kind and its length go before it.
        AMQPValue::LongString(text) => text.as_bytes().len() + 5,
        other => {
            let alone = BTreeMap::from([(ShortString::default(), other.clone())]);
            size(&BasicProperties::default().with_headers(alone.into())).saturating_sub(AROUND)
        }
    }
}

/// The properties of a reply to a message's `reply_to`.
pub fn reply_properties(message: &Message, reply: &ReplyBody, id: &str) -> BasicProperties {
    let text = |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok()).map(short);
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_message_id(short(id));
    if let Some(correlation) = message.properties.correlation_id() {
        properties = properties.with_correlation_id(correlation.clone());
    }
    if let Some(content_type) = text(reply.content_type.as_ref()) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(content_encoding) = text(reply.content_encoding.as_ref()) {
        properties = properties.with_content_encoding(content_encoding);
    }
    if let Some(trace) = message.header(TRACEPARENT) {
        let mut table = FieldTable::default();
        set_text(&mut table, TRACEPARENT, trace);
        properties = properties.with_headers(table);
    }
    properties
}

fn set_attempts(table: &mut FieldTable, attempts: u32) {
    let attempts = i32::try_from(attempts).unwrap_or(i32::MAX);
    table.insert(short(headers::ATTEMPTS), AMQPValue::LongInt(attempts));
}

fn set_text(table: &mut FieldTable, name: &str, value: &str) {
    table.insert(short(name), AMQPValue::LongString(value.into()));
}

fn set_text_once(table: &mut FieldTable, name: &str, value: &str) {
    if !table.inner().contains_key(name) {
        set_text(table, name, value);
    }
}

/// Text for a field of at most 255 bytes.
pub fn short(text: &str) -> ShortString {
    ShortString::try_new(cut(text, 255)).unwrap_or_default()
}

/// At most so many bytes of a text, never half a character.
pub fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::DeadReason;
    use bytes::Bytes;

    fn message(properties: BasicProperties) -> Message {
        Message::new("shop".into(), "order.new".into(), false, properties, Bytes::from_static(b"body"))
    }

    fn headers(pairs: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in pairs {
            table.insert(short(name), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn retry(properties: BasicProperties) -> BasicProperties {
        let copy = Copy::Retry { delay_seconds: Some(5), attempts: 1 };
        super::properties(&message(properties), &copy, "orders", || "fresh".to_owned())
    }

    fn dead(properties: BasicProperties, detail: &str) -> BasicProperties {
        let copy = Copy::Dead { reason: DeadReason::Exhausted, detail: detail.to_owned(), attempts: 3 };
        super::properties(&message(properties), &copy, "orders", || "fresh".to_owned())
    }

    fn get(properties: &BasicProperties, name: &str) -> Option<String> {
        crate::message::text(properties.headers().as_ref().unwrap(), name).map(str::to_owned)
    }

    #[test]
    fn expiration_moves_to_a_header_and_the_first_one_is_kept() {
        let copy = retry(BasicProperties::default().with_expiration("100".into()));
        assert_eq!(*copy.expiration(), None);
        assert_eq!(get(&copy, headers::ORIGINAL_EXPIRATION).as_deref(), Some("100"));
        assert_eq!(get(&retry(copy), headers::ORIGINAL_EXPIRATION).as_deref(), Some("100"));
    }

    #[test]
    fn user_id_moves_to_a_header() {
        let copy = retry(BasicProperties::default().with_user_id("guest".into()));
        assert_eq!(*copy.user_id(), None);
        assert_eq!(get(&copy, headers::ORIGINAL_USER_ID).as_deref(), Some("guest"));
    }

    #[test]
    fn what_multiplies_a_copy_or_looks_like_a_cycle_is_dropped() {
        let names =
            ["CC", "BCC", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count"];
        let pairs: Vec<_> = names.iter().map(|name| (*name, long("v"))).collect();
        let copy = retry(headers(&pairs));
        for name in names {
            assert_eq!(get(&copy, name), None, "{name}");
        }
    }

    #[test]
    fn all_other_properties_and_headers_stay() {
        let original = headers(&[("x-customer", long("7")), ("count", AMQPValue::LongInt(3))])
            .with_content_type("text/plain".into())
            .with_content_encoding("gzip".into())
            .with_priority(4)
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_message_id("m".into())
            .with_timestamp(1)
            .with_type("t".into())
            .with_app_id("a".into())
            .with_delivery_mode(1);
        let copy = retry(original.clone());
        assert_eq!(copy.content_type(), original.content_type());
        assert_eq!(copy.content_encoding(), original.content_encoding());
        assert_eq!(copy.priority(), original.priority());
        assert_eq!(copy.correlation_id(), original.correlation_id());
        assert_eq!(copy.reply_to(), original.reply_to());
        assert_eq!(copy.message_id(), original.message_id());
        assert_eq!(copy.timestamp(), original.timestamp());
        assert_eq!(copy.kind(), original.kind());
        assert_eq!(copy.app_id(), original.app_id());
        assert_eq!(*copy.delivery_mode(), Some(2));
        assert_eq!(get(&copy, "x-customer").as_deref(), Some("7"));
        let table = copy.headers().as_ref().unwrap();
        assert_eq!(crate::message::integer(table, "count"), Some(3));
        assert_eq!(crate::message::integer(table, headers::ATTEMPTS), Some(1));
    }

    #[test]
    fn the_origin_is_set_on_the_first_copy_only() {
        let first = retry(BasicProperties::default());
        assert_eq!(get(&first, headers::ORIGIN_EXCHANGE).as_deref(), Some("shop"));
        let second = Message::new(String::new(), "orders".into(), false, first, Bytes::new());
        let copy = Copy::Retry { delay_seconds: Some(5), attempts: 2 };
        let second = super::properties(&second, &copy, "orders", String::new);
        assert_eq!(get(&second, headers::ORIGIN_EXCHANGE).as_deref(), Some("shop"));
        assert_eq!(get(&second, headers::ORIGIN_ROUTING_KEY).as_deref(), Some("order.new"));
        assert_eq!(second.message_id().as_ref().unwrap().as_str(), "fresh", "and so is the id");
    }

    #[test]
    fn a_replayed_message_that_fails_again_climbs_from_the_start_and_says_nothing_of_its_old_death() {
        let replayed = message(dead(BasicProperties::default(), "first death"));
        assert_eq!(replayed.attempts, 0);
        let copy = Copy::Retry { delay_seconds: Some(5), attempts: 1 };
        let again = super::properties(&replayed, &copy, "orders", String::new);
        assert_eq!(get(&again, headers::DEAD_REASON), None);
        assert_eq!(get(&again, headers::DEAD_DETAIL), None);
    }

    #[test]
    fn a_copy_that_does_not_fit_a_frame_loses_its_detail_first_and_then_the_longest_headers_by_name() {
        let original = headers(&[("long", long(&"x".repeat(1000))), ("longer", long(&"x".repeat(2000)))]);
        let copy = dead(original, &"x".repeat(500));
        let whole = size(&copy) + FRAME_OVERHEAD;
        assert_eq!(fitting(copy.clone(), whole), copy);
        let close = fitting(copy.clone(), whole - 1);
        assert_eq!(get(&close, headers::DEAD_DETAIL), None);
        assert!(get(&close, "longer").is_some() && get(&close, headers::HEADERS_DROPPED).is_none());
        let small = fitting(copy, whole - 600);
        assert_eq!(get(&small, headers::HEADERS_DROPPED).as_deref(), Some("longer"));
        assert!(get(&small, "long").is_some() && get(&small, headers::DEAD_REASON).is_some());
        assert!(size(&small) + FRAME_OVERHEAD <= whole - 600);
    }

    #[test]
    fn a_long_header_of_a_producer_is_dropped_though_its_name_is_as_warren_s() {
        for name in ["warren-anything", headers::ORIGIN_ROUTING_KEY, headers::HEADERS_DROPPED] {
            let long = long(&"x".repeat(130_900));
            let copy = fitting(dead(headers(&[(name, long)]), "detail"), 131_072);
            assert!(fits(&copy, 131_072), "{name}");
            assert_eq!(get(&copy, headers::HEADERS_DROPPED).as_deref(), Some(name));
            assert_eq!(get(&copy, headers::ORIGIN_QUEUE).as_deref(), Some("orders"));
        }
    }

    #[test]
    fn no_more_headers_are_dropped_than_must_be_whatever_they_are_and_however_many() {
        let values = [AMQPValue::Void, AMQPValue::LongInt(7), AMQPValue::Boolean(true), long("x")];
        let table: BTreeMap<ShortString, AMQPValue> =
            (0..20_000).map(|number| (short(&format!("h{number}")), values[number % 4].clone())).collect();
        let whole = dead(BasicProperties::default().with_headers(table.into()), "");
        for less in [1, 100, 5000] {
            let frame = size(&whole) + FRAME_OVERHEAD - less;
            let left = frame - FRAME_OVERHEAD - size(&fitting(whole.clone(), frame));
            assert!(left < 40, "{left} bytes more than needed are dropped for {less}");
        }
    }

    #[test]
    fn a_reply_says_how_its_body_is_to_be_read_and_whose_it_is() {
        let request = message(BasicProperties::default().with_correlation_id("c-1".into()));
        let value = |text| Some(HeaderValue::from_static(text));
        let reply = ReplyBody {
            content_type: value("application/json"),
            content_encoding: value("gzip"),
            body: Bytes::new(),
        };
        let properties = reply_properties(&request, &reply, "r-1");
        let wanted = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id("r-1".into())
            .with_correlation_id("c-1".into())
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into());
        assert_eq!(properties, wanted);
    }

    #[test]
    fn a_dead_copy_says_why_and_its_text_is_cut_between_characters() {
        let copy = dead(BasicProperties::default(), &"ä".repeat(4000));
        assert_eq!(get(&copy, headers::DEAD_REASON).as_deref(), Some("attempts-exhausted"));
        assert_eq!(get(&copy, headers::ORIGIN_QUEUE).as_deref(), Some("orders"));
        assert_eq!(get(&copy, headers::DEAD_DETAIL).unwrap().len(), LONGEST_DETAIL);
    }

    #[test]
    fn a_message_of_an_empty_id_gets_one_and_an_expiration_of_before_is_kept_over_a_later_one() {
        let copy = retry(BasicProperties::default().with_message_id("".into()).with_expiration("100".into()));
        assert_eq!(copy.message_id().as_ref().unwrap().as_str(), "fresh");
        let again = retry(copy.with_expiration("200".into()));
        assert_eq!(get(&again, headers::ORIGINAL_EXPIRATION).as_deref(), Some("100"));
    }

    #[test]
    fn the_longest_headers_are_dropped_whatever_their_names_and_those_of_warren_never() {
        let original = headers(&[("a-longer", long(&"x".repeat(300))), ("b-long", long(&"x".repeat(200)))]);
        let origin = "k".repeat(255);
        let message = Message::new("shop".into(), origin.clone(), false, original, Bytes::new());
        let copy = Copy::Dead { reason: DeadReason::Exhausted, detail: String::new(), attempts: 3 };
        let whole = super::properties(&message, &copy, "orders", || "fresh".to_owned());
        for (less, dropped) in [(150, "a-longer"), (400, "a-longer,b-long")] {
            let fitted = fitting(whole.clone(), size(&whole) + FRAME_OVERHEAD - less);
            assert_eq!(get(&fitted, headers::HEADERS_DROPPED).as_deref(), Some(dropped));
            assert_eq!(get(&fitted, headers::ORIGIN_ROUTING_KEY).as_deref(), Some(origin.as_str()));
        }
    }
}
