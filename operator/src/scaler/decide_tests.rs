use proptest::prelude::*;

use super::super::history::TooMuch;
use super::super::inputs::{Sidecars, Workload};
use super::*;

fn spec() -> Spec {
    Spec {
        min: 0,
        max: 50,
        target_wait: 10.0,
        stabilization: 60.0,
        concurrency: 1,
        handler_timeout: 30.0,
        single: false,
        quorum: true,
        paused: false,
        ordered: false,
    }
}

fn by_schedule(replicas: u32) -> Floor {
    Floor { replicas, schedule: "\"0 8 * * *\" UTC".into() }
}

fn waiting(ready: u64) -> Inputs {
    Inputs { ready: Some((ready, 0.0)), ..Inputs::default() }
}

/// So many pods with nothing to do.
fn idle(pods: u32) -> Sidecars {
    Sidecars { started: pods, able: pods, scraped: pods, ..Sidecars::default() }
}

/// So many pods with a call each.
fn working(pods: u32) -> Sidecars {
    let calls = u64::from(pods);
    Sidecars { unsettled: calls, in_flight: calls, ..idle(pods) }
}

/// A cluster that obeys at once and a handler of constant speed, in steps of a second.
#[derive(Clone, Debug)]
struct World {
    spec: Spec,
    history: History,
    now: f64,
    replicas: u32,
    queue: f64,
    settled: f64,
    service: f64,
    changes: u32,
    floor: Option<Floor>,
    decision: Option<Decision>,
}

impl World {
    fn new(spec: Spec, service: f64) -> Self {
        Self {
            spec,
            history: History::default(),
            now: 0.0,
            replicas: 0,
            queue: 0.0,
            settled: 0.0,
            service,
            changes: 0,
            floor: None,
            decision: None,
        }
    }

    /// A second passes, with so many arrivals; gives what a look sees then.
    fn passes(&mut self, arrivals: f64) -> Inputs {
        self.now += 1.0;
        self.queue += arrivals;
        let capacity = f64::from(self.replicas * self.spec.concurrency) / self.service;
        let done = capacity.min(self.queue);
        self.queue -= done;
        self.settled += done;
        let busy = (done * self.service).ceil() as u64;
        Inputs {
            ready: Some((self.queue as u64, 0.0)),
            contradicted: false,
            unconsumed: false,
            shared: false,
            elsewhere: false,
            workload: Workload { replicas: self.replicas, ..Workload::default() },
            floor: self.floor.clone(),
            sidecars: Sidecars {
                started: self.replicas,
                able: self.replicas,
                scraped: self.replicas,
                unsettled: busy,
                in_flight: busy,
                deliveries: self.settled as u64,
                settled: self.settled as u64,
                calls: self.settled as u64,
                call_seconds: self.settled.floor() * self.service,
                ..Sidecars::default()
            },
            sidecars_age: 0.0,
        }
    }

    fn second(&mut self, arrivals: f64) -> &Decision {
        let inputs = self.passes(arrivals);
        self.look(&inputs)
    }

    fn look(&mut self, inputs: &Inputs) -> &Decision {
        let (decision, history) = decide(std::mem::take(&mut self.history), inputs, &self.spec, self.now);
        self.history = history;
        if decision.replicas != self.replicas {
            self.changes += 1;
            self.replicas = decision.replicas;
        }
        self.decision.insert(decision)
    }
}

#[test]
fn a_burst_at_zero_goes_to_the_wanted_number_in_one_step() {
    let (decision, _) = decide(History::default(), &waiting(100), &spec(), 0.0);
    // 100 messages / (10 s - 5 s, which starting takes) x 2 s / 0.95
    assert_eq!((decision.replicas, decision.reason), (43, Reason::ScaledOut));
    assert!(decision.message.contains("100 waiting / 5.0 s"), "{}", decision.message);
    assert!(decision.message.contains("assumed"), "{}", decision.message);
}

#[test]
fn a_measured_service_time_replaces_the_assumption_and_pods_get_time_to_start() {
    let (decision, _) = decide(History::with_service_seconds(0.1), &waiting(200), &spec(), 100.0);
    // 200 messages, of which a pod begins one at once and 9 more in 0.1 x 10 s x 0.95, since pods take 5 s to start.
    assert_eq!(decision.replicas, 20);
    assert!(decision.message.contains("measured"), "{}", decision.message);
}

#[test]
fn one_message_gets_one_pod_and_no_more_pods_than_messages_are_asked_for() {
    let slow = History::with_service_seconds(600.0);
    assert_eq!(decide(slow.clone(), &waiting(1), &spec(), 0.0).0.replicas, 1);
    assert_eq!(decide(slow, &waiting(4), &spec(), 0.0).0.replicas, 4);
}

#[test]
fn what_a_formula_asks_for_and_is_not_given_is_said_to_be_cut() {
    let told = |history, ready| decide(history, &waiting(ready), &spec(), 0.0).0.message;
    let slow = told(History::with_service_seconds(600.0), 4);
    assert!(slow.ends_with("; more than 4.0 would shorten nothing"), "84 by what arrives: {slow}");
    let quick = told(History::with_service_seconds(0.1), 200);
    assert!(!quick.contains("shorten"), "{quick}");
    let mut inputs = waiting(0);
    inputs.workload.replicas = 3;
    inputs.sidecars = working(3);
    let mut history = History::with_service_seconds(1.0);
    let cut = "no more are added for that before messages wait for too long";
    for now in 0..120 {
        // More than three pods can do; none of it waits.
        inputs.sidecars.settled += 4;
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 3, "{}", decision.message);
        assert!(now < 60 || decision.message.ends_with(cut), "{}", decision.message);
    }
}

#[test]
fn one_more_message_of_long_work_gets_a_pod_and_not_all_pods() {
    let mut history = History::with_service_seconds(600.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 3;
    inputs.sidecars = working(3);
    for now in 0..5 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    inputs.ready = Some((1, 0.0));
    let (decision, _) = decide(history, &inputs, &spec(), 5.0);
    assert!((4..=6).contains(&decision.replicas), "{decision:?}");
}

#[test]
fn calls_of_which_none_has_ended_are_expected_to_take_four_times_as_long_as_they_have_run() {
    let mut history = History::default();
    let mut inputs = waiting(40);
    let (mut enough_at, mut began_at) = (None, None);
    for now in 0..200 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        if began_at.is_some_and(|began| now == began + 10) {
            assert!(decision.message.contains("40.000 s per message (expected"), "{}", decision.message);
        }
        let pods = decision.replicas;
        let running = u64::from(pods).min(40);
        began_at = began_at.or((running > 0).then_some(now + 1));
        inputs.ready = Some((40 - running, 0.0));
        inputs.workload.replicas = pods;
        inputs.sidecars = Sidecars { busy: pods, unsettled: running, in_flight: running, ..idle(pods) };
        enough_at = enough_at.or((pods >= 36).then_some(now));
    }
    assert!((40..=44).contains(&inputs.workload.replicas), "{}", inputs.workload.replicas);
    assert!(enough_at.is_some_and(|seconds| seconds <= 15), "{enough_at:?}");
}

#[test]
fn a_burst_of_long_calls_gets_pods_beside_those_that_are_busy() {
    let mut history = History::with_service_seconds(60.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 10;
    inputs.sidecars = working(10);
    for now in 0..60 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    inputs.ready = Some((5, 0.0));
    let (decision, _) = decide(history, &inputs, &spec(), 60.0);
    // One of the ten may end while others start.
    assert!((14..=15).contains(&decision.replicas), "{decision:?}");
}

#[test]
fn batches_of_one_message_ask_for_no_pod_each() {
    // Full calls carry 100 messages; now a message comes each 50 ms, and is called alone for a second.
    let batches = Spec { concurrency: 100, ..spec() };
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 8;
    for now in 0..400_u64 {
        inputs.sidecars = Sidecars {
            settled: now * 20,
            calls: now * 20,
            call_seconds: now as f64 * 20.0,
            unsettled: 20,
            in_flight: 20,
            ..idle(inputs.workload.replicas)
        };
        let (decision, next) = decide(history, &inputs, &batches, now as f64);
        (history, inputs.workload.replicas) = (next, decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 1);
}

#[test]
fn a_full_batch_outweighs_many_small_ones() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.sidecars = Sidecars { settled: 300, calls: 300, call_seconds: 3.0, ..idle(1) };
    for (settled, calls, seconds) in [(0, 0, 0.0), (300, 300, 3.0), (1300, 310, 13.0)] {
        inputs.sidecars = Sidecars { settled, calls, call_seconds: seconds, ..idle(1) };
        history = decide(history, &inputs, &spec(), seconds).1;
    }
    assert!(history.service_seconds().is_some_and(|seconds| seconds > 0.7), "{history:?}");
}

#[test]
fn a_broker_that_comes_back_does_not_count_its_absence_as_a_time_without_messages() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 10;
    let mut settled = 0;
    for now in 0..400_u64 {
        let away = (200..300).contains(&now);
        // Producers are blocked while the broker is away, and come back slowly.
        if !away && now < 300 || now >= 310 {
            settled += 9;
        }
        inputs.ready = (!away).then_some((0, 0.0));
        inputs.sidecars = Sidecars {
            settled,
            calls: settled,
            call_seconds: settled as f64,
            unsettled: 9,
            in_flight: 9,
            ..idle(10)
        };
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        assert!(decision.replicas >= 9, "at {now} s: {decision:?}");
    }
}

#[test]
fn one_pod_that_has_just_come_ends_no_hold_of_those_whose_handler_fails() {
    let mut inputs = waiting(100_000);
    inputs.workload.replicas = 5;
    inputs.sidecars = Sidecars { unsettled: 5, held: 4, failing: 4, ..idle(5) };
    let (decision, _) = decide(History::with_service_seconds(1.0), &inputs, &spec(), 0.0);
    assert_eq!((decision.replicas, decision.reason), (5, Reason::HandlerFailing));
    inputs.sidecars.failing = 2;
    let (decision, _) = decide(History::with_service_seconds(1.0), &inputs, &spec(), 0.0);
    assert_eq!(decision.reason, Reason::ScaledOut);
}

#[test]
fn idle_pods_go_while_another_that_was_let_go_ends_its_work() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 6;
    for now in 0..400 {
        inputs.sidecars = Sidecars { ending: 1, ..idle(inputs.workload.replicas) };
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        (history, inputs.workload.replicas) = (next, decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 1);
}

#[test]
fn one_slow_pod_does_not_say_how_long_the_others_take_to_start() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    history = decide(history, &inputs, &spec(), 0.0).1;
    inputs.workload.replicas = 10;
    for now in 1..100 {
        inputs.sidecars = idle(if now < 5 { 0 } else { 9 });
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(history.startup.seconds(), Some(4.0));
}

#[test]
fn an_outage_of_the_broker_while_pods_start_is_no_slow_start() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    history = decide(history, &inputs, &spec(), 0.0).1;
    inputs.workload.replicas = 10;
    for now in 1..100 {
        inputs.ready = (!(3..=90).contains(&now)).then_some((0, 0.0));
        inputs.sidecars = idle(if now < 5 { 0 } else { 10 });
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(history.startup.seconds(), None);
}

#[test]
fn what_was_not_done_is_not_remembered_as_done() {
    let (decision, mut history) = decide(History::with_service_seconds(1.0), &waiting(100), &spec(), 5.0);
    assert_eq!((decision.reason, history.seconds_since_scale_out(6.0)), (Reason::ScaledOut, 1.0));
    history.not_scaled();
    assert_eq!(history.seconds_since_scale_out(6.0), f64::INFINITY);
}

#[test]
fn work_that_asks_for_more_time_keeps_its_pods() {
    let mut history = History::with_service_seconds(600.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    inputs.sidecars = Sidecars { busy: 12, unsettled: 12, in_flight: 12, ..idle(20) };
    let mut reason = Reason::Idle;
    for now in 0..600 {
        inputs.sidecars.extensions = now / 20;
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        reason = decision.reason;
        inputs.workload.replicas = decision.replicas;
        let pods = decision.replicas;
        (inputs.sidecars.started, inputs.sidecars.able, inputs.sidecars.scraped) = (pods, pods, pods);
    }
    assert_eq!((inputs.workload.replicas, reason), (12, Reason::InFlight));
}

#[test]
fn pods_stay_while_one_that_is_not_ready_has_work_that_asks_for_more_time() {
    let left = |extensions: u64, exposed: bool| {
        let mut history = History::with_service_seconds(600.0);
        let mut inputs = waiting(0);
        inputs.workload = Workload { replicas: 20, exposed, ..Workload::default() };
        inputs.sidecars = Sidecars { busy: 1, unsettled: 1, in_flight: 1, ..idle(20) };
        for now in 0..200 {
            inputs.sidecars.extensions = extensions * now / 20;
            let (decision, next) = decide(history, &inputs, &spec(), now as f64);
            (history, inputs.workload.replicas) = (next, decision.replicas);
            let pods = decision.replicas;
            (inputs.sidecars.started, inputs.sidecars.able, inputs.sidecars.scraped) = (pods, pods, pods);
        }
        inputs.workload.replicas
    };
    assert_eq!(left(1, true), 20);
    // What ends within the drain does so in whichever pod.
    assert!(left(1, false) < 20 && left(0, true) < 20);
}

#[test]
fn work_that_may_still_ask_for_more_time_keeps_its_pods_where_nothing_has_ended_for_long() {
    let patient = Spec { handler_timeout: 600.0, ..spec() };
    let run = |late| {
        let mut history = History::with_service_seconds(1.0);
        let mut inputs = waiting(10);
        for now in 0..500 {
            let (decision, next) = decide(history, &inputs, &patient, f64::from(now));
            let pods = decision.replicas;
            (history, inputs.workload.replicas, inputs.ready) = (next, pods, Some((0, 0.0)));
            inputs.sidecars =
                Sidecars { busy: pods, late: if late { pods.into() } else { 0 }, ..working(pods) };
        }
        inputs.workload.replicas
    };
    // Ten are asked for; a call that ends by itself ends within the drain.
    assert_eq!((run(true), run(false)), (10, 1));
}

#[test]
fn an_operator_that_takes_over_knows_what_the_sidecars_have_measured() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 3;
    inputs.sidecars = Sidecars { lifetime_calls: 100, lifetime_seconds: 50.0, ..working(3) };
    let (_, history) = decide(History::default(), &inputs, &spec(), 0.0);
    assert_eq!(history.service_seconds(), Some(0.5));
}

