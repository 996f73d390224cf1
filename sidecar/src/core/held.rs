//! What is held long. Where one delivery is not settled within the broker's consumer timeout, the broker closes the channel and
//! takes back everything on it (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>), what the application works on
//! too. So what only waits here goes back by itself before that, and what is at work is warned of.
//!
//! What has an ordering key stays: given back one by one, messages can come again in another order. So does what a quorum queue
//! has counted a delivery of, as those before RabbitMQ 4.3 do with each return: it could reach its delivery limit without a call.

use std::time::Duration;

use super::engine::Engine;
use super::event::{Copy, DeliveryId, Effect, Incoming, Observation, Outcome, Time};
use super::settings::Settings;
use super::window::{Slot, State};

/// The share of the broker's consumer timeout after which a delivery is held long, in percent.
const HELD_LONG_PERCENT: u32 = 80;
/// The least such share after which one that only waits goes back, however long its call may take.
const LEAST_WAIT_PERCENT: u32 = 40;

impl Slot {
    /// Whether it may go back to the broker: nobody works on it, and neither work that is done is done again nor an order lost.
    const fn only_waits(&self) -> bool {
        let waits = match &self.state {
            State::Received => true,
            State::Unpublished { copy, .. } => !matches!(copy, Copy::Reply),
            State::Waiting { .. }
            | State::Running { .. }
            | State::Later { .. }
            | State::Publishing { .. }
            | State::Finished { .. }
            | State::Settled => false,
        };
        waits && matches!(self.incoming, Incoming { key: None, counted: false, .. })
    }
}

impl Engine {
    /// How long a delivery may be held until the broker will soon take it back.
    pub(super) fn held_long(&self) -> Duration {
        self.settings.consumer_timeout * HELD_LONG_PERCENT / 100
    }

    /// How long a delivery may wait for its call, which is to end before the broker takes it back.
    pub(super) fn longest_wait(&self) -> Duration {
        let Settings { consumer_timeout, late_timeout, .. } = self.settings;
        let least = consumer_timeout * LEAST_WAIT_PERCENT / 100;
        consumer_timeout.saturating_sub(late_timeout).clamp(least, self.held_long())
    }

    /// A delivery that came then waits again, perhaps for longer than it should.
    pub(super) fn waits_since(&mut self, since: Time) {
        self.next_held_long = self.next_held_long.min(since + self.longest_wait());
    }

    /// Gives back what has waited for long, and warns of what is held for long otherwise. The broker counts from a delivery's coming,
    /// so one that it brings straight back has its time anew.
    pub(super) fn end_long_waits(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.window.open() == 0 {
            return;
        }
        if now >= self.next_held_long {
            let returned = self.look_at_long_held(now, effects);
            self.ready.remove(&returned);
            self.return_all(returned, effects);
        }
        self.wake_at(Some(self.next_held_long));
    }

    fn look_at_long_held(&mut self, now: Time, effects: &mut Vec<Effect>) -> Vec<DeliveryId> {
        let (wait, long) = (self.longest_wait(), self.held_long());
        // What comes from now on, unless something is here that comes first.
        let mut next = now + wait;
        let mut returned = Vec::new();
        // Those that came after it would else be called before it again and again.
        let mut also_younger = false;
        let (mut first, mut count) = (None, 0);
        for slot in self.window.open_slots_mut() {
            let (id, held) = (slot.incoming.id, now - slot.since);
            let is_young = held < wait;
            // What waits for the broker alone needs no time for a call.
            let due = if slot.has_copy() { slot.copy_until(long) } else { slot.since + wait };
            let is_due = now >= due;
            if !is_due && !is_young {
                next = next.min(due);
            }
            if slot.only_waits() && (is_due || (also_younger && slot.state == State::Received)) {
                also_younger |= slot.state == State::Received;
                returned.push(id);
            } else if is_young {
                next = next.min(slot.since + wait);
                if !also_younger {
                    break;
                }
            } else if held < long {
                next = next.min(slot.since + long);
            } else if !std::mem::replace(&mut slot.warned, true) {
                first = first.or(Some((id, held)));
                count += 1;
            }
        }
        if let Some((id, held)) = first {
            effects.push(Effect::Observe(Observation::HeldLong { id, held, count }));
        }
        self.next_held_long = next;
        returned
    }

    /// Gives deliveries back to the broker, in the order in which they came.
    pub(super) fn return_all(&mut self, ids: Vec<DeliveryId>, effects: &mut Vec<Effect>) {
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
