//! Step 5: what is said of a Worker. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use warren_api::conditions::READY;
use warren_api::conditions::worker::{
    AVAILABLE, HANDLER_HEALTHY, QUEUE_READY, SCALING_ACTIVE, TEMPLATE_VALID,
};
use warren_api::names::WORKER_LABEL;
use warren_api::worker::{ScalingMode, ScalingStatus};
use warren_api::{Worker, WorkerStatus};

use super::dereference::Surroundings;
use super::owed::is_held_back;
use super::pods::{ended, ending, ready, sidecar_runs, staying, trouble};
use super::validate::{hold, is_unsure, port, queue_not_found};
use crate::condition::{Statement, Status, conditions, find};
use crate::problem::{NOT_APPLIED, Problem, REFUSED, without_numbers};
use crate::scaler::asked::{measured_before, unchanged};
use crate::scaler::board::View;
use crate::scaler::decide::Decision;
use crate::scaler::reason::Reason;
use crate::scaler::schedule::SCHEDULE_INVALID;

/// Reason of condition `Available` where all sidecars are without a connection.
pub(crate) const SIDECARS_DISCONNECTED: &str = "SidecarsDisconnected";
/// Reason of condition `Available` where pods are on their way.
const PODS_STARTING: &str = "PodsStarting";
/// Reason of condition `Available` where nothing is wrong.
const PODS_READY: &str = "PodsReady";
/// Reason of a scaler that has not looked yet.
const UNSEEN: &str = "Starting";
/// Reason of a number that the API server does not take.
const SCALE_REFUSED: &str = "ScaleRefused";
/// Reason of pods that must not come yet.
const HELD_BACK: &str = "PodsHeldBack";
/// What is said where the user has paused consuming.
const PAUSED: &str = "consumer.paused is set: pods stay and consume nothing";
/// Reason of pods that consume though they should not.
const NOT_PAUSED: &str = "NotPaused";
/// What is said of them.
const UNTOLD: &str = "pods go on consuming: the configuration that holds it cannot be applied, for the reason that the other conditions name. Mend that, or delete the Worker";
/// What is added where somebody scales a Worker that scales itself.
const REPLICAS_IGNORED: &str =
    ". spec.replicas is ignored in scaling.mode Builtin: use minReplicas and maxReplicas, or mode Manual";

/// The status that follows from what is wrong (if anything), what exists and what the scaler saw.
pub fn status(
    worker: &Worker,
    problem: Option<&Problem>,
    image: Option<String>,
    around: &Surroundings,
    view: &View,
    now: &Time,
) -> WorkerStatus {
    let former = worker.status.clone().unwrap_or_default();
    let deployment = around.deployment.as_deref();
    let desired = deployment.and_then(|deployment| deployment.facts.desired).unwrap_or(0);
    let existing = deployment.map_or(0, |deployment| deployment.facts.existing);

    // Where the sidecars could be told to hold consuming, pods are added all the same.
    let held_back = image.is_none() && is_held_back(worker, around);
    let told = image.is_some() || around.pods.iter().all(|pod| ended(pod)) || around.is_told_to_pause();
    let mut scaling_active = scaling_active(worker, held_back, told, view);
    if worker.scales_itself() && worker.spec.replicas != 1 {
        scaling_active.message.push_str(REPLICAS_IGNORED);
    }
    let mut all = vec![
        template_valid(problem),
        queue_ready(worker, problem, around),
        available(worker, problem, desired, around, told, view, now),
    ];
    // The cause comes before what the scaler makes of it.
    all.extend(handler_healthy(worker, desired, view, &former));
    all.push(scaling_active);
    let mut all: Vec<Statement> =
        all.into_iter().map(|statement| kept(statement, worker, around, view)).collect();
    all.insert(0, summary(worker, &all));
    WorkerStatus {
        observed_generation: worker.metadata.generation,
        replicas: existing,
        desired_replicas: desired,
        selector: Some(format!("{WORKER_LABEL}={}", worker.name_any())),
        sidecar_version: image.or(former.sidecar_version),
        scaling: scaling(worker, view),
        conditions: conditions(&former.conditions, all, worker.metadata.generation, now),
    }
}

/// Numbers in a message change all the time; it is written anew only when the reason changes, or the spec, of which it may say
/// something, or the decided replicas. A scaler that has not looked yet, such as after the operator's restart, takes back nothing.
fn kept(statement: Statement, worker: &Worker, around: &Surroundings, view: &View) -> Statement {
    let Some(former) = &worker.status else { return statement };
    let Some(before) = find(&former.conditions, statement.kind) else { return statement };
    // Sidecars that have not been looked into yet are as they were.
    if before.reason == SIDECARS_DISCONNECTED
        && view.handlers.scraped == 0
        && view.decision.as_ref().is_none_or(|decision| decision.reason != Reason::MetricsUnreachable)
        && staying(&around.pods).any(|pod| sidecar_runs(pod))
        && [PODS_STARTING, PODS_READY].contains(&statement.reason.as_str())
    {
        return Statement::of(AVAILABLE, before);
    }
    // What the API server says may have a port in it, a time or an id.
    if [REFUSED, NOT_APPLIED, SCALE_REFUSED].contains(&&*statement.reason)
        && before.reason == statement.reason
        && unchanged(worker)
        && without_numbers(&before.message) == without_numbers(&statement.message)
    {
        return Statement::of(statement.kind, before);
    }
    if statement.kind != SCALING_ACTIVE {
        return statement;
    }
    let ignored = |message: &str| message.ends_with(REPLICAS_IGNORED);
    let decided = view.decision.as_ref().map(|decision| signed(decision.replicas));
    let same = before.status == statement.status.as_str()
        && before.reason == statement.reason
        && ![SCHEDULE_INVALID, SCALE_REFUSED].contains(&statement.reason.as_ref())
        && unchanged(worker)
        && (decided.is_none() || decided == former.scaling.as_ref().map(|scaling| scaling.replicas))
        && cause(&before.reason, &before.message) == cause(&statement.reason, &statement.message)
        && ignored(&before.message) == ignored(&statement.message);
    let unseen = statement.reason == UNSEEN && former.scaling.is_some();
    if same || unseen { Statement::of(statement.kind, before) } else { statement }
}

