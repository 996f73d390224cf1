//! Step 3: what to declare, and what to take back of what was declared before. Pure.

use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Value, json};
use warren_api::conditions::worker::{QUEUE_READY, TEMPLATE_VALID};
use warren_api::queue::{AdoptionPolicy, Declared, DeclaredBinding, DeletionPolicy};
use warren_api::{Queue, Worker};
use warren_broker::topology::{self, Topology};

use crate::brokers::{Claim, Goal, Order, Past};
use crate::condition::is_false;

/// The order for the lane of the broker at `address` that keeps a Queue.
pub fn keep(queue: &Queue, address: &str) -> Order {
    let topology = topology::plan(queue.broker_name(), &queue.spec);
    let retire = dropped_rungs(queue).map(|delay| delay.unsigned_abs()).collect();
    let claim = match claim(queue) {
        Claim::Declare if made_elsewhere(queue, address) => Claim::MustBeAbsent,
        claim => claim,
    };
    let unbind = match claim {
        // An order that was refused is recorded with its bindings, and one of them may be the owner's.
        Claim::MustExist => Vec::new(),
        Claim::Declare | Claim::MustBeAbsent => dropped_bindings(queue, &topology),
    };
    order(queue, topology, Goal::Keep { claim, unbind, retire, untold: false })
}

/// The same under the Queue's Workers: sidecars of one that can be told of no change go on with the rungs that they know.
pub fn keep_under(queue: &Queue, address: &str, workers: &[Arc<Worker>]) -> Order {
    let mut order = keep(queue, address);
    if let Goal::Keep { retire, untold, .. } = &mut order.goal {
        // What is told at last is told from then on: another order, whose time begins anew.
        *untold = !retire.is_empty() && workers.iter().any(|worker| is_untold(worker));
    }
    order
}

/// Whether a Worker is such that its sidecars get no new configuration.
fn is_untold(worker: &Worker) -> bool {
    [TEMPLATE_VALID, QUEUE_READY].iter().any(|kind| is_false(worker.conditions(), kind))
}

/// The order that ends a Queue; none where its broker keeps everything, and where nothing on it is Warren's.
pub fn remove(queue: &Queue) -> Option<Order> {
    let only_if_empty = match queue.spec.deletion_policy {
        DeletionPolicy::Retain => return None,
        DeletionPolicy::DeleteIfEmpty => true,
        DeletionPolicy::Delete => false,
    };
    match claim(queue) {
        Claim::MustExist | Claim::MustBeAbsent => return None,
        Claim::Declare => {}
    }
    // Rungs that the spec has dropped may still hold messages.
    let mut spec = queue.spec.clone();
    spec.retry.delays_seconds.extend(dropped_rungs(queue));
    let topology = topology::plan(queue.broker_name(), &spec);
    let unbind = dropped_bindings(queue, &topology);
    Some(order(queue, topology, Goal::Remove { only_if_empty, unbind }))
}

/// Whether what its policy leaves may have lost its bindings to an attempt at a removal, under the policy before.
pub fn may_be_unbound(queue: &Queue) -> bool {
    queue.spec.deletion_policy == DeletionPolicy::Retain
        && !queue.spec.bindings.is_empty()
        && claim(queue) == Claim::Declare
}

fn order(queue: &Queue, topology: Topology, goal: Goal) -> Order {
    Order { main: queue.broker_name().to_owned(), queue_type: queue.spec.queue_type, topology, goal }
}

/// Delays of rungs that were declared, or may have been, and that the spec has no more.
fn dropped_rungs(queue: &Queue) -> impl Iterator<Item = i32> + '_ {
    let rungs = queue.declared().into_iter().flat_map(Declared::rungs);
    rungs.filter(|delay| !queue.spec.retry.delays_seconds.contains(delay))
}

