//! Bursts that come each few seconds, as the queue itself tells them. Pure.
//!
//! Pods that start for each of them take as long to start as they are busy, and go and come without end. As many as clear the
//! largest within the target wait, and stay, cost less than that.

use super::history::RATE_WINDOW;

/// A pile is done when it has come down to this share of its top.
const DONE: f64 = 0.1;
/// One of less than this share of the largest is not of the row, and does not end it.
const SMALL: f64 = 0.3;
/// Piles that make a row.
const ROW: usize = 3;

/// What waited at most, again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Piles {
    now: Pile,
    /// Those that are done, the last one first.
    done: [Option<Pile>; ROW],
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pile {
    /// Seconds of one pod that it took, at its top.
    work: f64,
    /// When it was there.
    at: f64,
}

impl Piles {
    /// So many seconds of one pod wait.
    pub(super) fn observe(&mut self, work: f64, now: f64) {
        if work > self.now.work {
            self.now = Pile { work, at: now };
        } else if work <= self.now.work * DONE && self.now.work > 0.0 {
            let done = std::mem::replace(&mut self.now, Pile { work, at: now });
            let is_further = self.done[0].is_some_and(|last| now - last.at < RATE_WINDOW);
            if !is_further || done.work > self.largest() * SMALL {
                self.done.rotate_right(1);
                self.done[0] = Some(done);
            }
        }
    }

    fn largest(&self) -> f64 {
        self.done.iter().flatten().map(|pile| pile.work).fold(0.0, f64::max)
    }

    /// Seconds of one pod that the largest of a row takes whose piles are less than [`RATE_WINDOW`] from each other; none where
    /// there is no such row.
    pub(super) fn in_a_row(&self, now: f64) -> Option<f64> {
        let last = self.done[0]?;
        let latest = if self.now.work > last.work * SMALL { self.now.at } else { last.at };
        let mut later = now;
        for at in std::iter::once(Some(latest)).chain(self.done.iter().map(|pile| pile.map(|pile| pile.at))) {
            if later - at? >= RATE_WINDOW {
                return None;
            }
            later = at?;
        }
        Some(self.largest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Piles of so much work each `period` seconds, each of which is done in five; gives what is known `after` the top of the last.
    fn after(works: &[f64], period: f64, after: f64) -> Option<f64> {
        let (mut piles, mut top) = (Piles::default(), 0.0);
        for work in works {
            top += period;
            for tenth in 0..50 {
                piles.observe(work * (1.0 - f64::from(tenth) / 49.0), top + f64::from(tenth) / 10.0);
            }
        }
        piles.in_a_row(top + after)
    }

    #[test]
    fn three_piles_are_a_row_until_half_a_minute_after_the_last() {
        assert_eq!(after(&[50.0, 40.0], 20.0, 10.0), None);
        assert_eq!(after(&[50.0, 40.0, 45.0], 20.0, 10.0), Some(50.0));
        assert_eq!(
            after(&[90.0, 40.0, 45.0, 30.0], 20.0, 10.0),
            Some(45.0),
            "the first of four is of the past"
        );
        assert_eq!(after(&[50.0, 40.0, 45.0], 20.0, 31.0), None);
        assert_eq!(after(&[50.0, 40.0, 45.0], 31.0, 10.0), None);
    }

    #[test]
    fn what_is_small_beside_a_row_neither_ends_nor_lengthens_it() {
        assert_eq!(after(&[50.0, 2.0, 50.0, 2.0, 50.0, 2.0], 12.0, 10.0), Some(50.0));
        assert_eq!(after(&[50.0, 50.0, 2.0], 12.0, 10.0), None);
    }
}
