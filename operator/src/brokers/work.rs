//! One order carried out on a broker's connection, bounded in time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::Channel;
use warren_api::QueueType;
use warren_api::conditions::queue::{DECLARED, DELETION_BLOCKED};
use warren_api::names::retry_queue;
use warren_broker::BrokerError;
use warren_broker::declare::{self, DeclareError, Object};
use warren_broker::supervisor::Link;
use warren_broker::topology::{Role, Topology};

use super::lane::{Channels, locked, open};
use super::{Claim, Goal, Order, Outcome};
use crate::problem::Problem;

/// How long all that an order asks for may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Reads of zero in a row that make the zero of a quorum queue believable.
const AGREEING_ZEROS: usize = 3;
/// Time between two of these: longer than a broker waits for a quorum queue's leader.
const ZERO_SPACING: Duration = Duration::from_millis(300);

/// Carries an order out, on a channel of its own that is used again when nothing was refused. `settled`: whether sidecars
/// have had the time to learn of this order, so that what they no longer use may go.
pub(super) async fn carry_out(
    link: &Link,
    channels: &Mutex<Channels>,
    order: &Arc<Order>,
    settled: bool,
) -> Result<Outcome, DeclareError> {
    let all = async {
        let idle = locked(channels).take(link.generation);
        let channel = match idle {
            Some(channel) => channel,
            None => open(link).await.map_err(|error| of_main(order, error))?,
        };
        let outcome = match &order.goal {
            Goal::Keep { .. } => keep(link, &channel, order, settled).await,
            Goal::Remove { only_if_empty } => remove(&channel, order, *only_if_empty).await,
        }?;
        locked(channels).put_back(link.generation, channel);
        Ok(outcome)
    };
    let timed_out = BrokerError::TimedOut { what: "declaration", seconds: TIMEOUT.as_secs() };
    tokio::time::timeout(TIMEOUT, all).await.unwrap_or_else(|_| Err(of_main(order, timed_out)))
}

fn of_main(order: &Order, error: BrokerError) -> DeclareError {
    DeclareError { object: Object::Queue(order.main.clone()), error }
}

async fn keep(link: &Link, channel: &Channel, order: &Order, settled: bool) -> Result<Outcome, DeclareError> {
    let Goal::Keep { claim, unbind, retire } = &order.goal else { return Ok(Outcome::Removed) };
    let main = &order.main;
    match claim {
        Claim::Declare => declare::declare(channel, &order.topology).await?,
        Claim::MustExist => {
            if !exists(link, main).await.map_err(|error| of_main(order, error))? {
                let message = format!(
                    "queue \"{main}\" does not exist, and adoptionPolicy AsIs leaves it to others: create it, or use adoptionPolicy: Adopt"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, "QueueNotFound", message)));
            }
            declare::declare(channel, &beside(&order.topology)).await?;
        }
        Claim::MustBeAbsent => {
            if exists(link, main).await.map_err(|error| of_main(order, error))? {
                let message = format!(
                    "queue \"{main}\" exists already, which adoptionPolicy FailIfExists refuses: use adoptionPolicy: Adopt to take it over, or another queueName"
                );
                return Ok(Outcome::Refused(Problem::new(DECLARED, "AlreadyExists", message)));
            }
            return Ok(Outcome::Absent);
        }
    }
    for binding in unbind {
        declare::unbind(channel, main, binding).await.map_err(|error| of_main(order, error))?;
    }
    let mut leftover = Vec::new();
    for delay in retire {
        let rung = retry_queue(main, *delay);
        let gone =
            settled && retired(link, &rung, order.queue_type).await.map_err(|error| of_main(order, error))?;
        if !gone {
            leftover.push(*delay);
        }
    }
    Ok(Outcome::Declared { leftover })
}

/// The topology without the main queue, which belongs to others.
fn beside(topology: &Topology) -> Topology {
    let queues = topology.queues.iter().filter(|queue| queue.role != Role::Main).cloned().collect();
    Topology { exchanges: Vec::new(), queues, bindings: Vec::new() }
}

/// Whether a queue exists. A missing one closes the channel that asked: it is a channel of its own.
async fn exists(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let channel = open(link).await?;
    match declare::depth(&channel, queue).await {
        Ok(_) => {
            // A channel that does not close goes with the connection.
            let _ = channel.close(200, "done".into()).await;
            Ok(true)
        }
        Err(BrokerError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes a rung that is empty and unused; says whether it is gone. One that is gone already closes the channel that asks.
async fn retired(link: &Link, rung: &str, queue_type: QueueType) -> Result<bool, BrokerError> {
    let channel = open(link).await?;
    let count = match count(&channel, rung, queue_type).await {
        Err(BrokerError::NotFound { .. }) => return Ok(true),
        counted => counted?,
    };
    if count != Count::default() {
        let _ = channel.close(200, "done".into()).await;
        return Ok(false);
    }
    declare::delete(&channel, rung, queue_type == QueueType::Classic).await?;
    // A channel that does not close goes with the connection.
    let _ = channel.close(200, "done".into()).await;
    Ok(true)
}

/// What keeps a queue from being empty and unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    messages: u32,
    consumers: u32,
}

/// Counts a queue's messages and consumers; a quorum queue's zero is confirmed, as one without a leader says zero too.
async fn count(channel: &Channel, queue: &str, queue_type: QueueType) -> Result<Count, BrokerError> {
    let reads = if queue_type == QueueType::Quorum { AGREEING_ZEROS } else { 1 };
    for read in 0..reads {
        if read > 0 {
            tokio::time::sleep(ZERO_SPACING).await;
        }
        let depth = declare::depth(channel, queue).await?;
        if depth.ready > 0 || depth.consumers > 0 {
            return Ok(Count { messages: depth.ready, consumers: depth.consumers });
        }
    }
    let empty = queue_type == QueueType::Classic || declare::gives_nothing(channel, queue).await?;
    Ok(Count { messages: u32::from(!empty), consumers: 0 })
}

/// Deletes everything, or says what keeps it.
async fn remove(channel: &Channel, order: &Order, only_if_empty: bool) -> Result<Outcome, DeclareError> {
    let main = &order.main;
    let failed = |error| of_main(order, error);
    // The dead-letter queue goes last: what the others give up while they go is not lost.
    let queues: Vec<&str> = order.topology.queues.iter().rev().map(|queue| queue.name.as_str()).collect();
    if only_if_empty {
        // One that is missing could not be counted.
        let queues_alone = Topology { exchanges: Vec::new(), bindings: Vec::new(), ..order.topology.clone() };
        declare::declare(channel, &queues_alone).await?;
        for binding in &order.topology.bindings {
            declare::unbind(channel, main, binding).await.map_err(failed)?;
        }
        let mut kept = Vec::new();
        for queue in &queues {
            let counted = count(channel, queue, order.queue_type).await.map_err(failed)?;
            if counted != Count::default() {
                kept.push(format!(
                    "\"{queue}\" has {} messages and {} consumers",
                    counted.messages, counted.consumers
                ));
            }
        }
        if !kept.is_empty() {
            declare::declare(channel, &order.topology).await?;
            let message = format!(
                "deletionPolicy DeleteIfEmpty keeps the queues: {}. Consume or purge them, or set deletionPolicy to Retain or Delete",
                kept.join(", ")
            );
            return Ok(Outcome::Refused(Problem::new(DELETION_BLOCKED, "NotEmpty", message)));
        }
    }
    for queue in queues {
        let guarded = only_if_empty && order.queue_type == QueueType::Classic;
        declare::delete(channel, queue, guarded).await.map_err(failed)?;
    }
    Ok(Outcome::Removed)
}
