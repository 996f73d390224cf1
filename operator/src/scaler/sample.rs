//! Sidecars' metrics as numbers: parsing, and sums over pods that come, go and restart. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use warren_api::metrics;

use super::board::Durability;
use super::durability::Recent;
use super::follow::count;
use super::inputs::Sidecars;
use super::startup::SLOWEST_START_SECONDS;

/// A handler that was never up is told to be away after so many seconds.
const STARTING_SECONDS: f64 = 30.0;
/// What is read of a sidecar: how these begin.
const READ: [&str; 14] = [
    metrics::UNSETTLED,
    metrics::IN_FLIGHT,
    metrics::LATE,
    metrics::EXTENSIONS,
    metrics::DELIVERIES,
    metrics::OUTCOMES,
    metrics::COPIES_FAILED,
    metrics::HANDLER_SECONDS,
    metrics::HANDLER_FAILURES,
    metrics::TRANSIENT,
    metrics::CONNECTED,
    metrics::PUBLISH_BLOCKED,
    metrics::HANDLER_UP,
    metrics::HANDLER_MISCONFIGURED,
];
/// What one of them may say: whole numbers are exact until there.
const POSSIBLE: RangeInclusive<f64> = 0.0..=9_007_199_254_740_992.0;
/// The label of what was given back to the queue.
const RETURNED: &str = r#"outcome="returned""#;
/// The label of calls that were a message's first.
const FIRST: &str = r#"attempt="first""#;

/// What one sidecar's `/metrics` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Delivered and not settled.
    pub unsettled: u64,
    /// Running handler calls.
    pub in_flight: u64,
    /// Of these, how many the application ends later.
    pub late: u64,
    /// Deliveries since its start.
    pub deliveries: u64,
    /// Settled deliveries since its start; one that was given back to the queue is none.
    pub settled: u64,
    /// Tries since its start at which the broker did not take a copy of a failed message.
    pub copies_failed: u64,
    /// Ended handler calls since its start.
    pub calls: u64,
    /// Seconds of those calls.
    pub call_seconds: f64,
    /// Of those calls, how many failed.
    pub failed: u64,
    /// Of these, how many were a message's first.
    pub failed_first: u64,
    /// Extensions of late deliveries since its start.
    pub extensions: u64,
    /// Deliveries without `delivery_mode=2` since its start.
    pub transient: u64,
    /// Whether the consuming connection is up.
    pub connected: bool,
    /// Whether the broker takes no publishes.
    pub publish_blocked: bool,
    /// Whether the handler takes calls.
    pub handler_up: bool,
    /// The status that tells of a wrong path or missing rights.
    pub misconfigured: Option<u16>,
}

/// What a pod has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Messages at the handler.
    pub at_handler: u64,
    /// Messages held.
    pub held: u64,
    /// Whether the pod is of no use: its handler takes no calls, and nothing is to end there later.
    pub in_vain: bool,
}

impl Sample {
    /// What the pod has to do.
    pub const fn work(&self) -> Work {
        let in_vain = !self.handler_up && self.late == 0;
        Work { at_handler: self.in_flight, held: self.unsettled, in_vain }
    }
}

/// A sidecar that answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The pod's UID.
    pub pod: String,
    /// Whether all that it has done counts: the pod is younger than who watches it.
    pub whole: bool,
    /// Seconds for which its sidecar ran before anybody here watched.
    pub ran: f64,
    /// Whether the pod has been let go.
    pub ending: bool,
    /// Whether the pod crashes: its calls say nothing of how long a message takes.
    pub crashes: bool,
    /// What it said.
    pub sample: Sample,
}

