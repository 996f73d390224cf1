//! How long pods take to start, from what is asked for and what takes calls. Pure.

use super::inputs::Workload;

/// Pods that are on their way for longer, in seconds, do not start.
pub(super) const SLOWEST_START_SECONDS: f64 = 120.0;

/// What is remembered of pods that start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Startup {
    asked: Option<Asked>,
    seconds: Option<f64>,
}

/// Pods that were asked for and have not all started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Asked {
    at: f64,
    replicas: u32,
    /// Pods that took calls already.
    from: u32,
    started: bool,
}

impl Startup {
    /// Takes in how many pods are `able` to take calls.
    pub fn observe(&mut self, workload: &Workload, able: u32, now: f64) {
        let replicas = workload.replicas;
        match &mut self.asked {
            // What went before it ran, or cannot, says nothing of how long a start takes.
            Some(asked) if replicas < asked.replicas || workload.failing => {
                *asked = Asked { replicas, started: true, ..*asked };
            }
            Some(asked) if replicas == asked.replicas => {
                // One that is slow says nothing of the others.
                let (come, wanted) = (able.saturating_sub(asked.from), replicas.saturating_sub(asked.from));
                if come > wanted / 2 && !std::mem::replace(&mut asked.started, true) {
                    let seconds = (now - asked.at).min(SLOWEST_START_SECONDS);
                    self.seconds = Some(seconds).filter(|seconds| *seconds > 0.0);
                }
            }
            // What was there at first was asked for by somebody else, some time ago.
            asked => {
                let started = able >= replicas || asked.is_none();
                *asked = Some(Asked { at: now, replicas, from: able, started });
            }
        }
    }

    /// Nobody looks for a while: when pods that are on their way have come is not known then.
    pub const fn interrupted(&mut self) {
        if let Some(asked) = &mut self.asked {
            asked.started = true;
        }
    }

    /// Seconds that most of the last pods took from their request until they took calls; none before.
    pub const fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// Seconds since pods were asked for of which most do not take calls yet, and are still to be expected.
    pub fn on_their_way(&self, now: f64) -> Option<f64> {
        let asked = self.asked.filter(|asked| !asked.started)?;
        let waited = now - asked.at;
        (waited <= SLOWEST_START_SECONDS).then_some(waited)
    }
}
