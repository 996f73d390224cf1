//! The engine as a whole: a model of broker, handler and publisher that performs effects, scenarios in plain words, and
//! random interleavings.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::event::{LateReply, Seen};
use super::*;

mod copies;
mod corners;
mod order;
mod outage;
mod unreadable;

fn settings() -> Settings {
    Settings {
        prefetch: 1,
        auto_prefetch: false,
        ordered: false,
        concurrency: 1,
        paused: false,
        ladder: Ladder { delays_seconds: vec![5, 60, 600], max_attempts: 5 },
        batch: None,
        late_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(60),
        grace_period: Duration::from_secs(75),
        consumer_timeout: Duration::from_secs(1800),
    }
}

fn retry(status: u16) -> Verdict {
    Verdict::Retry(Failure { status: Some(status), ..Failure::default() })
}

/// A message on the modelled broker.
#[derive(Clone, Debug)]
struct Message {
    number: u64,
    attempts: u32,
    key: Option<u64>,
}

/// Performs effects on a modelled broker, and checks each one.
struct World {
    engine: Engine,
    now: Time,
    generation: u64,
    connected: bool,
    /// Whether a channel was handed back and the next one is on its way.
    reopens: bool,
    consuming: Option<u16>,
    next_tag: u64,
    queue: std::collections::VecDeque<Message>,
    unacked: BTreeMap<u64, Message>,
    /// How many at the queue's front have come back, and not been delivered again.
    came_back: usize,
    /// Whether the broker counts what is given back.
    counts: bool,
    /// Messages that the broker has delivered before.
    returned: BTreeSet<u64>,
    delivered_to_consumer: BTreeSet<u64>,
    calls: HashMap<CallId, Vec<Called>>,
    at_handler: HashMap<DeliveryId, CallId>,
    late: Vec<DeliveryId>,
    /// Until when the application goes on with what it answered with `later`, as far as it has said.
    goes_on: HashMap<DeliveryId, Time>,
    /// The ordering key of each delivery.
    keys: HashMap<DeliveryId, u64>,
    /// Deliveries that the application ended before its answer `later` was read.
    early: HashSet<DeliveryId>,
    finished: HashSet<DeliveryId>,
    publishes: Vec<(DeliveryId, Copy)>,
    /// Deliveries whose last copy failed.
    unpublished: HashSet<DeliveryId>,
    /// What the broker says of copies, if anything.
    copies: Option<PublishResult>,
    pending: Vec<Event>,
    probe_at: Option<Time>,
    port_open: bool,
    /// Whether a port that is not open answers nothing, rather than that nobody is there.
    port_silent: bool,
    /// Whether messages have no id.
    anonymous: bool,
    handled: Vec<u64>,
    dead: Vec<(u64, DeadReason)>,
    retried: Vec<(u64, Option<u32>, u32)>,
    observed: Vec<Observation>,
    /// When consumers started, and with which window.
    subscribed: Vec<(Time, u16)>,
    /// When calls began.
    began: HashMap<CallId, Time>,
    /// Deliveries whose work is done and whose reply is not with the broker.
    replying: HashSet<DeliveryId>,
    drained: Vec<bool>,
    exits: usize,
    late_replies: Vec<LateReply>,
    acks: Vec<(u64, bool, u32)>,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            now: Time::ZERO,
            generation: 0,
            connected: false,
            reopens: false,
            consuming: None,
            next_tag: 1,
            queue: Default::default(),
            came_back: 0,
            counts: false,
            unacked: Default::default(),
            returned: Default::default(),
            delivered_to_consumer: Default::default(),
            calls: Default::default(),
            at_handler: Default::default(),
            late: vec![],
            goes_on: Default::default(),
            keys: Default::default(),
            early: Default::default(),
            finished: Default::default(),
            publishes: vec![],
            unpublished: Default::default(),
            copies: Some(PublishResult::Confirmed),
            pending: vec![],
            probe_at: None,
            port_open: true,
            port_silent: false,
            anonymous: false,
            handled: vec![],
            dead: vec![],
            retried: vec![],
            observed: vec![],
            subscribed: vec![],
            began: Default::default(),
            replying: Default::default(),
            drained: vec![],
            exits: 0,
            late_replies: vec![],
            acks: vec![],
            engine: Engine::new(settings, 7),
        }
    }

    /// A connected world whose handler accepts, with messages waiting.
    fn running(settings: Settings, messages: u64) -> Self {
        let mut world = Self::new(settings);
        for number in 0..messages {
            world.queue.push_back(Message { number, attempts: 0, key: None });
        }
        world.connect();
        world.settle();
        world
    }

    fn step(&mut self, event: Event) {
        let until = self.now + self.engine.settings.late_timeout;
        match &event {
            Event::LateAnswer { id, .. } => drop(self.goes_on.remove(id)),
            Event::Extended { id } => {
                if let Some(end) = self.goes_on.get_mut(id).filter(|end| self.now < **end) {
                    *end = until;
                }
            }
            _ => {}
        }
        let mut effects = Vec::new();
        self.engine.step(event, self.now, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.generation += 1;
            self.next_tag = 1;
            self.step(Event::Opened { generation: self.generation });
        }
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.connection_ends();
            self.step(Event::Lost { generation: self.generation });
        }
    }

    fn connection_ends(&mut self) {
        self.connected = false;
        self.consuming = None;
        self.delivered_to_consumer.clear();
        // A quorum queue puts it behind what has come back before, and is there still.
        for (_, message) in std::mem::take(&mut self.unacked) {
            self.returned.insert(message.number);
            self.queue.insert(self.came_back, message);
            self.came_back += 1;
        }
        self.pending.retain(|event| !matches!(event, Event::Subscribed { .. } | Event::Unsubscribed { .. }));
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Subscribe { generation, prefetch } => {
                assert!(
                    self.connected && generation == self.generation,
                    "subscribed on a channel that is gone"
                );
                assert_eq!(self.consuming, None, "two consumers at once");
                let at_work = |tag: &&u64| {
                    let id = DeliveryId { generation, tag: **tag };
                    let publishing = self.publishes.iter().any(|(of, _)| *of == id);
                    publishing || self.at_handler.contains_key(&id) || self.late.contains(&id)
                };
                // What is at work takes no place from what an open breaker is probed with.
                let held = match self.engine.snapshot().breaker {
                    Some(_) => self.unacked.keys().filter(|tag| !at_work(tag)).count(),
                    // Copies that an outage has left came on top of the window.
                    None => {
                        let open = self.engine.window.open_slots();
                        let left = open.filter(|slot| slot.has_copy() && slot.is_stuck(self.now));
                        self.unacked.len() - left.count()
                    }
                };
                assert!(held < usize::from(prefetch), "more than twice the window could be held");
                self.subscribed.push((self.now, prefetch));
                self.consuming = Some(prefetch);
                self.delivered_to_consumer.clear();
                self.pending.push(Event::Subscribed { generation });
            }
            Effect::Unsubscribe { generation } => {
                assert!(!self.engine.keeps_order(), "cancelled a consumer that keeps an order");
                assert!(
                    self.connected && generation == self.generation,
                    "cancelled on a channel that is gone"
                );
                self.consuming = None;
                self.pending.push(Event::Unsubscribed { generation });
            }
            Effect::Call { call, deliveries } => {
                for called in &deliveries {
                    assert!(self.is_held(called.id), "called for a delivery that is not held");
                    assert!(!self.finished.contains(&called.id), "called again after its end");
                    assert!(self.at_handler.insert(called.id, call).is_none(), "called twice at once");
                    assert!(!self.busy_elsewhere(called.id), "two of one key at once");
                }
                self.calls.insert(call, deliveries);
                self.began.insert(call, self.now);
            }
            Effect::Ack { id, multiple, count } => {
                assert!(
                    self.connected && id.generation == self.generation,
                    "an ack for a channel that is gone"
                );
                let tags: Vec<u64> = if multiple {
                    self.unacked.range(..=id.tag).map(|(tag, _)| *tag).collect()
                } else {
                    vec![id.tag]
                };
                assert_eq!(tags.len(), count as usize, "the count is of what it settles");
                for tag in tags {
                    let id = DeliveryId { generation: id.generation, tag };
                    assert!(self.unacked.remove(&tag).is_some(), "settled twice");
                    assert!(self.finished.contains(&id), "acknowledged before its end");
                    self.delivered_to_consumer.remove(&tag);
                }
                self.acks.push((id.tag, multiple, count));
            }
            Effect::Nack { id } => {
                assert!(
                    self.connected && id.generation == self.generation,
                    "a nack for a channel that is gone"
                );
                assert!(!self.finished.contains(&id), "given back after its end");
                assert!(!self.replying.contains(&id), "given back after its work");
                assert!(!self.at_handler.contains_key(&id), "given back while the handler works on it");
                let message = self.unacked.remove(&id.tag).expect("settled twice");
                let ordered = self.engine.settings.ordered && message.key.is_some();
                assert!(!ordered, "given back alone, before or after others of its key");
                self.delivered_to_consumer.remove(&id.tag);
                self.returned.insert(message.number);
                // What comes back is delivered first, in the order in which it came back.
                self.queue.insert(self.came_back, message);
                self.came_back += 1;
            }
            Effect::HandBack { generation } => {
                assert!(self.connected && generation == self.generation, "closed a channel that is gone");
                self.assert_all_acked();
                let at_work =
                    |id: &DeliveryId| id.generation == generation && self.unacked.contains_key(&id.tag);
                assert!(!self.at_handler.keys().any(at_work), "given back while the handler works on it");
                assert!(!self.replying.iter().any(at_work), "given back after its work");
                self.connection_ends();
                self.reopens = true;
            }
            Effect::Publish { id, copy, again } => {
                assert_eq!(again, self.unpublished.remove(&id), "what failed is tried again by itself");
                self.publishes.push((id, copy));
            }
            Effect::Forget { .. } | Effect::ForgetAll { .. } => {}
            Effect::ProbeHandler { after } => {
                assert_eq!(self.probe_at, None, "one try of the port at a time");
                self.probe_at = Some(self.now + after);
            }
            Effect::Drained { complete } => {
                self.assert_all_acked();
                self.drained.push(complete);
            }
            Effect::Exit => {
                self.assert_all_acked();
                self.exits += 1;
            }
            Effect::Late(reply) => self.late_replies.push(reply),
            Effect::Observe(observation) => {
                if let Observation::ReplyDropped { id, .. } = observation {
                    assert!(self.replying.remove(&id), "gave up a reply that nobody made");
                    self.finished.insert(id);
                    self.handled.push(self.unacked[&id.tag].number);
                }
                self.observed.push(observation);
            }
        }
    }

    fn is_held(&self, id: DeliveryId) -> bool {
        self.connected && id.generation == self.generation && self.unacked.contains_key(&id.tag)
    }

    /// The process may end now: the broker would have work done again that is done.
    fn assert_all_acked(&self) {
        let generation = self.generation;
        let mut held = self.unacked.keys().map(|tag| DeliveryId { generation, tag: *tag });
        assert!(!held.any(|id| self.finished.contains(&id)), "ends with an ack unsent");
    }

    /// Forty messages of as many keys, with an application that fails until the breaker opens.
    fn failing_by_key(settings: Settings) -> Self {
        let mut world = Self::new(settings);
        for number in 0..40 {
            world.queue.push_back(Message { number, attempts: 0, key: Some(number) });
        }
        world.connect();
        world.settle();
        while world.engine.snapshot().breaker.is_none() {
            world.answer_all(retry(500));
            world.settle();
            world.pass(Duration::from_secs(2));
        }
        world
    }

    /// The process has ended, and another one takes its place.
    fn restart(&mut self, settings: Settings) {
        self.disconnect();
        self.engine = Engine::new(settings, 8);
        self.calls.clear();
        self.at_handler.clear();
        self.late.clear();
        self.goes_on.clear();
        self.early.clear();
        self.replying.clear();
        self.publishes.clear();
        self.unpublished.clear();
        self.pending.clear();
        self.probe_at = None;
    }

    /// Whether the application works on another message of its key, whatever became of its channel.
    fn busy_elsewhere(&self, id: DeliveryId) -> bool {
        let late = self.goes_on.iter().filter(|(_, until)| self.now < **until).map(|(other, _)| other);
        let key = self.keys.get(&id);
        let busy = |other: &DeliveryId| *other != id && self.keys.get(other) == key;
        key.is_some() && self.at_handler.keys().chain(late).any(busy)
    }

    /// Delivers one message if the broker would.
    fn deliver(&mut self) -> bool {
        let Some(prefetch) = self.consuming else { return false };
        if self.delivered_to_consumer.len() >= usize::from(prefetch) {
            return false;
        }
        let Some(message) = self.queue.pop_front() else { return false };
        self.came_back = self.came_back.saturating_sub(1);
        let id = DeliveryId { generation: self.generation, tag: self.next_tag };
        self.next_tag += 1;
        self.delivered_to_consumer.insert(id.tag);
        self.keys.extend(message.key.map(|key| (id, key)));
        let incoming = Incoming {
            id,
            attempts: message.attempts,
            redelivered: self.returned.contains(&message.number),
            counted: self.counts && self.returned.contains(&message.number),
            identity: Some(message.number).filter(|_| !self.anonymous),
            key: message.key,
            oversized: None,
        };
        self.unacked.insert(id.tag, message);
        self.step(Event::Delivered(incoming));
        true
    }

    fn answer(&mut self, call: CallId, verdict: Verdict) {
        let deliveries = self.calls.remove(&call).expect("a call that runs");
        for called in &deliveries {
            self.at_handler.remove(&called.id);
            let early = self.early.remove(&called.id);
            if verdict == Verdict::Later && !early {
                self.goes_on.insert(called.id, self.now + self.engine.settings.late_timeout);
            }
            if self.is_held(called.id) {
                let number = self.unacked[&called.id.tag].number;
                match verdict {
                    Verdict::Ack => {
                        self.finished.insert(called.id);
                        self.handled.push(number);
                    }
                    Verdict::Later if early => {
                        self.finished.insert(called.id);
                        self.handled.push(number);
                    }
                    Verdict::Later => self.late.push(called.id),
                    Verdict::Reply => {
                        self.replying.insert(called.id);
                    }
                    _ => {}
                }
            }
        }
        self.step(Event::Answered { call, answers: Answers::All(verdict) });
    }

    /// Goes on until that is so.
    fn until(&mut self, so: fn(&Self) -> bool, mut turn: impl FnMut(&mut Self)) {
        for _ in 0..10_000 {
            if so(self) {
                return;
            }
            turn(self);
        }
        panic!("it never is");
    }

    fn is_broken(&self) -> bool {
        self.engine.snapshot().breaker.is_some()
    }

    fn calls_something(&self) -> bool {
        !self.calls.is_empty()
    }

    fn answer_all(&mut self, verdict: impl Into<Verdict>) -> usize {
        let verdict = verdict.into();
        let mut calls: Vec<CallId> = self.calls.keys().copied().collect();
        calls.sort();
        for call in &calls {
            self.answer(*call, verdict.clone());
        }
        calls.len()
    }

    fn fail_all_but(&mut self, one: CallId) {
        let mut calls: Vec<CallId> = self.calls.keys().copied().filter(|call| *call != one).collect();
        calls.sort();
        for call in calls {
            self.answer(call, retry(500));
        }
    }

    fn publish_done(&mut self, index: usize, result: PublishResult) {
        let (id, copy) = self.publishes.remove(index);
        if result == PublishResult::Confirmed && self.is_held(id) {
            self.finished.insert(id);
            let message = self.unacked[&id.tag].clone();
            match copy {
                Copy::Retry { delay_seconds, attempts } => {
                    self.retried.push((message.number, delay_seconds, attempts));
                    self.returned.remove(&message.number);
                    self.queue.push_back(Message { attempts, ..message });
                }
                Copy::Dead { reason, .. } => self.dead.push((message.number, reason)),
                Copy::Reply => {
                    self.replying.remove(&id);
                    self.handled.push(message.number);
                }
            }
        }
        if result != PublishResult::Confirmed {
            self.unpublished.insert(id);
        }
        self.step(Event::Published { id, result });
    }

    /// Delivers, confirms and replies until nothing more happens by itself; calls stay unanswered.
    fn settle(&mut self) {
        loop {
            let mut progress = false;
            if std::mem::take(&mut self.reopens) {
                progress = true;
                self.connect();
            }
            for event in std::mem::take(&mut self.pending) {
                progress = true;
                self.step(event);
            }
            if self.probe_at.is_some_and(|at| at <= self.now) {
                self.probe_at = None;
                progress = true;
                let seen = match (self.port_open, self.port_silent) {
                    (true, _) => Seen::Accepting,
                    (false, true) => Seen::Silent,
                    (false, false) => Seen::Refusing,
                };
                self.step(Event::HandlerPort { seen });
            }
            while self.deliver() {
                progress = true;
            }
            while let Some(result) = self.copies.filter(|_| !self.publishes.is_empty()) {
                progress = true;
                self.publish_done(0, result);
            }
            if !progress {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = self.engine.next_wake();
            let next = wake.into_iter().chain(self.probe_at).min();
            let Some(next) = next.filter(|next| *next <= end && self.now <= end) else { break };
            self.now = self.now.max(next);
            if wake.is_some_and(|wake| wake <= self.now) {
                self.step(Event::Tick);
            }
            self.settle();
            if self.engine.next_wake().is_some_and(|wake| wake <= next) {
                self.now += Duration::from_millis(1);
            }
        }
        // No tick here: what the engine set no time for must not depend on one.
        self.now = self.now.max(end);
    }

    /// Answers every call as it comes for a while of virtual time.
    fn answering(&mut self, time: Duration, mut verdict: impl FnMut(&Self, &[Called]) -> Verdict) {
        let end = self.now + time;
        while self.now < end {
            let mut calls: Vec<CallId> = self.calls.keys().copied().collect();
            calls.sort();
            for call in calls {
                let answer = verdict(self, &self.calls[&call]);
                self.answer(call, answer);
                self.settle();
            }
            self.pass(Duration::from_millis(100));
        }
    }

    /// A handler that takes so long for each call, for a while of virtual time.
    fn working(&mut self, time: Duration, takes: Duration) {
        let end = self.now + time;
        loop {
            let first = self.calls.keys().map(|call| (self.began[call] + takes, *call)).min();
            let wake = self.engine.next_wake().into_iter().chain(self.probe_at).min();
            let call = first.filter(|(at, _)| *at <= end && wake.is_none_or(|wake| *at <= wake));
            match (call, wake) {
                (Some((at, call)), _) => {
                    self.now = self.now.max(at);
                    self.answer(call, Verdict::Ack);
                }
                (None, Some(wake)) if wake <= end => {
                    self.now = self.now.max(wake);
                    self.step(Event::Tick);
                }
                (None, _) => break,
            }
            self.settle();
        }
        self.now = end;
    }

    /// How many deliveries were told to be held long.
    fn held_long(&self) -> u64 {
        let count = |seen: &Observation| match seen {
            Observation::HeldLong { count, .. } => *count,
            _ => 0,
        };
        self.observed.iter().map(count).sum()
    }

    fn saw(&self, wanted: &Observation) -> usize {
        self.observed.iter().filter(|seen| *seen == wanted).count()
    }
}

