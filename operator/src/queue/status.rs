//! Step 5: what is said of a Queue. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use warren_api::conditions::READY;
use warren_api::conditions::queue::{
    BROKER_REACHABLE, CONSUMER_TIMEOUT_EFFECTIVE, DEAD_LETTER_AVAILABLE, DECLARED, DELETION_BLOCKED,
    PERSISTENT_MESSAGES,
};
use warren_api::names::dead_letter_queue;
use warren_api::queue::AdoptionPolicy;
use warren_api::{Queue, QueueStatus, QueueType};
use warren_broker::declare::Object;

use super::plan::{begun, declared, refused, same_broker};
use crate::brokers::{Outcome, Seen};
use crate::condition::{Statement, Status, conditions, find};
use crate::problem::{
    ALREADY_EXISTS, ARGUMENTS_DIFFER, CONFLICT, NOT_DURABLE, OTHER_FINALIZER, Problem, QUEUE_NOT_FOUND,
};
use crate::scaler::board::Durability;

/// How far a Queue has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It cannot be sent to a broker.
    Invalid(Problem),
    /// The broker has not answered yet.
    Pending {
        /// The broker's address.
        address: String,
    },
    /// The broker's lane has observed something.
    Observed {
        /// The broker's address.
        address: String,
        /// What.
        outcome: Outcome,
    },
    /// It is being deleted, and something keeps it.
    Blocked(Problem),
}

/// The status that follows.
pub fn status(queue: &Queue, progress: Progress, durability: Durability, now: &Time) -> QueueStatus {
    let former = queue.status.clone().unwrap_or_default();
    let name = queue.broker_name();
    let address = match &progress {
        Progress::Pending { address } | Progress::Observed { address, .. } => Some(address.as_str()),
        Progress::Invalid(_) | Progress::Blocked(_) => None,
    };
    // Before it has refused a part, nothing was declared.
    let is_refused = matches!(
        &progress,
        Progress::Observed { outcome: Outcome::Refused(problem), .. } if problem.object.is_some()
    );
    let mut next = QueueStatus {
        observed_generation: queue.metadata.generation,
        queue_name: Some(name.to_owned()),
        // Where it was last, while that is not known: what was made there is not made elsewhere.
        broker_address: address.or(former.broker_address.as_deref()).map(str::to_owned),
        created: former.created.filter(|_| {
            let both = former.broker_address.as_deref().zip(address);
            both.is_none_or(|(former, now)| same_broker(former, now))
        }),
        declared: match address {
            Some(address) if is_refused => refused(queue, address),
            Some(address) => begun(queue, address),
            None => former.declared.clone(),
        },
        conditions: Vec::new(),
    };
    if let (Progress::Invalid(problem), Some(declared)) = (&progress, &mut next.declared) {
        // What becomes of a queue that is another one's is no loss of this one.
        declared.main_queue &= problem.reason != CONFLICT;
    }
    let seen = match &progress {
        Progress::Observed { outcome: Outcome::Declared(seen), .. } => Some(seen.clone()),
        Progress::Invalid(_)
        | Progress::Pending { .. }
        | Progress::Observed { .. }
        | Progress::Blocked(_) => None,
    };
    let still = still(queue, &progress);
    let mut statements = match progress {
        Progress::Invalid(problem) => not_asked(&problem),
        Progress::Pending { .. } => pending(),
        Progress::Observed { outcome, .. } => observed(queue, &mut next, outcome),
        Progress::Blocked(problem) => blocked(problem, &former),
    };
    if let Some(still) = still {
        statements.retain(|statement| statement.kind != DECLARED);
        statements.push(still);
    }
    statements.extend(persistent_messages(queue, durability, &former));
    statements.extend(dead_letter_available(queue, seen.as_ref(), &former));
    statements.extend(consumer_timeout_effective(queue, seen.as_ref(), &former));
    next.conditions = conditions(&former.conditions, statements, queue.metadata.generation, now);
    next
}

