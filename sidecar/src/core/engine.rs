//! The engine: one `step` takes an event and the time and appends what is to be done.
//!
//! After every event the engine looks at itself as a whole, in this order: time-outs, acknowledgements, subscription, what is
//! given back, calls, the subscription again, the end of a drain. So no event needs to know what others may have made possible.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::backoff::{Backoff, mix};
use super::breaker::Breaker;
use super::caution::Caution;
use super::drain::Drain;
use super::event::{
    CallId, Called, Copy, DeadReason, DeliveryId, Effect, Event, Incoming, LateReply, Observation, Time,
    Verdict,
};
use super::flow::{Handler, Subscription};
use super::prefetch::AutoPrefetch;
use super::ready::Ready;
use super::settings::Settings;
use super::throttle::Throttle;
use super::window::{Slot, State, Window};

/// Messages whose attempts are remembered at most, which is the largest window: what another pod handles stays in there.
const MOST_REMEMBERED: usize = 2000;

/// Of so many calls while the breaker is open, one is for what is first in turn, however often that was tried.
const IN_TURN: u64 = 8;
/// Timers beyond those that may still count, from which on the others are swept out.
const SPARE_TIMERS: usize = 1024;

/// A call that runs, also when the channel of its deliveries is gone.
#[derive(Debug)]
pub(super) struct Call {
    pub deliveries: Vec<AtHandler>,
    pub started: Time,
}

/// A delivery of a call that runs.
#[derive(Debug)]
pub(super) struct AtHandler {
    pub id: DeliveryId,
    pub key: Option<u64>,
    /// How the application has ended it while the call runs: it may do so before its answer `later` is read.
    pub ended: Option<Verdict>,
}

/// The consumer engine of one queue.
#[derive(Debug)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) seed: u64,
    /// The channel, while there is one. Without one the window is empty, and nothing is ready.
    pub(super) generation: Option<u64>,
    pub(super) subscription: Subscription,
    /// When the consumer was started.
    pub(super) subscribed_at: Time,
    pub(super) window: Window,
    pub(super) ready: Ready,
    pub(super) calls: HashMap<CallId, Call>,
    next_call: u64,
    /// Calls that have ended with messages that the application goes on with, and how many of these have not.
    pub(super) late: HashMap<CallId, usize>,
    /// Deliveries that the application goes on with though their channel is gone: their ordering keys, and until when.
    pub(super) outlived: HashMap<DeliveryId, (u64, Time)>,
    pub(super) handler: Handler,
    pub(super) breaker: Breaker,
    pub(super) throttle: Throttle,
    pub(super) auto: AutoPrefetch,
    pub(super) caution: Caution,
    /// When to look again at single deliveries; entries may be stale, and are swept out once they are [many](SPARE_TIMERS).
    pub(super) timers: BinaryHeap<Reverse<(Time, DeliveryId)>>,
    /// Before this nothing that is here is [held long](super::held).
    pub(super) next_held_long: Time,
    /// How many the last sweep has left: the next one comes when there are twice as many, so that it costs little for each.
    timers_left: usize,
    /// Failed attempts of messages that went back to the broker and were tried in place, by message id.
    remembered: HashMap<u64, u32>,
    pub(super) drain: Drain,
    /// Since when another window is wanted that has to wait for what is at work.
    pub(super) window_wanted: Option<Time>,
    /// Since when others wait for the queue, where it cannot be handed back at once.
    pub(super) others_wait: Option<Time>,
    /// Whether nothing new starts, because the channel is given up once what is at work has ended.
    pub(super) handing_back: bool,
    pub(super) terminating: bool,
    wake: Option<Time>,
}

/// A few numbers for gauges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Deliveries that are not settled.
    pub unsettled: usize,
    /// Messages at the handler.
    pub in_flight: usize,
    /// Of these, how many the application ends later.
    pub late: usize,
    /// The window asked of the broker; 0 while not consuming.
    pub prefetch: u16,
    /// Whether the application works on something, whatever became of its channel.
    pub works: bool,
    /// Whether the handler accepts connections.
    pub handler_accepts: bool,
    /// Whether the breaker is open, and the status that most failures had (0: none).
    pub breaker: Option<u16>,
    /// Whether a drain goes on or has ended.
    pub draining: bool,
    /// Whether deliveries come in.
    pub consuming: bool,
}

