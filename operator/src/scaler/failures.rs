//! Calls that the handler failed on, one after another: it is broken then, and what they took says nothing of a message. Pure.

/// So many failed calls in a row, of all pods together, are no matter of single messages.
const IN_A_ROW: u64 = 5;

/// What ended: messages, and the seconds that they took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ended {
    pub messages: f64,
    pub seconds: f64,
}

/// The failed calls since one went well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Failures {
    row: u64,
    /// When one was seen last.
    at: f64,
    /// What they took, as long as they may be those of single messages.
    in_doubt: Ended,
}

impl Failures {
    /// Takes in what has `ended` in so many calls; gives what tells how long a message takes.
    pub fn observe(&mut self, ended: Ended, calls: u64, failed: u64, now: f64) -> Option<Ended> {
        let before = self.in_doubt;
        let all =
            Ended { messages: before.messages + ended.messages, seconds: before.seconds + ended.seconds };
        if failed >= calls {
            *self = Self { row: self.row.saturating_add(failed), at: now, in_doubt: all };
            return None;
        }
        let told = if self.row < IN_A_ROW { all } else { ended };
        *self = Self::default();
        Some(told)
    }

    /// How many calls in a row have failed, the last within so many `seconds`, where that is for the handler's sake.
    pub fn in_a_row(&self, seconds: f64, now: f64) -> Option<u64> {
        (self.row >= IN_A_ROW && now - self.at <= seconds).then_some(self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ended = Ended { messages: 1.0, seconds: 30.0 };

    #[test]
    fn what_single_messages_that_fail_take_counts_once_another_goes_well() {
        let mut failures = Failures::default();
        assert_eq!(failures.observe(ONE, 1, 1, 0.0), None);
        assert_eq!(failures.observe(ONE, 1, 0, 1.0), Some(Ended { messages: 2.0, seconds: 60.0 }));
        assert_eq!(failures.observe(ONE, 1, 0, 2.0), Some(ONE), "once");
    }

    #[test]
    fn calls_that_fail_in_a_row_say_nothing_of_a_message_and_are_told_for_a_while() {
        let mut failures = Failures::default();
        for call in 1..=5 {
            assert_eq!(failures.in_a_row(60.0, 0.0), None, "after {}", call - 1);
            assert_eq!(failures.observe(ONE, 1, 1, 0.0), None);
        }
        assert_eq!(failures.in_a_row(60.0, 60.0), Some(5));
        assert_eq!(failures.in_a_row(60.0, 61.0), None);
        assert_eq!(failures.observe(ONE, 9, 8, 61.0), Some(ONE));
        assert_eq!(failures, Failures::default());
    }
}
