//! The end of a Queue: what its deletion policy asks of the broker, and what it waits for.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use tokio::time::Instant;
use warren_api::Queue;
use warren_api::conditions::queue::DELETION_BLOCKED;
use warren_broker::BrokerAccess;

use super::consumers::Holding;
use super::place::{conflict, older_to_come, outcome, patience, waits_for};
use super::status::conflicting;
use super::validate::validate;
use super::{dereference, finalizer, plan};
use crate::brokers::{Key, Order, Outcome, Past};
use crate::context::{Context, PASSING_FAILURES};
use crate::error::Error;
use crate::problem::{CONFLICT, Problem};
use crate::secrets::SecretState;

/// How far the end of a Queue is.
pub(super) enum End {
    /// Nothing of it is left that its policy does not leave.
    Gone,
    /// The broker is at it.
    Underway,
    /// Something keeps it.
    Blocked(Problem),
}

/// Ends a Queue as its policy says.
pub(super) async fn end(queue: &Queue, context: &Context) -> Result<End, Error> {
    let key = Key::of(queue);
    let ours = finalizer::is_set(queue) && !is_another_s(queue, &key, context);
    let end = match plan::remove(queue).filter(|_| ours) {
        None => {
            if ours && !is_bound_again(queue, &key, context).await? {
                return Ok(End::Underway);
            }
            // What an earlier policy has ordered must not go on.
            context.brokers.forget(&key);
            End::Gone
        }
        Some(order) => removal(queue, &key, order, context).await?,
    };
    if matches!(end, End::Gone) {
        // It would be done to what a younger Queue makes under these names.
        if context.brokers.carries_out(&key) {
            return Ok(End::Underway);
        }
        finalizer::remove(queue, &context.client).await?;
        // The names are kept, with the memory of what is done, until the Queue is seen without its finalizer, or gone: another
        // try would delete what a younger Queue has made under them meanwhile, or miss the Secret of a namespace that goes.
        if !finalizer::is_set(queue) {
            context.brokers.gone(&key);
        }
    }
    Ok(end)
}

/// Whether an older Queue had what this one names when it was last looked at, and nothing was ordered since. That outlasts a
/// restart, after which the older one may be late to claim it: its namespace has caches of its own.
fn is_another_s(queue: &Queue, key: &Key, context: &Context) -> bool {
    conflicting(queue).is_some() && context.brokers.lane_of(key).is_none()
}

/// How the broker of a Queue that is deleted is reached.
async fn access(queue: &Queue, key: &Key, context: &Context) -> Result<Result<BrokerAccess, Problem>, Error> {
    let secret = dereference::secret(queue, context).await?;
    Ok(match (validate(queue, &secret), secret) {
        // A namespace that is deleted loses its Secrets first.
        (Err(wrong), SecretState::Missing) => context.brokers.access_of(key).ok_or(wrong),
        (access, _) => access,
    })
}

/// Has what stays bound again: an attempt under an earlier policy has taken the bindings to count, and may have ended before it
/// put them back. Says whether that is done, as far as can be: a broker that cannot be used holds nothing up.
async fn is_bound_again(queue: &Queue, key: &Key, context: &Context) -> Result<bool, Error> {
    if !plan::may_be_unbound(queue) {
        return Ok(true);
    }
    let why = match access(queue, key, context).await {
        // It must not keep the Queue for ever that the API server cannot give its Secret.
        Err(error) if context.retries.in_a_row(queue) >= PASSING_FAILURES => error.to_string(),
        Err(error) => return Err(error),
        Ok(Err(wrong)) => wrong.message,
        Ok(Ok(access)) => {
            let address = access.address();
            let order = plan::keep_under(queue, &address, &context.workers_of(queue));
            if conflict(queue, key, &address, &order, context).is_some()
                || plan::made_elsewhere(queue, &address)
            {
                return Ok(true);
            }
            match outcome(queue, key, &access, &order, context) {
                Some(Outcome::Declared(_)) => return Ok(true),
                Some(Outcome::Refused(problem) | Outcome::Unreachable(problem)) => problem.message,
                None if waited(queue, context) < patience(key, context) => return Ok(false),
                None | Some(Outcome::Absent | Outcome::Removed) => "the broker has not answered".to_owned(),
            }
        }
    };
    let bindings = queue.spec.bindings.iter();
    let bindings = bindings.map(|binding| format!("\"{}\" by \"{}\"", binding.exchange, binding.routing_key));
    let note = format!(
        "queue \"{}\" stays, and may lack bindings that an attempt to delete it has taken: {why}. See that it is bound to {}",
        queue.broker_name(),
        bindings.collect::<Vec<_>>().join(", ")
    );
    context.event(queue, EventType::Warning, "BindingsUnknown", &note, "Delete");
    Ok(true)
}

