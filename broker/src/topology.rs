//! A Queue's spec as exchanges, queues and bindings: `plan(name, spec) -> Topology`, without I/O.
//!
//! Arguments are those of <https://www.rabbitmq.com/docs/queues#optional-arguments>,
//! <https://www.rabbitmq.com/docs/quorum-queues> and <https://www.rabbitmq.com/docs/dlx>.

use std::collections::BTreeMap;

use warren_api::names;
use warren_api::queue::{
    DEFAULT_DELIVERY_LIMIT, DeadLetter, DeclaredBinding, ExchangeType, Limits, Overflow, QueueSpec, QueueType,
};

/// High enough that looking at dead messages, which counts as a delivery, never drops one.
const DEAD_LETTER_DELIVERY_LIMIT: i64 = 1_000_000;

/// Everything that a Queue asks of its broker, in the order of declaration.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Exchanges that the bindings name.
    pub exchanges: Vec<ExchangePlan>,
    /// The dead-letter queue, then the retry queues, then the main queue: no queue ever dead-letters into a missing one.
    pub queues: Vec<QueuePlan>,
    /// Routes into the main queue.
    pub bindings: Vec<DeclaredBinding>,
}

impl Topology {
    /// Queues without exchanges and bindings.
    pub const fn of(queues: Vec<QueuePlan>) -> Self {
        Self { exchanges: Vec::new(), queues, bindings: Vec::new() }
    }

    /// The main queue.
    pub fn main(&self) -> Option<&QueuePlan> {
        self.queues.iter().find(|queue| queue.role == Role::Main)
    }
}

/// An exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangePlan {
    /// Its name.
    pub name: String,
    /// Declare it durable with this type; none: it must exist.
    pub declare: Option<ExchangeType>,
}

/// A durable queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePlan {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its arguments.
    pub arguments: BTreeMap<&'static str, Argument>,
}

impl QueuePlan {
    /// How many ready messages it may hold; none where that has no limit.
    pub fn max_length(&self) -> Option<i64> {
        match self.arguments.get("x-max-length")? {
            Argument::Number(limit) => Some(*limit),
            Argument::Text(_) | Argument::Flag(_) => None,
        }
    }

    /// Whether there is a limit to the bytes that it may hold.
    pub fn has_max_bytes(&self) -> bool {
        self.arguments.contains_key("x-max-length-bytes")
    }

    /// Whether it has a limit above which it refuses.
    pub fn refuses_when_full(&self) -> bool {
        let limited = self.max_length().is_some() || self.has_max_bytes();
        limited && self.arguments.get("x-overflow") != Some(&"drop-head".into())
    }

    /// Whether it has a consumer timeout of its own.
    pub fn has_consumer_timeout(&self) -> bool {
        self.arguments.contains_key("x-consumer-timeout")
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The work queue.
    Main,
    /// Where a failed message waits, for so many seconds.
    Retry(u32),
    /// Where dead messages stay.
    DeadLetter,
}

/// A queue argument's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// A flag.
    Flag(bool),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// What `spec` asks of the broker for the queue `name`.
pub fn plan(name: &str, spec: &QueueSpec) -> Topology {
    let mut queues = vec![dead_letter_queue(name, spec.queue_type, &spec.dead_letter)];
    queues.extend(delays(spec).map(|delay| retry_queue(name, spec.queue_type, delay)));
    queues.push(main_queue(name, spec));
    Topology {
        exchanges: exchanges(spec),
        queues,
        bindings: spec.bindings.iter().map(DeclaredBinding::from).collect(),
    }
}

/// Delays of the ladder's rungs, in seconds.
fn delays(spec: &QueueSpec) -> impl Iterator<Item = u32> + '_ {
    spec.retry.delays_seconds.iter().map(|delay| delay.unsigned_abs())
}

