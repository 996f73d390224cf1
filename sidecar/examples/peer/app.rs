//! The smallest HTTP server that can take messages: it reads a head and a body, and says 200.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::Failure;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Serves until so many messages came.
pub async fn run(port: u16, count: u64, batch: bool, delay: Duration) -> Result<Value, Failure> {
    let (sender, mut got) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    tokio::spawn(serve(
        listener,
        Arc::new(move |body: &[u8]| {
            let messages = if batch { body.iter().filter(|byte| **byte == b'\n').count() } else { 1 };
            // The end of the measurement is the end of the process.
            let _ = sender.send(messages as u64);
        }),
        delay,
    ));
    let mut total = 0;
    let mut first = None;
    while total < count {
        let Some(messages) = got.recv().await else { break };
        total += messages;
        if first.is_none() {
            first = Some(Instant::now());
            println!("{}", json!({"first": true}));
        }
    }
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    println!("{}", json!({"count": total, "seconds": seconds, "rate": total as f64 / seconds}));
    // The last answers are on their way; whoever measures ends this process.
    std::future::pending::<()>().await;
    Ok(Value::Null)
}

/// Serves each connection; `got` sees each body, and each answer takes a while.
pub async fn serve<F: Fn(&[u8]) + Send + Sync + 'static>(
    listener: TcpListener,
    got: Arc<F>,
    delay: Duration,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let got = Arc::clone(&got);
        tokio::spawn(async move {
            // A client that hangs up ends its own connection only.
            let _ = connection(stream, &*got, delay).await;
        });
    }
}

async fn connection(stream: TcpStream, got: &impl Fn(&[u8]), delay: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let head = loop {
            if let Some(end) = find(&buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if read_some(&stream, &mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let length = content_length(buffer.get(..head).unwrap_or_default());
        while buffer.len() < head + length {
            if read_some(&stream, &mut buffer).await? == 0 {
                return Ok(());
            }
        }
        got(buffer.get(head..head + length).unwrap_or_default());
        buffer.drain(..head + length);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        write_all(&stream, OK).await?;
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn content_length(head: &[u8]) -> usize {
    let text = String::from_utf8_lossy(head);
    text.lines()
        .find_map(|line| line.strip_prefix("content-length: ").and_then(|value| value.trim().parse().ok()))
        .unwrap_or(0)
}

/// Appends what has come; 0 at the end.
pub async fn read_some(stream: &TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut chunk = [0; 4 * 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut chunk) {
            Ok(read) => {
                buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
                return Ok(read);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes everything.
pub async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
