//! The pipeline's shell.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use warren_api::conditions::READY;
use warren_api::conditions::worker::TEMPLATE_VALID;
use warren_api::worker::ScalingMode;
use warren_api::{SidecarConfig, Worker, WorkerStatus};

use super::apply::{Applied, apply, hold_or_go_on};
use super::build::build;
use super::dereference::{Surroundings, dereference, told_by};
use super::live::LiveDeployment;
use super::owed::owed;
use super::pods::{cannot_get, is_any_on_trial};
use super::status::status;
use super::validate::{DISORDER, hold, validate};
use crate::brokers::Key;
use crate::condition::{find, is_news};
use crate::context::{Context, PASSING_FAILURES};
use crate::controller::Controlled;
use crate::error::Error;
use crate::problem::{NAME_TAKEN, NOT_APPLIED, Problem, REFUSED};
use crate::scaler::act::{self, SCALE_REVERTED};
use crate::scaler::board::{Entry, View};
use crate::scope::tell_ordered;

/// What metrics and logs call it.
const KIND: &str = "worker";
/// Reconciles at once.
const CONCURRENCY: u16 = 16;
/// Everything else brings a Worker here by itself; this is a net.
const RESYNC: Duration = Duration::from_secs(600);
/// Nobody tells of the end of another Worker's pods, nor of what goes on.
const OTHERS_PODS: Duration = Duration::from_secs(5);
/// What the API server refused may pass later, such as a quota, and nobody tells of the end of what is not Warren's.
const REFUSED_RETRY: Duration = Duration::from_secs(20);

/// Runs the controller until `context.shutdown`.
pub async fn run(
    workers: impl Stream<Item = Result<Worker, watcher::Error>> + Send + 'static,
    changed: impl Stream<Item = ObjectRef<Worker>> + Send + 'static,
    context: Arc<Context>,
) {
    let store = context.stores.workers.clone();
    let controlled = Controlled { kind: KIND, at_once: CONCURRENCY, store, reconcile, error_policy };
    controlled.run(workers, changed, context).await;
}

async fn reconcile(worker: Arc<Worker>, context: Arc<Context>) -> Result<Action, Error> {
    // The garbage collector takes what the Worker owns.
    if worker.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let entry = context.board.entry(&Key::of(worker.as_ref()));
    let around = dereference(&worker, &context).await?;
    entry.tell_to_pause(around.is_told_to_pause());
    let (image, problem) = match converge(&worker, &around, &entry, &context).await {
        // It tells itself, and what does not need it goes on.
        Err(error @ Error::Api(_)) if context.retries.in_a_row(worker.as_ref()) >= PASSING_FAILURES => {
            let problem = not_applied(&error);
            context.failed(KIND, worker.as_ref(), &error);
            (None, Some(problem))
        }
        converged => match converged? {
            Ok(Converged { image, budget }) => (Some(image), budget),
            Err(problem) => (None, Some(problem)),
        },
    };
    let applied = image.is_some();
    let told = if applied { None } else { around.told() };
    note_told(&worker, told.as_ref(), &context);
    let view = entry.view_of(&worker);
    let said = status(&worker, problem.as_ref(), image, &around, &view, &Time(Timestamp::now()));
    let written = write(&worker, said, &context).await;
    if !applied {
        // Where something was refused, or failed, the ConfigMap had come before it. None of these waits for another.
        let tried = problem.as_ref().is_some_and(|problem| [REFUSED, NOT_APPLIED].contains(&problem.reason));
        let consuming = if tried { Ok(()) } else { hold_or_go_on(&worker, &around, &context).await };
        obey(&worker, &around, &entry, &context).await.and(consuming)?;
    }
    written?;
    if problem.as_ref().is_none_or(|problem| problem.reason != NOT_APPLIED) {
        context.retries.succeeded(worker.as_ref());
    }
    let on_trial = is_any_on_trial(&around.pods, Timestamp::now());
    let waits = on_trial || hold(&worker, &around).is_some_and(|hold| hold.reason == DISORDER);
    let again = pause(problem.as_ref(), waits);
    Ok(Action::requeue(again.mul_f64(rand::random_range(0.7..1.0))))
}