/// Parses the Prometheus text format; what is not needed is passed over. None where it does not say what is held, or says of
/// what is needed what no count or time can be: neither is zero.
pub fn parse(text: &str) -> Option<Sample> {
    let mut sample = Sample::default();
    let mut told = (false, false);
    let needed = |line: &&str| READ.iter().any(|name| line.starts_with(name));
    for line in text.lines().filter(needed) {
        let (name, value) = name_and_value(line).filter(|(_, value)| POSSIBLE.contains(value))?;
        let count = value as u64;
        match name {
            metrics::UNSETTLED => (sample.unsettled, told.0) = (sample.unsettled + count, true),
            metrics::IN_FLIGHT => (sample.in_flight, told.1) = (sample.in_flight + count, true),
            metrics::LATE => sample.late += count,
            metrics::DELIVERIES => sample.deliveries += count,
            metrics::OUTCOMES if !line.contains(RETURNED) => sample.settled += count,
            metrics::COPIES_FAILED => sample.copies_failed += count,
            metrics::HANDLER_FAILURES => {
                sample.failed += count;
                if line.contains(FIRST) {
                    sample.failed_first += count;
                }
            }
            metrics::EXTENSIONS => sample.extensions += count,
            metrics::TRANSIENT => sample.transient += count,
            metrics::CONNECTED => sample.connected = value > 0.0,
            metrics::PUBLISH_BLOCKED => sample.publish_blocked = value > 0.0,
            metrics::HANDLER_UP => sample.handler_up = value > 0.0,
            metrics::HANDLER_MISCONFIGURED => {
                sample.misconfigured = u16::try_from(count).ok().filter(|status| *status != 0);
            }
            _ => match name.strip_prefix(metrics::HANDLER_SECONDS) {
                Some("_sum") => sample.call_seconds += value,
                Some("_count") => sample.calls += count,
                _ => {}
            },
        }
    }
    (told == (true, true)).then_some(sample)
}

/// `name{labels} value [timestamp]`; values that are no finite number are passed over.
pub fn name_and_value(line: &str) -> Option<(&str, f64)> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) if line.as_bytes()[at] == b'{' => (&line[..at], &line[line.rfind('}')? + 1..]),
        Some(at) => (&line[..at], &line[at..]),
        None => return None,
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, value))
}

/// Sums that never fall, over the sidecars of a Worker.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    pods: BTreeMap<String, Tracked>,
    total: Sample,
    recent: Recent,
}

#[derive(Clone, Debug)]
struct Tracked {
    last: Sample,
    since: f64,
    was_up: bool,
}

impl Tracker {
    /// Takes the answers of one round in; a pod not among `living` is forgotten. Of these, `staying` run and are not let go.
    pub fn observe(
        &mut self,
        answers: Vec<Answer>,
        living: &BTreeSet<String>,
        staying: &BTreeSet<String>,
        now: f64,
    ) -> Sidecars {
        self.pods.retain(|pod, _| living.contains(pod));
        let mut sums = Sidecars { started: count(staying.len()), ..Sidecars::default() };
        let mut takes = 0;
        let mut seen = Durability::default();
        for Answer { pod, whole, ran, ending, crashes, sample } in answers {
            let before = self.pods.get(&pod);
            let base = match before {
                Some(tracked)
                    if tracked.last.deliveries <= sample.deliveries && tracked.last.calls <= sample.calls =>
                {
                    tracked.last.clone()
                }
                // Started again: its counters begin at zero.
                Some(_) => Sample::default(),
                None if whole => Sample::default(),
                // What it was given more time for may run still.
                None => Sample { extensions: 0, ..sample.clone() },
            };
            let deliveries = sample.deliveries.saturating_sub(base.deliveries);
            seen =
                seen + Durability { deliveries, transient: sample.transient.saturating_sub(base.transient) };
            self.total.deliveries += deliveries;
            self.total.extensions += sample.extensions.saturating_sub(base.extensions);
            self.total.settled += sample.settled.saturating_sub(base.settled);
            self.total.copies_failed += sample.copies_failed.saturating_sub(base.copies_failed);
            if !crashes {
                self.total.calls += sample.calls.saturating_sub(base.calls);
                self.total.failed += sample.failed.saturating_sub(base.failed);
                self.total.failed_first += sample.failed_first.saturating_sub(base.failed_first);
                self.total.call_seconds += (sample.call_seconds - base.call_seconds).max(0.0);
                sums.lifetime_calls += sample.calls;
                sums.lifetime_seconds += sample.call_seconds;
            }
            if ending {
                sums.ending += sample.unsettled;
            } else {
                sums.scraped += 1;
                takes += u32::from(sample.handler_up);
                sums.blocked += u32::from(sample.publish_blocked);
                sums.busy += u32::from(sample.in_flight > 0);
                sums.unsettled += sample.unsettled;
                if sample.in_flight == 0 {
                    sums.put_off += sample.unsettled;
                    sums.holding += u32::from(sample.unsettled > 0 && sample.handler_up);
                }
                sums.in_flight += sample.in_flight;
                sums.late += sample.late;
            }
            let since = before.map_or(now - ran, |tracked| tracked.since);
            // Who has ended a call had a handler, also before anybody watched.
            let was_up =
                sample.handler_up || sample.calls > 0 || before.is_some_and(|tracked| tracked.was_up);
            if !ending && !sample.handler_up {
                let fails = |starting| was_up || sample.misconfigured.is_some() || now - since > starting;
                sums.held += u32::from(fails(STARTING_SECONDS));
                sums.failing += u32::from(fails(SLOWEST_START_SECONDS));
            }
            self.pods.insert(pod, Tracked { last: sample, since, was_up });
        }
        let able = staying.iter().filter(|pod| self.pods.get(*pod).is_some_and(|tracked| tracked.was_up));
        sums.able = count(able.count());
        sums.away = sums.able.saturating_sub(takes);
        self.recent.observe(seen, now);
        sums.deliveries = self.total.deliveries;
        sums.settled = self.total.settled;
        sums.copies_failed = self.total.copies_failed;
        sums.extensions = self.total.extensions;
        sums.calls = self.total.calls;
        (sums.failed, sums.failed_first) = (self.total.failed, self.total.failed_first);
        sums.call_seconds = self.total.call_seconds;
        sums
    }

