//! One request of HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The body of an answer with status 200. Of any other, the error has status and body.
pub async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        // Version 1.0, so that the body is not cut into chunks and ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), ask).await;
    let answer = answer.with_context(|| format!("{address} does not answer"))??;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{address} sends no HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{path}: {status}\n{body}");
    }
    Ok(body.to_owned())
}
