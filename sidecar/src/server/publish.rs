//! The publish API: `POST /publish` for one message, `POST /publish/batch` for JSON lines. Persistent, mandatory, confirmed.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use http::header::{EXPECT, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_api::headers as names;
use warren_broker::BrokerError;
use warren_broker::lapin::types::ShortString;

use super::parse::{self, Invalid};
use super::refusals::{Refusals, Sent, limit};
use super::{Reply, reply, typed};
use crate::amqp::line::{Letter, Outcome, Room};
use crate::amqp::publisher::{PublishError, Publisher};
use crate::handler::batch::JSON_LINES;
use crate::handler::request::encoded;
use crate::locked::locked;
use crate::metrics::{Metrics, PublishClass};

/// The largest body of a message, and of a batch: what a broker takes since RabbitMQ 4.0.
const LARGEST: usize = 16 * 1024 * 1024;
/// How much may be on its way at once, unconfirmed messages at [`LEAST`] each included; a further caller is asked to come again.
const IN_FLIGHT: usize = 32 * 1024 * 1024;
/// What a message costs at least.
const LEAST: usize = 1024;
/// The most lines of a batch: as many as there is room for in the largest body.
const LINES: usize = LARGEST / LEAST;
/// How long a body may take to come: an upload that has stalled takes the room of others.
const UPLOAD: Duration = Duration::from_secs(30);
/// How long the rest of a body that is refused may take to come.
const LET_IN: Duration = Duration::from_secs(3);
/// How long a message waits for its turn to be the first to an exchange.
const TURN: Duration = Duration::from_secs(30);
/// Within this the broker says what is wrong with an exchange: one that is slow to confirm is there.
const SAID_AT_ONCE: Duration = Duration::from_secs(1);
/// How long an exchange is taken to be there after a message that it was not refused for.
const EXCHANGE_KNOWN: Duration = Duration::from_secs(60);
/// Exchanges remembered at most.
pub(super) const EXCHANGES: usize = 1000;

/// The publish API.
#[derive(Clone, Debug)]
pub struct Publish {
    publisher: Publisher,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    /// Exchanges that took a message lately.
    exchanges: Arc<Mutex<HashMap<ShortString, Instant>>>,
    /// What the broker refused lately.
    refusals: Arc<Mutex<Refusals>>,
    /// Held by whose message is the first to an exchange.
    introducing: Arc<tokio::sync::Mutex<()>>,
}

/// How one publish ended, as HTTP says it.
#[derive(Debug)]
pub(super) struct Ended {
    status: StatusCode,
    class: PublishClass,
    text: String,
    retry_after: Option<u32>,
}

impl Publish {
    /// An API that publishes over a channel of its own.
    pub fn new(publisher: &Publisher, metrics: Arc<Metrics>) -> Self {
        let room = Arc::new(Semaphore::new(IN_FLIGHT / LEAST));
        Self {
            publisher: publisher.on_own_channel(),
            metrics,
            room,
            exchanges: Arc::default(),
            refusals: Arc::default(),
            introducing: Arc::default(),
        }
    }

    /// One message.
    pub async fn single(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let (mut permit, body) = match self.read(&head.headers, body).await {
            Ok(read) => read,
            Err(refusal) => return self.answer(refusal, None),
        };
        let place = permit.split(1);
        let room = Room { bytes: Some(Arc::new(permit)), place };
        let parsed = parse::single(head.uri.query().unwrap_or_default(), &head.headers, body);
        // What the connection read it into is free for the next request.
        drop(head);
        match parsed {
            Ok(letter) => {
                let id = letter.message_id().to_owned();
                let sent = self.send(letter, room).await;
                self.answer(Ended::wait(sent).await, Some(&id))
            }
            Err(invalid) => self.answer(Ended::invalid(&invalid), None),
        }
    }

