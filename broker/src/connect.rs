//! One connection to a broker, bounded in time.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_rs::traits::{AsyncToSocketAddrs, Reactor};
use async_rs::{Tokio, TokioRuntime};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPQueryString, AMQPUri};
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;

use crate::access::BrokerAccess;
use crate::error::{BrokerError, LIMIT};
use crate::guard::{self, Guarded};
use crate::tls::secured;

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The connection's name, as the broker lists it.
    pub name: String,
    /// Seconds between heartbeats: a silent peer is given up after two.
    pub heartbeat_seconds: u16,
    /// The largest frame to ask for, in bytes. The library keeps 64 of them, all of which are in memory after some hours, and takes no
    /// more than was asked for.
    pub frame_max: u32,
    /// What may be asked for at most, once a frame was too large.
    pub frame_limit: u32,
    /// How long all of connecting may take.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// What RabbitMQ asks for at least, since 4.1. What declares fits 4096 bytes.
    const LEAST_FRAME: u32 = 8 * 1024;
    /// A frame size that keeps a connection at 2 MiB instead of 8.
    pub const SMALL_FRAME: u32 = 32 * 1024;
    /// Just above the default of RabbitMQ, so that it shows whether the limit is the broker's own.
    const MIDDLE_FRAME: u32 = 128 * 1024 + 1;
    /// The largest headers fit, and a broker that has no limit costs 64 MiB at most.
    const LARGE_FRAME: u32 = 1024 * 1024;

    /// Options that suit both programs: a peer that is gone is noticed within 20 s.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            heartbeat_seconds: 10,
            frame_max: Self::SMALL_FRAME,
            frame_limit: Self::SMALL_FRAME,
            timeout: Duration::from_secs(10),
        }
    }

    /// The same for who declares queues and carries no messages, on a connection for each user of each virtual host.
    #[must_use]
    pub fn with_least_frames(self) -> Self {
        Self { frame_max: Self::LEAST_FRAME, frame_limit: Self::LEAST_FRAME, ..self }
    }

    /// The same for who may get a message, with headers of up to 32 KiB.
    pub(crate) fn with_frames_for_messages(&self) -> Self {
        let [frame_max, frame_limit] =
            [self.frame_max, self.frame_limit].map(|frame| frame.max(Self::SMALL_FRAME));
        Self { frame_max, frame_limit, ..self.clone() }
    }

    /// The same for who has messages to carry, whose headers may need a larger frame.
    #[must_use]
    pub fn with_large_frames(self) -> Self {
        Self { frame_limit: Self::LARGE_FRAME, ..self }
    }

    /// What to ask for after a frame that was too large.
    pub(crate) fn larger_frame(&self) -> u32 {
        let next = if self.frame_max < Self::MIDDLE_FRAME { Self::MIDDLE_FRAME } else { Self::LARGE_FRAME };
        next.min(self.frame_limit)
    }

    /// The frame that all must be made to fit, of what was agreed on; none: the next connection takes a larger one.
    pub(crate) fn final_frame(&self, agreed: u32) -> Option<u32> {
        (agreed < self.frame_max || self.frame_max >= self.frame_limit).then_some(agreed)
    }
}

/// Connects to the first address.
///
/// # Errors
/// [`BrokerError::Unreachable`], [`BrokerError::Tls`], [`BrokerError::AuthRefused`], [`BrokerError::VhostRefused`].
pub async fn connect(access: &BrokerAccess, options: &ConnectOptions) -> Result<Connection, BrokerError> {
    Ok(open(access, 0, options).await?.0)
}

/// Connects to the address of a number, modulo how many there are; gives the connection's socket too: see [`hang_up`].
pub(crate) async fn open(
    access: &BrokerAccess,
    endpoint: usize,
    options: &ConnectOptions,
) -> Result<(Connection, Option<TcpStream>), BrokerError> {
    let query = AMQPQueryString {
        frame_max: Some(options.frame_max),
        heartbeat: Some(options.heartbeat_seconds),
        ..AMQPQueryString::default()
    };
    let properties = ConnectionProperties::default().with_connection_name(options.name.as_str().into());
    let attempt = Arc::new(Attempt::default());
    let (begun, limit, tls) = (Arc::downgrade(&attempt), options.timeout, access.tls().cloned());
    let largest = options.frame_limit;
    let connecting = async {
        let (uri, tokio) = (access.uri(endpoint, query), lapin::runtime::default_runtime()?);
        Connection::connector(
            uri,
            guard::runtime(largest),
            async move |uri: AMQPUri, _| {
                let opening = async {
                    let stream = reach(&tokio, &uri, limit).await?;
                    if let AsyncTcpStream::Plain(socket) = &stream {
                        Attempt::opened(&begun, socket.get_ref().as_fd().try_clone_to_owned()?.into())?;
                    }
                    let stream = secured(stream, &uri, tls.as_ref()).await?;
                    Ok(AsyncTcpStream::Plain(Guarded::new(stream, largest)))
                };
                // The library's thread waits for this by itself, whatever becomes of the attempt.
                timeout(limit, opening)
                    .await
                    .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
                    .map_err(Into::into)
            },
            properties,
        )
        .await
    };
    match timeout(limit, connecting).await {
        Ok(Ok(connection)) => Ok((connection, attempt.socket().take())),
        Ok(Err(error)) => Err(classify(access, &error)),
        Err(_) => Err(BrokerError::Unreachable {
            address: access.address(),
            detail: format!("no answer within {} s", limit.as_secs()),
        }),
    }
}