impl Engine {
    /// An engine that has no channel and does not know its handler yet. The seed spreads the pauses of many sidecars.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            throttle: Throttle::new(settings.concurrency, mix(seed)),
            settings,
            seed,
            generation: None,
            subscription: Subscription::None,
            subscribed_at: Time::ZERO,
            window: Window::default(),
            ready: Ready::default(),
            calls: HashMap::new(),
            next_call: 0,
            late: HashMap::new(),
            outlived: HashMap::new(),
            handler: Handler::new(seed),
            breaker: Breaker::new(),
            auto: AutoPrefetch::default(),
            caution: Caution::default(),
            timers: BinaryHeap::new(),
            next_held_long: Time::ZERO,
            timers_left: 0,
            remembered: HashMap::new(),
            drain: Drain::No,
            window_wanted: None,
            others_wait: None,
            handing_back: false,
            terminating: false,
            wake: None,
        }
    }

    /// Takes an event in and appends what is to be done because of it.
    pub fn step(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match event {
            Event::Configured(settings) => self.configured(*settings),
            Event::Opened { generation } => self.opened(generation),
            Event::Lost { generation } => self.lost(generation, effects),
            Event::Unreadable => {
                self.caution.begin(self.settings.prefetch, now);
                effects.push(Effect::Observe(Observation::Unreadable));
            }
            Event::Subscribed { generation } => self.subscribed(generation, now),
            Event::Unsubscribed { generation } => self.unsubscribed(generation),
            Event::Delivered(incoming) => self.delivered(incoming, now, effects),
            Event::Answered { call, answers } => self.answered(call, answers, now, effects),
            Event::Published { id, result } => self.published(id, result, now, effects),
            Event::LateAnswer { id, verdict } => self.late_answer(id, verdict, now, effects),
            Event::Extended { id } => self.extended(id, now, effects),
            Event::HandlerPort { seen } => self.handler_port(seen, now, effects),
            Event::Drain => self.begin_drain(now, effects),
            Event::Terminate => self.terminate(now, effects),
            Event::Leaving { over } => {
                if over {
                    self.give_up_replies(true, now, effects);
                }
                self.window.flush_all(effects);
            }
            Event::Tick => {}
        }
        self.evaluate(now, effects);
    }

    /// When to call [`Self::step`] with [`Event::Tick`] if nothing happens before.
    pub fn next_wake(&self) -> Option<Time> {
        self.wake
    }

    /// What it goes by just now.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The state in numbers.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            unsettled: self.window.unsettled(),
            in_flight: self.at_work(),
            works: self.at_work() > 0 || !self.outlived.is_empty(),
            late: self.late_messages(),
            prefetch: self.subscription.prefetch().unwrap_or(0),
            handler_accepts: self.handler.is_up(),
            breaker: self.breaker.open_since().map(|_| self.breaker.status().unwrap_or(0)),
            draining: !matches!(self.drain, Drain::No),
            consuming: matches!(self.subscription, Subscription::Active { .. }),
        }
    }

    fn at_work(&self) -> usize {
        self.calls.values().map(|call| call.deliveries.len()).sum::<usize>() + self.late_messages()
    }

    fn late_messages(&self) -> usize {
        self.late.values().sum()
    }

    fn configured(&mut self, settings: Settings) {
        self.throttle.set_ceiling(settings.concurrency);
        self.next_held_long = Time::ZERO;
        self.settings = settings;
    }

    fn opened(&mut self, generation: u64) {
        self.generation = Some(generation);
        self.window = Window::new(generation);
    }

    fn lost(&mut self, generation: u64, effects: &mut Vec<Effect>) {
        if self.generation == Some(generation) {
            self.forget_channel(generation, effects);
        }
    }

    /// Keeps the failed attempts of a message that goes back to the broker: no copy has recorded those that were made in
    /// place, and it would never run out of them.
    pub(super) fn remember(&mut self, slot: &Slot) {
        let Some(identity) = slot.incoming.identity.filter(|_| slot.local_attempts > 0) else { return };
        if self.remembered.len() >= MOST_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(identity, slot.local_attempts);
    }

    /// The keys of what the application works on, whatever became of its channel.
    pub(super) fn busy_keys(&self) -> impl Iterator<Item = u64> {
        let calls = self.calls.values().flat_map(|call| call.deliveries.iter().filter_map(|one| one.key));
        calls.chain(self.outlived.values().map(|(key, _)| *key))
    }

    /// The application goes on with a message whose channel is gone: the next one of its key waits until it has ended that.
    pub(super) fn outlive(&mut self, id: DeliveryId, key: u64, until: Time) {
        let before = self.outlived.insert(id, (key, until));
        if before.is_none_or(|(_, before)| until < before) {
            self.timers.push(Reverse((until, id)));
        }
    }

    /// Such work has ended.
    pub(super) fn end_outlived(&mut self, id: DeliveryId) {
        if let Some((key, _)) = self.outlived.remove(&id) {
            self.ready.release(Some(key));
        }
    }

    fn delivered(&mut self, mut incoming: Incoming, now: Time, effects: &mut Vec<Effect>) {
        if incoming.oversized.is_some() {
            // It never comes to a call, so it has no place in its key's order.
            incoming.key = None;
        }
        let (id, key, oversized, attempts) =
            (incoming.id, incoming.key, incoming.oversized, incoming.attempts);
        let again = incoming.identity.filter(|_| incoming.redelivered);
        if self.generation != Some(id.generation) || !self.window.push(incoming, now) {
            return;
        }
        self.caution.passed();
        if let Some(earlier) = again.and_then(|identity| self.remembered.remove(&identity))
            && let Some(slot) = self.window.get_mut(id)
        {
            slot.local_attempts = earlier;
        }
        match oversized {
            None => self.ready.push(id, key),
            Some(bytes) => {
                let detail =
                    format!("the body has {bytes} bytes, which is more than handler.http.maxBodyBytes");
                let copy = Copy::Dead { reason: DeadReason::TooLarge, detail, attempts };
                self.publish(id, copy, 0, now, effects);
            }
        }
    }

    fn extended(&mut self, id: DeliveryId, now: Time, effects: &mut Vec<Effect>) {
        let reply = self.late_state(id);
        let deadline = now + self.settings.late_timeout;
        if let Some((key, _)) = self.outlived.get(&id).copied() {
            self.outlive(id, key, deadline);
        }
        if reply == LateReply::Accepted {
            // While its call runs it cannot time out yet.
            if let Some(State::Later { deadline: until, .. }) =
                self.window.get_mut(id).map(|slot| &mut slot.state)
            {
                // The timer that it has is set again when it is due, or a heartbeat would leave one each time.
                if deadline < *until {
                    self.timers.push(Reverse((deadline, id)));
                }
                *until = deadline;
            }
        }
        effects.push(Effect::Late(reply));
    }

    /// Whether a delivery waits for the application's late answer, or has not had it yet while its call runs: the application
    /// may go on before its answer `later` is read.
    pub fn late_state(&self, id: DeliveryId) -> LateReply {
        if let Some(slot) = self.window.get(id) {
            let waits = match slot.state {
                State::Later { .. } => true,
                State::Running { call } => self.calls.get(&call).is_some_and(|call| {
                    call.deliveries.iter().any(|one| one.id == id && one.ended.is_none())
                }),
                State::Received
                | State::Waiting { .. }
                | State::Publishing { .. }
                | State::Unpublished { .. }
                | State::Finished { .. }
                | State::Settled => false,
            };
            return if waits { LateReply::Accepted } else { LateReply::Ended };
        }
        let earlier = id.generation >= 1 && id.generation < self.window.generation;
        let lost = self.generation.is_none() && id.generation == self.window.generation;
        if earlier || lost || self.window.has_seen(id) { LateReply::Ended } else { LateReply::Unknown }
    }

    fn evaluate(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.wake = None;
        self.expire(now, effects);
        self.reverse_drain(now, effects);
        self.drop_replies(now, effects);
        let prefetch = self.subscription.prefetch().unwrap_or(self.settings.prefetch);
        self.window.flush(now, prefetch, effects);
        self.wake_at(self.window.ack_due());
        self.probe_handler(effects);
        self.reconcile_subscription(now, effects);
        self.give_back(now, effects);
        self.end_long_waits(now, effects);
        self.dispatch(now, effects);
        if self.subscription == Subscription::None {
            // What was started or went back has left room for others.
            self.reconcile_subscription(now, effects);
        }
        self.finish_drain(now, effects);
    }

    pub(super) fn wake_at(&mut self, at: Option<Time>) {
        if let Some(at) = at {
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        }
    }

    fn expire(&mut self, now: Time, effects: &mut Vec<Effect>) {
        // Most of what is waited for ends long before its time.
        if self.timers.len() > SPARE_TIMERS + 2 * self.timers_left {
            let (window, outlived) = (&self.window, &self.outlived);
            self.timers.retain(|Reverse((_, id))| window.get(*id).is_some() || outlived.contains_key(id));
            self.timers_left = self.timers.len();
        }
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                self.wake_at(Some(at));
                return;
            }
            self.timers.pop();
            self.expired(id, now, effects);
        }
    }

    /// Starts what may start. Work that ends later has its place in the user's limit; a throttled one is about calls alone, or
    /// nothing would start until such work has ended.
    fn dispatch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        while self.may_dispatch(now) {
            let taken = self.calls.len() + self.late.len();
            if taken >= usize::from(self.settings.concurrency) || self.is_probing(now) {
                return;
            }
            let start = match self.breaker.next_probe() {
                Some(probe) => self.throttle.may_start(0).map(|start| start.max(probe)),
                None => self.throttle.may_start(self.calls.len()),
            };
            let Some(start) = start else { return };
            let Some(start) = self.batch_complete_at(now).map(|complete| complete.max(start)) else { return };
            if start > now {
                self.wake_at(Some(start));
                return;
            }
            self.start_call(now, effects);
        }
    }

    /// Whether a probe has not ended. What began before the breaker opened is none: waiting for it could take as long as the
    /// work does. So is one that the application, which goes on with it, extends beyond the time of a call.
    fn is_probing(&mut self, now: Time) -> bool {
        if self.breaker.open_since().is_none() {
            return false;
        }
        if self.calls.values().any(|call| self.breaker.is_open_at(call.started)) {
            return true;
        }
        let longest = self.settings.late_timeout;
        let later =
            |slot: &&Slot| matches!(slot.state, State::Later { .. }) && self.breaker.is_open_at(slot.called);
        let until = self.window.open_slots().filter(later).map(|slot| slot.called + longest).max();
        let until = until.filter(|until| *until > now);
        self.wake_at(until);
        until.is_some()
    }

    /// When the next call has all the messages that it should wait for; none: nothing is ready.
    fn batch_complete_at(&self, now: Time) -> Option<Time> {
        let first = self.ready.peek()?;
        let Some(batch) = self.settings.batch else { return Some(now) };
        let target = self.subscription.prefetch().unwrap_or(0);
        let Some(slot) = self.window.get(first) else { return Some(now) };
        let full = self.ready.len() >= usize::from(batch.max_messages)
            || self.window.unsettled() >= usize::from(target)
            // It goes alone.
            || slot.attempt() > 1;
        // What has waited for long goes back to the broker: its call begins well before that.
        Some(if full { now } else { slot.since + batch.max_wait.min(self.longest_wait() / 2) })
    }

    fn start_call(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let most = match self.breaker.open_since() {
            Some(_) => {
                // A good one among many that fail is found soonest when each is tried as often as the others. One that always
                // fails, and comes by the ladder as if it had never been tried, must not have all of the tries.
                let failures = |id: &DeliveryId| self.window.get(*id).map(|slot| slot.probe_failures);
                if !self.next_call.is_multiple_of(IN_TURN)
                    && let Some(least_tried) = self.ready.iter().min_by_key(failures)
                {
                    self.ready.put_first(least_tried);
                }
                1
            }
            None => self.settings.batch.map_or(1, |batch| usize::from(batch.max_messages)),
        };
        self.next_call += 1;
        let call = CallId(self.next_call);
        let mut deliveries = Vec::with_capacity(most.min(self.ready.len()));
        let mut at_handler = Vec::with_capacity(most.min(self.ready.len()));
        while deliveries.len() < most {
            let Some(id) = self.ready.pop() else { break };
            let Some(slot) = self.window.get_mut(id) else { continue };
            let attempt = slot.attempt();
            // A message that has failed goes alone, so that it cannot fail others with it again.
            if attempt > 1 && !deliveries.is_empty() {
                self.ready.put_back(id);
                break;
            }
            slot.state = State::Running { call };
            slot.called = now;
            deliveries.push(Called { id, attempt });
            at_handler.push(AtHandler { id, key: slot.incoming.key, ended: None });
            if attempt > 1 {
                break;
            }
        }
        if deliveries.is_empty() {
            return;
        }
        self.throttle.started(now);
        self.calls.insert(call, Call { deliveries: at_handler, started: now });
        effects.push(Effect::Call { call, deliveries });
    }

    /// A pause that grows with the number of tries, for one delivery.
    pub(super) fn pause_of(&mut self, tries: u32) -> Duration {
        self.seed = mix(self.seed);
        let first = Duration::from_millis(200) * 2_u32.saturating_pow(tries.min(8));
        Backoff::new(first.min(Duration::from_secs(30)), Duration::from_secs(30), self.seed).pause()
    }
}
