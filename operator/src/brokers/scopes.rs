//! The scopes of the process: each has Queues of its own, and controllers that look at no others.

use std::collections::HashMap;
use std::sync::Mutex;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::runtime::reflector::ObjectRef;
use warren_api::Queue;

use super::Key;
use crate::locked::locked;

/// Queues of a scope that are to be looked at again: where they are sent, and where they come out.
pub type Changes = (UnboundedSender<ObjectRef<Queue>>, UnboundedReceiver<ObjectRef<Queue>>);

/// Scopes by their namespace; none: all namespaces.
#[derive(Debug, Default)]
pub(super) struct Scopes(Mutex<HashMap<Option<String>, Scope>>);

#[derive(Debug)]
struct Scope {
    changed: UnboundedSender<ObjectRef<Queue>>,
    /// Whether its Queues are known.
    listed: bool,
}

impl Scopes {
    /// Takes a scope in whose Queues are not known yet.
    pub(super) fn register(&self, namespace: Option<String>) -> Changes {
        let (changed, changes) = unbounded();
        locked(&self.0).insert(namespace, Scope { changed: changed.clone(), listed: false });
        (changed, changes)
    }

    /// Every Queue of a scope is known.
    pub(super) fn listed(&self, namespace: Option<&str>) {
        if let Some(scope) = locked(&self.0).get_mut(&namespace.map(str::to_owned)) {
            scope.listed = true;
        }
    }

    /// Whether the Queues of every scope are known.
    pub(super) fn all_listed(&self) -> bool {
        locked(&self.0).values().all(|scope| scope.listed)
    }

    /// Sends a Queue to the controller of its own scope: another one does not know it, and would drop it without a word.
    pub(super) fn tell(&self, queue: &Key) {
        let scopes = locked(&self.0);
        let scope = scopes.get(&None).or_else(|| scopes.get(&Some(queue.namespace.clone())));
        if let Some(scope) = scope {
            // The receiver ends only with the process.
            let _ = scope.changed.unbounded_send(queue.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_sent_to_the_scope_of_its_namespace_or_to_that_of_all() {
        let key = |namespace: &str| Key { namespace: namespace.to_owned(), name: "orders".to_owned() };
        let told = |namespaces: &[Option<&str>]| {
            let scopes = Scopes::default();
            let register = |namespace: &Option<&str>| scopes.register(namespace.map(str::to_owned));
            let mut changes: Vec<_> = namespaces.iter().map(register).collect();
            ["a", "b", "c"].iter().for_each(|namespace| scopes.tell(&key(namespace)));
            let told = |(_, changes): &mut Changes| {
                std::iter::from_fn(|| changes.try_recv().ok()?.namespace).collect::<Vec<_>>()
            };
            changes.iter_mut().map(told).collect::<Vec<_>>()
        };
        assert_eq!(told(&[Some("b"), Some("a")]), [["b"], ["a"]]);
        assert_eq!(told(&[None]), [["a", "b", "c"]]);
    }

    #[test]
    fn not_all_queues_are_known_while_a_namespace_is_late() {
        let scopes = Scopes::default();
        let _changes = ["a", "late"].map(|namespace| scopes.register(Some(namespace.to_owned())));
        scopes.listed(Some("a"));
        scopes.listed(Some("a"));
        assert!(!scopes.all_listed());
        scopes.listed(Some("late"));
        assert!(scopes.all_listed());
    }
}
