//! How many resources of a kind are Ready, and which are not.

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
    gauges: IntGaugeVec,
    not_ready: &'static Definition,
    /// Why each is not Ready; none for those that are.
    known: Mutex<HashMap<Key, Option<&'static str>>>,
}

impl Readiness {
    pub fn new(gauges: IntGaugeVec, not_ready: &'static Definition) -> Self {
        Self { gauges, not_ready, known: Mutex::default() }
    }

    pub fn set(&self, resource: &Key, not_ready: Option<&'static str>) {
        let mut known = locked(&self.known);
        match known.get_mut(resource) {
            Some(before) => *before = not_ready,
            None => drop(known.insert(resource.clone(), not_ready)),
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
        let ready = known.values().filter(|not_ready| not_ready.is_none()).count();
        for (label, number) in [("true", ready), ("false", known.len() - ready)] {
            self.gauges.with_label_values(&[label]).set(super::gauge(number));
        }
    }

    /// Appends those that are not Ready.
    pub fn write(&self, text: &mut String) {
        self.not_ready.write_head(text);
        for (resource, not_ready) in &*locked(&self.known) {
            if let Some(cause) = not_ready {
                self.not_ready.write_line(text, resource, cause, 1.0);
            }
        }
    }
}
