//! `kubectl warren explain worker/NAME`: `read -> report`. The decisions are the operator's own: those that it remembers, or,
//! where it cannot be asked, what status and events still say.

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use warren_api::conditions::READY;
use warren_api::conditions::worker::{SCALING_ACTIVE, TEMPLATE_VALID};
use warren_api::worker::ScalingMode;
use warren_api::{Queue, Worker, WorkerStatus};
use warren_operator::condition::{find, is_true};
use warren_operator::scaler::act::PATCHED_FOR;
use warren_operator::scaler::asked::spec;
use warren_operator::scaler::reason::Reason;
use warren_operator::scaler::record::{Told, ToldDecision};

use crate::cluster::Cluster;
use crate::read::{Read, said};
use crate::table::table;
use crate::{Answer, name, one_line};

/// Changes of replicas that are shown.
const SHOWN: usize = 10;
/// The kind as kubectl takes it, and as it prints it.
const KINDS: [&str; 5] = ["worker", "workers", "wk", "workers.warren.dev", "worker.warren.dev"];

/// Says why a Worker has the replicas that it has.
#[derive(Debug, Args)]
pub struct Explain {
    /// worker/NAME, or NAME
    #[arg(value_parser = |text: &str| name(text, KINDS))]
    worker: String,
}

/// Everything that was read.
#[derive(Debug)]
struct Seen {
    worker: Worker,
    /// Its Queue, where it could be read.
    queue: Option<Queue>,
    operator: Read<Option<Told>>,
    /// From events, oldest first.
    changes: Read<Vec<Change>>,
    now: Timestamp,
}

/// When replicas were changed, and what the event says.
type Change = (Option<Timestamp>, String);

impl Explain {
    /// Reads and prints.
    ///
    /// # Errors
    /// There is no such Worker, or the API server refuses it.
    pub async fn run(&self, cluster: &Cluster) -> anyhow::Result<Answer> {
        let name = &self.worker;
        let worker = match cluster.api::<Worker>().get(name).await {
            Err(kube::Error::Api(status)) if status.reason == "NotFound" => {
                bail!("there is no Worker \"{name}\" in namespace {}", cluster.namespace)
            }
            answer => answer.with_context(|| format!("read Worker {name}"))?,
        };
        let about =
            ListParams::default().fields(&format!("involvedObject.kind=Worker,involvedObject.name={name}"));
        // The older of the two APIs of events is the one that the role "view" may read.
        let events = cluster.api::<Event>().list(&about).await.map_err(said);
        let operator = match worker.spec.scaling.mode {
            ScalingMode::Builtin => cluster.decisions(name).await.map_err(said),
            ScalingMode::External | ScalingMode::Manual => Ok(None),
        };
        let changes = events.map(|events| changes(events.items));
        // Who may not read Queues is told the Worker's own limit.
        let queue = cluster.api::<Queue>().get_opt(&worker.spec.queue_ref.name).await.ok().flatten();
        Ok(Seen { worker, queue, operator, changes, now: Timestamp::now() }.text().into())
    }
}

fn changes(events: Vec<Event>) -> Vec<Change> {
    let mut changes: Vec<_> = events
        .into_iter()
        .filter(|event| event.reason.as_deref().is_some_and(|reason| PATCHED_FOR.contains(&reason)))
        .map(|event| {
            let series = event.series.and_then(|series| series.last_observed_time).map(|time| time.0);
            let at = series
                .or(event.event_time.map(|time| time.0))
                .or(event.last_timestamp.map(|time| time.0))
                .or(event.metadata.creation_timestamp.map(|time| time.0));
            (at, one_line(&event.message.unwrap_or_default()))
        })
        .collect();
    changes.sort();
    changes.split_off(changes.len().saturating_sub(SHOWN))
}

