//! What a broker refuses, as errors that carry a decision and say what to do.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use crate::guard::Refused;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Trying again changes nothing until a person changes something.
    Terminal,
    /// Trying again soon may succeed.
    Retryable,
    /// Something else must come first, such as a queue that another declares.
    Waiting,
}

/// What the broker says of a number of connections that is reached, of a node, a virtual host or a user, or cannot be asked for.
pub(crate) const LIMIT: &str = "connection limit";
/// The same of channels, of a node or a user. It ends the connection.
const CHANNEL_LIMIT: &str = "number of channels opened";
/// What it says of a queue that it does not have, before the name.
const NO_QUEUE: &str = "no queue '";

/// A failed exchange with a broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No connection could be made: name, network, TLS or time-out.
    #[error(
        "the broker at {address} cannot be reached: {detail}. Check the address, that the broker runs, and network policies"
    )]
    Unreachable {
        /// The address, without credentials.
        address: String,
        /// What the system says.
        detail: String,
    },
    /// The TLS handshake failed.
    #[error(
        "the TLS handshake with {address} failed: {detail}. Check that the Secret's ca.crt signed the broker's certificate, that this names this host and has not expired, that the broker takes the Secret's tls.crt, if it wants one, and that the port speaks TLS"
    )]
    Tls {
        /// The address, without credentials.
        address: String,
        /// What TLS says.
        detail: String,
    },
    /// The broker does not take the credentials.
    #[error("the broker refuses user \"{user}\": correct username and password in the Secret")]
    AuthRefused {
        /// The user.
        user: String,
    },
    /// The virtual host is missing, or closed to the user.
    #[error("virtual host \"{vhost}\" cannot be used: {detail}. Create it, or grant the user access to it")]
    VhostRefused {
        /// The virtual host.
        vhost: String,
        /// What the broker says.
        detail: String,
    },
    /// 403: a right is missing.
    #[error("the user lacks a right: {detail}. Grant it with rabbitmqctl set_permissions")]
    AccessRefused {
        /// What the broker says; names the resource.
        detail: String,
    },
    /// 404: the queue or exchange does not exist.
    #[error("{detail}")]
    NotFound {
        /// What the broker says; names the resource.
        detail: String,
    },
    /// 405: another connection holds the queue exclusively.
    #[error(
        "{detail}. Another connection holds the name exclusively: choose another name, or end that connection"
    )]
    Locked {
        /// What the broker says; names the resource.
        detail: String,
    },
    /// 406: what exists differs from what was asked, or an argument is not taken.
    #[error("{detail}")]
    Precondition {
        /// What the broker says; names the argument.
        detail: String,
    },
    /// The broker allows no further channel, and has ended the connection of who has asked for one.
    #[error(
        "the broker has ended the connection: {detail}. Raise max-channels of the user (rabbitmqctl set_user_limits) or channel_max_per_node of the brokers, or give Workers a user of their own"
    )]
    ChannelLimit {
        /// What the broker says; names the user or the node.
        detail: String,
    },
    /// A message does not fit the negotiated frame size.
    #[error("a frame is larger than the connection's maximum: {detail}")]
    FrameTooLarge {
        /// What the broker says.
        detail: String,
    },
    /// The library cannot read what the broker sent: text that is no UTF-8, where a broker and other clients take any bytes.
    #[error(
        "the broker sent what cannot be read ({detail}): most likely a message with a property, a routing key or a header's name that is no UTF-8"
    )]
    Unreadable {
        /// What the library says.
        detail: String,
    },
    /// The connection or channel is gone.
    #[error("the connection to the broker was lost: {detail}")]
    Closed {
        /// Why.
        detail: String,
    },
    /// The broker did not answer in time.
    #[error("the broker did not answer within {seconds} s ({what})")]
    TimedOut {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

impl BrokerError {
    /// What to do about it.
    pub const fn category(&self) -> Category {
        match self {
            Self::Unreachable { .. }
            | Self::Closed { .. }
            | Self::TimedOut { .. }
            | Self::ChannelLimit { .. }
            | Self::FrameTooLarge { .. }
            | Self::Unreadable { .. } => Category::Retryable,
            Self::NotFound { .. } => Category::Waiting,
            Self::Tls { .. }
            | Self::AuthRefused { .. }
            | Self::VhostRefused { .. }
            | Self::AccessRefused { .. }
            | Self::Locked { .. }
            | Self::Precondition { .. } => Category::Terminal,
        }
    }

    /// The connection is gone, and why.
    pub fn closed(detail: impl Into<String>) -> Self {
        Self::Closed { detail: detail.into() }
    }

    /// Whether a broker ends a channel over that, and no connection.
    pub fn is_of_channel(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::AccessRefused { .. } | Self::Locked { .. } => true,
            // Other refusals of this kind end the connection, and begin with another word.
            Self::Precondition { detail } => detail.starts_with("PRECONDITION_FAILED"),
            _ => false,
        }
    }

    /// Whether the broker lets nobody in, or not this user, since a number of connections or channels is reached.
    pub fn is_at_limit(&self) -> bool {
        match self {
            Self::Unreachable { detail, .. } => detail.contains(LIMIT),
            Self::ChannelLimit { .. } => true,
            _ => false,
        }
    }

    /// Whether the broker says that there is no queue of some name.
    pub fn names_no_queue(&self) -> bool {
        matches!(self, Self::NotFound { detail } if detail.contains(NO_QUEUE))
    }

    /// Whether the broker says that there is no queue of this name. One whose node is down is not found either, and may come back.
    pub fn says_no_queue(&self, name: &str) -> bool {
        let Self::NotFound { detail } = self else { return false };
        let Some((_, said)) = detail.split_once(NO_QUEUE) else { return false };
        // A broker says 255 bytes at most, and ends them with dots where it had more to say.
        said.strip_prefix(name).is_some_and(|rest| rest.starts_with('\''))
            || said.strip_suffix("...").is_some_and(|said| name.starts_with(said))
    }
}