    /// What a pod had to do when it was last seen.
    pub fn work(&self, pod: &str) -> Option<Work> {
        self.pods.get(pod).map(|tracked| tracked.last.work())
    }

    /// Has what is counted from `since` on be another queue's.
    pub fn turned(&mut self, since: f64) {
        self.recent = self.recent.of_another(since);
    }

    /// What was counted lately.
    pub const fn durability(&self) -> Durability {
        self.recent.told()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
# HELP warren_sidecar_in_flight Handler calls that run.
# TYPE warren_sidecar_in_flight gauge
warren_sidecar_in_flight{namespace="shop",worker="w",queue="a b}"} 3
warren_sidecar_unsettled 5
warren_sidecar_outcomes_total{outcome="ack"} 7
warren_sidecar_outcomes_total{outcome="retry"} 2
warren_sidecar_outcomes_total{outcome="returned"} 90
warren_sidecar_handler_duration_seconds_bucket{le="0.1"} 9
warren_sidecar_handler_duration_seconds_sum 1.5
warren_sidecar_handler_duration_seconds_count 9
warren_sidecar_handler_failures_total{attempt="first"} 1
warren_sidecar_handler_failures_total{attempt="further"} 2
warren_sidecar_deliveries_total 12 1700000000
warren_sidecar_handler_up 1
warren_sidecar_connected 0
warren_sidecar_handler_misconfigured_status 404
something_else NaN
"#;

    #[test]
    fn a_sidecar_says_by_its_metrics_whether_the_broker_takes_no_publishes() {
        let blocked = |more: &str| {
            let page = format!("warren_sidecar_unsettled 0\nwarren_sidecar_in_flight 0\n{more}\n");
            parse(&page).unwrap().publish_blocked
        };
        let said = |value: u8| blocked(&format!("{} {value}", metrics::PUBLISH_BLOCKED));
        assert!(said(1) && !said(0));
        assert!(!blocked(""), "one of an older version says nothing about it");
        assert!(include_str!("../../../docs/sidecar-metrics.md").contains(metrics::PUBLISH_BLOCKED));
    }

    #[test]
    fn a_sidecars_metrics_are_read() {
        let sample = parse(TEXT).unwrap();
        assert_eq!((sample.in_flight, sample.unsettled, sample.settled, sample.deliveries), (3, 5, 9, 12));
        assert_eq!((sample.calls, sample.call_seconds), (9, 1.5));
        assert_eq!((sample.failed, sample.failed_first), (3, 1));
        assert_eq!((sample.handler_up, sample.connected, sample.misconfigured), (true, false, Some(404)));
    }

    #[test]
    fn what_is_not_said_is_not_zero() {
        assert_eq!(parse(""), None);
        assert!(parse(&format!("{TEXT}\nwarren_sidecar_of_a_later_version NaN\n")).is_some());
        for nonsense in ["NaN", "-1", "+Inf", "1e300", "many"] {
            for said in
                ["unsettled 5", "sum 1.5", "deliveries_total 12", "failures_total{attempt=\"first\"} 1"]
            {
                let (what, _) = said.rsplit_once(' ').unwrap();
                assert_eq!(
                    parse(&TEXT.replace(said, &format!("{what} {nonsense}"))),
                    None,
                    "{what} {nonsense}"
                );
            }
        }
        assert_eq!(parse(&TEXT.replace("warren_sidecar_in_flight{", "another{")), None);
    }

    fn counted(deliveries: u64) -> Sample {
        Sample { deliveries, settled: deliveries, calls: deliveries, handler_up: true, ..Sample::default() }
    }

    fn answer(pod: &str, whole: bool, sample: Sample) -> Vec<Answer> {
        vec![Answer { pod: pod.to_owned(), whole, ran: 0.0, ending: false, crashes: false, sample }]
    }

    fn observe(tracker: &mut Tracker, pod: &str, whole: bool, sample: Sample) -> Sidecars {
        let living = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        tracker.observe(answer(pod, whole, sample), &living, &living, 0.0)
    }

    #[test]
    fn a_restarted_sidecar_counts_from_zero_and_the_sums_go_on() {
        let mut tracker = Tracker::default();
        assert_eq!(observe(&mut tracker, "a", false, counted(100)).settled, 0);
        assert_eq!(observe(&mut tracker, "a", false, counted(110)).settled, 10);
        assert_eq!(observe(&mut tracker, "a", false, counted(4)).settled, 14);
        assert_eq!(observe(&mut tracker, "b", true, counted(6)).settled, 20);
    }

    #[test]
    fn a_handler_that_starts_is_not_failing_yet() {
        let mut tracker = Tracker::default();
        let living = BTreeSet::from(["a".to_owned()]);
        let mut seen = |handler_up, now| {
            let sample = Sample { handler_up, ..Sample::default() };
            let sums = tracker.observe(answer("a", true, sample), &living, &living, now);
            (sums.able, sums.away, sums.held, sums.failing)
        };
        assert_eq!(seen(false, 0.0), (0, 0, 0, 0));
        // Told, but more pods may help.
        assert_eq!(seen(false, 31.0), (0, 0, 1, 0));
        assert_eq!(seen(false, 121.0), (0, 0, 1, 1));
        assert_eq!(seen(true, 122.0), (1, 0, 0, 0));
        assert_eq!(seen(false, 123.0), (1, 1, 1, 1));
        assert_eq!(seen(true, 124.0), (1, 0, 0, 0));
        let silent = tracker.observe(vec![], &living, &living, 125.0);
        assert_eq!((silent.able, silent.away), (1, 1));
    }

    #[test]
    fn an_operator_that_takes_over_knows_that_work_has_asked_for_more_time() {
        let sample = Sample { extensions: 7, ..counted(100) };
        let sums = observe(&mut Tracker::default(), "a", false, sample);
        assert_eq!((sums.settled, sums.extensions), (0, 7));
    }

    #[test]
    fn only_the_calls_of_a_pod_that_crashes_say_nothing() {
        let mut tracker = Tracker::default();
        let living = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let mut both = [answer("a", true, counted(5)), answer("b", true, counted(7))].concat();
        both[1].crashes = true;
        let sums = tracker.observe(both, &living, &living, 0.0);
        assert_eq!((sums.calls, sums.lifetime_calls, sums.settled), (5, 5, 12));
    }

    #[test]
    fn what_a_pod_holds_without_a_call_is_put_off() {
        let mut tracker = Tracker::default();
        let living = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let held = |in_flight| Sample { unsettled: 4, in_flight, ..counted(9) };
        let both = [answer("a", true, held(0)), answer("b", true, held(1))].concat();
        let sums = tracker.observe(both, &living, &living, 0.0);
        assert_eq!((sums.unsettled, sums.in_flight, sums.put_off, sums.holding), (8, 1, 4, 1));
    }

    #[test]
    fn a_pod_whose_handler_is_down_works_in_vain_unless_something_is_to_end_there_later() {
        let in_vain = |handler_up, late| Sample { handler_up, late, ..Sample::default() }.work().in_vain;
        assert_eq!((in_vain(false, 0), in_vain(false, 1), in_vain(true, 0)), (true, false, false));
    }

    #[test]
    fn a_handler_that_has_not_listened_for_long_is_away_at_once_for_who_comes_later() {
        let living = BTreeSet::from(["a".to_owned()]);
        let seen = |ran: f64, handler_up: bool| {
            let [answer] = answer("a", false, Sample { handler_up, ..Sample::default() }).try_into().unwrap();
            let sums = Tracker::default().observe(vec![Answer { ran, ..answer }], &living, &living, 5.0);
            (sums.held, sums.failing)
        };
        assert_eq!((seen(10.0, false), seen(31.0, false), seen(121.0, false)), ((0, 0), (1, 0), (1, 1)));
        assert_eq!(seen(121.0, true), (0, 0));
    }

    #[test]
    fn a_pod_that_ends_is_no_pod_and_what_it_does_still_counts() {
        let mut tracker = Tracker::default();
        let sample = Sample { unsettled: 2, in_flight: 2, ..counted(5) };
        let mut both = [answer("a", true, sample.clone()), answer("b", true, sample)].concat();
        both[1].ending = true;
        let living = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let sums = tracker.observe(both, &living, &BTreeSet::from(["a".to_owned()]), 0.0);
        assert_eq!((sums.started, sums.able, sums.scraped, sums.busy, sums.held), (1, 1, 1, 1, 0));
        assert_eq!((sums.unsettled, sums.in_flight, sums.ending), (2, 2, 2));
        assert_eq!((sums.settled, sums.calls, sums.lifetime_calls), (10, 10, 10));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,200}") {
            parse(&text);
        }

