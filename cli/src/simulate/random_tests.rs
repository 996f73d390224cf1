//! The scaler under loads that nobody has chosen: shapes, sizes and speeds by chance, the same each time.
//!
//! What holds: Warren's p95 is below KEDA's and the HPA's always, nothing is left undone, and from about six pods on it costs
//! no more than 1.1 of their replica-seconds. Left out is what docs/scaling.md says of very small loads and of bursts that
//! come faster than pods may go.

use std::fmt::Write as _;

use warren_operator::scaler::inputs::Spec;

use super::setting::Setting;
use super::shapes::Chance;
use super::trace::Trace;
use super::world::Pods;
use super::{Both, Comparison};

const SHAPES: usize = 6;

/// A load of `pods` pods' worth at its height, for a quarter of an hour to an hour.
fn load(chance: &mut Chance, shape: usize, rate: f64) -> String {
    let seconds = chance.between(900.0, 3600.0) as u32;
    let (from, to, low) = (chance.between(0.2, 0.5), chance.between(0.5, 0.8), chance.between(0.1, 0.5));
    let swing = chance.between(0.1, 0.6);
    let mut text = String::new();
    for second in 0..seconds {
        let part = f64::from(second) / f64::from(seconds);
        let rate = match shape {
            0 if (from..to).contains(&part) => rate,
            0 => rate * low,
            1 => rate * (1.0 - (2.0 * part - 1.0).abs()),
            2 => rate * (1.0 + swing * (2.0 * chance.next() - 1.0)),
            3 if (from..from + 0.15).contains(&part) => 0.0,
            3 if (from + 0.15..from + 0.2).contains(&part) => rate * 4.0,
            3 => rate,
            // All at once, and every five minutes all at once: ten seconds' worth.
            4 if second == 77 => rate * 10.0,
            5 if second % 300 == 77 => rate * 10.0,
            _ => 0.0,
        };
        // A fraction of a message comes sometimes.
        let arrivals = rate.floor() + f64::from(u8::from(chance.next() < rate.fract()));
        writeln!(text, "{second},{arrivals}").unwrap();
    }
    text
}

#[test]
fn loads_that_nobody_has_chosen_wait_less_and_cost_no_more() {
    let mut chance = Chance::new(2026);
    for case in 0..60 {
        let shape = case % SHAPES;
        let service = chance.between(0.1, 1.5);
        let concurrency = if chance.next() < 0.5 { 1 } else { 4 };
        let pods = chance.between(8.0, 30.0);
        let trace = Trace::parse(&load(&mut chance, shape, pods * f64::from(concurrency) / service)).unwrap();
        let setting = Setting {
            name: String::new(),
            spec: Spec {
                min: 0,
                max: 50,
                target_wait: 10.0,
                stabilization: 60.0,
                concurrency,
                handler_timeout: 30.0,
                quorum: true,
                paused: false,
            },
            pods: Pods {
                service_seconds: service,
                startup_seconds: 5.0,
                prefetch: concurrency,
                concurrency,
                min: 0,
            },
        };
        let Both { warren, keda_hpa } = Comparison::of(&setting, &trace).figures();
        let told =
            format!("case {case}, shape {shape}, {pods:.1} pods of {service:.2} s: {warren:?} {keda_hpa:?}");
        assert_eq!(warren.unfinished, 0, "{told}");
        // A single burst.
        let times = if shape == 4 { 3.0 } else { 1.0 };
        assert!(warren.wait_p95 * times < keda_hpa.wait_p95, "{told}");
        assert!(warren.replica_seconds <= 1.1 * keda_hpa.replica_seconds, "{told}");
    }
}
