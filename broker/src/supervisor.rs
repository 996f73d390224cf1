//! A connection that comes back.
//!
//! The library's own recovery replays consumers and had several bugs; here each connection has a generation number instead,
//! and whoever uses a link tags its deliveries with it, so that nothing of an old connection is ever sent on a new one.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use lapin::{Connection, Event};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::access::BrokerAccess;
use crate::alarm::{Alarm, Heard};
use crate::connect::{ConnectOptions, hang_up, open};
use crate::error::{BrokerError, is_of_channel};

/// The first wait before connecting again.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// The longest wait: a broker that is back is used again within seconds.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// A connection that lived for so long was a good one.
const STABLE: Duration = Duration::from_secs(5);

/// How often a connection that reported no end is looked at all the same.
const PULSE: Duration = Duration::from_secs(1);

/// What became of the connection.
#[derive(Clone, Debug)]
pub enum LinkState {
    /// The first attempt runs.
    Connecting,
    /// There is a connection.
    Up(Link),
    /// There is none, for this reason; the next attempt follows by itself.
    Down(Arc<BrokerError>),
}

impl LinkState {
    /// The connection, if there is one.
    pub const fn link(&self) -> Option<&Link> {
        match self {
            Self::Up(link) => Some(link),
            Self::Connecting | Self::Down(_) => None,
        }
    }
}

/// A living connection and its number.
#[derive(Clone)]
pub struct Link {
    /// Rises by one with each connection, from 1.
    pub generation: u64,
    /// The connection.
    pub connection: Arc<Connection>,
    /// The frame that all must be made to fit, in bytes; none: over one that is too large the next connection takes a larger one.
    pub frame: Option<u32>,
    /// Why the broker reads no publishes (`connection.blocked`), while it does not.
    pub blocked: Option<Arc<str>>,
    lost: mpsc::UnboundedSender<u64>,
    origin: Arc<Origin>,
}

/// How a connection was made.
struct Origin {
    access: Arc<BrokerAccess>,
    endpoint: usize,
    options: ConnectOptions,
}

impl Link {
    /// Reports that the connection is of no use: another one takes its place.
    pub fn give_up(&self) {
        // Without a keeper it has ended.
        let _ = self.lost.send(self.generation);
    }

    /// A further connection to the same address, for what may end one.
    ///
    /// # Errors
    /// As of [`connect`](crate::connect::connect).
    pub async fn another(&self) -> Result<Another, BrokerError> {
        let Origin { access, endpoint, options } = &*self.origin;
        // What connects is large, and whoever may need it need not carry it along.
        let options = options.with_frames_for_messages();
        let (connection, socket) = Box::pin(open(access, *endpoint, &options)).await?;
        let connection = Arc::new(connection);
        // Nobody replaces it.
        let (lost, _) = mpsc::unbounded_channel();
        let link = Link { connection: connection.clone(), blocked: None, lost, ..self.clone() };
        Ok(Another { link, _held: Held { connection, socket } })
    }
}

/// A further connection. Dropping it closes it.
pub struct Another {
    link: Link,
    _held: Held,
}

