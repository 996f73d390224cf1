//! A channel on a connection, whatever became of those before it.

use lapin::{Channel, ErrorKind};

use crate::error::{BrokerError, is_of_channel};
use crate::supervisor::Link;

/// Opens a channel.
///
/// The library uses the numbers of channels again, but answers everything on the number of one that the broker has closed with
/// what it was closed for, as if it were said now. A broker refuses no `channel.open` without ending the connection
/// (<https://www.rabbitmq.com/amqp-0-9-1-reference#channel.open>): what comes on a living one is such an old answer, and the next
/// number is tried. Where none is left, the connection is given up for a new one.
///
/// # Errors
/// [`BrokerError::Closed`], or another one that ended the connection.
pub async fn open(link: &Link) -> Result<Channel, BrokerError> {
    let connection = &link.connection;
    loop {
        let error = match connection.create_channel().await {
            Ok(channel) => return Ok(channel),
            Err(error) => error,
        };
        if let ErrorKind::ChannelsLimitReached = error.kind() {
            link.give_up();
            return Err(BrokerError::closed("no number is left for another channel"));
        }
        if !connection.status().connected() {
            // An old answer says nothing of a connection that ended meanwhile.
            let old = is_of_channel(&error);
            return Err(if old { BrokerError::closed("the connection ended") } else { error.into() });
        }
    }
}