/// A deletion that waits. What was right when the broker was asked last is kept, and that a queue is somebody else's; that the broker was
/// away is not, unless it still is: it may be back since.
fn blocked(problem: Problem, former: &QueueStatus) -> Vec<Statement> {
    let asked = problem.condition != BROKER_REACHABLE;
    let stands = |kind: &str, status: &str| match kind {
        BROKER_REACHABLE => asked && status == "True",
        // What Warren has let go is not kept as it is declared.
        _ => problem.reason != OTHER_FINALIZER && (status == "False" || asked && status == "True"),
    };
    let known = if asked { Vec::new() } else { not_asked(&problem) };
    let mut all = vec![Statement::new(READY, false, "Deleting", problem.message.clone())];
    for kind in [BROKER_REACHABLE, DECLARED] {
        let before = find(&former.conditions, kind).filter(|before| stands(kind, &before.status));
        let before = before.map(|before| Statement::of(kind, before));
        all.extend(before.or_else(|| known.iter().find(|said| said.kind == kind).cloned()));
    }
    all.push(Statement::new(DELETION_BLOCKED, true, problem.reason, problem.message));
    all
}

fn observed(queue: &Queue, next: &mut QueueStatus, outcome: Outcome) -> Vec<Statement> {
    let name = queue.broker_name();
    match outcome {
        Outcome::Declared(seen) => {
            next.declared = Some(declared(queue, &seen.leftover));
            vec![
                Statement::new(READY, true, "Declared", format!("queue \"{name}\" takes and gives messages")),
                Statement::new(BROKER_REACHABLE, true, "Connected", "the broker answers"),
                Statement::new(DECLARED, true, "Declared", described(queue)),
            ]
        }
        Outcome::Absent => {
            next.created = Some(true);
            pending()
        }
        Outcome::Removed => pending(),
        Outcome::Refused(problem) => {
            if let (Some(declared), Some(there)) = (&mut next.declared, is_main_there(queue, &problem)) {
                declared.main_queue = there;
                // They come before it.
                declared.has_ladder(&queue.spec.retry);
            }
            vec![
                Statement::new(READY, false, problem.reason, problem.message.clone()),
                Statement::new(BROKER_REACHABLE, true, "Connected", "the broker answers"),
                Statement::new(DECLARED, false, problem.reason, problem.message),
            ]
        }
        Outcome::Unreachable(problem) => not_asked(&problem),
    }
}

/// Whether the main queue is there as the spec asks for it, where a refusal tells: queues are declared before what is bound to them.
fn is_main_there(queue: &Queue, refusal: &Problem) -> Option<bool> {
    match refusal.object.as_ref()? {
        // It may have gone in between.
        Object::Exchange(_) | Object::Binding(_) => (refusal.reason != QUEUE_NOT_FOUND).then_some(true),
        Object::Queue(name) => {
            let differs = [ARGUMENTS_DIFFER, NOT_DURABLE].contains(&refusal.reason);
            (differs && name == queue.broker_name()).then_some(false)
        }
    }
}

/// Why, and what says so, the queue on the broker is somebody else's: nothing of it is this Queue's Workers' to consume.
pub fn others(queue: &Queue) -> Option<(&'static str, &Condition)> {
    let declared = find(queue.conditions(), DECLARED)?;
    let reason = [ALREADY_EXISTS, CONFLICT].into_iter().find(|reason| *reason == declared.reason)?;
    (declared.status == "False").then_some((reason, declared))
}

/// Whether the broker gives a Queue's messages to one consumer at a time: as its spec says, unless the main queue there is another than
/// the spec asks for, or may be: it is declared after the dead-letter and the retry queues, and not where one of these is another. Under
/// `AsIs` nothing is compared, and whoever made it is taken at the spec's word.
pub fn is_single(queue: &Queue) -> bool {
    let compared = queue.spec.adoption_policy != AdoptionPolicy::AsIs;
    queue.spec.single_active_consumer && !(compared && differing(queue).is_some())
}

/// What says that a queue on the broker is another than the spec asks for.
fn differing(queue: &Queue) -> Option<&Condition> {
    find(queue.conditions(), DECLARED).filter(|declared| {
        [ARGUMENTS_DIFFER, NOT_DURABLE].contains(&&*declared.reason)
            && declared.status == "False"
            && declared.message.starts_with("queue ")
    })
}

/// What says that an older Queue has what this one names.
pub fn conflicting(queue: &Queue) -> Option<&Condition> {
    others(queue).filter(|(reason, _)| *reason == CONFLICT).map(|(_, declared)| declared)
}

