//! Watches and the caches they fill.

use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::scaler::act::DELETION_COST;
use crate::tolerant::{Sieve, Tolerant};

/// A watch that has fallen silent with its connection shows no new pods until it ends, and it goes on where it was: short.
const WATCH_SECONDS: u32 = 80;
/// The annotations that are read; others, such as a copy of what a person applied, are not kept.
const ANNOTATIONS: [&str; 1] = [DELETION_COST];
/// Objects a page of the first list: a page is read whole, and each of its objects may have a MiB and a half.
const PAGE: u32 = 50;

/// Between two log lines about one watch: it is tried again by itself, more and more rarely.
const COMPLAIN: Duration = Duration::from_secs(60);

/// What is logged of a watch that fails.
#[derive(Debug)]
pub struct Complaints {
    kind: String,
    namespace: String,
    last: Option<Instant>,
}

impl Complaints {
    /// About the watch of a kind in a namespace; none: all.
    pub fn about(kind: impl Into<String>, namespace: Option<&str>) -> Self {
        Self { kind: kind.into(), namespace: namespace.unwrap_or("all").to_owned(), last: None }
    }

    /// Logs what a controller says of its watch. A failed reconcile is told by its policy.
    pub fn hear<T, E>(&mut self, reconciled: &Result<T, controller::Error<E, watcher::Error>>) {
        if let Err(controller::Error::QueueError(error)) = reconciled {
            self.tell(error);
        }
    }

    /// Logs an error, unless one was logged a moment ago.
    pub fn tell(&mut self, error: &watcher::Error) {
        let now = Instant::now();
        if self.is_due(now) {
            let Self { kind, namespace, .. } = self;
            tracing::warn!(%kind, %namespace, %error, "a watch failed and is tried again: if it goes on, see that the definitions are installed and that the operator may list and watch this kind");
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now.duration_since(last) >= COMPLAIN);
        if due {
            self.last = Some(now);
        }
        due
    }
}

/// Watches a kind in a namespace (none: all), fills a cache, and gives the events. Only objects with the label `label`, if
/// one is named, are seen, and only those that can be read.
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
    let api: Api<Tolerant<K>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if let Some(label) = label {
        config = config.labels(label);
    }
    let (reader, writer) = store();
    let mut sieve = Sieve::before(reader.clone());
    let mut begun = false;
    let events = watcher(api, config)
        .flat_map(move |event| stream::iter(with_its_list(&mut begun, event)))
        .default_backoff()
        .filter_map(move |event| future::ready(event.map(|event| sieve.pass(event)).transpose()))
        .modify(move |object| {
            object.annotations_mut().retain(|annotation, _| ANNOTATIONS.contains(&annotation.as_str()));
            prune(object);
        })
        .reflect(writer);
    (reader, events)
}

/// Puts off that a list begins until it gives something: the backoff takes it for a success, and would never grow while each
/// list is refused.
fn with_its_list<K>(
    begun: &mut bool,
    event: watcher::Result<watcher::Event<K>>,
) -> impl Iterator<Item = watcher::Result<watcher::Event<K>>> + use<K> {
    let begins = matches!(event, Ok(watcher::Event::Init));
    let list = (!begins && event.is_ok() && *begun).then_some(Ok(watcher::Event::Init));
    *begun = begins || (*begun && event.is_err());
    [list, (!begins).then_some(event)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use kube::client::Body;
    use serde_json::json;
    use warren_api::Queue;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_refused_is_asked_for_more_and_more_rarely_and_filled_in_when_it_is_not() {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let server = tower::util::service_fn(move |request: http::Request<Body>| {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            async move {
                if watches {
                    std::future::pending::<()>().await;
                }
                let queue = json!({"metadata": {"name": "orders", "namespace": "shop"}, "spec": {}});
                let (code, body) = match number {
                    0..15 => (403, json!({"code": 403, "reason": "Forbidden"})),
                    _ => (200, json!({"metadata": {"resourceVersion": "1"}, "items": [queue]})),
                };
                let answer =
                    http::Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        let begun = Instant::now();
        let (queues, events) = cached::<Queue>(&Client::new(server, "warren"), Some("shop"), None, |_| {});
        let mut events = pin!(events);
        while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
        assert_eq!(queues.len(), 1);
        // The last ten waits are of 30 s each, with a spread.
        assert!(begun.elapsed() > Duration::from_secs(150), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_watch_that_goes_on_failing_is_told_once_a_minute() {
        let (mut complaints, now) = (Complaints::about("Queue", None), Instant::now());
        let told: Vec<u64> =
            (0..150).filter(|second| complaints.is_due(now + Duration::from_secs(*second))).collect();
        assert_eq!(told, [0, 60, 120]);
    }
}