/// Why a handler is said to fail, which has more than one cause, without the numbers.
fn cause(reason: &str, message: &str) -> Option<String> {
    let why = message.split(": ").next().filter(|_| reason == Reason::HandlerFailing.as_str())?;
    Some(without_numbers(why))
}

/// What was decided before. How long messages of a Worker took that was changed meanwhile, which no operator has seen, is not known.
fn former_scaling(worker: &Worker) -> Option<ScalingStatus> {
    let status = worker.status.as_ref()?;
    let mut scaling = status.scaling.clone().filter(|_| worker.scales_itself())?;
    scaling.seconds_per_message = measured_before(worker);
    Some(scaling)
}

fn scaling(worker: &Worker, view: &View) -> Option<ScalingStatus> {
    let former = former_scaling(worker);
    let Some(decision) = &view.decision else { return former };
    let same_queue = view.queue.as_ref().is_some_and(|queue| queue.name == worker.spec.queue_ref.name);
    let next = ScalingStatus {
        replicas: signed(decision.replicas),
        raw: signed(decision.raw),
        reason: decision.reason.as_str().to_owned(),
        message: decision.message.clone(),
        seconds_per_message: view.service_seconds.filter(|_| same_queue).and_then(three_digits),
    };
    match former {
        // What it says may be of the spec.
        Some(former)
            if unchanged(worker) && (former.replicas, &former.reason) == (next.replicas, &next.reason) =>
        {
            // What the scaler goes by outlasts a change that it has seen.
            let known = former.seconds_per_message.or(next.seconds_per_message);
            Some(ScalingStatus { seconds_per_message: known, ..former })
        }
        _ => Some(next),
    }
}

/// For people: no more digits than were measured.
fn three_digits(number: f64) -> Option<f64> {
    format!("{number:.2e}").parse().ok()
}

fn signed(number: u32) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

fn template_valid(problem: Option<&Problem>) -> Statement {
    match problem.filter(|problem| problem.condition == TEMPLATE_VALID) {
        Some(problem) => Statement::new(TEMPLATE_VALID, false, problem.reason, problem.message.clone()),
        None => Statement::new(TEMPLATE_VALID, true, "Accepted", "the template can become pods"),
    }
}

fn queue_ready(worker: &Worker, problem: Option<&Problem>, around: &Surroundings) -> Statement {
    let of_queue = problem.filter(|problem| problem.condition == QUEUE_READY).cloned();
    if let Some(problem) = of_queue.or_else(|| hold(worker, around)) {
        return Statement::new(QUEUE_READY, false, problem.reason, problem.message.clone());
    }
    let Some(queue) = around.queue.as_deref() else {
        let Problem { reason, message, .. } = queue_not_found(worker);
        return Statement::new(QUEUE_READY, false, reason, message);
    };
    let name = &worker.spec.queue_ref.name;
    match find(queue.conditions(), READY) {
        Some(ready) if ready.status == "True" => {
            Statement::new(QUEUE_READY, true, "QueueReady", format!("Queue \"{name}\" is Ready"))
        }
        Some(ready) => Statement {
            message: format!("Queue \"{name}\": {}", ready.message),
            ..Statement::of(QUEUE_READY, ready)
        },
        None => Statement::new(
            QUEUE_READY,
            Status::Unknown,
            "Connecting",
            format!("Queue \"{name}\" has no status yet"),
        ),
    }
}

fn available(
    worker: &Worker,
    problem: Option<&Problem>,
    desired: i32,
    around: &Surroundings,
    told: bool,
    view: &View,
    now: &Time,
) -> Statement {
    if let Some((reason, message)) = trouble(&around.pods, now.0) {
        return Statement::new(AVAILABLE, false, reason, message);
    }
    let Some(deployment) = around.deployment.as_deref() else {
        let reason = if problem.is_some() { "NotBuilt" } else { "Creating" };
        let status = if problem.is_some() { Status::False } else { Status::Unknown };
        return Statement::new(AVAILABLE, status, reason, "there is no Deployment yet");
    };
    if let Some((reason, why)) = &deployment.facts.refused {
        let message = format!(
            "pods are refused: {why}. Correct the quota, the policy, spec.template or spec.sidecar.resources"
        );
        return Statement::new(AVAILABLE, false, reason.clone(), message);
    }
    if worker.spec.consumer.paused && !told {
        return Statement::new(AVAILABLE, false, NOT_PAUSED, UNTOLD);
    }
    if worker.spec.consumer.paused {
        return Statement::new(AVAILABLE, true, "Paused", PAUSED);
    }
    let holds = around.queue.as_deref().is_some_and(|queue| is_unsure(worker, queue))
        || hold(worker, around).is_some();
    // What had them held may be over, and they cannot be told.
    let untold = problem.is_some() && around.is_told_to_pause();
    if told && holds || untold {
        let message = "consuming is held, see QueueReady: pods stay and consume nothing";
        return Statement::new(AVAILABLE, true, "Paused", message);
    }
    if desired == 0 {
        return Statement::new(AVAILABLE, true, "ScaledToZero", "no pod is wanted");
    }
    // A pod is not ready before its sidecar was connected once.
    if view.handlers.disconnected {
        let message = "more than half of the sidecars are not connected to the broker: see the logs of container warren-sidecar, the Secret that the Queue names for Workers and its user's rights, and network policies";
        return Statement::new(AVAILABLE, false, SIDECARS_DISCONNECTED, message);
    }
    if !around.pods.iter().any(|pod| ready(pod) && !ending(pod)) {
        // On the way from zero nothing is wrong; what is, has been named above.
        return Statement::new(AVAILABLE, Status::Unknown, PODS_STARTING, "no pod is ready yet");
    }
    if deployment.facts.half_rolled {
        let message = "pods of the changed template have run for the Deployment's progressDeadlineSeconds (600) and are not ready, so that those of the former one go on: see `kubectl describe pod` and the application's readiness probe, or change spec.template back";
        return Statement::new(AVAILABLE, false, "RolloutStalled", message);
    }
    Statement::new(AVAILABLE, true, PODS_READY, "pods are ready")
}

