//! What is wrong, as a condition says it: a reason for programs and a sentence for people that says what to do.

use warren_api::conditions::queue::{BROKER_REACHABLE, DECLARED};
use warren_broker::declare::{DeclareError, Object};
use warren_broker::error::{BrokerError, Difference};

/// The reason where the broker's queue was there before its Queue, which must not be.
pub const ALREADY_EXISTS: &str = "AlreadyExists";
/// Reason of a queue or exchange that exists with another type or argument.
pub const ARGUMENTS_DIFFER: &str = "ArgumentsDiffer";
/// Reason of one that exists and is not durable.
pub const NOT_DURABLE: &str = "NotDurable";
/// Reason of a queue that is gone.
pub const QUEUE_NOT_FOUND: &str = "QueueNotFound";
/// The reason where an older Queue has one of the names.
pub const CONFLICT: &str = "Conflict";
/// Reason of a name that somebody else has.
pub const NAME_TAKEN: &str = "NameTaken";
/// Reason of what the API server does not take.
pub const REFUSED: &str = "Refused";
/// The reason of what the API server has not taken for longer.
pub const NOT_APPLIED: &str = "NotApplied";
/// The reason where Warren has let a Queue go, and another's finalizer keeps it.
pub const OTHER_FINALIZER: &str = "OtherFinalizer";

/// One thing that keeps a resource from being Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The condition type that is False because of it.
    pub condition: &'static str,
    /// CamelCase, for programs.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
    /// What the broker has refused, where it is that.
    pub object: Option<Object>,
}

impl Problem {
    /// A problem of a condition.
    pub fn new(condition: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { condition, reason, message: message.into(), object: None }
    }
}

/// A text without the words in it that have a digit, such as a port, a time or an id: what differs in these alone is said already.
pub fn without_numbers(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| !word.contains(|letter: char| letter.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Why a broker cannot be used.
pub fn unreachable(error: &BrokerError) -> Problem {
    let reason = match error {
        BrokerError::AuthRefused { .. } => "AuthRefused",
        BrokerError::VhostRefused { .. } => "VhostNotFound",
        BrokerError::Tls { .. } => "TlsFailed",
        BrokerError::Unreachable { .. }
        | BrokerError::AccessRefused { .. }
        | BrokerError::NotFound { .. }
        | BrokerError::Locked { .. }
        | BrokerError::Precondition { .. }
        | BrokerError::ChannelLimit { .. }
        | BrokerError::FrameTooLarge { .. }
        | BrokerError::Unreadable { .. }
        | BrokerError::Closed { .. }
        | BrokerError::TimedOut { .. } => "BrokerUnreachable",
    };
    Problem::new(BROKER_REACHABLE, reason, error.to_string())
}

/// Why a declaration was refused; what exists on the broker is never touched.
pub fn refused(error: &DeclareError) -> Problem {
    let DeclareError { object, error } = error;
    let (reason, message) = match error {
        BrokerError::Precondition { detail } => match Difference::parse(detail) {
            Some(difference) => differs(object, &difference, vhost(detail)),
            None if detail.contains("queue limit in") => (
                "QueueLimit",
                format!(
                    "the broker does not take {object}: {detail}. A Queue takes a queue on the broker for its messages, one for the dead letters and one for each of retry.delaysSeconds: raise the limit that it names (max-queues of the virtual host, cluster_queue_limit of the brokers), or leave out some of the delays that it has: others need room beside these until these have gone"
                ),
            ),
            None => (
                "ArgumentsRefused",
                format!("the broker does not take {object}: {detail}. {}", way_out_of_refusal(object)),
            ),
        },
        // A queue that went away between its declaration and a binding is named there.
        BrokerError::NotFound { detail } => {
            match object.exchange().filter(|_| !detail.contains("no queue '")) {
                Some(name) => (
                    "ExchangeNotFound",
                    format!(
                        "exchange \"{name}\" does not exist: create it, or let Warren do so with bindings[].declare: {{type: ...}}"
                    ),
                ),
                None => (QUEUE_NOT_FOUND, format!("{object}: {detail}")),
            }
        }
        BrokerError::AccessRefused { detail } => (
            "AccessRefused",
            format!(
                "the user of the Secret may not declare {object}, as the right to {} is missing: {detail}. Grant configure, read and write on the queue's names, configure and read on the exchanges, and write on amq.default (rabbitmqctl set_permissions)",
                missing_right(object, detail)
            ),
        ),
        BrokerError::Locked { .. } => ("Locked", format!("{object}: {error}")),
        BrokerError::TimedOut { .. } => (
            "TimedOut",
            format!("{object}: {error}. It is tried again by itself; look at the broker's load and alarms"),
        ),
        BrokerError::Unreachable { .. }
        | BrokerError::Tls { .. }
        | BrokerError::AuthRefused { .. }
        | BrokerError::VhostRefused { .. }
        | BrokerError::ChannelLimit { .. }
        | BrokerError::FrameTooLarge { .. }
        | BrokerError::Unreadable { .. }
        | BrokerError::Closed { .. } => {
            ("BrokerUnreachable", format!("{object}: {error}. It is tried again by itself"))
        }
    };
    Problem { object: Some(object.clone()), ..Problem::new(DECLARED, reason, message) }
}

/// The right whose lack a 403 tells of: newer brokers say it, for older ones it follows from what was asked.
fn missing_right(object: &Object, detail: &str) -> &'static str {
    let said = ["configure", "write", "read"]
        .into_iter()
        .find(|right| detail.contains(&format!("{right} access to")));
    if let Some(right) = said {
        return right;
    }
    match (object, detail.contains("access to exchange")) {
        (Object::Exchange(_), _) => "configure",
        // A queue that dead-letters is read, and its dead-letter exchange is written to.
        (Object::Queue(_), false) => "configure or read",
        (Object::Queue(_), true) | (Object::Binding(..), false) => "write",
        (Object::Binding(..), true) => "read",
    }
}

/// The vhost that a 406 names.
fn vhost(detail: &str) -> &str {
    let named = detail.split_once("in vhost '").and_then(|(_, rest)| rest.split_once('\''));
    named.map_or("VHOST", |(vhost, _)| vhost)
}

/// Most arguments of a queue are immutable in the spec, as they are on the broker.
fn way_out_of_refusal(object: &Object) -> &'static str {
    match object {
        Object::Queue(_) => {
            "Delete this Queue and make it again with what this version of RabbitMQ supports, or upgrade RabbitMQ"
        }
        Object::Exchange(_) | Object::Binding(..) => {
            "Change bindings to what this version of RabbitMQ supports"
        }
    }
}