#[test]
fn an_operator_that_takes_over_waits_for_the_first_sidecar_to_say_what_it_has_measured() {
    let mut inputs = waiting(300);
    inputs.workload.replicas = 6;
    inputs.sidecars = Sidecars { started: 6, able: 6, ..Sidecars::default() };
    let (decision, history) = decide(History::default(), &inputs, &spec(), 0.0);
    assert_eq!(decision.replicas, 6, "{}", decision.message);
    let (blind, _) = decide(history.clone(), &inputs, &spec(), BLIND_SECONDS);
    assert_eq!(blind.replicas, 50, "{}", blind.message);
    inputs.sidecars = Sidecars { lifetime_calls: 100, lifetime_seconds: 5.0, ..working(6) };
    let (decision, history) = decide(history, &inputs, &spec(), 1.0);
    assert_eq!((decision.replicas, history.service_seconds()), (6, Some(0.05)), "{}", decision.message);
}

#[test]
fn a_queue_that_stood_before_the_operator_took_over_is_no_burst() {
    let mut inputs = waiting(300);
    inputs.workload.replicas = 10;
    inputs.sidecars = Sidecars { lifetime_calls: 100, lifetime_seconds: 50.0, ..working(10) };
    let patient = Spec { target_wait: 30.0, ..spec() };
    let (decision, _) = decide(History::default(), &inputs, &patient, 0.0);
    assert_eq!(decision.replicas, 10, "{}", decision.message);
    inputs.ready = Some((900, 0.0));
    let (decision, _) = decide(History::default(), &inputs, &patient, 0.0);
    assert_eq!(decision.reason, Reason::ScaledOut, "more than the target: {}", decision.message);
}

#[test]
fn a_backlog_beyond_the_maximum_is_said_for_as_long_as_it_lasts() {
    let mut world = World::new(Spec { max: 5, ..spec() }, 0.5);
    world.second(100_000.0);
    for _ in 0..600 {
        world.second(0.0);
    }
    let decision = world.second(0.0);
    assert_eq!((decision.replicas, decision.reason), (5, Reason::AtMaximum));
}

#[test]
fn after_the_burst_replicas_go_back_to_zero_in_steps() {
    let mut world = World::new(spec(), 0.1);
    world.second(75.0);
    assert_eq!(world.replicas, 32);
    let mut steps = vec![];
    for _ in 0..300 {
        let before = world.replicas;
        world.second(0.0);
        if world.replicas != before {
            steps.push(world.replicas);
        }
    }
    // What the assumption had asked for goes first, the last pod a minute after the load.
    assert_eq!(steps, [1, 0]);
}

#[test]
fn each_of_a_few_long_calls_gets_a_pod_of_its_own() {
    // A part of a second call, which a pod would have time for, begins no message.
    let (decision, _) = decide(History::with_service_seconds(10.0), &waiting(16), &spec(), 100.0);
    assert_eq!(decision.replicas, 16, "{}", decision.message);
}

#[test]
fn bursts_that_come_often_get_fewer_pods_and_rare_ones_do_not() {
    let peaks = |period: u32| {
        let mut world = World::new(Spec { max: 200, ..spec() }, 0.5);
        let mut peaks = vec![];
        for _ in 0..5 {
            let pods = (0..period).map(|second| {
                world.second(if second == 0 { 200.0 } else { 0.0 });
                world.replicas
            });
            peaks.push(pods.max().unwrap_or_default());
        }
        peaks
    };
    // The first is asked for on an assumption; then a further pod begins 2 in time, or 4 or 6: the more often they come, the less
    // may the pods cost that start for each.
    assert_eq!(peaks(200)[1..], [100, 100, 100, 100]);
    assert_eq!(peaks(60)[1..], [88, 50, 50, 50]);
    assert_eq!(peaks(40)[1..], [88, 34, 34, 34]);
}

#[test]
fn pods_that_come_for_single_messages_between_rare_bursts_make_no_row_of_these() {
    let mut history = History::default();
    for burst in 0..5 {
        let began = f64::from(burst) * 300.0;
        for (after, pods, waiting) in [(0.0, 20, 100.0), (60.0, 1, 1.0), (120.0, 1, 1.0), (180.0, 1, 1.0)] {
            history.scaled_out(pods, waiting, None, began + after);
            assert_eq!(history.bursts_often(began + after + 1.0), None, "{burst} {after}");
            history.scaled_in(began + after + 20.0);
        }
    }
}

#[test]
fn all_pods_are_kept_between_bursts_that_come_often_and_that_even_they_do_not_hold_the_target_for() {
    // The fewest pods before the last of four bursts, and after all of them.
    let kept = |period: u32, messages: f64| {
        let mut world = World::new(spec(), 0.5);
        let mut before_the_last = u32::MAX;
        for second in 0..4 * period {
            world.second(if second % period == 0 { messages } else { 0.0 });
            if (2 * period..3 * period).contains(&second) {
                before_the_last = before_the_last.min(world.replicas);
            }
        }
        assert!(
            before_the_last < 50 || world.decision.as_ref().unwrap().message.contains("kept for the next")
        );
        for _ in 0..420 {
            world.second(0.0);
        }
        (before_the_last, world.replicas)
    };
    // 2,000 messages take 50 pods 20 s, 500 take them 5 s; the target is 10 s.
    assert_eq!(kept(90, 2000.0), (50, 0));
    assert!(kept(90, 500.0).0 <= 1 && kept(180, 500.0).0 <= 1 && kept(400, 2000.0).0 <= 1);
    // Pods that are busy for a ninth of the time cost more than those that are started each time.
    assert!(kept(180, 2000.0).0 <= 1);
    // Also where they come in pairs, one soon after the other.
    let mut world = World::new(spec(), 0.5);
    let mut least = u32::MAX;
    for second in 0..1600_u32 {
        world.second(if [10, 30].contains(&(second % 200)) { 1200.0 } else { 0.0 });
        least = least.min(if second > 1200 { world.replicas } else { u32::MAX });
    }
    assert!(least <= 6, "{least}");
}

#[test]
fn pods_that_hold_the_target_are_kept_between_bursts_that_come_each_few_seconds() {
    let mut world = World::new(spec(), 0.1);
    let (mut most, mut changes) = (0.0_f64, 0);
    for second in 0..1200 {
        let arrive = [500.0, 440.0, 460.0][second / 20 % 3];
        world.second(if second % 20 == 0 { arrive } else { 0.0 });
        if second == 600 {
            changes = world.changes;
        } else if second > 600 {
            most = most.max(world.queue / f64::from(world.replicas));
        }
    }
    // The largest is 50 s of one pod's work; the queue is looked at when a part of it is done.
    assert_eq!((world.replicas, world.changes), (5, changes), "{:?}", world.decision);
    assert!(most * 0.1 <= 10.0, "{most} messages a pod");
    // What is no longer one of them is a burst like any other.
    assert!(world.second(1500.0).replicas > 30);
}

#[test]
fn bursts_that_came_often_an_hour_ago_say_nothing_of_a_load_that_grows() {
    let mut history = History::default();
    for burst in 0..5 {
        history.scaled_out(20, 100.0, None, f64::from(burst) * 60.0);
        history.scaled_in(f64::from(burst) * 60.0 + 20.0);
    }
    assert!(history.bursts_often(300.0).is_some());
    // A load that the last of them has turned into has no pods to spare.
    let mut lasting = history.clone();
    lasting.scaled_out(20, 100.0, None, 300.0);
    assert!(lasting.bursts_often(301.0).is_some() && lasting.bursts_often(3600.0).is_none());
    // Growth is no burst, nor does it end a row of them while they come.
    history.scaled_out(2, 100.0, Some(TooMuch { calls: 1.0, pods: 1, at_once: 1.0 }), 300.0);
    assert!(history.bursts_often(301.0).is_some());
    history.scaled_in(320.0);
    history.scaled_out(2, 100.0, Some(TooMuch { calls: 1.0, pods: 1, at_once: 1.0 }), 3600.0);
    assert!(history.bursts_often(3601.0).is_none());
    let mut growing = History::default();
    for step in 0..5 {
        growing.scaled_out(
            2,
            100.0,
            Some(TooMuch { calls: 1.0, pods: 1, at_once: 1.0 }),
            f64::from(step) * 60.0,
        );
        growing.scaled_in(f64::from(step) * 60.0 + 20.0);
    }
    assert_eq!(growing.bursts_often(300.0), None);
}

#[test]
fn between_bursts_that_come_often_what_arrives_beside_them_is_served() {
    let mut world = World::new(spec(), 0.5);
    let mut least = u32::MAX;
    for second in 0..1800 {
        world.second(if second % 120 == 60 { 400.0 } else { 20.0 });
        if second > 600 {
            least = least.min(world.replicas);
        }
    }
    assert!(least >= 9, "{least}");
}

#[test]
fn what_is_there_for_long_is_let_go_by_halves() {
    let mut world = World::new(spec(), 0.5);
    for _ in 0..300 {
        world.second(40.0);
    }
    assert!((20..=24).contains(&world.replicas), "{}", world.replicas);
    let mut steps = vec![world.replicas];
    for _ in 0..300 {
        world.second(0.0);
        if world.replicas != steps[steps.len() - 1] {
            steps.push(world.replicas);
        }
    }
    assert_eq!(steps.last(), Some(&0));
    assert!(steps.windows(2).all(|pair| pair[1] >= pair[0] / 2), "{steps:?}");
}

#[test]
fn a_trickle_keeps_one_pod_and_not_two() {
    let mut world = World::new(spec(), 0.5);
    world.second(20.0);
    assert!(world.replicas > 1);
    for second in 0..300 {
        world.second(f64::from(u8::from(second % 3 == 0)));
    }
    assert_eq!(world.replicas, 1);
}

#[test]
fn while_more_waits_than_runs_nobody_goes() {
    let mut history = History::with_service_seconds(0.1);
    let mut inputs = waiting(40);
    inputs.workload.replicas = 20;
    inputs.sidecars = working(20);
    for now in 0..300 {
        // Something moves: this is no stall.
        inputs.sidecars.settled += 1;
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 20, "{decision:?}");
    }
}

#[test]
fn what_waits_lets_no_pods_go_by_being_more() {
    // Near the load at which one message more makes the least that may stay six pods and not five.
    for hundredth in 630..680 {
        let mut world = World { replicas: 10, ..World::new(spec(), 0.65) };
        let mut history = History::default();
        let mut inputs = Inputs::default();
        for now in 0..120 {
            inputs = world.passes(f64::from(hundredth) / 100.0);
            inputs.sidecars = Sidecars { unsettled: 10, in_flight: 10, ..inputs.sidecars };
            inputs.workload.rolling = now < 119;
            if inputs.workload.rolling {
                history = decide(history, &inputs, &spec(), f64::from(now)).1;
            }
        }
        let decided = |ready| {
            let inputs = Inputs { ready: Some((ready, 0.0)), ..inputs.clone() };
            decide(history.clone(), &inputs, &spec(), 119.0).0.replicas
        };
        let pods: Vec<u32> = (1..60).map(decided).collect();
        assert!(pods.is_sorted() && pods[0] < 10, "{hundredth}: {pods:?}");
    }
}

#[test]
fn a_tenth_fewer_pods_is_no_change_and_is_told() {
    let mut world = World::new(spec(), 1.0);
    for _ in 0..300 {
        world.second(10.6);
    }
    let most = world.replicas;
    for _ in 0..1200 {
        world.second(9.05);
    }
    let decision = world.decision.unwrap();
    assert_eq!((decision.replicas, decision.reason), (most, Reason::Steady), "{}", decision.message);
    assert!(decision.message.contains("11 would do: less than a tenth fewer"), "{}", decision.message);
}

#[test]
fn pods_of_a_burst_stay_until_those_that_remain_can_begin_what_waits() {
    let decided = |ready: u64| {
        let mut inputs = waiting(60);
        let mut history = decide(History::with_service_seconds(0.5), &inputs, &spec(), 0.0).1;
        inputs.workload.replicas = 27;
        inputs.sidecars = working(27);
        for now in 1..6 {
            history = decide(history, &inputs, &spec(), f64::from(now)).1;
        }
        inputs.ready = Some((ready, 0.0));
        decide(history, &inputs, &spec(), 6.0).0
    };
    let (ten, one) = (decided(10), decided(1));
    assert_eq!((ten.replicas, ten.reason), (27, Reason::Stabilizing), "{}", ten.message);
    assert_eq!(one.reason, Reason::ScaledIn, "{}", one.message);
}

#[test]
fn slow_starts_are_learned_and_ask_for_more_pods_at_once() {
    let mut history = History::with_service_seconds(0.1);
    let target = Spec { target_wait: 100.0, ..spec() };
    let mut inputs = waiting(10_000);
    let before = decide(history.clone(), &inputs, &target, 0.0).0.replicas;
    for now in 0..=20 {
        inputs.workload.replicas = if now == 0 { 0 } else { 5 };
        inputs.ready = Some((0, 0.0));
        // The sidecar runs before the application does.
        (inputs.sidecars.started, inputs.sidecars.scraped) = (5, 5);
        inputs.sidecars.able = if now < 20 { 0 } else { 5 };
        history = decide(history, &inputs, &target, f64::from(now)).1;
    }
    inputs.workload.replicas = 0;
    inputs.ready = Some((10_000, 0.0));
    inputs.sidecars = Sidecars::default();
    let after = decide(history, &inputs, &target, 21.0).0.replicas;
    assert!(after > before, "{before} {after}");
}

#[test]
fn pods_that_were_there_before_the_operator_tell_nothing_of_how_long_a_start_takes() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 3;
    for now in 0..100 {
        // Their breakers are open for a minute and a half.
        inputs.sidecars = Sidecars { able: if now < 90 { 0 } else { 3 }, ..working(3) };
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(history.startup.seconds(), None);
}

