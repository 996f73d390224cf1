//! What a peer sends, looked at before the AMQP library parses it. The library calls itself for each level of a table, and a peer
//! that nobody has logged in to yet could nest it deeper than any stack: a table can be nested only as deep as its frame is long.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;

/// A frame's type, channel and size.
pub const FRAME_HEADER: usize = 7;
/// Bytes of a frame that says something of the connection or a channel: a few hundred, and the standard has 4096 before anything
/// is agreed on.
pub const LARGEST_METHOD: u32 = 8 * 1024;

/// What TLS answers to who does not speak it begins so.
const TLS_ALERT: u8 = 0x15;
/// A broker that speaks another version of AMQP says `AMQP` first.
const PROTOCOL_HEADER: u8 = b'A';
const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// Levels of a message's headers that there is stack for, as many as there can be in the largest frame of RabbitMQ's default.
const DEEPEST: u32 = 26_000;
/// What a level takes at least: its kind and its size.
const LEVEL: u32 = 5;

/// Why a connection is ended over what its peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A frame of a kind that has no use for so much.
    #[error("the peer sends a frame of {0} bytes, where a broker's has {1} at most")]
    TooLarge(u32, u32),
    /// What answers begins as TLS does.
    #[error("the port speaks TLS: write amqps:// in the Secret, or give it a ca.crt")]
    SpeaksTls,
    /// What answers begins as nothing of AMQP does.
    #[error("what answers there is no AMQP broker")]
    NoBroker,
    /// A message's headers.
    #[error("headers that are nested more than {DEEPEST} times")]
    TooDeep,
}

/// The frames of one connection, as they come.
#[derive(Debug)]
struct Frames {
    largest: u32,
    /// Whether the first byte of all has come.
    begun: bool,
    head: [u8; FRAME_HEADER],
    /// How much of the head is here.
    known: usize,
    /// Bytes of the frame that are still to come after its head.
    left: usize,
    /// Levels that the headers may have, by what was seen of them, where there may be too many.
    levels: Option<u32>,
    last: u8,
}

impl Frames {
    const fn new(largest: u32) -> Self {
        Self { largest, begun: false, head: [0; FRAME_HEADER], known: 0, left: 0, levels: None, last: 0 }
    }

    /// Takes in what was read.
    ///
    /// # Errors
    /// Why no more may be read.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let (passed, next) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= passed.len();
                self.look(passed)?;
                bytes = next;
                continue;
            }
            if !std::mem::replace(&mut self.begun, true) {
                match *byte {
                    METHOD | PROTOCOL_HEADER => {}
                    TLS_ALERT => return Err(Refused::SpeaksTls),
                    _ => return Err(Refused::NoBroker),
                }
            }
            if let Some(place) = self.head.get_mut(self.known) {
                *place = *byte;
            }
            self.known += 1;
            bytes = rest;
            if self.known == FRAME_HEADER {
                self.known = 0;
                let [kind, _, _, size @ ..] = self.head;
                let size = u32::from_be_bytes(size);
                let largest = if kind == METHOD { LARGEST_METHOD } else { self.largest };
                if size > largest {
                    return Err(Refused::TooLarge(size, largest));
                }
                self.levels = (kind == HEADER && size / LEVEL > DEEPEST).then_some(0);
                self.last = 0;
                // The byte that ends a frame is not counted in its size.
                self.left = (size as usize).saturating_add(1);
            }
        }
        Ok(())
    }

    /// Counts what may be the beginning of a level: its kind, and the first byte of its size, which is 0 in all that are smaller
    /// than 16 MiB. There is no such thing in text, and each level has one.
    fn look(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let Some(levels) = &mut self.levels else { return Ok(()) };
        for byte in bytes {
            if *byte == 0 && matches!(self.last, b'A' | b'F') {
                *levels += 1;
            }
            self.last = *byte;
        }
        if *levels > DEEPEST { Err(Refused::TooDeep) } else { Ok(()) }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(io::ErrorKind::InvalidData, refused)
    }
}

/// A stream whose frames are looked at when they are read.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    frames: Frames,
}