/// What a restart of the broker would take, and how to be rid of it.
fn not_durable(object: &Object, vhost: &str) -> String {
    match object {
        Object::Queue(name) => format!(
            "{object} exists and is not durable, so it and its messages would not survive a restart of the broker. Warren leaves it as it is: delete it when it is empty (rabbitmqctl delete_queue {name} --vhost {vhost} --if-empty --if-unused) and it is declared durable by itself, or delete this Queue and make it again with another queueName"
        ),
        Object::Exchange(_) | Object::Binding(..) => format!(
            "{object} exists and is not durable, so it and its bindings would not survive a restart of the broker. Warren leaves it as it is: have whoever declares it declare it durable, delete it when nobody publishes to it (then it is declared durable by itself), or name another in bindings"
        ),
    }
}

fn differs(object: &Object, difference: &Difference, vhost: &str) -> (&'static str, String) {
    let Difference { field, values } = difference;
    if field == "durable" {
        return (NOT_DURABLE, not_durable(object, vhost));
    }
    let differs = match values {
        Some((asked, existing)) => {
            let asked = if asked.is_empty() { "\"\"" } else { asked.as_str() };
            format!("{field} = {existing}, and the spec asks for {asked}")
        }
        None => format!("another {field} than the spec asks for"),
    };
    let way_out = match object {
        Object::Queue(_) => {
            "set adoptionPolicy: AsIs to go on consuming a main queue as it is, or delete the queue when it is empty, or delete this Queue and make it again with what exists or with another queueName (docs/changing-a-queue.md)"
        }
        Object::Exchange(_) | Object::Binding(..) => {
            "leave declare out of the binding to use the exchange as it is, or name another in bindings"
        }
    };
    let message = format!("{object} exists with {differs}. Warren leaves it as it is: {way_out}");
    (ARGUMENTS_DIFFER, message)
}

#[cfg(test)]
mod tests {
    use warren_api::queue::DeclaredBinding;

    use super::*;

    fn refusal_of(object: Object, detail: &str) -> Problem {
        refused(&DeclareError { object, error: BrokerError::Precondition { detail: detail.to_owned() } })
    }

