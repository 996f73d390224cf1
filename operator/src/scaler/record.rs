//! The last decisions of each Worker with what they were made from, for `/decisions/NAMESPACE/NAME`.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::decide::Decision;
use super::history::Measured;
use super::inputs::Inputs;
use crate::brokers::Key;
use crate::locked::locked;

/// Decisions that are kept of a Worker.
const KEPT: usize = 10;

/// What is told of a Worker, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Seconds since the Worker was looked at; the ages below count from then.
    pub looked_seconds_ago: f64,
    /// Ready messages; none: not known.
    pub ready: Option<u64>,
    /// Whether other Workers consume the Queue, too, so that these may be a part.
    #[serde(default)]
    pub shared: bool,
    /// Seconds since they were counted.
    pub ready_age_seconds: Option<f64>,
    /// Messages delivered to pods that stay, and not settled.
    pub unsettled: u64,
    /// Of these, how many are at the handler.
    pub in_flight: u64,
    /// Messages that pods hold which end.
    pub ending: u64,
    /// Pods whose sidecar has started.
    pub sidecars_started: u32,
    /// Of these, how many answered at that look.
    pub sidecars_answered: u32,
    /// Seconds since those were asked; none of an operator that did not say.
    #[serde(default)]
    pub sidecars_age_seconds: Option<f64>,
    /// Seconds that a message takes; none before any call has ended.
    #[serde(default)]
    pub seconds_per_message: Option<f64>,
    /// Seconds since a call ended that this was measured by; none where it was known before this operator watched.
    #[serde(default)]
    pub measured_seconds: Option<f64>,
    /// Of those that have started, how many have a handler that takes calls, or has done so.
    #[serde(default)]
    pub handlers_started: u32,
    /// Whether a rollout is under way.
    pub rolling: bool,
    /// Whether pods crash or cannot start.
    pub failing: bool,
    /// Fewest pods by the schedule that counts; none without schedules.
    pub floor: Option<u32>,
    /// That schedule, as the Worker writes it.
    pub schedule: Option<String>,
    /// The decision of that look.
    pub decision: ToldDecision,
    /// Decisions that differ in replicas or reason from the one before, newest first.
    pub decisions: Vec<ToldDecision>,
}

/// A decision, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldDecision {
    /// When it was made.
    pub seconds_ago: f64,
    /// Replicas.
    pub replicas: u32,
    /// What the formula gave.
    pub raw: u32,
    /// Why, as one word.
    pub reason: String,
    /// Why, with the numbers.
    pub message: String,
}

#[derive(Debug)]
struct Record {
    looked: Instant,
    inputs: Inputs,
    service: Option<Measured>,
    decision: Decision,
    decisions: VecDeque<(Instant, Decision)>,
}

/// Every Worker's record.
#[derive(Debug, Default)]
pub struct Records(Mutex<HashMap<Key, Record>>);

impl Records {
    /// Notes a decision and what it was made from.
    pub fn note(&self, worker: &Key, inputs: Inputs, service: Option<Measured>, decision: &Decision) {
        let looked = Instant::now();
        let mut records = locked(&self.0);
        let mut decisions = records.remove(worker).map(|record| record.decisions).unwrap_or_default();
        let same = |last: &Decision| (last.replicas, last.reason) == (decision.replicas, decision.reason);
        if !decisions.front().is_some_and(|(_, last)| same(last)) {
            decisions.push_front((looked, decision.clone()));
            decisions.truncate(KEPT);
        }
        let record = Record { looked, inputs, service, decision: decision.clone(), decisions };
        records.insert(worker.clone(), record);
    }

    /// A Worker is gone, or not Warren's to scale any more.
    pub fn forget(&self, worker: &Key) {
        locked(&self.0).remove(worker);
    }