/// Notes what a Worker's sidecars go on with, where their configuration could not be written, or nobody has looked at it yet.
fn note_told(worker: &Worker, told: Option<&SidecarConfig>, context: &Context) {
    if context.note_told(worker, told) {
        tell_ordered(worker, context);
    }
}

/// Notes what all sidecars go on with before any Worker is looked at: some could not be told what their Worker names before this
/// process began.
pub fn note_all_told(context: &Context) {
    for worker in context.stores.workers.state() {
        note_told(&worker, told_by(&worker, context).as_ref(), context);
    }
}

/// The time until a Worker is looked at again, whatever else brings it here; `waits`: for what pods do.
fn pause(problem: Option<&Problem>, waits: bool) -> Duration {
    match problem.map(|problem| problem.reason) {
        Some(REFUSED | NOT_APPLIED | NAME_TAKEN) => REFUSED_RETRY,
        _ if waits => OTHERS_PODS,
        _ => RESYNC,
    }
}

/// What has been applied.
struct Converged {
    /// The sidecar image that the pods were rolled with.
    image: String,
    /// What is wrong with the PodDisruptionBudget, without which the rest does its work.
    budget: Option<Problem>,
}

/// Validates, builds and applies. The inner error is what keeps the Worker from that.
async fn converge(
    worker: &Worker,
    around: &Surroundings,
    entry: &Entry,
    context: &Context,
) -> Result<Result<Converged, Problem>, Error> {
    let valid = match validate(worker, around) {
        Ok(valid) => valid,
        Err(problem) => return Ok(Err(problem)),
    };
    let _writing = entry.writing.lock().await;
    let view = entry.view_of(worker);
    let replicas = replicas(worker, around, &view);
    let foreign = foreign(worker, around, entry, replicas, context).await;
    mark(worker, around, entry, replicas, context).await;
    let mut rolled = around.deployment.as_deref().map(LiveDeployment::rolled).unwrap_or_default();
    // What nothing runs with protects nothing.
    rolled.image = rolled.image.filter(|image| !cannot_get(&around.pods, image));
    let built = build(&valid, &rolled, &context.sidecar_image, replicas);
    let paused = around.deployment.as_deref().is_some_and(|live| live.facts.paused);
    match apply(worker, &built, around, context).await? {
        Ok(Applied { made, budget }) => {
            entry.wrote(replicas);
            if let Some(live) = foreign {
                let note = format!(
                    "someone else set {live} replicas on the Deployment; spec.replicas puts back {replicas}. An autoscaler is to name the Worker in its scaleTargetRef (apiVersion warren.dev/v1alpha1, kind Worker)"
                );
                context.event(worker, EventType::Warning, SCALE_REVERTED, &note, "Reconcile");
            }
            if paused {
                let note = "someone paused the Deployment's rollouts, and they go on: leave spec.template as it is to keep the pods, and set consumer.paused to stop consuming";
                context.event(worker, EventType::Warning, "RolloutResumed", note, "Reconcile");
            }
            let made_before = worker.status.as_ref().is_some_and(|status| status.sidecar_version.is_some());
            if made && made_before {
                let note = "the Deployment was gone, and is made again: to stop, set consumer.paused or delete the Worker";
                context.event(worker, EventType::Warning, "DeploymentRecreated", note, "Reconcile");
            }
            Ok(Ok(Converged { image: built.image, budget }))
        }
        Err(problem) => Ok(Err(problem)),
    }
}

/// What somebody else has written to the Deployment of a Worker whose pods others decide, after its own number was carried out.
async fn foreign(
    worker: &Worker,
    around: &Surroundings,
    entry: &Entry,
    replicas: u32,
    context: &Context,
) -> Option<u32> {
    let carried_out = worker.status.as_ref()?.desired_replicas;
    let live = live(around)?.unsigned_abs();
    // What was asked for and taken back at once may have been carried out all the same.
    let ours = live == replicas || entry.has_written(live);
    if worker.scales_itself() || ours || carried_out.unsigned_abs() != replicas {
        return None;
    }
    // A cache that lags behind accuses nobody.
    act::replicas(context, &Key::of(worker)).await.filter(|now| *now == live)
}