    /// A batch: each line is published by itself, in the order of the lines, and has its own result in the same order.
    pub async fn batch(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let (mut permit, body) = match self.read(&head.headers, body).await {
            Ok(read) => read,
            Err(refusal) => return self.answer(refusal, None),
        };
        let lines = || body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        // A message takes memory beside its bytes, and a line of a few bytes is one too.
        let count = lines().count();
        match self.room_for(count, permit.num_permits()) {
            Ok(Some(more)) => permit.merge(more),
            Ok(None) => {}
            Err(refusal) => return self.answer(refusal, None),
        }
        let mut places = permit.split(count);
        let bytes = Arc::new(permit);
        let mut results = FuturesOrdered::new();
        for line in lines() {
            // Sent one after another, so that a queue has them in the order of the lines; confirmed together.
            let place = places.as_mut().and_then(|places| places.split(1));
            let room = Room { bytes: Some(Arc::clone(&bytes)), place };
            let (id, sent) = match parse::line(line) {
                Ok(letter) => (Some(letter.message_id().to_owned()), self.send(letter, room).await),
                Err(invalid) => (None, Err(Ended::invalid(&invalid))),
            };
            results.push_back(async move { (Ended::wait(sent).await, id) });
        }
        let mut lines = String::new();
        let mut number = 0;
        while let Some((ended, id)) = results.next().await {
            self.metrics.published(ended.class);
            let mut result = serde_json::json!({"line": number, "status": ended.status.as_u16()});
            if let Some(fields) = result.as_object_mut() {
                if let Some(id) = id {
                    fields.insert("messageId".to_owned(), id.into());
                }
                if ended.status != StatusCode::ACCEPTED {
                    fields.insert("error".to_owned(), ended.text.into());
                }
            }
            lines.push_str(&result.to_string());
            lines.push('\n');
            number += 1;
        }
        typed(StatusCode::OK, JSON_LINES, lines)
    }

    /// Reads the body of another request, in the room of those that are published; one that has none needs no room.
    pub(super) async fn upload(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<(Option<OwnedSemaphorePermit>, Bytes), Ended> {
        if body.is_end_stream() {
            return Ok((None, Bytes::new()));
        }
        self.read(headers, body).await.map(|(room, body)| (Some(room), body))
    }

    /// Reads a body, if there is room for it and it comes in time.
    async fn read<B>(&self, headers: &HeaderMap, mut body: B) -> Result<(OwnedSemaphorePermit, Bytes), Ended>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        let read = self.read_in_room(&mut body).await;
        let refused = |ended: &Ended| {
            [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::TOO_MANY_REQUESTS].contains(&ended.status)
        };
        // One that waits to be asked for it sends nothing now.
        if read.as_ref().is_err_and(refused) && !headers.contains_key(EXPECT) {
            // Many a client that cannot write all of it never reads why.
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            // What takes longer is cut off.
            let _ = tokio::time::timeout(LET_IN, rest).await;
        }
        read
    }