/// What lasts of what was said of the broker's queue while the broker is not, or cannot be, asked. A conflict does while the Queue's own
/// Secret cannot be used: the names are the older one's all the same. That the queue there is another does, since it decides who may
/// consume, unless the broker is another one.
fn still(queue: &Queue, progress: &Progress) -> Option<Statement> {
    let last = queue.status.as_ref().and_then(|status| status.broker_address.as_ref());
    let before = match progress {
        Progress::Invalid(problem) if problem.condition != DECLARED => {
            conflicting(queue).or_else(|| differing(queue))
        }
        Progress::Pending { address } | Progress::Observed { address, outcome: Outcome::Unreachable(_) } => {
            differing(queue).filter(|_| last == Some(address))
        }
        Progress::Invalid(_) | Progress::Observed { .. } | Progress::Blocked(_) => None,
    };
    before.map(|before| Statement::of(DECLARED, before))
}

fn pending() -> Vec<Statement> {
    let waiting = "the broker has not answered yet";
    [READY, BROKER_REACHABLE, DECLARED]
        .map(|kind| Statement::new(kind, Status::Unknown, "Connecting", waiting))
        .to_vec()
}

/// Before a broker is asked, or where it cannot be: what is on it is not known, unless it is said to be an older Queue's.
fn not_asked(problem: &Problem) -> Vec<Statement> {
    let (reason, message) = (problem.reason, &problem.message);
    let about = |kind, otherwise: &str| match problem.condition == kind {
        true => Statement::new(kind, false, reason, message.clone()),
        false => Statement::new(kind, Status::Unknown, reason, otherwise),
    };
    vec![
        Statement::new(READY, false, reason, message.clone()),
        about(BROKER_REACHABLE, "not asked"),
        about(DECLARED, "not known until the broker answers"),
    ]
}

/// On a durable classic queue, messages without `delivery_mode=2` do not survive a restart; a quorum queue keeps all. Where
/// none came lately, what was said of the last ones holds.
fn persistent_messages(queue: &Queue, durability: Durability, former: &QueueStatus) -> Option<Statement> {
    if queue.spec.queue_type == QueueType::Quorum {
        return None;
    }
    if durability.deliveries == 0 {
        return kept(PERSISTENT_MESSAGES, former);
    }
    Some(match durability.percent() {
        0 => Statement::new(
            PERSISTENT_MESSAGES,
            true,
            "Persistent",
            "every message lately seen survives a restart of the broker",
        ),
        percent => {
            let share = if percent == 1 { "up to 1".to_owned() } else { percent.to_string() };
            let message = format!(
                "{share} % of the messages lately seen lack delivery_mode=2 and would be lost when the broker restarts: have the producer set it (\"persistent\"), or use type: Quorum, which keeps all"
            );
            Statement::new(PERSISTENT_MESSAGES, false, "TransientMessages", message)
        }
    })
}

/// A full dead-letter queue refuses: what is to be dead-lettered stays unacknowledged with the sidecars.
fn dead_letter_available(queue: &Queue, seen: Option<&Seen>, former: &QueueStatus) -> Option<Statement> {
    let Some(full) = seen.and_then(|seen| seen.dead_letter_full) else {
        return kept(DEAD_LETTER_AVAILABLE, former);
    };
    if !full {
        let message = "the dead-letter queue takes messages";
        return Some(Statement::new(DEAD_LETTER_AVAILABLE, true, "Available", message));
    }
    let name = dead_letter_queue(queue.broker_name());
    let limit = queue.spec.dead_letter.max_length.unwrap_or_default();
    let message = format!(
        "\"{name}\" holds the {limit} messages that deadLetter.maxLength allows and refuses more; what is to be dead-lettered stays unacknowledged until there is room, or is called again after most of the consumer timeout: look at its messages, and publish again or purge them"
    );
    Some(Statement::new(DEAD_LETTER_AVAILABLE, false, "Full", message))
}

