//! Several messages in one call: JSON lines there, an outcome for all or one a message back.
//!
//! Request: `content-type: application/x-ndjson`, `warren-batch-size`, one [`Line`] a message. Answer: an empty body or one
//! that is no JSON lines means the status' outcome for all; a 2xx with `application/x-ndjson` has one [`AnswerLine`] a message.
//! A message without a usable line is tried again, and its first line counts.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_api::headers as names;
use warren_broker::lapin::types::AMQPValue;

use super::answer::{EXCERPT, Said};
use super::request::{encoded, is_no_own_header};
use super::trace;
use crate::copy::cut;
use crate::core::{Answers, Failure, Verdict};
use crate::message::{Message, Scalar};

/// The content type of JSON lines.
pub const JSON_LINES: &str = "application/x-ndjson";

/// One message of a batch.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Line<'a> {
    /// Its place in the batch, from 0: the answer names it.
    pub id: usize,
    /// See the header `warren-delivery-id`.
    pub delivery_id: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The exchange that it was published to.
    pub exchange: &'a str,
    /// The routing key that it was published with.
    pub routing_key: &'a str,
    /// The broker's redelivered flag.
    pub redelivered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, Value>,
    /// The names of the message's own headers that JSON cannot say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers_omitted: Vec<&'a str>,
    /// The body, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// The body in Base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl<'a> Line<'a> {
    /// The line of a message.
    pub fn new(id: usize, delivery_id: String, attempt: u32, message: &'a Message) -> Self {
        let properties = &message.properties;
        let text = std::str::from_utf8(&message.body).ok();
        let (mut headers, mut headers_omitted) = (BTreeMap::new(), Vec::new());
        for (name, value) in message.headers().into_iter().flat_map(|table| table.inner()) {
            match json(value) {
                _ if is_no_own_header(name.as_str()) => {}
                Some(value) => {
                    headers.insert(name.as_str(), value);
                }
                None => headers_omitted.push(name.as_str()),
            }
        }
        Self {
            id,
            delivery_id,
            attempt,
            exchange: &message.exchange,
            routing_key: &message.routing_key,
            redelivered: message.redelivered,
            message_id: message.id(),
            content_type: properties.content_type().as_ref().map(|value| value.as_str()),
            content_encoding: properties.content_encoding().as_ref().map(|value| value.as_str()),
            correlation_id: properties.correlation_id().as_ref().map(|value| value.as_str()),
            reply_to: properties.reply_to().as_ref().map(|value| value.as_str()),
            priority: *properties.priority(),
            timestamp: *properties.timestamp(),
            traceparent: message.header(trace::TRACEPARENT),
            headers,
            headers_omitted,
            text,
            base64: text.is_none().then(|| STANDARD.encode(&message.body)),
        }
    }

    /// How many of the message's own headers are left out.
    pub fn omitted(&self) -> usize {
        self.headers_omitted.len()
    }
}

fn json(value: &AMQPValue) -> Option<Value> {
    match Scalar::of(value)? {
        Scalar::Flag(flag) => Some(flag.into()),
        Scalar::Integer(integer) => Some(integer.into()),
        Scalar::Float(float) => Some(float.into()),
        Scalar::Text(text) => Some(text.into()),
        Scalar::Bytes(_) => None,
    }
}

/// The body of a batch.
pub fn body<'a>(lines: impl Iterator<Item = Line<'a>>) -> Bytes {
    let mut body = Vec::new();
    for line in lines {
        // Writing to memory, of values that are all representable, does not fail.
        if serde_json::to_writer(&mut body, &line).is_ok() {
            body.push(b'\n');
        }
    }
    body.into()
}

/// The headers of a batch.
pub fn headers(queue: &str, size: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
    headers.insert(HeaderName::from_static(names::BATCH_SIZE), HeaderValue::from(size));
    headers.insert(HeaderName::from_static(names::QUEUE), encoded(queue));
    headers
}

/// What the application says about one message of a batch.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AnswerLine {
    /// The message's place in the batch.
    pub id: usize,
    /// `ack`, `retry`, `dead-letter` or `later`.
    pub outcome: Said,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// For `retry`: when to try again. What is no number of seconds costs the wish, not the line.
    #[serde(default)]
    pub retry_after_seconds: Value,
}

