//! How many of the messages lately seen would not survive a restart of the broker. Pure.

use super::board::Durability;

/// What is told is of so many seconds: a producer that was mended is told of within two of these spans.
const SPAN: f64 = 300.0;

/// Deliveries of the last whole span, told anew when the next one ends, and at once when the first transient message comes:
/// what is told is written into a status, which must not follow each message.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    since: f64,
    current: Durability,
    told: Durability,
}

impl Recent {
    /// Of another queue: what comes before `since`, or before a later time that was said already, may be the former one's.
    pub(super) fn of_another(&self, since: f64) -> Self {
        Self { since: since.max(self.since), ..Self::default() }
    }

    /// Takes in what was delivered since the last look.
    pub(super) fn observe(&mut self, seen: Durability, now: f64) {
        if now < self.since {
            return;
        }
        self.current = self.current + seen;
        if now - self.since >= SPAN {
            (self.since, self.told) = (now, std::mem::take(&mut self.current));
        } else if self.told.deliveries == 0 {
            self.told = std::mem::take(&mut self.current);
        } else if self.told.transient == 0 && seen.transient > 0 {
            self.told = self.told + self.current;
        }
    }

    /// What there is to tell.
    pub(super) const fn told(&self) -> Durability {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(deliveries: u64, transient: u64) -> Durability {
        Durability { deliveries, transient }
    }

    #[test]
    fn a_transient_message_is_told_at_once_and_forgotten_when_none_came_for_a_span() {
        let mut recent = Recent::default();
        recent.observe(seen(10, 0), 1.0);
        assert_eq!(recent.told().transient, 0);
        recent.observe(seen(1, 1), 2.0);
        assert_eq!(recent.told(), seen(11, 1));
        recent.observe(seen(100, 0), SPAN);
        assert_eq!(recent.told(), seen(101, 1));
        recent.observe(seen(50, 0), SPAN * 2.0);
        assert_eq!(recent.told(), seen(50, 0));
    }

    #[test]
    fn the_share_follows_once_a_span() {
        let mut recent = Recent::default();
        let mut told = vec![];
        for second in 0..3600 {
            // Each tenth message at first, then each second one.
            let transient = if second < 1800 { 1 } else { 5 };
            recent.observe(seen(10, transient), f64::from(second));
            if told.last() != Some(&recent.told()) {
                told.push(recent.told());
            }
        }
        assert!(told.len() <= 13, "{told:?}");
        let share = |told: &Durability| told.transient * 10 / told.deliveries;
        assert_eq!((share(&told[2]), told.last().map(share)), (1, Some(5)));
    }

    #[test]
    fn what_comes_before_the_sidecars_have_learned_of_another_queue_is_not_told_of_it() {
        let mut recent = Recent::default().of_another(100.0).of_another(1.0);
        recent.observe(seen(10, 10), 99.0);
        assert_eq!(recent.told(), Durability::default());
        recent.observe(seen(5, 0), 100.0);
        assert_eq!(recent.told(), seen(5, 0));
    }

    #[test]
    fn without_messages_there_is_nothing_to_tell() {
        let mut recent = Recent::default();
        recent.observe(seen(5, 5), 1.0);
        recent.observe(seen(0, 0), SPAN);
        recent.observe(seen(0, 0), SPAN * 2.0);
        assert_eq!(recent.told(), Durability::default());
    }

    #[test]
    fn the_first_transient_message_is_told_with_all_that_came_before_it() {
        let mut recent = Recent::default();
        recent.observe(seen(10, 0), 1.0);
        recent.observe(seen(5, 0), 2.0);
        assert_eq!(recent.told(), seen(10, 0));
        recent.observe(seen(1, 1), 3.0);
        assert_eq!(recent.told(), seen(16, 1));
    }
}
