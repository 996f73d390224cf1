//! Whether messages flow: the subscription, the handler's port, what is given back, and the drain.

use std::time::Duration;

use super::backoff::Backoff;
use super::engine::Engine;
use super::event::{Copy, DeliveryId, Effect, Observation, Outcome, PublishResult, Seen, Time};
use super::window::{Slot, State};

/// How long messages are held through an outage of the application before healthy pods get them.
pub const HOLD: Duration = Duration::from_secs(10);
/// Messages held to probe with while the breaker is open: two, also where the Worker asks for one. A message of an ordering
/// key that fails keeps its place, and if it is poison it would, alone, keep the breaker open for ever.
const PROBE_WINDOW: u16 = 2;

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
    probing: bool,
    backoff: Backoff,
    first: bool,
}

impl Handler {
    pub fn new(seed: u64) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
        Self { down_since: Some(Time::ZERO), probing: false, backoff, first: true }
    }

    pub fn is_up(&self) -> bool {
        self.down_since.is_none()
    }

    /// A call was refused; true if that is news.
    pub fn refused(&mut self, now: Time) -> bool {
        let news = self.down_since.is_none();
        self.down_since.get_or_insert(now);
        news
    }
}

/// The drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// It goes on.
    Active {
        since: Time,
        port: Port,
    },
    /// It has ended.
    Done {
        since: Time,
        port: Port,
    },
}

/// What the handler's port did since a drain began. Only a port that went away and came back shows that the application was
/// restarted: one that begins to listen may be that of a pod that is deleted while it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// It has not accepted.
    Unseen,
    /// It accepted.
    Accepted,
    /// It accepted, and refused after that.
    Gone,
}

