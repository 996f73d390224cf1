//! Watches and the caches they fill.

use futures::Stream;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Load balancers drop flows that are idle for 240 s; some API servers refuse longer watches.
const WATCH_SECONDS: u32 = 200;
/// A copy of what a person applied, in the object itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Objects a page of the first list.
const PAGE: u32 = 500;

/// Watches a kind in a namespace (none: all), fills a cache, and gives the events. Only objects with the label `label`, if
/// one is named, are seen.
pub fn cached<K>(
    client: &Client,
    namespace: Option<&str>,
    label: Option<&str>,
    prune: fn(&mut K),
) -> (Store<K>, impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + use<K>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if let Some(label) = label {
        config = config.labels(label);
    }
    let (reader, writer) = store();
    let events = watcher(api, config)
        .default_backoff()
        .modify(move |object| {
            object.managed_fields_mut().clear();
            object.annotations_mut().remove(LAST_APPLIED);
            prune(object);
        })
        .reflect(writer);
    (reader, events)
}
