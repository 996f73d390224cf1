//! The queues beside a Queue's own: messages that wait to be tried again, and dead ones. For people, not for decisions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use warren_api::Queue;
use warren_api::names::{dead_letter_queue, retry_queue};
use warren_api::queue::Declared;

use super::decide::AGREEING_ZEROS;

/// Looks at a Queue for each look at one of the queues beside it.
pub const LOOKS: u32 = 5;

/// What was last read of each.
#[derive(Debug, Default)]
pub struct Side {
    looks: u32,
    read: BTreeMap<String, u64>,
    /// The one that held messages and says zero now, and how often it has said so.
    doubted: Option<(String, u32)>,
}

impl Side {
    /// The queue to read at this look; none at most looks, where these are `frequent`. One whose zero is in doubt is read again at
    /// once.
    pub fn next(&mut self, queue: &Queue, frequent: bool) -> Option<String> {
        if let Some((name, _)) = &self.doubted {
            return Some(name.clone());
        }
        self.looks = self.looks.wrapping_add(if frequent { 1 } else { LOOKS });
        if !self.looks.is_multiple_of(LOOKS) {
            return None;
        }
        let mut names = retry_queues(queue);
        names.insert(dead_letter_queue(queue.broker_name()));
        self.read.retain(|name, _| names.contains(name));
        let turn = (self.looks / LOOKS) as usize % names.len();
        names.into_iter().nth(turn)
    }

    /// Takes in how many messages wait in one; none where it could not be read.
    pub fn note(&mut self, name: String, ready: Option<u64>) {
        let zeros = self.doubted.take().filter(|(doubted, _)| *doubted == name).map_or(0, |(_, zeros)| zeros);
        let held = self.read.get(&name).is_some_and(|&held| held > 0);
        match ready {
            Some(0) if held && zeros + 1 < AGREEING_ZEROS => self.doubted = Some((name, zeros + 1)),
            Some(ready) => _ = self.read.insert(name, ready),
            None => {}
        }
    }

    /// Messages that wait to be tried again; none before every retry queue was read, but for those that may not be there.
    pub fn retrying(&self, queue: &Queue) -> Option<u64> {
        let begun =
            queue.declared().into_iter().flat_map(|declared| declared.begun_delays_seconds.iter().copied());
        let begun = names(queue, begun);
        let all = retry_queues(queue);
        let counted = all.iter().filter(|name| self.read.contains_key(*name) || !begun.contains(*name));
        counted.map(|name| self.read.get(name)).sum()
    }

    /// Dead messages; none before they were counted.
    pub fn dead(&self, queue: &Queue) -> Option<u64> {
        self.read.get(&dead_letter_queue(queue.broker_name())).copied()
    }
}

/// Those of the spec, and those that it has dropped and that are not empty yet.
fn retry_queues(queue: &Queue) -> BTreeSet<String> {
    let left = queue.declared().into_iter().flat_map(Declared::rungs);
    names(queue, queue.spec.retry.delays_seconds.iter().copied().chain(left))
}

fn names(queue: &Queue, delays: impl Iterator<Item = i32>) -> BTreeSet<String> {
    delays.map(|delay| retry_queue(queue.broker_name(), delay.unsigned_abs())).collect()
}

#[cfg(test)]
mod tests {
    use warren_api::QueueSpec;
    use warren_api::queue::QueueStatus;

    use super::*;

    #[test]
    fn the_queues_beside_are_read_in_turn_and_summed_once_all_are_known() {
        let queue = Queue::new("orders", QueueSpec::default());
        let (mut side, mut read) = (Side::default(), vec![]);
        for _ in 0..LOOKS * 4 {
            if let Some(name) = side.next(&queue, true) {
                assert_eq!((side.retrying(&queue).is_some(), side.dead(&queue).is_some()), (false, false));
                read.push(name);
            }
        }
        read.sort();
        assert_eq!(read, ["orders.dlq", "orders.retry.5s", "orders.retry.600s", "orders.retry.60s"]);
        for (name, ready) in read.into_iter().zip(1..) {
            side.note(name, Some(ready));
        }
        assert_eq!((side.retrying(&queue), side.dead(&queue)), (Some(9), Some(1)));
    }

    #[test]
    fn a_queue_that_held_messages_is_empty_once_three_reads_agree() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        queue.spec.retry.delays_seconds = vec![];
        let (mut side, dead) = (Side::default(), "orders.dlq".to_owned());
        let told = |side: &mut Side, ready| {
            side.note(dead.clone(), ready);
            side.dead(&queue)
        };
        assert_eq!(told(&mut side, Some(0)), Some(0), "nothing says otherwise");
        assert_eq!(told(&mut side, Some(4)), Some(4));
        // Its leader is away for two looks.
        for ready in [Some(0), Some(0), Some(4), Some(0), None, Some(0), Some(0)] {
            assert_eq!(told(&mut side, ready), Some(4), "{ready:?}");
        }
        assert_eq!(side.next(&queue, true), Some(dead.clone()), "read again at once");
        assert_eq!(told(&mut side, Some(0)), Some(0));
        assert_eq!(side.next(&queue, true), None, "in its turn again");
    }

    #[test]
    fn a_rung_that_may_not_be_there_counts_once_it_was_read() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        queue.spec.retry.delays_seconds = vec![5];
        let begun = Declared { begun_delays_seconds: vec![60, 600], ..Declared::default() };
        queue.status = Some(QueueStatus { declared: Some(begun), ..QueueStatus::default() });
        let mut side = Side::default();
        side.note(retry_queue("orders", 60), Some(4));
        assert_eq!(side.retrying(&queue), None, "the ladder's own was not read");
        side.note(retry_queue("orders", 5), Some(3));
        assert_eq!(side.retrying(&queue), Some(7));
    }

    #[test]
    fn a_rung_that_is_gone_counts_no_more_and_without_rungs_nothing_is_tried_again() {
        let mut queue = Queue::new("orders", QueueSpec::default());
        let mut side = Side::default();
        for delay in [5, 60, 600] {
            side.note(retry_queue("orders", delay), Some(7));
        }
        queue.spec.retry.delays_seconds = vec![];
        let left = Declared { retry_delays_seconds: vec![60], ..Declared::default() };
        queue.status = Some(QueueStatus { declared: Some(left), ..QueueStatus::default() });
        let all_in_turn =
            |side: &mut Side, queue: &Queue| (0..LOOKS * 2).for_each(|_| _ = side.next(queue, true));
        all_in_turn(&mut side, &queue);
        assert_eq!(side.retrying(&queue), Some(7), "what a dropped rung still has");
        queue.status = None;
        all_in_turn(&mut side, &queue);
        assert_eq!((side.retrying(&queue), side.dead(&queue)), (Some(0), None));
        assert!(side.read.is_empty());
    }

    #[test]
    fn one_that_is_looked_at_rarely_has_a_queue_beside_it_read_each_time() {
        let queue = Queue::new("orders", QueueSpec::default());
        let reads = |frequent: bool| {
            let mut side = Side::default();
            (0..LOOKS * 4).filter(|_| side.next(&queue, frequent).is_some()).count()
        };
        assert_eq!((reads(true), reads(false)), (4, 20));
    }

    #[test]
    fn a_queue_that_was_empty_before_is_empty_at_once() {
        let queue = Queue::new("orders", QueueSpec::default());
        let mut side = Side::default();
        let first = (0..LOOKS).find_map(|_| side.next(&queue, true)).unwrap();
        side.note(first.clone(), Some(0));
        side.note(first, Some(0));
        assert_eq!(side.next(&queue, true), None);
    }
}