/// Has the broker's queues removed.
async fn removal(queue: &Queue, key: &Key, order: Order, context: &Context) -> Result<End, Error> {
    let access = access(queue, key, context).await?;
    if let Ok(access) = &access {
        let address = access.address();
        // What an older Queue keeps is not this one's to delete, nor is what must not have existed and was not made here.
        if conflict(queue, key, &address, &order, context).is_some() || plan::made_elsewhere(queue, &address)
        {
            // How it was reached stays known until the finalizer is gone.
            context.brokers.lapse(key);
            return Ok(End::Gone);
        }
    }
    if let Some(why) = consuming(key, context) {
        keep_meanwhile(queue, key, access.ok(), context);
        return Ok(blocked("WorkersRunning", format!("{why}, or set deletionPolicy: Retain")));
    }
    let access = match access {
        Ok(access) => access,
        Err(wrong) => return Ok(away(&wrong)),
    };
    if let Some(older) = older_to_come(queue, key, &order, context) {
        // After a start each of them claims its names at once.
        if waited(queue, context) < patience(key, context) {
            return Ok(End::Underway);
        }
        return Ok(blocked(CONFLICT, format!("{}, or set deletionPolicy: Retain here", waits_for(&older))));
    }
    // What has begun by way of another Secret would declare again what is removed by this one.
    if context.brokers.carries_out_elsewhere(key, &access) {
        return Ok(End::Underway);
    }
    // A policy that was changed since, which a watch may be late to say, may leave all of it.
    if !context.brokers.has(key, &access, &order) && !context.is_current(queue).await? {
        return Ok(End::Underway);
    }
    match outcome(queue, key, &access, &order, context) {
        Some(Outcome::Removed) => Ok(End::Gone),
        Some(Outcome::Refused(refused)) => Ok(blocked(refused.reason, refused.message)),
        Some(Outcome::Unreachable(down)) => Ok(away(&down)),
        Some(Outcome::Declared(_) | Outcome::Absent) | None => {
            if waited(queue, context) < patience(key, context) {
                return Ok(End::Underway);
            }
            Ok(blocked("Deleting", "the broker's queues are being deleted".to_owned()))
        }
    }
}

fn blocked(reason: &'static str, message: String) -> End {
    End::Blocked(Problem::new(DELETION_BLOCKED, reason, message))
}

/// The broker cannot be asked.
fn away(why: &Problem) -> End {
    let message = format!(
        "{}. To let go without the broker, as in a namespace that is being deleted, where nothing can be created, set deletionPolicy: Retain",
        why.message
    );
    End::Blocked(Problem::new(why.condition, why.reason, message))
}

/// Whose pods may hold messages of a Queue, and what ends that. A Worker that is deleted goes before its pods do.
fn consuming(key: &Key, context: &Context) -> Option<String> {
    let holding = context.pods.workers(&key.namespace);
    let (worker, holding) = context.best_known_to_consume(&holding, &key.name, Instant::now())?;
    let living = context.worker(worker);
    let names_this = living.map(|living| living.spec.queue_ref.name == key.name);
    Some(holds(&worker.name, holding, names_this))
}