#[test]
fn steady_load_is_served_and_left_alone() {
    let mut world = World::new(spec(), 0.5);
    for _ in 0..120 {
        world.second(8.0);
    }
    world.changes = 0;
    for second in 0..600_u32 {
        // A noise of a fifth either way.
        let noise = f64::from((second * 7919) % 41) / 100.0 - 0.2;
        world.second(8.0 * (1.0 + noise));
    }
    assert!(world.changes <= 2, "{} changes", world.changes);
    assert!((4..=8).contains(&world.replicas), "{}", world.replicas);
}

#[test]
fn noise_about_a_whole_number_of_pods_is_told_once_a_minute_at_most() {
    let mut world = World::new(Spec { stabilization: 300.0, ..spec() }, 1.0);
    let mut told: Vec<(f64, Reason)> = Vec::new();
    for second in 0..2400 {
        let rate = if second / 35 % 2 == 0 { 2.6 } else { 4.8 };
        let reason = world.second(rate).reason;
        let stays = matches!(reason, Reason::Steady | Reason::Stabilizing);
        if stays && second > 600 && told.last().is_none_or(|(_, last)| *last != reason) {
            told.push((world.now, reason));
        }
    }
    assert!(told.len() > 4, "{told:?}");
    assert!(told.iter().skip(1).is_sorted_by(|(one, _), (next, _)| next - one >= 60.0), "{told:?}");
}

#[test]
fn a_queue_that_grows_slowly_gets_a_pod_more_within_the_target_and_keeps_it_for_ten_minutes() {
    let mut world = World::new(spec(), 0.5);
    let (mut changes, mut longest) = (vec![], 0.0_f64);
    for second in 0..3000_u32 {
        let before = world.replicas;
        // 4.3 pods' worth, of which a fifth comes and goes.
        let noise = f64::from((second * 7919) % 41) / 100.0 - 0.2;
        world.second(8.6 * (1.0 + noise));
        if second < 300 {
            continue;
        }
        longest = longest.max(world.queue * world.service / f64::from(world.replicas));
        if world.replicas != before {
            changes.push((second, world.replicas));
        }
    }
    assert!(longest < 10.0, "{longest}");
    let most = changes
        .iter()
        .map(|(from, _)| changes.iter().filter(|(at, _)| (*from..from + 600).contains(at)).count());
    assert!(most.max().unwrap_or(0) <= 2, "{changes:?}");
    assert!(changes.iter().all(|(_, pods)| (4..=5).contains(pods)), "{changes:?}");
}

#[test]
fn a_second_pod_is_added_for_more_than_chance_brings_and_one_of_many_sooner() {
    let most = |pods: f64, together: f64| {
        let mut world = World::new(spec(), 1.0);
        let mut most = 0;
        for second in 0..420 {
            world.second(0.9 * pods + if second == 400 { together } else { 0.0 });
            most = if second < 390 { 0 } else { most.max(world.replicas) };
        }
        most
    };
    assert_eq!(most(1.0, 9.0), 1, "27 come in half a minute, give or take ten");
    assert!(most(1.0, 12.0) > 1, "a burst");
    assert!(most(4.0, 32.0) > 4, "they wait for less long, and a fifth pod is not dear");
}

#[test]
fn pods_that_suffice_are_kept_where_nothing_is_to_spare() {
    let mut world = World::new(spec(), 0.5);
    for _ in 0..900 {
        world.second(4.0);
    }
    // Two pods handle four messages a second, and no more.
    assert_eq!(world.replicas, 2);
}

#[test]
fn a_burst_over_a_load_is_not_what_pods_proved_too_few_for() {
    // Three fit the second load with what may come by chance: two served it before without a message that waited for long.
    for (load, pods) in [(3.2, 2), (3.6, 3)] {
        let (mut world, mut most) = (World::new(spec(), 0.5), 0);
        for second in 0..900 {
            world.second(if second == 600 { 200.0 } else { load });
            most = most.max(world.replicas);
        }
        assert!(most > 20 && world.replicas == pods, "{most} {}", world.replicas);
    }
}

#[test]
fn pods_that_a_backlog_took_and_the_load_does_not_need_are_not_kept() {
    let (mut world, mut most) = (World::new(Spec { stabilization: 300.0, ..spec() }, 0.1), 0);
    for second in 0..600 {
        world.second(match second {
            ..300 => 190.0,
            420 => 1720.0,
            _ => 155.0,
        });
        most = most.max(if second < 300 { 0 } else { world.replicas });
    }
    assert!(most >= 28 && world.replicas <= 24, "{most} {}", world.replicas);
}

#[test]
fn a_queue_that_waits_for_a_first_pod_is_told_as_that() {
    let mut history = History::with_service_seconds(20.0);
    let mut inputs = waiting(0);
    for now in 0..50_u64 {
        inputs.workload.replicas = 1;
        let calls = (now / 2).min(3) + u64::from(now >= 40);
        inputs.sidecars = Sidecars { settled: calls, calls, call_seconds: 20.0 * calls as f64, ..idle(1) };
        history = decide(history, &inputs, &spec(), now as f64).1;
    }
    inputs.workload.replicas = 0;
    inputs.sidecars = Sidecars { started: 0, able: 0, scraped: 0, ..inputs.sidecars };
    inputs.ready = Some((1, 0.0));
    let (decision, _) = decide(history, &inputs, &spec(), 50.0);
    assert!(decision.message.contains("1 wait for a first pod;"), "{decision:?}");
}

#[test]
fn what_all_pods_begin_at_once_is_not_beyond_them() {
    // Six calls of half a minute each 100 seconds, of at most ten pods, which obey within a second.
    let spec = Spec { max: 10, ..spec() };
    let mut history = History::with_service_seconds(30.0);
    let (mut ready, mut settled, mut running, mut pods) = (0_u64, 0_u64, vec![], 0_u32);
    for now in 0..1000_u64 {
        if now % 100 == 10 {
            ready += 6;
        }
        let before = running.len();
        running.retain(|until| *until > now);
        settled += (before - running.len()) as u64;
        while ready > 0 && running.len() < pods as usize {
            ready -= 1;
            running.push(now + 30);
        }
        let busy = running.len() as u32;
        let call_seconds = 30.0 * settled as f64;
        let sidecars = Sidecars {
            busy,
            settled,
            calls: settled,
            call_seconds,
            started: pods,
            able: pods,
            scraped: pods,
            ..working(busy)
        };
        let mut inputs = Inputs { sidecars, ..waiting(ready) };
        inputs.workload.replicas = pods;
        let (decision, next) = decide(history, &inputs, &spec, now as f64);
        history = next;
        pods = decision.replicas.max(busy);
        assert!(!decision.message.contains("take all allowed pods longer"), "at {now}: {decision:?}");
    }
}

#[test]
fn what_proved_too_few_for_a_slow_handler_suffices_for_one_that_has_become_faster() {
    let mut world = World::new(spec(), 2.0);
    for second in 0..420 {
        // Too much for what was there, at the second change.
        world.second(if second < 120 { 4.0 } else { 5.0 });
        world.service = if second < 240 { 2.0 } else { 0.5 };
    }
    assert!(world.replicas <= 4, "{}", world.replicas);
}

#[test]
fn a_missing_or_stale_depth_holds() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 7;
    inputs.ready = None;
    let (decision, history) = decide(History::default(), &inputs, &spec(), 0.0);
    assert_eq!((decision.replicas, decision.reason), (7, Reason::DepthUnknown));
    assert!(!decision.reason.is_active());
    inputs.ready = Some((0, 11.0));
    assert_eq!(decide(history, &inputs, &spec(), 1000.0).0.replicas, 7);
}

#[test]
fn unacknowledged_work_keeps_the_last_pod() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = working(1);
    for now in 0..1000 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 1, "{decision:?}");
    }
}

/// Four pods that have worked for a minute, and may go at once.
fn a_minute_of_work() -> (Spec, Inputs, History) {
    let spec = Spec { stabilization: 0.0, ..spec() };
    let mut history = History::default();
    let mut inputs = waiting(8);
    inputs.workload.replicas = 4;
    for now in 0..60 {
        history = decide(history, &inputs, &spec, f64::from(now)).1;
    }
    (spec, inputs, history)
}

#[test]
fn one_zero_of_a_queue_is_not_believed() {
    let (spec, mut inputs, history) = a_minute_of_work();
    inputs.ready = Some((0, 0.0));
    let (decision, history) = decide(history, &inputs, &spec, 60.0);
    assert_eq!((decision.replicas, decision.reason), (4, Reason::ZeroUnconfirmed));
    let (_, history) = decide(history, &inputs, &spec, 61.0);
    let (decision, _) = decide(history, &inputs, &spec, 62.0);
    assert_eq!((decision.replicas, decision.reason), (2, Reason::ScaledIn));
}

#[test]
fn a_zero_is_believed_at_once_where_the_sidecars_have_what_was_there() {
    let (spec, inputs, history) = a_minute_of_work();
    let at_zero = |settled, unsettled| {
        let sidecars =
            Sidecars { started: 4, able: 4, scraped: 4, settled, unsettled, ..Sidecars::default() };
        let inputs = Inputs { ready: Some((0, 0.0)), sidecars, ..inputs.clone() };
        decide(history.clone(), &inputs, &spec, 60.0).0.reason
    };
    assert_eq!([at_zero(7, 0), at_zero(6, 1)], [Reason::ZeroUnconfirmed; 2], "eight waited");
    assert_eq!([at_zero(8, 0), at_zero(9, 0)], [Reason::ScaledIn; 2]);
}

#[test]
fn a_queue_without_consumers_is_not_believed_while_sidecars_consume() {
    let (spec, mut inputs, mut history) = a_minute_of_work();
    inputs.ready = Some((0, 0.0));
    inputs.contradicted = true;
    // As many as waited before.
    inputs.sidecars.settled = 8;
    for now in 60..120 {
        let (decision, next) = decide(history, &inputs, &spec, f64::from(now));
        history = next;
        assert_eq!((decision.replicas, decision.reason), (4, Reason::ZeroUnconfirmed));
    }
    // None of those reads counts when the contradiction is gone, such as because the sidecars have lost their connections.
    inputs.contradicted = false;
    for now in 120..122 {
        let (decision, next) = decide(history, &inputs, &spec, f64::from(now));
        history = next;
        assert_eq!((decision.replicas, decision.reason), (4, Reason::ZeroUnconfirmed));
    }
}

#[test]
fn where_nobody_consumes_a_zero_after_messages_is_believed_after_a_minute() {
    let (spec, mut inputs, history) = a_minute_of_work();
    inputs.ready = Some((0, 0.0));
    inputs.unconsumed = true;
    let believed_after = |spec: &Spec, inputs: &Inputs| {
        let mut history = history.clone();
        (60..200).find(|now| {
            let (decision, next) = decide(std::mem::take(&mut history), inputs, spec, f64::from(*now));
            history = next;
            decision.reason != Reason::ZeroUnconfirmed
        })
    };
    assert_eq!(believed_after(&spec, &inputs), Some(120));
    assert_eq!(believed_after(&Spec { quorum: false, ..spec }, &inputs), Some(62), "it has no leader");
    inputs.sidecars.settled = 8;
    assert_eq!(believed_after(&spec, &inputs), Some(60), "they have settled what waited");
}

#[test]
fn what_is_delivered_and_not_begun_waits_like_what_is_ready() {
    let (spec, mut inputs, history) = a_minute_of_work();
    let spec = Spec { max: 4, quorum: false, ..spec };
    inputs.ready = Some((0, 0.0));
    inputs.sidecars = Sidecars { unsettled: 2000, in_flight: 40, ..idle(4) };
    let mut history = decide(history, &inputs, &spec, 60.0).1;
    for now in 61..300 {
        inputs.sidecars.deliveries += 1;
        let (decision, next) = decide(history, &inputs, &spec, f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 4, "{decision:?}");
    }
}

#[test]
fn work_that_asks_for_more_time_has_not_stalled() {
    let mut history = History::default();
    let mut inputs = waiting(5);
    inputs.workload.replicas = 2;
    inputs.sidecars = working(2);
    for now in 0..600 {
        inputs.sidecars.extensions = now / 20;
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        assert_ne!(decision.reason, Reason::Stalled);
    }
}

#[test]
fn what_stood_still_while_paused_has_not_stalled() {
    let (spec, mut inputs, mut history) = a_minute_of_work();
    inputs.sidecars = idle(4);
    for now in 60..600 {
        history = decide(history, &inputs, &Spec { paused: true, ..spec.clone() }, f64::from(now)).1;
    }
    assert_ne!(decide(history, &inputs, &spec, 600.0).0.reason, Reason::Stalled);
}

#[test]
fn pods_that_go_before_they_start_do_not_make_a_slow_start() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(40);
    inputs.workload.replicas = 10;
    inputs.sidecars = working(2);
    for now in 0..300 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    inputs.workload.replicas = 2;
    for now in 300..310 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(history.startup.seconds(), None);
}

#[test]
fn a_zero_that_grows_old_is_not_three_zeros() {
    let (spec, mut inputs, mut history) = a_minute_of_work();
    for age in 0..10 {
        inputs.ready = Some((0, f64::from(age)));
        let (decision, next) = decide(history, &inputs, &spec, f64::from(60 + age));
        history = next;
        assert_eq!((decision.replicas, decision.reason), (4, Reason::ZeroUnconfirmed));
    }
}

#[test]
fn a_sidecar_that_cannot_be_scraped_blocks_scale_in_but_not_scale_out() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 3;
    inputs.sidecars = Sidecars { started: 3, able: 3, scraped: 2, ..Sidecars::default() };
    let mut last = None;
    for now in 0..200 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 3);
        last = Some(decision);
    }
    assert_eq!(last.unwrap().reason, Reason::SidecarsUnreachable);
    inputs.ready = Some((100, 0.0));
    assert_eq!(decide(history, &inputs, &spec(), 200.0).0.replicas, 43);
}

#[test]
fn no_scraped_pod_for_a_minute_is_said() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = Sidecars { started: 1, able: 1, ..Sidecars::default() };
    let mut reasons = vec![];
    for now in 0..=60 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        reasons.push(decision.reason);
    }
    assert_eq!(reasons[60], Reason::MetricsUnreachable);
    assert!(!reasons[..60].contains(&Reason::MetricsUnreachable));
}