/// The verdicts of an answer of JSON lines about `size` messages; none if it is not such an answer.
pub fn verdicts(status: u16, headers: &HeaderMap, body: &[u8], size: usize) -> Option<Answers> {
    let lines = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON_LINES))
    });
    if !(200..300).contains(&status) || !lines {
        return None;
    }
    let mut verdicts: Vec<Option<Verdict>> = vec![None; size];
    for line in body.split(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<AnswerLine>(line) else { continue };
        if let Some(place) = verdicts.get_mut(line.id) {
            place.get_or_insert_with(|| verdict(&line, status));
        }
    }
    let missing = || {
        let detail = "the handler's answer has no usable line for this message".to_owned();
        Verdict::Retry(Failure { detail, ..Failure::default() })
    };
    Some(Answers::Each(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(missing)).collect()))
}

fn verdict(line: &AnswerLine, status: u16) -> Verdict {
    let detail = || {
        line.reason
            .as_deref()
            .map_or_else(|| "the handler said so".to_owned(), |why| cut(why, EXCERPT).to_owned())
    };
    let seconds = line.retry_after_seconds.as_f64();
    let after = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.ceil()).ok());
    line.outcome.verdict(status, after, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::DeadReason;
    use proptest::prelude::*;
    use warren_broker::lapin::BasicProperties;
    use warren_broker::lapin::types::FieldTable;

    fn lines_header() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson; charset=utf-8"));
        headers
    }

    fn each(body: &str, size: usize) -> Vec<Verdict> {
        match verdicts(200, &lines_header(), body.as_bytes(), size) {
            Some(Answers::Each(verdicts)) => verdicts,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_carries_the_message_with_its_body_as_text_or_base64() {
        let mut table = FieldTable::default();
        table.insert("x-customer".into(), AMQPValue::LongString("7".into()));
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
        let properties = BasicProperties::default().with_headers(table).with_message_id("m".into());
        let message = Message::new("e".into(), "k".into(), false, properties, Bytes::from_static(b"hi"));
        let binary = Message { body: Bytes::from_static(&[0xFF]), ..message.clone() };
        let body =
            body([Line::new(0, "d".into(), 1, &message), Line::new(1, "d".into(), 2, &binary)].into_iter());
        let lines: Vec<Value> = body
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(lines[0]["text"], "hi");
        assert_eq!(lines[0]["messageId"], "m");
        assert_eq!(lines[0]["headers"], serde_json::json!({"x-customer": "7"}));
        assert_eq!((&lines[1]["base64"], &lines[1]["attempt"]), (&Value::from("/w=="), &Value::from(2)));
    }

    #[test]
    fn headers_that_json_cannot_say_are_named() {
        let mut table = FieldTable::default();
        table.insert("bytes".into(), AMQPValue::ByteArray(vec![1].into()));
        table.insert("latin".into(), AMQPValue::LongString(vec![0xE9].into()));
        table.insert("ratio".into(), AMQPValue::Double(f64::NAN));
        table.insert("small".into(), AMQPValue::LongInt(1));
        table.insert("tenth".into(), AMQPValue::Float(0.1));
        table.insert("warren-attempts".into(), AMQPValue::FieldTable(FieldTable::default()));
        let properties = BasicProperties::default().with_headers(table);
        let message = Message::new("e".into(), "k".into(), false, properties, Bytes::new());
        let line = Line::new(0, "d".into(), 1, &message);
        assert_eq!(line.omitted(), 3);
        let line = serde_json::to_value(&line).unwrap();
        assert_eq!(line["headersOmitted"], serde_json::json!(["bytes", "latin", "ratio"]));
        assert_eq!(line["headers"], serde_json::json!({"small": 1, "tenth": 0.1}));
    }

    #[test]
    fn each_message_gets_its_own_outcome() {
        let answer = r#"{"id":1,"outcome":"retry","retryAfterSeconds":9,"reason":"busy"}
{"id":0,"outcome":"ack"}
{"id":2,"outcome":"dead-letter","reason":"bad"}"#;
        let verdicts = each(answer, 3);
        assert_eq!(verdicts[0], Verdict::Ack);
        let after = Some(Duration::from_secs(9));
        assert_eq!(verdicts[1], Verdict::Retry(Failure { status: Some(200), after, detail: "busy".into() }));
        assert_eq!(verdicts[2], Verdict::DeadLetter { reason: DeadReason::Rejected, detail: "bad".into() });
    }

    #[test]
    fn a_wish_for_a_delay_that_is_no_whole_number_costs_no_outcome() {
        let outcomes = |wish: &str| {
            each(
                &format!(
                    "{{\"id\":0,\"outcome\":\"ack\",\"retryAfterSeconds\":{wish}}}\n{{\"id\":1,\"outcome\":\"retry\",\"retryAfterSeconds\":{wish}}}"
                ),
                2,
            )
        };
        for (wish, seconds) in [
            ("30.0", Some(30)),
            ("2.5", Some(3)),
            ("-1", None),
            ("\"soon\"", None),
            ("null", None),
            ("1e300", None),
        ] {
            let outcomes = outcomes(wish);
            assert_eq!(outcomes[0], Verdict::Ack, "{wish}");
            let Verdict::Retry(failure) = &outcomes[1] else { panic!("{wish}") };
            assert_eq!(failure.after, seconds.map(Duration::from_secs), "{wish}");
        }
    }

    #[test]
    fn what_has_no_usable_line_is_tried_again_and_the_first_line_counts() {
        let verdicts = each(
            "{\"id\":0,\"outcome\":\"ack\"}\n{\"id\":0,\"outcome\":\"retry\"}\ngarbage\n{\"id\":7,\"outcome\":\"ack\"}",
            2,
        );
        assert_eq!(verdicts[0], Verdict::Ack);
        assert!(matches!(verdicts[1], Verdict::Retry(_)));
    }

    #[test]
    fn a_line_has_no_word_for_not_now() {
        for word in ["not-now", "notNow", "NotNow"] {
            let Verdict::Retry(failure) = &each(&format!("{{\"id\":0,\"outcome\":\"{word}\"}}"), 1)[0] else {
                panic!("{word}");
            };
            assert!(failure.detail.contains("no usable line"), "{word}: {failure:?}");
        }
    }

    #[test]
    fn an_answer_that_is_no_json_lines_is_one_outcome_for_all() {
        assert!(verdicts(200, &HeaderMap::new(), b"", 3).is_none());
        assert!(verdicts(500, &lines_header(), b"{}", 3).is_none());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_crash_it_and_every_message_gets_a_verdict(body in any::<Vec<u8>>(), size in 0_usize..20) {
            let Some(Answers::Each(verdicts)) = verdicts(200, &lines_header(), &body, size) else { panic!() };
            prop_assert_eq!(verdicts.len(), size);
        }

        #[test]
        fn almost_right_answers_neither(
            lines in prop::collection::vec((0_usize..30, "ack|retry|dead-letter|later|other|", ".{0,20}"), 0..20)
        ) {
            let body: String = lines
                .iter()
                .map(|(id, outcome, reason)| format!("{{\"id\":{id},\"outcome\":\"{outcome}\",\"reason\":{}}}\n", Value::from(reason.as_str())))
                .collect();
            prop_assert_eq!(each(&body, 10).len(), 10);
        }
    }

    #[test]
    fn a_line_says_all_that_is_known_of_its_message() {
        let mut table = FieldTable::default();
        table.insert("traceparent".into(), AMQPValue::LongString("00-a-b-01".into()));
        table.insert("warren-attempts".into(), AMQPValue::LongInt(1));
        let properties = BasicProperties::default()
            .with_headers(table)
            .with_message_id("m".into())
            .with_content_type("text/plain".into())
            .with_content_encoding("identity".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_priority(3)
            .with_timestamp(7);
        let message = Message::new("e".into(), "k".into(), true, properties, Bytes::from_static(b"hi"));
        let line = serde_json::to_value(Line::new(4, "1-2".into(), 2, &message)).unwrap();
        let expected = serde_json::json!({
            "id": 4, "deliveryId": "1-2", "attempt": 2, "exchange": "e", "routingKey": "k", "redelivered": true,
            "messageId": "m", "contentType": "text/plain", "contentEncoding": "identity", "correlationId": "c",
            "replyTo": "r", "priority": 3, "timestamp": 7, "traceparent": "00-a-b-01", "text": "hi",
        });
        assert_eq!(line, expected);
        let headers = headers("orders", 5);
        assert_eq!(
            (&headers[names::BATCH_SIZE], &headers[names::QUEUE]),
            (&"5".parse().unwrap(), &"orders".parse().unwrap())
        );
        let local = super::headers("aufträge 50%", 1);
        assert_eq!(local[names::QUEUE], "auftr%C3%A4ge 50%25", "as with a single message");
    }

    #[test]
    fn a_kind_in_capitals_is_the_same_kind_and_a_status_that_is_no_success_counts_for_all() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("Application/X-NDJSON"));
        let line = br#"{"id":0,"outcome":"ack"}"#;
        assert!(
            matches!(verdicts(200, &headers, line, 1), Some(Answers::Each(each)) if each == [Verdict::Ack])
        );
        assert!(verdicts(500, &headers, line, 1).is_none() && verdicts(300, &headers, line, 1).is_none());
        let long =
            format!("{{\"id\":0,\"outcome\":\"dead-letter\",\"reason\":\"{}\"}}", "x".repeat(EXCERPT + 1));
        let Verdict::DeadLetter { detail, .. } = &each(&long, 1)[0] else { panic!() };
        assert_eq!(detail.len(), EXCERPT);
    }
}