#[test]
fn a_2xx_acks_and_the_next_message_comes() {
    let mut world = World::running(settings(), 3);
    assert_eq!(world.unacked.len(), 1);
    for _ in 0..3 {
        assert_eq!(world.answer_all(Verdict::Ack), 1);
        world.settle();
    }
    assert_eq!(world.handled, [0, 1, 2]);
    assert_eq!(world.acks, [(1, false, 1), (2, false, 1), (3, false, 1)]);
}

#[test]
fn a_failure_climbs_the_ladder_and_is_acked_only_after_the_confirm() {
    let mut world = World::running(settings(), 1);
    world.answer_all(retry(500));
    assert_eq!(world.acks, []);
    world.publish_done(0, PublishResult::Confirmed);
    assert_eq!(world.acks, [(1, false, 1)]);
    assert_eq!(world.retried, [(0, Some(5), 1)]);
    for _ in 0..4 {
        world.settle();
        world.answer_all(retry(500));
    }
    world.settle();
    assert_eq!(world.retried, [(0, Some(5), 1), (0, Some(60), 2), (0, Some(600), 3), (0, Some(600), 4)]);
    assert_eq!(world.dead, [(0, DeadReason::Exhausted)]);
}

#[test]
fn a_copy_that_is_not_confirmed_leaves_the_delivery_unacked_and_is_tried_again() {
    let mut world = World::running(settings(), 1);
    world.answer_all(retry(500));
    world.publish_done(0, PublishResult::Failed);
    assert_eq!(world.unacked.len(), 1);
    assert!(world.publishes.is_empty());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.retried, [(0, Some(5), 1)]);
    assert!(world.unacked.is_empty() || world.unacked.len() == 1);
    assert!(
        world.saw(&Observation::Unpublished { result: PublishResult::Failed, target: Target::Retry }) == 1
    );
}

