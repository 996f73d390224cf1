//! Growing pauses with jitter, as a pure value: the randomness comes from a seed.

use std::time::Duration;

/// Pauses that double from `first` to `cap`, each shortened by up to half at random.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    cap: Duration,
    seed: u64,
}

impl Backoff {
    /// A backoff at its start.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { next: first, first, cap, seed }
    }

    /// The next pause: between half of the current step and all of it.
    pub fn pause(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.cap);
        self.seed = mix(self.seed);
        let share = (self.seed >> 40) as f64 / (1_u64 << 24) as f64;
        step.mul_f64(0.5 + share / 2.0)
    }

    /// Back to the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The splitmix64 step: the next of a sequence of well-spread numbers.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_are_jittered() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8), 42);
        for step in [1, 2, 4, 8, 8, 8] {
            let pause = backoff.pause().as_secs_f64();
            let step = f64::from(step);
            assert!((step / 2.0..=step).contains(&pause), "{pause} for {step}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_secs(1));
    }

    #[test]
    fn each_pause_is_shortened_by_another_part() {
        let mut backoff = Backoff::new(Duration::from_secs(8), Duration::from_secs(8), 42);
        let mut pauses: Vec<Duration> = (0..20).map(|_| backoff.pause()).collect();
        pauses.sort();
        pauses.dedup();
        assert!(pauses.len() > 15, "{pauses:?}");
        let spread = pauses[pauses.len() - 1] - pauses[0];
        assert!(spread > Duration::from_secs(2), "{spread:?}");
    }
}
