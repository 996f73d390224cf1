//! The drain: its begin, what it waits for, and its end, which a restarted application takes back.

use std::time::Duration;

use super::engine::Engine;
use super::event::{Copy, DeliveryId, Effect, Observation, PublishResult, Seen, Time};
use super::flow::Subscription;
use super::window::State;

/// How long an application is waited for that has never listened: until it does it may not handle the SIGTERM that follows a drain,
/// of which a process with PID 1 never learns then, and its pod would wait out the grace period.
const BOOT: Duration = Duration::from_secs(10);

/// The drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// It goes on.
    Active {
        since: Time,
        /// When it was asked for last: so late may the pod's end have begun.
        asked: Time,
        port: Port,
    },
    /// It has ended.
    Done {
        /// When it was asked for last.
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
            // On this host only who listens keeps callers waiting.
            (Self::Unseen, Seen::Silent) => Some(Self::Accepted),
            (same, Seen::Silent) => Some(same),
        }
    }
}

impl Engine {
    pub(super) fn begin_drain(&mut self, now: Time, effects: &mut Vec<Effect>) {
        match self.drain {
            Drain::No => {
                self.drain = Drain::Active { since: now, asked: now, port: Port::Unseen };
                effects.push(Effect::Observe(Observation::DrainBegan));
                // That it is up may be old news: what it does from now on is measured against what it does now.
                if !self.handler.probing {
                    self.handler.probing = true;
                    effects.push(Effect::ProbeHandler { after: Duration::ZERO });
                }
            }
            Drain::Active { since, .. } => {
                self.drain = Drain::Active { since, asked: now, port: Port::Unseen };
            }
            Drain::Done { .. } if self.handler.never_listened() && !self.terminating => {
                self.drain = Drain::Active { since: now, asked: now, port: Port::Unseen };
            }
            Drain::Done { .. } => {
                // The pod may end only now: what its port did before says nothing of that.
                self.drain = Drain::Done { since: now, port: Port::Unseen };
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
                self.give_up_replies(true, now, effects);
                self.window.flush_all(effects);
                effects.push(Effect::Exit);
            }
        }
    }

    /// What the handler's port did is news for a drain.
    pub(super) fn port_during_drain(&mut self, seen: Seen, effects: &mut Vec<Effect>) {
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

    /// Whether no time is left for what a drain waits for.
    pub(super) fn is_drain_over(&self, now: Time) -> bool {
        match self.drain {
            Drain::No => false,
            Drain::Active { since, .. } => now >= since + self.settings.drain_timeout,
            Drain::Done { .. } => true,
        }
    }

    /// Ends what only waits for its reply's confirm, or for another try, when no time is left for that: given back, its work would
    /// be done again. What ends after that has its reply sent all the same, and the confirm may still come.
    pub(super) fn drop_replies(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.is_drain_over(now) {
            return;
        }
        self.give_up_replies(matches!(self.drain, Drain::Active { .. }), now, effects);
    }

    /// Ends what only waits for its reply to be taken; `sent`: also what waits for its confirm.
    pub(super) fn give_up_replies(&mut self, sent: bool, now: Time, effects: &mut Vec<Effect>) {
        let replies: Vec<DeliveryId> = self
            .window
            .open_slots()
            .filter(|slot| {
                matches!(slot.state, State::Unpublished { copy: Copy::Reply, .. })
                    || (sent && matches!(slot.state, State::Publishing { copy: Copy::Reply, .. }))
            })
            .map(|slot| slot.incoming.id)
            .collect();
        for id in replies {
            self.drop_reply(id, PublishResult::Failed, now, effects);
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
        let Drain::Active { since, asked, port } = self.drain else { return };
        let complete = self.has_ended();
        let deadline = since + self.settings.drain_timeout;
        let boots = !self.terminating && self.handler.never_listened();
        let until = match (complete, boots) {
            (false, _) => deadline,
            (true, true) => deadline.min(since + BOOT),
            (true, false) => now,
        };
        if now < until {
            self.wake_at(Some(until));
            return;
        }
        self.drain = Drain::Done { since: asked, port };
        // The process may end now, and what was just finished would be done again.
        self.window.flush_all(effects);
        effects.push(Effect::Observe(Observation::DrainEnded { took: now - since, complete }));
        effects.push(Effect::Drained { complete });
        if self.terminating {
            effects.push(Effect::Exit);
        } else {
            self.wake_at(Some(asked + self.settings.grace_period));
        }
    }
}