impl From<Error> for BrokerError {
    /// What a library error on an open connection means.
    fn from(error: Error) -> Self {
        let protocol = match error.kind() {
            ErrorKind::ProtocolError(protocol) => protocol,
            ErrorKind::ParsingError(error) => return Self::Unreadable { detail: error.to_string() },
            ErrorKind::IOError(error) if error.get_ref().is_some_and(|inner| inner.is::<Refused>()) => {
                return Self::Unreadable { detail: error.to_string() };
            }
            _ => return Self::Closed { detail: error.to_string() },
        };
        let detail = protocol.get_message().to_string();
        match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::AccessRefused { detail },
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NotFound { detail },
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Self::Locked { detail },
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::Precondition { detail },
            AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR) => Self::FrameTooLarge { detail },
            // Whatever was asked for meanwhile gets this answer, too.
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if detail.contains(CHANNEL_LIMIT) => {
                Self::ChannelLimit { detail }
            }
            // The broker refuses some arguments for the whole connection.
            AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED | AMQPHardError::NOTALLOWED) => {
                Self::Precondition { detail }
            }
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => Self::Closed { detail },
        }
    }
}

/// Whether that has ended a channel, and not its connection.
pub(crate) fn is_of_channel(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

/// What a 406 says of one argument that differs: a declaration stops at the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The argument, such as `durable` or `x-queue-type`.
    pub field: String,
    /// What was asked for, and what the broker has; none where the broker's sentence ends before it says so, as one of 255 bytes does
    /// over a long name.
    pub values: Option<(String, String)>,
}

impl Difference {
    /// Reads the broker's sentence, such as `inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but
    /// current is 'false'`; none where it says something else.
    pub fn parse(detail: &str) -> Option<Self> {
        let (_, rest) = detail.split_once("inequivalent arg '")?;
        let (field, rest) = rest.split_once('\'')?;
        let values = rest.split_once(": received ").and_then(|(_, said)| said.split_once(" but current is "));
        let values = values.filter(|(_, existing)| !existing.ends_with("..."));
        let values = values.map(|(asked, existing)| (plain(asked), plain(existing)));
        Some(Self { field: field.to_owned(), values })
    }
}

/// `the value 'x' of type 'longstr'` and `'x'` are both `x`; `none` stays.
fn plain(value: &str) -> String {
    match value.split_once('\'').and_then(|(_, rest)| rest.split_once('\'')) {
        Some((inner, _)) => inner.to_owned(),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    #[test]
    fn text_that_is_no_utf_8_is_told_from_a_connection_that_was_lost() {
        let error = lapin::types::parsing::parse_short_string(&[1, 0xE9][..]).unwrap_err();
        let error = BrokerError::from(Error::from(ErrorKind::ParsingError(error)));
        assert!(matches!(error, BrokerError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn a_limit_of_channels_is_no_refusal_of_what_was_asked_for_meanwhile() {
        let said = |text: &str| {
            let kind = AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED);
            BrokerError::from(Error::from(ErrorKind::ProtocolError(AMQPError::new(kind, text.into()))))
        };
        for whose in [
            "for user 'u' has reached the maximum allowed user",
            "on node 'n' has reached the maximum allowed",
        ] {
            let error = said(&format!("NOT_ALLOWED - number of channels opened {whose} limit of (10)"));
            assert_eq!((error.category(), error.is_at_limit()), (Category::Retryable, true), "{error}");
        }
        let error = said("NOT_ALLOWED - invalid arg 'x-queue-type'");
        assert!(matches!(error, BrokerError::Precondition { .. }), "{error}");
    }

    #[test]
    fn a_queue_whose_node_is_down_is_not_one_that_does_not_exist() {
        let of = |detail: &str, name: &str| {
            BrokerError::NotFound { detail: detail.to_owned() }.says_no_queue(name)
        };
        let says = |detail: &str| of(detail, "orders");
        assert!(says("NOT_FOUND - no queue 'orders' in vhost '/'"));
        assert!(!says("NOT_FOUND - no queue 'orders.dlq' in vhost '/'"), "it is another's answer");
        let long = "q".repeat(255);
        assert!(of(&format!("NOT_FOUND - no queue '{}...", &long[..231]), &long));
        assert!(!of(&format!("NOT_FOUND - no queue '{}...", &long[..231]), "orders"));
        assert!(!says(
            "NOT_FOUND - home node 'rabbit@b' of durable queue 'orders' in vhost '/' is down or inaccessible"
        ));
    }

    #[test]
    fn a_406_names_the_field_and_both_values() {
        for (text, field, asked, existing) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
                "durable",
                "true",
                "false",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
                "x-queue-type",
                "quorum",
                "none",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': received 'topic' but current is 'direct'",
                "type",
                "topic",
                "direct",
            ),
        ] {
            let values = Some((asked.to_owned(), existing.to_owned()));
            assert_eq!(Difference::parse(text), Some(Difference { field: field.to_owned(), values }));
        }
        let long = format!(
            "PRECONDITION_FAILED - inequivalent arg 'x-single-active-consumer' for queue '{}' in vhost '/': received the value 'true' of type 'bool' but current is none",
            "q".repeat(230)
        );
        for end in [100, 252, long.len() - 3] {
            let cut = Difference::parse(&format!("{}...", &long[..end]));
            assert_eq!(cut, Some(Difference { field: "x-single-active-consumer".to_owned(), values: None }));
        }
        assert_eq!(Difference::parse("PRECONDITION_FAILED - invalid arg 'x-max-priority'"), None);
    }
}
