//! Brokers, kept apart: one lane each, with one connection that all its Queues share.
//!
//! **Invariant**: nobody waits for a broker. A reconcile hands its order to a lane and reads what the lane last observed; a
//! lane that is down, black-holed or slow delays none of another broker, and those of its own for seconds at most.

mod aside;
mod channels;
mod claims;
mod counted;
mod dates;
mod entries;
mod host;
mod lane;
mod link;
mod loss;
mod misses;
mod pace;
mod remove;
mod rest;
mod rungs;
mod running;
mod schedule;
mod scopes;
mod work;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use warren_api::names::retry_queue;
use warren_api::queue::DeclaredBinding;
use warren_api::{QueueType, Worker};
use warren_broker::BrokerAccess;
use warren_broker::release::Release;
use warren_broker::topology::Topology;

use claims::Claims;
use host::Host;
pub use host::Prober;
pub use lane::Lane;
pub use scopes::Changes;
use scopes::Scopes;

use crate::leader::Leadership;
use crate::locked::locked;
use crate::problem::Problem;

/// The namespace and name of a Queue or a Worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// That of an object.
    pub fn of(object: &impl ResourceExt) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// That of the Queue that a Worker names.
    pub fn named_by(worker: &Worker) -> Self {
        Self { name: worker.spec.queue_ref.name.clone(), ..Self::of(worker) }
    }
}

impl<K: Resource<DynamicType = ()>> From<&Key> for ObjectRef<K> {
    fn from(key: &Key) -> Self {
        Self::new(&key.name).within(&key.namespace)
    }
}

/// What a Queue wants of its broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The main queue.
    pub main: String,
    /// The queues' type.
    pub queue_type: QueueType,
    /// What is to be there, or to go.
    pub topology: Topology,
    /// What is to be done with it.
    pub goal: Goal,
}

impl Order {
    /// Whether the main queue is Warren's to declare.
    fn declares(&self) -> bool {
        matches!(self.goal, Goal::Keep { claim: Claim::Declare, .. })
    }

    /// Whether the main queue is left to others to make.
    fn must_exist(&self) -> bool {
        matches!(self.goal, Goal::Keep { claim: Claim::MustExist, .. })
    }

    /// The names of the broker's queues that are this Queue's: the main queue first, which is what people know. Rungs that the
    /// spec has dropped stay its own for as long as they are there.
    pub fn names(&self) -> Vec<String> {
        let retired = match &self.goal {
            Goal::Keep { retire, .. } => retire.as_slice(),
            // Its topology has them.
            Goal::Remove { .. } => &[],
        };
        let planned = self.topology.queues.iter().rev().map(|queue| queue.name.clone());
        planned.chain(retired.iter().map(|delay| retry_queue(&self.main, *delay))).collect()
    }
}

/// What an order is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// Everything is to be there.
    Keep {
        /// What of the main queue is Warren's business.
        claim: Claim,
        /// Bindings to be taken back afterwards.
        unbind: Vec<DeclaredBinding>,
        /// Rungs to be deleted afterwards, once they are empty and unused, by their delays in seconds.
        retire: Vec<u32>,
        /// Whether sidecars go on with these rungs, as they cannot be told of others: none is deleted.
        untold: bool,
    },
    /// Everything is to go that is as Warren declares it; what exists otherwise belongs to others.
    Remove {
        /// Only without messages and consumers.
        only_if_empty: bool,
        /// Bindings that the spec has dropped and that may be there still.
        unbind: Vec<DeclaredBinding>,
    },
}

/// What of the main queue is Warren's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is declared.
    Declare,
    /// It must exist and is left alone.
    MustExist,
    /// It must not exist; nothing is declared before that is known and recorded.
    MustBeAbsent,
}

/// What a Queue's status says of its main queue on the broker that an order is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It was never declared there.
    None,
    /// It was declared there: one that is gone is a loss.
    Declared,
    /// The same, but a removal that has been ordered since may have taken it.
    Removing,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Everything is there.
    Declared(Seen),
    /// The main queue does not exist, as it should be before the first declaration.
    Absent,
    /// Everything is gone.
    Removed,
    /// The broker refuses.
    Refused(Problem),
    /// The broker cannot be used.
    Unreachable(Problem),
}

/// What was seen of a Queue that is wholly there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Rungs that still hold messages, by their delays in seconds.
    pub leftover: Vec<u32>,
    /// Whether the dead-letter queue holds as many messages as it may; none where it has no limit.
    pub dead_letter_full: Option<bool>,
    /// The broker's release, asked for where it decides whether a consumer timeout counts.
    pub release: Option<Release>,
}

