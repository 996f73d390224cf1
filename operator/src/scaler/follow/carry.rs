//! Carries a decision out, or says why not.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::EventType;
use tokio::time::Instant;
use warren_api::Worker;

use super::Follower;
use crate::context::PASSING_FAILURES;
use crate::scaler::act::{self, SCALE_REVERTED};
use crate::scaler::board::View;
use crate::scaler::decide::Decision;
use crate::scaler::reason::Reason;
use crate::scaler::tell;

/// What the API server has refused is tried again after so long.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);

/// A change of replicas that was refused.
pub(super) struct Refused {
    at: Instant,
    /// To more pods, or to fewer: what forbids the one may let the other.
    way: Ordering,
    answer: String,
}

impl Refused {
    /// Whether a change that way need not be tried yet.
    fn counts_for(&self, way: Ordering) -> bool {
        self.way == way && self.at.elapsed() < REFUSED_AGAIN
    }
}

impl Follower {
    /// Makes the Deployment's replicas, `live` of which it asks for, what was decided at `current` ones, and `view` known.
    pub(super) async fn carry_out(
        &mut self,
        worker: &Worker,
        live: Option<u32>,
        current: u32,
        decision: Decision,
        view: View,
        pods: &[Arc<Pod>],
    ) {
        let wanted = decision.replicas;
        let settled = self.own.settled(self.now());
        let foreign = wanted == current;
        let Some(live) = live else {
            if !foreign {
                self.history.not_scaled();
                // One that is made with another number is nobody else's.
                self.own.decided(current);
            }
            self.show(worker, &view);
            return;
        };
        // A number that was decided now is written whatever the cache says, which may not know of the last one yet.
        if foreign && (live == wanted || !settled) {
            self.failed = 0;
            self.show(worker, &view);
            return;
        }
        // A cache that lags behind accuses nobody.
        if foreign && act::replicas(&self.context, &self.key).await == Some(wanted) {
            self.show(worker, &view);
            return;
        }
        let former = self.entry.view();
        // A cache that lags behind does not know yet of pods that were asked for.
        let way = wanted.cmp(&live.max(current));
        if let Some(refused) = self.refused.as_ref().filter(|refused| refused.counts_for(way)) {
            let refused = Some(refused.answer.clone());
            self.not_done(worker, foreign, &former, View { refused, ..view });
            return;
        }
        if way == Ordering::Less {
            let marked = act::mark_costs(&self.context, pods, |pod| self.tracker.work(pod)).await;
            // Such work must not go for want of a mark.
            if !marked && self.long_work {
                let answer = "the pods that are to go cannot be marked, and work that asks for more time would go with others".to_owned();
                self.refused = Some(Refused { at: Instant::now(), way, answer: answer.clone() });
                self.not_done(worker, foreign, &former, View { refused: Some(answer), ..view });
                return;
            }
        }
        // Whose mode has changed meanwhile is not Warren's to scale any more.
        let stays = |worker: Arc<Worker>| worker.scales_itself();
        if !self.context.worker(&self.key).is_some_and(stays) {
            return;
        }
        match act::scale(&self.context, &self.key, &self.entry, view.clone(), wanted).await {
            Ok(()) => {
                self.own.patched(self.now());
                (self.refused, self.failed) = (None, 0);
                let Decision { raw, message, .. } = &decision;
                // Limits count while replicas are held, too: what the event tells of is that pods come or go.
                let reason = match current.cmp(&wanted) {
                    _ if foreign => SCALE_REVERTED,
                    Ordering::Less => Reason::ScaledOut.as_str(),
                    _ => Reason::ScaledIn.as_str(),
                };
                tracing::info!(namespace = %self.key.namespace, worker = %self.key.name, replicas = wanted, raw, live, reason, message, "scaled");
                let message = match foreign {
                    true => {
                        format!("someone else set {live} replicas; scaling.mode Builtin puts back {wanted}")
                    }
                    false => message.clone(),
                };
                self.context.event(worker, EventType::Normal, reason, &message, "Scale");
                self.context.metrics.scaled(&self.key, reason);
                tell::if_news(&self.context, worker, &former, &view);
            }
            Err(error) => {
                tracing::warn!(namespace = %self.key.namespace, worker = %self.key.name, %error, "not scaled, tried again");
                let (is_final, answer) = match error {
                    kube::Error::Api(answer) => {
                        ([400, 403, 422].contains(&answer.code), answer.message.clone())
                    }
                    error => (false, error.to_string()),
                };
                self.failed = self.failed.saturating_add(1);
                let is_told = is_final || self.failed >= PASSING_FAILURES;
                // A server in trouble, or a webhook that it calls, is asked again at once.
                if !is_final {
                    self.own.lost(self.now());
                }
                let refused = is_told.then(|| answer.clone());
                self.refused = is_final.then(|| Refused { at: Instant::now(), way, answer });
                self.not_done(worker, foreign, &former, View { refused, ..view });
            }
        }
    }

    /// Replicas stay what they are, as `former` has it; `foreign`: nothing was decided now, only somebody else's number was to be
    /// put back.
    fn not_done(&mut self, worker: &Worker, foreign: bool, former: &View, view: View) {
        self.own.not_patched();
        if !foreign {
            self.history.not_scaled();
        }
        let view = View { decision: former.decision.clone(), ..view };
        self.entry.replace(view.clone());
        tell::if_news(&self.context, worker, former, &view);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_fewer_pods_does_not_keep_more_from_coming() {
        let refused = Refused { at: Instant::now(), way: Ordering::Less, answer: "no".to_owned() };
        assert!(refused.counts_for(Ordering::Less) && !refused.counts_for(Ordering::Greater));
        let long_ago = Instant::now().checked_sub(REFUSED_AGAIN).unwrap();
        assert!(!Refused { at: long_ago, ..refused }.counts_for(Ordering::Less), "it is tried again");
    }
}
