//! The pipeline's shell: reads, hands the order to the broker's lane, writes the status when it changes.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use warren_api::conditions::READY;
use warren_api::conditions::queue::{BROKER_REACHABLE, DEAD_LETTER_AVAILABLE, DECLARED, DELETION_BLOCKED};
use warren_api::{Queue, Worker};

use super::place::{FIRST_ANSWER, conflict, outcome, patience, waits};
use super::removal::{End, end};
use super::status::{Progress, conflicting, status};
use super::validate::validate;
use super::{dereference, finalizer, plan};
use crate::brokers::{Key, Outcome, Seen};
use crate::condition::{find, is_false, is_news, is_true};
use crate::context::Context;
use crate::controller::Controlled;
use crate::error::Error;
use crate::problem::{CONFLICT, OTHER_FINALIZER, Problem};
use crate::scaler::board::Durability;
use crate::secrets::SecretState;

/// What metrics and logs call it.
const KIND: &str = "queue";
/// Reconciles at once: none of them waits for a broker.
const CONCURRENCY: u16 = 32;
/// What keeps a deletion, such as a Worker's pods, is looked at again so often.
const BLOCKED_RETRY: Duration = Duration::from_secs(5);
/// Whether sidecars can be told of the ladder is looked at so often while rungs are to go: more often than these may go.
const RETIRING: Duration = Duration::from_secs(30);
/// Everything else brings a Queue here by itself; this is a net.
const RESYNC: Duration = Duration::from_secs(600);

/// Runs the controller until `context.shutdown`.
pub async fn run(
    queues: impl Stream<Item = Result<Queue, watcher::Error>> + Send + 'static,
    changed: impl Stream<Item = ObjectRef<Queue>> + Send + 'static,
    context: Arc<Context>,
) {
    let store = context.stores.queues.clone();
    let controlled = Controlled { kind: KIND, at_once: CONCURRENCY, store, reconcile, error_policy };
    controlled.run(queues, changed, context).await;
}

async fn reconcile(queue: Arc<Queue>, context: Arc<Context>) -> Result<Action, Error> {
    let action = step(queue.clone(), context.clone()).await?;
    context.retries.succeeded(queue.as_ref());
    Ok(action)
}

async fn step(queue: Arc<Queue>, context: Arc<Context>) -> Result<Action, Error> {
    let progress = if queue.metadata.deletion_timestamp.is_some() {
        match end(&queue, &context).await? {
            End::Gone => {
                if let Some(progress) = let_go(&queue) {
                    say(&queue, progress, &context).await?;
                }
                return Ok(Action::await_change());
            }
            End::Underway => return Ok(Action::requeue(BLOCKED_RETRY)),
            End::Blocked(problem) => Progress::Blocked(problem),
        }
    } else {
        if !finalizer::follow_policy(&queue, &context.client).await? {
            return Ok(Action::await_change());
        }
        match converge(&queue, &context).await? {
            Some(progress) => progress,
            None => return Ok(Action::requeue(FIRST_ANSWER)),
        }
    };
    let pause = match &progress {
        Progress::Blocked(_) => BLOCKED_RETRY,
        Progress::Observed { outcome: Outcome::Declared(Seen { leftover, .. }), .. }
            if !leftover.is_empty() =>
        {
            RETIRING
        }
        Progress::Invalid(_) | Progress::Pending { .. } | Progress::Observed { .. } => RESYNC,
    };
    say(&queue, progress, &context).await?;
    Ok(Action::requeue(pause.mul_f64(rand::random_range(0.7..1.0))))
}

/// What is to be said of a Queue that Warren has let go, while somebody else's finalizer keeps it.
fn let_go(queue: &Queue) -> Option<Progress> {
    let other = finalizer::of_another(queue)?;
    let message = format!(
        "it is not kept on its broker any more, and finalizer \"{other}\", which is not Warren's, keeps the object: see to whoever has set it"
    );
    Some(Progress::Blocked(Problem::new(DELETION_BLOCKED, OTHER_FINALIZER, message)))
}

/// What the sidecars of the Queue's Workers have counted.
fn durability(queue: &Queue, context: &Context) -> Durability {
    let (key, workers) = (Key::of(queue), context.workers_of(queue));
    let counted = |worker: &Arc<Worker>| context.board.view(&Key::of(worker.as_ref())).durability_of(&key);
    workers.iter().map(counted).fold(Durability::default(), |sum, counted| sum + counted)
}