/// Bindings that were made and that `topology` has no more.
fn dropped_bindings(queue: &Queue, topology: &Topology) -> Vec<DeclaredBinding> {
    let bindings = queue.declared().into_iter().flat_map(|declared| declared.bindings.iter().cloned());
    bindings.filter(|binding| !topology.bindings.contains(binding)).collect()
}

/// What was once declared, or is known to have been absent before, is Warren's.
fn claim(queue: &Queue) -> Claim {
    let created = queue.status.as_ref().is_some_and(|status| status.created == Some(true));
    match queue.spec.adoption_policy {
        AdoptionPolicy::Adopt => Claim::Declare,
        AdoptionPolicy::AsIs => Claim::MustExist,
        AdoptionPolicy::FailIfExists if created => Claim::Declare,
        AdoptionPolicy::FailIfExists => Claim::MustBeAbsent,
    }
}

/// What the status says of the main queue on the broker at `address`.
pub fn past(queue: &Queue, address: &str) -> Past {
    if was_declared(queue, address) { Past::Declared } else { Past::None }
}

/// Whether the status says that the main queue was on the broker at `address`, whatever has become of it and of the spec since.
pub(super) fn was_declared(queue: &Queue, address: &str) -> bool {
    let Some(status) = &queue.status else { return false };
    let there = status.declared.as_ref().is_some_and(|declared| declared.main_queue);
    there && status.broker_address.as_deref().is_some_and(|former| same_broker(former, address))
}

/// Whether `status.created` is about another broker or vhost than the one at `address`: what is there may be somebody's.
pub fn made_elsewhere(queue: &Queue, address: &str) -> bool {
    let status = queue.status.as_ref();
    let former = status.and_then(|status| status.broker_address.as_deref());
    queue.spec.adoption_policy == AdoptionPolicy::FailIfExists
        && former.is_some_and(|former| !same_broker(former, address))
}

/// Where something may be left that was declared for this Queue, if that is not where it is kept now.
pub fn left_behind<'a>(queue: &'a Queue, now: &str) -> Option<&'a str> {
    let status = queue.status.as_ref().filter(|status| status.declared.is_some())?;
    let former = status.broker_address.as_deref()?;
    (!same_broker(former, now)).then_some(former)
}

/// Whether two addresses name one broker and vhost: they have a host in common. With TLS it listens on another port.
pub(super) fn same_broker<'a>(one: &'a str, other: &'a str) -> bool {
    let parts = |address: &'a str| {
        let (scheme, rest) = address.split_once("://")?;
        let (hosts, vhost) = rest.rsplit_once('/')?;
        Some((scheme, hosts, vhost))
    };
    let (Some(one), Some(other)) = (parts(one), parts(other)) else { return one == other };
    let host = |endpoint: &'a str| match endpoint.rsplit_once(':') {
        Some((host, _)) if one.0 != other.0 => host,
        _ => endpoint,
    };
    let hosts = |list: &'a str| list.split(',').map(host);
    one.2 == other.2 && hosts(one.1).any(|here| hosts(other.1).any(|there| here == there))
}

/// What `status.declared` says once an order is done; `leftover` rungs still hold messages.
pub fn declared(queue: &Queue, leftover: &[u32]) -> Declared {
    Declared {
        // What others have made is theirs to lose.
        main_queue: claim(queue) == Claim::Declare,
        begun_delays_seconds: leftover.iter().filter_map(|delay| i32::try_from(*delay).ok()).collect(),
        bindings: queue.spec.bindings.iter().map(DeclaredBinding::from).collect(),
        ..with_ladder(queue)
    }
}

/// What `status.declared` says of a Queue whose ladder is the first.
fn with_ladder(queue: &Queue) -> Declared {
    let mut declared = Declared::default();
    declared.has_ladder(&queue.spec.retry);
    declared
}