/// Has every try of the one reply end so, for a while.
fn replying(world: &mut World, result: PublishResult, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        while !world.publishes.is_empty() {
            world.publish_done(0, result);
        }
        world.now += Duration::from_millis(100);
        world.step(Event::Tick);
    }
}

/// Has the broker confirm nothing for a while.
fn replying_nothing(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        for event in std::mem::take(&mut world.pending) {
            world.step(event);
        }
        world.now += Duration::from_millis(100);
        world.step(Event::Tick);
    }
}

#[test]
fn a_reply_that_is_refused_is_given_up_after_a_few_tries_since_the_work_is_done() {
    let mut world = World::running(settings(), 2);
    world.answer_all(Verdict::Reply);
    replying(&mut world, PublishResult::Refused, Duration::from_secs(10));
    assert_eq!(
        (world.handled.as_slice(), world.acks.as_slice()),
        ([0].as_slice(), [(1, false, 1)].as_slice())
    );
    let refused = Observation::Unpublished { result: PublishResult::Refused, target: Target::Reply };
    assert_eq!(world.saw(&refused), 4);
    world.settle();
    assert_eq!(world.calls.len(), 1, "the next message has come");
}

#[test]
fn a_reply_waits_for_a_broker_that_takes_no_publishes_until_it_would_take_the_message_back() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Reply);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(1400));
    assert_eq!(world.acks, []);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(100));
    assert_eq!(
        (world.handled.as_slice(), world.acks.as_slice()),
        ([0].as_slice(), [(1, false, 1)].as_slice())
    );
}

#[test]
fn a_reply_that_is_tried_again_and_again_leaves_few_timers_and_is_given_up_in_time() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Reply);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(1435));
    assert!(world.engine.timers.len() < 4, "{}", world.engine.timers.len());
    replying_nothing(&mut world, Duration::from_secs(60));
    assert_eq!((world.handled.as_slice(), world.acks.len()), ([0].as_slice(), 1));
}

#[test]
fn a_drain_gives_up_a_reply_rather_than_have_the_work_done_again() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Reply);
    world.publish_done(0, PublishResult::Failed);
    world.step(Event::Drain);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(2));
    for event in std::mem::take(&mut world.pending) {
        world.step(event);
    }
    replying(&mut world, PublishResult::Failed, Duration::from_secs(57));
    assert_eq!(world.drained, [] as [bool; 0], "it is tried again for as long as there is time");
    replying(&mut world, PublishResult::Failed, Duration::from_secs(30));
    assert_eq!((world.handled.as_slice(), world.drained.as_slice()), ([0].as_slice(), [true].as_slice()));
    assert!(world.queue.is_empty() && world.unacked.is_empty());
}

#[test]
fn a_reply_that_is_never_confirmed_is_sent_once_and_given_up_before_the_broker_takes_the_message_back() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Reply);
    replying_nothing(&mut world, Duration::from_secs(1400));
    assert_eq!((world.acks.len(), world.publishes.len()), (0, 1));
    replying_nothing(&mut world, Duration::from_secs(100));
    assert_eq!((world.acks.as_slice(), world.publishes.len()), ([(1, false, 1)].as_slice(), 1));
}

#[test]
fn a_drain_ends_in_time_and_acknowledges_what_waits_for_the_confirm_of_its_reply() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Reply);
    world.step(Event::Drain);
    replying_nothing(&mut world, Duration::from_secs(59));
    assert_eq!(world.drained, [] as [bool; 0]);
    replying_nothing(&mut world, Duration::from_secs(2));
    assert_eq!((world.handled.as_slice(), world.drained.as_slice()), ([0].as_slice(), [true].as_slice()));
    assert!(world.queue.is_empty() && world.unacked.is_empty());
}

#[test]
fn a_drain_tries_a_copy_again_for_as_long_as_it_may_take_and_then_gives_its_message_back() {
    let mut world = World::running(settings(), 1);
    world.answer_all(retry(500));
    world.step(Event::Drain);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(3));
    world.settle();
    world.pass(Duration::from_secs(10));
    assert_eq!(
        (world.retried.as_slice(), world.drained.as_slice()),
        ([(0, Some(5), 1)].as_slice(), [true].as_slice())
    );

    let mut world = World::running(settings(), 1);
    world.answer_all(retry(500));
    world.step(Event::Drain);
    for event in std::mem::take(&mut world.pending) {
        world.step(event);
    }
    replying(&mut world, PublishResult::Failed, Duration::from_secs(59));
    assert_eq!(world.drained, [] as [bool; 0]);
    replying(&mut world, PublishResult::Failed, Duration::from_secs(30));
    assert_eq!((world.drained.len(), world.queue.len(), world.unacked.len()), (1, 1, 0));
}

#[test]
fn a_refused_connection_is_no_attempt_and_holds_consuming_until_the_port_accepts() {
    let mut world = World::running(Settings { prefetch: 4, ..settings() }, 4);
    world.port_open = false;
    world.answer_all(Verdict::Unreached);
    world.settle();
    assert_eq!(world.consuming, None);
    assert_eq!(world.unacked.len(), 4);
    world.pass(Duration::from_secs(11));
    assert_eq!((world.unacked.len(), world.queue.len()), (0, 4), "after 10 s healthy pods get what was held");
    world.port_open = true;
    world.answering(Duration::from_secs(12), |_, calls| {
        assert!(calls.iter().all(|called| called.attempt == 1));
        Verdict::Ack
    });
    assert_eq!(world.handled.len(), 4);
}

#[test]
fn not_now_counts_no_attempt_and_waits_as_long_as_asked() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::NotNow { after: Some(Duration::from_secs(3)), status: 429 });
    world.pass(Duration::from_millis(2900));
    assert!(world.calls.is_empty());
    world.pass(Duration::from_millis(200));
    assert_eq!(world.calls.values().next().unwrap()[0].attempt, 1);
}

#[test]
fn ten_minutes_of_503_then_404_dead_letter_nothing_and_heal_by_themselves() {
    for status in [503, 404] {
        let ladder = Ladder { delays_seconds: vec![1], max_attempts: 3 };
        let mut world = World::running(Settings { prefetch: 10, concurrency: 4, ladder, ..settings() }, 40);
        let mut calls = 0;
        world.answering(Duration::from_secs(600), |_, _| {
            calls += 1;
            match status {
                503 => Verdict::NotNow { after: None, status },
                status => retry(status),
            }
        });
        assert_eq!(world.dead, [], "{status}");
        assert!(world.engine.snapshot().breaker.is_some());
        assert!(calls < 150, "{calls} calls hammer an application that is down");
        assert_eq!(world.engine.snapshot().breaker, Some(status));
        world.answering(Duration::from_secs(120), |_, _| Verdict::Ack);
        assert_eq!((world.handled.len(), world.engine.snapshot().breaker), (40, None));
        assert_eq!(world.saw(&Observation::BreakerClosed), 1);
    }
}

/// Has the application take everything on, and end each as it says a moment later, until the breaker opens.
fn failing_later(world: &mut World) {
    for _ in 0..100 {
        if world.engine.snapshot().breaker.is_some() {
            world.answer_all(retry(500));
            return;
        }
        world.answer_all(Verdict::Later);
        for id in std::mem::take(&mut world.late) {
            world.step(Event::LateAnswer { id, verdict: retry(500) });
        }
        world.settle();
    }
    panic!("a hundred rounds of failures open no breaker");
}

#[test]
fn work_that_ends_later_opens_the_breaker_and_is_probed_one_at_a_time() {
    let mut world = World::running(Settings { prefetch: 40, concurrency: 20, ..settings() }, 200);
    failing_later(&mut world);
    let mut calls = 0;
    world.answering(Duration::from_secs(60), |_, _| {
        calls += 1;
        Verdict::Later
    });
    assert!((1..=3).contains(&calls), "{calls} calls of an application that lets each time out after 30 s");
    assert!(world.engine.snapshot().breaker.is_some(), "to take work on is no success");
    let probe = world.late.pop().unwrap();
    world.finished.insert(probe);
    world.step(Event::LateAnswer { id: probe, verdict: Verdict::Ack });
    assert_eq!(world.engine.snapshot().breaker, None);
}

