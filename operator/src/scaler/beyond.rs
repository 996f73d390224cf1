//! Bursts that even all pods that are allowed would let wait for too long, one after the other. Pure.
//!
//! To start the pods for each of them adds the start-up time to waits that are too long already. Kept from one to the next they
//! cost all of their time, which is a multiple where they are rarely busy.

use super::history::RECENT_WINDOW;

/// Seconds within which a further one comes, when the pods are kept for it.
const LONGEST_GAP: f64 = 240.0;
/// So many of them in a row.
const OFTEN: u32 = 2;
/// Share of the pods that are busy between two of them on average, from which on they are kept.
const BUSY: f64 = 0.2;
/// What counts of those before, in that average.
const MEMORY: f64 = 0.85;

/// What is remembered of them; none where none came lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Beyond(Option<Row>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    /// When the last of them was seen last.
    at: f64,
    /// How many came after pods had gone.
    length: u32,
    /// When the last of them came, and messages settled until then.
    came: (f64, u64),
    /// Seconds of one pod that they brought, and over how many seconds.
    busy: (f64, f64),
}

impl Beyond {
    /// One is there, by which time so many messages were `settled`, which take `seconds` of a pod each. Pods were let go last at
    /// `last_in`.
    pub(super) fn observe(&mut self, last_in: Option<f64>, settled: u64, seconds: f64, now: f64) {
        let first = Row { at: now, length: 1, came: (now, settled), busy: (0.0, 0.0) };
        self.0 = Some(match self.0.filter(|row| now - row.at < LONGEST_GAP) {
            Some(row) => {
                let is_further = last_in.is_some_and(|went| went > row.at);
                let length = row.length.saturating_add(u32::from(is_further));
                match now - row.at > RECENT_WINDOW {
                    true => Row { length, busy: row.busy_until(settled, seconds, now), ..first },
                    false => Row { at: now, length, ..row },
                }
            }
            None => first,
        });
    }

    /// Whether they come so often, and bring so much for so many `pods`, that these are kept for the next one.
    pub(super) fn is_often(&self, pods: f64, now: f64) -> bool {
        self.0.is_some_and(|Row { at, length, busy: (work, over), .. }| {
            length >= OFTEN && now - at < LONGEST_GAP && work >= over * pods * BUSY
        })
    }
}

impl Row {
    /// What `busy` is with a further one, before which so many messages were settled.
    fn busy_until(&self, settled: u64, seconds: f64, now: f64) -> (f64, f64) {
        let ((time, before), (work, over)) = (self.came, self.busy);
        let more = settled.saturating_sub(before) as f64 * seconds;
        (work * MEMORY + more, over * MEMORY + (now - time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known after these: when pods went last, messages settled by then, and when; a message takes a second.
    fn after(seen: &[(Option<f64>, u64, f64)]) -> Beyond {
        let mut beyond = Beyond::default();
        for (last_in, settled, now) in seen {
            beyond.observe(*last_in, *settled, 1.0, *now);
        }
        beyond
    }

    #[test]
    fn two_bursts_between_which_pods_have_gone_are_often_for_as_long_as_a_third_may_come() {
        let two = after(&[(None, 0, 0.0), (Some(50.0), 400, 100.0)]);
        assert_eq!([100.0, 339.0, 340.0].map(|now| two.is_often(20.0, now)), [true, true, false]);
        assert!(!two.is_often(20.1, 101.0), "more pods are busy for less than a fifth");
        assert!(!after(&[(None, 0, 0.0)]).is_often(1.0, 1.0));
        assert!(
            !after(&[(None, 0, 9.0), (Some(5.0), 400, 100.0)]).is_often(1.0, 101.0),
            "the pods are there still"
        );
        assert!(!after(&[(None, 0, 0.0), (Some(50.0), 9000, 300.0)]).is_often(1.0, 301.0), "long after it");
    }

    #[test]
    fn a_burst_that_is_seen_for_long_is_one_and_what_the_last_ones_brought_counts_most() {
        let seen_on = after(&[(None, 0, 0.0), (Some(50.0), 400, 100.0), (Some(50.0), 440, 105.0)]);
        assert!(seen_on.is_often(20.0, 106.0) && !seen_on.is_often(20.1, 106.0));
        // 340 of 400 seconds, in 185 of 200.
        let then_little = after(&[(None, 0, 0.0), (Some(50.0), 400, 100.0), (Some(150.0), 400, 200.0)]);
        assert!(then_little.is_often(9.1, 201.0) && !then_little.is_often(9.3, 201.0));
    }
}