/// Each exchange once; where one binding declares it, that declaration counts for all.
fn exchanges(spec: &QueueSpec) -> Vec<ExchangePlan> {
    let mut plans: Vec<ExchangePlan> = Vec::new();
    for binding in &spec.bindings {
        let declare = binding.declare.as_ref().map(|declare| declare.exchange_type);
        match plans.iter_mut().find(|plan| plan.name == binding.exchange) {
            Some(plan) => plan.declare = plan.declare.or(declare),
            None => plans.push(ExchangePlan { name: binding.exchange.clone(), declare }),
        }
    }
    plans
}

type Arguments = BTreeMap<&'static str, Argument>;

fn of_type(queue_type: QueueType) -> Arguments {
    Arguments::from([("x-queue-type", queue_type.as_argument().into())])
}

/// Expired and refused messages go on to `queue` through the default exchange.
fn dead_letter_to(arguments: &mut Arguments, queue: &str) {
    arguments.insert("x-dead-letter-exchange", "".into());
    arguments.insert("x-dead-letter-routing-key", queue.into());
}

/// The broker keeps a dead-lettered message until its target has it. It needs a source that refuses when full.
fn at_least_once(arguments: &mut Arguments) {
    arguments.insert("x-dead-letter-strategy", "at-least-once".into());
    arguments.insert("x-overflow", "reject-publish".into());
}

fn main_queue(name: &str, spec: &QueueSpec) -> QueuePlan {
    let mut arguments = of_type(spec.queue_type);
    dead_letter_to(&mut arguments, &names::dead_letter_queue(name));
    let Limits { max_length, max_length_bytes, message_ttl_seconds, overflow } = &spec.limits;
    let limited = max_length.is_some() || max_length_bytes.is_some();
    match (spec.queue_type, overflow) {
        (QueueType::Quorum, Overflow::RejectPublish) => at_least_once(&mut arguments),
        (QueueType::Classic, Overflow::RejectPublish) if limited => {
            arguments.insert("x-overflow", "reject-publish".into());
        }
        (QueueType::Quorum | QueueType::Classic, Overflow::DropHead) if limited => {
            arguments.insert("x-overflow", "drop-head".into());
        }
        (QueueType::Quorum | QueueType::Classic, Overflow::RejectPublish | Overflow::DropHead) => {}
    }
    if let Some(length) = max_length {
        arguments.insert("x-max-length", i64::from(*length).into());
    }
    if let Some(bytes) = max_length_bytes {
        arguments.insert("x-max-length-bytes", (*bytes).into());
    }
    if let Some(seconds) = message_ttl_seconds {
        arguments.insert("x-message-ttl", milliseconds(*seconds));
    }
    if spec.queue_type == QueueType::Quorum {
        let limit = spec.delivery_limit.unwrap_or(DEFAULT_DELIVERY_LIMIT);
        arguments.insert("x-delivery-limit", i64::from(limit).into());
    }
    if spec.single_active_consumer {
        arguments.insert("x-single-active-consumer", Argument::Flag(true));
    }
    if let Some(priority) = spec.max_priority {
        arguments.insert("x-max-priority", i64::from(priority).into());
    }
    if let Some(seconds) = spec.consumer_timeout_seconds {
        arguments.insert("x-consumer-timeout", milliseconds(seconds));
    }
    QueuePlan { name: name.to_owned(), role: Role::Main, arguments }
}

/// The queue where failed messages of the queue `name` wait for so many seconds.
pub fn retry_queue(name: &str, queue_type: QueueType, delay_seconds: u32) -> QueuePlan {
    let mut arguments = of_type(queue_type);
    dead_letter_to(&mut arguments, name);
    arguments.insert("x-message-ttl", milliseconds(delay_seconds));
    if queue_type == QueueType::Quorum {
        at_least_once(&mut arguments);
    }
    QueuePlan { name: names::retry_queue(name, delay_seconds), role: Role::Retry(delay_seconds), arguments }
}