/// Before 3.12 a broker takes the argument and does nothing about it, and before 4.3 it does nothing where a queue has another.
fn consumer_timeout_effective(queue: &Queue, seen: Option<&Seen>, former: &QueueStatus) -> Option<Statement> {
    let Some(release) = seen.and_then(|seen| seen.release.as_ref()) else {
        return kept(CONSUMER_TIMEOUT_EFFECTIVE, former);
    };
    let others = "compare its x-consumer-timeout (rabbitmqctl list_queues name arguments)";
    let (status, reason, message) = match queue.spec.adoption_policy {
        _ if !release.knows_consumer_timeout() => (
            Status::False,
            "BrokerTooOld",
            format!(
                "RabbitMQ {release} knows no consumer timeout of a queue, only 3.12 and later do: the broker's own setting counts (consumer_timeout in rabbitmq.conf, by default 30 minutes)"
            ),
        ),
        AdoptionPolicy::AsIs => (
            Status::Unknown,
            "NotDeclared",
            format!("the queue is declared by others, with a consumer timeout or without: {others}"),
        ),
        AdoptionPolicy::Adopt if !release.compares_consumer_timeout() => (
            Status::True,
            "Effective",
            format!(
                "RabbitMQ {release} keeps to consumerTimeoutSeconds of a queue that Warren has made. One that was there before keeps its own, which this release does not compare: {others}"
            ),
        ),
        AdoptionPolicy::Adopt | AdoptionPolicy::FailIfExists => {
            (Status::True, "Effective", format!("RabbitMQ {release} keeps to consumerTimeoutSeconds"))
        }
    };
    Some(Statement::new(CONSUMER_TIMEOUT_EFFECTIVE, status, reason, message))
}

/// What was said before, while there is no news.
fn kept(kind: &'static str, former: &QueueStatus) -> Option<Statement> {
    find(&former.conditions, kind).map(|before| Statement::of(kind, before))
}

