//! Calls of the handler: the request of one message or of a batch, and what its answer means.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::Runtime;
use crate::core::{Answers, CallId, Called, DeliveryId, Event, Failure, Verdict};
use crate::delivery_id;
use crate::handler::batch::{self, Line};
use crate::handler::pool::{Answer, CallError, Done, Job};
use crate::handler::trace::{self, Context};
use crate::handler::{answer, request};
use crate::inbox::ReplyBody;
use crate::message::Message;
use crate::metrics::AnswerClass;
use crate::otlp::{Begun, Moment, Sampler, Spans};

/// How much of an answer's body is read.
const ANSWER_LIMIT: usize = 64 * 1024;
/// The largest reply, and the largest answer to a batch: a message whose line is beyond it is done again.
const REPLY_LIMIT: usize = 16 * 1024 * 1024;

/// How a call was made, and so how its answer is to be read: the configuration may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One message; its id where the answer's body goes to its `reply_to`.
    Single { reply: Option<DeliveryId> },
    /// JSON lines, one for each of so many.
    Batch { size: usize },
}

impl Form {
    /// How much of the answer's body is read.
    const fn limit(self) -> usize {
        match self {
            Self::Single { reply: None } => ANSWER_LIMIT,
            Self::Single { reply: Some(_) } | Self::Batch { .. } => REPLY_LIMIT,
        }
    }
}

/// A call that runs: what its answer is about.
#[derive(Debug)]
pub(super) struct Open {
    /// Whether it is the message's first attempt, or the first by itself.
    first: bool,
    form: Form,
    span: Option<Begun>,
}

