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

const METHOD: u8 = 1;

/// The frames of one connection, as they come.
#[derive(Debug)]
struct Frames {
    largest: u32,
    head: [u8; FRAME_HEADER],
    /// How much of the head is here.
    known: usize,
    /// Bytes of the frame that are still to come after its head.
    left: usize,
}

impl Frames {
    const fn new(largest: u32) -> Self {
        Self { largest, head: [0; FRAME_HEADER], known: 0, left: 0 }
    }

    /// Takes in what was read.
    ///
    /// # Errors
    /// A frame is larger than one that a broker would send.
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
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
                    let text = format!(
                        "the peer sends a frame of {size} bytes, where a broker's has {largest} at most"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                // The byte that ends a frame is not counted in its size.
                self.left = (size as usize).saturating_add(1);
            }
        }
        Ok(())
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
        for kind in [2, 3] {
            let mut frames = Frames::new(20_000);
            frames.pass(&good).unwrap();
            assert!(frames.pass(&frame(kind, 20_001)).is_err());
        }
    }
}
