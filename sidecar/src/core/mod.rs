//! The consumer engine as a pure core: no clock, no network, no metrics.
//!
//! `step(event, now) -> effects` for everything that can happen to a delivery: received, running, retrying, dead-lettering,
//! settled. The shell (`crate::runtime`) feeds events and performs effects.
//!
//! Guarantees, each shown by a property test: a delivery is settled once or left to the broker; it is never acknowledged
//! before its work, or the copy that replaces it, is done; no effect names a channel that is gone.

mod answers;
pub mod backoff;
mod breaker;
mod caution;
mod drain;
mod engine;
mod event;
mod flow;
mod held;
mod order;
mod prefetch;
mod ready;
mod settings;
#[cfg(test)]
mod tests;
mod throttle;
mod window;

pub use answers::{has_failed, is_work};
pub use breaker::is_misconfigured;
pub use engine::{Engine, Snapshot};
pub use event::{
    Answers, CallId, Called, Copy, DeadReason, DeliveryId, Effect, Event, Failure, Incoming, LateReply,
    Observation, Outcome, PublishResult, Seen, Target, Time, Verdict,
};
pub use flow::HOLD;
pub use settings::{Batch, Ladder, Rung, Settings};