/// Settings of every lane.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// How the operator's connections are called.
    pub connection_name: String,
    /// The time between two drift checks of a Queue, before jitter.
    pub drift_check: Duration,
    /// How long sidecars may take to learn of a changed ladder: what they no longer use may go after that.
    pub sidecars_learn: Duration,
    /// How long a quorum queue may hold a message back that it no longer counts: what is to go has read empty for longer.
    pub held_back: Duration,
    /// Whether this process may write.
    pub leadership: Leadership,
}

/// Every broker in use.
#[derive(Debug)]
pub struct Brokers {
    options: LaneOptions,
    scopes: Arc<Scopes>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claims: Claims,
    lanes: HashMap<BrokerAccess, Arc<Lane>>,
    /// By host and port.
    hosts: HashMap<String, Weak<Host>>,
    assigned: HashMap<Key, Arc<Lane>>,
    /// How Queues were reached whose Secret is gone.
    lapsed: HashMap<Key, BrokerAccess>,
}

impl Brokers {
    /// No broker yet.
    pub fn new(options: LaneOptions) -> Self {
        Self { options, scopes: Arc::default(), state: Mutex::default() }
    }

    /// Takes a scope in, one namespace or (none) all, whose Queues are not known yet; gives where they are sent whenever they
    /// are to be looked at again.
    pub fn register(&self, namespace: Option<String>) -> Changes {
        self.scopes.register(namespace)
    }

    /// Every Queue of a scope has been [expected](Self::expect).
    pub fn listed(&self, namespace: Option<&str>) {
        self.scopes.listed(namespace);
    }

    /// Whether every Queue of every scope has been [expected](Self::expect).
    pub fn all_listed(&self) -> bool {
        self.scopes.all_listed()
    }

    /// Has `order` kept on the broker of `access`; gives what has become of it. Whenever that changes, the Queue is to be looked at
    /// again.
    pub fn assign(&self, key: &Key, access: &BrokerAccess, order: Order, past: Past) -> Option<Outcome> {
        let lane = self.lane(access);
        let declares = order.declares();
        let mut state = locked(&self.state);
        state.lapsed.remove(key);
        let there = state.claims.note_declared(key, declares, past == Past::Declared);
        let former = state.assigned.insert(key.clone(), lane.clone());
        drop(state);
        self.leave(key, former.filter(|former| !Arc::ptr_eq(former, &lane)));
        let outcome = lane.order(key, order, past, there);
        if declares && matches!(outcome, Some(Outcome::Declared(_))) {
            locked(&self.state).claims.note_declared(key, true, true);
        }
        outcome
    }

    /// Whether the main queue of a Queue was gone, and is declared again; told once.
    pub fn take_recreated(&self, key: &Key) -> bool {
        self.lane_of(key).is_some_and(|lane| lane.take_recreated(key))
    }

    /// The lane of these credentials, which shares what its broker stands with the others there.
    fn lane(&self, access: &BrokerAccess) -> Arc<Lane> {
        let mut state = locked(&self.state);
        if let Some(lane) = state.lanes.get(access) {
            return lane.clone();
        }
        state.hosts.retain(|_, host| host.strong_count() > 0);
        let hosts = access.hosts();
        let host = state.hosts.get(&hosts).and_then(Weak::upgrade).unwrap_or_default();
        state.hosts.insert(hosts, Arc::downgrade(&host));
        let lane = Arc::new(Lane::spawn(access.clone(), self.options.clone(), host, self.scopes.clone()));
        state.lanes.insert(access.clone(), lane.clone());
        lane
    }

    /// Claims the names of a broker's queues for a Queue that was created at `age`. Gives the Queue that has one of them
    /// already, with that name; Queues whose claim this one overrides are to be looked at again.
    pub fn claim(&self, key: &Key, age: i64, address: &str, names: Vec<String>) -> Option<(String, Key)> {
        let (holder, others) = locked(&self.state).claims.claim(key, age, address, names);
        others.iter().for_each(|other| self.scopes.tell(other));
        holder
    }

    /// Takes in what a Queue names that may have claimed nothing in this process yet: it had that on the broker at `address`
    /// when it was last looked at; none: on a broker that is not known.
    pub fn expect(&self, key: &Key, age: i64, address: Option<&str>, names: Vec<String>) {
        let others = locked(&self.state).claims.expect(key, age, address, names);
        others.iter().for_each(|other| self.scopes.tell(other));
    }

