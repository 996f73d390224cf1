//! What the engine is told and what it wants done: plain values, so that every interleaving can be tested without a broker.

use std::time::Duration;

use super::settings::Settings;

/// Time since the engine's start, from a monotonic clock.
pub type Time = Duration;

/// A delivery: the channel it came on (each channel opened is a generation of its own) and its tag there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId {
    /// Which channel since the process started, from 1.
    pub generation: u64,
    /// The broker's delivery tag, from 1 in each channel.
    pub tag: u64,
}

/// A call of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What the engine knows about a message; properties, headers and body stay with the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The delivery.
    pub id: DeliveryId,
    /// Attempts that earlier copies of the message have used, from its own header.
    pub attempts: u32,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// Whether the broker counts its deliveries, and has counted one: there may be a limit.
    pub counted: bool,
    /// Hash of the message id, if there is one: tells one message failing often from many failing.
    pub identity: Option<u64>,
    /// Hash of the ordering key, if ordering is asked for and the message has one.
    pub key: Option<u64>,
    /// The size of its body, if that is more than the handler takes.
    pub oversized: Option<u64>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The configuration was read, or has changed.
    Configured(Box<Settings>),
    /// A channel is open and the queue is there.
    Opened {
        /// The channel.
        generation: u64,
    },
    /// The channel is gone, with everything that was unacknowledged on it: the broker delivers that again.
    Lost {
        /// The channel.
        generation: u64,
    },
    /// The connection has ended over a message that cannot be read; its end itself is [`Event::Lost`].
    Unreadable,
    /// The broker confirmed the consumer.
    Subscribed {
        /// The channel.
        generation: u64,
    },
    /// The broker confirmed that the consumer is cancelled.
    Unsubscribed {
        /// The channel.
        generation: u64,
    },
    /// A message came.
    Delivered(Incoming),
    /// A handler call has ended.
    Answered {
        /// The call.
        call: CallId,
        /// What the handler said.
        answers: Answers,
    },
    /// A copy was confirmed, or could not be published.
    Published {
        /// The delivery that the copy is of.
        id: DeliveryId,
        /// What became of the copy.
        result: PublishResult,
    },
    /// The application ends a delivery that it had answered with `later`; its answer may not have been read yet.
    LateAnswer {
        /// The delivery.
        id: DeliveryId,
        /// What the application says.
        verdict: Verdict,
    },
    /// The application is still at work on a delivery that it had answered with `later`.
    Extended {
        /// The delivery.
        id: DeliveryId,
    },
    /// The handler's port was tried.
    HandlerPort {
        /// What it did.
        seen: Seen,
    },
    /// The pod is about to end, or its application is restarted: finish, take nothing new.
    Drain,
    /// SIGTERM: drain if that has not been done, then exit.
    Terminate,
    /// The channel is given up next: what has ended is acknowledged before.
    Leaving {
        /// Whether no time is left for what has not ended.
        over: bool,
    },
    /// Nothing happened but time.
    Tick,
}

/// What a try of the handler's port showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It accepted a connection.
    Accepting,
    /// Nobody listens there.
    Refusing,
    /// It said nothing in time, which a busy application does too.
    Silent,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// One for all deliveries of the call.
    All(Verdict),
    /// One for each, in the order of the call.
    Each(Vec<Verdict>),
}

/// What an answer means for a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The work is done.
    Ack,
    /// The work is done and its result goes to the message's `reply_to` first.
    Reply,
    /// Not done: try again later.
    Retry(Failure),
    /// Never going to work.
    DeadLetter {
        /// Why, in a word.
        reason: DeadReason,
        /// Why, as text.
        detail: String,
    },
    /// Not done and not the message's fault: the application cannot take it now.
    NotNow {
        /// When the application wants to be asked again.
        after: Option<Duration>,
        /// The HTTP status: 503 says that it is unavailable, which the breaker counts; 429 only that it is busy.
        status: u16,
    },
    /// The application goes on with the message and says later how it ended.
    Later,
    /// The application was never reached, so nothing was attempted.
    Unreached,
}

/// A retryable failure.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Failure {
    /// The HTTP status, if there was one.
    pub status: Option<u16>,
    /// When the application wants the message again.
    pub after: Option<Duration>,
    /// What went wrong, as text.
    pub detail: String,
}

/// Why a message was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// The application refused it: 400, 410, 413, 415, 422 or `warren-outcome: dead-letter`.
    Rejected,
    /// It used up its attempts.
    Exhausted,
    /// It is larger than the handler takes.
    TooLarge,
}

impl DeadReason {
    /// The value of the `warren-dead-reason` header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Exhausted => "attempts-exhausted",
            Self::TooLarge => "too-large",
        }
    }
}

/// A message to publish before its delivery may be acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub enum Copy {
    /// To the retry queue of that delay, or with none to the end of the work queue itself.
    Retry {
        /// Seconds of the rung.
        delay_seconds: Option<u32>,
        /// Attempts used so far, this one included.
        attempts: u32,
    },
    /// To the dead-letter queue.
    Dead {
        /// Why, in a word.
        reason: DeadReason,
        /// Why, as text.
        detail: String,
        /// Attempts used, this one included.
        attempts: u32,
    },
    /// The handler's answer, to the message's `reply_to`.
    Reply,
}