/// What a Worker's pods have to do with a Queue, and what ends that. `names_this`: whether it names the Queue; none: it is gone.
fn holds(name: &str, holding: Holding, names_this: Option<bool>) -> String {
    match (holding, names_this) {
        (_, Some(true)) => format!("Worker \"{name}\" still has pods on this queue: delete it first"),
        (Holding::Unseen(rest), Some(false) | None) => {
            // Whole minutes: a status is not written each time that it is looked at.
            let minutes = rest.as_secs().div_ceil(60).max(1);
            let minutes = if minutes == 1 { "a minute".to_owned() } else { format!("{minutes} minutes") };
            format!(
                "Worker \"{name}\" was changed before the operator started, and may have named this Queue until then: wait for up to {minutes}, in which its pods end what they may have of it"
            )
        }
        (Holding::Known, Some(false)) => format!(
            "pods of Worker \"{name}\", which names another Queue now, may still work on messages of this one: wait until they have ended that"
        ),
        (Holding::Known, None) => format!(
            "pods of Worker \"{name}\", which is deleted, may still work on messages of this queue: wait until they have ended, or delete them"
        ),
    }
}

/// Takes back a removal that has been ordered, so that pods find what they consume, with its bindings.
fn keep_meanwhile(queue: &Queue, key: &Key, access: Option<BrokerAccess>, context: &Context) {
    match access {
        Some(access) => {
            let address = access.address();
            let order = plan::keep_under(queue, &address, &context.workers_of(queue));
            let past = if plan::was_declared(queue, &address) { Past::Removing } else { Past::None };
            context.brokers.assign(key, &access, order, past);
        }
        None => context.brokers.forget(key),
    }
}

/// How long this process has waited for the end of a Queue: its deletion may have been asked for long before it began.
fn waited(queue: &Queue, context: &Context) -> Duration {
    let asked = queue.metadata.deletion_timestamp.as_ref();
    let since = asked.map_or(Duration::ZERO, |asked| Timestamp::now().duration_since(asked.0).unsigned_abs());
    since.min(context.seen_for(queue))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use warren_api::QueueSpec;
    use warren_api::conditions::queue::DECLARED;

    use super::super::status::{Progress, status};
    use super::*;
    use crate::brokers::Seen;
    use crate::scaler::board::Durability;

    const ADDRESS: &str = "amqp://a:5672/shop";

    fn queue(name: &str, created: i64, broker_queue: &str) -> Queue {
        let spec = QueueSpec { queue_name: Some(broker_queue.to_owned()), ..QueueSpec::default() };
        let mut queue = Queue::new(name, spec);
        queue.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        queue
    }

    #[test]
    fn a_worker_that_may_have_named_the_queue_unseen_is_not_said_to_have_done_so() {
        let unseen =
            |seconds, names_this| holds("ok", Holding::Unseen(Duration::from_secs(seconds)), names_this);
        let said = unseen(200, Some(false));
        assert!(said.starts_with(
            "Worker \"ok\" was changed before the operator started, and may have named this Queue"
        ));
        assert!(said.contains("wait for up to 4 minutes, in which"), "{said}");
        assert!(unseen(1, None).contains("wait for up to a minute, in which"));
        assert!(unseen(200, Some(true)).contains("delete it first"));
        assert!(holds("ok", Holding::Known, Some(false)).contains("names another Queue now"));
    }

    #[test]
    fn a_queue_whose_name_an_older_one_had_says_so_until_it_is_looked_at_anew() {
        let mut younger = queue("younger", 2, "orders");
        assert!(conflicting(&younger).is_none());
        let now = Time(Timestamp::from_second(3).unwrap());
        let mut after = |progress| {
            younger.status = Some(status(&younger, progress, Durability::default(), &now));
            conflicting(&younger).is_some()
        };
        let at = |outcome| Progress::Observed { address: ADDRESS.to_owned(), outcome };
        let wrong = |reason| Problem::new(DECLARED, reason, "m");
        assert!(after(Progress::Invalid(wrong(CONFLICT))));
        let blocked = Problem::new(DELETION_BLOCKED, "WorkersRunning", "m");
        assert!(after(Progress::Blocked(blocked)), "while something else keeps it");
        assert!(!after(at(Outcome::Declared(Seen::default()))));
        assert!(
            !after(at(Outcome::Refused(wrong("ArgumentsDiffer")))),
            "the others of its queues may be its own"
        );
    }
}