#[test]
fn a_probe_that_is_extended_beyond_the_time_of_a_call_holds_the_next_one_no_longer() {
    let mut world = World::running(Settings { prefetch: 40, concurrency: 20, ..settings() }, 200);
    failing_later(&mut world);
    while world.late.is_empty() {
        world.pass(Duration::from_millis(100));
        world.answer_all(Verdict::Later);
    }
    let first = world.late[0];
    for _ in 0..3 {
        world.step(Event::Extended { id: first });
        world.answering(Duration::from_secs(9), |_, _| panic!("a second probe"));
    }
    world.step(Event::Extended { id: first });
    world.pass(Duration::from_secs(10));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn one_message_that_can_never_be_taken_now_holds_up_no_other() {
    for (status, keyed) in [(429, false), (503, false), (429, true)] {
        let mut world = World::new(Settings { prefetch: 5, ..settings() });
        for number in 0..20 {
            world.queue.push_back(Message { number, attempts: 0, key: keyed.then_some(number % 7) });
        }
        world.connect();
        world.settle();
        world.answering(Duration::from_secs(900), |world, calls| {
            match world.unacked[&calls[0].id.tag].number {
                0 => Verdict::NotNow { after: None, status },
                _ => Verdict::Ack,
            }
        });
        let mut handled = world.handled.clone();
        handled.sort_unstable();
        let free: Vec<u64> = (1..20).filter(|number| !keyed || number % 7 != 0).collect();
        assert_eq!(handled, free, "{status}, keyed: {keyed}");
    }
}

#[test]
fn messages_that_can_never_be_taken_now_cannot_keep_the_breaker_open() {
    for (status, keyed) in [(503, false), (429, false), (503, true)] {
        let mut world = World::new(Settings { prefetch: 8, concurrency: 2, ordered: keyed, ..settings() });
        for number in 0..40 {
            world.queue.push_back(Message { number, attempts: 0, key: keyed.then_some(number) });
        }
        world.connect();
        world.settle();
        while world.engine.snapshot().breaker.is_none() {
            world.answer_all(Verdict::NotNow { after: Some(Duration::ZERO), status: 503 });
            world.settle();
            world.pass(Duration::from_millis(1));
        }
        world.pass(Duration::from_secs(11));
        let poison: Vec<u64> = world.unacked.values().map(|message| message.number).take(2).collect();
        let others = |world: &World| world.handled.iter().filter(|number| !poison.contains(number)).count();
        world.answering(Duration::from_secs(1500), |world, calls| {
            let number = world.unacked.get(&calls[0].id.tag).map(|message| message.number);
            match number.is_some_and(|number| poison.contains(&number)) {
                true => Verdict::NotNow { after: None, status },
                false => Verdict::Ack,
            }
        });
        assert_eq!(world.engine.snapshot().breaker, None, "{status}, keyed: {keyed}");
        assert_eq!((others(&world), world.dead.len()), (40 - poison.len(), 0), "{status}, keyed: {keyed}");
        assert!(world.retried.iter().all(|(_, _, attempts)| *attempts == 0), "it is never an attempt");
    }
}

#[test]
fn long_work_from_before_the_breaker_opened_takes_no_place_from_probes() {
    let hour = Duration::from_secs(3600);
    let mut world =
        World::running(Settings { prefetch: 10, concurrency: 4, late_timeout: hour, ..settings() }, 60);
    for call in [1, 2, 3].map(CallId) {
        world.answer(call, Verdict::Later);
    }
    while world.engine.snapshot().breaker.is_none() {
        world.answer_all(retry(500));
        // Some acknowledgements wait for others, for two milliseconds.
        world.pass(Duration::from_millis(3));
        world.settle();
    }
    let mut probed = BTreeSet::new();
    world.answering(Duration::from_secs(900), |world, calls| {
        probed.insert(world.unacked[&calls[0].id.tag].number);
        retry(500)
    });
    assert!(probed.len() > 4, "only {probed:?} were tried");
    world.answering(Duration::from_secs(60), |_, _| Verdict::Ack);
    assert_eq!(world.engine.snapshot().breaker, None);
}

#[test]
fn an_open_breaker_gives_back_what_is_held_after_ten_seconds_but_for_two_to_probe_with() {
    let ladder = Ladder { delays_seconds: vec![1], max_attempts: 100 };
    let mut world = World::running(Settings { prefetch: 50, concurrency: 1, ladder, ..settings() }, 300);
    while world.engine.snapshot().breaker.is_none() {
        world.answer_all(retry(500));
        world.settle();
    }
    assert_eq!(world.consuming, None);
    assert!(world.unacked.len() > 30);
    world.pass(Duration::from_millis(10_100));
    assert!(world.unacked.len() <= 4, "{}", world.unacked.len());
}

#[test]
fn a_long_call_from_before_the_breaker_opened_blocks_no_probe_and_probes_still_go_one_at_a_time() {
    let mut world = World::running(Settings { prefetch: 60, concurrency: 3, ..settings() }, 60);
    let long: Vec<CallId> = (1..=2).map(CallId).collect();
    // One is still at work, and the application goes on with another.
    world.answer(long[1], Verdict::Later);
    while world.engine.snapshot().breaker.is_none() {
        world.fail_all_but(long[0]);
        world.settle();
    }
    world.fail_all_but(long[0]);
    assert_eq!(world.calls.len(), 1);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.calls.len(), 2, "the long call and a probe");
    let probe = *world.calls.keys().find(|call| **call != long[0]).unwrap();
    world.answer(probe, Verdict::Ack);
    assert_eq!(world.engine.snapshot().breaker, None);

    // At a concurrency of 1 the place is taken, and a second call would be one too many.
    let mut world = World::running(Settings { prefetch: 60, concurrency: 3, ..settings() }, 60);
    while world.engine.snapshot().breaker.is_none() {
        world.fail_all_but(long[0]);
    }
    world.step(Event::Configured(Box::new(Settings { prefetch: 60, ..settings() })));
    world.fail_all_but(long[0]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn a_message_that_fails_three_probes_while_others_succeed_goes_to_the_ladder() {
    let ladder = Ladder { delays_seconds: vec![1], max_attempts: 2 };
    let mut world = World::running(Settings { prefetch: 10, concurrency: 1, ladder, ..settings() }, 60);
    // Everything fails until the breaker opens; then all but the odd ones succeed.
    while world.engine.snapshot().breaker.is_none() {
        world.answer_all(retry(500));
        world.settle();
    }
    world.answering(Duration::from_secs(3000), |world, calls| {
        let number = world.unacked.get(&calls[0].id.tag).map_or(0, |message| message.number);
        if number % 10 == 0 { retry(500) } else { Verdict::Ack }
    });
    let mut poison: Vec<u64> = world.dead.iter().map(|(number, _)| *number).collect();
    poison.sort_unstable();
    assert!(poison.contains(&50), "{poison:?}");
    assert!(world.queue.is_empty() && world.unacked.is_empty());
}

#[test]
fn a_poison_message_of_a_key_cannot_keep_the_breaker_open_even_at_prefetch_1() {
    let ladder = Ladder { delays_seconds: vec![1], max_attempts: 2 };
    let mut world = World::failing_by_key(Settings { ladder, ordered: true, ..settings() });
    let poison = world.unacked.values().next().map(|message| message.number);
    world.answering(Duration::from_secs(200), |world, calls| {
        let number = world.unacked.get(&calls[0].id.tag).map(|message| message.number);
        if number == poison { retry(500) } else { Verdict::Ack }
    });
    assert_eq!(world.engine.snapshot().breaker, None);
    assert!(world.queue.is_empty() && world.unacked.is_empty());
}

#[test]
fn one_message_of_a_key_without_an_id_opens_no_breaker_and_is_dead_lettered() {
    let ladder = Ladder { delays_seconds: vec![1], max_attempts: 24 };
    let mut world = World::new(Settings { ladder, ordered: true, ..settings() });
    world.anonymous = true;
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(0) });
    world.connect();
    world.settle();
    world.answering(Duration::from_secs(60), |world, _| {
        assert_eq!(world.engine.snapshot().breaker, None);
        retry(500)
    });
    assert_eq!(world.dead.len(), 1);
}

#[test]
fn poison_messages_of_many_keys_cannot_keep_the_breaker_open_for_the_good_ones_behind_them() {
    for (prefetch, concurrency) in [(1, 1), (8, 4)] {
        let ladder = Ladder { delays_seconds: vec![1], max_attempts: 3 };
        let mut world =
            World::failing_by_key(Settings { prefetch, concurrency, ladder, ordered: true, ..settings() });
        world.pass(Duration::from_secs(1));
        let waiting = world.unacked.values().chain(&world.queue);
        let poison: Vec<u64> = waiting.map(|message| message.number).take(7).collect();
        let mut probes = 0;
        world.answering(Duration::from_secs(900), |world, calls| {
            probes += usize::from(world.engine.snapshot().breaker.is_some());
            let number = world.unacked.get(&calls[0].id.tag).map(|message| message.number);
            if number.is_some_and(|number| poison.contains(&number)) { retry(500) } else { Verdict::Ack }
        });
        assert_eq!(world.engine.snapshot().breaker, None, "at prefetch {prefetch}, after {probes} probes");
        // What was tried in the ten seconds before everything is handed back is not remembered.
        let forgotten = 4;
        assert!(probes <= 3 * poison.len() + 1 + forgotten, "{probes} probes at prefetch {prefetch}");
        assert!(world.queue.is_empty() && world.unacked.is_empty());
        assert!(poison.iter().all(|number| world.dead.iter().any(|(dead, _)| dead == number)));
    }
}

#[test]
fn a_poison_message_without_a_key_that_comes_again_and_again_has_not_all_of_the_tries() {
    let mut world = World::new(Settings { prefetch: 10, concurrency: 10, ordered: true, ..settings() });
    let poison = 99;
    world.queue.extend((0..40).map(|number| Message { number, attempts: 0, key: Some(number % 5) }));
    world.queue.push_back(Message { number: poison, attempts: 0, key: None });
    world.connect();
    world.settle();
    world.answering(Duration::from_secs(1800), |_, _| retry(500));
    assert!(world.engine.snapshot().breaker.is_some());
    world.answering(Duration::from_secs(900), |world, calls| {
        let number = world.unacked.get(&calls[0].id.tag).map(|message| message.number);
        if number == Some(poison) { retry(500) } else { Verdict::Ack }
    });
    assert_eq!((world.engine.snapshot().breaker, world.handled.len()), (None, 40));
}

#[test]
fn messages_that_always_fail_do_not_stop_the_good_ones_behind_them_for_more_than_a_try_each() {
    for prefetch in [1, 10] {
        let mut world = World::running(Settings { prefetch, concurrency: prefetch, ..settings() }, 60);
        let poison = 0..40;
        let (mut calls_of_all, mut first) = (0, None);
        world.answering(Duration::from_secs(3600), |world, calls| {
            let number = world.unacked.get(&calls[0].id.tag).map(|message| message.number);
            if number.is_some_and(|number| poison.contains(&number)) {
                calls_of_all += 1;
                return retry(500);
            }
            first.get_or_insert((world.now, calls_of_all));
            Verdict::Ack
        });
        let (at, calls) = first.unwrap();
        // Those of the twenty calls that open the breaker come again beside them.
        assert!(calls <= 40 + 20, "{calls} calls of messages that fail came first at prefetch {prefetch}");
        assert!(at < Duration::from_secs(20 * 30), "{at:?} at prefetch {prefetch}");
        assert_eq!((world.handled.len(), world.dead.len()), (20, 0));
    }
}

#[test]
fn what_ran_when_the_breaker_opened_is_no_probe_and_goes_back_to_the_queue() {
    let mut world = World::running(Settings { prefetch: 60, concurrency: 60, ..settings() }, 60);
    world.pass(Duration::from_secs(1));
    let mut calls: Vec<CallId> = world.calls.keys().copied().collect();
    calls.sort();
    assert_eq!(calls.len(), 60);
    let (first, rest) = calls.split_at(20);
    for call in first {
        world.answer(*call, retry(500));
    }
    world.settle();
    assert!(world.engine.snapshot().breaker.is_some());
    let before = world.retried.len();
    for call in rest {
        world.pass(Duration::from_secs(1));
        world.answer(*call, retry(500));
        world.settle();
    }
    assert_eq!(world.retried.len(), before, "{:?}", world.retried);
}

#[test]
fn an_answer_after_a_reconnect_is_dropped_and_the_message_comes_again() {
    let mut world = World::running(settings(), 1);
    let call = *world.calls.keys().next().unwrap();
    world.disconnect();
    world.connect();
    world.settle();
    // The old call still takes the one place at the handler.
    assert_eq!(world.calls.len(), 1);
    world.answer(call, Verdict::Ack);
    assert_eq!(world.saw(&Observation::Stale), 1);
    assert_eq!(world.acks, []);
    world.answer_all(Verdict::Ack);
    assert_eq!(world.handled, [0]);
}

