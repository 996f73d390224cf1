//! `kubectl warren explain worker/NAME`: `read -> report`. The decisions are the operator's own: those that it remembers, or,
//! where it cannot be asked, what status and events still say.

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use std::fmt::Write as _;
use warren_api::conditions::worker::SCALING_ACTIVE;
use warren_api::worker::{Scaling, ScalingMode};
use warren_api::{Queue, Worker, WorkerStatus};
use warren_operator::scaler::record::Told;

use crate::Answer;
use crate::cluster::{Cluster, Target};
use crate::table::table;

/// Changes of replicas that are shown.
const SHOWN: usize = 10;
/// Reasons of the events that tell of a change of replicas.
const CHANGES: [&str; 3] = ["ScaledOut", "ScaledIn", "ScaleReverted"];

/// Says why a Worker has the replicas that it has.
#[derive(Debug, Args)]
pub struct Explain {
    /// worker/NAME, or NAME
    worker: String,

    #[command(flatten)]
    target: Target,
}

/// Everything that was read.
#[derive(Debug)]
struct Seen {
    worker: Worker,
    /// Whether the Queue gives messages to one pod at most.
    single: bool,
    operator: Result<Option<Told>, String>,
    /// From events, oldest first.
    changes: Vec<(Option<Timestamp>, String)>,
    now: Timestamp,
}

impl Explain {
    /// Reads and prints.
    ///
    /// # Errors
    /// There is no such Worker, or the API server refuses.
    pub async fn run(&self) -> anyhow::Result<Answer> {
        let name = name(&self.worker)?;
        let cluster = Cluster::connect(&self.target).await?;
        let worker =
            cluster.api::<Worker>().get_opt(name).await?.with_context(|| {
                format!("there is no Worker \"{name}\" in namespace {}", cluster.namespace)
            })?;
        let fields = format!("regarding.kind=Worker,regarding.name={name}");
        let events = cluster
            .api::<Event>()
            .list(&ListParams::default().fields(&fields))
            .await
            .context("list events")?;
        let operator = cluster.decisions(name).await.map_err(|error| format!("{error:#}"));
        let changes = changes(events.items);
        // Who may not read Queues is told the Worker's own limit.
        let queue = cluster.api::<Queue>().get_opt(&worker.spec.queue_ref.name).await.ok().flatten();
        let single = queue.is_some_and(|queue| queue.spec.single_active_consumer);
        Ok(Seen { worker, single, operator, changes, now: Timestamp::now() }.text().into())
    }
}

/// The name in `worker/NAME`.
fn name(text: &str) -> anyhow::Result<&str> {
    match text.split_once('/') {
        None => Ok(text),
        Some(("worker" | "workers" | "wk" | "workers.warren.dev", name)) if !name.is_empty() => Ok(name),
        Some((kind, _)) => bail!("{kind} is no Worker: write worker/NAME"),
    }
}

fn changes(events: Vec<Event>) -> Vec<(Option<Timestamp>, String)> {
    let mut changes: Vec<_> = events
        .into_iter()
        .filter(|event| event.reason.as_deref().is_some_and(|reason| CHANGES.contains(&reason)))
        .map(|event| {
            let series = event.series.map(|series| series.last_observed_time.0);
            let at = series
                .or(event.event_time.map(|time| time.0))
                .or(event.metadata.creation_timestamp.map(|t| t.0));
            (at, event.note.unwrap_or_default())
        })
        .collect();
    changes.sort();
    changes.split_off(changes.len().saturating_sub(SHOWN))
}

impl Seen {
    fn text(&self) -> String {
        let Self { worker, single, operator, changes, now } = self;
        let (scaling, status) = (&worker.spec.scaling, worker.status.clone().unwrap_or_default());
        let mut text = format!(
            "Worker {} has {} pods and wants {}.\n\n",
            worker.name_any(),
            status.replicas,
            status.desired_replicas
        );
        // Writing to a String cannot fail, here and below.
        let _ = match scaling.mode {
            ScalingMode::External => writeln!(
                text,
                "Mode External: an HPA or KEDA writes the scale subresource; see kubectl get hpa."
            ),
            ScalingMode::Manual => {
                writeln!(text, "Mode Manual: spec.replicas is obeyed, which is {}.", worker.spec.replicas)
            }
            ScalingMode::Builtin => Ok(()),
        };
        let condition = status.conditions.iter().find(|condition| condition.type_ == SCALING_ACTIVE);
        if scaling.mode == ScalingMode::Builtin {
            let told = operator.as_ref().ok().and_then(Option::as_ref);
            text += &decision(&status, scaling, *single, told.and_then(|told| told.floor).unwrap_or(0));
            if let Some(condition) = condition {
                let _ = writeln!(
                    text,
                    "  since      {}, ScalingActive={}",
                    age(Some(condition.last_transition_time.0), *now),
                    condition.status
                );
                if condition.status != "True" {
                    let _ = writeln!(text, "  hindered   {}", condition.message);
                }
            }
        }
        match operator {
            Ok(Some(told)) => text += &inputs_and_decisions(told),
            Ok(None) => text.push_str("\nNo operator that leads scales this Worker at the moment.\n"),
            Err(why) => {
                let _ = writeln!(text, "\nThe operator's inputs are not known: {why}");
            }
        }
        text.push_str("\nLast changes of replicas, from the events that the API server still has:\n");
        if changes.is_empty() {
            text.push_str("  none\n");
        }
        for (at, note) in changes {
            let _ = writeln!(text, "  {:<10}  {note}", age(*at, *now));
        }
        text
    }
}