#[test]
fn a_stalled_consumer_is_not_no_load_and_gets_no_more_pods() {
    let mut history = History::default();
    let mut inputs = waiting(5);
    inputs.workload.replicas = 2;
    inputs.sidecars = working(2);
    let mut last = None;
    for now in 0..100 {
        inputs.ready = Some((5 + u64::from(now > 70) * 10_000, 0.0));
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        last = Some(decision);
    }
    let last = last.unwrap();
    assert_eq!(last.reason, Reason::Stalled);
    assert!(!last.reason.is_active() && last.message.contains("429"), "{}", last.message);
    // Copies that are tried again and again are no movement, and the cause while they are.
    let mut told = |copies_failed, now| {
        inputs.sidecars.copies_failed = copies_failed;
        let (decision, next) = decide(std::mem::take(&mut history), &inputs, &spec(), now);
        history = next;
        assert_eq!(decision.reason, Reason::Stalled);
        decision.message
    };
    for (copies_failed, now, waits) in
        [(1, 100.0, true), (1, 159.0, true), (1, 161.0, false), (2, 162.0, true)]
    {
        let message = told(copies_failed, now);
        assert_eq!(message.contains("amq.default"), waits, "{message}");
        assert_eq!(message.contains("429"), !waits, "{message}");
    }
    // One that waits for its confirm under an alarm does not fail.
    inputs.sidecars.blocked = 1;
    let (decision, _) = decide(history, &inputs, &spec(), 300.0);
    assert!(decision.message.contains("alarm of the broker"), "{}", decision.message);
}

#[test]
fn what_another_operator_has_found_to_stall_gets_no_pods_until_something_moves() {
    let mut inputs = waiting(1000);
    inputs.workload.replicas = 1;
    inputs.sidecars = idle(1);
    let reason = |inputs: &Inputs, history| decide(history, inputs, &spec(), 0.0).0.reason;
    let after = || History::default().after(Reason::Stalled.as_str(), 0.0);
    assert_eq!(reason(&inputs, History::default()), Reason::ScaledOut);
    assert_eq!(reason(&inputs, after()), Reason::Stalled);
    // The first look may be over before a sidecar has answered.
    let unseen = Inputs { sidecars: Sidecars { scraped: 0, ..idle(1) }, ..inputs.clone() };
    let (decision, history) = decide(after(), &unseen, &spec(), 0.0);
    assert_eq!(decision.replicas, 1, "{}", decision.message);
    let (decision, history) = decide(history, &inputs, &spec(), 1.0);
    assert_eq!((decision.replicas, decision.reason), (1, Reason::Stalled));
    let (decision, history) = decide(history, &inputs, &spec(), 2.0);
    assert_eq!((decision.replicas, decision.reason), (1, Reason::Stalled));
    inputs.sidecars.deliveries = 1;
    assert_eq!(decide(history, &inputs, &spec(), 3.0).0.reason, Reason::ScaledOut);
}

#[test]
fn a_handler_that_another_operator_has_found_to_fail_gets_no_pods_until_a_call_goes_well() {
    let mut inputs = waiting(1000);
    inputs.workload.replicas = 1;
    inputs.sidecars = working(1);
    let after = History::default().after(Reason::HandlerFailing.as_str(), 0.0);
    let (decision, history) = decide(after, &inputs, &spec(), 0.0);
    assert_eq!((decision.replicas, decision.reason), (1, Reason::HandlerFailing));
    let failed = Sidecars { calls: 1, failed: 1, failed_first: 1, call_seconds: 1.0, ..working(1) };
    let (decision, history) = decide(history, &Inputs { sidecars: failed, ..inputs.clone() }, &spec(), 1.0);
    assert_eq!((decision.replicas, decision.reason), (1, Reason::HandlerFailing));
    let good = Sidecars { calls: 2, settled: 1, call_seconds: 2.0, ..failed };
    let (decision, _) = decide(history, &Inputs { sidecars: good, ..inputs }, &spec(), 2.0);
    assert_eq!(decision.reason, Reason::ScaledOut, "{}", decision.message);
}

#[test]
fn pods_that_another_operator_could_not_scrape_for_long_are_told_at_once() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 2;
    inputs.sidecars = Sidecars { scraped: 0, ..idle(2) };
    let after = History::default().after(Reason::MetricsUnreachable.as_str(), 0.0);
    let (decision, history) = decide(after, &inputs, &spec(), 0.0);
    assert_eq!(decision.reason, Reason::MetricsUnreachable);
    assert_ne!(decide(History::default(), &inputs, &spec(), 0.0).0.reason, Reason::MetricsUnreachable);
    // Once they are seen it takes as long as ever.
    let seen = Inputs { sidecars: idle(2), ..inputs.clone() };
    let history = decide(history, &seen, &spec(), 1.0).1;
    assert_ne!(decide(history, &inputs, &spec(), 2.0).0.reason, Reason::MetricsUnreachable);
}

#[test]
fn a_pod_that_stands_by_for_another_workers_has_not_stalled() {
    let spec = Spec { single: true, max: 1, ..spec() };
    let reason = |shared: bool| {
        let mut history = History::default();
        let mut inputs = Inputs { shared, ..waiting(5) };
        inputs.workload.replicas = 1;
        inputs.sidecars = idle(1);
        for now in 0..100 {
            history = decide(history, &inputs, &spec, f64::from(now)).1;
        }
        decide(history, &inputs, &spec, 100.0).0.reason
    };
    assert_eq!(reason(false), Reason::Stalled);
    assert_ne!(reason(true), Reason::Stalled);
}

#[test]
fn failing_handlers_hold() {
    let mut inputs = waiting(10_000);
    inputs.workload.replicas = 2;
    inputs.sidecars = Sidecars { failing: 2, ..idle(2) };
    let (decision, _) = decide(History::default(), &inputs, &spec(), 0.0);
    assert_eq!((decision.replicas, decision.reason), (2, Reason::HandlerFailing));
}

/// Three pods with calls of 0.1 s whose handler hangs from the 60th second on, until `mended`: every call of a pod then times out after
/// 30 s. The decisions from then on.
fn hung_until(mended: u32, until: u32) -> Vec<Decision> {
    let (mut history, mut inputs) = (History::default(), waiting(0));
    inputs.workload.replicas = 3;
    let (mut settled, mut failed, mut seconds, mut ready) = (0, 0, 0.0, 0);
    let mut decisions = Vec::new();
    for now in 0..until {
        let pods = inputs.workload.replicas;
        if now < 60 || now >= mended {
            (settled, seconds) = (settled + 20, seconds + 2.0);
            ready = 0;
        } else {
            ready += 20;
            if now > 60 && now % 30 == 0 {
                let ended = u64::from(pods);
                (settled, failed, seconds) = (settled + ended, failed + ended, seconds + 30.0 * ended as f64);
            }
        }
        inputs.ready = Some((ready, 0.0));
        inputs.sidecars = Sidecars {
            deliveries: settled + u64::from(pods),
            settled,
            calls: settled,
            failed,
            failed_first: failed,
            call_seconds: seconds,
            ..working(pods)
        };
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        inputs.workload.replicas = decision.replicas;
        if now >= 60 {
            decisions.push(decision);
        }
    }
    decisions
}

#[test]
fn no_pods_are_added_while_all_calls_time_out() {
    let decisions = hung_until(600, 600);
    let (at_first, last) = (&decisions[30], decisions.last().unwrap());
    assert!(at_first.replicas < 20, "{at_first:?}");
    assert_eq!((last.replicas, last.reason), (at_first.replicas, Reason::HandlerFailing), "{last:?}");
}

#[test]
fn after_calls_that_all_failed_one_pod_is_woken_to_try_and_the_rest_come_when_a_call_goes_well() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    let mut at = |inputs: &mut Inputs, now| {
        let (decision, next) = decide(history.clone(), inputs, &spec(), now);
        (history, inputs.workload.replicas) = (next, decision.replicas);
        decision
    };
    at(&mut inputs, 0.0);
    let failed = Sidecars { calls: 6, failed: 6, failed_first: 6, settled: 6, ..idle(1) };
    inputs.sidecars = failed;
    at(&mut inputs, 1.0);
    (inputs.workload.replicas, inputs.sidecars) = (0, Sidecars { scraped: 0, started: 0, ..failed });
    inputs.ready = Some((100, 0.0));
    let woken = at(&mut inputs, 10.0);
    assert_eq!((woken.replicas, woken.reason), (1, Reason::HandlerFailing), "{woken:?}");
    inputs.sidecars = failed;
    assert_eq!(at(&mut inputs, 12.0).replicas, 1);
    inputs.sidecars = Sidecars { calls: 7, settled: 7, call_seconds: 1.0, ..failed };
    let all = at(&mut inputs, 13.0);
    assert!(all.replicas > 5 && all.reason == Reason::ScaledOut, "{all:?}");
}

#[test]
fn what_timed_out_while_the_handler_hung_does_not_count_when_it_is_mended() {
    let most = hung_until(190, 400).into_iter().map(|decision| decision.replicas).max();
    assert!(most < Some(20), "{most:?}");
}

#[test]
fn a_worker_at_zero_leaves_a_few_messages_to_others_that_consume_for_half_the_target_wait() {
    let mut history = History::default();
    let mut at = |ready, elsewhere, now| {
        let inputs = Inputs { elsewhere, ..waiting(ready) };
        let (decision, next) = decide(history.clone(), &inputs, &spec(), now);
        history = next;
        decision
    };
    for now in 0..60 {
        // One that waits a moment, now and then.
        let decision = at(u64::from(now % 5 == 0), true, f64::from(now));
        assert_eq!((decision.replicas, decision.reason), (0, Reason::Idle), "{decision:?}");
    }
    assert!(at(1, true, 60.0).message.contains("others consume the queue"));
    assert_eq!(at(1, true, 64.9).replicas, 0);
    assert_eq!(at(1, true, 65.0).replicas, 1, "they do not keep up");
    assert_eq!(at(0, true, 66.0).replicas, 0);
    assert!(at(5, true, 67.0).replicas > 0, "more than a few");
    assert_eq!(at(0, true, 68.0).replicas, 0);
    assert_eq!(at(1, false, 69.0).replicas, 1, "nobody else is there");
}

#[test]
fn a_worker_at_its_maximum_says_so_as_long_as_more_is_wanted_now_and_then() {
    let spec = Spec { min: 1, max: 1, ..spec() };
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    let mut reasons = Vec::new();
    for now in 0..200_u32 {
        inputs.sidecars = Sidecars { settled: u64::from(now), ..working(1) };
        inputs.ready = Some((if now < 120 && now % 20 == 0 { 20 } else { 5 }, 0.0));
        let (decision, next) = decide(history, &inputs, &spec, f64::from(now));
        history = next;
        reasons.push(decision.reason);
    }
    reasons.dedup();
    assert_eq!(reasons, [Reason::AtMaximum, Reason::Steady]);
}

#[test]
fn one_pod_that_starts_slowly_hides_no_burst() {
    let spec = Spec { min: 20, ..spec() };
    let mut history = History::with_service_seconds(0.5);
    let mut inputs = waiting(0);
    let mut wanted = |ready: u64, now: u32| {
        let pods = if now == 0 { 0 } else { 20 };
        inputs.ready = Some((ready, 0.0));
        inputs.workload.replicas = pods;
        inputs.sidecars = Sidecars { able: if now < 5 { 0 } else { 19 }, ..working(pods) };
        let (decision, next) = decide(history.clone(), &inputs, &spec, f64::from(now));
        history = next;
        decision.replicas
    };
    for now in 0..60 {
        assert_eq!(wanted(0, now), 20);
    }
    assert!(wanted(500, 60) > 20);
}

#[test]
fn an_application_that_starts_for_long_is_no_stall() {
    let mut history = History::default();
    let mut inputs = waiting(50);
    inputs.workload.replicas = 3;
    inputs.sidecars = Sidecars { started: 3, scraped: 3, ..Sidecars::default() };
    for now in 0..110 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_ne!(decision.reason, Reason::Stalled, "at {now}");
    }
}

#[test]
fn a_lower_maximum_counts_while_replicas_are_held() {
    let mut inputs = waiting(10_000);
    inputs.workload.replicas = 40;
    inputs.sidecars = Sidecars { failing: 40, ..working(40) };
    let (decision, _) = decide(History::default(), &inputs, &Spec { max: 5, ..spec() }, 0.0);
    assert_eq!((decision.replicas, decision.reason), (5, Reason::HandlerFailing));
    assert!(
        decision.message.contains("40 to 5 pods, by scaling.minReplicas and scaling.maxReplicas"),
        "{decision:?}"
    );
}

#[test]
fn pods_whose_handler_fails_do_not_stay_when_there_is_nothing_to_do() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 2;
    inputs.sidecars = Sidecars { failing: 2, ..idle(2) };
    for now in 0..200 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        (history, inputs.workload.replicas) = (next, decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 0);
}

#[test]
fn an_application_that_starts_for_a_minute_gets_no_pods_beyond_those_that_are_on_their_way() {
    let mut history = History::with_service_seconds(0.5);
    let mut inputs = waiting(0);
    for now in 0..60 {
        inputs.ready = Some((200 + 10 * now, 0.0));
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        let pods = decision.replicas;
        inputs.workload.replicas = pods;
        // The sidecars run from the third second on, and no application does.
        let run = if now < 3 { 0 } else { pods };
        inputs.sidecars = Sidecars { started: run, scraped: run, ..Sidecars::default() };
        assert!((40..=60).contains(&pods), "{pods} at {now}: {}", decision.message);
    }
}

