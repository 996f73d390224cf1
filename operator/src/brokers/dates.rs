//! When Queues are due, and which of those that are comes first. Pure.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::Key;

/// What a Queue is due for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody waits for it: its order is new, or its queue is missing. It comes before all checks, of which many may be late, as
    /// while the rungs of many ladders are to go.
    Asked,
    /// A check for drift, or another try.
    Check,
}

/// When a Queue is due, and what for.
pub(super) type Date = (Turn, Instant);

/// The dates of a lane's Queues, one each.
#[derive(Debug, Default)]
pub(super) struct Dates {
    asked: BTreeSet<(Instant, Key)>,
    checks: BTreeSet<(Instant, Key)>,
}

impl Dates {
    const fn of(&mut self, turn: Turn) -> &mut BTreeSet<(Instant, Key)> {
        match turn {
            Turn::Asked => &mut self.asked,
            Turn::Check => &mut self.checks,
        }
    }

    /// Sets the date of a Queue in the place of the `former` one.
    pub(super) fn set(&mut self, key: &Key, former: &mut Option<Date>, (turn, at): Date) {
        self.clear(key, former);
        *former = Some((turn, at));
        self.of(turn).insert((at, key.clone()));
    }

    /// A Queue is not due any more.
    pub(super) fn clear(&mut self, key: &Key, former: &mut Option<Date>) {
        if let Some((turn, at)) = former.take() {
            self.of(turn).remove(&(at, key.clone()));
        }
    }

    /// When the first is due.
    pub(super) fn first(&self) -> Option<Instant> {
        let firsts = [&self.asked, &self.checks].map(|dates| dates.first().map(|(at, _)| *at));
        firsts.into_iter().flatten().min()
    }

    /// The Queue whose turn it is.
    pub(super) fn next(&self, now: Instant) -> Option<Key> {
        let due = |dates: &BTreeSet<(Instant, Key)>| {
            dates.first().filter(|(at, _)| *at <= now).map(|(_, key)| key.clone())
        };
        due(&self.asked).or_else(|| due(&self.checks))
    }
}