#[test]
fn what_has_ended_and_waits_for_others_to_be_acknowledged_with_is_counted_when_the_channel_is_lost() {
    let mut world = World::running(Settings { prefetch: 100, concurrency: 10, ..settings() }, 10);
    let mut calls: Vec<CallId> = world.calls.keys().copied().collect();
    calls.sort();
    for call in &calls[..3] {
        world.answer(*call, Verdict::Ack);
    }
    assert_eq!(world.acks, []);
    world.disconnect();
    assert_eq!(world.saw(&Observation::Unacknowledged { count: 3 }), 1);
}

#[test]
fn a_drain_finishes_what_runs_gives_back_the_rest_and_answers() {
    let mut world = World::running(Settings { prefetch: 5, ..settings() }, 9);
    world.step(Event::Drain);
    world.settle();
    assert_eq!(world.consuming, None);
    assert_eq!(world.drained, [] as [bool; 0]);
    // The prefetched ones are started within half the time.
    world.answer_all(Verdict::Ack);
    assert_eq!(world.calls.len(), 1);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.unacked.len(), 1, "the rest went back");
    world.answer_all(Verdict::Ack);
    assert_eq!(world.drained, [true]);
    assert_eq!((world.handled.len(), world.queue.len(), world.exits), (2, 7, 0));
    world.step(Event::Terminate);
    assert_eq!(world.exits, 1);
}

#[test]
fn a_drain_starts_no_call_that_may_outlast_it() {
    let most = Duration::from_secs(50);
    let mut world = World::running(Settings { prefetch: 5, late_timeout: most, ..settings() }, 9);
    world.step(Event::Drain);
    world.pass(Duration::from_secs(9));
    world.answer_all(Verdict::Ack);
    assert_eq!(world.calls.len(), 1, "one that takes all of its time ends after 59 seconds of 60");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.unacked.len(), 1, "the rest went back");
}

#[test]
fn no_drain_ends_before_the_acks_that_wait_for_others_are_sent() {
    let ten = || Settings { prefetch: 10, concurrency: 1, ..settings() };
    let mut world = World::running(ten(), 10);
    world.step(Event::Terminate);
    world.settle();
    world.answer_all(Verdict::Ack);
    assert_eq!(world.acks, [], "it waits for others");
    world.answer_all(Verdict::Unreached);
    assert_eq!((world.acks.as_slice(), world.exits), ([(1, false, 1)].as_slice(), 1));
    assert_eq!(world.queue.len(), 9);

    // At the deadline, and at a SIGTERM soon after an answer that came after the deadline, others are still at work.
    let mut world = World::running(Settings { concurrency: 3, ..ten() }, 10);
    let calls: Vec<CallId> = (1..=3).map(CallId).collect();
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(60) - Duration::from_millis(1));
    world.answer(calls[1], Verdict::Ack);
    world.pass(Duration::from_millis(1));
    assert_eq!(
        (world.acks.as_slice(), world.drained.as_slice()),
        ([(2, false, 1)].as_slice(), [false].as_slice())
    );
    world.answer(calls[2], Verdict::Ack);
    world.step(Event::Terminate);
    assert_eq!((world.acks.as_slice(), world.exits), ([(2, false, 1), (3, false, 1)].as_slice(), 1));
}

#[test]
fn a_drain_ends_at_its_deadline_with_work_still_running() {
    let mut world = World::running(settings(), 1);
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(61));
    assert_eq!(world.drained, [false]);
    world.answer_all(Verdict::Ack);
    assert_eq!(world.handled, [0], "what ends after it is acked all the same");
}

#[test]
fn a_drain_is_reversed_when_the_application_was_down_and_is_up_again() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Ack);
    world.step(Event::Drain);
    world.settle();
    assert_eq!(world.drained, [true]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.consuming, None, "a port that was never seen refusing reverses nothing");
    world.port_open = false;
    world.pass(Duration::from_secs(2));
    world.port_open = true;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.consuming, Some(1));
}

#[test]
fn a_port_that_is_silent_for_a_while_reverses_no_drain() {
    let mut world = World::running(settings(), 0);
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(2));
    (world.port_open, world.port_silent) = (false, true);
    world.pass(Duration::from_secs(5));
    world.port_open = true;
    world.pass(Duration::from_secs(5));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
}

#[test]
fn a_pod_that_is_deleted_while_its_application_starts_stays_drained_when_the_port_opens() {
    let mut world = World::new(settings());
    world.port_open = false;
    world.queue.push_back(Message { number: 0, attempts: 0, key: None });
    world.connect();
    world.settle();
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(6));
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
    // It was up, and now it was restarted: nobody means to end the pod.
    world.port_open = false;
    world.pass(Duration::from_secs(2));
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (Some(1), 1));
}

#[test]
fn a_drain_waits_for_an_application_that_starts_until_it_listens_for_ten_seconds_at_most() {
    let starting = || {
        let mut world = World::new(settings());
        world.port_open = false;
        world.connect();
        world.settle();
        world.step(Event::Drain);
        world.settle();
        world.pass(Duration::from_secs(9));
        assert_eq!(world.drained, [] as [bool; 0], "it may not handle SIGTERM yet");
        world
    };
    let mut never = starting();
    never.pass(Duration::from_secs(2));
    assert_eq!(never.drained, [true]);
    // Its container was restarted, and starts again when the pod is deleted.
    never.step(Event::Drain);
    never.pass(Duration::from_secs(9));
    assert_eq!(never.drained, [true]);
    never.pass(Duration::from_secs(2));
    assert_eq!(never.drained, [true, true]);
    let mut terminated = starting();
    terminated.step(Event::Terminate);
    assert_eq!(
        (terminated.drained.as_slice(), terminated.exits),
        ([true].as_slice(), 1),
        "the others have ended"
    );
    let mut listens = World::new(settings());
    listens.port_open = false;
    listens.connect();
    listens.settle();
    listens.step(Event::Drain);
    listens.port_open = true;
    listens.pass(Duration::from_secs(2));
    assert_eq!(listens.drained, [true]);
}

#[test]
fn whoever_waits_for_a_drain_is_told_when_it_is_reversed() {
    let mut world = World::running(settings(), 1);
    world.step(Event::Drain);
    world.settle();
    world.port_open = false;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.drained, [] as [bool; 0], "its call still runs");
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.drained.as_slice(), world.saw(&Observation::DrainReversed)), ([false].as_slice(), 1));
}

#[test]
fn a_drain_is_reversed_when_the_grace_period_has_passed_without_sigterm() {
    // As long as a template asks for, too: whatever keeps the pod, it is on its way out until then.
    for seconds in [75, 600] {
        let grace_period = Duration::from_secs(seconds);
        let mut world = World::running(Settings { grace_period, ..settings() }, 0);
        world.step(Event::Drain);
        world.settle();
        world.pass(Duration::from_secs(seconds - 1));
        assert_eq!(world.consuming, None);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.consuming, Some(1));
    }
}

#[test]
fn sigterm_without_a_drain_before_it_drains_and_is_counted() {
    let mut world = World::running(settings(), 1);
    world.step(Event::Terminate);
    world.settle();
    assert_eq!(world.exits, 0);
    world.answer_all(Verdict::Ack);
    world.settle();
    assert_eq!((world.exits, world.saw(&Observation::TerminatedUndrained)), (1, 1));
    assert!(world.unacked.is_empty());
}

#[test]
fn paused_keeps_what_runs_and_gives_back_the_rest() {
    let mut world = World::running(Settings { prefetch: 3, ..settings() }, 3);
    world.step(Event::Configured(Box::new(Settings { prefetch: 3, paused: true, ..settings() })));
    world.settle();
    assert_eq!((world.unacked.len(), world.queue.len()), (1, 2));
    world.answer_all(Verdict::Ack);
    assert_eq!(world.handled, [0]);
    world.step(Event::Configured(Box::new(Settings { prefetch: 3, ..settings() })));
    world.settle();
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn a_late_answer_ends_the_delivery_once() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Later);
    let id = world.late[0];
    world.pass(Duration::from_secs(29));
    world.step(Event::Extended { id });
    world.pass(Duration::from_secs(29));
    world.finished.insert(id);
    world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
    world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
    world.step(Event::LateAnswer { id: DeliveryId { generation: 1, tag: 99 }, verdict: Verdict::Ack });
    assert_eq!(
        world.late_replies,
        [LateReply::Accepted, LateReply::Accepted, LateReply::Ended, LateReply::Unknown]
    );
    assert_eq!(world.acks, [(1, false, 1)]);
}

#[test]
fn replies_that_are_confirmed_leave_few_timers() {
    let mut world = World::running(settings(), 5000);
    while world.answer_all(Verdict::Reply) > 0 {
        world.settle();
    }
    assert_eq!(world.handled.len(), 5000);
    assert!(world.engine.timers.len() < 1100, "{}", world.engine.timers.len());
}

#[test]
fn a_heartbeat_leaves_no_timer_each_time_and_its_end_is_noticed_in_time() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Later);
    let id = world.late[0];
    for _ in 0..1000 {
        world.pass(Duration::from_secs(1));
        world.step(Event::Extended { id });
        assert_eq!(world.engine.timers.len(), 1);
    }
    world.pass(Duration::from_secs(29));
    assert_eq!(world.retried, []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.retried.len(), 1);
}

#[test]
fn an_extension_by_less_than_before_counts_too() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Later);
    let id = world.late[0];
    let late_timeout = Duration::from_secs(5);
    world.step(Event::Configured(Box::new(Settings { late_timeout, ..settings() })));
    world.step(Event::Extended { id });
    world.pass(Duration::from_secs(3));
    world.step(Event::Extended { id });
    world.pass(Duration::from_secs(4));
    assert_eq!(world.retried, []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.retried.len(), 1);
}