#[test]
fn a_rollout_does_not_feed_the_estimate_and_a_pod_that_cannot_start_does_not_stop_it() {
    let mut inputs = waiting(10);
    inputs.sidecars =
        Sidecars { calls: 10, call_seconds: 10.0, lifetime_calls: 10, lifetime_seconds: 10.0, ..idle(1) };
    inputs.workload = Workload { replicas: 1, rolling: true, ..Workload::default() };
    let (_, history) = decide(History::default(), &inputs, &spec(), 0.0);
    inputs.sidecars.calls = 20;
    inputs.sidecars.call_seconds = 900.0;
    let (_, history) = decide(history, &inputs, &spec(), 1.0);
    // What was known before stays.
    assert_eq!(history.service_seconds(), Some(1.0));
    inputs.workload = Workload { failing: true, rolling: false, ..inputs.workload };
    inputs.sidecars.calls = 30;
    inputs.sidecars.call_seconds = 905.0;
    let (_, history) = decide(history, &inputs, &spec(), 3.0);
    let seconds = history.service_seconds().unwrap();
    assert!((0.5..0.6).contains(&seconds), "{seconds}");
}

#[test]
fn what_a_pod_holds_and_does_not_hand_over_keeps_that_pod_and_one_that_works() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    // One message is put off, such as over a `Retry-After` or a dead-letter queue that is full.
    let holding = |pods| Sidecars { unsettled: 1, put_off: 1, holding: 1, ..idle(pods) };
    inputs.sidecars = holding(20);
    let mut history = History::with_service_seconds(5.0);
    for now in 0..400 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        inputs.workload.replicas = decision.replicas;
        inputs.sidecars = holding(decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 2);
}

#[test]
fn a_pod_that_does_not_answer_has_no_free_place_for_what_waits() {
    for (seen, replicas) in [(5, 5), (2, 8)] {
        let mut inputs = waiting(0);
        inputs.workload.replicas = 5;
        let mut history = History::with_service_seconds(600.0);
        for now in 0..100 {
            inputs.sidecars = Sidecars { busy: 5, unsettled: 5, in_flight: 5, ..idle(5) };
            history = decide(history, &inputs, &spec(), f64::from(now)).1;
        }
        // Those that do not answer are as busy as before; where all do, three have become free.
        let (unsettled, in_flight) = (2, 2);
        inputs.sidecars =
            Sidecars { scraped: seen, away: 5 - seen, busy: 2, unsettled, in_flight, ..idle(5) };
        inputs.ready = Some((3, 0.0));
        let (decision, _) = decide(history, &inputs, &spec(), 100.0);
        assert_eq!(decision.replicas, replicas, "{}", decision.message);
    }
}

#[test]
fn one_look_at_which_no_pod_answers_adds_none_to_those_that_keep_up() {
    for away in [0, 10] {
        let mut inputs = waiting(0);
        inputs.workload.replicas = 10;
        let mut history = History::with_service_seconds(0.5);
        for now in 0..100 {
            inputs.sidecars = Sidecars { busy: 10, unsettled: 10, in_flight: 10, ..idle(10) };
            history = decide(history, &inputs, &spec(), f64::from(now)).1;
        }
        let seen = 10 - away;
        let in_flight = u64::from(seen);
        inputs.sidecars =
            Sidecars { scraped: seen, away, busy: seen, unsettled: in_flight, in_flight, ..idle(10) };
        inputs.ready = Some((120, 0.0));
        let (decision, _) = decide(history, &inputs, &spec(), 100.0);
        assert_eq!(decision.replicas, 10, "{}", decision.message);
    }
}

#[test]
fn a_longer_stabilization_than_was_watched_lets_no_pod_go() {
    for (before, after) in [(60.0, 600.0), (0.0, 300.0)] {
        let mut world = World::new(Spec { stabilization: before, ..spec() }, 0.1);
        for _ in 0..900 {
            world.second(95.0);
        }
        let pods = world.replicas;
        assert!(pods >= 10, "{pods}");
        world.spec.stabilization = after;
        for _ in 0..900 {
            world.second(95.0);
            assert!(world.replicas >= pods, "{} of {pods}: {:?}", world.replicas, world.decision);
        }
    }
}

#[test]
fn an_ordered_message_that_waits_in_its_pod_for_the_next_attempt_is_no_stall() {
    let stalls = |ordered, seconds: u32| {
        let spec = Spec { ordered, handler_timeout: 10.0, ..spec() };
        let (mut history, mut inputs) = (History::default(), waiting(5));
        inputs.workload.replicas = 1;
        inputs.sidecars = Sidecars { unsettled: 1, put_off: 1, holding: 1, ..idle(1) };
        for now in 0..seconds {
            history = decide(history, &inputs, &spec, f64::from(now)).1;
        }
        decide(history, &inputs, &spec, f64::from(seconds)).0.reason == Reason::Stalled
    };
    assert_eq!([false, true].map(|ordered| stalls(ordered, 60)), [true, false]);
    assert!(stalls(true, 110));
}

#[test]
fn the_last_pod_stays_while_a_rollout_has_stopped_half_way() {
    let mut inputs = waiting(0);
    let mut ends = |half_rolled| {
        let mut history = History::with_service_seconds(0.1);
        inputs.workload = Workload { replicas: 9, half_rolled, ..Workload::default() };
        for now in 0..400 {
            inputs.sidecars = idle(inputs.workload.replicas);
            let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
            (history, inputs.workload.replicas) = (next, decision.replicas);
        }
        inputs.workload.replicas
    };
    assert_eq!((ends(false), ends(true)), (0, 1));
}

#[test]
fn no_pod_comes_for_messages_that_another_holds() {
    let spec = Spec { concurrency: 10, ..spec() };
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = Sidecars { busy: 1, unsettled: 100, in_flight: 10, ..idle(1) };
    let (_, history) = decide(History::with_service_seconds(2.0), &waiting(0), &spec, 0.0);
    let (decision, history) = decide(history, &inputs, &spec, 1.0);
    let of_arrivals = decision.replicas;
    assert!(of_arrivals <= 2, "{}", decision.message);
    inputs.ready = Some((100, 0.0));
    let (decision, _) = decide(history, &inputs, &spec, 2.0);
    assert!(decision.replicas > of_arrivals, "those that wait get some: {}", decision.message);
}

#[test]
fn what_was_settled_while_no_pod_could_be_scraped_did_not_arrive_just_now() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 5;
    inputs.sidecars = Sidecars { settled: 1000, calls: 1000, call_seconds: 400.0, ..working(5) };
    let mut history = History::with_service_seconds(0.4);
    for now in 0..300 {
        if now >= 60 {
            inputs.sidecars = Sidecars { started: 5, able: 5, settled: 1600, ..inputs.sidecars };
            (inputs.sidecars.scraped, inputs.sidecars.unsettled, inputs.sidecars.in_flight) = (0, 0, 0);
        } else {
            inputs.sidecars.settled += 10;
        }
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    // Those of four minutes, and a burst.
    inputs.sidecars = Sidecars { settled: 4000, calls: 4000, call_seconds: 1600.0, ..working(5) };
    inputs.ready = Some((100, 0.0));
    let (decision, mut history) = decide(history, &inputs, &spec(), 300.0);
    assert!(decision.replicas < 30, "{}", decision.message);
    inputs.ready = Some((0, 0.0));
    inputs.sidecars = Sidecars { settled: 4100, calls: 4100, call_seconds: 1640.0, ..idle(5) };
    for now in 310..350 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 5, "{}", decision.message);
    }
}

#[test]
fn calls_that_fail_and_are_tried_again_in_place_are_no_stall() {
    let mut inputs = waiting(10);
    inputs.workload.replicas = 1;
    inputs.sidecars = Sidecars { unsettled: 3, put_off: 3, ..idle(1) };
    let stalls = |each: usize| {
        let (mut history, mut inputs) = (History::with_service_seconds(0.1), inputs.clone());
        (0..300).any(|now| {
            inputs.sidecars.calls += u64::from(now % each == 0);
            let (decision, next) = decide(std::mem::take(&mut history), &inputs, &spec(), now as f64);
            history = next;
            inputs.workload.replicas = decision.replicas;
            decision.reason == Reason::Stalled
        })
    };
    assert!(!stalls(50));
    assert!(stalls(1000));
}

