//! The deliveries of one channel that are not settled, and the acknowledgements that are due.
//!
//! Deliveries are kept in the order of their tags. Finished deliveries at its front are acknowledged together with
//! `multiple`; one that finished behind an unfinished one is acknowledged alone once it has waited [`ACK_DELAY`].

use std::collections::VecDeque;
use std::time::Duration;

use super::breaker::PROBES;
use super::event::{CallId, Copy, DeliveryId, Effect, Incoming, Time};
use super::flow::HOLD;

/// How long a finished delivery waits at most for others to be acknowledged with.
pub const ACK_DELAY: Duration = Duration::from_millis(2);
/// How many finished deliveries are acknowledged together at most before the next flush.
const ACK_BATCH: usize = 50;

/// Where a delivery is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// Waits for a free place at the handler.
    Received,
    /// Held for a while before its next call.
    Waiting { until: Time },
    /// At the handler.
    Running { call: CallId },
    /// The application goes on with it and says later how it ended.
    Later { call: CallId, deadline: Time },
    /// Its copy is on the way.
    Publishing { copy: Copy, tries: u32, since: Time },
    /// Its copy could not be published; tried again.
    Unpublished { copy: Copy, tries: u32, until: Time },
    /// Finished; its acknowledgement is due.
    Finished { since: Time },
    /// Acknowledged or given back.
    Settled,
}

/// A delivery.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub incoming: Incoming,
    pub state: State,
    /// When it came.
    pub since: Time,
    /// When its last call began.
    pub called: Time,
    /// When its last copy was sent first.
    pub copied: Time,
    /// Failed attempts in this process that no copy has recorded.
    pub local_attempts: u32,
    /// Failures while the breaker was open.
    pub probe_failures: u32,
    /// The breaker's count of successes at the first of them.
    pub successes_then: u64,
    /// Whether the broker's time-out was warned of.
    pub warned: bool,
}

impl Slot {
    /// Whether it is neither finished nor settled.
    fn is_open(&self) -> bool {
        !matches!(self.state, State::Finished { .. } | State::Settled)
    }

    /// The number of the attempt that is made with it, or that comes next, from 1.
    pub const fn attempt(&self) -> u32 {
        self.incoming.attempts.saturating_add(self.local_attempts).saturating_add(1)
    }

    /// Whether its copy is to be with the broker, and is not.
    pub const fn has_copy(&self) -> bool {
        matches!(self.state, State::Publishing { .. } | State::Unpublished { .. })
    }

    /// Until when its copy is worth another try, where it may be held for so `long`: for a moment also after work that took longer,
    /// which would be done again.
    pub fn copy_until(&self, long: Duration) -> Time {
        (self.since + long).max(self.copied + HOLD)
    }

    /// Since when its copy is on the way.
    pub const fn sent(&self) -> Option<Time> {
        match self.state {
            State::Publishing { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Whether it has failed so many probes that it may be poison, and keeps its place: for its key's sake, or since the broker
    /// does not take its copy, also while that is tried again, or says nothing of it.
    pub fn is_stuck(&self, now: Time) -> bool {
        let keeps_place = match self.state {
            State::Received | State::Running { .. } | State::Unpublished { .. } => true,
            State::Publishing { tries, since, .. } => tries > 0 || now >= since + HOLD,
            State::Waiting { .. } | State::Later { .. } | State::Finished { .. } | State::Settled => false,
        };
        keeps_place && self.probe_failures >= PROBES
    }
}

/// The unsettled deliveries of one channel.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub generation: u64,
    /// The tag that comes next.
    next: u64,
    /// By rising tag; settled ones are taken out now and then.
    slots: VecDeque<Slot>,
    /// Slots that are settled.
    settled: usize,
    /// Slots that are neither finished nor settled.
    open: usize,
    /// Slots that are finished.
    finished: usize,
    /// When the first of the finished ones finished.
    oldest_finished: Option<Time>,
}

impl Window {
    /// The window of a new channel.
    pub fn new(generation: u64) -> Self {
        Self { generation, next: 1, ..Self::default() }
    }

    /// Takes a delivery in; false if it is not the next of this channel.
    pub fn push(&mut self, incoming: Incoming, now: Time) -> bool {
        if incoming.id.generation != self.generation || incoming.id.tag != self.next {
            return false;
        }
        self.next += 1;
        self.slots.push_back(Slot {
            incoming,
            state: State::Received,
            since: now,
            called: now,
            copied: now,
            local_attempts: 0,
            probe_failures: 0,
            successes_then: 0,
            warned: false,
        });
        self.open += 1;
        true
    }

    fn index(&self, id: DeliveryId) -> Option<usize> {
        let first = self.slots.front()?.incoming.id;
        if id.generation != self.generation || id.tag < first.tag {
            return None;
        }
        // Mostly nothing is missing in between, and the place is known.
        let guess = usize::try_from(id.tag - first.tag).ok()?;
        if self.slots.get(guess).is_some_and(|slot| slot.incoming.id == id) {
            return Some(guess);
        }
        self.slots.binary_search_by_key(&id.tag, |slot| slot.incoming.id.tag).ok()
    }

    /// A delivery of this channel that is neither finished nor settled.
    pub fn get(&self, id: DeliveryId) -> Option<&Slot> {
        self.slots.get(self.index(id)?).filter(|slot| slot.is_open())
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: DeliveryId) -> Option<&mut Slot> {
        let index = self.index(id)?;
        self.slots.get_mut(index).filter(|slot| slot.is_open())
    }

    /// Whether this channel ever delivered it.
    pub fn has_seen(&self, id: DeliveryId) -> bool {
        id.generation == self.generation && id.tag >= 1 && id.tag < self.next
    }

    /// Deliveries that are neither finished nor settled.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Deliveries that are finished and whose acknowledgement is due.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Deliveries that the broker counts as unacknowledged.
    pub fn unsettled(&self) -> usize {
        self.open + self.finished
    }

    /// All open deliveries, oldest first.
    pub fn open_slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.is_open())
    }

