//! Which Queue has which queue of a broker: the oldest that names it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Key;

/// A Queue's place in the order: when it was created, in seconds since 1970, then by name.
type Place = (i64, Key);

/// Claims on names, by the broker's address (its vhost included) and the queue's name.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Who wants each name, the oldest first. That is nearly always one, for which a set would keep room for eleven.
    names: HashMap<String, HashMap<String, Vec<Place>>>,
    /// The addresses that list an endpoint of a broker.
    listed_by: HashMap<String, BTreeSet<Arc<str>>>,
    claimants: BTreeMap<Key, Claimed>,
    /// Queues that have claimed nothing yet, and of which it is not known on which broker they have what they name.
    unplaced: BTreeMap<Key, (i64, Vec<String>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Claimed {
    age: i64,
    address: String,
    names: Vec<String>,
    /// Whether the main queue was declared there.
    there: bool,
}

impl Claims {
    /// Takes in what a Queue that has claimed nothing yet names: it had that on the broker at `address` when it was last looked
    /// at, by a process before this one; none: on a broker that is not known. Gives the Queues whose case this changed.
    pub(super) fn expect(
        &mut self,
        key: &Key,
        age: i64,
        address: Option<&str>,
        names: Vec<String>,
    ) -> Vec<Key> {
        match address {
            _ if self.has_claimed(key) => Vec::new(),
            Some(address) => self.claim(key, age, address, names).1,
            None => {
                self.unplaced.insert(key.clone(), (age, names));
                Vec::new()
            }
        }
    }

    /// An older Queue that names one of `names` and of which it is not known on which broker.
    pub(super) fn older_to_come(&self, key: &Key, age: i64, names: &[String]) -> Option<&Key> {
        let mut older = self.unplaced.iter().filter(|(other, (at, _))| (*at, *other) < (age, key));
        older.find(|(_, (_, wanted))| wanted.iter().any(|name| names.contains(name))).map(|(other, _)| other)
    }

    /// Claims names. Gives the older Queue that has one of them, with that name, and the Queues whose case this changed.
    pub(super) fn claim(
        &mut self,
        key: &Key,
        age: i64,
        address: &str,
        names: Vec<String>,
    ) -> (Option<(String, Key)>, Vec<Key>) {
        self.unplaced.remove(key);
        let former = self.claimants.get(key).filter(|former| former.age == age && former.address == address);
        let there = former.is_some_and(|former| former.there);
        let claimed = Claimed { age, address: address.to_owned(), names, there };
        let mut others = Vec::new();
        if self.claimants.get(key) != Some(&claimed) {
            others = self.release(key);
            let place = (age, key.clone());
            let listing: Arc<str> = address.into();
            for endpoint in endpoints(address) {
                self.listed_by.entry(endpoint).or_default().insert(listing.clone());
            }
            for name in &claimed.names {
                let at_address = self.names.entry(address.to_owned()).or_default();
                let places = at_address.entry(name.clone()).or_default();
                let at = places.partition_point(|other| *other < place);
                if places.get(at) == Some(&place) {
                    continue;
                }
                places.insert(at, place.clone());
                let younger = self.wanted_by(address, name).filter(|other| **other > place);
                others.extend(younger.map(|(_, younger)| younger.clone()));
            }
            self.claimants.insert(key.clone(), claimed);
        }
        let holder = self.holder(key);
        if holder.is_some() {
            self.note_declared(key, false, false);
        }
        (holder, others)
    }

    /// Notes whether the main queue of a Queue was `declared` where it has its claim; gives whether it ever was since it was
    /// claimed. One that is no longer the Queue's to declare was not.
    pub(super) fn note_declared(&mut self, key: &Key, declares: bool, declared: bool) -> bool {
        let Some(claimed) = self.claimants.get_mut(key) else { return declares && declared };
        claimed.there = declares && (claimed.there || declared);
        claimed.there
    }

    /// Who wants a name of the broker at `address`, whatever further hosts an address of it lists.
    fn wanted_by<'a>(&'a self, address: &'a str, name: &'a str) -> impl Iterator<Item = &'a Place> {
        let listing = endpoints(address).filter_map(|endpoint| self.listed_by.get(&endpoint)).flatten();
        let same: BTreeSet<&Arc<str>> = listing.collect();
        same.into_iter().filter_map(move |same| self.names.get(&**same)?.get(name)).flatten()
    }

    /// The older Queue that has one of the names of `key`.
    fn holder(&self, key: &Key) -> Option<(String, Key)> {
        let claimed = self.claimants.get(key)?;
        claimed.names.iter().find_map(|name| {
            let (_, first) = self.wanted_by(&claimed.address, name).min()?;
            (first != key).then(|| (name.clone(), first.clone()))
        })
    }

    /// Gives every name of a Queue up; gives the Queues that want one of them.
    pub(super) fn release(&mut self, key: &Key) -> Vec<Key> {
        self.unplaced.remove(key);
        let Some(Claimed { address, names, age: _, there: _ }) = self.claimants.remove(key) else {
            return Vec::new();
        };
        if let Some(at_address) = self.names.get_mut(&address) {
            for name in &names {
                if let Some(places) = at_address.get_mut(name) {
                    places.retain(|(_, other)| other != key);
                    if places.is_empty() {
                        at_address.remove(name);
                    }
                }
            }
            if at_address.is_empty() {
                self.names.remove(&address);
                for endpoint in endpoints(&address) {
                    if let Some(listing) = self.listed_by.get_mut(&endpoint) {
                        listing.remove(address.as_str());
                        if listing.is_empty() {
                            self.listed_by.remove(&endpoint);
                        }
                    }
                }
            }
        }
        let others = names.iter().flat_map(|name| self.wanted_by(&address, name));
        others.map(|(_, other)| other.clone()).collect()
    }

    /// Whether a Queue has a claim, be it the first or not.
    pub(super) fn has_claimed(&self, key: &Key) -> bool {
        self.claimants.contains_key(key)
    }

    /// Every Queue that is known here.
    pub(super) fn known(&self) -> impl Iterator<Item = &Key> {
        self.claimants.keys().chain(self.unplaced.keys())
    }
}

