//! Whether messages flow: the subscription, the handler's port, and what is given back.

use std::collections::HashSet;
use std::time::Duration;

use super::backoff::Backoff;
use super::drain::Drain;
use super::engine::Engine;
use super::event::{DeliveryId, Effect, Observation, Seen, Time};
use super::window::State;

/// How long messages are held through an outage of the application before healthy pods get them.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long the application may take to listen before that is told: most are started at the same moment.
const STARTING: Duration = Duration::from_secs(10);
/// Messages held to probe with while the breaker is open: two, also where the Worker asks for one. A message of an ordering
/// key that fails keeps its place, and if it is poison it would, alone, keep the breaker open for ever.
const PROBE_WINDOW: usize = 2;
/// Messages of its key that are taken in behind one that is stuck, if the window is not larger, to get at those of other keys.
const MOST_BEHIND: usize = 20;

/// What holds a place while the breaker is open.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    /// Failed so many probes that it may be poison, and yet keeps its place: as many must get past them, or no good one would
    /// ever come.
    stuck: usize,
    /// Wait behind one of these, since they have its key: nothing can be probed with them either.
    behind: usize,
    /// Can be probed with.
    free: usize,
}

impl Places {
    fn window(self, free: usize) -> usize {
        free + self.stuck + self.behind
    }
}

/// The consumer, as far as this side knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    None,
    Subscribing { prefetch: u16, since: Time },
    Active { prefetch: u16 },
    Cancelling { prefetch: u16 },
}

impl Subscription {
    pub fn prefetch(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Subscribing { prefetch, .. }
            | Self::Active { prefetch }
            | Self::Cancelling { prefetch } => Some(prefetch),
        }
    }
}

/// The handler's port.
#[derive(Debug)]
pub(super) struct Handler {
    /// Since when it refuses; at the start it is not known, which is the same.
    down_since: Option<Time>,
    /// Whether a try of the port is on the way.
    pub probing: bool,
    backoff: Backoff,
    first: bool,
    /// Whether it was told that it has not come.
    missed: bool,
}

impl Handler {
    pub fn new(seed: u64) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
        Self { down_since: Some(Time::ZERO), probing: false, backoff, first: true, missed: false }
    }

    pub fn is_up(&self) -> bool {
        self.down_since.is_none()
    }

    /// Whether it has refused since the start.
    pub fn never_listened(&self) -> bool {
        self.down_since == Some(Time::ZERO)
    }

    /// Whether it has been away for so long that others get what is held.
    fn is_away(&self, now: Time) -> bool {
        self.down_since.is_some_and(|since| now >= since + HOLD)
    }

    /// A call was refused; true if that is news.
    pub fn refused(&mut self, now: Time) -> bool {
        let news = self.down_since.is_none();
        self.down_since.get_or_insert(now);
        news
    }
}

impl Engine {
    pub(super) fn subscribed(&mut self, generation: u64, now: Time) {
        if self.generation != Some(generation) {
            return;
        }
        if let Subscription::Subscribing { prefetch, since } = self.subscription {
            self.auto.round_trip(now.saturating_sub(since));
            self.subscription = Subscription::Active { prefetch };
        }
    }

    pub(super) fn unsubscribed(&mut self, generation: u64) {
        if self.generation == Some(generation) {
            self.subscription = Subscription::None;
        }
    }

