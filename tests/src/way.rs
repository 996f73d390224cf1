//! A port that leads to another, until a test cuts it, or holds what is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A port of this machine that leads to another address. It closes with the value, and its connections with it.
#[derive(Debug)]
pub struct Way {
    address: SocketAddr,
    taken: Arc<AtomicBool>,
    open: watch::Sender<bool>,
    hold: watch::Sender<bool>,
    held: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Way {
    /// A way to an address.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let taken = Arc::new(AtomicBool::new(false));
        let (open, is_open) = watch::channel(true);
        let (hold, is_held) = watch::channel(false);
        let held = Arc::new(AtomicBool::new(false));
        let gate = Gate { hold: is_held, held: Arc::clone(&held) };
        let note = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            // Connections end with the task.
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                note.store(true, Ordering::Relaxed);
                connections.spawn(carry(near, target, is_open.clone(), gate.clone()));
            }
        });
        Ok(Self { address, taken, open, hold, held, task })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether somebody went it.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// From now on nothing passes, and nobody is told: connections stay, and new ones are taken, without a word on them.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// From now on what is sent waits, until it is let pass.
    pub fn hold(&self) {
        self.hold.send_replace(true);
    }

    /// Whether something has been sent since, and waits.
    pub fn holds(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// What waits passes, and what is sent from now on.
    pub fn let_pass(&self) {
        self.hold.send_replace(false);
    }

    /// New connections get through again; those that were cut are closed.
    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all that is sent passes.
#[derive(Clone)]
struct Gate {
    hold: watch::Receiver<bool>,
    /// Whether something waits at it, or did.
    held: Arc<AtomicBool>,
}

async fn carry(
    mut near: TcpStream,
    target: SocketAddr,
    mut open: watch::Receiver<bool>,
    gate: Gate,
) -> Result<()> {
    open.wait_for(|open| *open).await?;
    let mut cut = open.clone();
    let mut far = TcpStream::connect(target).await?;
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (near.split(), far.split());
    let (there, back) =
        (pass(&mut near_read, &mut far_write, gate.clone()), pass(&mut far_read, &mut near_write, gate));
    tokio::select! {
        carried = async { tokio::try_join!(there, back) } => drop(carried?),
        cut = cut.wait_for(|open| !*open) => drop(cut?),
    }
    // One that has ended by itself passes here at once.
    open.wait_for(|open| *open).await?;
    Ok(())
}

/// One direction, until its end.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut gate: Gate,
) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if *gate.hold.borrow() {
            gate.held.store(true, Ordering::Relaxed);
        }
        gate.hold.wait_for(|hold| !*hold).await?;
        match read {
            0 => return Ok(to.shutdown().await?),
            read => to.write_all(&buffer[..read]).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::ensure;

    use super::*;
    use crate::wait::eventually;

    #[tokio::test]
    async fn what_is_held_passes_later_nothing_passes_once_cut_and_new_connections_do_once_mended() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way::to(echo.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = echo.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let connect = async || TcpStream::connect(way.address()).await.unwrap();
        let mut word = [0; 2];
        let mut first = connect().await;
        first.write_all(b"hi").await.unwrap();
        first.read_exact(&mut word).await.unwrap();
        way.hold();
        first.write_all(b"ho").await.unwrap();
        eventually(Duration::from_secs(60), "it is held", async || {
            ensure!(way.holds());
            Ok(())
        })
        .await
        .unwrap();
        let answer = first.read_exact(&mut word);
        assert!(tokio::time::timeout(Duration::from_millis(200), answer).await.is_err());
        way.let_pass();
        first.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ho");
        way.cut();
        first.write_all(b"hi").await.unwrap();
        let mut second = connect().await;
        second.write_all(b"hi").await.unwrap();
        for stream in [&mut first, &mut second] {
            let answer = stream.read_exact(&mut word);
            assert!(tokio::time::timeout(Duration::from_millis(200), answer).await.is_err());
        }
        way.mend();
        assert!(first.read_exact(&mut word).await.is_err(), "closed");
        second.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hi");
    }
}