    /// The same, to be changed.
    pub fn open_slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.is_open())
    }

    /// Marks an open delivery as finished: its acknowledgement is due. Returns its ordering key.
    pub fn finish(&mut self, id: DeliveryId, now: Time) -> Option<u64> {
        let slot = self.get_mut(id)?;
        slot.state = State::Finished { since: now };
        let key = slot.incoming.key;
        self.open -= 1;
        self.finished += 1;
        self.oldest_finished.get_or_insert(now);
        key
    }

    /// Marks an open delivery as given back.
    pub fn give_back(&mut self, id: DeliveryId) {
        let Some(slot) = self.get_mut(id) else { return };
        slot.state = State::Settled;
        self.open -= 1;
        self.settled += 1;
        self.trim();
    }

    /// Takes settled slots out: those at the front, and all when they are the most, so that one slow delivery does not
    /// make the window grow.
    fn trim(&mut self) {
        while matches!(self.slots.front(), Some(Slot { state: State::Settled, .. })) {
            self.slots.pop_front();
            self.settled -= 1;
        }
        if self.settled > self.unsettled() + 64 {
            self.slots.retain(|slot| slot.state != State::Settled);
            self.settled = 0;
        }
    }

    /// When acknowledgements must go out though nothing happens.
    pub fn ack_due(&self) -> Option<Time> {
        self.oldest_finished.map(|since| since + ACK_DELAY)
    }

    /// Sends the acknowledgements that are due: all at the front once there are enough of them or they have waited, and
    /// those behind an unfinished delivery that have waited. With a small prefetch there is nothing to wait for.
    pub fn flush(&mut self, now: Time, prefetch: u16, effects: &mut Vec<Effect>) {
        if self.finished == 0 {
            return;
        }
        let enough = (usize::from(prefetch) / 4).clamp(1, ACK_BATCH);
        let due = self.ack_due().is_some_and(|due| now >= due);
        if self.finished < enough && self.open > 0 && !due {
            return;
        }
        self.flush_front(effects);
        if due || enough == 1 || self.open == 0 {
            self.flush_behind(now, enough == 1, effects);
        }
    }

    /// Sends every acknowledgement that waits for others: no later moment may come.
    pub fn flush_all(&mut self, effects: &mut Vec<Effect>) {
        self.flush_front(effects);
        self.flush_behind(Time::ZERO, true, effects);
    }

    fn flush_front(&mut self, effects: &mut Vec<Effect>) {
        let mut last = None;
        let mut count = 0;
        while let Some(slot) = self.slots.front() {
            match slot.state {
                State::Finished { .. } => {
                    last = Some(slot.incoming.id);
                    count += 1;
                }
                State::Settled => self.settled -= 1,
                _ => break,
            }
            self.slots.pop_front();
        }
        if let Some(id) = last {
            self.finished -= count;
            effects.push(Effect::Ack {
                id,
                multiple: count > 1,
                count: u32::try_from(count).unwrap_or(u32::MAX),
            });
            if self.finished == 0 {
                self.oldest_finished = None;
            }
        }
    }

    fn flush_behind(&mut self, now: Time, all: bool, effects: &mut Vec<Effect>) {
        let mut oldest = None;
        let mut left = self.finished;
        for slot in &mut self.slots {
            if left == 0 {
                break;
            }
            let State::Finished { since } = slot.state else { continue };
            left -= 1;
            if all || now >= since + ACK_DELAY {
                slot.state = State::Settled;
                self.settled += 1;
                self.finished -= 1;
                effects.push(Effect::Ack { id: slot.incoming.id, multiple: false, count: 1 });
            } else {
                oldest = Some(oldest.map_or(since, |oldest: Time| oldest.min(since)));
            }
        }
        self.oldest_finished = oldest;
        self.trim();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(count: u64) -> Window {
        let mut window = Window::new(1);
        for tag in 1..=count {
            let id = DeliveryId { generation: 1, tag };
            assert!(window.push(
                Incoming {
                    id,
                    attempts: 0,
                    redelivered: false,
                    counted: false,
                    identity: None,
                    key: None,
                    oversized: None
                },
                Time::ZERO
            ));
        }
        window
    }

    fn id(tag: u64) -> DeliveryId {
        DeliveryId { generation: 1, tag }
    }

    fn flush(window: &mut Window, now: Time, prefetch: u16) -> Vec<(u64, bool, u32)> {
        let mut effects = Vec::new();
        window.flush(now, prefetch, &mut effects);
        effects
            .into_iter()
            .map(|effect| match effect {
                Effect::Ack { id, multiple, count } => (id.tag, multiple, count),
                other => panic!("not an ack: {other:?}"),
            })
            .collect()
    }

    #[test]
    fn at_prefetch_1_an_ack_goes_out_at_once() {
        let mut window = window(1);
        window.finish(id(1), Time::ZERO);
        assert_eq!(flush(&mut window, Time::ZERO, 1), [(1, false, 1)]);
    }

    #[test]
    fn the_finished_front_is_acknowledged_together() {
        let mut window = window(100);
        for tag in 1..=50 {
            window.finish(id(tag), Time::ZERO);
        }
        assert_eq!(flush(&mut window, Time::ZERO, 200), [(50, true, 50)]);
        assert_eq!(window.unsettled(), 50);
    }

    #[test]
    fn a_few_finished_ones_wait_for_more_but_not_for_long() {
        let mut window = window(100);
        window.finish(id(1), Time::ZERO);
        window.finish(id(2), Time::ZERO);
        assert_eq!(flush(&mut window, Time::from_millis(1), 200), []);
        assert_eq!(window.ack_due(), Some(ACK_DELAY));
        assert_eq!(flush(&mut window, ACK_DELAY, 200), [(2, true, 2)]);
        assert_eq!(window.ack_due(), None);
    }

    #[test]
    fn what_finished_behind_a_slow_one_is_acknowledged_alone_and_never_by_multiple() {
        let mut window = window(100);
        window.finish(id(3), Time::ZERO);
        window.finish(id(5), Time::ZERO);
        assert_eq!(flush(&mut window, ACK_DELAY, 200), [(3, false, 1), (5, false, 1)]);
        window.finish(id(1), ACK_DELAY);
        window.finish(id(2), ACK_DELAY);
        assert_eq!(flush(&mut window, ACK_DELAY * 2, 200), [(2, true, 2)]);
        assert_eq!(window.unsettled(), 96);
    }

    #[test]
    fn one_slow_delivery_does_not_make_the_window_grow() {
        let mut window = window(1);
        for tag in 2..5000 {
            window.push(
                Incoming {
                    id: id(tag),
                    attempts: 0,
                    redelivered: false,
                    counted: false,
                    identity: None,
                    key: None,
                    oversized: None,
                },
                Time::ZERO,
            );
            window.finish(id(tag), Time::ZERO);
            assert_eq!(flush(&mut window, ACK_DELAY, 200), [(tag, false, 1)]);
        }
        assert!(window.slots.len() < 100);
        window.finish(id(1), ACK_DELAY);
        assert_eq!(flush(&mut window, ACK_DELAY, 200), [(1, false, 1)]);
    }

    #[test]
    fn nothing_left_to_wait_for_sends_at_once() {
        let mut window = window(2);
        window.finish(id(1), Time::ZERO);
        window.finish(id(2), Time::ZERO);
        assert_eq!(flush(&mut window, Time::ZERO, 200), [(2, true, 2)]);
    }

    #[test]
    fn a_delivery_finishes_once() {
        let mut window = window(2);
        window.finish(id(2), Time::ZERO);
        window.finish(id(2), Time::ZERO);
        assert_eq!((window.open(), window.unsettled()), (1, 2));
        assert!(window.get_mut(id(2)).is_none());
    }

    #[test]
    fn what_still_waits_for_its_acknowledgement_has_a_time_for_it() {
        // Enough at the front, and one behind an unfinished one.
        let mut window = window(100);
        window.finish(id(1), Time::ZERO);
        window.finish(id(3), Time::ZERO);
        assert_eq!(flush(&mut window, Time::ZERO, 8), [(1, false, 1)]);
        assert_eq!(window.ack_due(), Some(ACK_DELAY));
        // One that has waited, and one that has not.
        window.finish(id(5), Time::from_millis(1));
        assert_eq!(flush(&mut window, ACK_DELAY, 200), [(3, false, 1)]);
        assert_eq!(window.ack_due(), Some(Time::from_millis(1) + ACK_DELAY));
    }

    #[test]
    fn nothing_is_due_once_all_that_has_finished_is_acknowledged() {
        let mut window = window(100);
        for tag in 1..=50 {
            let _ = window.finish(id(tag), Time::ZERO);
        }
        assert_eq!(flush(&mut window, Time::ZERO, 200), [(50, true, 50)]);
        assert_eq!(window.ack_due(), None, "a time that is past would be waited for again and again");
    }
}
