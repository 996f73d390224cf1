//! One order carried out on a broker's connection, bounded in time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::Channel;
use tokio::time::Instant;
use warren_api::conditions::queue::{DECLARED, DELETION_BLOCKED};
use warren_api::queue::Retry;
use warren_api::{QueueSpec, QueueType};
use warren_broker::declare::{self, DeclareError, Object, QueueDepth};
use warren_broker::supervisor::Link;
use warren_broker::topology::{Argument, BindingPlan, QueuePlan, Role, Topology, plan};
use warren_broker::{BrokerError, Category};

use super::channels::{Channels, Pooled};
use super::lane::{locked, open};
use super::rest::Rest;
use super::{Claim, Goal, Order, Outcome, Seen};
use crate::problem::Problem;

/// How long an attempt at an order may take, and what is bound again after it.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Reads of zero in a row that make the zero of a quorum queue believable.
const AGREEING_ZEROS: usize = 3;
/// Time between two of these: longer than a broker waits for a quorum queue's leader.
const ZERO_SPACING: Duration = Duration::from_millis(300);

/// What deletions wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Whether sidecars have had the time to learn of the order, so that what they no longer use may go.
    pub(super) learned: bool,
    /// How long a queue has to have read empty before it goes, where it may hold messages back: see [`Rest`].
    pub(super) held_back: Duration,
}

/// Carries an order out, on a channel of its own that is used again when nothing was refused.
pub(super) async fn carry_out(
    link: &Link,
    channels: &Mutex<Channels<Channel>>,
    order: &Arc<Order>,
    patience: Patience,
    rest: &mut Rest,
) -> Result<Outcome, DeclareError> {
    let outcome = in_time(order, attempt(link, channels, order, patience, rest)).await;
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
async fn in_time<T>(
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
    patience: Patience,
    rest: &mut Rest,
) -> Result<Outcome, DeclareError> {
    let idle = locked(channels).take(link.generation);
    let mut pooled = match idle {
        Some(pooled) => pooled,
        None => Pooled::fresh(open(link).await.map_err(|error| of_main(order, error))?),
    };
    let outcome = match &order.goal {
        Goal::Keep { claim, unbind, retire, untold } => {
            let patience = Patience { learned: patience.learned && !untold, ..patience };
            keep(link, &pooled.channel, order, (*claim, unbind, retire), patience, rest).await
        }
        Goal::Remove { only_if_empty, unbind } => {
            remove(link, &mut pooled.channel, order, (*only_if_empty, unbind), patience, rest).await
        }
    }?;
    if pooled.channel.status().connected() {
        locked(channels).put_back(link.generation, pooled);
    }
    Ok(outcome)
}

pub(super) fn of_main(order: &Order, error: BrokerError) -> DeclareError {
    DeclareError { object: Object::Queue(order.main.clone()), error }
}

async fn keep(
    link: &Link,
    channel: &Channel,
    order: &Order,
    (claim, unbind, retire): (Claim, &[BindingPlan], &[u32]),
    patience: Patience,
    rest: &mut Rest,
) -> Result<Outcome, DeclareError> {
    let main = &order.main;
    let (dead_letter_full, room) = match claim {
        Claim::Declare => {
            let depths = declare::declare(channel, &order.topology).await?;
            let ready = depths.last().map_or(0, |main| main.ready);
            (full(&order.topology, &depths), has_room(order.topology.main(), ready))
        }
        Claim::MustExist => {
            let Some(depth) = depth_of(link, main).await.map_err(|error| of_main(order, error))? else {
                let message = format!(
                    "queue \"{main}\" does not exist, and adoptionPolicy AsIs leaves it to others: create it, or use adoptionPolicy: Adopt"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, "QueueNotFound", message)));
            };
            let beside = beside(&order.topology);
            (full(&beside, &declare::declare(channel, &beside).await?), has_room(None, depth.ready))
        }
        Claim::MustBeAbsent => {
            if depth_of(link, main).await.map_err(|error| of_main(order, error))?.is_some() {
                let message = format!(
                    "queue \"{main}\" exists already, which adoptionPolicy FailIfExists refuses: use adoptionPolicy: Adopt to take it over, or another queueName"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, "AlreadyExists", message)));
            }
            return Ok(Outcome::Absent);
        }
    };
    for binding in unbind {
        take_back(link, main, binding).await.map_err(|error| of_main(order, error))?;
    }
    let mut leftover = Vec::new();
    for delay in retire {
        let Some(rung) = rung(order, *delay) else { continue };
        let mut may_go =
            |empty| match (rest.seen(&rung.name, empty && room, Instant::now()), order.queue_type) {
                (Some(waited), QueueType::Quorum) => waited >= patience.held_back,
                (None, QueueType::Quorum) => false,
                // It holds nothing back.
                (_, QueueType::Classic) => empty,
            };
        let gone = patience.learned
            && retired(link, &rung, order.queue_type, &mut may_go)
                .await
                .map_err(|error| of_main(order, error))?;
        if !gone {
            leftover.push(*delay);
        }
    }
    Ok(Outcome::Declared(Seen { leftover, dead_letter_full, release: None }))
}

