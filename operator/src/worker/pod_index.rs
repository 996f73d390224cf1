//! Pods by their Worker: each Worker's are looked up every second, and a walk through all pods of a fleet for each Worker would
//! be most of what the operator does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::Store;

use super::live::OfWorker;
use super::pods::ended;
use crate::brokers::Key;
use crate::locked::locked;
use crate::queue::consumers::Consumers;

/// The pods of all Workers.
#[derive(Debug)]
pub struct PodIndex {
    store: Store<Pod>,
    /// Raised whenever the store may have changed.
    version: AtomicU64,
    index: Mutex<Index>,
}

/// The store's pods as they were at a version.
#[derive(Debug, Default)]
struct Index {
    version: u64,
    by_worker: HashMap<Key, Vec<Arc<Pod>>>,
    /// See [`PodIndex::stranger`], with the version of the Workers that were known.
    strangers: Option<(u64, HashMap<String, Key>)>,
}

impl PodIndex {
    /// Of the pods in a store.
    pub fn new(store: Store<Pod>) -> Self {
        Self { store, version: AtomicU64::new(1), index: Mutex::default() }
    }

    /// The store may have changed.
    pub fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// A Worker's pods.
    pub fn of(&self, worker: &Key) -> Vec<Arc<Pod>> {
        self.with(|by_worker| by_worker.get(worker).cloned().unwrap_or_default())
    }

    /// Workers of a namespace, living or gone, with pods that have not ended.
    pub fn workers(&self, namespace: &str) -> Vec<Key> {
        self.with(|by_worker| {
            let there = by_worker.iter().filter(|(worker, _)| worker.namespace == namespace);
            there.filter(|(_, pods)| holding(pods)).map(|(worker, _)| worker.clone()).collect()
        })
    }

    /// Whether a Worker has pods that have not ended.
    pub fn lives(&self, worker: &Key) -> bool {
        self.with(|by_worker| by_worker.get(worker).is_some_and(|pods| holding(pods)))
    }

    /// A Worker of a namespace with pods that have not ended and of which nothing is known: it was deleted before this process
    /// began.
    pub fn stranger(&self, namespace: &str, consumers: &Consumers) -> Option<Key> {
        let mut index = self.now();
        let Index { by_worker, strangers, .. } = &mut *index;
        if strangers.as_ref().is_none_or(|(version, _)| *version != consumers.version()) {
            let unknown = by_worker.iter().filter(|(worker, pods)| !consumers.knows(worker) && holding(pods));
            let found = unknown.map(|(worker, _)| (worker.namespace.clone(), worker.clone())).collect();
            *strangers = Some((consumers.version(), found));
        }
        strangers.as_ref().and_then(|(_, found)| found.get(namespace).cloned())
    }

    /// Every Worker with a pod.
    pub fn all_workers(&self) -> Vec<Key> {
        self.with(|by_worker| by_worker.keys().cloned().collect())
    }

    fn with<T>(&self, read: impl FnOnce(&HashMap<Key, Vec<Arc<Pod>>>) -> T) -> T {
        read(&self.now().by_worker)
    }

    fn now(&self) -> MutexGuard<'_, Index> {
        let version = self.version.load(Ordering::Acquire);
        let mut index = locked(&self.index);
        if index.version != version {
            *index = Index { version, by_worker: by_worker(self.store.state()), strangers: None };
        }
        index
    }
}

/// Whether pods may hold messages: one has not ended.
fn holding(pods: &[Arc<Pod>]) -> bool {
    pods.iter().any(|pod| !ended(pod))
}

fn by_worker(pods: Vec<Arc<Pod>>) -> HashMap<Key, Vec<Arc<Pod>>> {
    let mut by_worker: HashMap<Key, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods {
        if let (Some(name), Some(namespace)) = (pod.worker(), pod.namespace()) {
            by_worker.entry(Key { namespace, name: name.to_owned() }).or_default().push(pod);
        }
    }
    by_worker
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;
    use serde_json::json;
    use warren_api::names::WORKER_LABEL;

    use super::*;

    fn pod(namespace: &str, name: &str, worker: &str) -> Pod {
        let labels = json!({WORKER_LABEL: worker});
        let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_worker_has_the_pods_of_its_name_in_its_namespace_as_they_are_now() {
        let (store, mut writer) = store();
        let pods = PodIndex::new(store);
        let names = |namespace: &str| {
            let key = Key { namespace: namespace.to_owned(), name: "w".to_owned() };
            let mut names: Vec<_> = pods.of(&key).iter().map(|pod| pod.name_any()).collect();
            names.sort();
            names
        };
        assert!(names("a").is_empty());
        for pod in [pod("a", "w-1", "w"), pod("a", "w-2", "w"), pod("a", "v-1", "v"), pod("b", "w-3", "w")] {
            writer.apply_watcher_event(&Event::Apply(pod));
        }
        pods.changed();
        assert_eq!(
            (names("a"), names("b")),
            (vec!["w-1".to_owned(), "w-2".to_owned()], vec!["w-3".to_owned()])
        );
        writer.apply_watcher_event(&Event::Delete(pod("a", "w-1", "w")));
        pods.changed();
        assert_eq!(names("a"), ["w-2"]);
    }

    #[test]
    fn a_worker_whose_pods_have_all_ended_has_none_left() {
        let (store, mut writer) = store();
        let pods = PodIndex::new(store);
        let in_phase = |name: &str, worker: &str, phase: &str| {
            let mut pod = pod("a", name, worker);
            pod.status = serde_json::from_value(json!({"phase": phase})).unwrap();
            pod
        };
        let evicted = in_phase("w-1", "w", "Failed");
        for pod in [evicted, in_phase("v-1", "v", "Succeeded"), in_phase("v-2", "v", "Running")] {
            writer.apply_watcher_event(&Event::Apply(pod));
        }
        writer.apply_watcher_event(&Event::Apply(pod("b", "u-1", "u")));
        pods.changed();
        assert_eq!(pods.workers("a"), [Key { namespace: "a".to_owned(), name: "v".to_owned() }]);
        assert_eq!(pods.all_workers().len(), 3);
        let key = |name: &str| Key { namespace: "a".to_owned(), name: name.to_owned() };
        assert!(pods.lives(&key("v")) && !pods.lives(&key("w")));
    }

    #[test]
    fn a_worker_with_pods_of_which_nothing_is_known_is_a_stranger_until_something_is() {
        let (store, mut writer) = store();
        let pods = PodIndex::new(store);
        let (mut consumers, now) = (Consumers::default(), tokio::time::Instant::now());
        let key = Key { namespace: "a".to_owned(), name: "w".to_owned() };
        assert_eq!(pods.stranger("a", &consumers), None);
        writer.apply_watcher_event(&Event::Apply(pod("a", "w-1", "w")));
        pods.changed();
        assert_eq!(pods.stranger("a", &consumers), Some(key.clone()));
        assert_eq!(pods.stranger("b", &consumers), None);
        consumers.on(&key, "orders", std::time::Duration::ZERO, false, now);
        assert_eq!(pods.stranger("a", &consumers), None);
        consumers.retain(|_| false);
        assert_eq!(pods.stranger("a", &consumers), Some(key));
        let mut ended = pod("a", "w-1", "w");
        ended.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        writer.apply_watcher_event(&Event::Apply(ended));
        pods.changed();
        assert_eq!(pods.stranger("a", &consumers), None, "it holds nothing any more");
    }
}