impl Seen {
    fn text(&self) -> String {
        let Self { worker, queue: _, operator: _, changes, now } = self;
        let (mode, status) = (worker.spec.scaling.mode, worker.status.clone().unwrap_or_default());
        let mut text = format!(
            "Worker {} has {} pods and wants {}.\n{}\n",
            worker.name_any(),
            status.replicas,
            status.desired_replicas,
            not_ready(&status),
        );
        match mode {
            ScalingMode::External => {
                text += "Mode External: an HPA or KEDA writes the scale subresource; see kubectl get hpa.\n";
                text += &hindered(&status);
            }
            ScalingMode::Manual => {
                let said = if is_obeyed(worker, &status) { "is obeyed, which is" } else { "asks for" };
                text += &format!("Mode Manual: spec.replicas {said} {}.\n", worker.spec.replicas);
                text += &hindered(&status);
            }
            ScalingMode::Builtin => text += &self.builtin(&status),
        }
        text +=
            "\nLast changes of replicas by Warren's scaler, from the events that the API server still has:\n";
        match changes {
            Err(why) => text += &format!("  not known: {why}\n"),
            Ok(changes) if changes.is_empty() => text += "  none\n",
            Ok(changes) => {
                for (at, message) in changes {
                    text += &format!("  {:<10}  {message}\n", age(*at, *now));
                }
            }
        }
        text
    }

    /// What Warren's scaler has decided, and from what.
    fn builtin(&self, status: &WorkerStatus) -> String {
        let told = self.operator.as_ref().ok().and_then(Option::as_ref);
        let mut text = match (told, &status.scaling) {
            // The status is written only when replicas or reason change, and its numbers are of then.
            (Some(told), _) => {
                let made = format!("made {:.1} s ago", told.looked_seconds_ago);
                self.decision(&told.decision, told.floor.unwrap_or(0), &made)
            }
            (None, Some(last)) => {
                let last = ToldDecision {
                    seconds_ago: 0.0,
                    replicas: last.replicas.max(0).unsigned_abs(),
                    raw: last.raw.max(0).unsigned_abs(),
                    reason: last.reason.clone(),
                    message: last.message.clone(),
                };
                self.decision(&last, 0, "with the numbers of when that began")
            }
            (None, None) => "Warren has decided nothing yet: the queue has not been measured.\n".to_owned(),
        };
        if let Some(condition) = find(&status.conditions, SCALING_ACTIVE) {
            let since = age(Some(condition.last_transition_time.0), self.now);
            text += &format!("  since      {since}, ScalingActive={}\n", condition.status);
        }
        text += &hindered(status);
        match &self.operator {
            Ok(Some(told)) => text += &inputs_and_decisions(told),
            Ok(None) => text += "\nNo operator that leads scales this Worker at the moment.\n",
            Err(why) => text += &format!("\nWhat it was made from is not known: {why}\n"),
        }
        text
    }

    fn decision(&self, made: &ToldDecision, scheduled: u32, when: &str) -> String {
        let spec = spec(&self.worker, self.queue.as_ref(), None);
        let (least, most) = (spec.min, spec.max);
        let limit = match spec.single {
            true => format!("{most} for the Queue's singleActiveConsumer"),
            false => format!("maxReplicas {most}"),
        };
        let scheduled = most.min(scheduled);
        let holds = |reason: Reason| reason.as_str() == made.reason;
        let limits = match made.raw {
            _ if [Reason::Paused, Reason::Stalled, Reason::HandlerFailing].into_iter().any(holds) => {
                "held".to_owned()
            }
            raw if raw > most => format!("raised no further than {limit}"),
            raw if raw < scheduled && scheduled > least => {
                format!("kept at {scheduled} by scaling.schedules")
            }
            raw if raw < least => format!("kept at minReplicas {least}"),
            _ => format!("within minReplicas {least} and {limit}"),
        };
        let formula = match holds(Reason::DepthUnknown) {
            true => "none, as long as what waits is not known".to_owned(),
            false => format!("{} pods, {limits}", made.raw),
        };
        format!(
            "Decision: {} replicas, {}, {when}\n  why        {}\n  formula    {formula}\n  target     a message starts within {} s; fewer pods by the load of {} s\n",
            made.replicas,
            made.reason,
            one_line(&made.message),
            spec.target_wait,
            spec.window(),
        )
    }
}

/// Why a Worker is not Ready, which may be why its pods are not what was decided.
fn not_ready(status: &WorkerStatus) -> String {
    match find(&status.conditions, READY) {
        Some(ready) if ready.status == "True" => String::new(),
        Some(ready) => {
            format!("Ready={}, {}: {}\n", ready.status, ready.reason, one_line(&ready.message))
        }
        None => {
            "It has no condition Ready: nobody has looked at it yet, see kubectl warren doctor.\n".to_owned()
        }
    }
}

/// What keeps replicas from being decided or changed.
fn hindered(status: &WorkerStatus) -> String {
    find(&status.conditions, SCALING_ACTIVE)
        .filter(|active| active.status != "True")
        .map(|active| format!("  hindered   {}\n", one_line(&active.message)))
        .unwrap_or_default()
}