impl Copy {
    /// Where it is for.
    pub const fn target(&self) -> Target {
        match self {
            Self::Retry { .. } => Target::Retry,
            Self::Dead { .. } => Target::DeadLetter,
            Self::Reply => Target::Reply,
        }
    }
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishResult {
    /// The broker has it.
    Confirmed,
    /// No queue took it.
    Unroutable,
    /// The broker refused it: the queue is full, or the user may not publish there.
    Refused,
    /// The broker could not be reached, takes no publishes now, or did not confirm in time.
    Failed,
}

/// A delivery of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    /// The delivery.
    pub id: DeliveryId,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Consume with this prefetch; answered by [`Event::Subscribed`] or [`Event::Lost`].
    Subscribe {
        /// The channel.
        generation: u64,
        /// Messages held unacknowledged at most.
        prefetch: u16,
    },
    /// Cancel the consumer, keeping what is in flight; answered by [`Event::Unsubscribed`] or [`Event::Lost`].
    Unsubscribe {
        /// The channel.
        generation: u64,
    },
    /// Call the handler; answered by [`Event::Answered`].
    Call {
        /// The call.
        call: CallId,
        /// Its messages.
        deliveries: Vec<Called>,
    },
    /// Acknowledge.
    Ack {
        /// The channel and tag.
        id: DeliveryId,
        /// Everything up to the tag too.
        multiple: bool,
        /// How many deliveries this settles.
        count: u32,
    },
    /// Give back to the queue.
    Nack {
        /// The channel and tag.
        id: DeliveryId,
    },
    /// Close the channel, so that the broker returns all that is held on it before it turns to another consumer, and open the
    /// next one.
    HandBack {
        /// The channel.
        generation: u64,
    },
    /// Publish a copy, confirmed; answered by [`Event::Published`].
    Publish {
        /// The delivery that the copy is of.
        id: DeliveryId,
        /// Where it goes and what it carries.
        copy: Copy,
        /// Whether an earlier try failed: it may be what the broker closes a channel over.
        again: bool,
    },
    /// The message itself is not needed any more.
    Forget {
        /// The delivery.
        id: DeliveryId,
    },
    /// No message of that channel is needed any more.
    ForgetAll {
        /// The channel.
        generation: u64,
    },
    /// Try the handler's port after a while; answered by [`Event::HandlerPort`].
    ProbeHandler {
        /// How long to wait first.
        after: Duration,
    },
    /// Answer whoever asked for a drain, once all acknowledgements are with the broker.
    Drained {
        /// False if the time ran out with work still running.
        complete: bool,
    },
    /// End the process.
    Exit,
    /// The answer to [`Event::LateAnswer`] or [`Event::Extended`].
    Late(LateReply),
    /// Count it, log it.
    Observe(Observation),
}

/// The answer to the application about a late delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateReply {
    /// Done as asked.
    Accepted,
    /// There is no such delivery here.
    Unknown,
    /// The delivery has been ended before, has timed out, or was lost with its connection.
    Ended,
}

/// How a delivery was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Handled.
    Ack,
    /// Copied to the retry ladder.
    Retry,
    /// Copied to the dead-letter queue.
    DeadLetter,
    /// Given back to the queue without having been handled.
    Returned,
}

/// Where a copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The retry ladder.
    Retry,
    /// The dead-letter queue.
    DeadLetter,
    /// Whoever asked.
    Reply,
}

/// Something to count or log.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A delivery was settled.
    Settled(Outcome),
    /// An answer came for a delivery whose channel is gone: it is dropped, and the broker delivers again.
    Stale,
    /// A channel has ended before the acknowledgements of finished deliveries were sent: the broker delivers those again.
    Unacknowledged {
        /// How many there were.
        count: usize,
    },
    /// A copy could not be published; its delivery stays unacknowledged.
    Unpublished {
        /// What became of the copy.
        result: PublishResult,
        /// Where it was for.
        target: Target,
    },
    /// The connection has ended over a message that cannot be read: one at a time is taken for a while.
    Unreadable,
    /// A delivery that the application had gone on with has ended, or its time was over.
    LateEnded {
        /// How long it took, from the begin of its call.
        took: Duration,
        /// Whether it was its message's first attempt, or the first by itself.
        first: bool,
        /// Whether it has failed.
        failed: bool,
    },
    /// A reply was given up: its message's work is done, and is acknowledged without it.
    ReplyDropped {
        /// The delivery that the reply was to.
        id: DeliveryId,
        /// What became of it last.
        result: PublishResult,
    },
    /// The handler does not accept connections: consuming is held.
    HandlerDown,
    /// The handler accepts connections.
    HandlerUp,
    /// Most answers are failures: consuming is held.
    BreakerOpened {
        /// The status that most failures had, if any.
        status: Option<u16>,
    },
    /// A probe succeeded: consuming goes on.
    BreakerClosed,
    /// A drain has begun.
    DrainBegan,
    /// A drain has ended.
    DrainEnded {
        /// How long it took.
        took: Duration,
        /// Whether everything had ended.
        complete: bool,
    },
    /// A drain was taken back: the application is up again.
    DrainReversed,
    /// SIGTERM came without a drain before it.
    TerminatedUndrained,
    /// Deliveries have been held so long that the broker will soon close the channel.
    HeldLong {
        /// The first of them.
        id: DeliveryId,
        /// How long that has been held.
        held: Duration,
        /// How many they are.
        count: u64,
    },
}
