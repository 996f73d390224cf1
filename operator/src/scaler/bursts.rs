//! Bursts that pods were started for, one after the other. Pure.

/// Seconds from one to the next within which they come often: pods' start-up is a large part of what they cost then.
const OFTEN_SECONDS: f64 = 150.0;
/// So many of them in a row after the first, which is often.
const OFTEN: u32 = 2;

/// The last one; none where none came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bursts(Option<Burst>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Burst {
    /// When pods were asked for it first.
    began: f64,
    /// The same, last.
    asked: f64,
    /// Seconds from the one before to it; infinite for the first.
    gap: f64,
    /// How many came before it in a row.
    before: u32,
}

impl Bursts {
    /// Pods are asked for one. Pods were let go last at `last_in`.
    pub(super) fn came(&mut self, last_in: Option<f64>, now: f64) {
        self.0 = Some(self.with(last_in, now));
    }

    /// Seconds from one to the next where they come often, counting one that comes now.
    pub(super) fn often(self, last_in: Option<f64>, now: f64) -> Option<f64> {
        let burst = self.with(last_in, now);
        (burst.before >= OFTEN).then_some(burst.gap)
    }

    /// One for which pods are asked for now.
    fn with(self, last_in: Option<f64>, now: f64) -> Burst {
        let first = Burst { began: now, asked: now, gap: f64::INFINITY, before: 0 };
        match self.0.filter(|last| now - last.asked < OFTEN_SECONDS) {
            None => first,
            Some(last) if last_in.is_some_and(|went| went > last.asked) => {
                Burst { gap: now - last.began, before: last.before.saturating_add(1), ..first }
            }
            // Before any of its pods has gone it is the same one still.
            Some(last) => Burst { asked: now, ..last },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After bursts so far apart, for each of which pods are asked for twice and then let go.
    fn after(gaps: &[f64]) -> Option<f64> {
        let (mut bursts, mut now, mut last_in) = (Bursts::default(), 0.0, None);
        for gap in [&[0.0], gaps].concat() {
            now += gap;
            bursts.came(last_in, now);
            bursts.came(last_in, now + 10.0);
            last_in = Some(now + 20.0);
        }
        bursts.often(last_in, now + 50.0)
    }

    #[test]
    fn two_that_soon_follow_another_are_often_from_beginning_to_beginning() {
        assert_eq!((after(&[]), after(&[100.0])), (None, Some(50.0)));
        assert_eq!(after(&[400.0]), None, "the second of a new row");
        // From the last pods that were asked for on, ten seconds after it began.
        assert_eq!((after(&[100.0, 159.0]), after(&[100.0, 161.0])), (Some(50.0), None));
    }

    #[test]
    fn a_burst_is_the_same_one_until_a_pod_of_its_has_gone() {
        let mut bursts = Bursts::default();
        for second in [0.0, 100.0, 200.0, 300.0] {
            bursts.came(Some(0.0), second);
            assert_eq!(bursts.often(Some(0.0), second + 1.0), None);
        }
        bursts.came(Some(310.0), 330.0);
        assert_eq!(bursts.often(Some(340.0), 380.0), Some(50.0), "from 330 on");
        assert_eq!(bursts.often(Some(0.0), 380.0), None, "nothing has gone since");
    }
}