fn scaling_active(worker: &Worker, held_back: bool, told: bool, view: &View) -> Statement {
    let scaling = &worker.spec.scaling;
    let active = |reason: &str, message: &str| Statement::new(SCALING_ACTIVE, true, reason, message);
    if let Some(refusal) = &view.refused {
        let message = format!(
            "replicas cannot be changed: {refusal}. A right of the operator, a policy of the namespace or a webhook that is down is in the way: see to that; it is tried again by itself"
        );
        return Statement::new(SCALING_ACTIVE, false, SCALE_REFUSED, message);
    }
    match (scaling.mode, &view.decision) {
        (ScalingMode::External | ScalingMode::Manual, _) if held_back => {
            let message = "spec.replicas asks for more pods, and none is added that could not be told to hold consuming: see to what the other conditions say";
            Statement::new(SCALING_ACTIVE, false, HELD_BACK, message)
        }
        (ScalingMode::External, _) => active("External", "an HPA or KEDA writes the scale subresource"),
        (ScalingMode::Manual, _) => active("Manual", "spec.replicas is obeyed"),
        (ScalingMode::Builtin, Some(decision)) if decision.reason == Reason::Paused && !told => {
            let message = format!("replicas are held, and {UNTOLD}");
            Statement::new(SCALING_ACTIVE, false, NOT_PAUSED, message)
        }
        // What holds all pods comes before an entry that is left out.
        (ScalingMode::Builtin, Some(decision)) if !decision.reason.is_active() => by_decision(decision),
        (ScalingMode::Builtin, decision) => match (&view.misread, decision) {
            (Some(problem), _) => {
                Statement::new(SCALING_ACTIVE, false, problem.reason, problem.message.clone())
            }
            (None, Some(decision)) => by_decision(decision),
            (None, None) => {
                let message = "the queue has not been measured yet";
                Statement::new(SCALING_ACTIVE, Status::Unknown, UNSEEN, message)
            }
        },
    }
}

fn by_decision(decision: &Decision) -> Statement {
    Statement::new(
        SCALING_ACTIVE,
        decision.reason.is_active(),
        decision.reason.as_str(),
        decision.message.clone(),
    )
}

fn handler_healthy(worker: &Worker, desired: i32, view: &View, former: &WorkerStatus) -> Option<Statement> {
    let handlers = &view.handlers;
    // Pods that have not been looked into are as they were; without pods there is nothing to say.
    let before = || {
        let before = find(&former.conditions, HANDLER_HEALTHY).filter(|_| desired > 0);
        before.map(|before| Statement::of(HANDLER_HEALTHY, before))
    };
    if handlers.scraped == 0 {
        return before();
    }
    let port = port(worker).map(|port| format!(":{port}")).unwrap_or_default();
    let url = format!("http://localhost{port}{}", worker.spec.handler.http.path);
    if let Some(code) = handlers.misconfigured {
        let message = format!(
            "POST {url} answers {code}: correct spec.handler.http.path or port, or what the application allows. Consuming is held back; what failed before may be in the dead-letter queue"
        );
        return Some(Statement::new(HANDLER_HEALTHY, false, "HandlerMisconfigured", message));
    }
    if handlers.most_held() {
        let message = if handlers.listened {
            "the handler of most pods is away or fails most messages: see the application's logs. Consuming is held back there and resumes by itself".to_owned()
        } else {
            format!(
                "nothing has listened at {url} yet: correct spec.handler.http.port, or see the application's logs. Consuming is held back and begins by itself"
            )
        };
        return Some(Statement::new(HANDLER_HEALTHY, false, "HandlerFailing", message));
    }
    // Where nothing has listened yet, applications start.
    if !handlers.listened {
        return before();
    }
    Some(Statement::new(HANDLER_HEALTHY, true, "Handling", "the handler takes messages"))
}