/// What the API server answers again and again, which is not about what was sent, or that it does not answer in time.
fn not_applied(error: &Error) -> Problem {
    let answer = match error {
        Error::Api(kube::Error::Api(answer)) => answer.message.clone(),
        error => error.to_string(),
    };
    let message = format!(
        "the API server has not taken the Worker's objects for a while: {answer}. See whether a webhook that it calls is down or slow; it is tried again by itself"
    );
    Problem::new(TEMPLATE_VALID, NOT_APPLIED, message)
}

/// Marks the idlest pods before there are fewer; in mode Builtin the scaler has done so.
async fn mark(worker: &Worker, around: &Surroundings, entry: &Entry, replicas: u32, context: &Context) {
    if worker.scales_itself() {
        return;
    }
    if live(around).is_none_or(|live| live.unsigned_abs() <= replicas) {
        entry.forget_marks();
    } else if entry.may_mark(replicas) {
        act::mark_idlest(context, &around.pods).await;
    }
}

/// Writes the number that somebody else decides, where nothing else of the Worker could be applied.
async fn obey(worker: &Worker, around: &Surroundings, entry: &Entry, context: &Context) -> Result<(), Error> {
    let Some(replicas) = owed(worker, around) else { return Ok(()) };
    let _writing = entry.writing.lock().await;
    mark(worker, around, entry, replicas, context).await;
    act::write_replicas(context, &Key::of(worker), replicas).await?;
    entry.wrote(replicas);
    tracing::info!(namespace = worker.namespace(), worker = %worker.name_any(), replicas, "scaled as spec.replicas says");
    Ok(())
}

/// In mode Builtin the scaler's number, and until it has one the number that is there.
fn replicas(worker: &Worker, around: &Surroundings, view: &View) -> u32 {
    let replicas = match worker.spec.scaling.mode {
        ScalingMode::Builtin => match &view.decision {
            Some(decision) => return decision.replicas,
            None => live(around).unwrap_or(worker.spec.scaling.min_replicas),
        },
        ScalingMode::External | ScalingMode::Manual => worker.spec.replicas,
    };
    replicas.max(0).unsigned_abs()
}

/// Replicas that the Deployment asks for.
fn live(around: &Surroundings) -> Option<i32> {
    around.deployment.as_deref().and_then(|deployment| deployment.facts.desired)
}

async fn write(worker: &Worker, status: WorkerStatus, context: &Context) -> Result<(), Error> {
    if !context.write_status(worker, worker.status.as_ref(), &status).await? {
        return Ok(());
    }
    let former = find(worker.conditions(), READY);
    if let Some(ready) = find(&status.conditions, READY).filter(|ready| is_news(former, ready)) {
        tracing::info!(namespace = worker.namespace(), worker = %worker.name_any(), ready = %ready.status, reason = %ready.reason, message = %ready.message, "worker");
        // A Worker on its way is no news worth a request, and an event stays in memory for six minutes.
        if ready.status != "Unknown" {
            context.condition_event(worker, ready, "Reconcile");
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn error_policy(worker: Arc<Worker>, error: &Error, context: Arc<Context>) -> Action {
    note_told(&worker, told_by(&worker, &context).as_ref(), &context);
    context.failed(KIND, worker.as_ref(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_else_has_is_asked_for_again_soon() {
        let taken = Problem::new(TEMPLATE_VALID, "NameTaken", "rename it");
        assert_eq!(pause(Some(&taken), false), REFUSED_RETRY);
        let late = Error::Api(kube::Error::Service("no answer in time".into()));
        let problem = not_applied(&late);
        assert!(problem.message.contains("no answer in time"), "{}", problem.message);
        assert_eq!(pause(Some(&problem), false), REFUSED_RETRY);
    }

    #[test]
    fn what_is_refused_is_not_asked_for_more_often_while_pods_are_waited_for() {
        let [refused, disorder] = [REFUSED, DISORDER].map(|reason| Problem::new(TEMPLATE_VALID, reason, "m"));
        assert_eq!(pause(Some(&refused), true), REFUSED_RETRY);
        assert_eq!((pause(Some(&disorder), true), pause(None, true)), (OTHERS_PODS, OTHERS_PODS));
        assert_eq!(pause(None, false), RESYNC);
    }
}