/// What surely names one broker and vhost each: an address may list several. With TLS and without, a host may have two brokers.
fn endpoints(address: &str) -> impl Iterator<Item = String> {
    let (scheme, rest) = address.split_once("://").unwrap_or_default();
    let (hosts, vhost) = rest.rsplit_once('/').unwrap_or((address, ""));
    hosts.split(',').map(move |host| format!("{scheme}://{host}/{vhost}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_older_keeps_the_name_whoever_comes_first() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim(&key("young"), 2, "amqp://h/v", names(&["q"])), (None, vec![]));
        let (holder, others) = claims.claim(&key("old"), 1, "amqp://h/v", names(&["q", "q.dlq"]));
        assert_eq!((holder, others), (None, vec![key("young")]));
        let (holder, _) = claims.claim(&key("young"), 2, "amqp://h/v", names(&["q"]));
        assert_eq!(holder, Some(("q".to_owned(), key("old"))));
    }

    #[test]
    fn a_name_that_is_given_up_goes_to_the_next() {
        let mut claims = Claims::default();
        claims.claim(&key("old"), 1, "a", names(&["q"]));
        assert!(claims.claim(&key("young"), 2, "a", names(&["q"])).0.is_some());
        assert_eq!(claims.release(&key("old")), [key("young")]);
        assert_eq!(claims.claim(&key("young"), 2, "a", names(&["q"])).0, None);
    }

    #[test]
    fn another_broker_or_vhost_is_another_name() {
        let mut claims = Claims::default();
        claims.claim(&key("old"), 1, "amqp://h/a", names(&["q"]));
        assert_eq!(claims.claim(&key("young"), 2, "amqp://h/b", names(&["q"])).0, None);
    }

    #[test]
    fn an_address_that_lists_further_hosts_is_the_same_broker() {
        let (alone, both) = ("amqp://a:5672/v", "amqp://a:5672,b:5672/v");
        let mut claims = Claims::default();
        claims.claim(&key("young"), 2, alone, names(&["q"]));
        assert_eq!(claims.claim(&key("old"), 1, both, names(&["q"])), (None, vec![key("young")]));
        let has = |claims: &mut Claims, address| claims.claim(&key("young"), 2, address, names(&["q"])).0;
        assert_eq!(has(&mut claims, alone), Some(("q".to_owned(), key("old"))));
        assert_eq!(has(&mut claims, "amqp://b:5672/v"), Some(("q".to_owned(), key("old"))));
        assert_eq!(has(&mut claims, "amqp://c:5672/v"), None);
        assert_eq!(has(&mut claims, "amqp://a:5673/v"), None);
        assert!(has(&mut claims, alone).is_some());
        assert_eq!(claims.release(&key("old")), [key("young")]);
        assert_eq!(has(&mut claims, alone), None);
        claims.release(&key("young"));
        assert!(claims.names.is_empty() && claims.listed_by.is_empty(), "{claims:?}");
    }

    #[test]
    fn that_a_queue_was_declared_is_known_until_it_moves_is_another_or_is_not_to_be_declared() {
        let mut claims = Claims::default();
        let claim = |claims: &mut Claims, age, address, name| {
            claims.claim(&key("orders"), age, address, names(&[name]));
        };
        let there = |claims: &mut Claims| claims.note_declared(&key("orders"), true, false);
        let declared = |claims: &mut Claims| assert!(claims.note_declared(&key("orders"), true, true));
        claim(&mut claims, 2, "a", "q");
        assert!(!there(&mut claims), "it is new");
        declared(&mut claims);
        claim(&mut claims, 2, "a", "q.dlq");
        assert!(there(&mut claims), "another ladder is no other place");
        claim(&mut claims, 2, "b", "q");
        assert!(!there(&mut claims), "another broker");
        declared(&mut claims);
        claim(&mut claims, 3, "b", "q");
        assert!(!there(&mut claims), "another Queue of that name");
        declared(&mut claims);
        assert!(
            !claims.note_declared(&key("orders"), false, true) && !there(&mut claims),
            "it is left to others"
        );
        declared(&mut claims);
        claims.claim(&key("older"), 1, "b", names(&["q"]));
        claim(&mut claims, 3, "b", "q");
        assert!(!there(&mut claims), "an older one has it");
    }

    #[test]
    fn a_derived_name_conflicts_too() {
        let mut claims = Claims::default();
        claims.claim(&key("orders"), 1, "a", names(&["orders", "orders.dlq"]));
        assert!(claims.claim(&key("other"), 2, "a", names(&["orders.dlq", "orders.dlq.dlq"])).0.is_some());
    }

    #[test]
    fn what_a_queue_had_before_a_restart_is_its_own_before_it_is_looked_at() {
        let mut claims = Claims::default();
        assert!(claims.claim(&key("late"), 3, "a", names(&["q"])).0.is_none());
        assert_eq!(claims.expect(&key("old"), 1, Some("a"), names(&["q", "q.dlq"])), [key("late")]);
        let holder = |claims: &mut Claims, address| claims.claim(&key("young"), 2, address, names(&["q"])).0;
        assert_eq!(holder(&mut claims, "a"), Some(("q".to_owned(), key("old"))));
        assert_eq!(holder(&mut claims, "b"), None);
        // What it claims itself counts from then on, whatever its status has said.
        claims.claim(&key("old"), 1, "c", names(&["q"]));
        assert_eq!(claims.expect(&key("old"), 1, Some("a"), names(&["q"])), []);
        assert_eq!(holder(&mut claims, "a"), None);
    }

    #[test]
    fn an_older_queue_of_which_it_is_not_known_where_it_is_may_have_what_it_names_until_it_claims_something()
    {
        let mut claims = Claims::default();
        claims.expect(&key("old"), 1, None, names(&["q", "q.dlq"]));
        let to_come = |claims: &Claims, age, wanted: &[&str]| {
            claims.older_to_come(&key("young"), age, &names(wanted)).cloned()
        };
        assert_eq!(to_come(&claims, 2, &["q"]), Some(key("old")));
        assert_eq!(to_come(&claims, 2, &["q.dlq", "q.dlq.dlq"]), Some(key("old")), "a derived name too");
        assert_eq!(to_come(&claims, 2, &["other"]), None);
        assert_eq!(to_come(&claims, 0, &["q"]), None, "it is the younger one");
        assert_eq!(to_come(&claims, 1, &["q"]), Some(key("old")), "of the same second the first by name");
        assert_eq!(claims.older_to_come(&key("even"), 1, &names(&["q"])), None);
        assert_eq!(claims.known().collect::<Vec<_>>(), [&key("old")]);
        claims.claim(&key("old"), 1, "b", names(&["q"]));
        assert_eq!(to_come(&claims, 2, &["q"]), None);
        claims.release(&key("old"));
        claims.expect(&key("old"), 1, None, names(&["q"]));
        claims.release(&key("old"));
        assert_eq!((to_come(&claims, 2, &["q"]), claims.known().count()), (None, 0));
    }
}
