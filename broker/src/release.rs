//! Which release of RabbitMQ a broker is: what it says to everybody who connects, before anybody logs in.
//!
//! The AMQP library reads it and keeps it to itself, so it is asked for on a connection of its own, which ends there.
//! The frame is that of <https://www.rabbitmq.com/amqp-0-9-1-reference#connection.start>.

use std::fmt;
use std::io;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use lapin::types::AMQPValue;
use lapin::types::parsing::parse_field_table;
use lapin::uri::AMQPQueryString;

use crate::access::BrokerAccess;
use crate::connect::reach;
use crate::guard::{FRAME_HEADER, LARGEST_METHOD};
use crate::tls::secured;

const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Class, method and the protocol's version, before the properties.
const METHOD_HEADER: usize = 6;

/// A release, such as 3.10.8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    text: String,
    number: (u32, u32),
}

impl Release {
    /// What a broker says of itself.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { text: text.to_owned(), number })
    }

    /// Whether a queue may have a consumer timeout of its own.
    pub fn knows_consumer_timeout(&self) -> bool {
        self.number >= (3, 12)
    }

    /// Whether a declaration is refused where a queue exists with another consumer timeout.
    pub fn compares_consumer_timeout(&self) -> bool {
        self.number >= (4, 3)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Asks the broker's addresses in turn; none where none of them says.
pub async fn ask(access: &BrokerAccess, timeout: Duration) -> Option<Release> {
    for endpoint in 0..access.endpoints() {
        match tokio::time::timeout(timeout, ask_one(access, endpoint, timeout)).await {
            Ok(Ok(Some(release))) => return Some(release),
            Ok(Ok(None)) => tracing::debug!(broker = %access.address(), "the broker names no release"),
            Ok(Err(error)) => tracing::debug!(broker = %access.address(), %error, "release not read"),
            Err(_) => tracing::debug!(broker = %access.address(), "release not read in time"),
        }
    }
    None
}

async fn ask_one(access: &BrokerAccess, endpoint: usize, timeout: Duration) -> io::Result<Option<Release>> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let uri = access.uri(endpoint, AMQPQueryString::default());
    let stream = reach(&runtime, &uri, timeout).await?;
    let mut stream = secured(stream, &uri, access.tls()).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await?;
    let [_, _, _, size @ ..] = header;
    let size = u32::from_be_bytes(size);
    // Whatever is longer is nested too deep for the parser, perhaps.
    if size > LARGEST_METHOD {
        return Ok(None);
    }
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload).await?;
    Ok(read(&payload))
}

/// The release in the payload of a `connection.start`.
fn read(payload: &[u8]) -> Option<Release> {
    let (_, properties) = parse_field_table(payload.get(METHOD_HEADER..)?).ok()?;
    match properties.inner().get("version")? {
        AMQPValue::LongString(text) => Release::parse(&text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_what_a_broker_says_first() {
        let mut table = b"\x07versionS\x00\x00\x00\x063.10.8".to_vec();
        table.extend_from_slice(b"\x07productS\x00\x00\x00\x08RabbitMQ");
        let mut payload = b"\x00\x0a\x00\x0a\x00\x09".to_vec();
        payload.extend_from_slice(&u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(&table);
        let release = read(&payload).unwrap();
        assert_eq!((release.to_string().as_str(), release.number), ("3.10.8", (3, 10)));
        assert_eq!(read(b"nonsense"), None);
        assert_eq!(read(b""), None);
    }

    #[test]
    fn a_queue_s_own_consumer_timeout_came_with_3_12_and_is_compared_from_4_3_on() {
        for (text, knows) in [("3.10.8", false), ("3.11.28", false), ("3.12.0", true), ("4.0.5", true)] {
            assert_eq!(Release::parse(text).unwrap().knows_consumer_timeout(), knows, "{text}");
        }
        assert_eq!(Release::parse("0"), None);
        for (text, compares) in [("3.12.0", false), ("4.2.9", false), ("4.3.0", true), ("5.0.0", true)] {
            assert_eq!(Release::parse(text).unwrap().compares_consumer_timeout(), compares, "{text}");
        }
    }
}