/// Connects to the first of a host's addresses that answers. One that does not leaves the others their share of the time: it may be
/// the first each time, such as an IPv6 address that leads nowhere.
pub(crate) async fn reach(
    tokio: &TokioRuntime,
    uri: &AMQPUri,
    limit: Duration,
) -> io::Result<AsyncTcpStream<<Tokio as Reactor>::TcpStream>> {
    let host = (uri.authority.host.clone(), uri.authority.port);
    reach_one(tokio, tokio.to_socket_addrs(host).to_socket_addrs().await?.collect(), limit).await
}

async fn reach_one(
    tokio: &TokioRuntime,
    addresses: Vec<SocketAddr>,
    limit: Duration,
) -> io::Result<AsyncTcpStream<<Tokio as Reactor>::TcpStream>> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        match timeout(share, tokio.tcp_connect_addr(address)).await {
            Ok(Ok(stream)) => return Ok(AsyncTcpStream::Plain(stream)),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// Ends a connection whose peer says nothing: the library's thread would wait for it without end.
pub(crate) fn hang_up(socket: Option<TcpStream>) {
    // It fails where the peer has closed, which is as good.
    let _ = socket.map(|socket| socket.shutdown(Shutdown::Both));
}

/// A connection in the making, which is hung up when it is given up.
#[derive(Debug, Default)]
struct Attempt {
    socket: Mutex<Option<TcpStream>>,
}

impl Attempt {
    /// Notes the socket, unless the attempt was given up meanwhile.
    fn opened(attempt: &Weak<Self>, socket: TcpStream) -> io::Result<()> {
        let attempt = attempt.upgrade().ok_or(io::ErrorKind::TimedOut)?;
        attempt.socket().replace(socket);
        Ok(())
    }

    fn socket(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        hang_up(self.socket().take());
    }
}

/// What is said of a broker whose certificate is an authority's.
const OF_AUTHORITY: &str = "the broker's certificate is itself an authority (CA:TRUE), which no server's may be: have it sign another one for the broker, or make it anew with basicConstraints=critical,CA:FALSE";

/// While connecting, a 403 is about the user and a 530 about the virtual host.
fn classify(access: &BrokerAccess, error: &lapin::Error) -> BrokerError {
    let address = access.address();
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => {
            let detail = protocol.get_message().to_string();
            // Of connections, and of a virtual host whose node starts.
            let passes = [LIMIT, " is down"].iter().any(|passing| detail.contains(passing));
            if detail.contains("ACCESS_REFUSED") || detail.contains("Login was refused") {
                BrokerError::AuthRefused { user: access.username().to_owned() }
            } else if !passes && (detail.contains("NOT_ALLOWED") || detail.contains("vhost")) {
                BrokerError::VhostRefused { vhost: access.vhost().to_owned(), detail }
            } else {
                BrokerError::Unreachable { address, detail }
            }
        }
        ErrorKind::IOError(error) => {
            let detail = error.to_string();
            let lower = detail.to_lowercase();
            // A broker that ends, or a load balancer with none behind it, says nothing about certificates.
            let broken_off = matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            );
            let of_tls = || {
                let words = ["certificate", "tls", "handshake", "fatal alert"];
                error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
                    || words.iter().any(|word| lower.contains(word))
            };
            if !broken_off && of_tls() {
                // An authority's own certificate says what it may be used for, and that is no server.
                let detail =
                    if detail.contains("CaUsedAsEndEntity") { OF_AUTHORITY.to_owned() } else { detail };
                BrokerError::Tls { address, detail }
            } else {
                BrokerError::Unreachable { address, detail }
            }
        }
        _ => BrokerError::Unreachable { address, detail: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError};
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::peer::{Peer, method};

    #[test]
    fn everything_must_fit_a_frame_that_is_the_brokers_own_or_the_last_that_is_asked_for() {
        let mut options = ConnectOptions::named("test").with_large_frames();
        let small = ConnectOptions::SMALL_FRAME;
        assert_eq!(options.final_frame(small), None, "the broker may take larger ones");
        assert_eq!(options.final_frame(8192), Some(8192));
        options.frame_max = options.larger_frame();
        assert_eq!(options.final_frame(131_072), Some(131_072), "the broker's default");
        assert_eq!(options.final_frame(options.frame_max), None);
        options.frame_max = options.larger_frame();
        assert_eq!(options.final_frame(1_048_576), Some(1_048_576), "a broker without a limit");
        assert_eq!(options.larger_frame(), options.frame_max);
        assert_eq!(ConnectOptions::named("test").final_frame(small), Some(small));
    }

    #[tokio::test]
    async fn an_address_that_leads_nowhere_leaves_the_next_one_its_time() {
        let full = TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(0).unwrap();
        let (nowhere, mut waiting) = (full.local_addr().unwrap(), Vec::new());
        // Once enough wait to be accepted, the next has no answer.
        let next = || timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(nowhere));
        while let Ok(stream) = next().await {
            waiting.push(stream.unwrap());
        }
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = vec![nowhere, there.local_addr().unwrap()];
        let runtime = lapin::runtime::default_runtime().unwrap();
        // A system gives such a connection up by itself, after two minutes.
        let reached = reach_one(&runtime, addresses, Duration::from_secs(2));
        timeout(Duration::from_secs(30), reached).await.unwrap().unwrap();
    }

    #[test]
    fn only_a_handshake_that_is_refused_is_told_as_tls_and_one_that_breaks_off_passes_by_itself() {
        let access = BrokerAccess::from_uri("amqps://u:p@h/").unwrap();
        let error = |kind, text: &str| classify(&access, &io::Error::new(kind, text).into());
        for (kind, text) in [
            (io::ErrorKind::InvalidData, "invalid peer certificate: Expired"),
            (io::ErrorKind::InvalidData, "received fatal alert: BadCertificate"),
        ] {
            assert!(matches!(error(kind, text), BrokerError::Tls { .. }), "{text}");
        }
        // What a port says that speaks no TLS.
        let plain = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        let plain = io::Error::new(io::ErrorKind::InvalidData, plain);
        assert!(matches!(classify(&access, &plain.into()), BrokerError::Tls { .. }));
        for (kind, text) in [
            (io::ErrorKind::UnexpectedEof, "tls handshake eof"),
            (io::ErrorKind::ConnectionReset, "reset during the handshake"),
            (io::ErrorKind::ConnectionRefused, "Connection refused"),
        ] {
            assert!(matches!(error(kind, text), BrokerError::Unreachable { .. }), "{text}");
        }
    }

    #[test]
    fn a_limit_of_connections_and_a_vhost_that_starts_are_not_told_as_a_vhost_that_is_missing() {
        let access = BrokerAccess::from_uri("amqp://u:p@h/v").unwrap();
        let error = |text: &str| {
            let kind = AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED);
            classify(&access, &ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into())
        };
        for text in [
            "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (2) is reached",
            "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit cannot be queried, timeout",
            "INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down",
        ] {
            assert!(matches!(error(text), BrokerError::Unreachable { .. }), "{text}");
        }
        let missing = error("NOT_ALLOWED - vhost v not found");
        assert!(matches!(missing, BrokerError::VhostRefused { .. }), "{missing:?}");
    }

    #[tokio::test]
    async fn a_peer_that_nests_what_it_says_of_itself_deeper_than_a_stack_is_not_listened_to() {
        let (listener, uri) = Peer::listen();
        let depth = 200_000;
        let mut table = b"\x01x".to_vec();
        for level in (0..depth).rev() {
            table.push(b'A');
            table.extend_from_slice(&(5_u32 * level).to_be_bytes());
        }
        let size = u32::try_from(table.len()).unwrap().to_be_bytes();
        let start = [&[0, 9][..], &size, &table, b"\0\0\0\x05PLAIN\0\0\0\x05en_US"].concat();
        std::thread::spawn(move || {
            loop {
                // The client hangs up before it has read all.
                let _ = Peer::accept(&listener).try_say(&method(10, 10, &start));
            }
        });
        let access = BrokerAccess::from_uri(&uri).unwrap();
        let options = ConnectOptions { timeout: Duration::from_secs(2), ..ConnectOptions::named("test") };
        let error = connect(&access, &options).await.unwrap_err();
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_peer_that_takes_connections_and_says_nothing_is_hung_up_on() {
        for scheme in ["amqp", "amqps"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let access = BrokerAccess::from_uri(&format!("{scheme}://u:p@127.0.0.1:{port}/")).unwrap();
            let options = ConnectOptions { timeout: Duration::from_secs(1), ..ConnectOptions::named("test") };
            let error = connect(&access, &options).await.unwrap_err();
            assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
            let reading = async {
                let (mut socket, _) = listener.accept().await?;
                socket.read_to_end(&mut Vec::new()).await
            };
            let until_closed = tokio::time::timeout(Duration::from_secs(10), reading).await;
            assert!(matches!(until_closed, Ok(Ok(_))), "{scheme}: {until_closed:?}");
        }
    }
}
