//! The operator's own decision, looked at as often as the operator looks.

use warren_operator::scaler::cadence::pause;
use warren_operator::scaler::decide::decide;
use warren_operator::scaler::history::History;
use warren_operator::scaler::inputs::{Inputs, Sidecars, Spec, Workload};

use super::world::{Autoscaler, Look, Seen};

/// Warren's scaler, with its memory.
#[derive(Clone, Debug)]
pub struct Warren {
    spec: Spec,
    history: History,
    /// How often work that outlasts the handler's time-out has asked for more time.
    extensions: u64,
}

impl Warren {
    /// A scaler that has never seen this Worker before.
    pub fn new(spec: Spec) -> Self {
        Self { spec, history: History::default(), extensions: 0 }
    }
}

impl Autoscaler for Warren {
    fn look(&mut self, seen: &Seen, now: f64) -> Look {
        let Seen {
            ready,
            replicas,
            started,
            unsettled,
            in_flight,
            late,
            busy,
            ending,
            deliveries,
            settled,
            call_seconds,
        } = *seen;
        if late > 0 {
            // Twice within each time that it is given.
            self.extensions = (now / self.spec.handler_timeout * 2.0) as u64;
        }
        let inputs = Inputs {
            ready: Some((ready, 0.0)),
            contradicted: false,
            unconsumed: false,
            shared: false,
            elsewhere: false,
            workload: Workload { replicas, ..Workload::default() },
            sidecars: Sidecars {
                started,
                able: started,
                scraped: started,
                unsettled,
                in_flight,
                busy,
                late,
                extensions: self.extensions,
                ending,
                deliveries,
                settled,
                calls: settled,
                call_seconds,
                ..Sidecars::default()
            },
            sidecars_age: 0.0,
            // A trace has no time of day.
            floor: None,
        };
        let (decision, history) = decide(std::mem::take(&mut self.history), &inputs, &self.spec, now);
        self.history = history;
        Look { replicas: decision.replicas, again_in: pause(decision.replicas, 1).as_secs_f64() }
    }

    fn spares_the_busy(&self) -> bool {
        true
    }
}