/// Whether the Deployment has the replicas of the spec. Under an invalid template it may be missing, or somebody else's.
fn is_obeyed(worker: &Worker, status: &WorkerStatus) -> bool {
    let holds = |kind| is_true(&status.conditions, kind);
    holds(SCALING_ACTIVE) && holds(TEMPLATE_VALID) && status.desired_replicas == worker.spec.replicas
}

/// What the operator's last look saw, and its decisions before.
fn inputs_and_decisions(told: &Told) -> String {
    let ready = match (told.ready, told.ready_age_seconds) {
        (Some(ready), Some(age)) => {
            let part = if told.shared { " for this Worker, beside others" } else { "" };
            format!("{ready}{part}, counted {:.1} s ago", told.looked_seconds_ago + age)
        }
        _ => "not known".to_owned(),
    };
    let asked = told
        .sidecars_age_seconds
        .map_or_else(String::new, |age| format!(", asked {:.1} s ago", told.looked_seconds_ago + age));
    let service = match (told.seconds_per_message, told.measured_seconds) {
        (Some(each), Some(age)) => {
            let age = seconds((told.looked_seconds_ago + age) as i64);
            format!("{each:.3} s per message, by calls of which the last ended {age} ago")
        }
        (Some(each), None) => format!("{each:.3} s per message, as was known before this operator looked"),
        (None, _) => "not measured yet".to_owned(),
    };
    let ending = match told.ending {
        0 => String::new(),
        ending => format!("; {ending} more in pods that end"),
    };
    let pods = match (told.rolling, told.failing) {
        (false, false) => "none crashes, and no rollout is under way",
        (true, false) => "a rollout is under way",
        (false, true) => "some cannot start or crash",
        (true, true) => "a rollout is under way, and some cannot start or crash",
    };
    let schedule = match (told.floor, &told.schedule) {
        (Some(floor), Some(schedule)) => format!("\n  schedule   at least {floor} pods, by {schedule}"),
        _ => String::new(),
    };
    let rows: Vec<[String; 5]> = told
        .decisions
        .iter()
        .map(|decision| {
            [
                format!("{} ago", seconds(decision.seconds_ago as i64)),
                decision.replicas.to_string(),
                decision.raw.to_string(),
                decision.reason.clone(),
                decision.message.clone(),
            ]
        })
        .collect();
    format!(
        "\nMade from:\n  ready      {ready}\n  held       {} delivered and not acknowledged, {} of them running{ending}\n  sidecars   {} of {} that started answered{asked}\n  handlers   {} listen, or did before\n  service    {service}\n  pods       {pods}{schedule}\n\nLast decisions that differ from the one before:\n{}",
        told.unsettled,
        told.in_flight,
        told.sidecars_answered,
        told.sidecars_started,
        told.handlers_started,
        table(["MADE", "REPLICAS", "FORMULA", "REASON", "WHY"], &rows),
    )
}

/// How long ago.
fn age(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "?".to_owned(), |at| format!("{} ago", seconds(now.as_second() - at.as_second())))
}

