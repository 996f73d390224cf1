//! Metrics that each Queue or each Worker has: kept as plain numbers, and written as text when they are asked for.
//!
//! A vector of the metrics library keeps name, help and labels once more for every series: about a kB each, of which a Worker
//! has eight.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::definitions::Definition;
use crate::brokers::Key;
use crate::locked::locked;

/// Some metrics of every resource of a kind.
#[derive(Debug)]
pub(super) struct Series {
    families: &'static [&'static Definition],
    rows: Mutex<BTreeMap<Key, Vec<Point>>>,
}

/// One number of one resource.
#[derive(Debug)]
struct Point {
    family: &'static str,
    /// The value of the label that is neither the namespace nor the resource's name; empty where there is none.
    label: &'static str,
    value: f64,
}

impl Series {
    /// Nothing known yet of these metrics, whose labels are `namespace`, the kind of the resource, and at most one more.
    pub(super) const fn new(families: &'static [&'static Definition]) -> Self {
        Self { families, rows: Mutex::new(BTreeMap::new()) }
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<Point>>> {
        locked(&self.rows)
    }

    /// Says what a number is.
    pub(super) fn set(&self, key: &Key, family: &Definition, label: &'static str, value: f64) {
        self.change(key, family.name, label, |point| *point = value);
    }

    /// Says a number no more.
    pub(super) fn unset(&self, key: &Key, family: &Definition) {
        if let Some(points) = self.rows().get_mut(key) {
            points.retain(|point| point.family != family.name);
        }
    }

    /// Counts one more.
    pub(super) fn count(&self, key: &Key, family: &Definition, label: &'static str) {
        self.change(key, family.name, label, |point| *point += 1.0);
    }

    /// Counts from zero on: of a counter that appears at one, Prometheus sees no increase.
    pub(super) fn begin(&self, key: &Key, family: &Definition, label: &'static str) {
        self.change(key, family.name, label, |_| ());
    }

    fn change(&self, key: &Key, family: &'static str, label: &'static str, change: impl FnOnce(&mut f64)) {
        let mut rows = self.rows();
        let points = rows.entry(key.clone()).or_default();
        match points.iter_mut().find(|point| point.family == family && point.label == label) {
            Some(point) => change(&mut point.value),
            None => {
                let mut value = 0.0;
                change(&mut value);
                points.push(Point { family, label, value });
            }
        }
    }

    /// A resource is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.rows().remove(key);
    }

    /// Only resources of which `lives` says so are left.
    pub(super) fn retain(&self, lives: impl Fn(&Key) -> bool) {
        self.rows().retain(|key, _| lives(key));
    }

    /// Appends the Prometheus text format.
    pub(super) fn write(&self, text: &mut String) {
        let rows = self.rows();
        for family in self.families {
            family.write_head(text);
            for (key, points) in &*rows {
                for Point { label, value, .. } in points.iter().filter(|point| point.family == family.name) {
                    family.write_line(text, key, label, *value);
                }
            }
        }
    }
}
