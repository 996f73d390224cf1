//! One order carried out on a broker's connection, bounded in time.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use warren_api::QueueType;
use warren_api::conditions::queue::DECLARED;
use warren_api::names::dead_letter_queue;
use warren_api::queue::DeclaredBinding;
use warren_broker::channel::open;
use warren_broker::declare::{self, DeclareError, Object, QueueDepth};
use warren_broker::lapin::Channel;
use warren_broker::supervisor::Link;
use warren_broker::topology::{QueuePlan, Role, Topology, retry_queue};
use warren_broker::{BrokerError, Category};

use super::channels::Channels;
use super::counted::{count, depth_of, leaders};
use super::link::{close, on_own_channel, put_back, take};
use super::remove::{bind_again, remove};
use super::rest::Rest;
use super::rungs::{Leaders, retired};
use super::{Claim, Goal, Order, Outcome, Seen};
use crate::problem::{ALREADY_EXISTS, Problem, QUEUE_NOT_FOUND};

/// How long an attempt at an order may take, and what is bound again after it.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Bindings that one attempt takes back at once, each on a channel of its own.
const UNBINDS_AT_ONCE: usize = 4;

/// Refusals of one attempt beyond which no more is tried: each costs a channel's number for good.
const MOST_REFUSALS: usize = 8;

/// What deletions wait for, and what ends them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    /// Whether sidecars have had the time to learn of the order, so that what they no longer use may go.
    pub(super) learned: bool,
    /// How long a queue has to have read empty before it goes, where it may hold messages back: see [`Rest`].
    pub(super) held_back: Duration,
    /// There as long as the order stands.
    pub(super) stands: &'a Weak<()>,
}

/// What earlier looks at the order have seen: how long what is to go has read empty, and whether the dead-letter queue was full.
type Before<'a> = (&'a mut Rest, bool);

/// Carries an order out, on a channel of its own that is used again when nothing was refused.
pub(super) async fn carry_out(
    link: &Link,
    channels: &Mutex<Channels<Channel>>,
    order: &Arc<Order>,
    patience: Patience<'_>,
    before: Before<'_>,
) -> Result<Outcome, DeclareError> {
    let outcome = in_time(order, attempt(link, channels, order, patience, before)).await;
    if let (Goal::Remove { only_if_empty: true, .. }, Ok(Outcome::Refused(_)) | Err(_)) =
        (&order.goal, &outcome)
    {
        // What was unbound to be counted, now or by an attempt that a lost connection ended.
        let bound = in_time(order, bind_again(link, order)).await;
        return outcome.and_then(|refused| bound.map(|()| refused));
    }
    outcome
}

/// Bounds a part of an order in time.
pub(super) async fn in_time<T>(
    order: &Order,
    part: impl Future<Output = Result<T, DeclareError>>,
) -> Result<T, DeclareError> {
    let timed_out = BrokerError::TimedOut { what: "declaration", seconds: TIMEOUT.as_secs() };
    tokio::time::timeout(TIMEOUT, part).await.unwrap_or_else(|_| Err(of_main(order, timed_out)))
}

/// One attempt, which may leave a main queue unbound that stays.
async fn attempt(
    link: &Link,
    channels: &Mutex<Channels<Channel>>,
    order: &Order,
    patience: Patience<'_>,
    before: Before<'_>,
) -> Result<Outcome, DeclareError> {
    let mut pooled = take(link, channels).await.map_err(|error| of_main(order, error))?;
    let outcome = match &order.goal {
        Goal::Keep { claim, unbind, retire, untold } => {
            let patience = Patience { learned: patience.learned && !untold, ..patience };
            keep(link, &pooled.channel, order, (*claim, unbind, retire), patience, before).await
        }
        Goal::Remove { only_if_empty, unbind } => {
            remove(link, &mut pooled.channel, order, (*only_if_empty, unbind), patience, before.0).await
        }
    }?;
    put_back(link, channels, pooled);
    Ok(outcome)
}

pub(super) fn of_main(order: &Order, error: BrokerError) -> DeclareError {
    DeclareError { object: Object::Queue(order.main.clone()), error }
}

