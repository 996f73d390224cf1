//! How the Workers of one Queue share its backlog. Pure.

/// What was settled in the last while, with a weight that halves each minute.
#[derive(Debug, Default)]
pub struct Lately {
    /// Messages, weighted.
    pub amount: f64,
    last: Option<(u64, f64)>,
}

impl Lately {
    /// Takes in how much was settled so far.
    pub fn observe(&mut self, settled: u64, now: f64) {
        if let Some((before, at)) = self.last.replace((settled, now)) {
            self.amount =
                self.amount * 0.5_f64.powf((now - at) / 60.0) + settled.saturating_sub(before) as f64;
        }
    }
}

/// A Worker's share of a backlog, from 0 to 1, by what it settled lately of what all did. Nobody's is zero: who handled nothing
/// yet would never begin.
pub fn share(own: f64, all: f64, workers: usize) -> f64 {
    if workers < 2 { 1.0 } else { (own + 1.0) / (all + workers as f64) }
}

/// A part of a backlog; the part of something is never nothing.
pub fn part(ready: u64, share: f64) -> u64 {
    (ready as f64 * share).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_backlog_by_what_each_settled_and_the_parts_make_a_whole() {
        assert_eq!(share(0.0, 0.0, 1), 1.0);
        assert_eq!(share(0.0, 0.0, 2), 0.5);
        assert!(share(98.0, 98.0, 2) > 0.9);
        assert!((share(98.0, 98.0, 2) + share(0.0, 98.0, 2) - 1.0).abs() < 1e-9);
    }
}
