//! The example loads of `examples/traces/`, made here so that they can be made again. Pure and without chance: the same each time.

use std::f64::consts::TAU;
use std::fmt::Write as _;

/// An example load.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The file's name without its ending.
    pub name: &'static str,
    /// What it shows, for a reader.
    pub title: &'static str,
    /// Seconds of a handler call to simulate it with.
    pub service_seconds: f64,
    /// Whether it is a burst, in which pods are needed at once.
    pub burst: bool,
    /// Seconds of an interval.
    interval: u32,
    /// Seconds in all.
    length: u32,
    /// Messages a second at a second, given a number without pattern between 0 and 1.
    rate: fn(f64, f64) -> f64,
    /// Seconds of a handler call at a second, where they change.
    service: Option<fn(f64) -> f64>,
}

/// Every example.
pub const ALL: [Shape; 8] = [
    Shape {
        name: "step",
        title: "A step: 10 messages/s, 50 for a quarter of an hour, 10 again",
        service_seconds: 0.5,
        burst: false,
        interval: 10,
        length: 2100,
        rate: |at, _| if (600.0..1500.0).contains(&at) { 50.0 } else { 10.0 },
        service: None,
    },
    Shape {
        name: "ramp",
        title: "A ramp: up to 60 messages/s within 15 minutes, and down again",
        service_seconds: 0.5,
        burst: false,
        interval: 30,
        length: 1800,
        rate: |at, _| 60.0 - 60.0 * (at - 900.0).abs() / 900.0,
        service: None,
    },
    Shape {
        name: "spike-train",
        title: "Spikes: 800 messages within 5 seconds, every five minutes",
        service_seconds: 0.5,
        burst: true,
        interval: 5,
        length: 3600,
        rate: |at, _| if (at as u32 % 300) == 60 { 160.0 } else { 0.0 },
        service: None,
    },
    Shape {
        name: "daily-curve",
        title: "A day: from near 0 at night to 8 messages/s at noon",
        service_seconds: 2.0,
        burst: false,
        interval: 300,
        length: 86_400,
        rate: |at, _| 4.0 - 3.9 * (TAU * at / 86_400.0).cos(),
        service: None,
    },
    Shape {
        name: "noise",
        title: "Noise: 30 messages/s, every second up to half more or less",
        service_seconds: 0.5,
        burst: false,
        interval: 1,
        length: 1800,
        rate: |_, chance| 30.0 * (0.5 + chance),
        service: None,
    },
    Shape {
        name: "outage-and-catch-up",
        title: "An outage: ten minutes without a message, then all of them within a minute",
        service_seconds: 0.5,
        burst: false,
        interval: 10,
        length: 3000,
        rate: |at, _| match at as u32 {
            900..1500 => 0.0,
            1500..1560 => 170.0,
            _ => 15.0,
        },
        service: None,
    },
    Shape {
        name: "slow-handler",
        title: "A handler that slows down: 20 messages/s, from 0.3 to 1.2 seconds each",
        service_seconds: 0.3,
        burst: false,
        interval: 30,
        length: 2400,
        rate: |_, _| 20.0,
        service: Some(|at| 0.3 + 0.9 * at / 2400.0),
    },
    Shape {
        name: "cold-start",
        title: "A cold start: 1,500 messages within 10 seconds, after five minutes and before fifteen of nothing",
        service_seconds: 0.5,
        burst: true,
        interval: 10,
        length: 1200,
        rate: |at, _| if (300.0..310.0).contains(&at) { 150.0 } else { 0.0 },
        service: None,
    },
];

impl Shape {
    /// The trace as CSV.
    pub fn csv(&self) -> String {
        let mut text = format!("# {}\nseconds,arrivals", self.title);
        if self.service.is_some() {
            text.push_str(",service_seconds");
        }
        text.push('\n');
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        for second in (0..self.length).step_by(self.interval as usize) {
            let at = f64::from(second);
            let arrivals = ((self.rate)(at, chance.next()) * f64::from(self.interval)).round();
            // Writing to a String cannot fail.
            let _ = match self.service {
                Some(service) => writeln!(text, "{second},{arrivals},{:.3}", service(at)),
                None => writeln!(text, "{second},{arrivals}"),
            };
        }
        text
    }
}

/// Marsaglia's xorshift: numbers without pattern, the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// Numbers that depend on `seed` alone.
    #[cfg(test)]
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        chance.next();
        chance
    }

    /// Between `least` and `most`.
    #[cfg(test)]
    pub(super) fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.next()
    }

    /// Between 0 and 1.
    pub(super) const fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}