#[test]
fn what_the_application_says_before_its_answer_later_is_read_holds_then_and_only_then() {
    // Each message of a batch for itself: the first is ended early, the second late.
    let batch = Some(Batch { max_messages: 2, max_wait: Duration::from_millis(20) });
    let mut world = World::running(Settings { prefetch: 2, batch, ..settings() }, 2);
    let ids = [1, 2].map(|tag| DeliveryId { generation: 1, tag });
    let early = |verdict| Event::LateAnswer { id: ids[0], verdict };
    world.step(Event::Extended { id: ids[0] });
    world.step(early(Verdict::Ack));
    world.step(early(retry(500)));
    world.step(Event::Extended { id: ids[0] });
    assert_eq!(
        world.late_replies,
        [LateReply::Accepted, LateReply::Accepted, LateReply::Ended, LateReply::Ended]
    );
    assert_eq!((world.acks.as_slice(), world.engine.snapshot().in_flight), ([].as_slice(), 2));
    world.early.insert(ids[0]);
    world.answer_all(Verdict::Later);
    world.pass(Duration::from_millis(2));
    assert_eq!((world.acks.as_slice(), world.engine.snapshot().in_flight), ([(1, false, 1)].as_slice(), 1));
    world.finished.insert(ids[1]);
    world.step(Event::LateAnswer { id: ids[1], verdict: Verdict::Ack });
    assert!(world.unacked.is_empty());

    // An answer that is not `later` is the last word, and what was said before it is forgotten.
    let mut world = World::running(settings(), 1);
    world.step(early(Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() }));
    world.answer_all(Verdict::NotNow { after: Some(Duration::ZERO), status: 429 });
    world.pass(Duration::from_millis(100));
    world.answer_all(Verdict::Later);
    assert_eq!((world.publishes.as_slice(), world.engine.snapshot().in_flight), ([].as_slice(), 1));
    world.pass(Duration::from_secs(31));
    assert_eq!((world.retried.as_slice(), world.dead.len()), ([(0, Some(5), 1)].as_slice(), 0));
}

#[test]
fn the_next_of_a_key_waits_for_late_work_whose_channel_is_gone() {
    let late = || {
        let mut world = World::new(Settings { prefetch: 4, concurrency: 4, ordered: true, ..settings() });
        for number in 0..2 {
            world.queue.push_back(Message { number, attempts: 0, key: Some(1) });
        }
        world.connect();
        world.settle();
        world
    };
    let again = |world: &mut World| {
        world.disconnect();
        world.connect();
        world.settle();
        assert!(world.calls.is_empty(), "the application works on it still");
    };
    // Answered before the connection was lost, or after it.
    for answers_first in [true, false] {
        let mut world = late();
        if answers_first {
            world.answer_all(Verdict::Later);
            again(&mut world);
        } else {
            world.disconnect();
            world.answer_all(Verdict::Later);
            again(&mut world);
        }
        let id = DeliveryId { generation: 1, tag: 1 };
        world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
        assert_eq!(world.late_replies, [LateReply::Ended]);
        assert_eq!(world.calls.len(), 1, "it was redelivered, and is called again");
    }
    // What has ended before its answer is read is not waited for any more, whether the connection was lost after that or before.
    for ends_first in [true, false] {
        let mut world = late();
        let end = Event::LateAnswer { id: DeliveryId { generation: 1, tag: 1 }, verdict: Verdict::Ack };
        if ends_first {
            world.step(end);
            world.disconnect();
        } else {
            world.disconnect();
            world.step(end);
        }
        world.connect();
        world.settle();
        assert_eq!(world.calls.len(), 1, "the call runs still");
        world.early.insert(DeliveryId { generation: 1, tag: 1 });
        world.answer_all(Verdict::Later);
        world.settle();
        assert_eq!(world.calls.len(), 1, "it was redelivered, and is called again");
    }
    // Who never says that it has ended is waited for as long as for any late work, over a second loss, too.
    let mut world = late();
    world.answer_all(Verdict::Later);
    world.pass(Duration::from_secs(10));
    world.disconnect();
    world.step(Event::Extended { id: DeliveryId { generation: 1, tag: 1 } });
    again(&mut world);
    world.pass(Duration::from_secs(29));
    assert!(world.calls.is_empty());
    again(&mut world);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn what_has_ended_is_acknowledged_before_the_channel_is_given_up() {
    let mut world = World::running(Settings { prefetch: 200, concurrency: 200, ..settings() }, 200);
    let first = *world.calls.keys().min().unwrap();
    world.answer(first, Verdict::Ack);
    assert_eq!(world.acks, [], "it waits for others");
    world.step(Event::Leaving { over: false });
    assert_eq!(world.acks, [(1, false, 1)]);
}

#[test]
fn later_without_a_heartbeat_is_a_failed_attempt() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Later);
    world.pass(Duration::from_secs(31));
    assert_eq!(world.retried, [(0, Some(5), 1)]);
}

#[test]
fn messages_of_a_key_go_in_order_and_a_failing_one_holds_only_its_key() {
    let mut world = World::new(Settings { prefetch: 6, concurrency: 6, ..settings() });
    for (number, key) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 1)] {
        world.queue.push_back(Message { number, attempts: 0, key: Some(key) });
    }
    world.connect();
    world.settle();
    let mut failed = false;
    world.answering(Duration::from_secs(20), |world, calls| {
        let number = world.unacked[&calls[0].id.tag].number;
        if number == 0 && !failed {
            failed = true;
            return retry(500);
        }
        Verdict::Ack
    });
    let of_key_1: Vec<u64> =
        world.handled.iter().copied().filter(|number| [0, 1, 4].contains(number)).collect();
    assert_eq!(of_key_1, [0, 1, 4]);
    assert_eq!(world.handled[..2], [2, 3], "the other key did not wait");
    assert_eq!(world.retried, [], "in place, not over the ladder");
}

#[test]
fn attempts_of_a_key_outlive_a_lost_channel_and_a_pause_and_run_out() {
    let mut world = World::new(settings());
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
    world.connect();
    world.settle();
    for attempt in 1..=5 {
        let attempts: Vec<u32> = world.calls.values().flatten().map(|called| called.attempt).collect();
        assert_eq!(attempts, [attempt]);
        world.answer_all(retry(500));
        if attempt % 2 == 0 {
            world.disconnect();
            world.connect();
        } else {
            world.step(Event::Configured(Box::new(Settings { paused: true, ..settings() })));
            world.settle();
            world.step(Event::Configured(Box::new(settings())));
        }
        world.settle();
    }
    assert_eq!(world.dead, [(0, DeadReason::Exhausted)]);
}

/// A world in which five messages of one key are held, the first of them at the handler.
fn ordered() -> (Settings, World) {
    let settings = Settings { prefetch: 5, concurrency: 2, ordered: true, ..settings() };
    let mut world = World::new(settings.clone());
    for number in 0..9 {
        world.queue.push_back(Message { number, attempts: 0, key: Some(1) });
    }
    world.connect();
    world.settle();
    (settings, world)
}

#[test]
fn with_an_ordering_key_everything_is_handed_back_at_once_and_in_order_after_what_runs_has_ended() {
    let drain: fn(&Settings) -> Event = |_| Event::Drain;
    let pause: fn(&Settings) -> Event =
        |settings| Event::Configured(Box::new(Settings { paused: true, ..settings.clone() }));
    for event in [drain, pause] {
        let (settings, mut world) = ordered();
        world.step(event(&settings));
        world.pass(Duration::from_secs(20));
        assert_eq!(
            (world.consuming, world.unacked.len()),
            (Some(5), 5),
            "nobody may get a later message yet"
        );
        world.answer_all(Verdict::Ack);
        assert!(world.unacked.is_empty() && world.calls.is_empty());
        assert_eq!(
            world.queue.iter().map(|message| message.number).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
        assert_eq!(world.handled, [0]);
        world.settle();
        assert_eq!(world.consuming, None);
    }
}

#[test]
fn with_an_ordering_key_a_drain_ends_when_all_is_handed_back_and_another_window_is_taken_over() {
    let (_, mut world) = ordered();
    world.step(Event::Terminate);
    world.answer_all(Verdict::Ack);
    assert_eq!((world.drained.as_slice(), world.exits), ([true].as_slice(), 1));
    assert_eq!(world.saw(&Observation::Settled(Outcome::Returned)), 4);

    let (settings, mut world) = ordered();
    world.step(Event::Configured(Box::new(Settings { prefetch: 3, ..settings })));
    world.answering(Duration::from_secs(2), |_, _| Verdict::Ack);
    assert_eq!(
        (world.consuming, world.handled.as_slice()),
        (Some(3), [0, 1, 2, 3, 4, 5, 6, 7, 8].as_slice())
    );
}

#[test]
fn with_an_ordering_key_an_outage_hands_everything_back_in_order_before_it_is_probed() {
    for prefetch in [2, 40] {
        let mut world =
            World::failing_by_key(Settings { prefetch, concurrency: 2, ordered: true, ..settings() });
        assert_eq!((world.consuming, world.subscribed.len()), (Some(prefetch), 1));
        while world.subscribed.len() == 1 {
            world.answer_all(retry(500));
            world.pass(Duration::from_millis(100));
        }
        let held = world.unacked.values().chain(&world.queue).map(|message| message.number);
        assert!(held.collect::<Vec<_>>().is_sorted(), "one after another, as they were");
        assert_eq!((world.consuming, world.unacked.len()), (Some(prefetch), prefetch.into()));
    }
}

#[test]
fn with_an_ordering_key_a_port_that_is_soon_back_costs_nothing_and_after_ten_seconds_others_get_it_all() {
    let (_, mut world) = ordered();
    world.port_open = false;
    world.answer_all(Verdict::Unreached);
    world.pass(Duration::from_secs(4));
    assert_eq!((world.consuming, world.unacked.len()), (Some(5), 5));
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.calls.len(), world.subscribed.len()), (1, 1));
    world.port_open = false;
    world.answer_all(Verdict::Unreached);
    world.pass(Duration::from_secs(11));
    assert_eq!((world.consuming, world.unacked.len(), world.queue.len()), (None, 0, 9));
}

#[test]
fn a_batch_goes_when_it_is_full_or_has_waited() {
    let batch = Some(Batch { max_messages: 4, max_wait: Duration::from_millis(20) });
    let mut world = World::running(Settings { prefetch: 20, concurrency: 3, batch, ..settings() }, 6);
    assert_eq!(world.calls.values().map(Vec::len).collect::<Vec<_>>(), [4]);
    world.pass(Duration::from_millis(25));
    let mut sizes: Vec<_> = world.calls.values().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 4]);
}

#[test]
fn the_first_attempt_by_itself_after_that_of_a_batch_is_a_first_one_too() {
    let one = settings();
    let batch = Some(Batch { max_messages: 4, max_wait: Duration::from_millis(20) });
    let batches = Settings { batch, ..settings() };
    assert_eq!([1, 2, 3].map(|attempt| one.is_first(attempt)), [true, false, false]);
    assert_eq!([1, 2, 3].map(|attempt| batches.is_first(attempt)), [true, true, false]);
}