/// What `status.declared` says of an order to the broker at `address` that is not done: it may have made each of its bindings and
/// rungs, which are taken back once the spec drops them. Sidecars go by the rungs that are there for certain, so new ones are
/// apart from these.
pub fn begun(queue: &Queue, address: &str) -> Option<Declared> {
    let (claim, binds) = (claim(queue), declares(queue, address));
    let rungs = &queue.spec.retry.delays_seconds;
    let mut declared = match queue.declared() {
        Some(former) => former.clone(),
        None if !binds || queue.spec.bindings.is_empty() => return None,
        None => with_ladder(queue),
    };
    declared.main_queue = was_declared(queue, address);
    if rungs.iter().all(|delay| declared.retry_delays_seconds.contains(delay)) {
        // Sidecars are told at once.
        declared.has_ladder(&queue.spec.retry);
    }
    if binds {
        let wanted = queue.spec.bindings.iter().map(DeclaredBinding::from);
        let new: Vec<_> = wanted.filter(|one| !declared.bindings.contains(one)).collect();
        declared.bindings.extend(new);
    }
    if binds || claim == Claim::MustExist {
        let known: Vec<i32> = declared.rungs().collect();
        declared.begun_delays_seconds.extend(rungs.iter().filter(|delay| !known.contains(delay)));
    }
    Some(declared)
}

/// The same of an order that the broker has refused in part: the rungs of a new Queue may be there, too.
pub fn refused(queue: &Queue, address: &str) -> Option<Declared> {
    let makes_rungs = || declares(queue, address) || claim(queue) == Claim::MustExist;
    begun(queue, address).or_else(|| makes_rungs().then(|| with_ladder(queue)))
}

/// Whether an order to the broker at `address` declares the main queue.
fn declares(queue: &Queue, address: &str) -> bool {
    claim(queue) == Claim::Declare && !made_elsewhere(queue, address)
}