/// Where a message was sent, and the queue that it came from: what is not empty, and what is the same once, as the conventions for
/// RabbitMQ have it (<https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>).
fn destination(message: &Message, queue: &str) -> String {
    let queue = Some(queue).filter(|queue| *queue != message.routing_key);
    let parts = [message.exchange.as_str(), message.routing_key.as_str(), queue.unwrap_or_default()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(":")
}

impl Runtime {
    pub(super) fn call(&mut self, call: CallId, deliveries: &[Called]) {
        let timeout = Duration::from_secs(u64::from(self.config.handler.timeout_seconds));
        let ((request, span), form) = match (deliveries, self.config.handler.batch) {
            ([called], None) => {
                let reply = self.config.handler.reply && self.wants_reply(called.id);
                let reply = reply.then_some(called.id);
                (self.single_request(*called), Form::Single { reply })
            }
            _ => (self.batch_request(deliveries), Form::Batch { size: deliveries.len() }),
        };
        let first = deliveries.first().is_none_or(|called| self.engine.settings().is_first(called.attempt));
        self.calls.insert(call, Open { first, form, span });
        self.pool.call(Job { call, request, timeout, limit: form.limit() });
    }

    fn single_request(&self, called: Called) -> (Request<Full<Bytes>>, Option<Begun>) {
        let Some(message) = self.messages.get(&called.id) else { return Default::default() };
        let (traceparent, traced) = traced(message, self.spans.as_ref().map(Spans::sampler));
        let delivery = delivery_id::format(called.id);
        let head = request::head(message, &delivery, called.attempt, &self.constant, &traceparent);
        self.metrics.headers_omitted.inc_by(head.omitted as u64);
        tracing::debug!(id = message.id(), attempt = called.attempt, traceparent, "calling the handler");
        let request = self.pool.endpoint().request(head.headers, message.body.clone());
        let span = traced.map(|(context, span_id)| {
            let destination = destination(message, &self.config.queue.name);
            let mut attributes = vec![
                ("messaging.destination.name", destination.into()),
                ("messaging.rabbitmq.destination.routing_key", message.routing_key.clone().into()),
                ("messaging.message.body.size", message.body.len().into()),
            ];
            if let Some(id) = message.id() {
                attributes.push(("messaging.message.id", id.into()));
            }
            Begun { context, span_id, links: Vec::new(), at: Moment::now(), attributes }
        });
        (request, span)
    }

    fn batch_request(&self, deliveries: &[Called]) -> (Request<Full<Bytes>>, Option<Begun>) {
        let messages = deliveries.iter().enumerate().filter_map(|(place, called)| {
            let message = self.messages.get(&called.id)?;
            let line = Line::new(place, delivery_id::format(called.id), called.attempt, message);
            self.metrics.headers_omitted.inc_by(line.omitted() as u64);
            Some(line)
        });
        let body = batch::body(messages);
        tracing::debug!(messages = deliveries.len(), bytes = body.len(), "calling the handler with a batch");
        let headers = batch::headers(&self.config.queue.name, deliveries.len());
        (self.pool.endpoint().request(headers, body), self.batch_span(deliveries))
    }

    /// One span for a batch, with a link to each message's trace.
    fn batch_span(&self, deliveries: &[Called]) -> Option<Begun> {
        let spans = self.spans.as_ref()?;
        let messages = deliveries.iter().filter_map(|called| self.messages.get(&called.id));
        let links: Vec<Context> = messages.filter_map(|message| Context::of(message)).collect();
        let context = spans.sampler().decide(None);
        context.sampled.then(|| Begun {
            context,
            span_id: trace::span_id(),
            links,
            at: Moment::now(),
            attributes: vec![
                ("messaging.destination.name", self.config.queue.name.clone().into()),
                ("messaging.batch.message_count", deliveries.len().into()),
            ],
        })
    }

    pub(super) fn called(&mut self, mut done: Done) {
        self.pool.take_back(&mut done);
        let Done { call, result, took, .. } = done;
        let Some(Open { first, form, span }) = self.calls.remove(&call) else { return };
        if let (Some(spans), Some(span)) = (&self.spans, &span) {
            let status = result.as_ref().ok().map(|answer| answer.status);
            let error = match &result {
                Ok(answer) if answer.status < 400 => None,
                Ok(answer) => Some(format!("the handler answered {}", answer.status)),
                Err(error) => Some(error.to_string()),
            };
            spans.end(span, &self.config.queue.name, status, error);
        }
        let (class, answers) = match result {
            Ok(answer) => (AnswerClass::of(answer.status), self.answers(form, answer)),
            Err(error) => {
                let retry = Verdict::Retry(Failure { detail: error.to_string(), ..Failure::default() });
                let (class, verdict) = match error {
                    CallError::Unreached(_) => (AnswerClass::Unreached, Verdict::Unreached),
                    CallError::TimedOut(_) => (AnswerClass::TimedOut, retry),
                    CallError::Broken(_) => (AnswerClass::Broken, retry),
                };
                (class, Answers::All(verdict))
            }
        };
        self.metrics.answered(class, &answers, first, took);
        tracing::debug!(?class, ?took, ?answers, "the handler has answered");
        self.step(Event::Answered { call, answers });
    }

    /// What an answer means for the messages of its call.
    fn answers(&mut self, form: Form, answer: Answer) -> Answers {
        if matches!(form, Form::Batch { .. }) && answer.cut {
            tracing::warn!(
                limit = REPLY_LIMIT,
                "the handler's answer to a batch is too large: messages whose line is beyond the limit are tried again"
            );
        }
        match read(form, answer, SystemTime::now()) {
            Read::Reply(id, body) => Answers::All(self.with_reply(id, body)),
            Read::Answers(answers) => answers,
        }
    }

    /// What the application says late about a message, which is a reply too if the Worker sends them.
    pub(super) fn late_verdict(&mut self, id: DeliveryId, verdict: Verdict, body: ReplyBody) -> Verdict {
        match verdict {
            Verdict::Ack if self.config.handler.reply => self.with_reply(id, body),
            verdict => verdict,
        }
    }

    fn wants_reply(&self, id: DeliveryId) -> bool {
        let reply_to = self.messages.get(&id).and_then(|message| message.properties.reply_to().as_ref());
        reply_to.is_some_and(|to| !to.as_str().is_empty())
    }

    /// Keeps the reply of a message that wants one: it is published before the message is acknowledged.
    fn with_reply(&mut self, id: DeliveryId, body: ReplyBody) -> Verdict {
        if !self.wants_reply(id) {
            return Verdict::Ack;
        }
        self.replies.insert(id, body);
        Verdict::Reply
    }
}

/// The `traceparent` of a message's call, and the trace and the id of the span that the call is, if that is exported.
///
/// Who exports no spans hands the message's trace on as it is. A new one says then that it is recorded: of one that is not, the
/// application, which may export spans, would record nothing.
fn traced(message: &Message, sampler: Option<Sampler>) -> (String, Option<(Context, String)>) {
    let (own, span_id) = (Context::of(message), trace::span_id());
    let Some(sampler) = sampler else {
        let own = own.and(message.header(trace::TRACEPARENT)).map(|own| own.trim().to_owned());
        return (own.unwrap_or_else(|| Context { sampled: true, ..Context::fresh() }.header(&span_id)), None);
    };
    let context = sampler.decide(own);
    (context.header(&span_id), context.sampled.then_some((context, span_id)))
}

/// An answer, read as its call was made.
#[derive(Debug, PartialEq)]
enum Read {
    /// What it says.
    Answers(Answers),
    /// The work is done, and this goes to whoever wants a reply to that message.
    Reply(DeliveryId, ReplyBody),
}

fn read(form: Form, answer: Answer, wall: SystemTime) -> Read {
    let Answer { status, headers, body, cut } = answer;
    let verdict = || answer::classify(status, &headers, &body, wall);
    match form {
        Form::Batch { size } => Read::Answers(
            batch::verdicts(status, &headers, &body, size).unwrap_or_else(|| Answers::All(verdict())),
        ),
        // An error's page is no reply, also where its headers say that the work is done.
        Form::Single { reply } => match (verdict(), reply.filter(|_| (200..300).contains(&status))) {
            (Verdict::Ack, Some(_)) if cut => {
                let detail = format!("the reply is larger than {REPLY_LIMIT} bytes");
                Read::Answers(Answers::All(Verdict::Retry(Failure { detail, ..Failure::default() })))
            }
            (Verdict::Ack, Some(id)) => Read::Reply(id, ReplyBody::of(&headers, body)),
            (verdict, _) => Read::Answers(Answers::All(verdict)),
        },
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    use http::{HeaderMap, HeaderValue};
    use warren_broker::lapin::BasicProperties;
    use warren_broker::lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::core::DeadReason;

    fn answer(kind: &'static str, body: &'static str) -> Answer {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        Answer { status: 200, headers, body: Bytes::from_static(body.as_bytes()), cut: false }
    }

    const REPLY: Form = Form::Single { reply: Some(DeliveryId { generation: 1, tag: 1 }) };

    fn read(form: Form, answer: Answer) -> Read {
        super::read(form, answer, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_answer_of_a_batch_is_read_line_by_line_whatever_the_configuration_says_by_then() {
        let lines =
            "{\"id\":0,\"outcome\":\"ack\"}\n{\"id\":1,\"outcome\":\"dead-letter\",\"reason\":\"no\"}\n";
        let dead = Verdict::DeadLetter { reason: DeadReason::Rejected, detail: "no".to_owned() };
        assert_eq!(
            read(Form::Batch { size: 2 }, answer("application/x-ndjson", lines)),
            Read::Answers(Answers::Each(vec![Verdict::Ack, dead]))
        );
    }

    #[test]
    fn the_answer_of_a_large_batch_has_room_for_a_long_reason_of_each_message_and_what_is_beyond_is_done_again()
     {
        assert!(Form::Batch { size: 2000 }.limit() >= 2000 * 8 * 1024);
        let cut = Answer {
            cut: true,
            ..answer("application/x-ndjson", "{\"id\":0,\"outcome\":\"ack\"}\n{\"id\":1,\"outc")
        };
        let Read::Answers(Answers::Each(verdicts)) = read(Form::Batch { size: 2 }, cut) else {
            panic!("no lines")
        };
        assert!(matches!(verdicts.as_slice(), [Verdict::Ack, Verdict::Retry(_)]), "{verdicts:?}");
    }

    #[test]
    fn what_the_sampler_decides_is_told_and_what_is_exported_is_a_span_of_its_own() {
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut table = FieldTable::default();
        table.insert(trace::TRACEPARENT.into(), AMQPValue::LongString(sampled.into()));
        let properties = [BasicProperties::default(), BasicProperties::default().with_headers(table)];
        let [without, with] = properties.map(|properties| {
            Message::new(String::new(), "orders".to_owned(), false, properties, Bytes::new())
        });
        let off = Sampler::parse(Some("always_off"), None).unwrap();
        for message in [&without, &with] {
            let (traceparent, span) = traced(message, Some(off));
            assert!(traceparent.ends_with("-00") && span.is_none());
        }
        let (traceparent, span) = traced(&with, Some(Sampler::parse(None, None).unwrap()));
        let (context, span_id) = span.unwrap();
        assert_eq!(context.parent_id.as_deref(), Some("b7ad6b7169203331"));
        assert_eq!(traceparent, format!("00-0af7651916cd43dd8448eb211c80319c-{span_id}-01"));
        assert_eq!(traced(&with, None), (sampled.to_owned(), None));
        let (traceparent, span) = traced(&without, None);
        assert!(Context::parse(&traceparent).unwrap().sampled && span.is_none());
    }

    #[test]
    fn json_lines_of_a_single_message_are_its_answers_body() {
        let line = "{\"id\":0,\"outcome\":\"retry\"}\n";
        assert_eq!(
            read(Form::Single { reply: None }, answer("application/x-ndjson", line)),
            Read::Answers(Answers::All(Verdict::Ack))
        );
        let Read::Reply(_, reply) = read(REPLY, answer("application/x-ndjson", line)) else {
            panic!("no reply")
        };
        assert_eq!(reply.body, line);
        let mut packed = answer("text/plain", "x");
        packed.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let Read::Reply(_, reply) = read(REPLY, packed) else { panic!("no reply") };
        assert_eq!(reply.content_encoding, Some(HeaderValue::from_static("gzip")));
    }

    #[test]
    fn an_error_whose_headers_say_that_the_work_is_done_is_no_reply() {
        let mut done = Answer { status: 500, ..answer("text/html", "an error's page") };
        done.headers.insert(warren_api::headers::OUTCOME, HeaderValue::from_static("ack"));
        assert_eq!(read(REPLY, done), Read::Answers(Answers::All(Verdict::Ack)));
    }

    #[test]
    fn a_reply_that_is_too_large_is_tried_again_and_without_replies_the_size_does_not_matter() {
        let cut = || Answer { cut: true, ..answer("text/plain", "x") };
        assert!(matches!(read(REPLY, cut()), Read::Answers(Answers::All(Verdict::Retry(_)))));
        assert_eq!(read(Form::Single { reply: None }, cut()), Read::Answers(Answers::All(Verdict::Ack)));
    }
}