    /// The window that should be asked for; none: no consumer now.
    fn desired(&mut self, now: Time) -> Option<u16> {
        if self.settings.paused || self.drain != Drain::No {
            return None;
        }
        if let Some(since) = self.handler.down_since {
            // A short absence of the application is no reason to give the queue up where that costs the order.
            let stays = self.keeps_order() && !self.handler.is_away(now);
            self.wake_at(Some(since + HOLD).filter(|_| stays));
            return self.subscription.prefetch().filter(|_| stays);
        }
        match self.breaker.open_since() {
            Some(since) if now >= since + HOLD => {
                let places = self.places(now);
                self.wake_at(self.caution.until(now));
                // A quorum queue puts what comes back behind what came back before and is there still. What was handed back when the
                // breaker opened is not to be, when this consumer gives up: it takes in as much, unless a message cannot be read.
                let in_order = self.settings.ordered && !self.caution.is_on(now);
                let before = if in_order { self.settings.prefetch } else { 0 };
                let free = if self.caution.is_on(now) { 1 } else { PROBE_WINDOW };
                let window = u16::try_from(places.window(free)).unwrap_or(u16::MAX).max(before);
                // A queue of little else than one key is not taken in as a whole.
                let most = places.stuck * MOST_BEHIND.max(usize::from(self.settings.prefetch));
                self.subscription.prefetch().filter(|_| places.behind > most).or(Some(window))
            }
            Some(since) => {
                self.wake_at(Some(since + HOLD));
                self.subscription.prefetch().filter(|_| self.keeps_order())
            }
            None => {
                let target = self.auto.target(&self.settings, now);
                if self.settings.auto_prefetch {
                    self.wake_at(Some(self.auto.next_look()));
                }
                self.wake_at(self.caution.until(now));
                Some(if self.caution.is_on(now) { 1 } else { target })
            }
        }
    }

    fn places(&self, now: Time) -> Places {
        let stuck = self.window.open_slots().filter(|slot| slot.is_stuck(now));
        let keys: HashSet<u64> = stuck.filter_map(|slot| slot.incoming.key).collect();
        let mut places = Places::default();
        for slot in self.window.open_slots() {
            match slot.state {
                _ if slot.is_stuck(now) => places.stuck += 1,
                State::Received if slot.incoming.key.is_some_and(|key| keys.contains(&key)) => {
                    places.behind += 1;
                }
                State::Received | State::Waiting { .. } => places.free += 1,
                _ => {}
            }
        }
        places
    }

    /// Whether a new consumer may start. The broker counts for each consumer by itself, so what the former one delivered
    /// comes on top of the new window. While something waits to be started there is no hurry; what is at work or waits in
    /// place may take long, and waiting for that would leave the handler without work. While the breaker is open, what is at
    /// work does not count at all: it would take the places of what is to be probed with.
    fn has_room(&self, prefetch: u16, now: Time) -> bool {
        let (held, prefetch) = match self.breaker.open_since() {
            Some(_) => (self.places(now).free, PROBE_WINDOW.min(prefetch.into())),
            // What the outage has left of copies that the broker does not take came on top of the window.
            None => {
                let left = self.window.open_slots().filter(|slot| slot.is_stuck(now) && slot.has_copy());
                (self.window.unsettled() - left.count(), usize::from(prefetch))
            }
        };
        held * 2 <= prefetch || (held < prefetch && self.ready.len() == 0)
    }

    pub(super) fn reconcile_subscription(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let desired = self.desired(now);
        // Others get a try with all that is held here, also where the window to probe with is as large as the one before.
        let outage = self.settings.ordered
            && !self.probes()
            && self.breaker.open_since().is_some_and(|since| now >= since + HOLD);
        self.handing_back = false;
        let Some(generation) = self.generation else { return };
        match (self.subscription, desired) {
            (Subscription::None, Some(prefetch)) if self.has_room(prefetch, now) => {
                self.subscription = Subscription::Subscribing { prefetch, since: now };
                self.subscribed_at = now;
                effects.push(Effect::Subscribe { generation, prefetch });
            }
            (Subscription::Active { prefetch }, desired)
                if outage || (desired != Some(prefetch) && self.keeps_order()) =>
            {
                self.hand_back(desired, outage, now, effects);
            }
            // What is held of a consumer that was cancelled for another window.
            (Subscription::None, None)
                if self.settings.ordered && self.gives_up(now) && self.window.unsettled() > 0 =>
            {
                self.hand_back(None, outage, now, effects);
            }
            (Subscription::Active { prefetch }, desired) if desired != Some(prefetch) => {
                self.subscription = Subscription::Cancelling { prefetch };
                effects.push(Effect::Unsubscribe { generation });
            }
            (Subscription::None | Subscription::Active { .. }, _)
            | (Subscription::Subscribing { .. } | Subscription::Cancelling { .. }, _) => {
                self.window_wanted = None;
                self.others_wait = None;
            }
        }
    }