/// In the unit that reads best.
fn seconds(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{} s", seconds.max(0)),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn told() -> Told {
        let decision = ToldDecision {
            seconds_ago: 130.0,
            replicas: 50,
            raw: 80,
            reason: "AtMaximum".to_owned(),
            message: "80 wanted".to_owned(),
        };
        Told {
            looked_seconds_ago: 0.5,
            ready: Some(42),
            ready_age_seconds: Some(0.2),
            unsettled: 4,
            in_flight: 3,
            ending: 2,
            sidecars_started: 2,
            sidecars_answered: 1,
            sidecars_age_seconds: Some(0.3),
            seconds_per_message: Some(0.25),
            measured_seconds: Some(200.0),
            handlers_started: 2,
            decision: ToldDecision { raw: 200, message: "200 wanted".to_owned(), ..decision.clone() },
            decisions: vec![decision],
            ..Told::default()
        }
    }

    fn seen(scaling: &serde_json::Value) -> Seen {
        let worker = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "metadata": {"name": "invoices", "namespace": "shop"},
            "spec": {"queueRef": {"name": "orders"}, "template": {}, "scaling": scaling},
            "status": {"replicas": 50, "desiredReplicas": 50,
                "conditions": [{"type": "ScalingActive", "status": "False", "reason": "Stalled", "message": "look at the handler", "lastTransitionTime": "1970-01-01T00:01:00Z"}],
                "scaling": {"replicas": 50, "raw": 80, "reason": "AtMaximum", "message": "80 pods wanted"}}});
        Seen {
            worker: serde_json::from_value(worker).unwrap(),
            queue: None,
            operator: Ok(Some(told())),
            changes: Ok(vec![(Some(at(10)), "0 to 50 pods".to_owned())]),
            now: at(190),
        }
    }

    #[test]
    fn a_decision_is_explained_with_inputs_limits_and_what_went_before() {
        let text = seen(&json!({})).text();
        for said in [
            "has 50 pods and wants 50",
            "Decision: 50 replicas, AtMaximum, made 0.5 s ago\n  why        200 wanted",
            "200 pods, raised no further than maxReplicas 50",
            "2 min ago, ScalingActive=False",
            "look at the handler",
            "42, counted 0.7 s ago",
            "4 delivered and not acknowledged, 3 of them running; 2 more in pods that end",
            "1 of 2 that started answered, asked 0.8 s ago",
            "0.250 s per message, by calls of which the last ended 3 min ago",
            "2 listen, or did before",
            "2 min ago   50",
            "3 min ago   0 to 50 pods",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
        assert!(!text.contains("80 pods wanted"), "the status is of when replicas or reason changed\n{text}");
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_status_still_tells_the_decision() {
        let refused = |what: &str| format!("{what} is forbidden");
        let (operator, changes) = (Err(refused("pods/proxy")), Err(refused("events")));
        let text = Seen { operator, changes, ..seen(&json!({})) }.text();
        for said in [
            "Decision: 50 replicas, AtMaximum, with the numbers of when that began\n  why        80 pods wanted",
            "What it was made from is not known: pods/proxy is forbidden\n",
            "still has:\n  not known: events is forbidden\n",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn a_schedule_is_named_with_what_it_asks_for() {
        let mut seen = seen(&json!({"maxReplicas": 100}));
        let mut floor = Told { floor: Some(90), schedule: Some("\"0 8 * * *\" UTC".to_owned()), ..told() };
        floor.decision.raw = 80;
        seen.operator = Ok(Some(floor));
        let text = seen.text();
        for said in ["80 pods, kept at 90 by scaling.schedules", "at least 90 pods, by \"0 8 * * *\" UTC"] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn what_is_held_is_said_to_be_and_a_part_of_what_waits_to_be_one() {
        let mut held = Told { shared: true, ..told() };
        held.decision.reason = "HandlerFailing".to_owned();
        let text = Seen { operator: Ok(Some(held)), ..seen(&json!({})) }.text();
        for said in ["200 pods, held\n", "42 for this Worker, beside others, counted"] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn nothing_is_said_to_be_reckoned_while_what_waits_is_not_known() {
        let mut unknown = told();
        unknown.decision.reason = "DepthUnknown".to_owned();
        let text = Seen { operator: Ok(Some(unknown)), ..seen(&json!({})) }.text();
        assert!(text.contains("formula    none, as long as"), "{text}");
        assert!(!text.contains("200 pods,"), "{text}");
    }

    #[test]
    fn a_queue_with_a_single_active_consumer_is_named_as_the_limit() {
        let queue = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue", "metadata": {"name": "orders"},
            "spec": {"singleActiveConsumer": true}});
        let text = Seen { queue: serde_json::from_value(queue).unwrap(), ..seen(&json!({})) }.text();
        assert!(
            text.contains("200 pods, raised no further than 1 for the Queue's singleActiveConsumer"),
            "{text}"
        );
    }

    /// In one of the modes in which somebody else decides on 50 pods; of each condition type, status and reason.
    fn decided_elsewhere(mode: &str, desired: i32, conditions: &[(&str, &str, &str)]) -> Seen {
        let mut seen = Seen { operator: Ok(None), ..seen(&json!({"mode": mode})) };
        let condition = |(kind, status, reason): &(&str, &str, &str)| {
            let message = format!("because of {reason}");
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "1970-01-01T00:01:00Z"})
        };
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        let status = json!({"replicas": desired, "desiredReplicas": desired, "conditions": conditions});
        seen.worker.status = Some(serde_json::from_value(status).unwrap());
        seen.worker.spec.replicas = 50;
        seen
    }

    #[test]
    fn in_other_modes_it_says_who_decides() {
        for (mode, said) in [("Manual", "spec.replicas is obeyed"), ("External", "HPA or KEDA")] {
            let well = ["Ready", "TemplateValid", "ScalingActive"].map(|kind| (kind, "True", "Well"));
            let text = decided_elsewhere(mode, 50, &well).text();
            assert!(text.contains(said), "{text}");
            assert!(!text.contains("operator") && !text.contains("Decision"), "nobody is missed\n{text}");
        }
        let text = Seen { operator: Ok(None), ..seen(&json!({})) }.text();
        assert!(text.contains("No operator that leads scales this Worker"), "{text}");
    }

    #[test]
    fn replicas_that_are_not_obeyed_are_not_said_to_be_and_the_cause_is() {
        let invalid = [
            ("Ready", "False", "PortMissing"),
            ("TemplateValid", "False", "PortMissing"),
            ("ScalingActive", "True", "Manual"),
        ];
        let no_queue = [
            ("Ready", "False", "QueueNotFound"),
            ("TemplateValid", "True", "Accepted"),
            ("ScalingActive", "True", "Manual"),
        ];
        let held_back = [
            ("Ready", "False", "OrderingNotGuaranteed"),
            ("TemplateValid", "True", "Accepted"),
            ("ScalingActive", "False", "PodsHeldBack"),
        ];
        for mode in ["Manual", "External"] {
            for (desired, conditions) in [(50, invalid), (0, no_queue), (2, held_back)] {
                let text = decided_elsewhere(mode, desired, &conditions).text();
                let reason = conditions[0].2;
                let cause = format!("Ready=False, {reason}: because of {reason}\n");
                assert!(text.contains(&cause) && !text.contains("obeyed"), "{text}");
                assert_eq!(text.contains("asks for 50"), mode == "Manual", "{text}");
                assert_eq!(text.contains("hindered   because of PodsHeldBack"), desired == 2, "{text}");
            }
        }
        let text = decided_elsewhere("Manual", 0, &[]).text();
        assert!(text.contains("nobody has looked at it yet") && !text.contains("obeyed"), "{text}");
    }

    #[test]
    fn a_decision_that_comes_to_no_pods_is_shown_with_why_the_worker_is_not_ready() {
        let mut seen = seen(&json!({}));
        let cause = "Ready=False, PortMissing: the container names no port";
        assert!(!seen.text().contains(cause));
        let ready = json!({"type": "Ready", "status": "False", "reason": "PortMissing", "message": "the container names no port", "lastTransitionTime": "1970-01-01T00:01:00Z"});
        let status = seen.worker.status.get_or_insert_default();
        status.conditions.push(serde_json::from_value(ready).unwrap());
        let text = seen.text();
        assert!(text.contains(cause) && text.contains("Decision: 50 replicas"), "{text}");
    }

    #[test]
    fn only_changes_of_replicas_are_shown_the_last_ten_in_order() {
        let event = |second: i64, reason: &str| Event {
            reason: Some(reason.to_owned()),
            message: Some(format!("at {second}")),
            event_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(second))),
            ..Event::default()
        };
        let events =
            (0..12).rev().map(|second| event(second, "ScaledIn")).chain([event(99, "PodsReady")]).collect();
        let notes: Vec<_> = changes(events).into_iter().map(|(_, note)| note).collect();
        assert_eq!((notes.len(), notes[0].as_str(), notes[9].as_str()), (10, "at 2", "at 11"));
    }

    #[test]
    fn what_others_write_makes_no_lines_that_look_like_the_plugins() {
        let forged = "x\nDecision: 0 replicas";
        let event = Event {
            reason: Some("ScaledIn".to_owned()),
            message: Some(forged.to_owned()),
            ..Event::default()
        };
        let mut seen = Seen { changes: Ok(changes(vec![event])), ..seen(&json!({})) };
        let told = seen.operator.as_mut().unwrap().as_mut().unwrap();
        forged.clone_into(&mut told.decision.message);
        forged.clone_into(&mut told.decisions[0].message);
        let conditions = &mut seen.worker.status.as_mut().unwrap().conditions;
        conditions.push(Condition { type_: READY.to_owned(), ..conditions[0].clone() });
        for condition in conditions {
            forged.clone_into(&mut condition.message);
        }
        let text = seen.text();
        let lines = text.lines().filter(|line| line.starts_with("Decision")).count();
        assert_eq!((lines, text.matches("x Decision: 0 replicas").count()), (1, 5), "{text}");
    }
}
