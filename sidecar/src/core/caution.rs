//! One message at a time for a while after the connection has ended over one that cannot be read.
//!
//! The broker counts a delivery of everything that was held on that connection, and brings all of it again, in its order. With
//! one at a time it counts the bad one alone, until the queue's delivery limit takes that out.

use std::time::Duration;

use super::event::Time;

/// How long it lasts at least: several times what it takes to connect again and get the same message.
const LEAST: Duration = Duration::from_secs(60);

/// Whether one message at a time is taken.
#[derive(Debug, Default)]
pub(super) struct Caution {
    until: Time,
    /// Messages that must pass first: as many as came back with the bad one, which may be the last of them.
    left: u16,
}

impl Caution {
    /// The connection has ended over a message, with so many held at most.
    pub fn begin(&mut self, window: u16, now: Time) {
        *self = Self { until: now + LEAST, left: window };
    }

    /// A message was read.
    pub fn passed(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether it lasts.
    pub fn is_on(&self, now: Time) -> bool {
        self.left > 0 || now < self.until
    }

    /// When its time is over, if it is not yet.
    pub fn until(&self, now: Time) -> Option<Time> {
        Some(self.until).filter(|until| now < *until)
    }
}
