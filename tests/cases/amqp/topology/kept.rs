//! What a Queue's reconcile does, without an API server: the order, the lane's observation, the status.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use serde_json::Value;
use warren_api::{Queue, QueueSpec, QueueStatus};
use warren_broker::BrokerAccess;
use warren_operator::brokers::{Brokers, Key, LaneOptions, Outcome, Past};
use warren_operator::leader::Leadership;
use warren_operator::queue::plan;
use warren_operator::queue::status::{Progress, status};
use warren_operator::scaler::board::Durability;
use warren_tests::wait::eventually;

/// How long anything may take on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The name of the operator's connections.
pub const CONNECTION: &str = "test";

/// The operator's brokers.
pub struct Keeper {
    pub brokers: Brokers,
    pub news: UnboundedReceiver<ObjectRef<Queue>>,
}

impl Keeper {
    /// One that looks for drift each second, and lets rungs go after a second.
    pub fn new() -> Self {
        Self::checking(Duration::from_secs(1))
    }

    /// One that waits so long for what the broker may hold back.
    pub fn holding_back(held_back: Duration) -> Self {
        Self::with(Duration::from_secs(1), held_back)
    }

    /// One that looks for drift so often.
    pub fn checking(drift_check: Duration) -> Self {
        Self::with(drift_check, Duration::from_secs(2))
    }

    /// Both.
    pub fn with(drift_check: Duration, held_back: Duration) -> Self {
        let leadership = Leadership::none();
        leadership.permanent();
        let options = LaneOptions {
            connection_name: CONNECTION.to_owned(),
            drift_check,
            sidecars_learn: Duration::from_secs(1),
            held_back,
            leadership,
        };
        let brokers = Brokers::new(options);
        let (_, news) = brokers.register(None);
        Self { brokers, news }
    }

    /// A Queue "orders" on the broker of `uri`.
    pub fn queue(&self, uri: &str, spec: Value) -> Result<Kept<'_>> {
        self.named("orders", BrokerAccess::from_uri(uri)?, spec)
    }

    pub fn named(&self, name: &str, access: BrokerAccess, spec: Value) -> Result<Kept<'_>> {
        let spec: QueueSpec = serde_json::from_value(spec)?;
        let mut queue = Queue::new(name, spec);
        queue.metadata.namespace = Some("shop".to_owned());
        Ok(Kept { keeper: self, access, queue })
    }
}

/// A Queue and its broker.
pub struct Kept<'a> {
    keeper: &'a Keeper,
    pub access: BrokerAccess,
    pub queue: Queue,
}

impl Kept<'_> {
    /// Changes the spec, as `kubectl apply` would.
    pub fn respec(&mut self, spec: Value) -> Result<()> {
        self.queue.spec = serde_json::from_value(spec)?;
        Ok(())
    }

    /// One turn of the reconcile.
    pub fn turn(&mut self) {
        let (key, address) = (Key::of(&self.queue), self.access.address());
        let order = plan::keep(&self.queue, &address);
        let Keeper { brokers, .. } = self.keeper;
        brokers.claim(&key, 0, &address, order.names());
        let past = plan::past(&self.queue, &address);
        let progress = match brokers.assign(&key, &self.access, order, past) {
            Some(outcome) => Progress::Observed { address, outcome },
            None => Progress::Pending { address },
        };
        self.queue.status =
            Some(status(&self.queue, progress, Durability::default(), &Time(Timestamp::now())));
    }

    pub fn status(&self) -> QueueStatus {
        self.queue.status.clone().unwrap_or_default()
    }

    fn condition(&self, kind: &str) -> Result<Condition> {
        let conditions = self.status().conditions;
        conditions.into_iter().find(|c| c.type_ == kind).with_context(|| format!("no condition {kind}"))
    }

    /// Waits until a condition has the status, the reason and a message that holds each of `words`; gives the message.
    pub async fn until(
        &mut self,
        kind: &str,
        (status, reason): (&str, &str),
        words: &[&str],
    ) -> Result<String> {
        eventually(PATIENCE, &format!("{kind}={status}, reason {reason}"), async || {
            self.turn();
            let found = self.condition(kind)?;
            ensure!(found.status == status && found.reason == reason, "{found:?}");
            ensure!(words.iter().all(|word| found.message.contains(word)), "{}", found.message);
            Ok(found.message)
        })
        .await
    }

    /// Waits until it is Ready.
    pub async fn ready(&mut self) -> Result<()> {
        self.until("Ready", ("True", "Declared"), &[]).await.map(drop)
    }

    /// Deletes the Queue; waits for what becomes of it.
    pub async fn end(&self) -> Result<Outcome> {
        let order = plan::remove(&self.queue).context("nothing is to be removed")?;
        let Keeper { brokers, .. } = self.keeper;
        eventually(PATIENCE, "the deletion has an outcome", async || {
            let outcome = brokers.assign(&Key::of(&self.queue), &self.access, order.clone(), Past::None);
            outcome.context("none yet")
        })
        .await
    }

    /// Deletes the Queue and waits until a deletion that something keeps says so; gives the message.
    pub async fn kept_by(&self, reason: &str) -> Result<String> {
        match self.end().await? {
            Outcome::Refused(problem) if problem.reason == reason => Ok(problem.message),
            other => anyhow::bail!("{other:?}"),
        }
    }

    /// Deletes the Queue and waits until its queues are gone.
    pub async fn gone(&self) -> Result<()> {
        eventually(PATIENCE, "everything is removed", async || {
            let outcome = self.end().await?;
            ensure!(outcome == Outcome::Removed, "{outcome:?}");
            Ok(())
        })
        .await
    }
}
