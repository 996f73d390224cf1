//! What is held long. Where one delivery is not settled within the broker's consumer timeout, the broker closes the channel and
//! takes back everything on it (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>), what the application works on
//! too. So what only waits here goes back by itself before that, and what is at work is warned of.

use std::collections::HashSet;
use std::time::Duration;

use super::engine::Engine;
use super::event::{Copy, DeliveryId, Effect, Observation, Outcome, Time};
use super::window::{Slot, State};

/// The share of the broker's consumer timeout after which a delivery is held long, in percent.
const HELD_LONG_PERCENT: u32 = 80;

impl Slot {
    /// Whether it may go back to the broker: nobody works on it, and no work that is done would be done again.
    const fn only_waits(&self) -> bool {
        match &self.state {
            State::Received | State::Waiting { .. } => true,
            State::Unpublished { copy, .. } => !matches!(copy, Copy::Reply),
            State::Running { .. }
            | State::Later { .. }
            | State::Publishing { .. }
            | State::Finished { .. }
            | State::Settled => false,
        }
    }
}

impl Engine {
    /// How long a delivery may be held until the broker will soon take it back.
    pub(super) fn held_long(&self) -> Duration {
        self.settings.consumer_timeout * HELD_LONG_PERCENT / 100
    }

    /// A delivery's work has ended and it waits again, perhaps for longer than it should.
    pub(super) fn waits_since(&mut self, since: Time) {
        self.next_held_long = self.next_held_long.min(since + self.held_long());
    }

    /// Gives back what has waited for long, and warns of what is at work for long. The broker counts from a delivery's coming, so
    /// one that it brings straight back has its time anew.
    pub(super) fn end_long_waits(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.generation.is_none() || self.window.open() == 0 {
            return;
        }
        if now >= self.next_held_long {
            self.look_at_long_held(now, effects);
        }
        self.wake_at(Some(self.next_held_long));
    }

    fn look_at_long_held(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let limit = self.held_long();
        // What comes from now on, unless something is here that comes first.
        self.next_held_long = now + limit;
        let mut waited = false;
        let mut keys = HashSet::new();
        for slot in self.window.open_slots_mut() {
            if now < slot.since + limit {
                self.next_held_long = slot.since + limit;
                break;
            }
            if slot.only_waits() {
                waited = true;
                keys.extend(slot.incoming.key);
            } else if !std::mem::replace(&mut slot.warned, true) {
                let (id, held) = (slot.incoming.id, now - slot.since);
                effects.push(Effect::Observe(Observation::HeldLong { id, held }));
            }
        }
        if !waited {
            return;
        }
        // Those behind it that have its key would else come before it.
        let goes = |slot: &&Slot| {
            let behind = slot.incoming.key.is_some_and(|key| keys.contains(&key));
            slot.only_waits() && (behind || now >= slot.since + limit)
        };
        let returned: Vec<_> = self
            .window
            .open_slots()
            .filter(goes)
            .map(|Slot { incoming, .. }| (incoming.id, incoming.key))
            .collect();
        for (id, key) in returned.iter().rev() {
            self.ready.remove(*id, *key);
        }
        self.return_all(returned.into_iter().map(|(id, _)| id), effects);
    }

    /// Gives deliveries back to the broker, in their order.
    pub(super) fn return_all(&mut self, ids: impl Iterator<Item = DeliveryId>, effects: &mut Vec<Effect>) {
        for id in ids {
            if let Some(slot) = self.window.get_mut(id).cloned() {
                self.remember(&slot);
            }
            self.window.give_back(id);
            effects.push(Effect::Nack { id });
            effects.push(Effect::Forget { id });
            effects.push(Effect::Observe(Observation::Settled(Outcome::Returned)));
        }
    }
}
