//! What would be logged for every message. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often the same is logged at most.
const QUIET: Duration = Duration::from_secs(60);

/// When each text was logged last, and how often it came since.
#[derive(Debug, Default)]
pub struct Repeats(HashMap<String, (Instant, u64)>);

impl Repeats {
    /// How often something came since it was logged last, if it is to be logged now. What did not come for two minutes is forgotten.
    pub fn news(&mut self, what: &str, now: Instant) -> Option<u64> {
        self.0.retain(|_, (logged, _)| now - *logged < QUIET * 2);
        match self.0.get_mut(what) {
            Some((logged, unsaid)) if now - *logged < QUIET => {
                *unsaid += 1;
                None
            }
            _ => {
                let before = self.0.insert(what.to_owned(), (now, 0));
                Some(before.map_or(0, |(_, unsaid)| unsaid) + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_logged_once_a_minute_with_how_often_it_came_and_then_forgotten() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([0, 0, 59].map(|second| repeats.news("full", at(second))), [Some(1), None, None]);
        assert_eq!(repeats.news("refused", at(59)), Some(1));
        assert_eq!([60, 61].map(|second| repeats.news("full", at(second))), [Some(3), None]);
        assert_eq!(repeats.news("refused", at(400)), Some(1));
        assert_eq!(repeats.0.len(), 1);
    }
}