impl Another {
    /// The connection, which no other takes the place of.
    pub const fn link(&self) -> &Link {
        &self.link
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("generation", &self.generation)
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

/// Keeps one connection to a broker. Dropping it closes the connection.
#[derive(Debug)]
pub struct Supervisor {
    state: watch::Receiver<LinkState>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts connecting. A change of `access` (a rotated Secret) ends the connection and makes a new one.
    pub fn spawn(access: watch::Receiver<Arc<BrokerAccess>>, options: ConnectOptions) -> Self {
        let (publish, state) = watch::channel(LinkState::Connecting);
        let (lost, reports) = mpsc::unbounded_channel();
        let keeper = Keeper { access, options, publish, lost, reports, generation: 0 };
        Self { state, task: tokio::spawn(keeper.run()) }
    }

    /// The state, and each change of it.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    access: watch::Receiver<Arc<BrokerAccess>>,
    options: ConnectOptions,
    publish: watch::Sender<LinkState>,
    lost: mpsc::UnboundedSender<u64>,
    reports: mpsc::UnboundedReceiver<u64>,
    generation: u64,
}

impl Keeper {
    async fn run(mut self) {
        let mut endpoint = rand::random_range(0..usize::MAX / 2);
        let mut pace = Pace::new();
        loop {
            let access = self.access.borrow_and_update().clone();
            let (error, lived) = match open(&access, endpoint, &self.options).await {
                Ok((connection, socket)) => {
                    self.generation += 1;
                    let since = Instant::now();
                    let held = Held { connection: Arc::new(connection), socket };
                    let origin = Origin { access: access.clone(), endpoint, options: self.options.clone() };
                    let error = self.hold(&held.connection, Arc::new(origin)).await;
                    held.end();
                    (error, since.elapsed())
                }
                Err(error) => (error, Duration::ZERO),
            };
            if let BrokerError::FrameTooLarge { .. } = error {
                self.options.frame_max = self.options.larger_frame();
            }
            let pause = pace.failed(lived, access.endpoints());
            tracing::warn!(broker = %access.address(), name = %self.options.name, attempts = pace.attempts, %error, "no connection to the broker");
            self.publish.send_replace(LinkState::Down(Arc::new(error)));
            endpoint += 1;
            if let Some(pause) = pause {
                let changed = async {
                    // Without a sender the access never changes again.
                    if self.access.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = changed => pace.backoff = backoff(),
                }
            }
        }
    }

    /// Publishes the connection until it ends, and says why it did.
    async fn hold(&mut self, connection: &Arc<Connection>, origin: Arc<Origin>) -> BrokerError {
        let generation = self.generation;
        let mut events = std::pin::pin!(connection.events_listener());
        let frame = self.options.final_frame(connection.configuration().frame_max());
        let lost = self.lost.clone();
        let mut link =
            Link { generation, connection: Arc::clone(connection), frame, blocked: None, lost, origin };
        tracing::info!(name = %self.options.name, generation, "connected to the broker");
        self.publish.send_replace(LinkState::Up(link.clone()));
        let mut access_open = true;
        let mut pulse = tokio::time::interval(PULSE);
        let mut alarm = Alarm::new(Instant::now());
        loop {
            // A peer may have more to say at any time, and others want to be heard, too.
            tokio::task::yield_now().await;
            tokio::select! {
                // What the library says of an end comes before the look that only sees one.
                biased;
                event = events.next() => match event {
                    Some(Event::Error(error)) => {
                        // A refused declaration closes its channel and is reported to whoever made it: it is not why the connection
                        // has ended, if that has ended meanwhile.
                        if !is_of_channel(&error) && !connection.status().connected() {
                            return error.into();
                        }
                    }
                    Some(event) => match alarm.hear(event, Instant::now()) {
                        Heard::Changed { blocked, log } => {
                            if let Some(reason) = blocked.as_deref().filter(|_| log) {
                                tracing::warn!(name = %self.options.name, %reason, "the broker blocks publishing");
                            }
                            link.blocked = blocked;
                            self.publish.send_replace(LinkState::Up(link.clone()));
                        }
                        Heard::TooMuch => return BrokerError::Closed {
                            detail: "the peer says without end that it blocks publishing, and that it does not".to_owned(),
                        },
                        Heard::Nothing => {}
                    },
                    None => return BrokerError::Closed { detail: "the connection ended".to_owned() },
                },
                _ = pulse.tick() => if !connection.status().connected() {
                    return BrokerError::Closed { detail: "the connection ended".to_owned() };
                },
                Some(reported) = self.reports.recv() => {
                    if reported == generation {
                        close(connection).await;
                        return BrokerError::Closed { detail: "the connection was given up".to_owned() };
                    }
                }
                changed = self.access.changed(), if access_open => match changed {
                    Ok(()) => {
                        close(connection).await;
                        return BrokerError::Closed { detail: "the broker's Secret changed".to_owned() };
                    }
                    Err(_) => access_open = false,
                },
            }
        }
    }
}

/// How soon to connect again.
struct Pace {
    /// Failed attempts in a row.
    attempts: u32,
    backoff: backon::ExponentialBackoff,
}

impl Pace {
    fn new() -> Self {
        Self { attempts: 0, backoff: backoff() }
    }

    /// A connection could not be made, or has ended after so long: the wait before the next attempt; none: at once. Several
    /// addresses are all tried before waiting. A connection that opens and ends at once is a failed attempt too, or a broker
    /// that throws its clients out would be hammered.
    fn failed(&mut self, lived: Duration, endpoints: usize) -> Option<Duration> {
        if lived >= STABLE {
            *self = Self::new();
        }
        self.attempts = self.attempts.saturating_add(1);
        let all_tried = (self.attempts as usize).is_multiple_of(endpoints);
        all_tried.then(|| self.backoff.next().unwrap_or(MAX_BACKOFF))
    }
}

fn backoff() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(MIN_BACKOFF)
        .with_max_delay(MAX_BACKOFF)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A connection that ends with its keeper, also where that is dropped and the peer says nothing.
struct Held {
    connection: Arc<Connection>,
    socket: Option<TcpStream>,
}

impl Held {
    /// Ends a connection that is closed, or of no use.
    fn end(mut self) {
        hang_up(self.socket.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        let connection = Arc::clone(&self.connection);
        // Without a runtime the process ends, and the connection with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                close(&connection).await;
                hang_up(Some(socket));
            });
        }
    }
}