impl Port {
    /// One more look at it; none: it is back.
    fn seen(self, seen: Seen) -> Option<Self> {
        match (self, seen) {
            (Self::Gone, Seen::Accepting) => None,
            (Self::Unseen | Self::Accepted, Seen::Accepting) => Some(Self::Accepted),
            (Self::Accepted | Self::Gone, Seen::Refusing) => Some(Self::Gone),
            (Self::Unseen, Seen::Refusing) => Some(Self::Unseen),
            (same, Seen::Silent) => Some(same),
        }
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
            let stays = self.keeps_order() && now < since + HOLD;
            self.wake_at(Some(since + HOLD).filter(|_| stays));
            return self.subscription.prefetch().filter(|_| stays);
        }
        match self.breaker.open_since() {
            Some(since) if now >= since + HOLD => {
                Some(u16::try_from(self.probe_window()).unwrap_or(u16::MAX))
            }
            Some(since) => {
                self.wake_at(Some(since + HOLD));
                None
            }
            None => {
                let target = self.auto.target(&self.settings, now);
                if self.settings.auto_prefetch {
                    self.wake_at(self.auto.next_look());
                }
                Some(target)
            }
        }
    }

    /// Messages that, while the breaker is open, have failed so many probes that they may be poison, and yet keep their place
    /// for their ordering key's sake: as many must get past them, or no good one would ever come.
    fn stuck(&mut self) -> Vec<DeliveryId> {
        if self.breaker.open_since().is_none() {
            return Vec::new();
        }
        let stuck = self.window.open_slots().filter(|slot| slot.is_stuck());
        stuck.map(|slot| slot.incoming.id).collect()
    }

    fn probe_window(&mut self) -> usize {
        usize::from(PROBE_WINDOW) + self.stuck().len()
    }

    /// Whether a new consumer may start. The broker counts for each consumer by itself, so what the former one delivered
    /// comes on top of the new window. While something waits to be started there is no hurry; what is at work or waits in
    /// place may take long, and waiting for that would leave the handler without work. While the breaker is open, what is at
    /// work does not count at all: it would take the places of what is to be probed with.
    fn has_room(&mut self, prefetch: u16) -> bool {
        let stuck = self.stuck().len();
        let held = if self.breaker.open_since().is_some() {
            let waits = |slot: &&mut Slot| matches!(slot.state, State::Received | State::Waiting { .. });
            self.window.open_slots().filter(|slot| waits(slot) && !slot.is_stuck()).count()
        } else {
            self.window.unsettled()
        };
        let prefetch = usize::from(prefetch).saturating_sub(stuck);
        held * 2 <= prefetch || (held < prefetch && self.ready.len() == 0)
    }

    pub(super) fn reconcile_subscription(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let desired = self.desired(now);
        self.handing_back = false;
        let Some(generation) = self.generation else { return };
        match (self.subscription, desired) {
            (Subscription::None, Some(prefetch)) if self.has_room(prefetch) => {
                self.subscription = Subscription::Subscribing { prefetch, since: now };
                effects.push(Effect::Subscribe { generation, prefetch });
            }
            (Subscription::Active { prefetch }, desired)
                if desired != Some(prefetch) && self.keeps_order() =>
            {
                self.hand_back(desired, now, effects);
            }
            (Subscription::Active { prefetch }, desired) if desired != Some(prefetch) => {
                self.subscription = Subscription::Cancelling { prefetch };
                effects.push(Effect::Unsubscribe { generation });
            }
            (Subscription::None | Subscription::Active { .. }, _)
            | (Subscription::Subscribing { .. } | Subscription::Cancelling { .. }, _) => {}
        }
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
        draining
            && !self.handing_back
            && self.generation.is_some()
            && self.handler.is_up()
            && !self.settings.paused
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
        if self.settings.paused {
            return Some(0);
        }
        if let Some(since) = self.handler.down_since {
            if now >= since + HOLD {
                return Some(0);
            }
            if self.window.open() > 0 {
                self.wake_at(Some(since + HOLD));
            }
        }
        self.breaker.open_since().filter(|since| now >= *since + HOLD).map(|_| self.probe_window())
    }

    /// Gives back what waits though it cannot be handled here, once no consumer would bring it straight back.
    pub(super) fn give_back(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(keep) = self.keep(now) else { return };
        if self.generation.is_none()
            || matches!(self.subscription, Subscription::Active { .. } | Subscription::Subscribing { .. })
        {
            return;
        }
        // Until then each copy is tried again: given back, its message would be handled again.
        let over = self.is_drain_over(now);
        let stuck = self.stuck();
        let mut kept: Vec<DeliveryId> = self.ready.iter().collect();
        // Given back, they would come again as if they had never been tried.
        kept.sort_by_key(|id| !stuck.contains(id));
        kept.truncate(keep);
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
        for id in returned {
            if let Some(slot) = self.window.get_mut(id).cloned() {
                self.remember(&slot);
            }
            self.window.give_back(id);
            effects.push(Effect::Nack { id });
            effects.push(Effect::Forget { id });
            effects.push(Effect::Observe(Observation::Settled(Outcome::Returned)));
        }
        let busy: Vec<u64> = self
            .window
            .open_slots()
            .filter_map(|slot| slot.incoming.key)
            .collect::<Vec<u64>>()
            .into_iter()
            .chain(self.busy_keys())
            .collect();
        self.ready.rebuild(kept, busy.into_iter());
    }

    /// Ends what only waits for another try of its reply when no time is left for one: given back, its work would be done again.
    pub(super) fn drop_replies(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.is_drain_over(now) {
            return;
        }
        let replies: Vec<DeliveryId> = self
            .window
            .open_slots()
            .filter(|slot| matches!(slot.state, State::Unpublished { copy: Copy::Reply, .. }))
            .map(|slot| slot.incoming.id)
            .collect();
        if replies.is_empty() {
            return;
        }
        for id in replies {
            self.drop_reply(id, PublishResult::Failed, now, effects);
        }
        let prefetch = self.subscription.prefetch().unwrap_or(self.settings.prefetch);
        self.window.flush(now, prefetch, effects);
        self.wake_at(self.window.ack_due());
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

    pub(super) fn handler_port(&mut self, seen: Seen, effects: &mut Vec<Effect>) {
        self.handler.probing = false;
        if seen == Seen::Accepting && self.handler.down_since.take().is_some() {
            self.handler.backoff.reset();
            effects.push(Effect::Observe(Observation::HandlerUp));
        }
        let (Drain::Active { port, .. } | Drain::Done { port, .. }) = &mut self.drain else { return };
        match port.seen(seen) {
            Some(seen) => *port = seen,
            None if self.terminating => {}
            None => {
                if matches!(self.drain, Drain::Active { .. }) {
                    // Whoever asked for it would wait in vain.
                    self.window.flush_all(effects);
                    effects.push(Effect::Drained { complete: false });
                }
                self.drain = Drain::No;
                effects.push(Effect::Observe(Observation::DrainReversed));
            }
        }
    }

    pub(super) fn begin_drain(&mut self, now: Time, effects: &mut Vec<Effect>) {
        match self.drain {
            Drain::No => {
                self.drain = Drain::Active { since: now, port: Port::Unseen };
                effects.push(Effect::Observe(Observation::DrainBegan));
                // That it is up may be old news: what it does from now on is measured against what it does now.
                if !self.handler.probing {
                    self.handler.probing = true;
                    effects.push(Effect::ProbeHandler { after: Duration::ZERO });
                }
            }
            Drain::Active { .. } => {}
            Drain::Done { .. } => {
                self.window.flush_all(effects);
                effects.push(Effect::Drained { complete: self.has_ended() });
            }
        }
    }

    pub(super) fn terminate(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.terminating {
            return;
        }
        self.terminating = true;
        match self.drain {
            Drain::No => {
                effects.push(Effect::Observe(Observation::TerminatedUndrained));
                self.begin_drain(now, effects);
            }
            Drain::Active { .. } => {}
            Drain::Done { .. } => {
                self.window.flush_all(effects);
                effects.push(Effect::Exit);
            }
        }
    }

    /// After the whole grace period without SIGTERM the pod lives on.
    pub(super) fn reverse_drain(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Drain::Done { since, .. } = self.drain else { return };
        if self.terminating {
            return;
        }
        let grace = since + self.settings.grace_period;
        if now >= grace {
            self.drain = Drain::No;
            effects.push(Effect::Observe(Observation::DrainReversed));
        } else {
            self.wake_at(Some(grace));
        }
    }

    fn has_ended(&self) -> bool {
        self.calls.is_empty() && self.window.open() == 0 && self.subscription == Subscription::None
    }

    pub(super) fn finish_drain(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Drain::Active { since, port } = self.drain else { return };
        let complete = self.has_ended();
        let deadline = since + self.settings.drain_timeout;
        if !complete && now < deadline {
            self.wake_at(Some(deadline));
            return;
        }
        self.drain = Drain::Done { since, port };
        // The process may end now, and what was just finished would be done again.
        self.window.flush_all(effects);
        effects.push(Effect::Observe(Observation::DrainEnded { took: now - since, complete }));
        effects.push(Effect::Drained { complete });
        if self.terminating {
            effects.push(Effect::Exit);
        } else {
            self.wake_at(Some(since + self.settings.grace_period));
        }
    }
}
