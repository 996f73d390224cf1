//! What answers do: the handler's, the application's late ones, and the broker's to a published copy.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::breaker::{Change, Identity, PROBES};
use super::engine::{AtHandler, Engine};
use super::event::{
    Answers, CallId, Copy, DeadReason, DeliveryId, Effect, Failure, Incoming, LateReply, Observation,
    Outcome, PublishResult, Target, Time, Verdict,
};
use super::flow::HOLD;
use super::settings::Rung;
use super::window::{Slot, State};

/// The longest that a message of an ordering key waits in place for its next attempt.
const LONGEST_IN_PLACE: Duration = Duration::from_secs(60);
/// How often a copy is sent to a retry queue that is not there before another one has its turn: about a minute's worth of tries, within
/// which the operator declares one again that somebody has deleted.
const TRIES_OF_A_RUNG: u32 = 10;
/// How often a reply that the broker refuses is published: about five seconds' worth of tries.
const REPLY_TRIES: u32 = 5;

/// Whether a call's duration says how long the work takes: not where the application took nothing, or goes on with it.
pub fn is_work(answers: &Answers) -> bool {
    let worked = |verdict: &Verdict| match verdict {
        Verdict::Ack | Verdict::Reply | Verdict::Retry(_) | Verdict::DeadLetter { .. } => true,
        Verdict::NotNow { .. } | Verdict::Later | Verdict::Unreached => false,
    };
    match answers {
        Answers::All(verdict) => worked(verdict),
        Answers::Each(verdicts) => verdicts.iter().any(worked),
    }
}

/// Whether a message's attempt has failed.
const fn failed(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Retry(_))
}

/// Whether the attempt has failed, for every message that it was for.
pub fn has_failed(answers: &Answers) -> bool {
    match answers {
        Answers::All(verdict) => failed(verdict),
        Answers::Each(verdicts) => verdicts.iter().all(failed),
    }
}

impl Engine {
    pub(super) fn answered(&mut self, call: CallId, answers: Answers, now: Time, effects: &mut Vec<Effect>) {
        let Some(ended) = self.calls.remove(&call) else { return };
        if is_work(&answers) {
            self.auto.called(now.saturating_sub(ended.started), ended.deliveries.len());
        }
        let mut each = match answers {
            Answers::Each(verdicts) => {
                for (verdict, one) in verdicts.iter().zip(&ended.deliveries) {
                    self.judge_handler(verdict, Some(one.id), ended.started, now, effects);
                }
                verdicts.into_iter()
            }
            Answers::All(verdict) => {
                // One answer is one piece of news about the application, however many messages it is for.
                // What is for several is no one message's failure.
                let first = ended.deliveries.first().filter(|_| ended.deliveries.len() == 1);
                self.judge_handler(&verdict, first.map(|one| one.id), ended.started, now, effects);
                vec![verdict; ended.deliveries.len()].into_iter()
            }
        };
        let mut concluded: Vec<_> = ended.deliveries.into_iter().map(|one| (one, each.next())).collect();
        if concluded.iter().any(|(_, verdict)| matches!(verdict, Some(Verdict::Unreached))) {
            // What goes back to the front keeps its order if the last is put there first.
            concluded.reverse();
        }
        for (AtHandler { id, key, ended }, verdict) in concluded {
            let verdict = verdict.unwrap_or_else(|| {
                let detail = "the handler's answer has no outcome for this message".to_owned();
                Verdict::Retry(Failure { detail, ..Failure::default() })
            });
            if self.window.get(id).is_none_or(|slot| slot.state != State::Running { call }) {
                match (verdict, ended, key) {
                    (Verdict::Later, None, Some(key)) => {
                        self.outlive(id, key, now + self.settings.late_timeout);
                    }
                    _ => self.ready.release(key),
                }
                effects.push(Effect::Observe(Observation::Stale));
                continue;
            }
            match (verdict, ended) {
                (Verdict::Later, Some(ended)) => self.end_late(id, ended, now, effects),
                // The answer is the last word on anything that was said before it.
                (verdict, _) => self.conclude(id, verdict, now, effects),
            }
        }
    }

