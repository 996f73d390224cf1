//! A queue, its consumers and the cluster that starts and ends them, in virtual time. Pure: the same inputs give the same run.
//!
//! Messages wait in one queue, oldest first. The broker hands them to consumers with room in their prefetch, in turn. A pod
//! consumes `startup_seconds` after it was asked for. A pod that is let go takes no more, goes on beginning calls for
//! `drain_starts_seconds`, hands back what it has not begun by then, ends what runs, and is gone.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use warren_operator::scaler::inputs::Spec;

use super::setting::{Pods, Setting};
use super::trace::Trace;

/// Seconds after the trace, and a call that begins at its end, within which everything must be done and let go; what is not done
/// then is unfinished.
const LONGEST_TAIL: f64 = 4.0 * 3600.0;
/// Seconds between two points of the recorded series.
pub const SAMPLE_SECONDS: f64 = 1.0;

/// What a scaler can see.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Messages ready for delivery.
    pub ready: u64,
    /// Pods asked for.
    pub replicas: u32,
    /// Pods that have started and stay.
    pub started: u32,
    /// Messages delivered to those and not acknowledged.
    pub unsettled: u64,
    /// Handler calls that run in those.
    pub in_flight: u64,
    /// Of these, how many outlast the handler's time-out.
    pub late: u64,
    /// Of those pods, how many have a call that runs.
    pub busy: u32,
    /// Messages that pods hold which were let go: they are done there, or come back.
    pub ending: u64,
    /// Deliveries so far.
    pub deliveries: u64,
    /// Acknowledged so far, which is also handler calls ended so far.
    pub settled: u64,
    /// Seconds of the ended handler calls.
    pub call_seconds: f64,
}

/// What a scaler does after a look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Pods to ask for.
    pub replicas: u32,
    /// Seconds until it looks again; positive.
    pub again_in: f64,
}

/// Decides the number of pods.
pub trait Autoscaler {
    /// Looks at the world at `now`.
    fn look(&mut self, seen: &Seen, now: f64) -> Look;
    /// Whether the pods with the least work are let go first, rather than the youngest.
    fn spares_the_busy(&self) -> bool;
}

/// One point of the series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Seconds since the beginning.
    pub at: f64,
    /// Messages that wait: ready, or delivered and not begun.
    pub waiting: u64,
    /// Pods that exist: starting, consuming and ending.
    pub pods: u64,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Of each message, in the order of their beginning: seconds of its arrival, and of the beginning of its handler call.
    pub begun: Vec<(f64, f64)>,
    /// Arrival of each message whose handler call never began.
    pub never_begun: Vec<f64>,
    /// Messages not done at the end.
    pub unfinished: u64,
    /// Sum over all pods of the seconds that they existed.
    pub replica_seconds: f64,
    /// Most pods asked for.
    pub peak_replicas: u32,
    /// How often the number of pods asked for changed.
    pub changes: u32,
    /// When everything was done and let go.
    pub ended_at: f64,
    /// The series, a point a second and one at the end.
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Started(u64),
    Ended {
        pod: u64,
        service_index: usize,
    },
    /// A pod that was let go begins no more calls.
    GiveBack(u64),
    Sample,
    Look,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: f64,
    order: u64,
    kind: Kind,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}

#[derive(Clone, Debug, Default)]
struct Pod {
    started: bool,
    ending: bool,
    running: u32,
    /// Arrivals of messages delivered to it that it has not begun.
    held: VecDeque<f64>,
}

impl Pod {
    /// Messages delivered to it and not acknowledged.
    fn unsettled(&self) -> u64 {
        u64::from(self.running) + self.held.len() as u64
    }
}

struct World<'a> {
    spec: &'a Spec,
    pods_are: &'a Pods,
    trace: &'a Trace,
    now: f64,
    events: BinaryHeap<Reverse<Event>>,
    order: u64,
    /// Arrivals of the ready messages; what was handed back is at the front.
    ready: VecDeque<f64>,
    pods: BTreeMap<u64, Pod>,
    next_pod: u64,
    /// Consumers with room in their prefetch, in turn: each once.
    turns: VecDeque<u64>,
    interval: usize,
    replicas: u32,
    late: u64,
    deliveries: u64,
    settled: u64,
    call_seconds: f64,
    run: Run,
}