    /// What is told of a Worker; none where Warren does not scale it.
    pub fn told(&self, worker: &Key) -> Option<Told> {
        let records = locked(&self.0);
        let Record { looked, inputs, service, decision, decisions } = records.get(worker)?;
        let Inputs { ready, shared, workload, sidecars, sidecars_age, floor, .. } = inputs;
        let told = |at: &Instant, decision: &Decision| ToldDecision {
            seconds_ago: at.elapsed().as_secs_f64(),
            replicas: decision.replicas,
            raw: decision.raw,
            reason: decision.reason.as_str().to_owned(),
            message: decision.message.clone(),
        };
        Some(Told {
            looked_seconds_ago: looked.elapsed().as_secs_f64(),
            ready: ready.map(|(ready, _)| ready),
            shared: *shared,
            ready_age_seconds: ready.map(|(_, age)| age),
            unsettled: sidecars.unsettled,
            in_flight: sidecars.in_flight,
            ending: sidecars.ending,
            sidecars_started: sidecars.started,
            sidecars_answered: sidecars.scraped,
            sidecars_age_seconds: Some(*sidecars_age),
            seconds_per_message: service.map(|measured| measured.seconds),
            measured_seconds: service.and_then(|measured| measured.age),
            handlers_started: sidecars.able,
            rolling: workload.rolling,
            failing: workload.failing,
            floor: floor.as_ref().map(|floor| floor.replicas),
            schedule: floor.as_ref().map(|floor| floor.schedule.to_string()),
            decision: told(looked, decision),
            decisions: decisions.iter().map(|(at, decision)| told(at, decision)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs::Sidecars;
    use super::super::reason::Reason;
    use super::*;

    fn decided(replicas: u32, reason: Reason) -> Decision {
        Decision { replicas, raw: replicas, reason, message: format!("{replicas}") }
    }

    #[test]
    fn the_last_ten_different_decisions_are_told_newest_first() {
        let (records, worker) = (Records::default(), Key { namespace: "n".to_owned(), name: "w".to_owned() });
        assert_eq!(records.told(&worker), None);
        let inputs = Inputs { ready: Some((7, 0.5)), ..Inputs::default() };
        for replicas in 0..12 {
            records.note(&worker, inputs.clone(), None, &decided(replicas, Reason::ScaledOut));
            records.note(&worker, inputs.clone(), None, &decided(replicas, Reason::ScaledOut));
        }
        let told = records.told(&worker).unwrap();
        assert_eq!((told.ready, told.ready_age_seconds, told.decision.replicas), (Some(7), Some(0.5), 11));
        assert_eq!(
            told.decisions.iter().map(|d| d.replicas).collect::<Vec<_>>(),
            (2..12).rev().collect::<Vec<_>>()
        );
        records.forget(&worker);
        assert_eq!(records.told(&worker), None);
    }

    #[test]
    fn the_last_look_is_told_with_its_own_numbers_also_where_it_decided_the_same() {
        let (records, worker) = (Records::default(), Key { namespace: "n".to_owned(), name: "w".to_owned() });
        let sidecars = Sidecars { unsettled: 1, in_flight: 1, ending: 2, ..Sidecars::default() };
        let inputs = Inputs { sidecars, sidecars_age: 0.25, ..Inputs::default() };
        for raw in [80, 200] {
            let decision = Decision { raw, ..decided(50, Reason::AtMaximum) };
            records.note(&worker, inputs.clone(), Some(Measured { seconds: 0.5, age: Some(3.0) }), &decision);
        }
        let told = records.told(&worker).unwrap();
        assert_eq!((told.decision.raw, told.decision.reason.as_str()), (200, "AtMaximum"));
        assert_eq!(told.decisions.iter().map(|d| d.raw).collect::<Vec<_>>(), [80]);
        assert_eq!((told.unsettled, told.in_flight, told.ending), (1, 1, 2), "what ends is told apart");
        let ages = (told.sidecars_age_seconds, told.seconds_per_message, told.measured_seconds);
        assert_eq!(ages, (Some(0.25), Some(0.5), Some(3.0)));
    }

    #[test]
    fn decisions_for_the_same_pods_and_another_reason_are_told_apart() {
        let (records, worker) = (Records::default(), Key { namespace: "n".to_owned(), name: "w".to_owned() });
        for reason in [Reason::Steady, Reason::AtMaximum, Reason::AtMaximum] {
            records.note(&worker, Inputs::default(), None, &decided(5, reason));
        }
        let told = records.told(&worker).unwrap();
        assert_eq!(
            told.decisions.iter().map(|d| d.reason.as_str()).collect::<Vec<_>>(),
            ["AtMaximum", "Steady"]
        );
    }

    #[test]
    fn what_a_decision_was_made_from_is_told_by_its_own_name() {
        let (records, worker) = (Records::default(), Key { namespace: "n".to_owned(), name: "w".to_owned() });
        let sidecars = Sidecars {
            started: 7,
            able: 6,
            scraped: 5,
            unsettled: 4,
            in_flight: 3,
            ending: 2,
            ..Sidecars::default()
        };
        let floor = super::super::inputs::Floor { replicas: 9, schedule: "\"0 8 * * *\" UTC".into() };
        let told = |rolling: bool, failing: bool| {
            let workload = super::super::inputs::Workload { rolling, failing, ..Default::default() };
            let inputs =
                Inputs { shared: true, workload, sidecars, floor: Some(floor.clone()), ..Inputs::default() };
            records.note(&worker, inputs, None, &decided(5, Reason::Steady));
            records.told(&worker).unwrap()
        };
        let all = told(true, false);
        assert_eq!((all.sidecars_started, all.handlers_started, all.sidecars_answered), (7, 6, 5));
        assert_eq!((all.unsettled, all.in_flight, all.ending, all.shared), (4, 3, 2, true));
        assert_eq!((all.floor, all.schedule.as_deref()), (Some(9), Some("\"0 8 * * *\" UTC")));
        assert_eq!((all.rolling, all.failing, told(false, true).failing), (true, false, true));
    }
}
