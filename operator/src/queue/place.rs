//! A Queue's place among the others of its broker: the names that it claims, and the order that it has there.

use std::time::Duration;

use kube::ResourceExt;
use warren_api::Queue;
use warren_api::conditions::queue::DECLARED;
use warren_broker::BrokerAccess;

use super::status::conflicting;
use super::{finalizer, plan};
use crate::brokers::{Key, Order, Outcome};
use crate::context::Context;
use crate::problem::{CONFLICT, Problem};

/// A broker that answers at once spares a new Queue the condition Unknown.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// How long a Queue waits for its turn on a broker that answers, before it says that it waits.
const TURN: Duration = Duration::from_secs(300);

/// Takes a Queue in that this process may not have looked at yet: what it had before a restart is its own also while its Secret
/// is bad, and before its turn to be looked at has come.
pub(crate) fn expect(queue: &Queue, context: &Context) {
    let key = Key::of(queue);
    if !context.brokers.has_claimed(&key) && !is_over(queue) {
        let address = last_address(queue);
        let names = plan::keep(queue, address.unwrap_or_default()).names();
        context.brokers.expect(&key, age(queue), address, names);
    }
}

/// Whether a Queue is deleted and leaves what is on the broker: it never claims anything again.
fn is_over(queue: &Queue) -> bool {
    queue.metadata.deletion_timestamp.is_some() && !finalizer::is_set(queue)
}

/// The address of the broker where a Queue had what it names when it was last looked at; none where that is not known.
fn last_address(queue: &Queue) -> Option<&str> {
    let status = queue.status.as_ref().filter(|_| conflicting(queue).is_none())?;
    status.broker_address.as_deref()
}

/// An older Queue that has one of the names on the broker already.
pub(super) fn conflict(
    queue: &Queue,
    key: &Key,
    address: &str,
    order: &Order,
    context: &Context,
) -> Option<Problem> {
    let (name, older) = context.brokers.claim(key, age(queue), address, order.names())?;
    let Key { namespace, name: holder } = older;
    let message = format!(
        "queue \"{name}\" of this broker is kept by the older Queue \"{holder}\" in namespace \"{namespace}\": delete one of the two, and its Workers before it; to have both, make this one again with another queueName"
    );
    Some(Problem::new(DECLARED, CONFLICT, message))
}

/// When a Queue was created: of two that name the same queue, the older has it.
fn age(queue: &Queue) -> i64 {
    queue.creation_timestamp().map_or(i64::MAX, |created| created.0.as_second())
}

/// An older Queue that names a queue of this one and of which it is not known on which broker.
pub(super) fn older_to_come(queue: &Queue, key: &Key, order: &Order, context: &Context) -> Option<Key> {
    context.brokers.older_to_come(key, age(queue), &order.names())
}

/// Why a Queue that an older one has kept out waits still, though that one is gone; none: it need not.
pub(super) fn waits(queue: &Queue, key: &Key, order: &Order, context: &Context) -> Option<String> {
    if let Some(older) = older_to_come(queue, key, order, context) {
        return Some(format!("{}, or delete that Queue", waits_for(&older)));
    }
    (!context.brokers.all_listed()).then(|| {
        "an older Queue of that name may be in a namespace whose Queues cannot be listed yet: see the operator's log, and that its Role is in each of watchNamespaces"
            .to_owned()
    })
}

/// Why a Queue waits for an older one of which it is not known on which broker.
pub(super) fn waits_for(older: &Key) -> String {
    let Key { namespace, name } = older;
    format!(
        "the older Queue \"{name}\" in namespace \"{namespace}\" names the same queue, and whether it is the same broker's is not known before its Secret can be read: see to that Secret"
    )
}

/// Places an order; gives what has become of it.
pub(super) fn outcome(
    queue: &Queue,
    key: &Key,
    access: &BrokerAccess,
    order: &Order,
    context: &Context,
) -> Option<Outcome> {
    context.brokers.assign(key, access, order.clone(), plan::past(queue, &access.address()))
}

/// How long a Queue waits for its broker's answer before it says so.
pub(super) fn patience(key: &Key, context: &Context) -> Duration {
    let answers = context.brokers.lane_of(key).is_some_and(|lane| lane.is_up());
    if answers { TURN } else { FIRST_ANSWER }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use warren_api::{QueueSpec, QueueStatus};

    use super::super::status::{Progress, status};
    use super::*;
    use crate::scaler::board::Durability;

    const ADDRESS: &str = "amqp://a:5672/shop";

    #[test]
    fn a_queue_has_what_it_names_where_it_was_last_unless_an_older_one_had_it_there() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        assert_eq!(last_address(&queue), None);
        let broker_address = Some(ADDRESS.to_owned());
        queue.status = Some(QueueStatus { broker_address, ..QueueStatus::default() });
        assert_eq!(last_address(&queue), Some(ADDRESS));
        let now = Time(Timestamp::from_second(3).unwrap());
        let mut after = |condition, reason| {
            let progress = Progress::Invalid(Problem::new(condition, reason, "m"));
            queue.status = Some(status(&queue, progress, Durability::default(), &now));
            last_address(&queue).map(str::to_owned)
        };
        assert_eq!(after("BrokerReachable", "SecretNotFound"), Some(ADDRESS.to_owned()));
        assert_eq!(after(DECLARED, CONFLICT), None);
    }

    #[test]
    fn a_queue_that_ends_and_leaves_what_is_on_the_broker_has_nothing_any_more() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        assert!(!is_over(&queue));
        queue.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(5).unwrap()));
        assert!(is_over(&queue));
        queue.metadata.finalizers = Some(vec!["warren.dev/broker-queue".to_owned()]);
        assert!(!is_over(&queue), "its queues are to be removed");
    }
}