fn described(queue: &Queue) -> String {
    let spec = &queue.spec;
    let name = queue.broker_name();
    let dead_letters = dead_letter_queue(name);
    let rungs = spec.retry.delays_seconds.len();
    let bindings = spec.bindings.len();
    format!(
        "queues \"{name}\" and \"{dead_letters}\", {rungs} retry queues and {bindings} bindings are on the broker"
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use warren_api::QueueSpec;
    use warren_api::queue::Declared;
    use warren_broker::release::Release;

    use super::super::plan::tests::binding;
    use super::*;
    use crate::condition::{find, is_true};

    fn now() -> Time {
        Time(Timestamp::from_second(1).unwrap())
    }

    fn observed(outcome: Outcome) -> QueueStatus {
        let queue = Queue::new("orders", QueueSpec::default());
        let progress = Progress::Observed { address: "amqp://h".to_owned(), outcome };
        status(&queue, progress, Durability::default(), &now())
    }

    #[test]
    fn a_declared_queue_is_ready() {
        let status = observed(Outcome::Declared(Seen { leftover: vec![7], ..Seen::default() }));
        assert!(is_true(&status.conditions, READY) && is_true(&status.conditions, DECLARED));
        let declared = status.declared.unwrap();
        assert_eq!(declared.retry_delays_seconds, [5, 60, 600]);
        assert_eq!((declared.begun_delays_seconds, declared.max_attempts), (vec![7], Some(24)));
    }

    #[test]
    fn an_order_that_failed_is_recorded_with_the_bindings_that_it_may_have_made() {
        let bindings = vec![binding("shop")];
        let queue = Queue::new("orders", QueueSpec { bindings, ..QueueSpec::default() });
        let exchange = Object::Exchange("shop".to_owned());
        let of = |name: &str| Object::Queue(name.to_owned());
        for (object, reason, before, main_queue, rungs) in [
            (exchange.clone(), "ExchangeNotFound", false, true, true),
            (exchange.clone(), "AccessRefused", false, true, true),
            (exchange, QUEUE_NOT_FOUND, false, false, false),
            (of("orders"), ARGUMENTS_DIFFER, true, false, true),
            (of("orders.dlq"), ARGUMENTS_DIFFER, true, true, false),
            (of("orders.dlq"), "AccessRefused", false, false, false),
        ] {
            let problem = Problem { object: Some(object), ..Problem::new(DECLARED, reason, "m") };
            let progress = Progress::Observed {
                address: "amqp://h:1/v".to_owned(),
                outcome: Outcome::Refused(problem.clone()),
            };
            let former = vec![5, 30];
            let declared =
                Some(Declared { main_queue: before, retry_delays_seconds: former, ..Declared::default() });
            let before = QueueStatus {
                declared,
                broker_address: Some("amqp://h:1/v".to_owned()),
                ..QueueStatus::default()
            };
            let queue = Queue { status: Some(before), ..queue.clone() };
            let declared = status(&queue, progress, Durability::default(), &now()).declared.unwrap();
            assert_eq!(declared.bindings[0].exchange, "shop");
            assert_eq!(declared.main_queue, main_queue, "{problem:?}: queues come before bindings");
            let all = (declared.retry_delays_seconds, declared.begun_delays_seconds);
            let (there, begun) =
                if rungs { (vec![5, 60, 600], vec![30]) } else { (vec![5, 30], vec![60, 600]) };
            assert_eq!(all, (there, begun), "{problem:?}: and rungs before the main queue");
        }
    }

    #[test]
    fn nothing_was_declared_beside_a_queue_of_others_that_is_missing() {
        let others = QueueSpec { adoption_policy: AdoptionPolicy::AsIs, ..QueueSpec::default() };
        let queue = Queue::new("orders", others);
        let declared = |object: Option<Object>| {
            let problem = Problem { object, ..Problem::new(DECLARED, QUEUE_NOT_FOUND, "m") };
            let outcome = Outcome::Refused(problem);
            let progress = Progress::Observed { address: "amqp://h:1/v".to_owned(), outcome };
            status(&queue, progress, Durability::default(), &now()).declared
        };
        assert_eq!(declared(None), None);
        assert!(declared(Some(Object::Queue("orders.retry.60s".to_owned()))).is_some());
    }

    #[test]
    fn what_was_made_on_one_broker_is_not_made_on_the_next_also_when_the_secret_was_away_between() {
        let adoption_policy = AdoptionPolicy::FailIfExists;
        let mut queue = Queue::new("orders", QueueSpec { adoption_policy, ..QueueSpec::default() });
        let mut after = |progress| {
            let next = status(&queue, progress, Durability::default(), &now());
            queue.status = Some(next.clone());
            (next.broker_address.unwrap(), next.created)
        };
        let at = |address: &str, outcome| Progress::Observed { address: address.to_owned(), outcome };
        let (one, other) = ("amqp://a:5672/v", "amqp://b:5672/v");
        assert_eq!(after(at(one, Outcome::Absent)), (one.to_owned(), Some(true)));
        assert_eq!(after(at(one, Outcome::Declared(Seen::default()))), (one.to_owned(), Some(true)));
        let away = Progress::Invalid(Problem::new(BROKER_REACHABLE, "SecretNotFound", "m"));
        assert_eq!(after(away), (one.to_owned(), Some(true)));
        assert_eq!(after(Progress::Pending { address: other.to_owned() }), (other.to_owned(), None));
        assert_eq!(after(at(other, Outcome::Absent)), (other.to_owned(), Some(true)));
    }

    #[test]
    fn transient_messages_on_a_classic_queue_are_told_with_their_share() {
        let spec = QueueSpec { queue_type: QueueType::Classic, ..QueueSpec::default() };
        let progress = || Progress::Observed { address: "amqp://h".to_owned(), outcome: Outcome::Absent };
        let seen = Durability { deliveries: 200, transient: 50 };
        let mut queue = Queue::new("orders", spec);
        let mut told = |durability| {
            queue.status = Some(status(&queue, progress(), durability, &now()));
            find(&queue.status.as_ref().unwrap().conditions, PERSISTENT_MESSAGES).unwrap().clone()
        };
        let condition = told(seen);
        assert_eq!(condition.status, "False");
        assert!(condition.message.starts_with("25 %"), "{}", condition.message);
        // The share follows, silence changes nothing, and a producer that was mended is believed.
        let more = told(Durability { deliveries: 1000, transient: 999 });
        assert!(more.message.starts_with("100 %"), "{}", more.message);
        assert_eq!(told(Durability::default()), more);
        let few = told(Durability { deliveries: 1000, transient: 1 });
        assert!(few.message.starts_with("up to 1 %"), "{}", few.message);
        assert_eq!(told(Durability { deliveries: 10, transient: 0 }).status, "True");
        let quorum = status(&Queue::new("orders", QueueSpec::default()), progress(), seen, &now());
        assert!(find(&quorum.conditions, PERSISTENT_MESSAGES).is_none());
    }

    #[test]
    fn a_consumer_timeout_is_not_said_to_count_where_others_declare_the_queue_or_it_may_have_another() {
        use AdoptionPolicy::{Adopt, AsIs, FailIfExists};
        let told = |release, adoption_policy| {
            let queue = Queue::new("orders", QueueSpec { adoption_policy, ..QueueSpec::default() });
            let seen = Seen { release: Release::parse(release), ..Seen::default() };
            let progress =
                Progress::Observed { address: "amqp://h".to_owned(), outcome: Outcome::Declared(seen) };
            let status = status(&queue, progress, Durability::default(), &now());
            let said = find(&status.conditions, CONSUMER_TIMEOUT_EFFECTIVE).unwrap();
            let hedged = said.message.contains("x-consumer-timeout");
            (said.status.clone(), said.reason.clone(), hedged)
        };
        let said = |status: &str, reason: &str, hedged| (status.to_owned(), reason.to_owned(), hedged);
        for policy in [Adopt, AsIs, FailIfExists] {
            assert_eq!(told("3.11.28", policy), said("False", "BrokerTooOld", false));
        }
        assert_eq!(told("4.1.0", FailIfExists), said("True", "Effective", false), "Warren has made it");
        assert_eq!(told("4.1.0", Adopt), said("True", "Effective", true));
        assert_eq!(told("4.3.0", Adopt), said("True", "Effective", false));
        assert_eq!(told("4.3.0", AsIs), said("Unknown", "NotDeclared", true));
    }

    #[test]
    fn a_full_dead_letter_queue_is_told_until_there_is_room_also_while_the_broker_is_away() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        let mut told = |outcome| {
            let progress = Progress::Observed { address: "amqp://h".to_owned(), outcome };
            let next = status(&queue, progress, Durability::default(), &now());
            queue.status = Some(next.clone());
            find(&next.conditions, DEAD_LETTER_AVAILABLE).map(|c| (c.status.clone(), c.reason.clone()))
        };
        let declared = |full| Outcome::Declared(Seen { dead_letter_full: full, ..Seen::default() });
        let full = Some(("False".to_owned(), "Full".to_owned()));
        assert_eq!(told(declared(None)), None);
        assert_eq!(told(declared(Some(true))), full);
        assert_eq!(
            told(Outcome::Unreachable(Problem::new(BROKER_REACHABLE, "BrokerUnreachable", "m"))),
            full
        );
        assert_eq!(told(declared(Some(false))), Some(("True".to_owned(), "Available".to_owned())));
    }

    #[test]
    fn what_becomes_of_a_queue_that_was_another_one_s_is_no_loss_of_this_one() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        let mut there = |progress| {
            queue.status = Some(status(&queue, progress, Durability::default(), &now()));
            queue.status.as_ref().unwrap().declared.as_ref().unwrap().main_queue
        };
        let outcome = Outcome::Declared(Seen::default());
        assert!(there(Progress::Observed { address: "amqp://h".to_owned(), outcome }));
        let wrong = |reason| Progress::Invalid(Problem::new(DECLARED, reason, "m"));
        assert_eq!((there(wrong("SecretNotFound")), there(wrong(CONFLICT))), (true, false));
    }

    #[test]
    fn a_conflict_lasts_while_the_secret_of_the_younger_queue_is_bad() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        let after = |queue: &mut Queue, progress| {
            queue.status = Some(status(queue, progress, Durability::default(), &now()));
            others(queue).map(|(reason, _)| reason)
        };
        let wrong = |condition, reason| Progress::Invalid(Problem::new(condition, reason, "m"));
        let bad = || wrong(BROKER_REACHABLE, "SecretNotFound");
        assert_eq!(after(&mut queue, bad()), None);
        assert_eq!(after(&mut queue, wrong(DECLARED, CONFLICT)), Some(CONFLICT));
        assert_eq!(after(&mut queue, bad()), Some(CONFLICT));
        let ready = find(&queue.status.as_ref().unwrap().conditions, READY).unwrap();
        assert_eq!(ready.reason, "SecretNotFound");
        // Whatever of the spec was changed: it is known again when the Secret can be read.
        queue.metadata.generation = Some(2);
        assert_eq!(after(&mut queue, bad()), Some(CONFLICT));
        assert_eq!(after(&mut queue, Progress::Pending { address: "amqp://h".to_owned() }), None);
    }

    #[test]
    fn that_the_queue_there_is_another_lasts_while_its_broker_cannot_be_asked() {
        let spec = QueueSpec { single_active_consumer: true, ..QueueSpec::default() };
        let (here, elsewhere) = ("amqp://h:5672/v", "amqp://other:5672/v");
        let at = |address: &str, outcome| Progress::Observed { address: address.to_owned(), outcome };
        let differs = || Outcome::Refused(Problem::new(DECLARED, ARGUMENTS_DIFFER, "queue \"orders\": m"));
        let away = || Outcome::Unreachable(Problem::new(BROKER_REACHABLE, "BrokerUnreachable", "m"));
        let no_secret = || Progress::Invalid(Problem::new(BROKER_REACHABLE, "SecretNotFound", "m"));
        for (progress, single) in [
            (at(here, away()), false),
            (no_secret(), false),
            (Progress::Pending { address: here.to_owned() }, false),
            (at(here, Outcome::Declared(Seen::default())), true),
            (at(elsewhere, away()), true),
        ] {
            let mut queue = Queue::new("orders", spec.clone());
            for progress in [at(here, differs()), progress.clone()] {
                queue.status = Some(status(&queue, progress, Durability::default(), &now()));
            }
            assert_eq!(is_single(&queue), single, "{progress:?}");
            let ready = find(queue.conditions(), READY).unwrap();
            assert_ne!(ready.reason, ARGUMENTS_DIFFER, "Ready says what is wrong now");
        }
    }

    #[test]
    fn a_refusal_is_about_the_declaration_and_an_outage_about_the_broker() {
        let refused = observed(Outcome::Refused(Problem::new(DECLARED, "NotDurable", "m")));
        assert!(is_true(&refused.conditions, BROKER_REACHABLE));
        assert_eq!(find(&refused.conditions, READY).unwrap().reason, "NotDurable");
        let down = observed(Outcome::Unreachable(Problem::new(BROKER_REACHABLE, "AuthRefused", "m")));
        assert_eq!(find(&down.conditions, BROKER_REACHABLE).unwrap().reason, "AuthRefused");
        assert_eq!(find(&down.conditions, DECLARED).unwrap().status, "Unknown");
    }

    #[test]
    fn a_deletion_that_waits_says_of_the_broker_what_is_known_now() {
        let told = |before: Outcome, condition, reason| {
            let mut queue = Queue::new("orders", QueueSpec::default());
            queue.status = Some(observed(before));
            let why = Problem::new(condition, reason, "m");
            let next = status(&queue, Progress::Blocked(why), Durability::default(), &now());
            let of =
                |kind| find(&next.conditions, kind).map(|said| format!("{} {}", said.status, said.reason));
            assert_eq!(of(READY).unwrap(), "False Deleting");
            assert_eq!(of(DELETION_BLOCKED).unwrap(), format!("True {reason}"));
            [of(BROKER_REACHABLE), of(DECLARED)].map(Option::unwrap_or_default)
        };
        let declared = || Outcome::Declared(Seen::default());
        let away = || Outcome::Unreachable(Problem::new(BROKER_REACHABLE, "BrokerUnreachable", "m"));
        let taken = || Outcome::Refused(Problem::new(DECLARED, CONFLICT, "m"));
        let down = ["False BrokerUnreachable", "Unknown BrokerUnreachable"];
        assert_eq!(told(declared(), BROKER_REACHABLE, "BrokerUnreachable"), down);
        assert_eq!(told(away(), BROKER_REACHABLE, "BrokerUnreachable"), down);
        assert_eq!(told(taken(), BROKER_REACHABLE, "BrokerUnreachable"), [down[0], "False Conflict"]);
        assert_eq!(told(declared(), DELETION_BLOCKED, "WorkersRunning"), ["True Connected", "True Declared"]);
        assert_eq!(told(away(), DELETION_BLOCKED, "WorkersRunning"), ["", ""], "it may be back");
        assert_eq!(told(declared(), DELETION_BLOCKED, OTHER_FINALIZER), ["True Connected", ""]);
    }

    #[test]
    fn what_is_on_the_broker_is_remembered_while_the_secret_is_away() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        let mut after = |progress| {
            let next = status(&queue, progress, Durability::default(), &now());
            queue.status = Some(next.clone());
            next
        };
        let declared = Outcome::Declared(Seen { release: Release::parse("3.11.28"), ..Seen::default() });
        let there = after(Progress::Observed { address: "amqp://h:1/v".to_owned(), outcome: declared });
        let away = after(Progress::Invalid(Problem::new(BROKER_REACHABLE, "SecretNotFound", "m")));
        assert!(away.declared.is_some());
        assert_eq!(away.declared, there.declared, "its rungs and bindings are still there");
        let timeout = |status: &QueueStatus| find(&status.conditions, CONSUMER_TIMEOUT_EFFECTIVE).cloned();
        assert!(timeout(&there).is_some());
        assert_eq!(timeout(&away), timeout(&there), "the broker is no other one");
    }
}