/// Has the Queue kept on its broker; none while there is nothing to say.
async fn converge(queue: &Queue, context: &Context) -> Result<Option<Progress>, Error> {
    let key = Key::of(queue);
    // First: with another Secret it leaves the lane that has found it.
    if context.brokers.take_recreated(&key) {
        tell_recreated(queue, &key, context);
    }
    let secret = dereference::secret(queue, context).await?;
    let access = match validate(queue, &secret) {
        Ok(access) => access,
        Err(problem) => {
            // It keeps its names: a younger Queue must not take them over while only the Secret is bad.
            match secret {
                SecretState::Missing => context.brokers.lapse(&key),
                SecretState::Found(_) | SecretState::Forbidden | SecretState::Unreadable(_) => {
                    context.brokers.forget(&key);
                }
            }
            return Ok(Some(Progress::Invalid(problem)));
        }
    };
    // That took its time: what is gone by now claims nothing.
    let there = context.stores.queues.get(&ObjectRef::from_obj(queue));
    if there.is_none_or(|there| there.uid() != queue.uid()) {
        return Ok(None);
    }
    let address = access.address();
    let order = plan::keep_under(queue, &address, &context.workers_of(queue));
    if let Some(problem) = conflict(queue, &key, &address, &order, context) {
        context.brokers.forget(&key);
        return Ok(Some(Progress::Invalid(problem)));
    }
    // After a restart the older one may be in a namespace that is late, or it is not known where it is before its Secret can
    // be read.
    if conflicting(queue).is_some()
        && let Some(message) = waits(queue, &key, &order, context)
    {
        if context.seen_for(queue) >= patience(&key, context) {
            say(queue, Progress::Invalid(Problem::new(DECLARED, CONFLICT, message)), context).await?;
        }
        return Ok(None);
    }
    if !record(queue, &address, context).await? {
        return Ok(None);
    }
    match outcome(queue, &key, &access, &order, context) {
        Some(outcome) => Ok(Some(Progress::Observed { address, outcome })),
        None if first_answer_is_due(queue, context) => Ok(Some(Progress::Pending { address })),
        None => Ok(None),
    }
}

/// Records in the status what an order may bind, before it is placed; gives false while the Queue is not known as it is now.
async fn record(queue: &Queue, address: &str, context: &Context) -> Result<bool, Error> {
    let Some(patch) = plan::record(queue, address) else { return Ok(true) };
    match context.merge_status(queue, patch).await {
        Ok(()) => Ok(true),
        // Changed or deleted since it was read.
        Err(kube::Error::Api(answer)) if answer.code == 409 || answer.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a Queue that waits for its broker's first answer is to say so. One that has a status for this generation, such
/// as after the operator's restart, keeps it until there is news; one of many on a broker that answers waits its turn.
fn first_answer_is_due(queue: &Queue, context: &Context) -> bool {
    let said = queue
        .status
        .as_ref()
        .is_some_and(|s| !s.conditions.is_empty() && s.observed_generation == queue.metadata.generation);
    !said && context.seen_for(queue) >= patience(&Key::of(queue), context)
}

/// Writes the status that follows from how far the Queue has come, and tells what is new in it.
async fn say(queue: &Queue, progress: Progress, context: &Context) -> Result<(), Error> {
    let status = status(queue, progress, durability(queue, context), &Time(Timestamp::now()));
    context.metrics.queue_ready(&Key::of(queue), not_ready(&status.conditions));
    if !context.write_status(queue, queue.status.as_ref(), &status).await? {
        return Ok(());
    }
    for kind in [READY, DEAD_LETTER_AVAILABLE] {
        tell(queue, find(&status.conditions, kind), context);
    }
    if let Some(now) = &status.broker_address {
        tell_left_behind(queue, now, context);
    }
    Ok(())
}

/// Why a Queue is not Ready, in a word, for its metric; none where it is.
fn not_ready(conditions: &[Condition]) -> Option<&'static str> {
    if is_true(conditions, READY) {
        return None;
    }
    Some(if is_false(conditions, BROKER_REACHABLE) { "broker" } else { "other" })
}

/// Logs and publishes a condition that changed.
fn tell(queue: &Queue, condition: Option<&Condition>, context: &Context) {
    let Some(condition) = condition else { return };
    let former = find(queue.conditions(), &condition.type_);
    if !is_news(former, condition) {
        return;
    }
    let Condition { type_, status, reason, message, .. } = condition;
    tracing::info!(namespace = queue.namespace(), queue = %queue.name_any(), condition = %type_, %status, %reason, %message, "queue");
    // A new Queue on its way to being Ready is no news worth a request.
    if status == "False" || former.is_some_and(|former| former.status == "False") {
        context.condition_event(queue, condition, "Declare");
    }
}

/// Logs and publishes that another broker or virtual host may have what was declared for the Queue before.
fn tell_left_behind(queue: &Queue, now: &str, context: &Context) {
    let Some(former) = plan::left_behind(queue, now) else { return };
    let note = format!(
        "declared on {now} from now on; if {former} is another broker or virtual host, what was declared for it there stays, with its messages: see docs/changing-a-queue.md"
    );
    tracing::warn!(namespace = queue.namespace(), queue = %queue.name_any(), "{note}");
    context.event(queue, EventType::Warning, "BrokerChanged", &note, "Declare");
}

/// Logs, counts and publishes that messages are lost: `Ready` may say so for a moment only, or not at all.
fn tell_recreated(queue: &Queue, key: &Key, context: &Context) {
    let name = queue.broker_name();
    let address = context.brokers.access_of(key).map(|access| access.address());
    let note = format!("queue \"{name}\" was gone, with its messages, and is declared again");
    tracing::warn!(namespace = queue.namespace(), queue = %queue.name_any(), broker = address, "{note}");
    context.metrics.queue_recreated(key, Timestamp::now());
    context.event(queue, EventType::Warning, "QueueRecreated", &note, "Declare");
}

#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn error_policy(queue: Arc<Queue>, error: &Error, context: Arc<Context>) -> Action {
    context.failed(KIND, queue.as_ref(), error)
}
