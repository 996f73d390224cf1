//! Giving the queue up where messages of a key must keep their order: everything at once, by the channel's end.
//!
//! A cancelled consumer lets the broker turn to the next one at once, though this one still holds messages that come before. The
//! end of a channel returns all of them, in their order, before anybody gets another. So with an ordering key no consumer is
//! cancelled: nothing new is started, what is at work ends, its acknowledgements go out, and then the channel is closed.

use std::cmp::Reverse;

use super::drain::Drain;
use super::engine::Engine;
use super::event::{Copy, Effect, Observation, Outcome, Time};
use super::flow::{HOLD, Subscription};
use super::window::{Slot, State, Window};

impl Slot {
    /// Until when another window, wanted since then, is worth standing still for until this has ended; none: it is not at work.
    /// What was there before is waited for for a moment, and what began later for as long as it was put off by then: so the
    /// window comes also where something is always at work. `given_up`: copies that the broker does not take by now, or says
    /// nothing of, are not worth it. The work of a reply is done, and one that nobody takes is given up soon.
    fn worth_waiting_for(&self, since: Time, given_up: Option<Time>) -> Option<Time> {
        match &self.state {
            State::Publishing { copy, since: sent, .. }
                if *copy != Copy::Reply && given_up.is_some_and(|now| now >= *sent + HOLD) =>
            {
                None
            }
            State::Running { .. } | State::Later { .. } | State::Publishing { tries: 0, .. } => {
                Some(self.called + HOLD.max(self.called.saturating_sub(since)))
            }
            // The broker does not take its copy, which may be so for days.
            State::Publishing { .. } => Some(Time::ZERO),
            State::Unpublished { copy, .. } => {
                Some(Time::ZERO).filter(|_| given_up.is_none() || *copy == Copy::Reply)
            }
            State::Received | State::Waiting { .. } | State::Finished { .. } | State::Settled => None,
        }
    }
}

impl Engine {
    /// Whether the consumer must not be cancelled. One that was started to probe with may be, for another window: what it holds
    /// could not be told from new messages if it came again, and the breaker would never get past those that are poison.
    pub(super) fn keeps_order(&self) -> bool {
        let consumes = !self.settings.paused && self.drain == Drain::No && self.handler.is_up();
        self.settings.ordered && !(consumes && self.probes())
    }

    /// Whether the consumer was started to probe with.
    pub(super) fn probes(&self) -> bool {
        self.breaker.is_open_at(self.subscribed_at)
    }

    /// Hands back what is held once nothing is at work; until then nothing new starts. `wanted`: the window to consume with
    /// afterwards, if any, which is not worth standing still for as long as what is at work may take. `outage`: whether others
    /// are to have their turn all the same.
    pub(super) fn hand_back(
        &mut self,
        wanted: Option<u16>,
        outage: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(generation) = self.generation else { return };
        let since = *self.window_wanted.get_or_insert(now);
        // Others do not stand by for days, for a copy that the broker does not take.
        let others_wait = self.drain == Drain::No && (wanted.is_none() || outage);
        self.others_wait = others_wait.then(|| self.others_wait.unwrap_or(now));
        let patience = self.others_wait.map(|since| since + HOLD);
        let given_up = self.is_drain_over(now) || patience.is_some_and(|end| now >= end);
        if patience.is_some() {
            let sent = self.window.open_slots().filter_map(Slot::sent).map(|sent| sent + HOLD);
            self.wake_at(sent.chain(patience).filter(|at| *at > now).min());
        }
        let worth = |slot: &Slot| slot.worth_waiting_for(since, given_up.then_some(now));
        let waits = self.window.open_slots().filter_map(worth).min();
        if let Some(until) = waits {
            self.handing_back = wanted.is_none() || until > now;
            self.wake_at(Some(until).filter(|until| wanted.is_some() && *until > now));
            return;
        }
        // Work whose channel is gone comes before what is handed over, too.
        let elsewhere = !self.outlived.is_empty() || self.works_on_keys_of_another_channel();
        if elsewhere && wanted.is_none() && !self.is_drain_over(now) {
            self.handing_back = true;
            return;
        }
        self.window.flush_all(effects);
        let returned = Effect::Observe(Observation::Settled(Outcome::Returned));
        effects.extend(std::iter::repeat_n(returned, self.window.open()));
        self.forget_channel(generation, effects);
        effects.push(Effect::HandBack { generation });
    }

    /// Whether a call runs for a message of a key whose channel is gone.
    fn works_on_keys_of_another_channel(&self) -> bool {
        let mut called = self.calls.values().flat_map(|call| &call.deliveries);
        called.any(|one| one.key.is_some() && self.window.get(one.id).is_none())
    }

    /// Nothing of a channel is here any more: what was open on it is with the broker again.
    pub(super) fn forget_channel(&mut self, generation: u64, effects: &mut Vec<Effect>) {
        let gone = std::mem::replace(&mut self.window, Window::new(generation));
        for slot in gone.open_slots() {
            self.remember(slot);
            if let (State::Later { deadline, .. }, Some(key)) = (&slot.state, slot.incoming.key) {
                self.outlived.insert(slot.incoming.id, (key, *deadline));
            }
        }
        if gone.finished() > 0 {
            effects.push(Effect::Observe(Observation::Unacknowledged { count: gone.finished() }));
        }
        self.generation = None;
        self.window_wanted = None;
        self.others_wait = None;
        self.subscription = Subscription::None;
        self.late.clear();
        self.timers = self.outlived.iter().map(|(id, (_, until))| Reverse((*until, *id))).collect();
        let busy: Vec<u64> = self.busy_keys().collect();
        self.ready.rebuild(Vec::new(), busy.into_iter());
        effects.push(Effect::ForgetAll { generation });
    }
}