#[test]
fn a_queue_without_a_leader_ends_no_burst() {
    let mut inputs = waiting(500);
    inputs.workload.replicas = 5;
    inputs.sidecars = working(5);
    let mut history = History::with_service_seconds(1.0);
    for now in 0..60 {
        inputs.contradicted = now % 10 == 9;
        inputs.ready = Some((if inputs.contradicted { 0 } else { 500 }, 0.0));
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(history.piles.in_a_row(60.0), None);
}

#[test]
fn a_paused_worker_keeps_its_pods() {
    let mut inputs = waiting(10_000);
    inputs.workload.replicas = 3;
    let (decision, _) = decide(History::default(), &inputs, &Spec { paused: true, ..spec() }, 0.0);
    assert_eq!((decision.replicas, decision.reason), (3, Reason::Paused));
}

#[test]
fn a_schedule_raises_the_pods_at_once_and_keeps_them_for_as_long_as_it_counts() {
    let mut world = World::new(Spec { max: 8, ..spec() }, 0.1);
    let mut seen = vec![];
    for second in 0..200 {
        world.floor = (20..100).contains(&second).then(|| by_schedule(5));
        let decision = world.second(0.0);
        if second == 50 {
            assert!(decision.message.contains("0 8 * * *"), "{}", decision.message);
        }
        let now = (decision.replicas, decision.reason);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(&seen[..3], [(0, Reason::Idle), (5, Reason::ScaledOut), (5, Reason::Scheduled)]);
    assert_eq!(seen.last(), Some(&(0, Reason::Idle)), "{seen:?}");
}

#[test]
fn a_schedule_for_more_than_the_maximum_stops_there_and_one_for_fewer_than_the_minimum_says_nothing() {
    let spec = Spec { min: 2, max: 8, ..spec() };
    let inputs = |replicas| Inputs { floor: Some(by_schedule(replicas)), ..waiting(0) };
    assert_eq!(decide(History::default(), &inputs(50), &spec, 0.0).0.replicas, 8);
    let (few, _) = decide(History::default(), &inputs(1), &spec, 0.0);
    assert_eq!(few.replicas, 2);
    assert!(!few.message.contains("schedule"), "{}", few.message);
}

prop_compose! {
    fn specs()(min in 0_u32..20, extra in 0_u32..80, target in 1_u32..100_000, stabilization in 0_u32..300,
               concurrency in 1_u32..2000, quorum: bool, paused: bool) -> Spec {
        Spec {
            min,
            max: (min + extra).max(1),
            target_wait: f64::from(target),
            stabilization: f64::from(stabilization),
            concurrency,
            handler_timeout: 30.0,
            single: false,
            quorum,
            paused,
            ordered: paused ^ quorum,
        }
    }
}

prop_compose! {
    fn readings()(ready in proptest::option::weighted(0.9, (0_u64..1_000_000, 0.0_f64..20.0)),
                  replicas in 0_u32..100, rolling: bool, crashing: bool, started in 0_u32..100, unscraped in 0_u32..3,
                  unsettled in 0_u64..5000, in_flight in 0_u64..5000, counters in (0_u64..u64::MAX, 0_u64..u64::MAX, 0_u64..u64::MAX),
                  call_seconds in prop_oneof![8 => 0.0..1e9, 1 => Just(f64::NAN), 1 => Just(-1.0), 1 => Just(f64::INFINITY)],
                  held in 0_u32..100, floor in proptest::option::of(0_u32..200), contradicted: bool) -> Inputs {
        Inputs {
            ready,
            contradicted,
            unconsumed: contradicted || held % 5 == 0,
            shared: held % 3 == 0,
            elsewhere: held % 4 == 0,
            floor: floor.map(by_schedule),
            workload: Workload {
                replicas,
                rolling,
                half_rolled: !rolling && crashing,
                failing: crashing,
                exposed: held % 2 == 0,
            },
            sidecars: Sidecars {
                started,
                scraped: started.saturating_sub(unscraped),
                unsettled,
                in_flight,
                put_off: unsettled / 2,
                holding: started / 3,
                busy: held,
                ending: in_flight / 2,
                deliveries: counters.0,
                settled: counters.1,
                extensions: counters.0,
                copies_failed: counters.1,
                calls: counters.2,
                failed: counters.0,
                failed_first: counters.1,
                call_seconds,
                able: started / 2,
                away: unscraped,
                blocked: started / 4,
                late: in_flight / 3,
                lifetime_calls: counters.1,
                lifetime_seconds: call_seconds,
                held,
                failing: held,
            },
            sidecars_age: 0.0,
        }
    }
}

prop_compose! {
    /// A Worker with a past: calls of all lengths, loads of all sizes, more or less each second, and now and then a burst.
    fn worlds()(service in prop_oneof![0.02_f64..1.0, 1.0..25.0], pods in 0.2_f64..30.0, target in 1_u32..40, concurrency in 1_u32..4,
                past in proptest::collection::vec((0.0_f64..2.0, proptest::option::weighted(0.02, 1.0_f64..200.0)), 20..200)) -> World {
        let spec = Spec { target_wait: f64::from(target), concurrency, ..spec() };
        let rate = pods * f64::from(concurrency) / service;
        let mut world = World::new(spec, service);
        for (part, burst) in past {
            world.second(rate * part + burst.unwrap_or_default());
        }
        world
    }
}

fn run(inputs: &[Inputs], spec: &Spec) -> (History, f64) {
    let mut history = History::default();
    let mut now = 0.0;
    for one in inputs {
        history = decide(history, one, spec, now).1;
        now += 1.0;
    }
    (history, now)
}

proptest! {
    #[test]
    fn a_decision_is_within_the_limits(past in proptest::collection::vec(readings(), 0..20), inputs in readings(), spec in specs()) {
        let (history, now) = run(&past, &spec);
        let (decision, _) = decide(history, &inputs, &spec, now);
        prop_assert!((spec.min..=spec.max).contains(&decision.replicas), "{decision:?}");
    }

    #[test]
    fn a_schedule_never_asks_for_more_than_the_maximum_and_never_for_fewer_pods(past in proptest::collection::vec(readings(), 0..20), inputs in readings(), replicas in 0_u32..200, spec in specs()) {
        let (history, now) = run(&past, &spec);
        let without = Inputs { floor: None, ..inputs.clone() };
        let with = Inputs { floor: Some(by_schedule(replicas)), ..inputs };
        let (few, _) = decide(history.clone(), &without, &spec, now);
        let (many, _) = decide(history, &with, &spec, now);
        prop_assert!(many.replicas >= few.replicas, "{few:?} {many:?}");
        prop_assert!(many.replicas <= spec.max, "{many:?}");
    }

    #[test]
    fn a_larger_backlog_never_means_fewer_pods(mut world in worlds(), arrivals in 0.0_f64..20.0, more in prop_oneof![3 => 1_u64..20, 1 => 1_u64..1_000_000]) {
        let inputs = world.passes(arrivals);
        let mut larger = inputs.clone();
        larger.ready = inputs.ready.map(|(ready, age)| (ready + more, age));
        let (few, _) = decide(world.history.clone(), &inputs, &world.spec, world.now);
        let (many, _) = decide(world.history, &larger, &world.spec, world.now);
        // A zero that is not confirmed is not known to be one, and holds.
        prop_assume!(few.reason != Reason::ZeroUnconfirmed);
        prop_assert!(many.replicas >= few.replicas, "{few:?} {many:?}");
    }

    #[test]
    fn unacknowledged_work_never_scales_to_zero(mut world in worlds(), unsettled in 1_u64..4, runs: bool) {
        world.queue = 0.0;
        let mut without = world.clone();
        for _ in 0..1500 {
            let mut inputs = world.passes(0.0);
            inputs.workload.replicas = inputs.workload.replicas.max(1);
            let (in_flight, put_off) = if runs { (unsettled, 0) } else { (0, unsettled) };
            inputs.sidecars = Sidecars { unsettled, in_flight, put_off, ..inputs.sidecars };
            prop_assert!(world.look(&inputs).replicas > 0, "{:?}", world.decision);
            without.second(0.0);
        }
        prop_assert_eq!(without.replicas, 0, "{:?}", without.decision);
    }

    #[test]
    fn a_larger_backlog_never_means_fewer_pods_whatever_was_read(past in proptest::collection::vec(readings(), 0..20), inputs in readings(), more in 0_u64..1_000_000, spec in specs()) {
        let (history, now) = run(&past, &spec);
        let mut larger = inputs.clone();
        larger.ready = inputs.ready.map(|(ready, age)| (ready + more, age));
        let (few, _) = decide(history.clone(), &inputs, &spec, now);
        let (many, _) = decide(history, &larger, &spec, now);
        // What holds does so whatever the backlog is; a stall needs a backlog, and never lets pods go.
        prop_assume!(many.reason != Reason::Stalled);
        prop_assert!(many.replicas >= few.replicas, "{few:?} {many:?}");
    }

    #[test]
    fn unacknowledged_work_never_scales_to_zero_whatever_was_read(past in proptest::collection::vec(readings(), 0..20), mut inputs in readings(), spec in specs()) {
        inputs.workload.replicas = inputs.workload.replicas.max(1);
        inputs.sidecars.unsettled = inputs.sidecars.unsettled.max(1);
        let (history, now) = run(&past, &spec);
        prop_assert!(decide(history, &inputs, &spec, now).0.replicas > 0);
    }

    #[test]
    fn unknown_holds_within_the_limits(past in proptest::collection::vec(readings(), 0..20), mut inputs in readings(), spec in specs()) {
        inputs.ready = None;
        let (history, now) = run(&past, &spec);
        let held = inputs.workload.replicas.clamp(spec.min, spec.max);
        prop_assert_eq!(decide(history, &inputs, &spec, now).0.replicas, held);
    }

    #[test]
    fn nonsense_in_the_measured_seconds_never_moves_replicas(seconds in prop_oneof![Just(f64::NAN), Just(-5.0), Just(f64::NEG_INFINITY), Just(f64::INFINITY)]) {
        let mut inputs = waiting(10);
        inputs.workload.replicas = 2;
        inputs.sidecars = Sidecars { calls: 10, call_seconds: 10.0, ..idle(2) };
        let sane = decide(History::with_service_seconds(1.0), &inputs, &spec(), 0.0);
        inputs.sidecars.calls = 20;
        inputs.sidecars.call_seconds = seconds;
        let (decision, _) = decide(sane.1, &inputs, &spec(), 1.0);
        prop_assert_eq!(decision.replicas, sane.0.replicas);
    }

    #[test]
    fn the_formula_that_is_told_gives_the_number_of_pods(mut world in worlds(), loads in proptest::collection::vec(0.0_f64..2.0, 60)) {
        for load in loads {
            let current = f64::from(world.replicas);
            let decision = world.second(load).clone();
            let Some((_, told)) = decision.message.split_once(": ").filter(|(_, told)| !told.contains(';') && told.contains(" over ")) else { continue };
            let numbers: Vec<f64> = told.split([' ', '(', ')']).filter_map(|word| word.parse().ok()).collect();
            let (rate, more, each) = if told.contains("by chance") { (numbers[0], numbers[1], &numbers[3..]) } else { (numbers[0], 0.0, &numbers[2..]) };
            let pods = (rate + more) * each[0] / each[1] / each[2];
            // Less than one only where there is nothing to do.
            let near = |margin: f64| (pods * margin - 1e-6).ceil().clamp(0.0, current);
            prop_assert!((near(0.9)..=near(1.1).max(1.0)).contains(&f64::from(decision.raw)), "{pods} {}: {told}", decision.raw);
        }
    }

    #[test]
    fn a_constant_load_settles(rate in 0.1_f64..40.0, service in 0.01_f64..2.0) {
        prop_assume!(rate * service < 35.0);
        let mut world = World::new(spec(), service);
        for _ in 0..200 { world.second(rate); }
        world.changes = 0;
        for _ in 0..600 { world.second(rate); }
        prop_assert!(world.changes <= 2, "{} changes at {} replicas", world.changes, world.replicas);
    }
}

#[test]
fn no_pod_goes_while_a_rollout_is_under_way() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload = Workload { replicas: 6, rolling: true, ..Workload::default() };
    inputs.sidecars = idle(6);
    let mut at = |inputs: &Inputs, now| {
        let (decision, next) = decide(history.clone(), inputs, &spec(), f64::from(now));
        history = next;
        (decision.replicas, decision.reason)
    };
    assert!((0..200).all(|now| at(&inputs, now).0 == 6));
    assert_eq!(at(&inputs, 200), (6, Reason::RollingOut));
    inputs.workload.rolling = false;
    assert_eq!(at(&inputs, 201), (3, Reason::ScaledIn));
}

#[test]
fn pods_that_a_rollout_replaces_have_not_stalled() {
    let stalls = |rolling| {
        let mut history = History::default();
        let mut inputs = waiting(5);
        inputs.workload = Workload { replicas: 2, rolling, ..Workload::default() };
        inputs.sidecars = working(2);
        for now in 0..100 {
            history = decide(history, &inputs, &spec(), f64::from(now)).1;
        }
        decide(history, &inputs, &spec(), 100.0).0.reason == Reason::Stalled
    };
    assert!(stalls(false) && !stalls(true));
}

#[test]
fn a_depth_of_ten_seconds_ago_counts_and_an_older_one_adds_no_pods() {
    let decided = |age| {
        let inputs = Inputs { ready: Some((100, age)), ..Inputs::default() };
        let (decision, _) = decide(History::default(), &inputs, &spec(), 100.0);
        (decision.replicas, decision.reason)
    };
    assert_eq!(decided(STALE_SECONDS), (43, Reason::ScaledOut));
    assert_eq!(decided(STALE_SECONDS + 0.1), (0, Reason::DepthUnknown));
}

/// What is decided for idle pods that were watched for long, of which none answers for so many `seconds` at last, and then all do again.
fn after_silence(seconds: u32) -> Decision {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload = Workload { replicas: 6, rolling: true, ..Workload::default() };
    for now in 0..200 {
        let scraped = if now < 200 - seconds { 6 } else { 0 };
        inputs.sidecars = Sidecars { scraped, ..idle(6) };
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    inputs.sidecars = idle(6);
    inputs.workload.rolling = false;
    decide(history, &inputs, &spec(), 200.0).0
}

#[test]
fn pods_that_do_not_answer_for_a_moment_are_not_watched_anew_and_after_a_while_they_are() {
    let moment = after_silence(5);
    assert_eq!((moment.replicas, moment.reason), (3, Reason::ScaledIn), "{}", moment.message);
    let while_ago = after_silence(15);
    assert_eq!((while_ago.replicas, while_ago.reason), (6, Reason::ZeroUnconfirmed), "{}", while_ago.message);
}

#[test]
fn a_burst_is_one_also_while_no_pod_can_be_scraped() {
    let spec = Spec { target_wait: 30.0, ..spec() };
    let mut history = History::with_service_seconds(0.5);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 4;
    for now in 0..120 {
        inputs.sidecars = Sidecars { scraped: if now < 90 { 4 } else { 0 }, ..idle(4) };
        history = decide(history, &inputs, &spec, f64::from(now)).1;
    }
    // Fifteen seconds' work for four pods, which would be no reason if it had grown slowly.
    inputs.ready = Some((120, 0.0));
    let (decision, _) = decide(history, &inputs, &spec, 120.0);
    assert_eq!(decision.reason, Reason::ScaledOut, "{}", decision.message);
}

#[test]
fn a_load_that_fits_is_steady_and_few_pods_more_than_a_load_needs_by_rounding_are_none() {
    assert_eq!([0.1 * 3.0 / 0.3, 1.01, 0.0, -1.0, f64::NAN].map(to_pods), [1, 2, 0, 0, 0]);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    let mut history = History::with_service_seconds(0.5);
    for now in 0..400_u64 {
        inputs.sidecars = Sidecars { settled: now, calls: now, call_seconds: now as f64 / 2.0, ..idle(1) };
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        assert!(
            now < 100 || decision.reason == Reason::Steady,
            "{}: {}",
            decision.reason.as_str(),
            decision.message
        );
    }
}

#[test]
fn pods_whose_handler_fails_stay_while_one_of_them_holds_a_message() {
    for (unsettled, ending) in [(5, 0), (0, 5)] {
        let mut inputs = waiting(0);
        inputs.workload.replicas = 5;
        inputs.sidecars = Sidecars { failing: 5, held: 5, unsettled, put_off: unsettled, ending, ..idle(5) };
        let mut history = History::with_service_seconds(1.0);
        for now in 0..400 {
            let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
            history = next;
            assert_eq!(
                (decision.replicas, decision.reason),
                (5, Reason::HandlerFailing),
                "{}",
                decision.message
            );
        }
    }
}

#[test]
fn two_pods_of_ten_that_fail_are_not_most_of_them_where_the_others_do_not_answer() {
    let mut inputs = waiting(1000);
    inputs.workload.replicas = 10;
    inputs.sidecars = Sidecars { scraped: 2, failing: 2, held: 2, ..idle(10) };
    let (decision, _) = decide(History::with_service_seconds(1.0), &inputs, &spec(), 0.0);
    assert_eq!(decision.reason, Reason::ScaledOut, "{}", decision.message);
}

#[test]
fn only_a_pod_without_messages_that_may_get_none_stands_by() {
    let stalls = |single: bool, unsettled: u64| {
        let spec = Spec { single, ..spec() };
        let mut history = History::default();
        let mut inputs = Inputs { shared: true, ..waiting(5) };
        inputs.workload.replicas = 1;
        inputs.sidecars = Sidecars { unsettled, in_flight: unsettled, ..idle(1) };
        for now in 0..100 {
            history = decide(history, &inputs, &spec, f64::from(now)).1;
        }
        decide(history, &inputs, &spec, 100.0).0.reason == Reason::Stalled
    };
    assert!(stalls(false, 0), "several pods get messages of this queue");
    assert!(stalls(true, 1), "it has one, and does nothing with it");
    assert!(!stalls(true, 0));
}

#[test]
fn others_that_consume_are_told_of_only_where_something_waits_and_no_pod_is_asked_for_all_the_same() {
    let decided = |ready, floor, min| {
        let inputs = Inputs { elsewhere: true, floor, ..waiting(ready) };
        decide(History::default(), &inputs, &Spec { min, ..spec() }, 0.0).0
    };
    let nothing = decided(0, None, 0);
    assert!(nothing.message.starts_with("nothing to do"), "{}", nothing.message);
    for (floor, min) in [(Some(by_schedule(5)), 0), (None, 5)] {
        let asked = decided(1, floor, min);
        assert_eq!((asked.replicas, asked.reason), (5, Reason::ScaledOut), "{}", asked.message);
    }
}

#[test]
fn a_row_of_failed_calls_is_forgotten_when_none_has_ended_for_longer_than_a_call_takes() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = idle(1);
    history = decide(history, &inputs, &spec(), 0.0).1;
    let failed = Sidecars { calls: 6, failed: 6, failed_first: 6, settled: 6, ..idle(1) };
    inputs.sidecars = failed;
    history = decide(history, &inputs, &spec(), 1.0).1;
    inputs.workload.replicas = 0;
    inputs.sidecars = Sidecars { started: 0, able: 0, scraped: 0, ..failed };
    history = decide(history, &inputs, &spec(), 50.0).1;
    inputs.ready = Some((100, 0.0));
    let at = |now| decide(history.clone(), &inputs, &spec(), now).0;
    assert_eq!((at(60.0).replicas, at(60.0).reason), (1, Reason::HandlerFailing));
    let later = at(62.0);
    assert!(later.replicas > 10 && later.reason == Reason::ScaledOut, "{}", later.message);
}

#[test]
fn a_schedule_is_named_only_where_the_load_asks_for_fewer_pods() {
    let asked = |ready| {
        decide(History::default(), &Inputs { floor: Some(by_schedule(5)), ..waiting(ready) }, &spec(), 0.0).0
    };
    let (few, many) = (asked(1), asked(100));
    assert!(few.replicas == 5 && few.message.contains("the least by schedule"), "{}", few.message);
    assert!(many.replicas == 43 && !many.message.contains("schedule"), "{}", many.message);
}

#[test]
fn a_lower_maximum_takes_pods_at_once_and_is_told_as_that() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 40;
    inputs.sidecars = working(40);
    let (decision, _) = decide(History::default(), &inputs, &Spec { max: 5, ..spec() }, 0.0);
    assert_eq!((decision.replicas, decision.reason), (5, Reason::ScaledIn));
    assert!(decision.message.starts_with("40 to 5 pods, scaling.maxReplicas"), "{}", decision.message);
}