    /// Reads a body. One that says its size is refused before it is read; one that does not takes room as it comes.
    async fn read_in_room<B>(&self, body: &mut B) -> Result<(OwnedSemaphorePermit, Bytes), Ended>
    where
        B: Body<Data = Bytes, Error: Display> + Unpin,
    {
        let said = body.size_hint().exact().unwrap_or(0);
        if said > LARGEST as u64 {
            return Err(Ended::too_large());
        }
        let mut room = self.room(cost(usize::try_from(said).unwrap_or(usize::MAX)))?;
        let reading = async {
            let mut whole = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Ended::broken_off(&error))?;
                let Ok(data) = frame.into_data() else { continue };
                if whole.len() + data.len() > LARGEST {
                    return Err(Ended::too_large());
                }
                whole.extend_from_slice(&data);
                let more = cost(whole.len()).saturating_sub(room.num_permits());
                if more > 0 {
                    room.merge(self.room(more)?);
                }
            }
            Ok(whole.freeze())
        };
        let whole = tokio::time::timeout(UPLOAD, reading).await.map_err(|_| Ended::stalled())??;
        Ok((room, whole))
    }

    /// The room that so many lines need beside what their bytes have.
    fn room_for(&self, lines: usize, has: usize) -> Result<Option<OwnedSemaphorePermit>, Ended> {
        if lines > LINES {
            let text = format!("the batch has {lines} lines, more than {LINES}");
            return Err(Ended::unusable(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        let more = lines.saturating_sub(has);
        if more == 0 { Ok(None) } else { self.room(more).map(Some) }
    }

    fn room(&self, cost: usize) -> Result<OwnedSemaphorePermit, Ended> {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(cost).map_err(|_| Ended {
            status: StatusCode::TOO_MANY_REQUESTS,
            class: PublishClass::Blocked,
            text: format!("{IN_FLIGHT} bytes are on their way to the broker already"),
            retry_after: Some(1),
        })
    }

    /// Sends a message; the future waits for its confirm. The first message to an exchange goes alone: the broker closes the
    /// channel under everybody's messages over an exchange that is missing or forbidden.
    async fn send(&self, letter: Letter, room: Room) -> Result<impl Future<Output = Outcome> + use<>, Ended> {
        let place = Sent::of(&letter);
        let sent = self.hand_over(letter, &place, room).await.map_err(|error| Ended::failed(&error))?;
        let (exchanges, refusals) = (Arc::clone(&self.exchanges), Arc::clone(&self.refusals));
        Ok(async move {
            let outcome = sent.await.map_err(|error| place.own(error));
            // Where it is not known whose message it was, those that come next go alone and are told what is wrong with them.
            if let Err(PublishError::Broker(_) | PublishError::OfAnother(_)) = &outcome {
                locked(&exchanges).clear();
            }
            if let Err(error) = &outcome {
                locked(&refusals).note(&place, error);
            }
            outcome
        })
    }

    async fn hand_over(
        &self,
        letter: Letter,
        place: &Sent,
        room: Room,
    ) -> Result<impl Future<Output = Outcome> + use<>, PublishError> {
        self.check_refusals(place)?;
        if !self.knows(&letter.exchange) {
            let turn = tokio::time::timeout(TURN, self.introducing.lock()).await;
            let _turn = turn.map_err(|_| PublishError::Disconnected)?;
            // Meanwhile somebody else's may have been the first.
            self.check_refusals(place)?;
            if !self.knows(&letter.exchange) {
                return Ok(self.introduce(letter, place, room).await?.left_future());
            }
        }
        Ok(self.publisher.send(letter, room).await?.right_future())
    }

    /// An error that a message lately had is also that of the next one to the same place.
    fn check_refusals(&self, place: &Sent) -> Result<(), PublishError> {
        locked(&self.refusals).of(place).map_or(Ok(()), Err)
    }

    /// Whether a message may go to an exchange beside others. From then on those that follow it within the time do, too: on another
    /// channel one could overtake it.
    fn knows(&self, exchange: &ShortString) -> bool {
        let mut known = locked(&self.exchanges);
        let Some(at) = known.get_mut(exchange).filter(|at| at.elapsed() < EXCHANGE_KNOWN) else {
            return false;
        };
        *at = Instant::now();
        true
    }

    /// Sends the first message to an exchange on a channel of its own, and waits until the broker would have said what is wrong
    /// with that.
    async fn introduce(
        &self,
        letter: Letter,
        place: &Sent,
        room: Room,
    ) -> Result<impl Future<Output = Outcome> + use<>, PublishError> {
        let mut confirm = Box::pin(self.publisher.on_own_channel().send(letter, room).await?);
        let said = tokio::time::timeout(SAID_AT_ONCE, &mut confirm).await;
        let sent = match said {
            Ok(outcome @ (Ok(()) | Err(PublishError::Unroutable | PublishError::Refused))) => {
                futures::future::ready(outcome).left_future()
            }
            Ok(Err(error)) => {
                locked(&self.refusals).note(place, &error);
                return Err(error);
            }
            Err(_) => confirm.right_future(),
        };
        let mut known = locked(&self.exchanges);
        if known.len() >= EXCHANGES {
            known.clear();
        }
        known.insert(place.exchange.clone(), Instant::now());
        Ok(sent)
    }

    fn answer(&self, ended: Ended, id: Option<&str>) -> Reply {
        self.metrics.published(ended.class);
        let mut response = ended.reply();
        if let Some(id) = id {
            response.headers_mut().insert(names::MESSAGE_ID, encoded(id));
        }
        response
    }
}

/// What a body costs, in units of [`LEAST`].
const fn cost(bytes: usize) -> usize {
    bytes / LEAST + 1
}

impl Ended {
    pub(super) fn reply(self) -> Reply {
        let text = if self.text.is_empty() { self.text } else { self.text + "\n" };
        let mut response = reply(self.status, text);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// What was asked never reached the broker: it is the caller's to ask otherwise.
    fn unusable(status: StatusCode, text: String) -> Self {
        Self { status, class: PublishClass::Invalid, text, retry_after: None }
    }

    fn broken_off(error: &impl Display) -> Self {
        Self::unusable(StatusCode::BAD_REQUEST, format!("the body did not come whole: {error}"))
    }

    fn stalled() -> Self {
        let text = format!("the body did not come whole within {} s: send it again", UPLOAD.as_secs());
        Self::unusable(StatusCode::REQUEST_TIMEOUT, text)
    }

    fn too_large() -> Self {
        Self::unusable(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {LARGEST} bytes"))
    }

    fn invalid(invalid: &Invalid) -> Self {
        let status = match invalid {
            Invalid::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Invalid::Field { .. } | Invalid::Line(_) => StatusCode::BAD_REQUEST,
        };
        Self::unusable(status, invalid.to_string())
    }

    /// Waits for the confirm of what was sent.
    async fn wait(sent: Result<impl Future<Output = Outcome>, Self>) -> Self {
        let confirmed = match sent {
            Ok(confirmed) => confirmed.await,
            Err(ended) => return ended,
        };
        match confirmed {
            Ok(()) => Self {
                status: StatusCode::ACCEPTED,
                class: PublishClass::Confirmed,
                text: String::new(),
                retry_after: None,
            },
            Err(error) => Self::failed(&error),
        }
    }

    fn failed(error: &PublishError) -> Self {
        let (status, class, retry_after) = match error {
            PublishError::Disconnected => (StatusCode::SERVICE_UNAVAILABLE, PublishClass::Failed, Some(1)),
            PublishError::Blocked(_) => (StatusCode::TOO_MANY_REQUESTS, PublishClass::Blocked, Some(5)),
            PublishError::Refused => (StatusCode::TOO_MANY_REQUESTS, PublishClass::Refused, Some(5)),
            PublishError::Unroutable => (StatusCode::NOT_FOUND, PublishClass::Unroutable, None),
            PublishError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, PublishClass::Failed, None),
            PublishError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, PublishClass::Invalid, None),
            PublishError::Broker(BrokerError::NotFound { .. }) => {
                (StatusCode::NOT_FOUND, PublishClass::Unroutable, None)
            }
            PublishError::Broker(BrokerError::AccessRefused { .. }) => {
                (StatusCode::FORBIDDEN, PublishClass::Refused, None)
            }
            // The broker's own limit may be lower than the one here.
            PublishError::Broker(BrokerError::Precondition { detail }) if limit(detail).is_some() => {
                (StatusCode::PAYLOAD_TOO_LARGE, PublishClass::Invalid, None)
            }
            PublishError::Broker(BrokerError::Precondition { .. }) => {
                (StatusCode::BAD_REQUEST, PublishClass::Invalid, None)
            }
            PublishError::Broker(_) | PublishError::OfAnother(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, PublishClass::Failed, Some(1))
            }
        };
        let text = match error {
            PublishError::Unroutable => format!("unroutable: {error}"),
            _ => error.to_string(),
        };
        Self { status, class, text, retry_after }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::{Frame, SizeHint};
    use tokio::sync::watch;
    use warren_broker::BrokerAccess;
    use warren_broker::connect::ConnectOptions;
    use warren_broker::lapin::BasicProperties;

    use super::*;
    use crate::metrics::Labels;

    /// A publish API whose broker is away.
    pub fn unconnected() -> Publish {
        let access = Arc::new(BrokerAccess::from_uri("amqp://h").unwrap());
        let publisher = Publisher::new(watch::channel(access).1, ConnectOptions::named("test"));
        Publish::new(&publisher, Arc::new(Metrics::new(Labels::default()).unwrap()))
    }

    #[tokio::test]
    async fn an_exchange_stays_known_for_a_minute_after_each_message() {
        let publish = unconnected();
        let known = |seconds| {
            let at = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
            locked(&publish.exchanges).insert("shop".into(), at);
            publish.knows(&"shop".into())
        };
        assert!(!known(61));
        assert!(known(59));
        assert!(locked(&publish.exchanges)["shop"].elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn what_the_broker_has_refused_is_not_asked_of_it_again_for_two_seconds_and_for_longer_where_it_stays_so()
     {
        let publish = unconnected();
        let send = async |exchange: &str, routing_key: &str| {
            let letter = Letter {
                exchange: exchange.into(),
                routing_key: routing_key.into(),
                properties: BasicProperties::default(),
                body: Bytes::new(),
            };
            Ended::wait(publish.send(letter, Room::default()).await).await.status
        };
        let refuse = |exchange: &str, error: fn(String) -> BrokerError, detail: &str| {
            let error = PublishError::Broker(error(detail.to_owned()));
            let sent = Sent { exchange: exchange.into(), routing_key: "key".into(), size: 9 };
            locked(&publish.refusals).note(&sent, &error);
        };
        refuse("nowhere", |detail| BrokerError::NotFound { detail }, "NOT_FOUND - no exchange 'nowhere'");
        refuse("theirs", |detail| BrokerError::AccessRefused { detail }, "write access to exchange 'theirs'");
        let of_topic = "access to topic 'key' in exchange 'topics' in vhost '/' refused for user 'u'";
        refuse("topics", |detail| BrokerError::AccessRefused { detail }, of_topic);
        refuse("well", |detail| BrokerError::Precondition { detail }, "invalid expiration");
        for (exchange, routing_key, status) in [
            ("nowhere", "other", StatusCode::NOT_FOUND),
            ("theirs", "other", StatusCode::FORBIDDEN),
            ("topics", "key", StatusCode::FORBIDDEN),
            // The broker is away.
            ("topics", "other", StatusCode::SERVICE_UNAVAILABLE),
            ("well", "key", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            assert_eq!(send(exchange, routing_key).await, status, "{exchange} {routing_key}");
        }
        let seconds_later = |seconds| locked(&publish.refusals).as_if_later(Duration::from_secs(seconds));
        seconds_later(2);
        assert_eq!(send("nowhere", "key").await, StatusCode::SERVICE_UNAVAILABLE);
        // It counts for as long as it has been so; after a pause it is a new one.
        for (asked, later, known) in [
            (true, 1, true),
            (false, 2, false),
            (true, 4, true),
            (false, 2, false),
            (true, 100, false),
            (true, 3, false),
        ] {
            if asked {
                refuse("nowhere", |detail| BrokerError::NotFound { detail }, "NOT_FOUND");
            }
            seconds_later(later);
            assert_eq!(send("nowhere", "key").await == StatusCode::NOT_FOUND, known, "{asked} {later}");
        }
    }

    #[tokio::test]
    async fn the_id_in_the_answer_is_encoded_as_every_header_of_warren_is() {
        let answer = unconnected().answer(Ended::too_large(), Some("Zoë 1"));
        assert_eq!(answer.headers()[names::MESSAGE_ID], "Zo%C3%AB 1");
    }

    /// A body that says its size, and never comes.
    struct Stalled(u64);

    impl Body for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_that_stall_are_given_up_and_leave_their_room_to_others() {
        let publish = unconnected();
        let (size, headers) = (LARGEST as u64 - 1, HeaderMap::new());
        let stalled = || publish.read(&headers, Stalled(size));
        let (first, second, third) = tokio::join!(stalled(), stalled(), stalled());
        let statuses = [first, second, third].map(|read| read.unwrap_err().status);
        assert_eq!(
            statuses,
            [StatusCode::REQUEST_TIMEOUT, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
        );
        assert!(publish.room(IN_FLIGHT / LEAST).is_ok());
    }

    #[test]
    fn headers_that_do_not_fit_the_brokers_frame_are_too_large() {
        assert_eq!(
            Ended::failed(&PublishError::TooLarge { frame: 4096 }).status,
            StatusCode::PAYLOAD_TOO_LARGE
        );
    }

    #[test]
    fn only_a_broker_that_speaks_of_the_size_finds_a_message_too_large() {
        let status = |detail: &str| {
            let detail = detail.to_owned();
            Ended::failed(&PublishError::Broker(BrokerError::Precondition { detail })).status
        };
        let size = "PRECONDITION_FAILED - message size 2048 is larger than configured max size 1024";
        assert_eq!(status(size), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(status("PRECONDITION_FAILED - invalid expiration"), StatusCode::BAD_REQUEST);
    }
}