/// Runs a trace through, until all is done and the pods are let go.
pub fn simulate(trace: &Trace, setting: &Setting, scaler: &mut dyn Autoscaler) -> Run {
    let mut world = World::new(trace, setting);
    let deadline = trace.end() + trace.longest_service(setting.pods.service_seconds) + LONGEST_TAIL;
    let mut arrivals = trace.times().peekable();
    loop {
        let next = world.events.peek().map_or(f64::INFINITY, |event| event.0.at);
        if let Some(arrival) = arrivals.next_if(|arrival| *arrival <= next) {
            world.pass_to(arrival);
            world.ready.push_back(arrival);
            world.dispatch();
            continue;
        }
        let Some(Reverse(event)) = world.events.pop() else { break };
        if event.at > deadline {
            break;
        }
        world.pass_to(event.at);
        world.happens(event.kind, scaler);
        let over = event.at >= trace.end() && arrivals.peek().is_none();
        if over && world.at_rest() {
            break;
        }
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace, setting: &'a Setting) -> Self {
        let least = setting.spec.min;
        let mut world = Self {
            spec: &setting.spec,
            pods_are: &setting.pods,
            trace,
            now: 0.0,
            events: BinaryHeap::new(),
            order: 0,
            ready: VecDeque::new(),
            pods: BTreeMap::new(),
            next_pod: 0,
            turns: VecDeque::new(),
            interval: 0,
            replicas: least,
            late: 0,
            deliveries: 0,
            settled: 0,
            call_seconds: 0.0,
            run: Run { peak_replicas: least, ..Run::default() },
        };
        for _ in 0..least {
            let pod = world.add_pod();
            world.start(pod);
        }
        world.plan(0.0, Kind::Sample);
        world.plan(0.0, Kind::Look);
        world
    }

    fn plan(&mut self, after: f64, kind: Kind) {
        self.order += 1;
        self.events.push(Reverse(Event { at: self.now + after, order: self.order, kind }));
    }

    fn pass_to(&mut self, at: f64) {
        self.run.replica_seconds += self.pods.len() as f64 * (at - self.now).max(0.0);
        self.now = self.now.max(at);
        let intervals = self.trace.intervals();
        while intervals.get(self.interval + 1).is_some_and(|next| next.start <= self.now) {
            self.interval += 1;
        }
    }

    fn at_rest(&self) -> bool {
        let few = self.replicas == self.spec.min && self.pods.len() == self.spec.min as usize;
        few && self.ready.is_empty() && self.pods.values().all(|pod| pod.unsettled() == 0)
    }

    /// Messages that wait in pods.
    fn held(&self) -> u64 {
        self.pods.values().map(|pod| pod.held.len() as u64).sum()
    }

    fn happens(&mut self, kind: Kind, scaler: &mut dyn Autoscaler) {
        match kind {
            Kind::Started(pod) => self.start(pod),
            Kind::Ended { pod, service_index } => self.end_call(pod, service_index),
            Kind::GiveBack(pod) => {
                self.give_back(pod);
                self.dispatch();
            }
            Kind::Sample => {
                self.sample();
                self.plan(SAMPLE_SECONDS, Kind::Sample);
            }
            Kind::Look => {
                let look = scaler.look(&self.seen(), self.now);
                self.scale(look.replicas, scaler.spares_the_busy());
                self.plan(look.again_in.max(0.01), Kind::Look);
            }
        }
    }

    fn sample(&mut self) {
        let waiting = self.ready.len() as u64 + self.held();
        self.run.points.push(Point { at: self.now, waiting, pods: self.pods.len() as u64 });
    }

    fn seen(&self) -> Seen {
        let staying = || self.pods.values().filter(|pod| pod.started && !pod.ending);
        let in_flight = staying().map(|pod| u64::from(pod.running)).sum();
        Seen {
            ready: self.ready.len() as u64,
            replicas: self.replicas,
            started: staying().count() as u32,
            unsettled: staying().map(Pod::unsettled).sum(),
            in_flight,
            late: self.late.min(in_flight),
            busy: staying().filter(|pod| pod.running > 0).count() as u32,
            ending: self.pods.values().filter(|pod| pod.ending).map(Pod::unsettled).sum(),
            deliveries: self.deliveries,
            settled: self.settled,
            call_seconds: self.call_seconds,
        }
    }

    fn add_pod(&mut self) -> u64 {
        self.next_pod += 1;
        self.pods.insert(self.next_pod, Pod::default());
        self.next_pod
    }

    /// A pod begins to consume; one that was let go meanwhile is not there any more.
    fn start(&mut self, id: u64) {
        let Some(pod) = self.pods.get_mut(&id) else { return };
        pod.started = true;
        self.turns.push_back(id);
        self.dispatch();
    }

    fn dispatch(&mut self) {
        while !self.ready.is_empty() {
            let Some(id) = self.turns.pop_front() else { return };
            let Some(pod) = self.pods.get_mut(&id).filter(|pod| !pod.ending) else { continue };
            let Some(arrival) = self.ready.pop_front() else { return };
            pod.held.push_back(arrival);
            if pod.unsettled() < u64::from(self.pods_are.prefetch) {
                self.turns.push_back(id);
            }
            self.deliveries += 1;
            self.begin_calls(id);
        }
    }

    fn service_of(&self, interval: usize) -> f64 {
        let otherwise = self.pods_are.service_seconds;
        self.trace.intervals().get(interval).map_or(otherwise, |interval| interval.service_or(otherwise))
    }

    /// Whether a call that began in an interval outlasts the handler's time-out.
    fn is_late(&self, interval: usize) -> bool {
        self.service_of(interval) > self.spec.handler_timeout
    }

    fn begin_calls(&mut self, id: u64) {
        while let Some(pod) = self.pods.get_mut(&id) {
            if pod.running >= self.spec.concurrency {
                return;
            }
            let Some(arrival) = pod.held.pop_front() else { return };
            pod.running += 1;
            self.late += u64::from(self.is_late(self.interval));
            self.run.begun.push((arrival, self.now));
            self.plan(self.service_of(self.interval), Kind::Ended { pod: id, service_index: self.interval });
        }
    }

    fn end_call(&mut self, id: u64, service_index: usize) {
        let Some(pod) = self.pods.get_mut(&id) else { return };
        let full = pod.unsettled() >= u64::from(self.pods_are.prefetch);
        pod.running -= 1;
        let ending = pod.ending;
        self.late -= u64::from(self.is_late(service_index));
        self.settled += 1;
        self.call_seconds += self.service_of(service_index);
        self.begin_calls(id);
        if ending {
            self.leave(id);
        } else {
            if full {
                self.turns.push_back(id);
            }
            self.dispatch();
        }
    }

    fn scale(&mut self, wanted: u32, spare_the_busy: bool) {
        if wanted == self.replicas {
            return;
        }
        self.run.changes += 1;
        self.run.peak_replicas = self.run.peak_replicas.max(wanted);
        for _ in self.replicas..wanted {
            let pod = self.add_pod();
            self.plan(self.pods_are.startup_seconds, Kind::Started(pod));
        }
        if wanted < self.replicas {
            let living = self.pods.iter().filter(|(_, pod)| !pod.ending);
            // The ReplicaSet's own order: first those that have not started; then the cheapest; then the youngest.
            let mut order: Vec<_> = living
                .map(|(id, pod)| {
                    let cost = if spare_the_busy { pod.unsettled() } else { 0 };
                    (pod.started, cost, Reverse(*id))
                })
                .collect();
            order.sort_unstable();
            for (_, _, Reverse(id)) in order.into_iter().take((self.replicas - wanted) as usize) {
                self.let_go(id);
            }
            self.dispatch();
        }
        self.replicas = wanted;
    }

    fn let_go(&mut self, id: u64) {
        let Some(pod) = self.pods.get_mut(&id) else { return };
        pod.ending = true;
        if pod.held.is_empty() || self.pods_are.drain_starts_seconds <= 0.0 {
            self.give_back(id);
        } else {
            self.plan(self.pods_are.drain_starts_seconds, Kind::GiveBack(id));
        }
    }

    /// What a pod that was let go has not begun is ready again.
    fn give_back(&mut self, id: u64) {
        let Some(pod) = self.pods.get_mut(&id) else { return };
        for arrival in std::mem::take(&mut pod.held).into_iter().rev() {
            self.ready.push_front(arrival);
        }
        self.leave(id);
    }

    /// A pod that was let go ends when nothing is left in it.
    fn leave(&mut self, id: u64) {
        if self.pods.get(&id).is_some_and(|pod| pod.unsettled() == 0) {
            self.pods.remove(&id);
        }
    }

    fn finish(mut self) -> Run {
        self.sample();
        self.run.unfinished = self.ready.len() as u64 + self.pods.values().map(Pod::unsettled).sum::<u64>();
        self.run.never_begun = self.ready.into();
        self.run.never_begun.extend(self.pods.into_values().flat_map(|pod| pod.held));
        self.run.ended_at = self.now;
        self.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::book::WORKER;
    use crate::simulate::manifest::Wanted;

    /// Asks for what a table says from a time on.
    struct Planned(Vec<(f64, u32)>);

    impl Autoscaler for Planned {
        fn look(&mut self, _: &Seen, now: f64) -> Look {
            let said =
                self.0.iter().rev().find(|(from, _)| *from <= now).map_or(0, |(_, replicas)| *replicas);
            Look { replicas: said, again_in: 1.0 }
        }

        fn spares_the_busy(&self) -> bool {
            true
        }
    }

    /// Pods that take 5 s to start and end `concurrency` messages at once, in `service_seconds`.
    fn setting(prefetch: u32, concurrency: u32, service_seconds: f64) -> Setting {
        let mut setting = Setting::parse(WORKER, Wanted::default(), service_seconds, 5.0).unwrap();
        (setting.pods.prefetch, setting.spec.concurrency) = (prefetch, concurrency);
        setting
    }

    fn run(trace: &str, setting: &Setting, plan: &[(f64, u32)]) -> Run {
        simulate(&Trace::parse(trace).unwrap(), setting, &mut Planned(plan.to_vec()))
    }

    #[test]
    fn a_message_waits_for_its_pod_to_start_and_for_those_before_it() {
        let run = run("0,2\n1,0", &setting(1, 1, 2.0), &[(0.0, 1), (20.0, 0)]);
        assert_eq!(run.begun, [(0.0, 5.0), (0.5, 7.0)]);
        assert_eq!((run.replica_seconds, run.changes, run.peak_replicas, run.unfinished), (20.0, 2, 1, 0));
    }

    #[test]
    fn a_pod_that_is_let_go_begins_what_it_holds_for_its_drains_time_and_hands_back_the_rest() {
        let mut four = setting(4, 1, 10.0);
        four.pods.drain_starts_seconds = 20.0;
        let run = run("0,4\n1,0", &four, &[(0.0, 1), (6.0, 0), (30.0, 1), (60.0, 0)]);
        // It begins calls until 26; what it hands back then waits for the next pod.
        assert_eq!(run.begun, [(0.0, 5.0), (0.25, 15.0), (0.5, 25.0), (0.75, 35.0)]);
        // They were there from 0 to 35 and from 30 to 60.
        assert_eq!((run.replica_seconds, run.unfinished), (35.0 + 30.0, 0));
    }

    #[test]
    fn a_pod_that_keeps_an_order_hands_back_at_once_what_it_has_not_begun() {
        let mut two = setting(2, 1, 10.0);
        two.pods.drain_starts_seconds = 0.0;
        let run = run("0,2\n1,0", &two, &[(0.0, 1), (6.0, 0), (30.0, 1), (60.0, 0)]);
        assert_eq!(run.begun, [(0.0, 5.0), (0.5, 35.0)]);
        // It ran from 0 to 15 and from 30 to 60.
        assert_eq!((run.replica_seconds, run.unfinished), (45.0, 0));
    }

    #[test]
    fn what_a_pod_holds_that_was_let_go_is_told_apart() {
        struct Sees(Vec<(u64, u64)>);
        impl Autoscaler for Sees {
            fn look(&mut self, seen: &Seen, now: f64) -> Look {
                self.0.push((seen.unsettled, seen.ending));
                Look { replicas: u32::from(now < 6.0), again_in: 6.0 }
            }

            fn spares_the_busy(&self) -> bool {
                true
            }
        }
        let mut sees = Sees(vec![]);
        simulate(&Trace::parse("0,3\n1,0").unwrap(), &setting(3, 1, 6.0), &mut sees);
        assert_eq!(sees.0, [(0, 0), (3, 0), (0, 2), (0, 1)]);
    }

    #[test]
    fn pods_that_have_not_started_go_first_and_then_the_idle() {
        let plan = [(0.0, 1), (10.0, 3), (12.0, 2), (20.0, 1), (200.0, 0)];
        let run = run("0,1\n1,0", &setting(1, 1, 100.0), &plan);
        assert_eq!(run.begun, [(0.0, 5.0)]);
        assert_eq!(run.replica_seconds, 200.0 + 10.0 + 2.0);
    }

    #[test]
    fn what_nobody_handles_is_unfinished() {
        let run = run("0,3\n1,0", &setting(1, 1, 2.0), &[]);
        assert_eq!((run.unfinished, run.never_begun.len()), (3, 3));
    }

    #[test]
    fn two_calls_at_once_run_side_by_side() {
        let run = run("0,4\n1,0", &setting(2, 2, 2.0), &[(0.0, 1), (20.0, 0)]);
        assert_eq!(run.begun.iter().map(|(_, begun)| *begun).collect::<Vec<_>>(), [5.0, 5.0, 7.0, 7.0]);
    }

    #[test]
    fn messages_are_dealt_in_turn_to_the_pods_that_have_room() {
        let mut ten = setting(10, 1, 2.0);
        ten.spec.min = 2;
        let run = run("0,0\n1,10\n1.001,0", &ten, &[(0.0, 2)]);
        // Five each, two seconds each: the last ones begin after eight.
        let last: Vec<f64> = run.begun.iter().rev().take(2).map(|(_, begun)| begun.round()).collect();
        assert_eq!(last, [9.0, 9.0]);
    }

    #[test]
    fn the_handlers_speed_follows_the_trace() {
        let run = run("0,1,1\n10,1,4\n20,0", &setting(1, 1, 2.0), &[(0.0, 1), (30.0, 0)]);
        assert_eq!(run.begun, [(0.0, 5.0), (10.0, 10.0)]);
    }
}
