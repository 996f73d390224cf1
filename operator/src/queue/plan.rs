//! Step 3: what to declare, and what to take back of what was declared before. Pure.

use warren_api::queue::{AdoptionPolicy, Declared, DeclaredBinding, DeletionPolicy};
use warren_api::{Queue, QueueStatus};
use warren_broker::topology::{self, BindingPlan};

use crate::brokers::{Claim, Goal, Order};

/// The order for the broker's lane that keeps a Queue.
pub fn keep(queue: &Queue) -> Order {
    let topology = topology::plan(queue.broker_name(), &queue.spec);
    let status = queue.status.as_ref();
    let before = status.and_then(|status| status.declared.as_ref());
    let unbind = before
        .map(|d| d.bindings.iter().map(binding_plan).filter(|b| !topology.bindings.contains(b)).collect())
        .unwrap_or_default();
    let retire = before
        .map(|d| {
            let gone = d.retry_delays_seconds.iter().filter(|d| !queue.spec.retry.delays_seconds.contains(d));
            gone.map(|delay| delay.unsigned_abs()).collect()
        })
        .unwrap_or_default();
    order(queue, Goal::Keep { claim: claim(queue, status), unbind, retire })
}

/// The order that ends a Queue; none where its broker keeps everything.
pub fn remove(queue: &Queue) -> Option<Order> {
    let only_if_empty = match queue.spec.deletion_policy {
        DeletionPolicy::Retain => return None,
        DeletionPolicy::DeleteIfEmpty => true,
        DeletionPolicy::Delete => false,
    };
    Some(order(queue, Goal::Remove { only_if_empty }))
}

fn order(queue: &Queue, goal: Goal) -> Order {
    Order {
        main: queue.broker_name().to_owned(),
        queue_type: queue.spec.queue_type,
        topology: topology::plan(queue.broker_name(), &queue.spec),
        goal,
    }
}

/// What was once declared, or is known to have been absent before, is Warren's.
fn claim(queue: &Queue, status: Option<&QueueStatus>) -> Claim {
    match queue.spec.adoption_policy {
        AdoptionPolicy::Adopt => Claim::Declare,
        AdoptionPolicy::AsIs => Claim::MustExist,
        AdoptionPolicy::FailIfExists if status.is_some_and(|s| s.created == Some(true)) => Claim::Declare,
        AdoptionPolicy::FailIfExists => Claim::MustBeAbsent,
    }
}

/// What `status.declared` says once an order is done; `leftover` rungs still hold messages.
pub fn declared(queue: &Queue, leftover: &[u32]) -> Declared {
    let spec = &queue.spec;
    let leftover = leftover.iter().filter_map(|delay| i32::try_from(*delay).ok());
    Declared {
        retry_delays_seconds: spec.retry.delays_seconds.iter().copied().chain(leftover).collect(),
        bindings: spec
            .bindings
            .iter()
            .map(|b| DeclaredBinding {
                exchange: b.exchange.clone(),
                routing_key: b.routing_key.clone(),
                arguments: b.arguments.clone(),
            })
            .collect(),
    }
}

fn binding_plan(binding: &DeclaredBinding) -> BindingPlan {
    let DeclaredBinding { exchange, routing_key, arguments } = binding.clone();
    BindingPlan { exchange, routing_key, arguments }
}

#[cfg(test)]
mod tests {
    use warren_api::QueueSpec;
    use warren_api::queue::Retry;

    use super::*;

    fn queue(spec: QueueSpec, status: QueueStatus) -> Queue {
        let mut queue = Queue::new("orders", spec);
        queue.status = Some(status);
        queue
    }

    #[test]
    fn what_the_spec_dropped_is_taken_back() {
        let old = DeclaredBinding {
            exchange: "e".to_owned(),
            routing_key: "k".to_owned(),
            arguments: Default::default(),
        };
        let declared = Declared { retry_delays_seconds: vec![5, 60, 7200], bindings: vec![old] };
        let spec = QueueSpec {
            retry: Retry { delays_seconds: vec![5, 60], max_attempts: 3 },
            ..QueueSpec::default()
        };
        let status = QueueStatus { declared: Some(declared), ..QueueStatus::default() };
        let Goal::Keep { unbind, retire, .. } = keep(&queue(spec, status)).goal else { panic!() };
        assert_eq!((unbind[0].exchange.as_str(), retire), ("e", vec![7200]));
    }

    #[test]
    fn a_queue_that_must_be_new_is_declared_only_after_its_absence_is_recorded() {
        let spec = || QueueSpec { adoption_policy: AdoptionPolicy::FailIfExists, ..QueueSpec::default() };
        let claim = |status| match keep(&queue(spec(), status)).goal {
            Goal::Keep { claim, .. } => claim,
            Goal::Remove { .. } => panic!(),
        };
        assert_eq!(claim(QueueStatus::default()), Claim::MustBeAbsent);
        assert_eq!(claim(QueueStatus { created: Some(true), ..QueueStatus::default() }), Claim::Declare);
    }

    #[test]
    fn a_retained_queue_is_never_removed() {
        assert_eq!(remove(&queue(QueueSpec::default(), QueueStatus::default())), None);
    }
}
