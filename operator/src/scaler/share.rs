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

/// A part of a backlog; the part of something is never nothing.
pub fn part(ready: u64, share: f64) -> u64 {
    (ready as f64 * share).ceil() as u64
}