async fn keep(
    link: &Link,
    channel: &Channel,
    order: &Order,
    (claim, unbind, retire): (Claim, &[DeclaredBinding], &[u32]),
    patience: Patience<'_>,
    (rest, was_full): Before<'_>,
) -> Result<Outcome, DeclareError> {
    let (main, begun) = (&order.main, Instant::now());
    let (dead_letters, depth, room) = match claim {
        Claim::Declare => {
            let declared = declare_all(link, channel, &order.topology).await;
            if let Err(refused) = &declared
                && is_refused_binding(refused)
            {
                // What the spec has dropped does not wait for what is wrong with the rest, which is told.
                let taken_back = take_all_back(link, order, unbind, patience.stands).await;
                tracing::debug!(?taken_back, "bindings that the spec has dropped");
            }
            let depths = declared?;
            let depth = depths.last().copied().unwrap_or_default();
            (dead_letters(&order.topology, &depths), depth, has_room(order.topology.main(), depth.ready))
        }
        Claim::MustExist => {
            let Some(depth) = depth_of(link, main).await.map_err(|error| of_main(order, error))? else {
                rest.missed(Instant::now());
                let message = format!(
                    "queue \"{main}\" does not exist, and adoptionPolicy AsIs leaves it to others: create it, or use adoptionPolicy: Adopt"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, QUEUE_NOT_FOUND, message)));
            };
            let beside = beside(&order.topology);
            let dead_letters = dead_letters(&beside, &declare_all(link, channel, &beside).await?);
            (dead_letters, depth, has_room(None, depth.ready))
        }
        Claim::MustBeAbsent => {
            if depth_of(link, main).await.map_err(|error| of_main(order, error))?.is_some() {
                let message = format!(
                    "queue \"{main}\" exists already, which adoptionPolicy FailIfExists refuses: set adoptionPolicy: Adopt to take it over, or delete this Queue and make it again with another queueName"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, ALREADY_EXISTS, message)));
            }
            return Ok(Outcome::Absent);
        }
    };
    let dead_letter_full = match dead_letters {
        Some((0, _)) if was_full => Some(!has_emptied(link, order).await),
        counted => counted.map(|(ready, limit)| i64::from(ready) >= limit),
    };
    take_all_back(link, order, unbind, patience.stands).await?;
    let mut leaders = Leaders::of(link, channel, order, (room, depth));
    let mut leftover = Vec::new();
    let missed = rest.missed_within(patience.held_back, Instant::now());
    for delay in retire {
        let rung = retry_queue(main, order.queue_type, *delay);
        // Each is counted by itself: many have their turn when the first of them have gone.
        if begun.elapsed() > TIMEOUT / 2 {
            rest.seen(&rung.name, false, Instant::now());
            leftover.push(*delay);
            continue;
        }
        let mut may_go =
            |empty| match (rest.seen(&rung.name, empty && room, Instant::now()), order.queue_type) {
                (Some(waited), QueueType::Quorum) => waited >= patience.held_back && !missed,
                (None, QueueType::Quorum) => false,
                // It holds nothing back.
                (_, QueueType::Classic) => empty,
            };
        let gone = patience.learned
            && patience.stands.strong_count() > 0
            && retired(&rung, &mut leaders, &mut may_go).await.map_err(|error| of_main(order, error))?;
        if !gone {
            leftover.push(*delay);
        }
    }
    Ok(Outcome::Declared(Seen { leftover, dead_letter_full, release: None }))
}

/// Declares everything that the broker takes; the error is its first refusal. What is sent to one exchange must not be lost since
/// another one is missing.
pub(super) async fn declare_all(
    link: &Link,
    channel: &Channel,
    topology: &Topology,
) -> Result<Vec<QueueDepth>, DeclareError> {
    let first = match declare::declare(channel, topology).await {
        Err(refusal) if refusal.error.category() != Category::Retryable => refusal,
        declared => return declared,
    };
    let (mut rest, mut refusal) = (topology.clone(), first.clone());
    // Where more are refused than are tried, each attempt gets to others of those that the broker takes.
    let others = (rand::random_range(0..=rest.exchanges.len()), rand::random_range(0..=rest.bindings.len()));
    rest.exchanges.rotate_left(others.0);
    rest.bindings.rotate_left(others.1);
    for refusals in 1..=MOST_REFUSALS {
        if refusals == MOST_REFUSALS {
            leave_out_all_after(&mut rest, &refusal.object);
        }
        if !leave_out(&mut rest, &refusal.object) {
            break;
        }
        let object = refusal.object;
        let channel = open(link).await.map_err(|error| DeclareError { object, error })?;
        match declare::declare(&channel, &rest).await {
            Ok(_) => {
                close(&channel).await;
                return Err(first);
            }
            // What is left is tried again soon.
            Err(failed) if failed.error.category() == Category::Retryable => return Err(failed),
            Err(next) => refusal = next,
        }
    }
    tracing::debug!(%first, last = %refusal, "not everything was tried to declare");
    Err(first)
}

/// Takes what was refused, and what depends on it, out of a topology; gives whether something else is left to declare.
fn leave_out(topology: &mut Topology, refused: &Object) -> bool {
    match refused {
        Object::Queue(_) => return false,
        Object::Exchange(name) => {
            topology.exchanges.retain(|exchange| exchange.name != *name);
            topology.bindings.retain(|binding| binding.exchange != *name);
        }
        Object::Binding(refused) => topology.bindings.retain(|binding| binding != &**refused),
    }
    !topology.bindings.is_empty()
}

/// Takes out what comes after an exchange that was refused: what comes before it is there.
fn leave_out_all_after(topology: &mut Topology, refused: &Object) {
    let Topology { exchanges, bindings, .. } = topology;
    if let Object::Exchange(name) = refused {
        let there = exchanges.iter().position(|exchange| exchange.name == *name).unwrap_or_default();
        exchanges.truncate(there);
        bindings.retain(|binding| exchanges.iter().any(|exchange| exchange.name == binding.exchange));
    }
}