/// The patch of a status that records what an order may bind, before it is placed: what binds and is then dropped at once could
/// not be taken back otherwise. None where all of it is recorded. It holds for the Queue as it was read alone: that of another
/// spec may have been recorded since.
pub fn record(queue: &Queue, address: &str) -> Option<Value> {
    let begun = begun(queue, address)?;
    (queue.declared() != Some(&begun)).then(
        || json!({"metadata": {"resourceVersion": queue.resource_version()}, "status": {"declared": begun}}),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use warren_api::queue::{Binding, Retry};
    use warren_api::{QueueSpec, QueueStatus};

    use super::*;

    const ADDRESS: &str = "amqp://a:5672/shop";

    fn queue(spec: QueueSpec, status: QueueStatus) -> Queue {
        let mut queue = Queue::new("orders", spec);
        queue.status = Some(status);
        queue
    }

    pub(in crate::queue) fn binding(exchange: &str) -> Binding {
        serde_json::from_value(json!({"exchange": exchange})).unwrap()
    }

    #[test]
    fn what_was_declared_elsewhere_is_left_behind() {
        let left = |declared: bool, now: &str| {
            let status = QueueStatus {
                broker_address: Some(ADDRESS.to_owned()),
                declared: declared.then(Declared::default),
                ..QueueStatus::default()
            };
            left_behind(&queue(QueueSpec::default(), status), now).map(str::to_owned)
        };
        let other = "amqp://a:5672/other";
        assert_eq!(left(true, other).as_deref(), Some(ADDRESS));
        assert_eq!(left(true, "amqps://a:5671/shop"), None);
        assert_eq!(left(false, other), None);
    }

    #[test]
    fn what_the_spec_dropped_is_taken_back() {
        let old = DeclaredBinding {
            exchange: "e".to_owned(),
            routing_key: "k".to_owned(),
            arguments: Default::default(),
        };
        let declared =
            Declared { retry_delays_seconds: vec![5, 60, 7200], bindings: vec![old], ..Declared::default() };
        let spec = QueueSpec {
            retry: Retry { delays_seconds: vec![5, 60], max_attempts: 3 },
            ..QueueSpec::default()
        };
        let status = QueueStatus { declared: Some(declared), ..QueueStatus::default() };
        let order = keep(&queue(spec, status), ADDRESS);
        // What is still there is still claimed.
        let names = ["orders", "orders.retry.60s", "orders.retry.5s", "orders.dlq", "orders.retry.7200s"];
        assert_eq!(order.names(), names);
        let Goal::Keep { unbind, retire, .. } = order.goal else { panic!() };
        assert_eq!((unbind[0].exchange.as_str(), retire), ("e", vec![7200]));
    }

    #[test]
    fn what_an_order_that_failed_may_have_bound_is_taken_back_and_the_ladder_stays() {
        let bound = |exchanges: &[&str], delays: &[i32]| QueueSpec {
            bindings: exchanges.iter().map(|exchange| binding(exchange)).collect(),
            retry: Retry { delays_seconds: delays.to_vec(), max_attempts: 3 },
            ..QueueSpec::default()
        };
        let exchanges = |declared: &Declared| -> Vec<String> {
            declared.bindings.iter().map(|binding| binding.exchange.clone()).collect()
        };
        let first = begun(&queue(bound(&["a", "b"], &[5]), QueueStatus::default()), ADDRESS).unwrap();
        assert_eq!(
            (exchanges(&first), first.retry_delays_seconds.as_slice()),
            (vec!["a".into(), "b".into()], &[5][..])
        );
        let status = QueueStatus { declared: Some(first), ..QueueStatus::default() };
        let second = queue(bound(&["b", "c"], &[60]), status);
        let Goal::Keep { unbind, .. } = keep(&second, ADDRESS).goal else { panic!() };
        assert_eq!(unbind.iter().map(|binding| binding.exchange.as_str()).collect::<Vec<_>>(), ["a"]);
        let both = begun(&second, ADDRESS).unwrap();
        assert_eq!((exchanges(&both).len(), both.retry_delays_seconds.as_slice()), (3, &[5][..]));
        // Corrected before it was declared, the rung of the order that failed goes, too.
        let status = QueueStatus { declared: Some(both), ..QueueStatus::default() };
        let third = queue(bound(&["c"], &[20]), status);
        let Goal::Keep { retire, .. } = keep(&third, ADDRESS).goal else { panic!() };
        assert_eq!(retire, [5, 60]);
        let names = |order: Order| order.names();
        let removed = QueueSpec { deletion_policy: DeletionPolicy::Delete, ..third.spec.clone() };
        let removed = names(remove(&queue(removed, third.status.unwrap())).unwrap());
        assert!(removed.contains(&"orders.retry.60s".to_owned()), "{removed:?}");
        let unbound = queue(bound(&[], &[5]), QueueStatus::default());
        assert_eq!(begun(&unbound, ADDRESS), None);
        assert_eq!(refused(&unbound, ADDRESS).unwrap().retry_delays_seconds, [5]);
        // Those of others' main queue are Warren's, too.
        let others = QueueSpec { adoption_policy: AdoptionPolicy::AsIs, ..bound(&[], &[5]) };
        let others = queue(others, QueueStatus::default());
        assert_eq!(refused(&others, ADDRESS).unwrap().retry_delays_seconds, [5]);
        // Before its absence is known, nothing is made.
        let new = QueueSpec { adoption_policy: AdoptionPolicy::FailIfExists, ..bound(&["a"], &[5]) };
        assert_eq!(begun(&queue(new, QueueStatus::default()), ADDRESS), None);
    }

    #[test]
    fn attempts_that_sidecars_are_told_at_once_are_recorded_with_the_rungs_that_count() {
        let ladder = |delays: &[i32], max_attempts| QueueSpec {
            retry: Retry { delays_seconds: delays.to_vec(), max_attempts },
            ..QueueSpec::default()
        };
        let made = declared(&queue(ladder(&[5, 60], 24), QueueStatus::default()), &[]);
        let status = QueueStatus { declared: Some(made), ..QueueStatus::default() };
        let begun = |spec| begun(&queue(spec, status.clone()), ADDRESS).unwrap();
        let fewer = begun(ladder(&[60], 100));
        assert_eq!((fewer.max_attempts, fewer.retry_delays_seconds), (Some(100), vec![60]));
        assert_eq!(fewer.begun_delays_seconds, [5], "it has yet to go");
        let more = begun(ladder(&[60, 3600], 100));
        assert_eq!((more.max_attempts, more.retry_delays_seconds), (Some(24), vec![5, 60]));
        assert_eq!(more.begun_delays_seconds, [3600]);
    }

    #[test]
    fn what_may_be_bound_is_recorded_once_and_for_the_queue_as_it_was_read() {
        let spec = QueueSpec { bindings: vec![binding("b")], ..QueueSpec::default() };
        let mut queue = queue(spec, QueueStatus::default());
        queue.metadata.resource_version = Some("7".to_owned());
        let patch = record(&queue, ADDRESS).unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"]["declared"]["bindings"][0]["exchange"], "b");
        let declared = begun(&queue, ADDRESS);
        queue.status = Some(QueueStatus { declared, ..QueueStatus::default() });
        assert_eq!(record(&queue, ADDRESS), None);
        queue.spec.bindings.clear();
        assert_eq!(record(&queue, ADDRESS), None, "nothing more is bound");
    }

    #[test]
    fn a_queue_that_must_be_new_must_be_so_on_another_broker_too() {
        let spec = QueueSpec { adoption_policy: AdoptionPolicy::FailIfExists, ..QueueSpec::default() };
        let status = QueueStatus {
            created: Some(true),
            broker_address: Some("amqp://a:5672,b:5672/shop".to_owned()),
            ..QueueStatus::default()
        };
        let queue = queue(spec, status);
        for (address, expected) in [
            ("amqp://a:5672,b:5672/shop", Claim::Declare),
            ("amqp://b:5672,c:5672/shop", Claim::Declare),
            ("amqps://a:5671/shop", Claim::Declare),
            ("amqp://a:5672/other", Claim::MustBeAbsent),
            ("amqp://a:5673/shop", Claim::MustBeAbsent),
            ("amqps://c:5671/shop", Claim::MustBeAbsent),
        ] {
            let Goal::Keep { claim, .. } = keep(&queue, address).goal else { panic!() };
            assert_eq!(claim, expected, "{address}");
        }
        let adopting = Queue { spec: QueueSpec::default(), ..queue };
        let Goal::Keep { claim, .. } = keep(&adopting, "amqp://c/x").goal else { panic!() };
        assert_eq!(claim, Claim::Declare);
    }

    #[test]
    fn a_queue_that_must_be_new_is_declared_only_after_its_absence_is_recorded() {
        let spec = || QueueSpec { adoption_policy: AdoptionPolicy::FailIfExists, ..QueueSpec::default() };
        let claim = |status| match keep(&queue(spec(), status), ADDRESS).goal {
            Goal::Keep { claim, .. } => claim,
            Goal::Remove { .. } => panic!(),
        };
        assert_eq!(claim(QueueStatus::default()), Claim::MustBeAbsent);
        assert_eq!(claim(QueueStatus { created: Some(true), ..QueueStatus::default() }), Claim::Declare);
    }

    #[test]
    fn no_rung_goes_while_a_worker_s_sidecars_cannot_be_told_of_the_ladder() {
        let declared = Declared { retry_delays_seconds: vec![5], ..Declared::default() };
        let retry = Retry { delays_seconds: vec![10], max_attempts: 3 };
        let status = QueueStatus { declared: Some(declared), ..QueueStatus::default() };
        let queue = queue(QueueSpec { retry, ..QueueSpec::default() }, status);
        let worker = |kind: &str, status: &str| {
            let spec = json!({"queueRef": {"name": "orders"}, "template": {"spec": {"containers": [{"name": "app"}]}}});
            let mut worker = Worker::new("invoices", serde_json::from_value(spec).unwrap());
            let condition = json!({"type": kind, "status": status, "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            worker.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
            Arc::new(worker)
        };
        let untold = |workers: &[Arc<Worker>]| match keep_under(&queue, ADDRESS, workers).goal {
            Goal::Keep { untold, .. } => untold,
            Goal::Remove { .. } => panic!(),
        };
        let sound = || worker("TemplateValid", "True");
        assert!(!untold(&[]) && !untold(&[sound(), worker("Available", "False")]));
        assert!(untold(&[sound(), worker("TemplateValid", "False")]));
        assert!(untold(&[worker("QueueReady", "False")]));
        assert!(!untold(&[worker("QueueReady", "Unknown")]), "its broker has yet to answer");
        let settled = Queue { status: None, ..queue.clone() };
        let order = keep_under(&settled, ADDRESS, &[worker("QueueReady", "False")]);
        assert_eq!(order, keep(&settled, ADDRESS), "nothing is to go");
    }

    #[test]
    fn a_deletion_counts_rungs_that_the_spec_has_dropped() {
        let declared = Declared { retry_delays_seconds: vec![5, 7200], ..Declared::default() };
        let spec = QueueSpec {
            retry: Retry { delays_seconds: vec![5], max_attempts: 3 },
            deletion_policy: DeletionPolicy::DeleteIfEmpty,
            ..QueueSpec::default()
        };
        let status = QueueStatus { declared: Some(declared), ..QueueStatus::default() };
        let order = remove(&queue(spec, status)).unwrap();
        let names: Vec<_> = order.topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(names, ["orders.dlq", "orders.retry.5s", "orders.retry.7200s", "orders"]);
        assert_eq!(order.names(), ["orders", "orders.retry.7200s", "orders.retry.5s", "orders.dlq"]);
    }

    #[test]
    fn a_queue_that_was_there_against_the_policy_is_not_deleted_with_it() {
        let spec = QueueSpec {
            adoption_policy: AdoptionPolicy::FailIfExists,
            deletion_policy: DeletionPolicy::Delete,
            ..QueueSpec::default()
        };
        assert_eq!(remove(&queue(spec, QueueStatus::default())), None);
    }

    #[test]
    fn a_queue_that_stays_may_have_lost_its_bindings_where_warren_makes_them() {
        let spec = |adoption_policy, exchanges: &[&str]| QueueSpec {
            bindings: exchanges.iter().map(|exchange| binding(exchange)).collect(),
            adoption_policy,
            ..QueueSpec::default()
        };
        let may = |spec| may_be_unbound(&queue(spec, QueueStatus::default()));
        assert!(may(spec(AdoptionPolicy::Adopt, &["shop"])));
        assert!(!may(spec(AdoptionPolicy::Adopt, &[])));
        assert!(!may(spec(AdoptionPolicy::AsIs, &["shop"])), "they are others' to make");
        assert!(!may(spec(AdoptionPolicy::FailIfExists, &["shop"])), "it was never made");
        let deletion_policy = DeletionPolicy::DeleteIfEmpty;
        assert!(!may(QueueSpec { deletion_policy, ..spec(AdoptionPolicy::Adopt, &["shop"]) }));
    }

    #[test]
    fn a_queue_was_declared_where_its_status_says_so_whatever_came_since() {
        let mut queue = queue(QueueSpec::default(), QueueStatus::default());
        assert!(!was_declared(&queue, ADDRESS), "it is new");
        let broker_address = Some(ADDRESS.to_owned());
        let declared = Some(declared(&queue, &[]));
        queue.status = Some(QueueStatus { broker_address, declared, ..QueueStatus::default() });
        let elsewhere = "amqp://a:5672/other";
        assert!(was_declared(&queue, ADDRESS) && !was_declared(&queue, elsewhere));
        assert!(was_declared(&queue, "amqp://a:5672,b:5672/shop"), "it is written in another way");
        // The broker is down, or refuses: the status keeps it, also over a changed spec and another process.
        queue.spec.bindings.push(binding("b"));
        assert!(begun(&queue, ADDRESS).unwrap().main_queue);
        assert!(!begun(&queue, elsewhere).unwrap().main_queue, "it has moved");
        let others = QueueSpec { adoption_policy: AdoptionPolicy::AsIs, ..queue.spec.clone() };
        let seen = super::declared(&super::tests::queue(others, QueueStatus::default()), &[]);
        assert!(!seen.main_queue, "it is theirs to lose");
        // What may have been bound before the first declaration says nothing of the queue.
        queue.status =
            Some(QueueStatus { broker_address: Some(ADDRESS.to_owned()), ..QueueStatus::default() });
        assert!(!begun(&queue, ADDRESS).unwrap().main_queue, "it may never have been");
    }

    #[test]
    fn a_retained_queue_is_never_removed() {
        assert_eq!(remove(&queue(QueueSpec::default(), QueueStatus::default())), None);
    }

    #[test]
    fn what_others_made_is_neither_unbound_nor_deleted() {
        let declared = Declared { bindings: vec![(&binding("shop")).into()], ..Declared::default() };
        let status = QueueStatus { declared: Some(declared), created: Some(true), ..QueueStatus::default() };
        let spec = |adoption_policy| QueueSpec {
            adoption_policy,
            deletion_policy: DeletionPolicy::Delete,
            ..QueueSpec::default()
        };
        let unbound =
            |adoption_policy| match keep(&queue(spec(adoption_policy), status.clone()), ADDRESS).goal {
                Goal::Keep { unbind, .. } => unbind.len(),
                Goal::Remove { .. } => panic!(),
            };
        assert_eq!((unbound(AdoptionPolicy::Adopt), unbound(AdoptionPolicy::AsIs)), (1, 0));
        assert_eq!(remove(&queue(spec(AdoptionPolicy::AsIs), status.clone())), None);
        let Goal::Remove { unbind, .. } =
            remove(&queue(spec(AdoptionPolicy::FailIfExists), status.clone())).unwrap().goal
        else {
            panic!()
        };
        assert_eq!(unbind[0].exchange, "shop");
    }

    #[test]
    fn a_rung_that_an_order_beside_a_queue_of_others_may_have_made_is_taken_back() {
        let spec = |delays: &[i32]| QueueSpec {
            adoption_policy: AdoptionPolicy::AsIs,
            retry: Retry { delays_seconds: delays.to_vec(), max_attempts: 3 },
            ..QueueSpec::default()
        };
        let status = QueueStatus { declared: Some(Declared::default()), ..QueueStatus::default() };
        let declared = begun(&queue(spec(&[5]), status), ADDRESS);
        let later = queue(spec(&[]), QueueStatus { declared, ..QueueStatus::default() });
        let Goal::Keep { retire, .. } = keep(&later, ADDRESS).goal else { panic!() };
        assert_eq!(retire, [5]);
    }

    #[test]
    fn what_must_be_new_on_another_broker_is_not_said_to_be_bound_there_before_it_is_made() {
        let spec = |exchange| QueueSpec {
            adoption_policy: AdoptionPolicy::FailIfExists,
            bindings: vec![binding(exchange)],
            ..QueueSpec::default()
        };
        let made = QueueStatus {
            created: Some(true),
            broker_address: Some(ADDRESS.to_owned()),
            declared: Some(declared(&queue(spec("a"), QueueStatus::default()), &[])),
            ..QueueStatus::default()
        };
        let bound = |address| begun(&queue(spec("b"), made.clone()), address).unwrap().bindings.len();
        assert_eq!((bound(ADDRESS), bound("amqp://other:5672/shop")), (2, 1));
    }
}
