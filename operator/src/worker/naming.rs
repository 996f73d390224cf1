//! Which Workers name a Queue: asked for each Worker that keeps an order, time and again, where a walk through all Workers for
//! each of them would be the square of their number. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::brokers::Key;

/// The Workers of each Queue.
#[derive(Debug, Default)]
pub struct Naming {
    by_queue: HashMap<Key, BTreeSet<Key>>,
    queues: HashMap<Key, Key>,
}

impl Naming {
    /// A Worker names a Queue, and no other.
    pub fn names(&mut self, worker: Key, queue: Key) {
        if self.queues.get(&worker) != Some(&queue) {
            self.forget(&worker);
            self.by_queue.entry(queue.clone()).or_default().insert(worker.clone());
            self.queues.insert(worker, queue);
        }
    }

    /// A Worker is gone.
    pub fn forget(&mut self, worker: &Key) {
        let Some(queue) = self.queues.remove(worker) else { return };
        let Some(workers) = self.by_queue.get_mut(&queue) else { return };
        workers.remove(worker);
        if workers.is_empty() {
            self.by_queue.remove(&queue);
        }
    }

    /// All Workers but these are gone.
    pub fn retain(&mut self, living: &HashSet<Key>) {
        let gone: Vec<_> = self.queues.keys().filter(|worker| !living.contains(worker)).cloned().collect();
        gone.iter().for_each(|worker| self.forget(worker));
    }

    /// The Workers that name a Queue, in order.
    pub fn of(&self, queue: &Key) -> impl Iterator<Item = &Key> {
        self.by_queue.get(queue).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_worker_is_found_by_the_queue_that_it_names_now_until_it_is_gone() {
        let mut naming = Naming::default();
        let of =
            |naming: &Naming, queue| naming.of(&key(queue)).map(|key| key.name.clone()).collect::<Vec<_>>();
        for (worker, queue) in [("c", "q"), ("a", "q"), ("b", "q"), ("a", "q")] {
            naming.names(key(worker), key(queue));
        }
        assert_eq!(of(&naming, "q"), ["a", "b", "c"]);
        naming.names(key("a"), key("r"));
        naming.forget(&key("b"));
        assert_eq!((of(&naming, "q"), of(&naming, "r")), (vec!["c".to_owned()], vec!["a".to_owned()]));
        naming.retain(&[key("a")].into());
        assert_eq!((of(&naming, "q").len(), naming.by_queue.len(), naming.queues.len()), (0, 1, 1));
    }
}