#[test]
fn a_partly_failed_batch_settles_each_message_by_its_own_outcome() {
    let batch = Some(Batch { max_messages: 3, max_wait: Duration::from_millis(20) });
    let mut world = World::running(Settings { prefetch: 3, concurrency: 1, batch, ..settings() }, 3);
    let (call, deliveries) = world.calls.drain().next().unwrap();
    world.at_handler.clear();
    world.finished.insert(deliveries[0].id);
    world.finished.insert(deliveries[2].id);
    let answers = Answers::Each(vec![Verdict::Ack, retry(500), Verdict::Ack]);
    world.step(Event::Answered { call, answers });
    world.publish_done(0, PublishResult::Confirmed);
    assert_eq!(world.retried, [(1, Some(5), 1)]);
    assert!(world.unacked.is_empty());
}

#[test]
fn a_delivery_held_for_most_of_the_brokers_time_out_is_warned_of_once() {
    let mut world = World::running(settings(), 1);
    world.pass(Duration::from_secs(1700));
    assert_eq!(world.held_long(), 1);
}

#[test]
fn what_only_waits_goes_back_before_the_broker_would_take_back_what_runs_too() {
    for counts in [false, true] {
        let mut world = World::running(Settings { prefetch: 3, ..settings() }, 3);
        world.counts = counts;
        let held = |world: &World| world.unacked.keys().copied().collect::<Vec<_>>();
        world.pass(Duration::from_secs(1439));
        assert_eq!(held(&world), [1, 2, 3]);
        world.pass(Duration::from_secs(2));
        // Here they come straight back, and have their time anew.
        assert_eq!((held(&world), world.held_long()), (vec![1, 4, 5], 1));
        world.pass(Duration::from_secs(1441));
        let (again, told) = if counts { ([1, 4, 5], 3) } else { ([1, 6, 7], 1) };
        assert_eq!((held(&world), world.held_long()), (again.to_vec(), told), "counted: {counts}");
        world.answering(Duration::from_secs(1), |_, _| Verdict::Ack);
        world.handled.sort_unstable();
        assert_eq!(world.handled, [0, 1, 2]);
    }
}

#[test]
fn a_call_that_would_not_end_before_the_broker_takes_its_message_back_begins_with_one_that_came_just_now() {
    let takes = Duration::from_secs(700);
    let mut world = World::running(Settings { prefetch: 9, late_timeout: takes, ..settings() }, 9);
    while world.handled.len() < 9 {
        world.pass(takes);
        let called = |slot: &&window::Slot| matches!(slot.state, window::State::Running { .. });
        let held = world.engine.window.open_slots().find(called).map(|slot| world.now - slot.since);
        assert!(held.is_some_and(|held| held < Duration::from_secs(1800)), "{held:?}");
        world.answer_all(Verdict::Ack);
        world.settle();
    }
}

#[test]
fn what_goes_back_after_a_long_wait_is_not_called_after_those_that_came_later() {
    let mut world = World::running(Settings { prefetch: 5, ..settings() }, 30);
    for _ in 0..30 {
        world.pass(Duration::from_secs(400));
        world.answer_all(Verdict::Ack);
        world.settle();
    }
    assert_eq!(world.handled, (0..30).collect::<Vec<_>>());
    assert!(world.saw(&Observation::Settled(Outcome::Returned)) > 0);
}

#[test]
fn what_has_an_ordering_key_does_not_go_back_one_by_one_however_long_it_waits() {
    let (_, mut world) = ordered();
    world.pass(Duration::from_secs(1700));
    assert_eq!((world.saw(&Observation::Settled(Outcome::Returned)), world.held_long()), (0, 5));
}

#[test]
fn a_copy_that_the_broker_does_not_take_for_long_is_given_up_for_its_message_alone() {
    let mut world = World::running(Settings { prefetch: 2, concurrency: 2, ..settings() }, 2);
    world.copies = Some(PublishResult::Refused);
    let failing = *world.calls.keys().min().unwrap();
    world.answer(failing, retry(500));
    world.settle();
    world.pass(Duration::from_secs(1445));
    assert_eq!((world.saw(&Observation::Settled(Outcome::Returned)), world.held_long()), (1, 1));
    assert_eq!((world.calls.len(), world.unacked.len()), (2, 2), "it is called again, beside the other");
}

#[test]
fn a_batch_that_may_wait_for_longer_than_a_message_is_held_begins_before_that() {
    for (wait, timeout, call) in [(20, 60, 30), (35, 60, 30), (60, 60, 30), (60, 149, 300)] {
        let batch = Some(Batch { max_messages: 4, max_wait: Duration::from_secs(wait) });
        let settings = Settings {
            batch,
            consumer_timeout: Duration::from_secs(timeout),
            late_timeout: Duration::from_secs(call),
            prefetch: 4,
            ..settings()
        };
        let mut world = World::running(settings, 1);
        world.pass(Duration::from_secs(wait));
        assert_eq!(world.calls.len(), 1, "{wait} {timeout} {call}");
        assert_eq!(world.saw(&Observation::Settled(Outcome::Returned)), 0, "{wait} {timeout} {call}");
    }
    // One that goes alone waits for nobody.
    let batch = Some(Batch { max_messages: 4, max_wait: Duration::from_secs(60) });
    let mut world = World::new(Settings { batch, prefetch: 4, ..settings() });
    world.queue.push_back(Message { number: 0, attempts: 1, key: None });
    world.connect();
    world.settle();
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn a_copy_that_the_broker_refuses_once_does_not_give_back_what_was_long_at_work() {
    // Beyond 80 % of the consumer timeout, and beyond what the sidecar takes it to be.
    for worked in [800, 1500, 2500] {
        let mut world =
            World::running(Settings { late_timeout: Duration::from_secs(worked + 700), ..settings() }, 1);
        world.pass(Duration::from_secs(worked));
        world.copies = Some(PublishResult::Refused);
        world.answer_all(retry(500));
        world.settle();
        assert_eq!((world.calls.len(), world.unacked.len()), (0, 1), "its work is not done again: {worked}");
        world.copies = Some(PublishResult::Confirmed);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.retried, [(0, Some(5), 1)], "{worked}");
    }
    let mut world = World::running(Settings { late_timeout: Duration::from_secs(2200), ..settings() }, 1);
    world.pass(Duration::from_secs(1500));
    world.copies = Some(PublishResult::Refused);
    world.answer_all(retry(500));
    world.settle();
    world.pass(Duration::from_secs(9));
    assert!(world.calls.is_empty());
    world.pass(Duration::from_secs(2));
    assert_eq!(world.calls.len(), 1, "the broker would soon take it back");
}

#[test]
fn a_reply_after_long_work_waits_a_moment_for_its_confirm_and_is_tried_again() {
    let dropped = |world: &World| {
        world.observed.iter().filter(|seen| matches!(seen, Observation::ReplyDropped { .. })).count()
    };
    let answered = || {
        let mut world = World::running(Settings { late_timeout: Duration::from_secs(2200), ..settings() }, 1);
        world.pass(Duration::from_secs(1500));
        world.copies = None;
        world.answer_all(Verdict::Reply);
        assert_eq!((dropped(&world), world.unacked.len()), (0, 1), "nothing was confirmed yet");
        world
    };
    let mut failed = answered();
    failed.publish_done(0, PublishResult::Failed);
    assert_eq!(dropped(&failed), 0);
    failed.copies = Some(PublishResult::Confirmed);
    failed.pass(Duration::from_secs(2));
    assert_eq!((failed.handled.clone(), dropped(&failed)), (vec![0], 0));
    let mut silent = answered();
    silent.pass(Duration::from_secs(11));
    assert_eq!((dropped(&silent), silent.unacked.len()), (1, 0));
}

#[test]
fn what_begins_or_goes_back_leaves_room_that_is_used_at_once() {
    let mut world = World::running(Settings { prefetch: 10, concurrency: 10, ..settings() }, 6);
    // The application restarts, and consuming is held meanwhile.
    world.port_open = false;
    world.answer_all(Verdict::Unreached);
    world.settle();
    world.pass(Duration::from_secs(3));
    assert_eq!((world.consuming, world.calls.len()), (None, 0));
    world.port_open = true;
    world.queue.extend((6..30).map(|number| Message { number, attempts: 0, key: None }));
    world.pass(Duration::from_secs(5));
    assert_eq!((world.consuming, world.calls.len()), (Some(10), 10));

    let mut world = World::running(settings(), 5);
    let not_now = || Verdict::NotNow { after: Some(Duration::from_secs(60)), status: 429 };
    world.answering(Duration::from_secs(300), |_, _| retry(500));
    assert!(world.engine.snapshot().breaker.is_some());
    let mut one = true;
    world.answering(Duration::from_secs(2400), |_, _| {
        if std::mem::take(&mut one) { Verdict::Ack } else { not_now() }
    });
    world.queue.push_back(Message { number: 9, attempts: 0, key: None });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.consuming, Some(1), "{:?}", world.engine.snapshot());
}

#[test]
fn the_auto_window_grows_with_a_fast_handler_shrinks_with_a_slow_one_and_changes_every_ten_seconds_at_most() {
    let auto = Settings { prefetch: 500, concurrency: 2, auto_prefetch: true, ..settings() };
    let mut world = World::running(auto, 200_000);
    assert_eq!(world.consuming, Some(4));
    // The model's broker answers at once, which is taken for a millisecond: 4 messages go by in two of those.
    world.working(Duration::from_secs(21), Duration::from_millis(1));
    assert_eq!(world.consuming, Some(6));
    world.working(Duration::from_secs(60), Duration::from_secs(3));
    assert_eq!(world.consuming, Some(2));
    assert_eq!(world.unacked.len(), 2, "nothing is held that could not start within a second");
    world.working(Duration::from_secs(21), Duration::from_millis(1));
    assert_eq!(world.consuming, Some(6));
    assert!(world.subscribed[1..].windows(2).all(|pair| pair[1].0 - pair[0].0 >= Duration::from_secs(10)));
}

#[test]
fn the_auto_window_never_exceeds_its_ceiling() {
    let auto = Settings { prefetch: 6, concurrency: 2, auto_prefetch: true, ..settings() };
    let mut world = World::running(auto, 200_000);
    world.working(Duration::from_secs(11), Duration::from_micros(500));
    assert_eq!(world.consuming, Some(6));
}