    /// What an answer says about the application rather than about the message.
    fn judge_handler(
        &mut self,
        verdict: &Verdict,
        id: Option<DeliveryId>,
        called: Time,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let slot = id.and_then(|id| self.window.get(id));
        let identity = slot.map(|Slot { incoming: Incoming { id, identity, .. }, .. }| match identity {
            Some(identity) => Identity::Message(*identity),
            None => Identity::Delivery(*id),
        });
        let change = match verdict {
            Verdict::Ack | Verdict::Reply | Verdict::DeadLetter { .. } => {
                self.throttle.succeeded();
                self.breaker.succeeded()
            }
            Verdict::Later => {
                // It takes work on; whether it can do it is said when the delivery ends.
                self.throttle.succeeded();
                Change::None
            }
            Verdict::Retry(failure) => self.breaker.failed(identity, failure.status, called, now, self.seed),
            Verdict::NotNow { after, status } => {
                let running = self.calls.len() + 1;
                self.throttle.not_now(running, *after, now);
                if *status == 503 {
                    self.breaker.failed(identity, Some(*status), called, now, self.seed)
                } else {
                    Change::None
                }
            }
            Verdict::Unreached => {
                if self.handler.refused(now) {
                    effects.push(Effect::Observe(Observation::HandlerDown));
                }
                Change::None
            }
        };
        match change {
            Change::None => {}
            Change::Opened(status) => effects.push(Effect::Observe(Observation::BreakerOpened { status })),
            Change::Closed => {
                self.throttle.restart(self.calls.len(), now);
                effects.push(Effect::Observe(Observation::BreakerClosed));
            }
        }
    }

    /// Applies a verdict to a delivery that was at the handler.
    fn conclude(&mut self, id: DeliveryId, verdict: Verdict, now: Time, effects: &mut Vec<Effect>) {
        match verdict {
            Verdict::Ack => self.finish(id, Outcome::Ack, now, effects),
            Verdict::Reply => self.publish(id, Copy::Reply, 0, now, effects),
            Verdict::Retry(failure) if self.breaker.open_since().is_some() => {
                self.probe_failed(id, Some(&failure), now, effects);
            }
            Verdict::NotNow { .. } if self.breaker.open_since().is_some() => {
                self.probe_failed(id, None, now, effects);
            }
            Verdict::Retry(failure) => self.failed(id, &failure, now, effects),
            Verdict::DeadLetter { reason, detail } => {
                let attempts = self.attempts_with_this(id);
                self.publish(id, Copy::Dead { reason, detail, attempts }, 0, now, effects);
            }
            // It may be this message alone that cannot be taken: the others have their turn first.
            Verdict::NotNow { .. } => self.call_again(id, true),
            Verdict::Unreached => self.call_again(id, false),
            Verdict::Later => {
                let deadline = now + self.settings.late_timeout;
                if let Some(slot) = self.window.get_mut(id)
                    && let State::Running { call } = slot.state
                {
                    slot.state = State::Later { call, deadline };
                    *self.late.entry(call).or_default() += 1;
                    self.timers.push(Reverse((deadline, id)));
                }
            }
        }
    }

    fn attempts_with_this(&self, id: DeliveryId) -> u32 {
        self.window.get(id).map_or(1, Slot::attempt)
    }

    /// An attempt failed: up the ladder, or out. A message of an ordering key waits in place and holds its key.
    fn failed(&mut self, id: DeliveryId, failure: &Failure, now: Time, effects: &mut Vec<Effect>) {
        let attempts = self.attempts_with_this(id);
        match self.settings.ladder.after(attempts, failure.after) {
            Rung::Exhausted => {
                let detail = failure.detail.clone();
                let copy = Copy::Dead { reason: DeadReason::Exhausted, detail, attempts };
                self.publish(id, copy, 0, now, effects);
            }
            Rung::Delay(seconds) => {
                let Some(slot) = self.window.get_mut(id) else { return };
                if slot.incoming.key.is_some() {
                    slot.local_attempts += 1;
                    let until = now + Duration::from_secs(u64::from(seconds)).min(LONGEST_IN_PLACE);
                    slot.state = State::Waiting { until };
                    self.timers.push(Reverse((until, id)));
                } else {
                    self.publish(id, Copy::Retry { delay_seconds: Some(seconds), attempts }, 0, now, effects);
                }
            }
        }
    }