/// What the operator's last look saw and decided, and its decisions before.
fn inputs_and_decisions(told: &Told) -> String {
    let looked = told.looked_seconds_ago;
    let ready = match (told.ready, told.ready_age_seconds) {
        (Some(ready), Some(age)) => format!("{ready}, counted {:.1} s ago", looked + age),
        _ => "not known".to_owned(),
    };
    let pods = match (told.rolling, told.failing) {
        (false, false) => "as they should be",
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
        "\nThe operator's last look, {looked:.1} s ago:\n  ready      {ready}\n  held       {} delivered and not acknowledged, {} of them running\n  sidecars   {} of {} that started answered\n  handlers   {} listen, or did before\n  pods       {pods}{schedule}\n  so         {}\n\nLast decisions that differ from the one before:\n{}",
        told.unsettled,
        told.in_flight,
        told.sidecars_answered,
        told.sidecars_started,
        told.handlers_started,
        told.message,
        table(["MADE", "REPLICAS", "FORMULA", "REASON", "WHY"], &rows),
    )
}

fn decision(status: &WorkerStatus, scaling: &Scaling, single: bool, scheduled: u32) -> String {
    let Some(decision) = &status.scaling else {
        return "Warren has decided nothing yet: the queue has not been measured.\n".to_owned();
    };
    let least = scaling.min_replicas;
    let (most, limit) = match (single, scaling.max_replicas) {
        (true, _) => (least.max(1), format!("{} for the Queue's singleActiveConsumer", least.max(1))),
        (false, most) => (most, format!("maxReplicas {most}")),
    };
    let scheduled = most.min(scheduled.try_into().unwrap_or(most));
    let limits = match decision.raw {
        raw if raw > most => format!("raised no further than {limit}"),
        raw if raw < scheduled && scheduled > least => format!("kept at {scheduled} by scaling.schedules"),
        raw if raw < least => format!("kept at minReplicas {least}"),
        _ => format!("within minReplicas {least} and {limit}"),
    };
    format!(
        "Decision: {} replicas, {}\n  why        {}\n  formula    {} pods, {limits}\n  target     a message starts within {} s; fewer pods by the load of {} s\n",
        decision.replicas,
        decision.reason,
        decision.message,
        decision.raw,
        scaling.target_wait_seconds,
        scaling.scale_in_stabilization_seconds,
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
    use serde_json::json;
    use warren_operator::scaler::record::ToldDecision;

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
            sidecars_started: 2,
            sidecars_answered: 1,
            handlers_started: 2,
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
            single: false,
            operator: Ok(Some(told())),
            changes: vec![(Some(at(10)), "0 to 50 pods".to_owned())],
            now: at(190),
        }
    }

    #[test]
    fn a_decision_is_explained_with_inputs_limits_and_what_went_before() {
        let text = seen(&json!({})).text();
        for said in [
            "has 50 pods and wants 50",
            "AtMaximum",
            "80 pods, raised no further than maxReplicas 50",
            "2 min ago, ScalingActive=False",
            "look at the handler",
            "42, counted 0.7 s ago",
            "4 delivered and not acknowledged, 3 of them running",
            "1 of 2 that started answered",
            "2 listen, or did before",
            "2 min ago   50",
            "3 min ago   0 to 50 pods",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn a_schedule_is_named_with_what_it_asks_for() {
        let mut seen = seen(&json!({"maxReplicas": 100}));
        let floor = Told { floor: Some(90), schedule: Some("\"0 8 * * *\" UTC".to_owned()), ..told() };
        seen.operator = Ok(Some(floor));
        let text = seen.text();
        for said in ["80 pods, kept at 90 by scaling.schedules", "at least 90 pods, by \"0 8 * * *\" UTC"] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn a_queue_with_a_single_active_consumer_is_named_as_the_limit() {
        let text = Seen { single: true, ..seen(&json!({})) }.text();
        assert!(
            text.contains("80 pods, raised no further than 1 for the Queue's singleActiveConsumer"),
            "{text}"
        );
    }

    #[test]
    fn in_other_modes_it_says_who_decides() {
        assert!(seen(&json!({"mode": "Manual"})).text().contains("spec.replicas is obeyed"));
        let mut seen = seen(&json!({"mode": "External"}));
        seen.operator = Err("no operator".to_owned());
        let text = seen.text();
        assert!(text.contains("HPA or KEDA") && text.contains("not known: no operator"), "{text}");
    }

    #[test]
    fn only_changes_of_replicas_are_shown_the_last_ten_in_order() {
        let event = |second: i64, reason: &str| Event {
            reason: Some(reason.to_owned()),
            note: Some(format!("at {second}")),
            event_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(second))),
            ..Event::default()
        };
        let events =
            (0..12).rev().map(|second| event(second, "ScaledIn")).chain([event(99, "PodsReady")]).collect();
        let notes: Vec<_> = changes(events).into_iter().map(|(_, note)| note).collect();
        assert_eq!((notes.len(), notes[0].as_str(), notes[9].as_str()), (10, "at 2", "at 11"));
    }

    #[test]
    fn a_worker_is_named_with_or_without_its_kind() {
        assert_eq!((name("a").unwrap(), name("worker/a").unwrap()), ("a", "a"));
        assert!(name("queue/a").is_err() && name("worker/").is_err());
    }
}