fn dead_letter_queue(name: &str, queue_type: QueueType, spec: &DeadLetter) -> QueuePlan {
    let DeadLetter { message_ttl_seconds, max_length } = spec;
    let mut arguments = of_type(queue_type);
    if queue_type == QueueType::Quorum {
        arguments.insert("x-delivery-limit", DEAD_LETTER_DELIVERY_LIMIT.into());
    }
    if let Some(seconds) = message_ttl_seconds {
        arguments.insert("x-message-ttl", milliseconds(*seconds));
    }
    if let Some(length) = max_length {
        arguments.insert("x-max-length", i64::from(*length).into());
        // With the broker's default a full queue confirms and drops.
        arguments.insert("x-overflow", "reject-publish".into());
    }
    QueuePlan { name: names::dead_letter_queue(name), role: Role::DeadLetter, arguments }
}

fn milliseconds(seconds: impl Into<i64>) -> Argument {
    Argument::Number(seconds.into() * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::queue::{Binding, DeclareExchange, Retry};

    fn queue<'a>(topology: &'a Topology, name: &str) -> &'a QueuePlan {
        topology.queues.iter().find(|queue| queue.name == name).unwrap()
    }

    #[test]
    fn an_empty_spec_is_a_quorum_queue_with_a_ladder_and_a_dead_letter_queue() {
        let topology = plan("orders", &QueueSpec::default());
        let names: Vec<_> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(
            names,
            ["orders.dlq", "orders.retry.5s", "orders.retry.60s", "orders.retry.600s", "orders"]
        );
        let main = queue(&topology, "orders");
        assert_eq!(main.arguments["x-queue-type"], "quorum".into());
        assert_eq!(main.arguments["x-delivery-limit"], Argument::Number(100));
        assert_eq!(main.arguments["x-dead-letter-routing-key"], "orders.dlq".into());
        assert_eq!(main.arguments["x-dead-letter-strategy"], "at-least-once".into());
    }

    #[test]
    fn a_rung_expires_back_into_the_main_queue() {
        let topology = plan("orders", &QueueSpec::default());
        let rung = queue(&topology, "orders.retry.60s");
        assert_eq!(rung.role, Role::Retry(60));
        assert_eq!(rung.arguments["x-message-ttl"], Argument::Number(60_000));
        assert_eq!(rung.arguments["x-dead-letter-routing-key"], "orders".into());
    }

    #[test]
    fn classic_queues_get_no_argument_that_only_quorum_queues_know() {
        let spec = QueueSpec { queue_type: QueueType::Classic, ..QueueSpec::default() };
        for queue in plan("orders", &spec).queues {
            assert!(!queue.arguments.contains_key("x-dead-letter-strategy"), "{}", queue.name);
            assert!(!queue.arguments.contains_key("x-delivery-limit"), "{}", queue.name);
        }
    }

    #[test]
    fn a_limited_queue_that_drops_its_head_cannot_promise_at_least_once() {
        let limits = Limits { max_length: Some(10), overflow: Overflow::DropHead, ..Limits::default() };
        let topology = plan("orders", &QueueSpec { limits, ..QueueSpec::default() });
        let main = queue(&topology, "orders");
        assert_eq!(main.arguments["x-overflow"], "drop-head".into());
        assert!(!main.arguments.contains_key("x-dead-letter-strategy"));
    }

    #[test]
    fn a_limited_dead_letter_queue_refuses_rather_than_drops() {
        let dead_letter = DeadLetter { max_length: Some(3), ..DeadLetter::default() };
        let topology = plan("orders", &QueueSpec { dead_letter, ..QueueSpec::default() });
        assert_eq!(queue(&topology, "orders.dlq").arguments["x-overflow"], "reject-publish".into());
    }

    #[test]
    fn no_delays_mean_no_retry_queues() {
        let retry = Retry { delays_seconds: vec![], max_attempts: 1 };
        let topology = plan("orders", &QueueSpec { retry, ..QueueSpec::default() });
        assert_eq!(topology.queues.len(), 2);
    }

    #[test]
    fn an_exchange_named_twice_is_declared_once() {
        let binding = |key: &str, declare| Binding {
            exchange: "shop".to_owned(),
            routing_key: key.to_owned(),
            arguments: BTreeMap::new(),
            declare,
        };
        let declare = Some(DeclareExchange { exchange_type: ExchangeType::Topic });
        let bindings = vec![binding("a", None), binding("b", declare)];
        let topology = plan("orders", &QueueSpec { bindings, ..QueueSpec::default() });
        assert_eq!(
            topology.exchanges,
            [ExchangePlan { name: "shop".to_owned(), declare: Some(ExchangeType::Topic) }]
        );
        assert_eq!(topology.bindings.len(), 2);
    }

    #[test]
    fn each_queue_has_all_the_arguments_that_its_spec_asks_for_and_no_other() {
        let text = |value: &str| Argument::from(value);
        let told = |spec: QueueSpec, name: &str| queue(&plan("orders", &spec), name).arguments.clone();
        let retry = || Retry { delays_seconds: vec![5], max_attempts: 3 };
        let quorum = || QueueSpec {
            limits: Limits {
                max_length: Some(10),
                max_length_bytes: Some(500),
                message_ttl_seconds: Some(60),
                ..Limits::default()
            },
            dead_letter: DeadLetter { message_ttl_seconds: Some(600), max_length: Some(3) },
            retry: retry(),
            delivery_limit: Some(7),
            single_active_consumer: true,
            consumer_timeout_seconds: Some(120),
            ..QueueSpec::default()
        };
        assert_eq!(
            told(quorum(), "orders"),
            Arguments::from([
                ("x-queue-type", text("quorum")),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text("orders.dlq")),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
                ("x-max-length", Argument::Number(10)),
                ("x-max-length-bytes", Argument::Number(500)),
                ("x-message-ttl", Argument::Number(60_000)),
                ("x-delivery-limit", Argument::Number(7)),
                ("x-single-active-consumer", Argument::Flag(true)),
                ("x-consumer-timeout", Argument::Number(120_000)),
            ])
        );
        assert_eq!(
            told(quorum(), "orders.retry.5s"),
            Arguments::from([
                ("x-queue-type", text("quorum")),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text("orders")),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
                ("x-message-ttl", Argument::Number(5000)),
            ])
        );
        assert_eq!(
            told(quorum(), "orders.dlq"),
            Arguments::from([
                ("x-queue-type", text("quorum")),
                ("x-delivery-limit", Argument::Number(DEAD_LETTER_DELIVERY_LIMIT)),
                ("x-message-ttl", Argument::Number(600_000)),
                ("x-max-length", Argument::Number(3)),
                ("x-overflow", text("reject-publish")),
            ])
        );
        let classic = |limits| QueueSpec {
            queue_type: QueueType::Classic,
            limits,
            retry: retry(),
            max_priority: Some(5),
            ..QueueSpec::default()
        };
        let of_classic = |more: &[(&'static str, Argument)]| {
            let mut all = Arguments::from([
                ("x-queue-type", text("classic")),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text("orders.dlq")),
                ("x-max-priority", Argument::Number(5)),
            ]);
            all.extend(more.iter().cloned());
            all
        };
        let bytes = Limits { max_length_bytes: Some(500), ..Limits::default() };
        let limited = [("x-max-length-bytes", Argument::Number(500)), ("x-overflow", text("reject-publish"))];
        assert_eq!(told(classic(bytes), "orders"), of_classic(&limited));
        assert_eq!(told(classic(Limits::default()), "orders"), of_classic(&[]));
        let unlimited = Limits { overflow: Overflow::DropHead, ..Limits::default() };
        assert_eq!(told(classic(unlimited), "orders"), of_classic(&[]));
    }

    #[test]
    fn an_exchange_is_declared_whichever_of_its_bindings_says_so() {
        let declare = Some(DeclareExchange { exchange_type: ExchangeType::Topic });
        let binding = |declare| Binding {
            exchange: "shop".to_owned(),
            routing_key: String::new(),
            arguments: BTreeMap::new(),
            declare,
        };
        let bindings = vec![binding(declare), binding(None)];
        let topology = plan("orders", &QueueSpec { bindings, ..QueueSpec::default() });
        assert_eq!(topology.exchanges[0].declare, Some(ExchangeType::Topic));
    }
}