    /// Whether nothing of the queue is wanted here, whatever the breaker says.
    fn gives_up(&self, now: Time) -> bool {
        self.settings.paused || self.drain != Drain::No || self.handler.is_away(now)
    }

    /// Whether calls may start at all.
    pub(super) fn may_dispatch(&self, now: Time) -> bool {
        let draining = match self.drain {
            Drain::No => true,
            Drain::Active { since, .. } => {
                now < since + self.settings.starts_while_draining() && self.breaker.open_since().is_none()
            }
            Drain::Done { .. } => false,
        };
        draining && !self.handing_back && self.handler.is_up() && !self.settings.paused
    }

    /// How many of the waiting messages to keep; none: all of them.
    fn keep(&mut self, now: Time) -> Option<usize> {
        match self.drain {
            Drain::Active { since, .. } => {
                let until = since + self.settings.starts_while_draining();
                self.wake_at(Some(until).filter(|until| *until > now));
                if !self.may_dispatch(now) {
                    return Some(0);
                }
            }
            Drain::Done { .. } => return Some(0),
            Drain::No => {}
        }
        if self.settings.paused || self.handler.is_away(now) {
            return Some(0);
        }
        if let Some(since) = self.handler.down_since.filter(|_| self.window.open() > 0) {
            self.wake_at(Some(since + HOLD));
        }
        self.breaker
            .open_since()
            .filter(|since| now >= *since + HOLD)
            .map(|_| self.places(now).window(PROBE_WINDOW))
    }

    /// Gives back what waits though it cannot be handled here, once no consumer would bring it straight back. Where an order is kept
    /// all goes back at once, when the queue is given up and when the breaker opens: one by one it would come in another order, and
    /// what came again and again, while the breaker is open, the broker would deliver no more at some time, since it counts that.
    pub(super) fn give_back(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.settings.ordered {
            return;
        }
        let Some(keep) = self.keep(now) else { return };
        if matches!(self.subscription, Subscription::Active { .. } | Subscription::Subscribing { .. }) {
            return;
        }
        // Until then each copy is tried again: given back, its message would be handled again.
        let over = self.is_drain_over(now);
        let kept: Vec<DeliveryId> = self.ready.iter().take(keep).collect();
        let returned: Vec<DeliveryId> = self
            .window
            .open_slots()
            .filter(|slot| match slot.state {
                State::Received | State::Waiting { .. } => !kept.contains(&slot.incoming.id),
                State::Unpublished { .. } => over,
                State::Running { .. }
                | State::Later { .. }
                | State::Publishing { .. }
                | State::Finished { .. }
                | State::Settled => false,
            })
            .map(|slot| slot.incoming.id)
            .collect();
        if returned.is_empty() {
            return;
        }
        self.return_all(returned, effects);
        let held = self.window.open_slots().filter_map(|slot| slot.incoming.key);
        let busy: Vec<u64> = held.chain(self.busy_keys()).collect();
        self.ready.rebuild(kept, busy.into_iter());
    }

    /// Keeps one try of the port on the way while its answer matters.
    pub(super) fn probe_handler(&mut self, effects: &mut Vec<Effect>) {
        if self.handler.probing {
            return;
        }
        let after = if self.handler.first {
            Duration::ZERO
        } else if !self.handler.is_up() {
            self.handler.backoff.pause()
        } else if self.drain != Drain::No {
            Duration::from_secs(1)
        } else {
            return;
        };
        self.handler.first = false;
        self.handler.probing = true;
        effects.push(Effect::ProbeHandler { after });
    }

    pub(super) fn handler_port(&mut self, seen: Seen, now: Time, effects: &mut Vec<Effect>) {
        self.handler.probing = false;
        let never_up = self.handler.never_listened() && seen != Seen::Accepting;
        if never_up && now >= STARTING && !std::mem::replace(&mut self.handler.missed, true) {
            effects.push(Effect::Observe(Observation::HandlerDown));
        }
        if seen == Seen::Accepting && self.handler.down_since.take().is_some() {
            self.handler.backoff.reset();
            effects.push(Effect::Observe(Observation::HandlerUp));
        }
        self.port_during_drain(seen, effects);
    }
}