#[test]
fn pods_that_came_for_long_calls_are_not_let_go_in_one_step() {
    let mut history = History::with_service_seconds(60.0);
    let mut inputs = waiting(20);
    let mut pods = vec![];
    for now in 0..60 {
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        (history, inputs.workload.replicas) = (next, decision.replicas);
        // The queue is purged.
        (inputs.ready, inputs.sidecars) = (Some((0, 0.0)), idle(decision.replicas));
        pods.push(decision.replicas);
    }
    assert_eq!((pods[0], pods[29], pods[30], pods[59]), (20, 20, 10, 10), "{pods:?}");
}

#[test]
fn as_few_pods_as_may_be_are_kept_however_few_fewer_these_are() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    inputs.sidecars = idle(20);
    for now in 0..100 {
        let (decision, next) = decide(history, &inputs, &Spec { min: 19, ..spec() }, f64::from(now));
        (history, inputs.workload.replicas) = (next, decision.replicas);
        inputs.sidecars = idle(decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 19);
}

#[test]
fn a_worker_below_its_maximum_is_not_told_to_be_at_it_and_one_at_its_minimum_not_to_become_smaller() {
    let mut world = World::new(Spec { min: 1, max: 5, ..spec() }, 0.1);
    let mut reasons = vec![];
    for second in 0..300 {
        let decision = world.second(if second == 10 { 400.0 } else { 0.0 });
        reasons.push((decision.replicas, decision.reason));
    }
    assert!(reasons.contains(&(5, Reason::AtMaximum)), "{reasons:?}");
    assert!(reasons.iter().all(|(pods, reason)| *pods == 5 || *reason != Reason::AtMaximum), "{reasons:?}");
    assert_eq!(reasons[299], (1, Reason::Steady));
}

#[test]
fn pods_stay_while_a_rollout_has_stopped_half_way_and_work_asks_for_more_time() {
    let left = |extensions: u64| {
        let mut history = History::with_service_seconds(600.0);
        let mut inputs = waiting(0);
        inputs.workload = Workload { replicas: 20, half_rolled: true, ..Workload::default() };
        for now in 0..200 {
            let pods = inputs.workload.replicas;
            inputs.sidecars = Sidecars {
                busy: 1,
                unsettled: 1,
                in_flight: 1,
                extensions: extensions * now / 20,
                ..idle(pods)
            };
            let (decision, next) = decide(history, &inputs, &spec(), now as f64);
            (history, inputs.workload.replicas) = (next, decision.replicas);
        }
        inputs.workload.replicas
    };
    assert_eq!(left(1), 20, "which pods go cannot be told");
    assert!(left(0) < 20);
}

#[test]
fn work_in_pods_that_are_about_to_go_brings_none_back() {
    let mut inputs = waiting(0);
    // The Deployment was scaled in by hand just now: its twenty pods are there still.
    inputs.workload.replicas = 5;
    inputs.sidecars = Sidecars { busy: 20, late: 20, ..working(20) };
    let mut history = History::with_service_seconds(1.0);
    for now in 0..200 {
        inputs.sidecars.extensions = now / 20;
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        assert!(decision.replicas <= 5, "{}", decision.message);
    }
}

#[test]
fn a_broker_that_was_away_for_long_leaves_no_stall_behind() {
    let mut history = History::with_service_seconds(0.1);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = idle(1);
    for now in 0..400 {
        inputs.ready = (!(60..399).contains(&now)).then_some((0, 0.0));
        inputs.ready = inputs.ready.map(|_| (if now < 60 { 0 } else { 1000 }, 0.0));
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        history = next;
        assert!(now < 399 || decision.reason == Reason::ScaledOut, "{}", decision.message);
    }
}

#[test]
fn what_was_settled_before_the_broker_was_away_does_not_arrive_when_it_is_back() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.sidecars.settled = 100_000;
    for now in 0..10 {
        inputs.ready = (now < 5).then_some((0, 0.0));
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    inputs.ready = Some((1, 0.0));
    let (decision, _) = decide(history, &inputs, &spec(), 10.0);
    assert_eq!(decision.replicas, 1, "{}", decision.message);
}

#[test]
fn what_pods_hold_has_arrived_also_where_they_end() {
    for sidecars in [Sidecars { unsettled: 30, ..idle(1) }, Sidecars { ending: 30, ..idle(1) }] {
        let mut history = History::default();
        let mut inputs = waiting(0);
        inputs.workload.replicas = 1;
        for now in 0..60 {
            inputs.sidecars = if now < 40 { idle(1) } else { sidecars };
            history.observe(0, &inputs, 60.0, f64::from(now));
        }
        assert_eq!(history.rate(), 1.0);
    }
}

#[test]
fn a_queue_without_a_leader_has_not_lost_what_comes_again_with_it() {
    let mut history = History::default();
    let mut inputs = waiting(500);
    inputs.workload.replicas = 5;
    for now in 0..100 {
        inputs.contradicted = (50..80).contains(&now);
        let ready = if inputs.contradicted { 0 } else { 500 };
        history.observe(ready, &inputs, 60.0, f64::from(now));
    }
    assert_eq!((history.growth(), history.rate()), (0.0, 0.0));
}

#[test]
fn a_purge_of_some_seconds_work_is_one_too_and_pods_that_do_not_answer_have_lost_nothing() {
    let mut world = World::new(Spec { max: 50, ..spec() }, 0.25);
    (world.replicas, world.queue) = (50, 5000.0);
    for _ in 0..120 {
        world.second(200.0);
    }
    world.queue = 0.0;
    for second in 0..60 {
        let decision = world.second(190.0);
        assert!(decision.replicas >= 48, "{second}: {}", decision.message);
    }

    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    for now in 0..60 {
        let answer = if now == 50 { 8 } else { 20 };
        inputs.sidecars = Sidecars { started: 20, able: 20, ..working(answer) };
        history.observe(0, &inputs, 60.0, f64::from(now));
    }
    assert_eq!(history.rate(), 0.0);
}

#[test]
fn a_zero_that_was_contradicted_once_is_no_sooner_believed_where_nobody_consumes() {
    let (mut inputs, mut history) = (waiting(1000), History::with_service_seconds(1.0));
    inputs.workload.replicas = 50;
    inputs.sidecars = idle(50);
    for now in 0..10 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    (inputs.ready, inputs.unconsumed) = (Some((0, 0.0)), true);
    let mut gone = None;
    for now in 10..100 {
        // A sidecar that had connected again.
        inputs.contradicted = now == 10;
        let (decision, next) = decide(history, &inputs, &spec(), f64::from(now));
        if decision.replicas < 50 {
            gone.get_or_insert(now);
        }
        history = next;
    }
    assert_eq!(gone, Some(11 + BLIND_SECONDS as i32), "a minute of zeros");
}

#[test]
fn pods_that_proved_too_few_say_nothing_of_those_that_make_more_calls_at_once() {
    let mut history = History::default();
    history.scaled_out(4, 0.0, Some(TooMuch { calls: 3.0, pods: 3, at_once: 1.0 }), 0.0);
    assert_eq!([1.0, 10.0].map(|at_once| history.too_few(3.0, at_once, 0.0, 1.0)), [Some(3), None]);
}

#[test]
fn pods_that_did_not_answer_for_a_while_worked_meanwhile() {
    let (mut inputs, mut history) = (waiting(0), History::with_service_seconds(300.0));
    inputs.workload.replicas = 20;
    for now in 0..200 {
        let answer = if (100..160).contains(&now) { 8 } else { 20 };
        inputs.sidecars = Sidecars { started: 20, able: 20, ..working(answer) };
        history.observe(0, &inputs, 60.0, f64::from(now));
        assert!(history.running() > 19.9, "{now}: {}", history.running());
    }
    // One that takes over while not all answer knows as little.
    let mut history = History::with_service_seconds(300.0);
    for now in 0..301 {
        inputs.sidecars = Sidecars { started: 20, able: 20, ..working(if now < 300 { 19 } else { 20 }) };
        history.observe(0, &inputs, 60.0, f64::from(now));
    }
    assert_eq!(history.running(), 20.0);
}

#[test]
fn a_purge_of_a_large_backlog_takes_no_pods_from_the_load_that_goes_on() {
    let mut world = World::new(Spec { max: 10, ..spec() }, 1.0);
    (world.replicas, world.queue) = (10, 5000.0);
    for _ in 0..120 {
        world.second(8.0);
    }
    assert_eq!(world.replicas, 10);
    world.queue = 0.0;
    for second in 0..120 {
        let decision = world.second(8.0);
        assert!(decision.replicas >= 8, "{second}: {}", decision.message);
    }
}

#[test]
fn a_zero_is_believed_where_what_was_there_is_held_also_by_pods_that_end() {
    let (spec, mut inputs, mut history) = a_minute_of_work();
    // Eight wait, two are held and one is where a pod ends.
    inputs.sidecars = Sidecars { unsettled: 2, ending: 1, ..idle(4) };
    history = decide(history, &inputs, &spec, 60.0).1;
    let believed = |settled, unsettled, ending| {
        let sidecars = Sidecars { settled, unsettled, in_flight: unsettled, ending, ..idle(4) };
        let inputs = Inputs { ready: Some((0, 0.0)), sidecars, ..inputs.clone() };
        decide(history.clone(), &inputs, &spec, 61.0).0.reason != Reason::ZeroUnconfirmed
    };
    assert!(believed(11, 0, 0) && believed(10, 1, 0) && believed(10, 0, 1));
    assert!(!believed(8, 0, 0) && !believed(9, 1, 0) && !believed(9, 0, 1));
}

#[test]
fn seconds_that_no_call_can_take_are_not_known_and_none_are_less_than_a_round_trip() {
    let known = |seconds| History::with_service_seconds(seconds).service_seconds();
    assert_eq!([f64::NAN, f64::INFINITY, 0.0, -1.0].map(known), [None; 4]);
    assert_eq!(known(1e-9), Some(0.001));
}

#[test]
fn what_sidecars_have_measured_for_hours_gives_way_to_what_calls_take_now_the_older_the_more() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    let mut at = |calls: u64, seconds: f64, now| {
        inputs.sidecars = Sidecars {
            settled: calls,
            calls,
            call_seconds: seconds,
            lifetime_calls: 1000 + calls,
            lifetime_seconds: 1000.0 + seconds,
            ..idle(1)
        };
        history.observe(0, &inputs, 60.0, now);
        (
            history.service_measured(now + 2.0).unwrap().seconds,
            history.service_measured(now + 2.0).unwrap().age,
        )
    };
    assert_eq!(at(0, 0.0, 0.0), (1.0, None));
    // One call of the past, and three.
    assert_eq!(at(3, 15.0, 0.0), (4.0, Some(2.0)));
    // Four, which weigh as two by now, and two.
    assert_eq!(at(5, 17.0, 60.0), (2.5, Some(2.0)));
    assert_eq!(at(5, 17.0, 70.0), (2.5, Some(12.0)));
}

#[test]
fn what_a_pod_holds_beside_its_long_calls_does_not_run() {
    let mut history = History::with_service_seconds(60.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 10;
    inputs.sidecars = Sidecars { unsettled: 100, in_flight: 10, ..idle(10) };
    for now in 0..600 {
        history.observe(0, &inputs, 60.0, f64::from(now));
    }
    assert!((9.9..10.1).contains(&history.running()), "{}", history.running());
}

#[test]
fn what_still_waits_counts_as_backlog_and_not_as_arriving_too() {
    let mut history = History::default();
    let inputs = waiting(60);
    history.observe(60, &inputs, 60.0, 0.0);
    assert_eq!(history.rate(), 2.0);
    // Of the 60 of the last half minute as many are due in it as the target says.
    assert_eq!([10.0, 30.0, 60.0].map(|target| history.arrival_rate(60.0, target)), [0.0, 0.0, 1.0]);
}

#[test]
fn a_load_that_pods_were_just_added_for_counts_for_what_it_is_since_unless_it_is_more_by_chance() {
    let lasting = |before: u64, since: u64, added: bool| {
        let mut history = History::default();
        let mut inputs = waiting(0);
        inputs.workload.replicas = 1;
        for now in 0..=100_u64 {
            inputs.sidecars.settled = before * now.min(90) / 10 + since * now.saturating_sub(90) / 10;
            history.observe(0, &inputs, 60.0, now as f64);
        }
        if added {
            history.scaled_out(2, 0.0, None, 95.0);
        }
        let lasting = history.lasting_rate(60.0, 100.0);
        (lasting.rate, lasting.over)
    };
    // Ten messages a second within the last ten seconds, and one before.
    assert_eq!(lasting(10, 100, true), (10.0, 10.0));
    assert_eq!(lasting(10, 100, false), (2.5, 60.0));
    assert_eq!(lasting(1, 3, true), (8.0 / 60.0, 60.0), "three, and not one, come by chance");
}

#[test]
fn pods_that_proved_too_few_are_not_tried_again_for_ten_minutes_less_what_went_well() {
    let proved = |last_in: Option<f64>, last_out: Option<f64>| {
        let mut history = History::default();
        history.observe(0, &waiting(0), 60.0, 0.0);
        if let Some(at) = last_in {
            history.scaled_in(at);
        }
        if let Some(at) = last_out {
            history.scaled_out(2, 0.0, None, at);
        }
        history.scaled_out(4, 0.0, Some(TooMuch { calls: 1.0, pods: 9, at_once: 1.0 }), 500.0);
        (501..2000).map(f64::from).rfind(|now| history.too_few(1.0, 1.0, 0.0, *now) == Some(3))
    };
    assert_eq!(proved(None, None), Some(599.0), "it was watched for 500 seconds");
    assert_eq!((proved(Some(400.0), None), proved(None, Some(300.0))), (Some(999.0), Some(899.0)));
    assert_eq!(proved(Some(300.0), Some(400.0)), Some(999.0));
}

#[test]
fn pods_are_too_few_for_a_load_that_is_no_lower_or_lower_by_chance() {
    let mut history = History::default();
    let mut few = |asked: u32, pods: u32, load: f64, each: f64| {
        history.scaled_out(asked, 0.0, Some(TooMuch { calls: 1.0, pods, at_once: 1.0 }), 0.0);
        assert!(history.grew());
        history.too_few(load, 1.0, each, 1.0)
    };
    assert_eq!((few(10, 3, 0.71, 0.0), few(10, 3, 0.69, 0.0)), (Some(3), None));
    assert_eq!(
        (few(10, 3, 0.6, 0.1), few(10, 3, 0.6, 0.001)),
        (Some(3), None),
        "of few messages fewer come by chance"
    );
    assert_eq!(few(10, 3, 0.49, 1.0), None);
    assert_eq!(few(2, 5, 1.0, 0.0), Some(1), "those that were there");
}

#[test]
fn a_change_that_was_not_made_leaves_the_one_before() {
    for is_out in [true, false] {
        let mut history = History::default();
        history.scaled_out(5, 100.0, None, 1.0);
        history.scaled_in(2.0);
        if is_out {
            history.scaled_out(5, 100.0, None, 3.0);
        } else {
            history.scaled_in(3.0);
        }
        history.not_scaled();
        assert_eq!((history.seconds_since_scale_out(4.0), history.seconds_since_scale_in(4.0)), (3.0, 2.0));
    }
}

#[test]
fn work_that_has_asked_for_more_time_once_keeps_pods_for_as_long_as_it_may_take_since() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    let mut pods = vec![];
    for now in 0..200_u64 {
        let replicas = inputs.workload.replicas;
        inputs.sidecars =
            Sidecars { busy: 12, extensions: u64::from(now >= 100), ..working(replicas.max(12)) };
        inputs.workload.rolling = now < 100;
        (inputs.sidecars.in_flight, inputs.sidecars.unsettled) = (12, 12);
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        (history, inputs.workload.replicas) = (next, decision.replicas);
        pods.push(decision.replicas);
    }
    assert_eq!((pods[101], pods[129]), (12, 12), "{pods:?}");
    assert!(pods[160] < 12, "{pods:?}");
}

