//! The two connections: one consumes and acknowledges, the other publishes.
//!
//! Under a memory or disk alarm the broker stops reading from a connection that publishes, acknowledgements included. A
//! connection that only consumes goes on.

pub mod line;
pub mod publisher;
pub mod returns;
pub mod session;
