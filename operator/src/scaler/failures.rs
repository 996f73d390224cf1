//! Calls that the handler failed on, one after another: it is broken then, and what they took says nothing of a message. Pure.

use super::history::SERVICE_HALF_LIFE;

/// So many messages in a row whose first call failed, in all pods together, are no matter of single messages. One that is tried again
/// and again counts once, with batches twice.
const IN_A_ROW: u64 = 5;

/// Calls that have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls {
    pub ended: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Of those, the ones that were a message's first.
    pub failed_first: u64,
}

/// What calls took: messages, and their seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Took {
    pub messages: f64,
    pub seconds: f64,
}

/// The failed calls since one went well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Failures {
    /// Messages whose first call was among them.
    row: u64,
    /// When one was seen last.
    at: f64,
    /// What they took, as long as they may be those of single messages; less and less counts.
    in_doubt: Took,
}

impl Failures {
    /// As many as count, seen by another operator until now.
    pub const fn of_another(now: f64) -> Self {
        Self { row: IN_A_ROW, at: now, in_doubt: Took { messages: 0.0, seconds: 0.0 } }
    }

    /// Takes in calls and what they took; gives what tells how long a message takes.
    pub fn observe(&mut self, took: Took, calls: Calls, now: f64) -> Option<Took> {
        let kept = 0.5_f64.powf((now - self.at).max(0.0) / SERVICE_HALF_LIFE);
        let before = self.in_doubt;
        let all = Took {
            messages: before.messages * kept + took.messages,
            seconds: before.seconds * kept + took.seconds,
        };
        if calls.failed >= calls.ended {
            let row = self.row.saturating_add(calls.failed_first);
            *self = Self { row, at: now, in_doubt: all };
            return None;
        }
        let told = if self.row < IN_A_ROW { all } else { took };
        *self = Self::default();
        Some(told)
    }

    /// How many messages in a row have failed, the last call within so many `seconds`, where that is for the handler's sake.
    pub fn in_a_row(&self, seconds: f64, now: f64) -> Option<u64> {
        (self.row >= IN_A_ROW && now - self.at <= seconds).then_some(self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Took = Took { messages: 1.0, seconds: 30.0 };
    const GOOD: Calls = Calls { ended: 1, failed: 0, failed_first: 0 };
    const BAD: Calls = Calls { ended: 1, failed: 1, failed_first: 1 };
    const AGAIN: Calls = Calls { failed_first: 0, ..BAD };

    #[test]
    fn what_single_messages_that_fail_take_counts_once_another_goes_well_the_less_the_older_it_is() {
        let mut failures = Failures::default();
        assert_eq!(failures.observe(ONE, BAD, 0.0), None);
        assert_eq!(
            failures.observe(ONE, GOOD, SERVICE_HALF_LIFE),
            Some(Took { messages: 1.5, seconds: 45.0 })
        );
        assert_eq!(failures.observe(ONE, GOOD, 61.0), Some(ONE), "once");
    }

    #[test]
    fn messages_that_fail_in_a_row_say_nothing_of_others_and_are_told_for_a_while() {
        let mut failures = Failures::default();
        for message in 1..=5 {
            assert_eq!(failures.in_a_row(60.0, 0.0), None, "after {}", message - 1);
            assert_eq!(failures.observe(ONE, BAD, 0.0), None);
        }
        assert_eq!(failures.in_a_row(60.0, 60.0), Some(5));
        assert_eq!(failures.in_a_row(60.0, 61.0), None);
        let one_good = Calls { ended: 9, failed: 8, failed_first: 8 };
        assert_eq!(failures.observe(ONE, one_good, 61.0), Some(ONE));
        assert_eq!(failures, Failures::default());
    }

    #[test]
    fn one_message_that_fails_again_and_again_is_no_broken_handler() {
        let mut failures = Failures::default();
        for call in [BAD; 4].into_iter().chain([AGAIN; 20]) {
            failures.observe(ONE, call, 0.0);
        }
        assert_eq!(failures.in_a_row(60.0, 0.0), None);
    }

    #[test]
    fn all_that_single_messages_which_failed_one_after_the_other_took_counts_once_another_goes_well() {
        let mut failures = Failures::default();
        for _ in 0..3 {
            assert_eq!(failures.observe(ONE, BAD, 0.0), None);
        }
        assert_eq!(failures.observe(ONE, GOOD, 0.0), Some(Took { messages: 4.0, seconds: 120.0 }));
    }
}