        #[test]
        fn sums_never_fall(counts in proptest::collection::vec((0_u64..1000, 0_u64..1000), 1..50)) {
            let mut tracker = Tracker::default();
            let mut last = 0;
            for (deliveries, calls) in counts {
                let sums = observe(&mut tracker, "a", true, Sample { deliveries, calls, ..Sample::default() });
                prop_assert!(sums.deliveries >= last);
                last = sums.deliveries;
            }
        }
    }

    #[test]
    fn a_sidecar_says_by_its_metrics_what_it_holds_and_how_its_handler_does() {
        let read = |more: &str| {
            parse(&format!("warren_sidecar_unsettled 0\nwarren_sidecar_in_flight 0\n{more}\n")).unwrap()
        };
        let line = |name: &str, value: u64| format!("{name}{{worker=\"w\"}} {value}");
        assert_eq!(read(&line(metrics::LATE, 2)).late, 2);
        assert_eq!(read(&line(metrics::EXTENSIONS, 3)).extensions, 3);
        assert_eq!(read(&line(metrics::TRANSIENT, 4)).transient, 4);
        assert_eq!(read(&line(metrics::COPIES_FAILED, 5)).copies_failed, 5);
        assert_eq!([0, 1].map(|up| read(&line(metrics::HANDLER_UP, up)).handler_up), [false, true]);
        assert_eq!([0, 1].map(|up| read(&line(metrics::CONNECTED, up)).connected), [false, true]);
        let status = |status| read(&line(metrics::HANDLER_MISCONFIGURED, status)).misconfigured;
        assert_eq!((status(0), status(405)), (None, Some(405)), "none is told as 0");
        assert_eq!(
            parse(&TEXT.replace("warren_sidecar_unsettled 5", "")),
            None,
            "held messages are not said"
        );
    }

    #[test]
    fn calls_that_failed_and_what_calls_took_are_summed_over_pods_and_their_restarts() {
        let mut tracker = Tracker::default();
        let mut seen = |pod: &str, calls: u64, failed: u64, failed_first: u64, call_seconds: f64| {
            let sample = Sample { failed, failed_first, call_seconds, ..counted(calls) };
            let sums = observe(&mut tracker, pod, true, sample);
            (sums.calls, sums.failed, sums.failed_first, sums.call_seconds)
        };
        assert_eq!(seen("a", 10, 4, 3, 5.0), (10, 4, 3, 5.0));
        assert_eq!(seen("a", 12, 6, 4, 8.0), (12, 6, 4, 8.0));
        assert_eq!(seen("a", 2, 1, 1, 0.5), (14, 7, 5, 8.5), "it has started again");
        assert_eq!(seen("b", 1, 0, 0, 2.0), (15, 7, 5, 10.5));
    }

    #[test]
    fn a_sidecar_has_started_again_where_deliveries_or_calls_are_fewer() {
        let after = |deliveries, calls| {
            let mut tracker = Tracker::default();
            let sample =
                |deliveries, calls| Sample { deliveries, calls, settled: calls, ..Sample::default() };
            observe(&mut tracker, "a", true, sample(10, 5));
            let sums = observe(&mut tracker, "a", true, sample(deliveries, calls));
            (sums.deliveries, sums.settled)
        };
        assert_eq!((after(12, 2), after(6, 5), after(12, 6)), ((22, 7), (16, 10), (12, 6)));
    }

    #[test]
    fn what_pods_are_busy_with_hold_and_end_is_told_apart() {
        let mut tracker = Tracker::default();
        let all = ["busy", "waits", "idle", "down", "ends"].map(str::to_owned);
        let answers = all.clone().map(|pod| {
            let in_flight = u64::from(pod == "busy" || pod == "ends");
            let unsettled = if pod == "idle" { 0 } else { 5 };
            let sample = Sample {
                unsettled,
                in_flight,
                late: in_flight,
                handler_up: pod != "down",
                ..Sample::default()
            };
            Answer { whole: true, ran: 0.0, ending: pod == "ends", crashes: false, sample, pod }
        });
        let living = BTreeSet::from(all);
        let staying = living.iter().filter(|pod| *pod != "ends").cloned().collect();
        let sums = tracker.observe(answers.into(), &living, &staying, 0.0);
        assert_eq!((sums.busy, sums.holding, sums.put_off, sums.ending, sums.late), (1, 1, 10, 5, 1));
        assert!(tracker.work("waits").is_some());
        tracker.observe(vec![], &BTreeSet::new(), &BTreeSet::new(), 1.0);
        assert_eq!(tracker.work("waits"), None, "it is gone");
    }

    #[test]
    fn a_handler_that_was_up_or_says_why_it_is_not_fails_at_once_and_that_of_a_pod_that_ends_does_not() {
        let living = BTreeSet::from(["a".to_owned()]);
        let seen = |tracker: &mut Tracker, ending: bool, sample: Sample, now: f64| {
            let [answer] = answer("a", false, sample).try_into().unwrap();
            let sums = tracker.observe(vec![Answer { ending, ..answer }], &living, &living, now);
            (sums.held, sums.failing)
        };
        let down = Sample { handler_up: false, ..counted(0) };
        let mut tracker = Tracker::default();
        assert_eq!(seen(&mut tracker, false, counted(0), 0.0), (0, 0));
        assert_eq!(seen(&mut tracker, false, down.clone(), 1.0), (1, 1), "it was up");
        assert_eq!(seen(&mut tracker, true, down.clone(), 2.0), (0, 0), "it ends");
        let new = |sample| seen(&mut Tracker::default(), false, sample, 0.0);
        assert_eq!(new(Sample { calls: 1, ..down }), (1, 1), "it was up before anybody watched");
        assert_eq!(new(Sample { misconfigured: Some(404), ..down }), (1, 1));
        assert_eq!(new(down), (0, 0));
    }

    #[test]
    fn deliveries_that_a_restart_of_the_broker_would_lose_are_told_as_seen_since_the_operator_watches() {
        let mut tracker = Tracker::default();
        let seen = |deliveries, transient| Sample { deliveries, transient, ..Sample::default() };
        observe(&mut tracker, "a", false, seen(100, 100));
        assert_eq!(tracker.durability(), Durability::default());
        observe(&mut tracker, "a", false, seen(104, 103));
        assert_eq!(tracker.durability(), Durability { deliveries: 4, transient: 3 });
    }

    #[test]
    fn what_calls_took_since_their_pods_began_is_told_to_who_comes_later() {
        let sample = Sample { call_seconds: 50.0, ..counted(100) };
        let sums = observe(&mut Tracker::default(), "a", false, sample);
        assert_eq!((sums.calls, sums.call_seconds), (0, 0.0));
        assert_eq!((sums.lifetime_calls, sums.lifetime_seconds), (100, 50.0));
    }

    #[test]
    fn what_sidecars_deliver_before_they_have_learned_of_another_queue_is_not_told_of_it() {
        let mut tracker = Tracker::default();
        tracker.turned(10.0);
        let living = BTreeSet::from(["a".to_owned()]);
        let mut at = |deliveries, now| {
            let sample = Sample { deliveries, transient: deliveries, ..Sample::default() };
            tracker.observe(answer("a", true, sample), &living, &living, now);
            tracker.durability().deliveries
        };
        assert_eq!((at(5, 9.0), at(7, 10.0)), (0, 2));
    }
}
