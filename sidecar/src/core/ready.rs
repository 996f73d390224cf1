//! Which received message is called next: first come first served, except that messages of one ordering key go one at a time.

use std::collections::{HashMap, VecDeque};

use super::event::DeliveryId;

/// Messages that wait for a call.
#[derive(Debug, Default)]
pub(super) struct Ready {
    queue: VecDeque<DeliveryId>,
    /// Keys that are being worked on, and who waits for each.
    keys: HashMap<u64, VecDeque<DeliveryId>>,
}

impl Ready {
    /// A message came.
    pub fn push(&mut self, id: DeliveryId, key: Option<u64>) {
        if let Some(key) = key {
            if let Some(waiting) = self.keys.get_mut(&key) {
                waiting.push_back(id);
                return;
            }
            self.keys.insert(key, VecDeque::new());
        }
        self.queue.push_back(id);
    }

    /// The next message to call. Its key stays taken until [`Self::release`].
    pub fn pop(&mut self) -> Option<DeliveryId> {
        self.queue.pop_front()
    }

    /// The next message to call, left in place.
    pub fn peek(&self) -> Option<DeliveryId> {
        self.queue.front().copied()
    }

    /// A message that was popped comes back, to be called next; its key is still its own.
    pub fn put_back(&mut self, id: DeliveryId) {
        self.queue.push_front(id);
    }

    /// A message that was popped comes back, to be called after the others; its key is still its own.
    pub fn put_last(&mut self, id: DeliveryId) {
        self.queue.push_back(id);
    }

    /// A message that waits here is called next.
    pub fn put_first(&mut self, id: DeliveryId) {
        self.queue.retain(|other| *other != id);
        self.queue.push_front(id);
    }

    /// Messages without a key, in rising order, go back to the broker.
    pub fn remove(&mut self, ids: &[DeliveryId]) {
        if !ids.is_empty() {
            self.queue.retain(|id| ids.binary_search(id).is_err());
        }
    }

    /// A message has ended: the next one of its key may start.
    pub fn release(&mut self, key: Option<u64>) {
        let Some(key) = key else { return };
        let Some(waiting) = self.keys.get_mut(&key) else { return };
        match waiting.pop_front() {
            Some(next) => self.queue.push_back(next),
            None => {
                self.keys.remove(&key);
            }
        }
    }

    /// How many could be called now.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Keeps only these messages, each of which may be called next, and these keys, for which work still runs.
    pub fn rebuild(&mut self, keep: Vec<DeliveryId>, busy: impl Iterator<Item = u64>) {
        self.queue = keep.into();
        self.keys = busy.map(|key| (key, VecDeque::new())).collect();
    }

    /// The messages that could be called now, in order.
    pub fn iter(&self) -> impl Iterator<Item = DeliveryId> {
        self.queue.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tag: u64) -> DeliveryId {
        DeliveryId { generation: 1, tag }
    }

    #[test]
    fn messages_of_a_key_go_one_at_a_time_in_order_and_hold_no_other() {
        let mut ready = Ready::default();
        ready.push(id(1), Some(7));
        ready.push(id(2), Some(7));
        ready.push(id(3), Some(8));
        ready.push(id(4), None);
        assert_eq!(
            [ready.pop(), ready.pop(), ready.pop(), ready.pop()],
            [Some(id(1)), Some(id(3)), Some(id(4)), None]
        );
        ready.release(Some(7));
        assert_eq!(ready.pop(), Some(id(2)));
        ready.release(Some(7));
        ready.release(Some(8));
        assert!(ready.keys.is_empty());
    }

    #[test]
    fn a_key_whose_call_outlives_its_connection_stays_taken() {
        let mut ready = Ready::default();
        ready.push(id(1), Some(7));
        ready.pop();
        ready.rebuild(vec![], [7].into_iter());
        ready.push(DeliveryId { generation: 2, tag: 1 }, Some(7));
        assert_eq!(ready.pop(), None);
        ready.release(Some(7));
        assert_eq!(ready.pop(), Some(DeliveryId { generation: 2, tag: 1 }));
    }

    #[test]
    fn the_next_of_a_key_comes_after_those_that_could_be_called_before_it() {
        let mut ready = Ready::default();
        for (tag, key) in [(1, Some(7)), (2, Some(7)), (3, Some(8)), (4, None)] {
            ready.push(id(tag), key);
        }
        assert_eq!(ready.pop(), Some(id(1)));
        ready.release(Some(7));
        assert_eq!([ready.pop(), ready.pop(), ready.pop()], [Some(id(3)), Some(id(4)), Some(id(2))]);
    }
}