/// `Ready` is True when everything else is; its reason is that of the first that is not.
fn summary(worker: &Worker, all: &[Statement]) -> Statement {
    let worst = all
        .iter()
        .find(|statement| statement.status == Status::False)
        .or_else(|| all.iter().find(|statement| statement.status == Status::Unknown));
    match worst {
        Some(worst) => Statement::new(READY, worst.status, worst.reason.clone(), worst.message.clone()),
        None if worker.spec.consumer.paused => Statement::new(READY, true, "Paused", PAUSED),
        None => Statement::new(READY, true, "Ready", "messages are handled as they come"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{from_value, json};
    use warren_api::Queue;

    use super::super::build::{Rolled, build};
    use super::super::owed::tests::around;
    use super::super::validate::tests::{declared, saying, surroundings, worker};
    use super::super::validate::{DISORDER, validate};
    use super::*;
    use crate::brokers::Key;
    use crate::problem::{ALREADY_EXISTS, CONFLICT};
    use crate::scaler::board::Handlers;
    use crate::scaler::reason::Reason;
    use crate::scaler::schedule::Schedules;

    fn now() -> Time {
        Time(Timestamp::from_second(1).unwrap())
    }

    fn say(problem: Option<&Problem>, view: &View) -> WorkerStatus {
        status(&worker(json!({})), problem, None, &surroundings(), view, &now())
    }

    fn decided(reason: Reason, message: &str) -> View {
        let decision = Decision { replicas: 2, raw: 2, reason, message: message.to_owned() };
        View { decision: Some(decision), ..View::default() }
    }

    /// A view of a Worker of whose schedules one cannot be read.
    fn misread(view: View) -> View {
        let schedule = json!({"cron": "0 25 * * *", "minReplicas": 1});
        let misread = Schedules::parse(&[serde_json::from_value(schedule).unwrap()]).1;
        View { misread, ..view }
    }

    #[test]
    fn the_summary_carries_the_first_failure() {
        let problem = Problem::new(TEMPLATE_VALID, "PortTaken", "use another port");
        let status = say(Some(&problem), &View::default());
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "PortTaken"));
        assert_eq!(status.conditions[0].type_, READY);
    }

    #[test]
    fn pods_that_could_not_be_told_to_pause_are_not_said_to_be_paused() {
        let paused = worker(json!({"consumer": {"paused": true}}));
        let problem = Problem::new(TEMPLATE_VALID, "PortMissing", "name a port");
        let told = |told: bool, pods: Vec<Arc<Pod>>| {
            let (before, queue) = (worker(json!({"consumer": {"paused": told}})), surroundings());
            let built = build(&validate(&before, &queue).unwrap(), &Rolled::default(), "sidecar:new", 1);
            let config_map = Some(Arc::new(from_value(built.config_map).unwrap()));
            let around = Surroundings { config_map, pods, ..around(1, "u-1") };
            let view = decided(Reason::Paused, "held");
            let status = status(&paused, Some(&problem), None, &around, &view, &now());
            [AVAILABLE, SCALING_ACTIVE].map(|kind| find(&status.conditions, kind).unwrap().reason.clone())
        };
        let pod = || vec![Arc::new(Pod::default())];
        assert_eq!(told(false, pod()), ["NotPaused"; 2]);
        assert_eq!(told(true, pod()), ["Paused"; 2]);
        assert_eq!(told(false, vec![]), ["Paused"; 2], "nobody consumes");
        let evicted = from_value(json!({"status": {"phase": "Failed"}})).unwrap();
        assert_eq!(told(false, vec![Arc::new(evicted)]), ["Paused"; 2], "it consumes no more");
    }

    #[test]
    fn how_long_messages_took_is_not_known_of_a_worker_that_was_changed_while_nobody_looked() {
        let mut worker = worker(json!({}));
        let scaling = ScalingStatus { seconds_per_message: Some(0.1), ..ScalingStatus::default() };
        let told = |worker: &Worker| {
            let said = status(worker, None, None, &surroundings(), &View::default(), &now());
            said.scaling.unwrap().seconds_per_message
        };
        worker.metadata.generation = Some(1);
        let observed_generation = Some(1);
        worker.status =
            Some(WorkerStatus { scaling: Some(scaling), observed_generation, ..WorkerStatus::default() });
        assert_eq!(told(&worker), Some(0.1));
        worker.metadata.generation = Some(2);
        assert_eq!(told(&worker), None);
    }

    #[test]
    fn a_decision_tells_how_long_a_message_took_as_it_was_then_in_three_digits() {
        let mut worker = worker(json!({}));
        let (namespace, name) = ("shop".to_owned(), worker.spec.queue_ref.name.clone());
        let queue = Some(Key { namespace, name });
        let view = |service_seconds| View {
            service_seconds,
            queue: queue.clone(),
            ..decided(Reason::Steady, "fits")
        };
        let scaling = say(None, &view(Some(0.123_456))).scaling;
        let told = |scaling: &Option<ScalingStatus>| scaling.as_ref().unwrap().seconds_per_message;
        assert_eq!(told(&scaling), Some(0.123));
        let observed_generation = worker.metadata.generation;
        worker.status = Some(WorkerStatus { scaling, observed_generation, ..WorkerStatus::default() });
        let after = |worker: &Worker, view: &View| {
            told(&status(worker, None, None, &surroundings(), view, &now()).scaling)
        };
        let later = after(&worker, &view(Some(60.0)));
        assert_eq!(later, Some(0.123), "it is written only when the decision changes");
        worker.metadata.generation = Some(2);
        assert_eq!(after(&worker, &view(Some(0.2))), Some(0.2), "the scaler has seen the change");
        let of_another = View { queue: None, ..view(Some(0.2)) };
        assert_eq!(after(&worker, &of_another), None);
        assert_eq!(told(&say(None, &view(None)).scaling), None);
    }

    fn pod(ends: Option<&str>, ready: &str) -> Arc<Pod> {
        let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
        let pod = json!({"metadata": {"deletionTimestamp": ends}, "status": status});
        Arc::new(from_value::<Pod>(pod).unwrap())
    }

    #[test]
    fn pods_on_their_way_are_no_failure_and_pods_that_end_are_not_counted() {
        let said = |pods: Vec<Arc<Pod>>| {
            let around = Surroundings { pods, ..around(1, "u-1") };
            let view = decided(Reason::ScaledOut, "one waits");
            let status = status(&worker(json!({})), None, None, &around, &view, &now());
            let available = find(&status.conditions, AVAILABLE).unwrap();
            (available.status.clone(), available.reason.clone())
        };
        let starting = ("Unknown".to_owned(), "PodsStarting".to_owned());
        let ends = pod(Some("2026-01-01T00:00:00Z"), "True");
        assert_eq!(said(vec![]), starting);
        assert_eq!(said(vec![ends.clone(), pod(None, "False")]), starting);
        assert_eq!(said(vec![ends, pod(None, "True")]), ("True".to_owned(), "PodsReady".to_owned()));
    }

    #[test]
    fn whatever_has_consuming_held_is_said_and_the_pods_are_said_to_consume_nothing() {
        let of = |queue: Queue| Surroundings { queue: Some(Arc::new(queue)), ..around(1, "u-1") };
        let ordered = json!({"consumer": {"orderingKey": "x-customer"}});
        let alone = json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}});
        let beside = Surroundings { beside: Some("another consumes".to_owned()), ..around(1, "u-1") };
        for (spec, around, reason) in [
            (json!({}), of(declared("False", ALREADY_EXISTS)), ALREADY_EXISTS),
            (json!({}), of(declared("False", CONFLICT)), CONFLICT),
            (ordered, around(1, "u-1"), DISORDER),
            (alone, beside, DISORDER),
        ] {
            for problem in [None, Some(Problem::new(TEMPLATE_VALID, "PortMissing", "name a port"))] {
                let problem = problem.as_ref();
                let status = status(&worker(spec.clone()), problem, None, &around, &View::default(), &now());
                let said = |kind| find(&status.conditions, kind).map(|c| (&*c.status, &*c.reason));
                assert_eq!(said(AVAILABLE), Some(("True", "Paused")));
                assert_eq!(said(QUEUE_READY), Some(("False", reason)), "beside what else is wrong");
                assert_eq!(said(READY), Some(("False", problem.map_or(reason, |problem| problem.reason))));
            }
        }
    }

    #[test]
    fn a_decision_with_other_numbers_alone_writes_nothing() {
        let mut worker = worker(json!({}));
        let first =
            status(&worker, None, None, &surroundings(), &decided(Reason::Steady, "1 waiting"), &now());
        worker.status = Some(first.clone());
        let second =
            status(&worker, None, None, &surroundings(), &decided(Reason::Steady, "2 waiting"), &now());
        assert_eq!(first, second);
        let third =
            status(&worker, None, None, &surroundings(), &decided(Reason::Stalled, "3 waiting"), &now());
        assert_eq!(find(&third.conditions, SCALING_ACTIVE).unwrap().message, "3 waiting");
    }

    #[test]
    fn what_is_refused_again_in_words_that_differ_in_numbers_alone_is_not_written_anew() {
        let answer = |port| format!("read tcp 10.0.0.7:{port}->10.96.3.4:443: connection reset by peer");
        let say = |before: &Worker, answer: String, reason| {
            let view = View { refused: Some(answer.clone()), ..decided(Reason::ScaledOut, "m") };
            let problem = Problem::new(TEMPLATE_VALID, reason, answer);
            status(before, Some(&problem), None, &surroundings(), &view, &now())
        };
        for reason in [REFUSED, NOT_APPLIED] {
            let mut worker = worker(json!({}));
            let first = say(&worker, answer(30_001), reason);
            worker.status = Some(first.clone());
            assert_eq!(say(&worker, answer(30_002), reason), first);
            assert_ne!(say(&worker, "connection refused".to_owned(), reason), first);
            worker.metadata.generation = Some(7);
            assert_ne!(
                say(&worker, answer(30_002), reason).conditions[1].message,
                first.conditions[1].message
            );
        }
    }

    #[test]
    fn what_a_decision_says_is_written_anew_with_the_spec_the_replicas_and_the_cause() {
        let mut worker = worker(json!({}));
        worker.metadata.generation = Some(1);
        let mut said = |generation, replicas, reason, message: &str| {
            worker.metadata.generation = Some(generation);
            let mut view = decided(reason, message);
            view.decision.as_mut().unwrap().replicas = replicas;
            let next = status(&worker, None, None, &surroundings(), &view, &now());
            worker.status = Some(next.clone());
            let condition = find(&next.conditions, SCALING_ACTIVE).unwrap().message.clone();
            [condition, next.scaling.unwrap().message]
        };
        assert_eq!(said(1, 2, Reason::Scheduled, "by 8:00"), ["by 8:00"; 2]);
        assert_eq!(said(2, 2, Reason::Scheduled, "by 9:00"), ["by 9:00"; 2]);
        assert_eq!(said(2, 1, Reason::ScaledOut, "0 to 1"), ["0 to 1"; 2]);
        assert_eq!(said(2, 40, Reason::ScaledOut, "1 to 40"), ["1 to 40"; 2]);
        let mut failing = |message| said(2, 40, Reason::HandlerFailing, message)[0].clone();
        let messages =
            ["it is away: 1 waits", "it is away: 2 wait", "5 calls failed: 3 wait", "6 calls failed: 4"];
        assert_eq!(messages.map(&mut failing), [messages[0], messages[0], messages[2], messages[2]]);
    }

    #[test]
    fn replicas_that_somebody_wrote_are_said_to_be_ignored_at_once_and_no_longer_than_they_are() {
        let ignored = |worker: &Worker, former: &WorkerStatus| {
            let worker = Worker { status: Some(former.clone()), ..worker.clone() };
            let next = status(&worker, None, None, &surroundings(), &decided(Reason::Steady, "fits"), &now());
            (find(&next.conditions, SCALING_ACTIVE).unwrap().message.contains("is ignored"), next)
        };
        let (untouched, scaled) = (worker(json!({})), worker(json!({"replicas": 7})));
        let (said, first) = ignored(&untouched, &WorkerStatus::default());
        assert!(!said);
        let (said, second) = ignored(&scaled, &first);
        assert!(said);
        assert!(!ignored(&untouched, &second).0);
    }

    #[test]
    fn a_schedule_that_cannot_be_read_is_said_with_what_to_write() {
        let status = say(None, &misread(decided(Reason::Steady, "fits")));
        let active = find(&status.conditions, SCALING_ACTIVE).unwrap();
        assert_eq!((active.status.as_str(), active.reason.as_str()), ("False", SCHEDULE_INVALID));
        assert!(active.message.contains("0 8 * * 1-5"), "{}", active.message);
        assert_eq!(find(&status.conditions, READY).unwrap().status, "False");
    }

    #[test]
    fn replicas_that_the_api_server_does_not_take_are_said_with_its_answer() {
        let view =
            View { refused: Some("denied by a webhook".to_owned()), ..decided(Reason::Steady, "fits") };
        let status = say(None, &view);
        let active = find(&status.conditions, SCALING_ACTIVE).unwrap();
        assert_eq!((active.status.as_str(), active.reason.as_str()), ("False", SCALE_REFUSED));
        assert!(active.message.contains("denied by a webhook. "), "{}", active.message);
        assert_eq!(find(&status.conditions, READY).unwrap().reason, SCALE_REFUSED);
    }

    #[test]
    fn pods_that_are_not_added_since_they_might_break_an_order_are_told() {
        let around = Surroundings { queue: None, ..around(1, "u-1") };
        let said = |mode: &str, replicas: i32, image: Option<&str>| {
            let consumer = json!({"orderingKey": "x-customer"});
            let worker =
                worker(json!({"consumer": consumer, "scaling": {"mode": mode}, "replicas": replicas}));
            let image = image.map(str::to_owned);
            let status = status(&worker, None, image, &around, &View::default(), &now());
            find(&status.conditions, SCALING_ACTIVE).unwrap().reason.clone()
        };
        for mode in ["Manual", "External"] {
            assert_eq!(said(mode, 3, None), HELD_BACK);
            assert_eq!(said(mode, 1, None), mode, "none is wanted");
            assert_eq!(said(mode, 3, Some("sidecar:1")), mode, "they can be told to hold");
        }
    }

    #[test]
    fn a_schedule_that_cannot_be_read_hides_no_stall() {
        let status = say(None, &misread(decided(Reason::Stalled, "look at the handler's logs")));
        assert_eq!(find(&status.conditions, SCALING_ACTIVE).unwrap().reason, "Stalled");
    }

    #[test]
    fn a_wrong_path_is_named_with_url_and_status() {
        let handlers =
            Handlers { scraped: 1, held: 1, listened: true, misconfigured: Some(404), disconnected: false };
        let status = say(None, &View { handlers, ..View::default() });
        let healthy = find(&status.conditions, HANDLER_HEALTHY).unwrap();
        assert_eq!(healthy.reason, "HandlerMisconfigured");
        let words = "POST http://localhost:8080/ answers 404";
        assert!(healthy.message.contains(words), "{}", healthy.message);
    }

    #[test]
    fn handlers_that_fail_in_most_pods_are_told_of_as_the_scaler_does() {
        let said = |held| {
            let handlers =
                Handlers { scraped: 10, held, misconfigured: None, disconnected: false, listened: true };
            let status = say(None, &View { handlers, ..View::default() });
            let healthy = find(&status.conditions, HANDLER_HEALTHY).unwrap();
            (healthy.status.clone(), healthy.reason.clone())
        };
        let failing = ("False".to_owned(), "HandlerFailing".to_owned());
        assert_eq!((said(10), said(6)), (failing.clone(), failing));
        assert_eq!(said(5), ("True".to_owned(), "Handling".to_owned()));
    }

    #[test]
    fn a_port_that_nobody_listens_at_is_named_and_comes_before_what_the_scaler_makes_of_it() {
        let handlers = Handlers { scraped: 2, held: 2, ..Handlers::default() };
        let view = View { handlers, ..decided(Reason::HandlerFailing, "replicas are held") };
        let status = say(None, &view);
        for kind in [HANDLER_HEALTHY, READY] {
            let message = &find(&status.conditions, kind).unwrap().message;
            assert!(message.contains("nothing has listened at http://localhost:8080/ yet"), "{message}");
        }
    }

    #[test]
    fn pods_that_never_reach_the_broker_are_not_said_to_start() {
        let handlers = Handlers { scraped: 1, listened: true, disconnected: true, ..Handlers::default() };
        let view = View { handlers, ..decided(Reason::Stalled, "nothing has moved") };
        let around =
            Surroundings { queue: Some(Arc::new(saying(READY, "True", "Declared"))), ..around(1, "u-1") };
        let status = status(&worker(json!({})), None, None, &around, &view, &now());
        for kind in [AVAILABLE, READY] {
            let said = find(&status.conditions, kind).unwrap();
            assert_eq!(
                (said.status.as_str(), said.reason.as_str()),
                ("False", "SidecarsDisconnected"),
                "{said:?}"
            );
        }
        // An operator that has just come has not looked into them yet.
        let before = Worker { status: Some(status), ..worker(json!({})) };
        let said = |scraped, sidecar: &str, view: View| {
            let container = json!({"name": "warren-sidecar", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": {sidecar: {}}});
            let pod = json!({"metadata": {}, "status": {"initContainerStatuses": [container]}});
            let around =
                Surroundings { pods: vec![Arc::new(from_value::<Pod>(pod).unwrap())], ..around.clone() };
            let handlers = Handlers { scraped, listened: true, ..Handlers::default() };
            let status = super::status(&before, None, None, &around, &View { handlers, ..view }, &now());
            find(&status.conditions, AVAILABLE).unwrap().reason.clone()
        };
        assert_eq!(said(0, "running", View::default()), "SidecarsDisconnected");
        assert_eq!(said(1, "running", View::default()), "PodsStarting");
        assert_eq!(said(0, "waiting", View::default()), "PodsStarting", "these are others");
        let blind = decided(Reason::MetricsUnreachable, "allow it");
        assert_eq!(said(0, "running", blind), "PodsStarting", "that is not known any more");
    }

    #[test]
    fn the_summary_of_a_paused_worker_does_not_say_that_messages_are_handled() {
        let around = around(1, "u-1");
        let queue = Some(Arc::new(saying(READY, "True", "Declared")));
        let paused = worker(json!({"consumer": {"paused": true}}));
        let view = decided(Reason::Steady, "");
        let status = status(&paused, None, None, &Surroundings { queue, ..around }, &view, &now());
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.message.as_str()), ("True", PAUSED));
    }

    #[test]
    fn the_scale_subresource_gets_its_selector() {
        assert_eq!(say(None, &View::default()).selector.as_deref(), Some("warren.dev/worker=invoices"));
    }

    #[test]
    fn an_operator_that_starts_anew_says_of_the_scaling_what_was_said_before_until_it_has_measured() {
        let mut worker = worker(json!({}));
        let scaling = |worker: &Worker, view: &View| {
            let next = status(worker, None, None, &surroundings(), view, &now());
            (find(&next.conditions, SCALING_ACTIVE).unwrap().reason.clone(), next)
        };
        assert_eq!(scaling(&worker, &View::default()).0, UNSEEN);
        worker.status = Some(scaling(&worker, &decided(Reason::Steady, "fits")).1);
        assert_eq!(scaling(&worker, &View::default()).0, "Steady");
    }

    #[test]
    fn what_a_queue_says_of_itself_is_what_its_worker_says_of_it_and_what_is_not_known_is_not_ready() {
        for (of_queue, reason) in
            [("False", "BrokerUnreachable"), ("Unknown", "Connecting"), ("True", "Declared")]
        {
            let around =
                Surroundings { queue: Some(Arc::new(saying(READY, of_queue, reason))), ..around(0, "u-1") };
            let view = decided(Reason::Steady, "fits");
            let status = status(&worker(json!({})), None, None, &around, &view, &now());
            let said = |kind| find(&status.conditions, kind).unwrap().status.clone();
            assert_eq!((said(QUEUE_READY).as_str(), said(READY).as_str()), (of_queue, of_queue));
        }
    }

    #[test]
    fn a_change_whose_pods_never_become_ready_is_told_although_others_go_on() {
        let said = |progressing: &str| {
            let conditions = json!([{"type": "Progressing", "status": progressing}]);
            let deployment = json!({"metadata": {"name": "invoices", "namespace": "shop", "generation": 2}, "spec": {"replicas": 1},
                "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "conditions": conditions}});
            let around = Surroundings {
                deployment: Some(Arc::new(from_value(deployment).unwrap())),
                pods: vec![pod(None, "True")],
                ..surroundings()
            };
            let status = status(&worker(json!({})), None, None, &around, &View::default(), &now());
            let available = find(&status.conditions, AVAILABLE).unwrap();
            (available.status.clone(), available.reason.clone())
        };
        assert_eq!(said("True"), ("True".to_owned(), "PodsReady".to_owned()));
        assert_eq!(said("False"), ("False".to_owned(), "RolloutStalled".to_owned()));
    }

    #[test]
    fn pods_that_are_refused_or_not_wanted_are_told_of() {
        let said = |deployment: serde_json::Value| {
            let around = Surroundings {
                deployment: Some(Arc::new(from_value(deployment).unwrap())),
                ..surroundings()
            };
            let status = status(&worker(json!({})), None, None, &around, &View::default(), &now());
            let available = find(&status.conditions, AVAILABLE).unwrap();
            (
                available.reason.clone(),
                available.message.contains("exceeded quota"),
                status.replicas,
                status.desired_replicas,
            )
        };
        let refused = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"});
        let metadata = json!({"name": "invoices", "namespace": "shop"});
        let deployment = json!({"metadata": metadata, "spec": {"replicas": 3}, "status": {"replicas": 1, "conditions": [refused]}});
        assert_eq!(said(deployment), ("FailedCreate".to_owned(), true, 1, 3));
        let none = json!({"metadata": metadata, "spec": {"replicas": 0}});
        assert_eq!(said(none), ("ScaledToZero".to_owned(), false, 0, 0));
    }

    #[test]
    fn pods_of_a_queue_that_is_not_known_to_be_warren_s_are_said_to_hold_and_those_that_cannot_be_told_are_not()
     {
        let mut queue = saying(READY, "Unknown", "Connecting");
        queue.spec.adoption_policy = warren_api::queue::AdoptionPolicy::FailIfExists;
        let unsure = Surroundings { queue: Some(Arc::new(queue)), ..around(1, "u-1") };
        let said = |around: &Surroundings, problem: Option<&Problem>, image: Option<&str>| {
            let image = image.map(str::to_owned);
            let status = status(&worker(json!({})), problem, image, around, &View::default(), &now());
            find(&status.conditions, AVAILABLE).unwrap().reason.clone()
        };
        assert_eq!(said(&unsure, None, Some("sidecar:1")), "Paused");
        let pods = vec![Arc::new(Pod::default())];
        let problem = Problem::new(TEMPLATE_VALID, "PortMissing", "name a port");
        let untold = Surroundings { pods, ..unsure };
        assert_eq!(said(&untold, Some(&problem), Some("sidecar:1")), "Paused");
        assert_eq!(said(&untold, Some(&problem), None), "PodsStarting", "they consume on");
    }

    #[test]
    fn pods_that_cannot_be_told_to_go_on_are_said_to_be_paused() {
        let (before, queue) = (worker(json!({"consumer": {"paused": true}})), surroundings());
        let built = build(&validate(&before, &queue).unwrap(), &Rolled::default(), "sidecar:new", 1);
        let config_map = Some(Arc::new(from_value(built.config_map).unwrap()));
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let pods = vec![Arc::new(from_value(ready).unwrap())];
        let missing = Surroundings { config_map, queue: None, pods, ..around(1, "u-1") };
        let (now_runs, problem) = (worker(json!({})), queue_not_found(&before));
        let status = status(&now_runs, Some(&problem), None, &missing, &View::default(), &now());
        assert_eq!(find(&status.conditions, AVAILABLE).unwrap().reason, "Paused");
    }

    #[test]
    fn a_handler_is_said_to_take_messages_once_one_has_listened() {
        let said = |listened, former: Option<WorkerStatus>| {
            let mut worker = worker(json!({}));
            worker.status = former;
            let view = View {
                handlers: Handlers { scraped: 1, listened, ..Handlers::default() },
                ..View::default()
            };
            status(&worker, None, None, &around(1, "u-1"), &view, &now())
        };
        let healthy = |status: &WorkerStatus| find(&status.conditions, HANDLER_HEALTHY).cloned();
        assert_eq!(healthy(&said(false, None)), None, "it starts");
        let listens = said(true, None);
        assert_eq!(healthy(&listens).unwrap().reason, "Handling");
        assert_eq!(healthy(&said(false, Some(listens.clone()))), healthy(&listens), "others took its place");
    }

    #[test]
    fn what_was_said_of_a_handler_stands_while_no_pod_is_scraped_and_as_long_as_one_is_wanted() {
        let handlers =
            Handlers { scraped: 1, held: 1, listened: true, misconfigured: Some(404), ..Handlers::default() };
        let mut worker = worker(json!({}));
        worker.status = Some(say(None, &View { handlers, ..View::default() }));
        let said = |replicas| {
            let status = status(&worker, None, None, &around(replicas, "u-1"), &View::default(), &now());
            find(&status.conditions, HANDLER_HEALTHY).map(|healthy| healthy.reason.clone())
        };
        assert_eq!((said(1).as_deref(), said(0)), (Some("HandlerMisconfigured"), None));
    }

    #[test]
    fn replicas_that_somebody_has_scaled_to_zero_are_said_to_be_ignored_too() {
        let scaled = worker(json!({"replicas": 0}));
        let status = status(&scaled, None, None, &surroundings(), &decided(Reason::Steady, "fits"), &now());
        let active = find(&status.conditions, SCALING_ACTIVE).unwrap();
        assert!(active.message.contains("spec.replicas is ignored"), "{}", active.message);
    }

    #[test]
    fn what_is_wrong_with_another_pod_or_another_schedule_is_said_anew() {
        let after = |former: Option<WorkerStatus>, pod: &str, view: &View| {
            let mut worker = worker(json!({}));
            worker.status = former;
            let waiting = json!({"waiting": {"reason": "ErrImagePull"}});
            let container = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": waiting});
            let pod = json!({"metadata": {"name": pod}, "status": {"containerStatuses": [container]}});
            let around = Surroundings { pods: vec![Arc::new(from_value(pod).unwrap())], ..around(1, "u-1") };
            status(&worker, None, None, &around, view, &now())
        };
        let said = |status: &WorkerStatus, kind| find(&status.conditions, kind).unwrap().message.clone();
        let first = after(None, "p-1", &misread(decided(Reason::Steady, "fits")));
        assert!(said(&first, AVAILABLE).contains("pod p-1"), "{}", said(&first, AVAILABLE));
        let mut other = misread(decided(Reason::Steady, "fits"));
        other.misread.as_mut().unwrap().message = "another entry".to_owned();
        let second = after(Some(first), "p-2", &other);
        assert!(said(&second, AVAILABLE).contains("pod p-2"), "{}", said(&second, AVAILABLE));
        assert_eq!(said(&second, SCALING_ACTIVE), "another entry");
        let refused = |why: &str| View { refused: Some(why.to_owned()), ..View::default() };
        let third = after(Some(second), "p-2", &refused("a quota"));
        let fourth = after(Some(third), "p-2", &refused("a webhook"));
        assert!(said(&fourth, SCALING_ACTIVE).contains("a webhook"), "{}", said(&fourth, SCALING_ACTIVE));
    }

    #[test]
    fn a_worker_that_turns_to_another_mode_says_nothing_of_what_was_decided_in_the_one_before() {
        let after = |former: Option<WorkerStatus>, mode: &str, view: &View| {
            let mut worker = worker(json!({"scaling": {"mode": mode}}));
            worker.status = former;
            status(&worker, None, None, &surroundings(), view, &now())
        };
        let reason = |status: &WorkerStatus| find(&status.conditions, SCALING_ACTIVE).unwrap().reason.clone();
        let builtin = after(None, "Builtin", &decided(Reason::Steady, "fits"));
        assert!(builtin.scaling.is_some());
        let manual = after(Some(builtin), "Manual", &View::default());
        assert_eq!((reason(&manual).as_str(), manual.scaling.is_none()), ("Manual", true));
        assert_eq!(reason(&after(Some(manual), "Builtin", &View::default())), UNSEEN);
    }

    #[test]
    fn the_sidecar_s_version_stands_while_nothing_can_be_built() {
        let mut worker = worker(json!({}));
        let version = |worker: &Worker, image: Option<&str>| {
            let image = image.map(str::to_owned);
            status(worker, None, image, &surroundings(), &View::default(), &now()).sidecar_version
        };
        worker.status =
            Some(WorkerStatus { sidecar_version: Some("sidecar:1".to_owned()), ..WorkerStatus::default() });
        assert_eq!(version(&worker, None).as_deref(), Some("sidecar:1"));
        assert_eq!(version(&worker, Some("sidecar:2")).as_deref(), Some("sidecar:2"));
    }

    #[test]
    fn what_holds_no_consuming_is_not_said_to_hold_it() {
        let problem = Problem::new(TEMPLATE_VALID, "PortMissing", "name a port");
        let around = around(1, "u-1");
        let status = status(&worker(json!({})), Some(&problem), None, &around, &View::default(), &now());
        assert_eq!(find(&status.conditions, AVAILABLE).unwrap().reason, "PodsStarting");
    }
}