/// Closes a channel of one's own.
async fn close(channel: &Channel) {
    // One that does not close goes with the connection.
    let _ = channel.close(200, "done".into()).await;
}

/// Takes a binding back that may have been made, on a channel of its own, as a refusal closes it.
async fn take_back(link: &Link, main: &str, binding: &BindingPlan) -> Result<(), BrokerError> {
    let channel = open(link).await?;
    match declare::unbind(&channel, main, binding).await {
        // The right that is missing is needed to bind too: most likely there is nothing to take back, and the spec, which asks
        // for nothing there any more, must not wait for it.
        Err(BrokerError::AccessRefused { detail }) => {
            let exchange = &binding.exchange;
            tracing::warn!(queue = main, exchange, %detail, "a binding that the spec has dropped is not looked after any more");
            Ok(())
        }
        unbound => {
            close(&channel).await;
            unbound
        }
    }
}

/// Whether the dead-letter queue holds as many messages as it may; none where it has no limit.
fn full(topology: &Topology, depths: &[QueueDepth]) -> Option<bool> {
    let (queue, depth) =
        topology.queues.iter().zip(depths).find(|(queue, _)| queue.role == Role::DeadLetter)?;
    match queue.arguments.get("x-max-length")? {
        Argument::Number(limit) => Some(i64::from(depth.ready) >= *limit),
        Argument::Text(_) | Argument::Flag(_) => None,
    }
}

/// Whether a main queue with so many ready messages takes what its retry queues give back: half of what it may hold leaves room
/// for what comes between two looks. Bytes are not counted, and the limits of a queue that others declare (none) are not known.
fn has_room(main: Option<&QueuePlan>, ready: u32) -> bool {
    let Some(main) = main else { return ready == 0 };
    match main.arguments.get("x-max-length") {
        _ if !refuses_when_full(main) => true,
        Some(Argument::Number(limit)) if !main.arguments.contains_key("x-max-length-bytes") => {
            i64::from(ready) * 2 < *limit
        }
        _ => ready == 0,
    }
}

/// Whether a queue has a limit above which it refuses.
fn refuses_when_full(queue: &QueuePlan) -> bool {
    let limited =
        ["x-max-length", "x-max-length-bytes"].iter().any(|limit| queue.arguments.contains_key(limit));
    limited && queue.arguments.get("x-overflow") != Some(&"drop-head".into())
}

/// The topology without the main queue, which belongs to others.
fn beside(topology: &Topology) -> Topology {
    let queues = topology.queues.iter().filter(|queue| queue.role != Role::Main).cloned().collect();
    Topology { exchanges: Vec::new(), queues, bindings: Vec::new() }
}