    fn refusal(detail: &str) -> Problem {
        refusal_of(Object::Queue("orders".to_owned()), detail)
    }

    #[test]
    fn a_queue_that_is_not_durable_is_named_as_such_with_a_way_out() {
        let problem = refusal(
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'orders' in vhost '/': received 'true' but current is 'false'",
        );
        assert_eq!((problem.condition, problem.reason), ("Declared", "NotDurable"));
        assert!(
            problem.message.contains("delete_queue orders --vhost / --if-empty --if-unused"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn an_exchange_that_is_not_durable_is_no_reason_to_delete_a_queue() {
        let detail = "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'shop' in vhost '/': received 'true' but current is 'false'";
        let problem = refusal_of(Object::Exchange("shop".to_owned()), detail);
        assert_eq!(problem.reason, "NotDurable");
        assert!(problem.message.starts_with("exchange \"shop\""), "{}", problem.message);
        assert!(!problem.message.contains("delete_queue"), "{}", problem.message);
    }

    #[test]
    fn an_argument_that_differs_is_named_with_both_values() {
        let problem = refusal(
            "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'orders' in vhost '/': received the value '10' of type 'long' but current is the value '20' of type 'long'",
        );
        assert_eq!(problem.reason, "ArgumentsDiffer");
        assert!(
            problem.message.contains("x-max-length = 20") && problem.message.contains("asks for 10"),
            "{}",
            problem.message
        );
        assert!(problem.message.contains("adoptionPolicy: AsIs"), "{}", problem.message);
    }

    #[test]
    fn an_exchange_that_differs_can_be_used_as_it_is() {
        let detail = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'shop' in vhost '/': received 'topic' but current is 'direct'";
        let problem = refusal_of(Object::Exchange("shop".to_owned()), detail);
        assert_eq!(problem.reason, "ArgumentsDiffer");
        assert!(problem.message.contains("leave declare out"), "{}", problem.message);
        assert!(!problem.message.contains("queueName"), "{}", problem.message);
    }

    #[test]
    fn a_403_names_the_missing_right_also_where_the_broker_does_not() {
        let binding = || {
            let arguments = std::collections::BTreeMap::default();
            let (exchange, routing_key) = ("shop".to_owned(), "k".to_owned());
            Object::Binding(Box::new(DeclaredBinding { exchange, routing_key, arguments }))
        };
        for (object, detail, right) in [
            (Object::Queue("q".to_owned()), "access to queue 'q' in vhost '/' refused", "configure or read"),
            (Object::Queue("q".to_owned()), "read access to queue 'q' in vhost '/' refused", "read"),
            (Object::Queue("q".to_owned()), "access to exchange 'amq.default' refused", "write"),
            (Object::Exchange("shop".to_owned()), "access to exchange 'shop' refused", "configure"),
            (binding(), "access to queue 'q' refused", "write"),
            (binding(), "access to exchange 'shop' refused", "read"),
        ] {
            let error = BrokerError::AccessRefused { detail: detail.to_owned() };
            let message = refused(&DeclareError { object, error }).message;
            assert!(message.contains(&format!("the right to {right} is missing")), "{message}");
        }
    }

    #[test]
    fn a_queue_that_went_away_while_it_was_bound_is_no_missing_exchange() {
        let problem = refused(&DeclareError {
            object: Object::Exchange("shop".to_owned()),
            error: BrokerError::NotFound { detail: "NOT_FOUND - no queue 'orders' in vhost '/'".to_owned() },
        });
        assert_eq!(problem.reason, "QueueNotFound");
    }

    #[test]
    fn a_missing_exchange_says_how_to_get_one() {
        let problem = refused(&DeclareError {
            object: Object::Exchange("shop".to_owned()),
            error: BrokerError::NotFound { detail: "no exchange 'shop'".to_owned() },
        });
        assert_eq!(problem.reason, "ExchangeNotFound");
        assert!(problem.message.contains("declare:"));
    }

    #[test]
    fn an_argument_that_is_asked_for_as_empty_is_shown_as_that() {
        let problem = refusal(
            "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'orders' in vhost '/': received the value '' of type 'longstr' but current is none",
        );
        let words = "x-dead-letter-exchange = none, and the spec asks for \"\".";
        assert!(problem.message.contains(words), "{}", problem.message);
    }
}
