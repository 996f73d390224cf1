//! How many resources of a kind are Ready, and how many are not.

use std::collections::HashMap;
use std::sync::Mutex;

use prometheus::IntGaugeVec;

use super::definitions::Definition;
use crate::brokers::Key;
use crate::locked::locked;

/// The resources of a kind.
#[derive(Debug)]
pub(super) struct Readiness {
    /// By whether they are Ready, as of the last [`Self::count`].
    pub gauges: IntGaugeVec,
    known: Mutex<HashMap<Key, bool>>,
}

impl Readiness {
    pub fn new(definition: &Definition) -> prometheus::Result<Self> {
        Ok(Self { gauges: definition.int_gauges()?, known: Mutex::default() })
    }

    pub fn set(&self, resource: &Key, ready: bool) {
        let mut known = locked(&self.known);
        match known.get_mut(resource) {
            Some(before) => *before = ready,
            None => drop(known.insert(resource.clone(), ready)),
        }
    }

    pub fn forget(&self, resource: &Key) {
        locked(&self.known).remove(resource);
    }

    pub fn retain(&self, is_living: impl Fn(&Key) -> bool) {
        locked(&self.known).retain(|resource, _| is_living(resource));
    }

    pub fn count(&self) {
        let known = locked(&self.known);
        let ready = known.values().filter(|ready| **ready).count();
        for (label, number) in [("true", ready), ("false", known.len() - ready)] {
            self.gauges.with_label_values(&[label]).set(super::gauge(number));
        }
    }
}