    /// A failure while the breaker is open is no attempt. After three of them it is the message's own fault if others have
    /// succeeded meanwhile, else it makes room for another to be tried, and once three probes have failed, whatever they were of, at
    /// its first: a burst of messages that always fail may stand before good ones. No failure: the application said "not now", which
    /// is never an attempt.
    fn probe_failed(
        &mut self,
        id: DeliveryId,
        failure: Option<&Failure>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let (successes, probes) = (self.breaker.successes, self.breaker.failed_probes());
        let first_rung = self.settings.ladder.delays_seconds.first().copied();
        let Some(slot) = self.window.get_mut(id) else { return };
        if slot.probe_failures == 0 {
            slot.successes_then = successes;
        }
        let keyed = slot.incoming.key.is_some();
        // What was called before the breaker opened is no probe: all that ran then may fail.
        let is_probe = failure.is_some() && self.breaker.is_open_at(slot.called);
        slot.probe_failures = match is_probe && !keyed && probes >= PROBES {
            true => PROBES,
            false => slot.probe_failures.saturating_add(1),
        };
        let alone = slot.probe_failures < PROBES;
        let own_fault = failure.filter(|_| successes > slot.successes_then);
        let attempts = slot.incoming.attempts;
        match own_fault {
            _ if alone => self.call_again(id, true),
            Some(failure) => self.failed(id, failure, now, effects),
            None if keyed => self.call_again(id, true),
            None => self.publish(id, Copy::Retry { delay_seconds: first_rung, attempts }, 0, now, effects),
        }
    }

    /// Back among those that wait for a call, with nothing counted.
    fn call_again(&mut self, id: DeliveryId, after_others: bool) {
        if let Some(slot) = self.window.get_mut(id) {
            slot.state = State::Received;
            let since = slot.since;
            self.waits_since(since);
            if after_others {
                self.ready.put_last(id);
            } else {
                self.ready.put_back(id);
            }
        }
    }

    pub(super) fn publish(
        &mut self,
        id: DeliveryId,
        copy: Copy,
        tries: u32,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let held_long = self.held_long();
        if let Some(slot) = self.window.get_mut(id) {
            slot.state = State::Publishing { copy: copy.clone(), tries, since: now };
            if tries == 0 {
                slot.copied = now;
            }
            // The first try's timer is that of the others too, until it has run out.
            let due = slot.copy_until(held_long);
            if copy == Copy::Reply && (tries == 0 || now >= due) {
                self.timers.push(Reverse((due, id)));
            }
            // An open breaker goes on with others where the broker says nothing of it.
            if slot.probe_failures >= PROBES {
                self.timers.push(Reverse((now + HOLD, id)));
            }
            effects.push(Effect::Publish { id, copy, again: tries > 0 });
        }
    }

    /// The broker's answer to a copy: only a confirmed one lets its delivery be acknowledged.
    pub(super) fn published(
        &mut self,
        id: DeliveryId,
        result: PublishResult,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let held_long = self.held_long();
        let Some(slot) = self.window.get_mut(id) else { return };
        let State::Publishing { copy, tries, .. } = &slot.state else { return };
        let (copy, tries, is_over) = (copy.clone(), *tries, now >= slot.copy_until(held_long));
        let target = copy.target();
        match result {
            PublishResult::Confirmed => {
                let outcome = match target {
                    Target::Retry => Outcome::Retry,
                    Target::DeadLetter => Outcome::DeadLetter,
                    Target::Reply => Outcome::Ack,
                };
                self.finish(id, outcome, now, effects);
            }
            _ if copy == Copy::Reply && is_reply_lost(result, tries, is_over) => {
                self.drop_reply(id, result, now, effects);
            }
            PublishResult::Unroutable | PublishResult::Refused | PublishResult::Failed => {
                effects.push(Effect::Observe(Observation::Unpublished { result, target }));
                let until = now + self.pause_of(tries);
                let copy = if result == PublishResult::Unroutable {
                    self.by_todays_ladder(id, copy, tries)
                } else {
                    copy
                };
                if let Some(slot) = self.window.get_mut(id) {
                    slot.state = State::Unpublished { copy, tries: tries + 1, until };
                    let since = slot.since;
                    self.waits_since(since);
                    self.timers.push(Reverse((until, id)));
                }
            }
        }
    }

    /// What becomes of a copy that no queue took: where its rung is no longer in the ladder, its retry queue is gone for good. So it
    /// may be where it still is, as a pod that ends is told of no change.
    fn by_todays_ladder(&self, id: DeliveryId, copy: Copy, tries: u32) -> Copy {
        let Copy::Retry { delay_seconds: Some(delay), attempts } = copy else { return copy };
        let ladder = &self.settings.ladder;
        if let Some(place) = ladder.delays_seconds.iter().position(|rung| *rung == delay) {
            let next =
                if tries < TRIES_OF_A_RUNG { place } else { (place + 1) % ladder.delays_seconds.len() };
            return Copy::Retry { delay_seconds: ladder.delays_seconds.get(next).copied(), attempts };
        }
        // A failed probe is no attempt, and so not the last one either.
        let counted = self.window.get(id).is_some_and(|slot| attempts > slot.incoming.attempts);
        match ladder.after(attempts, Some(Duration::from_secs(u64::from(delay)))) {
            _ if !counted => Copy::Retry { delay_seconds: ladder.delays_seconds.first().copied(), attempts },
            Rung::Delay(seconds) => Copy::Retry { delay_seconds: Some(seconds), attempts },
            Rung::Exhausted => {
                let detail = format!(
                    "the retry queue of {delay} seconds is gone, and as the Queue is now this was the last attempt"
                );
                Copy::Dead { reason: DeadReason::Exhausted, detail, attempts }
            }
        }
    }

