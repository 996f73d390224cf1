//! Runs the controller of a kind: which objects are reconciled, how many at once, and in which places those that fail.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};
use tokio::time::Instant;

use crate::context::{Context, Retries};
use crate::error::Error;
use crate::watch::Complaints;

/// Reconciles at once of objects whose last two failed.
const FAILING_AT_ONCE: usize = 4;
/// The longest until an object that has failed looks for a place again.
const PLACE: Duration = Duration::from_secs(5);

/// A kind of objects, and how they are reconciled.
pub struct Controlled<K: 'static + Clone + Resource<DynamicType = ()>, F> {
    /// What metrics and logs call it.
    pub kind: &'static str,
    /// Reconciles at once.
    pub at_once: u16,
    /// The cache of its objects.
    pub store: Store<K>,
    /// Brings one object to what it asks for.
    pub reconcile: fn(Arc<K>, Arc<Context>) -> F,
    /// What to do after that has failed.
    pub error_policy: fn(Arc<K>, &Error, Arc<Context>) -> Action,
}

impl<K, F> Controlled<K, F>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    /// Reconciles the objects that are `touched` and those that are named in `changed`, until `context.shutdown`.
    pub async fn run(
        self,
        touched: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
        changed: impl Stream<Item = ObjectRef<K>> + Send + 'static,
        context: Arc<Context>,
    ) {
        let Self { kind, at_once, store, reconcile, error_policy } = self;
        let shutdown = context.shutdown.clone();
        let mut complaints = Complaints::about(K::kind(&()), context.namespace.as_deref());
        let places = Arc::new(Places::default());
        let attempt = move |object: Arc<K>, context: Arc<Context>| {
            let places = places.clone();
            async move {
                context.caches_filled().await;
                let Ok(_place) = places.take(object.as_ref(), &context.retries) else {
                    context.retries.waits(object.as_ref(), Instant::now());
                    return Ok(Action::requeue(PLACE.mul_f64(rand::random_range(0.2..1.0))));
                };
                let _timer = context.metrics.reconciling(kind);
                reconcile(object, context.clone()).await
            }
            .boxed()
        };
        Controller::for_stream(touched, store)
            .with_config(Config::default().concurrency(at_once))
            .reconcile_on(changed)
            .graceful_shutdown_on(async move { shutdown.cancelled().await })
            .run(attempt, error_policy, context)
            .for_each(|reconciled| {
                complaints.hear(&reconciled);
                std::future::ready(())
            })
            .await;
    }
}

/// Places for objects that have failed again: a webhook of their namespace that hangs would take those of all others otherwise.
#[derive(Debug)]
struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(FAILING_AT_ONCE))
    }
}

impl Places {
    /// A place for one more try, if one is free. An object that has not failed, or once, needs none: it must not wait for those that
    /// do.
    fn take(
        &self,
        object: &impl ResourceExt,
        retries: &Retries,
    ) -> Result<Option<SemaphorePermit<'_>>, TryAcquireError> {
        if retries.in_a_row(object) < 2 { Ok(None) } else { self.0.try_acquire().map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use warren_api::Queue;

    use super::*;

    #[test]
    fn what_fails_has_places_of_its_own_and_what_does_not_needs_none() {
        let (places, retries, now) = (Places::default(), Retries::default(), Instant::now());
        let queue = |uid: usize| {
            let mut queue = Queue::new("orders", Default::default());
            queue.metadata.uid = Some(uid.to_string());
            queue
        };
        let take = |uid| places.take(&queue(uid), &retries);
        for uid in 0..=FAILING_AT_ONCE {
            retries.failed(&queue(uid), now);
            assert!(take(uid).unwrap().is_none(), "it may have been by chance");
            retries.failed(&queue(uid), now);
        }
        let mut taken: Vec<_> = (0..FAILING_AT_ONCE).map(|uid| take(uid).unwrap().unwrap()).collect();
        assert!(take(FAILING_AT_ONCE).is_err());
        assert!(take(99).unwrap().is_none());
        taken.pop();
        assert!(take(FAILING_AT_ONCE).unwrap().is_some());
    }
}