#[test]
fn work_that_is_ended_later_keeps_no_pods_while_some_ends_now_and_then() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 20;
    for now in 0..300_u64 {
        let pods = inputs.workload.replicas;
        let calls = now / 20;
        inputs.sidecars = Sidecars {
            busy: 12.min(pods),
            late: 12,
            settled: calls,
            calls,
            call_seconds: calls as f64,
            ..idle(pods)
        };
        (inputs.sidecars.in_flight, inputs.sidecars.unsettled) = (12, 12);
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        (history, inputs.workload.replicas) = (next, decision.replicas);
    }
    assert!(inputs.workload.replicas < 12, "{}", inputs.workload.replicas);
}

#[test]
fn the_first_call_runs_since_it_began_or_since_another_has_ended() {
    let mut history = History::default();
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    let mut runs = |sidecars: Sidecars, now: f64| {
        inputs.sidecars = sidecars;
        history.observe(0, &inputs, 60.0, now);
        history.movement.seconds_of_the_first_call(now)
    };
    assert_eq!((runs(working(1), 0.0), runs(working(1), 10.0)), (0.0, 10.0));
    assert_eq!((runs(idle(1), 20.0), runs(working(1), 100.0), runs(working(1), 101.0)), (0.0, 0.0, 1.0));
    let ended = Sidecars { settled: 1, ..working(1) };
    assert_eq!((runs(ended, 110.0), runs(ended, 115.0)), (0.0, 5.0));
}

#[test]
fn one_pod_whose_application_never_starts_hides_no_stall_of_the_others() {
    let mut history = History::default();
    let mut inputs = waiting(5);
    inputs.workload.replicas = 5;
    inputs.sidecars = Sidecars { able: 4, ..working(5) };
    for now in 0..100 {
        history = decide(history, &inputs, &spec(), f64::from(now)).1;
    }
    assert_eq!(decide(history, &inputs, &spec(), 100.0).0.reason, Reason::Stalled);
}

#[test]
fn what_another_operator_has_found_to_stall_is_forgotten_where_nothing_waits_any_more() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = idle(1);
    let history = History::default().after(Reason::Stalled.as_str(), 0.0);
    let (_, history) = decide(history, &inputs, &spec(), 0.0);
    inputs.ready = Some((1000, 0.0));
    assert_eq!(decide(history, &inputs, &spec(), 1.0).0.reason, Reason::ScaledOut);
}

#[test]
fn a_worker_at_zero_gets_no_pod_for_what_a_pod_that_ends_still_does() {
    let mut inputs = waiting(0);
    inputs.workload.replicas = 1;
    inputs.sidecars = working(1);
    let (_, history) = decide(History::default(), &inputs, &spec(), 0.0);
    inputs.workload.replicas = 0;
    inputs.sidecars = Sidecars { ending: 1, ..idle(0) };
    // The second is that of an operator that has just come.
    for history in [history, History::default()] {
        let (decision, _) = decide(history, &inputs, &spec(), 1.0);
        assert_eq!((decision.replicas, decision.reason), (0, Reason::Idle), "{}", decision.message);
    }
}

#[test]
fn pods_whose_long_calls_run_are_kept_where_none_has_begun_or_ended_for_longer_than_the_window() {
    let patient = Spec { handler_timeout: 600.0, ..spec() };
    let mut history = History::with_service_seconds(300.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 10;
    for now in 0..600 {
        inputs.workload.rolling = now < 300;
        inputs.sidecars = Sidecars { busy: 10, ..working(10) };
        let (decision, next) = decide(history, &inputs, &patient, f64::from(now));
        history = next;
        assert_eq!(decision.replicas, 10, "{}", decision.message);
    }
}

#[test]
fn one_pod_more_than_proved_too_few_is_kept_for_ten_minutes() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 5;
    let mut left = vec![];
    for now in 0..900_u64 {
        let calls = now * 32 / 10;
        inputs.sidecars = Sidecars { settled: calls, calls, call_seconds: calls as f64, ..working(5) };
        inputs.workload.rolling = now < 100;
        if now == 100 {
            history.scaled_out(5, 0.0, Some(TooMuch { calls: 3.2, pods: 4, at_once: 1.0 }), 100.0);
        }
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        left.extend((decision.replicas < 5).then_some((now, decision.replicas)));
    }
    assert_eq!(left[0], (600, 4), "{left:?}");
}

#[test]
fn only_sidecars_that_run_and_were_there_before_are_waited_for() {
    let decided = |before: u32, started: u32| {
        let mut inputs = waiting(1);
        inputs.workload.replicas = before;
        let history = decide(History::default(), &inputs, &spec(), 0.0).1;
        let mut inputs = waiting(1000);
        inputs.workload.replicas = 1;
        inputs.sidecars = Sidecars { scraped: 0, ..idle(started) };
        decide(history, &inputs, &spec(), 1.0).0.reason
    };
    assert_ne!(decided(1, 1), Reason::ScaledOut);
    assert_eq!(decided(0, 1), Reason::ScaledOut, "these came for what waited");
    assert_eq!(decided(1, 0), Reason::ScaledOut, "nobody runs who could say it");
}

#[test]
fn one_message_gets_one_pod_however_short_it_may_wait() {
    let (decision, _) = decide(History::default(), &waiting(1), &Spec { target_wait: 1.0, ..spec() }, 0.0);
    assert_eq!(decision.replicas, 1, "{}", decision.message);
}

#[test]
fn a_load_keeps_as_many_pods_as_it_needs_however_short_or_long_messages_may_wait() {
    for target_wait in [1.0, 3600.0] {
        let mut world = World { replicas: 30, ..World::new(Spec { target_wait, ..spec() }, 0.5) };
        for _ in 0..1200 {
            world.second(20.0);
        }
        assert!((9..=14).contains(&world.replicas), "{target_wait}: {:?}", world.decision);
    }
}

#[test]
fn pods_that_are_on_their_way_are_asked_for_once() {
    let spec = Spec { max: 1000, ..spec() };
    let mut history = History::with_service_seconds(0.5);
    let mut inputs = waiting(400);
    let mut pods = vec![];
    for now in 0..100 {
        let (decision, next) = decide(history, &inputs, &spec, f64::from(now));
        (history, inputs.workload.replicas) = (next, decision.replicas);
        pods.push(decision.replicas);
    }
    assert!(pods[0] > 20 && pods.iter().all(|more| *more == pods[0]), "{pods:?}");
}

#[test]
fn how_long_a_start_takes_is_learned_from_most_of_the_pods_that_were_asked_for() {
    // So many pods, and of these so many that take calls, each from its second on; gives what is known in the end.
    let learned = |steps: &[(f64, u32, u32)], failing: bool| {
        let mut history = History::default();
        for (now, replicas, able) in steps {
            let mut inputs = waiting(0);
            inputs.workload = Workload { replicas: *replicas, failing, ..Workload::default() };
            inputs.sidecars = Sidecars { able: *able, ..idle(*able) };
            history.observe(0, &inputs, 60.0, *now);
        }
        history.startup.seconds()
    };
    assert_eq!(
        learned(&[(0.0, 10, 10), (1.0, 12, 10), (3.0, 12, 11), (8.0, 12, 12)], false),
        Some(7.0),
        "two came"
    );
    assert_eq!(
        learned(&[(0.0, 0, 0), (1.0, 10, 0), (3.0, 10, 1), (21.0, 10, 9)], false),
        Some(20.0),
        "one was quick"
    );
    assert_eq!(learned(&[(0.0, 0, 0), (1.0, 10, 0), (600.0, 10, 9)], false), Some(120.0));
    assert_eq!(
        learned(&[(0.0, 0, 0), (1.0, 10, 2), (50.0, 5, 2), (90.0, 5, 5)], false),
        None,
        "others have gone"
    );
    assert_eq!(learned(&[(0.0, 0, 0), (1.0, 10, 0), (50.0, 10, 10)], true), None, "they crash");
}

#[test]
fn pods_that_have_not_started_for_two_minutes_are_not_expected_any_more() {
    let mut history = History::default();
    history.observe(0, &waiting(0), 60.0, 0.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 10;
    history.observe(0, &inputs, 60.0, 1.0);
    assert_eq!(
        [11.0, 121.0, 122.0].map(|now| history.startup.on_their_way(now)),
        [Some(10.0), Some(120.0), None]
    );
}

#[test]
fn a_load_that_needs_as_many_pods_as_a_schedule_asks_for_is_steady() {
    let mut inputs = Inputs { floor: Some(by_schedule(5)), ..waiting(0) };
    inputs.workload.replicas = 5;
    let mut history = History::with_service_seconds(1.0);
    for now in 0..200_u64 {
        let calls = now * 4;
        inputs.sidecars = Sidecars { settled: calls, calls, call_seconds: calls as f64, ..working(5) };
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        let expected = (5, 5, Reason::Steady);
        assert!(now < 100 || (decision.replicas, decision.raw, decision.reason) == expected, "{decision:?}");
    }
}

#[test]
fn what_waits_is_believed_also_where_the_broker_counts_no_consumer() {
    let mut history = History::with_service_seconds(0.1);
    let mut inputs = Inputs { contradicted: true, ..waiting(1) };
    inputs.workload.replicas = 6;
    let mut reasons = vec![];
    for now in 0..100 {
        inputs.sidecars = Sidecars { settled: now, ..working(6) };
        let (decision, next) = decide(history, &inputs, &spec(), now as f64);
        history = next;
        reasons.push(decision.reason);
    }
    assert!(
        reasons.contains(&Reason::ScaledIn) && !reasons.contains(&Reason::ZeroUnconfirmed),
        "{reasons:?}"
    );
}

#[test]
fn work_that_may_still_ask_for_more_time_keeps_its_pods_where_the_last_has_ended_long_ago() {
    let mut history = History::with_service_seconds(1.0);
    let mut inputs = waiting(0);
    inputs.workload.replicas = 12;
    for now in 0..300_u64 {
        let pods = inputs.workload.replicas;
        let calls = u64::from(now >= 10);
        inputs.workload.rolling = now < 100;
        inputs.sidecars = Sidecars { busy: pods, late: pods.into(), settled: calls, ..working(pods) };
        let (decision, next) =
            decide(history, &inputs, &Spec { handler_timeout: 600.0, ..spec() }, now as f64);
        (history, inputs.workload.replicas) = (next, decision.replicas);
    }
    assert_eq!(inputs.workload.replicas, 12);
}

#[test]
fn pods_that_are_let_go_while_others_start_are_no_longer_expected() {
    let mut history = History::default();
    let mut expected = |replicas: u32, able: u32, now: f64| {
        let mut inputs = waiting(0);
        inputs.workload.replicas = replicas;
        inputs.sidecars = Sidecars { able, ..idle(able) };
        history.observe(0, &inputs, 60.0, now);
        history.startup.on_their_way(now)
    };
    assert_eq!(
        (expected(0, 0, 0.0), expected(10, 0, 1.0), expected(10, 0, 5.0)),
        (None, Some(0.0), Some(4.0))
    );
    assert_eq!((expected(6, 0, 6.0), expected(6, 0, 7.0)), (None, None));
    // Those that are asked for next are.
    assert_eq!((expected(8, 0, 8.0), expected(8, 0, 9.0)), (Some(0.0), Some(1.0)));
}

#[test]
fn an_operator_that_takes_over_keeps_the_pods_whose_long_calls_run() {
    for unseen in [0, 1, 30] {
        let mut history = History::default();
        let mut inputs = waiting(0);
        inputs.workload.replicas = 10;
        for now in 0..200 {
            inputs.sidecars =
                Sidecars { busy: 10, lifetime_calls: 100, lifetime_seconds: 30_000.0, ..working(10) };
            if now < unseen {
                inputs.sidecars = Sidecars { scraped: 0, ..idle(10) };
            }
            let patient = Spec { handler_timeout: 600.0, ..spec() };
            let (decision, next) = decide(history, &inputs, &patient, f64::from(now));
            (history, inputs.workload.replicas) = (next, decision.replicas);
            assert_eq!(decision.replicas, 10, "{unseen} {now} {}", decision.message);
        }
    }
}
