//! Has everybody know what a look at a Worker has newly shown: log, events, metrics, and the statuses of the Worker and its Queue.

use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use warren_api::Worker;

use super::board::View;
use super::decide::Decision;
use crate::brokers::Key;
use crate::context::Context;
use crate::problem::without_numbers;

/// Tells what `view` says that `former` did not.
pub(super) fn if_news(context: &Context, worker: &Worker, former: &View, view: &View) {
    let durable = |view: &View| (view.durability.deliveries > 0, view.durability.percent());
    let key = Key::of(worker);
    // The receivers end only with the process.
    if durable(former) != durable(view) {
        // The Queue tells of its messages' durability.
        let _ = context.queue_changed.unbounded_send(ObjectRef::from(&Key::named_by(worker)));
    }
    let decided = |view: &View| view.decision.as_ref().map(|decision| (decision.replicas, decision.reason));
    let said = |view: &View| {
        let handlers = &view.handlers;
        (
            handlers.scraped > 0,
            handlers.listened,
            handlers.most_held(),
            handlers.misconfigured,
            handlers.disconnected,
            view.refused.as_deref().map(without_numbers),
            view.misread.clone(),
        )
    };
    let news = decided(former) != decided(view);
    if !news && said(former) == said(view) {
        return;
    }
    if let Some(Decision { replicas, raw, reason, message }) = view.decision.as_ref().filter(|_| news) {
        context.metrics.decided(&key, *reason);
        // Where pods come or go, that is logged with what was there.
        if former.decision.as_ref().is_none_or(|before| before.replicas == *replicas) {
            let name = reason.as_str();
            tracing::info!(namespace = %key.namespace, worker = %key.name, replicas, raw, reason = name, message, "decided");
            if reason.is_hindrance() {
                context.event(worker, EventType::Warning, name, message, "Scale");
            }
        }
    }
    let _ = context.worker_changed.unbounded_send(ObjectRef::from_obj(worker));
}