    /// Ends a message whose reply nobody takes. The work is done all the same and must not be done again.
    pub(super) fn drop_reply(
        &mut self,
        id: DeliveryId,
        result: PublishResult,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Observe(Observation::ReplyDropped { id, result }));
        self.finish(id, Outcome::Ack, now, effects);
    }

    fn finish(&mut self, id: DeliveryId, outcome: Outcome, now: Time, effects: &mut Vec<Effect>) {
        let key = self.window.finish(id, now);
        self.ready.release(key);
        effects.push(Effect::Forget { id });
        effects.push(Effect::Observe(Observation::Settled(outcome)));
    }

    /// The application ends a delivery that it had answered with `later`, or is about to.
    pub(super) fn late_answer(
        &mut self,
        id: DeliveryId,
        verdict: Verdict,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let reply = self.late_state(id);
        effects.push(Effect::Late(reply));
        self.end_outlived(id);
        // Also where its channel is gone, and with it the slot: its key is free once the call has ended, too.
        let mut at_handler = self.calls.values_mut().flat_map(|call| &mut call.deliveries);
        if let Some(one) = at_handler.find(|one| one.id == id) {
            one.ended.get_or_insert(verdict);
        } else if reply == LateReply::Accepted {
            self.end_late(id, verdict, now, effects);
        }
    }

    /// Ends a delivery that the application had answered with `later`.
    fn end_late(&mut self, id: DeliveryId, verdict: Verdict, now: Time, effects: &mut Vec<Effect>) {
        let Some(slot) = self.window.get(id) else { return };
        if let State::Later { call, .. } = slot.state
            && let Entry::Occupied(mut left) = self.late.entry(call)
        {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
        let called = slot.called;
        let (took, failed) = (now.saturating_sub(called), failed(&verdict));
        let first = self.settings.is_first(slot.attempt());
        effects.push(Effect::Observe(Observation::LateEnded { took, first, failed }));
        self.judge_handler(&verdict, Some(id), called, now, effects);
        self.conclude(id, verdict, now, effects);
    }

    /// A timer of a delivery has run out; it may have been set for a state that is over.
    pub(super) fn expired(&mut self, id: DeliveryId, now: Time, effects: &mut Vec<Effect>) {
        let held_long = self.held_long();
        match self.outlived.get(&id) {
            Some((_, until)) if now >= *until => self.end_outlived(id),
            Some((_, until)) => self.timers.push(Reverse((*until, id))),
            None => {}
        }
        let Some(slot) = self.window.get_mut(id) else { return };
        match &slot.state {
            State::Waiting { until } if now >= *until => self.call_again(id, false),
            // Its queue confirms nothing, and the broker would soon take the message back.
            State::Publishing { copy: Copy::Reply, .. } if now >= slot.copy_until(held_long) => {
                self.drop_reply(id, PublishResult::Failed, now, effects);
            }
            State::Unpublished { copy, tries, until } if now >= *until => {
                let (copy, tries) = (copy.clone(), *tries);
                self.publish(id, copy, tries, now, effects);
            }
            State::Later { deadline, .. } if now >= *deadline => {
                let detail =
                    "the application answered \"later\" and then neither ended nor extended the delivery"
                        .to_owned();
                let verdict = Verdict::Retry(Failure { detail, ..Failure::default() });
                self.end_late(id, verdict, now, effects);
            }
            // It was extended.
            State::Later { deadline, .. } => self.timers.push(Reverse((*deadline, id))),
            State::Waiting { .. }
            | State::Unpublished { .. }
            | State::Received
            | State::Running { .. }
            | State::Publishing { .. }
            | State::Finished { .. }
            | State::Settled => {}
        }
    }
}

/// Whether a reply is not worth another try. Whoever asked may be gone, or may not read what it asked for; an outage of the broker is
/// waited for until it `is_over` that: the broker would take the message back, and the work would be done again.
const fn is_reply_lost(result: PublishResult, tries: u32, is_over: bool) -> bool {
    match result {
        PublishResult::Confirmed => false,
        PublishResult::Unroutable => true,
        PublishResult::Refused => tries + 1 >= REPLY_TRIES || is_over,
        PublishResult::Failed => is_over,
    }
}
