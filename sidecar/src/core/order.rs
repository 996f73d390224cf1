//! Giving the queue up where messages of a key must keep their order: everything at once, by the channel's end.
//!
//! A cancelled consumer lets the broker turn to the next one at once, though this one still holds messages that come before. The
//! end of a channel returns all of them, in their order, before anybody gets another. So with an ordering key no consumer is
//! cancelled: nothing new is started, what is at work ends, its acknowledgements go out, and then the channel is closed.

use super::engine::Engine;
use super::event::{Effect, Observation, Outcome, Time};
use super::flow::Subscription;
use super::window::{State, Window};

impl Engine {
    /// Whether the consumer must not be cancelled. One that was started to probe with is the exception: what it holds could not
    /// be told from new messages if it came again, and the breaker would never get past those that are poison.
    pub(super) fn keeps_order(&self) -> bool {
        self.settings.ordered && self.breaker.open_since().is_none_or(|since| self.subscribed_at <= since)
    }

    /// Hands back what is held once nothing is at work; until then nothing new starts. `wanted`: the window to consume with
    /// afterwards, if any.
    pub(super) fn hand_back(&mut self, wanted: Option<u16>, now: Time, effects: &mut Vec<Effect>) {
        if wanted.is_some() && !self.late.is_empty() {
            // Another window is not worth standing still for as long as such work takes.
            return;
        }
        self.handing_back = true;
        let over = self.is_drain_over(now);
        let at_work = |state: &State| match state {
            State::Running { .. } | State::Later { .. } | State::Publishing { .. } => true,
            State::Unpublished { .. } => !over,
            State::Received | State::Waiting { .. } | State::Finished { .. } | State::Settled => false,
        };
        let Some(generation) =
            self.generation.filter(|_| !self.window.open_slots().any(|slot| at_work(&slot.state)))
        else {
            return;
        };
        self.window.flush_all(effects);
        for slot in std::mem::replace(&mut self.window, Window::new(generation)).open_slots() {
            self.remember(slot);
            effects.push(Effect::Observe(Observation::Settled(Outcome::Returned)));
        }
        self.forget_channel(generation, effects);
        effects.push(Effect::HandBack { generation });
    }

    /// Nothing of a channel is here any more.
    pub(super) fn forget_channel(&mut self, generation: u64, effects: &mut Vec<Effect>) {
        self.generation = None;
        self.subscription = Subscription::None;
        self.late.clear();
        self.timers.clear();
        let busy: Vec<u64> = self.busy_keys().collect();
        self.ready.rebuild(Vec::new(), busy.into_iter());
        effects.push(Effect::ForgetAll { generation });
    }
}