/// Whether a refusal is about an exchange or a binding: the main queue is there then.
fn is_refused_binding(refused: &DeclareError) -> bool {
    let of_binding = matches!(refused.object, Object::Exchange(_) | Object::Binding(_));
    of_binding && refused.error.category() != Category::Retryable
}

/// Takes bindings of the main queue back that may have been made: many have to fit an attempt on a slow way, too. None is left in the
/// midst of it over another one: the library would end the connection over what is then refused to it. An order that does not stand any
/// more takes no further ones: the next may ask for them.
async fn take_all_back(
    link: &Link,
    order: &Order,
    bindings: &[DeclaredBinding],
    stands: &Weak<()>,
) -> Result<(), DeclareError> {
    for some in bindings.chunks(UNBINDS_AT_ONCE) {
        if stands.strong_count() == 0 {
            break;
        }
        let taken = join_all(some.iter().map(|binding| take_back(link, &order.main, binding))).await;
        taken.into_iter().collect::<Result<(), _>>().map_err(|error| of_main(order, error))?;
    }
    Ok(())
}

/// Takes a binding back that may have been made.
async fn take_back(link: &Link, main: &str, binding: &DeclaredBinding) -> Result<(), BrokerError> {
    match on_own_channel(link, async |channel| declare::unbind(channel, main, binding).await).await {
        // The right that is missing is needed to bind too: most likely there is nothing to take back, and the spec, which asks
        // for nothing there any more, must not wait for it.
        Err(BrokerError::AccessRefused { detail }) => {
            let exchange = &binding.exchange;
            tracing::warn!(queue = main, exchange, %detail, "a binding that the spec has dropped is not looked after any more");
            Ok(())
        }
        unbound => unbound,
    }
}

/// How many messages the dead-letter queue holds, and how many it may; none where it has no limit.
fn dead_letters(topology: &Topology, depths: &[QueueDepth]) -> Option<(u32, i64)> {
    let (queue, depth) =
        topology.queues.iter().zip(depths).find(|(queue, _)| queue.role == Role::DeadLetter)?;
    Some((depth.ready, queue.max_length()?))
}

/// Whether a dead-letter queue that was full, and reads empty, has indeed emptied: a quorum queue without a leader reads so too.
/// What the broker does not say is not so: the next look asks again.
async fn has_emptied(link: &Link, order: &Order) -> bool {
    let name = dead_letter_queue(&order.main);
    let counted = async {
        let leaders = leaders(link, order.queue_type).await?;
        on_own_channel(link, async |channel| count(link, channel, &[&name], leaders.as_ref()).await).await
    };
    match counted.await {
        Ok(depths) => depths.iter().all(|depth| depth.ready == 0),
        // There is no connection to ask its leader on.
        Err(error) if error.is_at_limit() => true,
        Err(error) => {
            tracing::debug!(queue = name, %error, "whether the dead-letter queue has emptied");
            false
        }
    }
}

/// Whether a main queue with so many ready messages takes what its retry queues give back: half of what it may hold leaves room
/// for what comes between two looks. Bytes are not counted, and the limits of a queue that others declare (none) are not known.
fn has_room(main: Option<&QueuePlan>, ready: u32) -> bool {
    let Some(main) = main else { return ready == 0 };
    match main.max_length() {
        _ if !main.refuses_when_full() => true,
        Some(limit) if !main.has_max_bytes() => i64::from(ready) * 2 < limit,
        _ => ready == 0,
    }
}

/// The topology without the main queue, which belongs to others.
fn beside(topology: &Topology) -> Topology {
    Topology::of(topology.queues.iter().filter(|queue| queue.role != Role::Main).cloned().collect())
}

#[cfg(test)]
mod tests {
    use warren_api::QueueSpec;
    use warren_api::queue::{Limits, Overflow};
    use warren_broker::topology::plan;

    use super::*;

    fn limited(limits: Limits) -> QueuePlan {
        plan("orders", &QueueSpec { limits, ..QueueSpec::default() }).main().unwrap().clone()
    }

    #[test]
    fn a_main_queue_that_may_refuse_has_room_only_well_below_its_limit() {
        let room = |limits: Limits, ready| has_room(Some(&limited(limits)), ready);
        assert!(room(Limits::default(), u32::MAX));
        let length = Limits { max_length: Some(10), ..Limits::default() };
        assert_eq!((room(length.clone(), 4), room(length.clone(), 5)), (true, false));
        assert!(room(Limits { overflow: Overflow::DropHead, ..length }, 10), "it never refuses");
        let bytes = Limits { max_length_bytes: Some(1000), ..length };
        assert_eq!((room(bytes.clone(), 0), room(bytes, 1)), (true, false));
        assert_eq!((has_room(None, 0), has_room(None, 1)), (true, false), "others' limits are not known");
    }
}