/// Says goodbye, but waits for no answer of a peer that may be gone.
async fn close(connection: &Connection) {
    let goodbye = connection.close(200, "bye".into());
    let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Peer, method};

    /// What a supervisor asks for in its first connections, each of which ends over a frame, of a broker that offers so much.
    async fn frames_asked<const N: usize>(options: ConnectOptions, offered: u32) -> [u32; N] {
        let (listener, uri) = Peer::listen();
        let access = Arc::new(BrokerAccess::from_uri(&uri).unwrap());
        let supervisor = Supervisor::spawn(watch::channel(access).1, options);
        let asked = tokio::task::spawn_blocking(move || {
            std::array::from_fn(|_| {
                let mut peer = Peer::accept(&listener);
                let asked = peer.greet(offered);
                peer.close(501, "FRAME_ERROR");
                asked
            })
        });
        let asked = asked.await.unwrap();
        drop(supervisor);
        asked
    }

    #[tokio::test]
    async fn after_a_frame_that_was_too_large_a_broker_without_a_limit_is_asked_for_a_bounded_one() {
        let small = ConnectOptions::SMALL_FRAME;
        let check = async |offered| {
            let (operator, plain, sidecar) = tokio::join!(
                frames_asked::<1>(ConnectOptions::named("test").with_least_frames(), offered),
                frames_asked::<2>(ConnectOptions::named("test"), offered),
                frames_asked::<4>(ConnectOptions::named("test").with_large_frames(), offered)
            );
            assert_eq!((operator, plain), ([8192], [small; 2]));
            assert_eq!(sidecar, [small, 131_073, 1_048_576, 1_048_576]);
        };
        tokio::join!(check(0), check(u32::MAX));
    }

    #[tokio::test]
    async fn a_silent_peer_does_not_keep_the_connection_of_a_supervisor_that_is_gone() {
        let (listener, uri) = Peer::listen();
        let access = Arc::new(BrokerAccess::from_uri(&uri).unwrap());
        let supervisor = Supervisor::spawn(watch::channel(access).1, ConnectOptions::named("test"));
        let peer = tokio::task::spawn_blocking(move || {
            let mut peer = Peer::accept(&listener);
            peer.greet(0);
            peer.listen_on();
        });
        supervisor.state().wait_for(|state| state.link().is_some()).await.unwrap();
        drop(supervisor);
        // It answers no close: without an end of the socket this never ends.
        tokio::time::timeout(Duration::from_secs(30), peer).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_blocks_and_unblocks_without_end_is_given_up() {
        let (listener, uri) = Peer::listen();
        let access = Arc::new(BrokerAccess::from_uri(&uri).unwrap());
        let supervisor = Supervisor::spawn(watch::channel(access).1, ConnectOptions::named("test"));
        // It may take the system minutes to find that nobody reads any more: nobody waits for that.
        std::thread::spawn(move || {
            let mut peer = Peer::accept(&listener);
            peer.greet(0);
            let changes = [method(10, 60, b"\x01x"), method(10, 61, b"")].concat().repeat(100);
            while peer.try_say(&changes).is_ok() {}
        });
        let mut state = supervisor.state();
        let down = state.wait_for(|state| matches!(state, LinkState::Down(_))).await.unwrap().clone();
        assert!(format!("{down:?}").contains("without end"), "{down:?}");
    }

    #[tokio::test]
    async fn a_message_whose_headers_are_nested_too_deep_is_told_as_one_that_cannot_be_read() {
        let (listener, uri) = Peer::listen();
        let access = Arc::new(BrokerAccess::from_uri(&uri).unwrap());
        let options = ConnectOptions::named("test").with_large_frames();
        let supervisor = Supervisor::spawn(watch::channel(access).1, options);
        let (connected, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut peer = Peer::accept(&listener);
            peer.greet(0);
            wait.recv().unwrap();
            let nested = b"A\0\0\0\0".repeat(100_000);
            let head = [&[2, 0, 1][..], &u32::try_from(nested.len()).unwrap().to_be_bytes()].concat();
            // The client hangs up before it has read all.
            let _ = peer.try_say(&[head, nested].concat());
        });
        let mut state = supervisor.state();
        state.wait_for(|state| state.link().is_some()).await.unwrap();
        connected.send(()).unwrap();
        let down = state.wait_for(|state| matches!(state, LinkState::Down(_))).await.unwrap().clone();
        assert!(
            matches!(&down, LinkState::Down(error) if matches!(**error, BrokerError::Unreadable { .. })),
            "{down:?}"
        );
    }

    #[test]
    fn all_addresses_are_tried_before_a_pause_also_when_each_connection_ends_at_once() {
        let mut pace = Pace::new();
        for round in 0..10 {
            let pauses: Vec<_> = (0..3).map(|_| pace.failed(Duration::from_millis(10), 3)).collect();
            assert!(pauses[..2].iter().all(Option::is_none), "{pauses:?}");
            let least = if round < 5 { MIN_BACKOFF } else { MAX_BACKOFF };
            assert!(pauses[2].is_some_and(|pause| pause >= least), "round {round}: {pauses:?}");
        }
        assert_eq!(pace.attempts, 30);
    }

    #[test]
    fn after_a_connection_that_lived_the_others_are_tried_at_once_and_the_pauses_are_short_again() {
        let mut pace = Pace::new();
        for _ in 0..30 {
            pace.failed(Duration::ZERO, 3);
        }
        assert_eq!((pace.failed(STABLE, 3), pace.attempts), (None, 1));
        pace.failed(Duration::ZERO, 3);
        assert!(pace.failed(Duration::ZERO, 3).is_some_and(|pause| pause <= MIN_BACKOFF * 2));
    }

    #[test]
    fn a_lone_address_is_waited_for_each_time() {
        let mut pace = Pace::new();
        assert!((0..5).all(|_| pace.failed(Duration::ZERO, 1).is_some()));
        assert!(pace.failed(STABLE, 1).is_some_and(|pause| pause <= MIN_BACKOFF * 2));
    }
}