#[test]
fn an_application_that_never_listens_is_told_of_once() {
    let mut world = World::new(settings());
    world.port_open = false;
    world.connect();
    world.settle();
    let told =
        |world: &World| world.observed.iter().filter(|seen| **seen == Observation::HandlerDown).count();
    world.pass(Duration::from_secs(9));
    assert_eq!(told(&world), 0, "it may be starting");
    world.pass(Duration::from_secs(60));
    assert_eq!(told(&world), 1);
}

#[test]
fn not_now_and_answers_that_come_later_say_nothing_about_the_handlers_speed() {
    for verdict in [Verdict::NotNow { after: Some(Duration::ZERO), status: 429 }, Verdict::Later] {
        let late_timeout = Duration::from_secs(5);
        let auto =
            Settings { prefetch: 500, concurrency: 2, auto_prefetch: true, late_timeout, ..settings() };
        let mut world = World::running(auto, 2000);
        world.answering(Duration::from_secs(25), |_, _| verdict.clone());
        assert_eq!(world.subscribed.iter().map(|(_, window)| *window).max(), Some(4), "{verdict:?}");
    }
}

#[test]
fn a_late_delivery_took_from_its_call_to_its_end_however_it_ends() {
    let seconds = Duration::from_secs;
    let late = |end: &dyn Fn(&mut World, DeliveryId)| {
        let mut world = World::running(settings(), 1);
        world.pass(seconds(5));
        world.answer_all(Verdict::Later);
        world.pass(seconds(20));
        let id = world.late[0];
        world.step(Event::Extended { id });
        world.pass(seconds(20));
        end(&mut world, id);
        let took = world.observed.iter().filter_map(|seen| match seen {
            Observation::LateEnded { took, first: true, failed } => Some((*took, *failed)),
            _ => None,
        });
        took.collect::<Vec<_>>()
    };
    let dead = Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() };
    for verdict in [Verdict::Ack, Verdict::Reply, retry(500), dead] {
        let end = |world: &mut World, id| {
            world.finished.insert(id);
            world.step(Event::LateAnswer { id, verdict: verdict.clone() });
        };
        let failed = matches!(verdict, Verdict::Retry(_));
        assert_eq!(late(&end), [(seconds(45), failed)], "{verdict:?}");
    }
    let timed_out = late(&|world, _| world.pass(seconds(11)));
    assert_eq!(timed_out, [(seconds(55), true)]);
    // It has not ended here.
    assert!(late(&|world, _| world.disconnect()).is_empty());

    let mut world = World::running(settings(), 1);
    let id = DeliveryId { generation: 1, tag: 1 };
    world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
    world.pass(seconds(3));
    world.early.insert(id);
    world.answer_all(Verdict::Later);
    assert_eq!(
        world.saw(&Observation::LateEnded { took: seconds(3), first: true, failed: false }),
        1,
        "ended before its answer was read"
    );
}

#[test]
fn a_changed_window_is_asked_for_when_at_most_half_of_it_is_held_or_nothing_waits_to_be_started() {
    let with = |prefetch, concurrency| Settings { prefetch, concurrency, ..settings() };
    let mut world = World::running(with(20, 1), 100);
    world.step(Event::Configured(Box::new(with(16, 1))));
    let mut most = 0;
    while world.consuming.is_none() {
        world.answer_all(Verdict::Ack);
        world.settle();
        most = most.max(world.unacked.len());
    }
    assert!(world.consuming == Some(16) && most <= 16 + 8, "{most} held");
    // All of them at work: the ones that take long do not keep the handler without work.
    let mut world = World::running(with(10, 10), 100);
    world.step(Event::Configured(Box::new(with(11, 11))));
    world.settle();
    assert_eq!((world.consuming, world.unacked.len(), world.calls.len()), (Some(11), 21, 11));
}

#[derive(Clone, Debug)]
enum Op {
    Deliver,
    Answer(usize, Verdict),
    Publish(usize, PublishResult),
    Connect,
    Disconnect,
    Unreadable,
    Reply,
    Port(Seen),
    Drain,
    Late(usize, bool),
    Early(usize),
    Pass(u64),
    Pause(bool),
    Prefetch(u16),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        6 => Just(Verdict::Ack),
        3 => (400_u16..600).prop_map(retry),
        1 => Just(Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() }),
        1 => Just(Verdict::Reply),
        1 => Just(Verdict::Unreached),
        1 => Just(Verdict::Later),
        1 => (0_u64..20, prop::sample::select(vec![429, 503]))
            .prop_map(|(s, status)| Verdict::NotNow { after: Some(Duration::from_secs(s)), status }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let result = prop::sample::select(vec![
        PublishResult::Confirmed,
        PublishResult::Confirmed,
        PublishResult::Failed,
        PublishResult::Refused,
        PublishResult::Unroutable,
    ]);
    prop_oneof![
        12 => Just(Op::Deliver),
        12 => (any::<usize>(), verdict()).prop_map(|(index, verdict)| Op::Answer(index, verdict)),
        6 => (any::<usize>(), result).prop_map(|(index, result)| Op::Publish(index, result)),
        3 => Just(Op::Connect),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Unreadable),
        6 => Just(Op::Reply),
        3 => prop_oneof![8 => Just(Seen::Accepting), 1 => Just(Seen::Refusing), 1 => Just(Seen::Silent)]
            .prop_map(Op::Port),
        1 => Just(Op::Drain),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(index, end)| Op::Late(index, end)),
        2 => any::<usize>().prop_map(Op::Early),
        6 => (0_u64..30_000).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Pause),
        1 => (1_u16..9).prop_map(Op::Prefetch),
    ]
}

fn apply(world: &mut World, op: Op, settings: &mut Settings) {
    match op {
        Op::Deliver => {
            world.deliver();
        }
        Op::Answer(index, verdict) => {
            let mut calls: Vec<CallId> = world.calls.keys().copied().collect();
            calls.sort();
            if !calls.is_empty() {
                world.answer(calls[index % calls.len()], verdict);
            }
        }
        Op::Publish(index, result) => {
            if !world.publishes.is_empty() {
                let index = index % world.publishes.len();
                world.publish_done(index, result);
            }
        }
        Op::Connect => world.connect(),
        Op::Disconnect => world.disconnect(),
        Op::Unreadable => {
            world.disconnect();
            world.step(Event::Unreadable);
        }
        Op::Reply => {
            if !world.pending.is_empty() {
                let event = world.pending.remove(0);
                world.step(event);
            }
        }
        Op::Port(seen) => {
            if world.probe_at.take().is_some() {
                world.step(Event::HandlerPort { seen });
            }
        }
        Op::Drain => world.step(Event::Drain),
        Op::Late(index, end) => {
            if !world.late.is_empty() {
                let index = index % world.late.len();
                let id = world.late[index];
                if end {
                    let held = world.is_held(id) && !world.finished.contains(&id);
                    let later = world.engine.late_state(id) == LateReply::Accepted;
                    assert!(!later || held);
                    if later && world.at_handler.contains_key(&id) {
                        // It had timed out, and is called again.
                        world.early.insert(id);
                    } else if later {
                        world.finished.insert(id);
                        world.handled.push(world.unacked[&id.tag].number);
                    }
                    world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
                    world.late.remove(index);
                } else {
                    world.step(Event::Extended { id });
                }
            }
        }
        Op::Early(index) => {
            let mut running: Vec<DeliveryId> = world.at_handler.keys().copied().collect();
            running.sort();
            if !running.is_empty() {
                let id = running[index % running.len()];
                if world.engine.late_state(id) == LateReply::Accepted {
                    assert!(world.is_held(id) && world.early.insert(id));
                } else if !world.is_held(id) {
                    // Its channel is gone, and its work has ended all the same.
                    world.early.insert(id);
                }
                world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
            }
        }
        Op::Pass(milliseconds) => {
            world.now += Duration::from_millis(milliseconds);
            world.step(Event::Tick);
        }
        Op::Pause(paused) => {
            settings.paused = paused;
            world.step(Event::Configured(Box::new(settings.clone())));
        }
        Op::Prefetch(prefetch) => {
            settings.prefetch = prefetch;
            settings.concurrency = settings.concurrency.min(prefetch);
            world.step(Event::Configured(Box::new(settings.clone())));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The model asserts at each effect that nothing is settled twice, acknowledged before its end, called twice at once or
    /// sent to a channel that is gone. In the end, when everything works again, every message is handled or dead-lettered.
    #[test]
    fn whatever_happens_every_message_is_settled_once_and_none_is_forgotten(
        ops in prop::collection::vec(op(), 1..200),
        prefetch in 1_u16..8,
        concurrency in 1_u16..8,
        keyed in any::<bool>(),
        batched in any::<bool>(),
        terminated in prop::option::of(0_usize..100),
        consumer_timeout in prop::sample::select(vec![60, 1800]),
    ) {
        let batch = batched.then_some(Batch { max_messages: 3, max_wait: Duration::from_millis(20) });
        let consumer_timeout = Duration::from_secs(consumer_timeout);
        let mut settings =
            Settings { prefetch, concurrency, batch, ordered: keyed, consumer_timeout, ..settings() };
        let mut world = World::new(settings.clone());
        for number in 0..12 {
            world.queue.push_back(Message { number, attempts: 0, key: keyed.then_some(number % 3) });
        }
        world.step(Event::Tick);
        for (number, op) in ops.into_iter().enumerate() {
            if terminated == Some(number) {
                world.step(Event::Terminate);
            }
            if world.exits > 0 {
                break;
            }
            apply(&mut world, op, &mut settings);
            let mut looks = 0;
            while world.engine.next_wake().is_some_and(|wake| wake <= world.now) && looks < 10 {
                world.step(Event::Tick);
                looks += 1;
            }
            let mut more = Vec::new();
            world.engine.step(Event::Tick, world.now, &mut more);
            for effect in more {
                // What waits to be acknowledged with others may see only now that there are none.
                let is_ack = matches!(effect, Effect::Ack { .. });
                prop_assert!(is_ack, "a look that nothing has asked for finds something to do: {effect:?}");
                world.perform(effect);
            }
        }
        settings.paused = false;
        if terminated.is_some() {
            world.restart(settings.clone());
        }
        world.step(Event::Configured(Box::new(settings)));
        world.port_open = true;
        world.connect();
        world.settle();
        world.answering(Duration::from_secs(700), |_, _| Verdict::Ack);
        let mut ended: HashSet<u64> = world.handled.iter().copied().collect();
        ended.extend(world.dead.iter().map(|(number, _)| *number));
        prop_assert_eq!(ended.len(), 12);
        prop_assert!(world.queue.is_empty(), "{} wait", world.queue.len());
        prop_assert!(world.unacked.is_empty(), "{} held", world.unacked.len());
    }
}
