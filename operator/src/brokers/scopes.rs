//! The scopes of the process: each has Queues of its own, and controllers that look at no others.

use std::collections::HashMap;
use std::sync::Mutex;

use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::ObjectRef;
use warren_api::Queue;

use super::Key;
use crate::locked::locked;

/// Where Queues are sent that are to be looked at again, by the namespace of the scope; none: all namespaces.
#[derive(Debug, Default)]
pub(super) struct Scopes(Mutex<HashMap<Option<String>, UnboundedSender<ObjectRef<Queue>>>>);

impl Scopes {
    /// A scope's Queues are sent to `changed`.
    pub(super) fn register(&self, namespace: Option<String>, changed: UnboundedSender<ObjectRef<Queue>>) {
        locked(&self.0).insert(namespace, changed);
    }

    /// Sends a Queue to the controller of its own scope: another one does not know it, and would drop it without a word.
    pub(super) fn tell(&self, queue: &Key) {
        let scopes = locked(&self.0);
        let changed = scopes.get(&None).or_else(|| scopes.get(&Some(queue.namespace.clone())));
        if let Some(changed) = changed {
            // The receiver ends only with the process.
            let _ = changed.unbounded_send(queue.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc::unbounded;

    use super::*;

    #[test]
    fn a_queue_is_sent_to_the_scope_of_its_namespace_or_to_that_of_all() {
        let key = |namespace: &str| Key { namespace: namespace.to_owned(), name: "orders".to_owned() };
        let told = |scopes: &[Option<&str>]| {
            let registry = Scopes::default();
            let register = |scope: &Option<&str>| {
                let (changed, news) = unbounded();
                registry.register(scope.map(str::to_owned), changed);
                news
            };
            let mut news: Vec<_> = scopes.iter().map(register).collect();
            ["a", "b", "c"].iter().for_each(|namespace| registry.tell(&key(namespace)));
            let mut told = |news: &mut futures::channel::mpsc::UnboundedReceiver<ObjectRef<Queue>>| {
                std::iter::from_fn(|| news.try_recv().ok()?.namespace).collect::<Vec<_>>()
            };
            news.iter_mut().map(&mut told).collect::<Vec<_>>()
        };
        assert_eq!(told(&[Some("b"), Some("a")]), [["b"], ["a"]]);
        assert_eq!(told(&[None]), [["a", "b", "c"]]);
    }
}
