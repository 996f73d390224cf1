//! RabbitMQ for Warren's programs.
//!
//! | Module | What |
//! |---|---|
//! | [`access`] | a Secret's keys parsed into addresses, identity and TLS |
//! | [`error`] | what a broker refuses, as errors that say what to do |
//! | [`connect`] | one connection, bounded in time |
//! | [`channel`] | a channel on it, whatever became of those before |
//! | [`supervisor`] | a connection that comes back, numbered by generation |
//! | [`topology`] | a Queue's spec as exchanges, queues and bindings: a pure plan |
//! | [`declare`] | that plan sent to a broker, and what the broker has read back |
//! | [`release`] | which RabbitMQ a broker is |

pub mod access;
mod alarm;
pub mod channel;
pub mod connect;
pub mod declare;
pub mod error;
mod guard;
#[cfg(test)]
mod peer;
pub mod release;
pub mod supervisor;
mod tls;
pub mod topology;

pub use access::{BrokerAccess, SecretError};
pub use error::{BrokerError, Category};
pub use lapin;

/// Makes ring the process's TLS provider. Call it first in `main`: two libraries here would otherwise each choose one.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether what is logged of the AMQP library may go into logs: its traces show frames, and with them the password.
pub fn may_be_logged(metadata: &tracing::Metadata<'_>) -> bool {
    *metadata.level() != tracing::Level::TRACE || !metadata.target().starts_with("lapin")
}