/// How full a queue is; none where it does not exist. A missing one closes the channel that asked: it is a channel of its own.
async fn depth_of(link: &Link, queue: &str) -> Result<Option<QueueDepth>, BrokerError> {
    let channel = open(link).await?;
    match declare::depth(&channel, queue).await {
        Ok(depth) => {
            close(&channel).await;
            Ok(Some(depth))
        }
        Err(BrokerError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The plan of a rung that the spec has dropped.
fn rung(order: &Order, delay: u32) -> Option<QueuePlan> {
    let retry = Retry { delays_seconds: vec![i32::try_from(delay).ok()?], ..Retry::default() };
    let spec = QueueSpec { queue_type: order.queue_type, retry, ..QueueSpec::default() };
    plan(&order.main, &spec).queues.into_iter().find(|queue| queue.role == Role::Retry(delay))
}

/// Deletes a rung if it may go, which depends on whether it is empty and unused; says whether none of Warren's is left.
async fn retired(
    link: &Link,
    rung: &QueuePlan,
    queue_type: QueueType,
    may_go: &mut (dyn FnMut(bool) -> bool + Send),
) -> Result<bool, BrokerError> {
    // A declaration alone would make one that is gone.
    match depth_of(link, &rung.name).await {
        Ok(None) | Err(BrokerError::Locked { .. }) => return Ok(true),
        Ok(Some(_)) => {}
        Err(error) => return Err(error),
    }
    let channel = open(link).await?;
    match declare::declare(&channel, &alone(rung)).await.map_err(|refused| refused.error) {
        Ok(_) => {}
        // Somebody's own, which happens to have the name: an order that never ended is recorded with all its rungs.
        Err(BrokerError::Precondition { .. } | BrokerError::Locked { .. }) => return Ok(true),
        Err(error) => return Err(error),
    }
    let counted = count(link, &channel, &[&rung.name], queue_type).await?;
    if !may_go(counted == [QueueDepth::default()]) {
        close(&channel).await;
        return Ok(false);
    }
    match declare::delete(&channel, &rung.name, queue_type == QueueType::Classic).await {
        Ok(()) => {}
        // Something has come since it was counted.
        Err(BrokerError::Precondition { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    close(&channel).await;
    Ok(true)
}

/// Counts queues' messages and consumers; a quorum queue's zero is confirmed, as one without a leader says zero too.
async fn count(
    link: &Link,
    channel: &Channel,
    queues: &[&str],
    queue_type: QueueType,
) -> Result<Vec<QueueDepth>, BrokerError> {
    let none = QueueDepth::default();
    let mut depths = vec![none; queues.len()];
    let reads = if queue_type == QueueType::Quorum { AGREEING_ZEROS } else { 1 };
    for read in 0..reads {
        if read > 0 {
            tokio::time::sleep(ZERO_SPACING).await;
        }
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = declare::depth(channel, queue).await?;
        }
    }
    if queue_type == QueueType::Quorum {
        for (queue, depth) in queues.iter().zip(&mut depths).filter(|(_, depth)| **depth == none) {
            *depth = of_leader(link, queue).await?;
        }
    }
    Ok(depths)
}

/// What the leader of a quorum queue that read empty says. The question may close the channel: it is one of its own.
async fn of_leader(link: &Link, queue: &str) -> Result<QueueDepth, BrokerError> {
    let channel = open(link).await?;
    match declare::gives_nothing(&channel, queue).await {
        Ok(nothing) => {
            close(&channel).await;
            Ok(QueueDepth { ready: u32::from(!nothing), consumers: 0 })
        }
        // A quorum queue is never exclusive: its leader has answered that a single active consumer is all it gives messages to.
        // It is there, so that the depth that follows is its own.
        Err(BrokerError::Locked { .. }) => Ok(depth_of(link, queue).await?.unwrap_or_default()),
        Err(error) => Err(error),
    }
}

/// Deletes everything that is as Warren declares it, or says what keeps it; the main queue may be unbound by then. The
/// dead-letter queue goes last: what the others give up while they go is not lost.
async fn remove(
    link: &Link,
    channel: &mut Channel,
    order: &Order,
    (only_if_empty, unbind): (bool, &[BindingPlan]),
    patience: Patience,
    rest: &mut Rest,
) -> Result<Outcome, DeclareError> {
    let ours = ours(link, channel, order).await?;
    if only_if_empty
        && let Some(kept) = kept(link, channel, order, &ours, unbind, patience.held_back, rest).await?
    {
        return Ok(Outcome::Refused(kept));
    }
    let guarded = only_if_empty && order.queue_type == QueueType::Classic;
    for (QueuePlan { name, .. }, _) in ours.iter().rev() {
        match declare::delete(channel, name, guarded).await {
            Ok(()) => {}
            Err(BrokerError::Precondition { .. }) if guarded => {
                let came = format!("\"{name}\" has got messages or consumers since they were counted");
                return Ok(Outcome::Refused(not_empty(&[came])));
            }
            Err(error) => return Err(of_main(order, error)),
        }
    }
    Ok(Outcome::Removed)
}

/// What keeps queues that may go only when they are empty.
async fn kept(
    link: &Link,
    channel: &Channel,
    order: &Order,
    ours: &[(&QueuePlan, QueueDepth)],
    unbind: &[BindingPlan],
    held_back: Duration,
    rest: &mut Rest,
) -> Result<Option<Problem>, DeclareError> {
    let mut kept: Vec<String> = ours.iter().filter_map(|(queue, depth)| holds(&queue.name, *depth)).collect();
    let rested = rest.seen(&order.main, kept.is_empty(), Instant::now());
    if rested.is_some_and(|rested| rested < held_back) && may_hold_back(order) {
        let message = "every queue reads empty, and deletionPolicy DeleteIfEmpty waits a little longer than three minutes: so long may the broker hold back a message that a full queue has refused";
        return Ok(Some(Problem::new(DELETION_BLOCKED, "Settling", message.to_owned())));
    }
    // Only what looks empty is unbound and counted again: without its bindings, what producers send is dropped.
    if kept.is_empty() {
        kept = count_unbound(link, channel, order, ours, unbind).await?;
    }
    Ok((!kept.is_empty()).then(|| not_empty(&kept)))
}

fn not_empty(kept: &[String]) -> Problem {
    let message = format!(
        "deletionPolicy DeleteIfEmpty keeps the queues: {}. Consume or purge them, or set deletionPolicy to Retain or Delete",
        kept.join(", ")
    );
    Problem::new(DELETION_BLOCKED, "NotEmpty", message)
}

/// Whether one of the queues may hold messages back that another has refused.
fn may_hold_back(order: &Order) -> bool {
    order.queue_type == QueueType::Quorum && order.topology.queues.iter().any(refuses_when_full)
}

/// The queues that are as Warren declares them, and how full they are: what exists otherwise belongs to others. A queue that
/// is missing is declared, as it could not be told apart or counted.
async fn ours<'a>(
    link: &Link,
    channel: &mut Channel,
    order: &'a Order,
) -> Result<Vec<(&'a QueuePlan, QueueDepth)>, DeclareError> {
    let mut ours = Vec::new();
    for queue in &order.topology.queues {
        match declare::declare(channel, &alone(queue)).await {
            Ok(depths) => ours.extend(depths.into_iter().map(|depth| (queue, depth))),
            Err(DeclareError {
                error: BrokerError::Precondition { .. } | BrokerError::Locked { .. },
                ..
            }) => {
                *channel = open(link).await.map_err(|error| of_main(order, error))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ours)
}

/// A queue without exchanges and bindings.
fn alone(queue: &QueuePlan) -> Topology {
    Topology { exchanges: Vec::new(), queues: vec![queue.clone()], bindings: Vec::new() }
}

/// Unbinds the main queue, counts everything thoroughly, and says what is there.
async fn count_unbound(
    link: &Link,
    channel: &Channel,
    order: &Order,
    ours: &[(&QueuePlan, QueueDepth)],
    unbind: &[BindingPlan],
) -> Result<Vec<String>, DeclareError> {
    let failed = |error| of_main(order, error);
    if ours.iter().any(|(queue, _)| queue.role == Role::Main) {
        for binding in order.topology.bindings.iter().chain(unbind) {
            declare::unbind(channel, &order.main, binding).await.map_err(failed)?;
        }
    }
    let names: Vec<&str> = ours.iter().map(|(queue, _)| queue.name.as_str()).collect();
    let depths = count(link, channel, &names, order.queue_type).await.map_err(failed)?;
    Ok(names.iter().zip(depths).filter_map(|(name, depth)| holds(name, depth)).collect())
}

/// What keeps a queue from being empty and unused.
fn holds(queue: &str, depth: QueueDepth) -> Option<String> {
    let QueueDepth { ready, consumers } = depth;
    (depth != QueueDepth::default())
        .then(|| format!("\"{queue}\" has {ready} messages and {consumers} consumers"))
}

/// Puts the bindings of the main queue back, where it is ours and the broker takes them. The channel is one of its own, as what
/// has been done before may have closed the other.
async fn bind_again(link: &Link, order: &Order) -> Result<(), DeclareError> {
    let Some(main) = order.topology.main() else { return Ok(()) };
    let channel = open(link).await.map_err(|error| of_main(order, error))?;
    let bound = Topology { queues: vec![main.clone()], ..order.topology.clone() };
    match declare::declare(&channel, &bound).await {
        Ok(_) => {
            close(&channel).await;
            Ok(())
        }
        Err(refused) if refused.error.category() == Category::Retryable => Err(refused),
        // Such as an exchange that is gone: it is no news beside what keeps the queue.
        Err(refused) => {
            tracing::debug!(queue = order.main, %refused, "not bound again");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_api::queue::{DeadLetter, Limits, Overflow};

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

    #[test]
    fn a_rung_that_the_spec_has_dropped_is_planned_as_it_was_in_the_spec() {
        for queue_type in [QueueType::Quorum, QueueType::Classic] {
            let topology = plan("orders", &QueueSpec { queue_type, ..QueueSpec::default() });
            let goal = Goal::Remove { only_if_empty: true, unbind: vec![] };
            let order = Order { main: "orders".to_owned(), queue_type, topology, goal };
            let planned = order.topology.queues.iter().filter(|queue| matches!(queue.role, Role::Retry(_)));
            let again: Vec<_> = [5, 60, 600].iter().filter_map(|delay| rung(&order, *delay)).collect();
            assert!(planned.eq(&again) && again.len() == 3, "{again:?}");
        }
    }

    #[test]
    fn only_quorum_queues_beside_one_that_refuses_hold_messages_back() {
        let order = |spec: &QueueSpec| Order {
            main: "orders".to_owned(),
            queue_type: spec.queue_type,
            topology: plan("orders", spec),
            goal: Goal::Remove { only_if_empty: true, unbind: vec![] },
        };
        let dead_letter = DeadLetter { max_length: Some(2), ..DeadLetter::default() };
        let limited = QueueSpec { dead_letter, ..QueueSpec::default() };
        assert!(!may_hold_back(&order(&QueueSpec::default())));
        assert!(may_hold_back(&order(&limited)));
        assert!(!may_hold_back(&order(&QueueSpec { queue_type: QueueType::Classic, ..limited })));
    }
}