    /// Whether a Queue has claimed its names, with success or not.
    pub fn has_claimed(&self, key: &Key) -> bool {
        locked(&self.state).claims.has_claimed(key)
    }

    /// An older Queue, of any scope, that names one of `names` and of which it is not known on which broker.
    pub fn older_to_come(&self, key: &Key, age: i64, names: &[String]) -> Option<Key> {
        locked(&self.state).claims.older_to_come(key, age, names).cloned()
    }

    /// Whether this order stands.
    pub fn has(&self, key: &Key, access: &BrokerAccess, order: &Order) -> bool {
        self.lane_of(key).is_some_and(|lane| lane.access() == access && lane.has(key, order))
    }

    /// Whether something is still being done for a Queue in another way than by this `access`.
    pub fn carries_out_elsewhere(&self, key: &Key, access: &BrokerAccess) -> bool {
        let state = locked(&self.state);
        state.lanes.iter().any(|(other, lane)| other != access && lane.carries_out(key))
    }

    /// Whether something is being done on a broker for a Queue, be it what is not wanted any more: that takes some seconds to end.
    pub fn carries_out(&self, key: &Key) -> bool {
        locked(&self.state).lanes.values().any(|lane| lane.carries_out(key))
    }

    /// Stops keeping a Queue: of what has begun for it nothing more is deleted.
    pub fn forget(&self, key: &Key) {
        let lane = locked(&self.state).assigned.remove(key);
        self.leave(key, lane);
    }

    fn leave(&self, key: &Key, lane: Option<Arc<Lane>>) {
        if let Some(lane) = lane {
            lane.forget(key);
            drop(lane);
            self.drop_unused();
        }
    }

    /// Stops keeping a Queue whose Secret is gone, and remembers how it was reached, for its deletion.
    pub fn lapse(&self, key: &Key) {
        if let Some(access) = self.access_of(key) {
            locked(&self.state).lapsed.insert(key.clone(), access);
        }
        self.forget(key);
    }

    /// A Queue is gone: others that want its names are to be looked at again.
    pub fn gone(&self, key: &Key) {
        self.forget(key);
        let mut state = locked(&self.state);
        state.lapsed.remove(key);
        let others = state.claims.release(key);
        drop(state);
        others.iter().for_each(|other| self.scopes.tell(other));
    }

    /// Stops keeping every Queue of `namespace` (none: of all) that is not in `living`.
    pub fn retain(&self, namespace: Option<&str>, living: &BTreeSet<Key>) {
        let state = locked(&self.state);
        let known = state.assigned.keys().chain(state.claims.known());
        let gone: BTreeSet<Key> = known
            .filter(|key| namespace.is_none_or(|n| n == key.namespace) && !living.contains(*key))
            .cloned()
            .collect();
        drop(state);
        for key in &gone {
            self.gone(key);
        }
        // A lane that was probed when its last Queue left it would connect again and again, for nobody.
        self.drop_unused();
    }

    /// The lane that keeps a Queue.
    pub fn lane_of(&self, key: &Key) -> Option<Arc<Lane>> {
        locked(&self.state).assigned.get(key).cloned()
    }

    /// How a Queue is reached, or was when its Secret was last there.
    pub fn access_of(&self, key: &Key) -> Option<BrokerAccess> {
        let assigned = self.lane_of(key).map(|lane| lane.access().clone());
        assigned.or_else(|| locked(&self.state).lapsed.get(key).cloned())
    }

    /// How many brokers are connected and how many are not.
    pub fn connected(&self) -> (usize, usize) {
        let state = locked(&self.state);
        let up = state.lanes.values().filter(|lane| lane.is_up()).count();
        (up, state.lanes.len() - up)
    }

    /// The longest time between two drift checks of a Queue, before jitter: it grows with the Queues of a broker.
    pub fn drift_check(&self) -> Duration {
        locked(&self.state)
            .lanes
            .values()
            .map(|lane| lane.drift_check())
            .max()
            .unwrap_or(self.options.drift_check)
    }

    /// How many Workers the most probed broker has.
    pub fn most_probers(&self) -> usize {
        locked(&self.state).lanes.values().map(|lane| lane.probers()).max().unwrap_or(0)
    }

    fn drop_unused(&self) {
        // The map's own reference is the only one left; a lane that is being probed goes with the next sweep.
        locked(&self.state).lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
    }
}
