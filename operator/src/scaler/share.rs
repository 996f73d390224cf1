//! How the Workers of one Queue share its backlog. Pure.

/// What was settled in the last while, with a weight that halves each minute.
#[derive(Debug, Default)]
pub struct Lately {
    /// Messages, weighted.
    pub amount: f64,
    last: Option<(u64, f64)>,
}

impl Lately {
    /// Takes in how much was settled so far, and by how many pods: they tell who does how much where nobody has looked before.
    pub fn observe(&mut self, settled: u64, pods: u32, now: f64) {
        self.amount = match self.last.replace((settled, now)) {
            Some((before, at)) => {
                self.amount * 0.5_f64.powf((now - at) / 60.0) + settled.saturating_sub(before) as f64
            }
            None => f64::from(pods),
        };
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
    fn workers_of_which_nothing_is_known_yet_share_a_backlog_by_their_pods() {
        let [mut large, mut small] = [Lately::default(), Lately::default()];
        large.observe(5000, 10, 0.0);
        small.observe(7, 1, 0.0);
        assert!(share(small.amount, large.amount + small.amount, 2) < 0.2);
        large.observe(5010, 10, 1.0);
        assert!((large.amount - 20.0).abs() < 0.5, "{}", large.amount);
    }

    #[test]
    fn workers_share_a_backlog_by_what_each_settled_and_the_parts_make_a_whole() {
        assert_eq!(share(0.0, 0.0, 1), 1.0);
        assert_eq!(share(0.0, 0.0, 2), 0.5);
        assert!(share(98.0, 98.0, 2) > 0.9);
        assert!((share(98.0, 98.0, 2) + share(0.0, 98.0, 2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_worker_has_settled_counts_for_half_a_minute_later() {
        let mut worker = Lately::default();
        worker.observe(0, 0, 0.0);
        worker.observe(100, 1, 1.0);
        worker.observe(100, 1, 61.0);
        assert_eq!(worker.amount, 50.0);
    }

    #[test]
    fn of_one_message_every_worker_gets_one_and_of_none_nobody() {
        assert_eq!([(1, 0.01), (10, 0.41), (0, 0.5)].map(|(ready, share)| part(ready, share)), [1, 5, 0]);
    }
}