impl<S> Guarded<S> {
    /// A stream that has nothing but methods and frames of so many bytes at most.
    pub const fn new(stream: S, largest: u32) -> Self {
        Self { stream, frames: Frames::new(largest) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.frames.pass(buffer.get(..read).unwrap_or_default())?;
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read_vectored(context, buffers))?;
        let mut left = read;
        for buffer in buffers {
            let filled = left.min(buffer.len());
            self.frames.pass(buffer.get(..filled).unwrap_or_default())?;
            left -= filled;
        }
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// Tokio, with streams that are guarded: the library takes the streams of its runtime alone.
#[derive(Clone, Debug)]
pub struct GuardedTokio {
    tokio: Tokio,
    largest: u32,
}

/// What the library runs on.
pub type GuardedRuntime = Runtime<RuntimeParts<Tokio, GuardedTokio>>;

/// The current runtime, whose connections have frames of so many bytes at most.
pub fn runtime(largest: u32) -> GuardedRuntime {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), GuardedTokio { tokio, largest }))
}

impl Reactor for GuardedTokio {
    type TcpStream = Guarded<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, largest) = (self.tokio.tcp_connect_addr(address), self.largest);
        async move { Ok(Guarded::new(AsyncTcpStream::Plain(connecting.await?), largest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a kind and size.
    fn frame(kind: u8, size: u32) -> Vec<u8> {
        let payload = vec![0xce; size as usize + 1];
        [&[kind, 0, 1][..], &size.to_be_bytes(), &payload].concat()
    }

    /// The frames of a connection whose first has come.
    fn begun(largest: u32) -> Frames {
        Frames { begun: true, ..Frames::new(largest) }
    }

    #[test]
    fn frames_pass_however_they_are_cut_and_one_that_is_too_large_is_refused_by_its_head() {
        let good = [frame(1, LARGEST_METHOD), frame(2, 20_000), frame(3, 0), frame(8, 0)].concat();
        for piece in [1, 3, 7, 8, 1000, good.len()] {
            let mut frames = Frames::new(20_000);
            for bytes in good.chunks(piece) {
                frames.pass(bytes).unwrap();
            }
            assert!(frames.pass(&frame(1, LARGEST_METHOD + 1)[..FRAME_HEADER]).is_err(), "{piece}");
        }
    }

    #[test]
    fn long_headers_pass_unless_they_are_nested_deeper_than_there_is_stack_for() {
        let size = DEEPEST * LEVEL * 4;
        let nested = |levels: u32| {
            let mut frame = frame(2, size);
            for level in 0..levels as usize {
                frame[100 + level * 5..105 + level * 5].copy_from_slice(b"A\0\x01\x02\x03");
            }
            frame
        };
        for piece in [1000, 1001, size as usize] {
            let pass = |bytes: Vec<u8>| {
                let mut frames = begun(size);
                bytes.chunks(piece).try_for_each(|bytes| frames.pass(bytes))
            };
            assert_eq!(pass([nested(DEEPEST), nested(DEEPEST)].concat()), Ok(()));
            assert_eq!(pass(nested(DEEPEST + 1)), Err(Refused::TooDeep));
        }
    }

    #[test]
    fn who_speaks_tls_or_something_else_is_told_from_a_broker_by_its_first_byte() {
        let begins = |bytes: &[u8]| Frames::new(20_000).pass(bytes);
        assert_eq!(begins(b"\x15\x03\x03\x00\x02\x02\x0a"), Err(Refused::SpeaksTls));
        assert_eq!(begins(b"HTTP/1.1 400 Bad Request"), Err(Refused::NoBroker));
        assert_eq!((begins(&frame(1, 10)), begins(b"AMQP\0\0")), (Ok(()), Ok(())));
        // Later frames may be of any kind.
        assert_eq!(begins(&[frame(1, 10), frame(0x15, 10)].concat()), Ok(()));
    }

    #[test]
    fn what_a_message_comes_in_has_the_limit_of_its_connection() {
        for kind in [2, 3] {
            let mut frames = begun(20_000);
            frames.pass(&frame(kind, 20_000)).unwrap();
            assert_eq!(frames.pass(&frame(kind, 20_001)), Err(Refused::TooLarge(20_001, 20_000)));
        }
    }
}
