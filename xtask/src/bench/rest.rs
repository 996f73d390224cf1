//! Latency, publishing, and the sidecar at rest and over time.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use warren_tests::amqp::Client;
use warren_tests::ports;
use warren_tests::wait::eventually;

use super::peers::Peers;
use super::{figure, median, say};

/// How long a sidecar may take to listen.
const START: Duration = Duration::from_secs(10);

async fn declared(amqp: &str, queue: &str) -> Result<()> {
    Client::connect(amqp).await?.declare_durable(queue, "quorum").await
}

/// From publish to handler, one message at a time: through the sidecar, and through a consumer of a few lines in its place.
pub(super) async fn latency(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    const QUEUE: &str = "bench-latency";
    const SHARES: [&str; 3] = ["p50_us", "p99_us", "p999_us"];
    declared(amqp, QUEUE).await?;
    let measure = async |raw: bool| -> Result<Value> {
        let port = ports::free()?;
        let at = port.to_string();
        let arguments = ["latency", "--amqp", amqp, "--queue", QUEUE, "--count", "2000", "--port", &at];
        let mut peer = peers.peer(&arguments)?;
        let between = if raw {
            peers.peer(&["by-hand", "--amqp", amqp, "--queue", QUEUE, "--port", &at])?
        } else {
            peers.sidecar(amqp, QUEUE, port, &[])?.0
        };
        let result = peer.json().await?;
        between.terminate().await?;
        Ok(result)
    };
    let mut figures = [const { Vec::new() }; 6];
    for round in 1..=rounds {
        say(&format!("Round {round} of {rounds}"));
        let (warren, raw) = (measure(false).await?, measure(true).await?);
        let all = SHARES.map(|share| &warren[share]).into_iter().chain(SHARES.map(|share| &raw[share]));
        for (figures, value) in figures.iter_mut().zip(all) {
            figures.push(value.as_f64().unwrap_or(0.0));
        }
    }
    let [warren_p50, warren_p99, warren_p999, raw_p50, raw_p99, raw_p999] =
        figures.map(|figures| figure(median(figures)));
    Ok(json!({
        "warren_p50_us": warren_p50, "warren_p99_us": warren_p99, "warren_p999_us": warren_p999,
        "raw_p50_us": raw_p50, "raw_p99_us": raw_p99, "raw_p999_us": raw_p999,
    }))
}

/// Confirmed publishes through the sidecar by 64 callers, against AMQP with 64 confirms in flight; and by one.
pub(super) async fn publish(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    declared(amqp, "bench-publish").await?;
    let client = Client::connect(amqp).await?;
    let (_sidecar, port) = peers.sidecar(amqp, "bench-publish", ports::free()?, &[])?;
    let listening = async || Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await?);
    eventually(START, "the sidecar listens", listening).await?;
    let port = port.to_string();
    let mut figures = [const { Vec::new() }; 4];
    for round in 1..=rounds {
        say(&format!("Round {round} of {rounds}"));
        for (place, (callers, count)) in [("64", "20000"), ("1", "1000")].into_iter().enumerate() {
            let common = ["--queue", "bench-publish", "--count", count, "--callers", callers];
            let post: Vec<&str> = ["post", "--port", &port].into_iter().chain(common).collect();
            let raw: Vec<&str> = ["publish", "--amqp", amqp].into_iter().chain(common).collect();
            for (offset, arguments) in [post, raw].into_iter().enumerate() {
                let result = peers.peer(&arguments)?.json().await?;
                if let Some(figures) = figures.get_mut(place * 2 + offset) {
                    figures.push(result["rate"].as_f64().unwrap_or(0.0));
                }
                // Each begins with an empty queue.
                client.purge("bench-publish").await?;
            }
        }
    }
    let [warren, raw, warren_one, raw_one] = figures.map(|figures| figure(median(figures)));
    Ok(
        json!({"warren_rate": warren, "raw_rate": raw, "warren_rate_one_caller": warren_one, "raw_rate_one_caller": raw_one}),
    )
}

/// At rest for a minute, connected and consuming.
pub(super) async fn idle(peers: &Peers, amqp: &str) -> Result<Value> {
    declared(amqp, "bench-idle").await?;
    let port = ports::free()?;
    let at = port.to_string();
    let _app = peers.peer(&["app", "--port", &at, "--count", "1"])?;
    let (sidecar, _) = peers.sidecar(amqp, "bench-idle", port, &[])?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    say("A minute at rest");
    let cpu = sidecar.cpu_seconds()?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let percent = (sidecar.cpu_seconds()? - cpu) / 60.0 * 100.0;
    Ok(json!({"rss_kib": sidecar.memory_kib("VmRSS")?, "cpu_percent": figure(percent)}))
}

/// Memory at prefetch 200 over time. `paced`: a slow handler, so that the window is full all the time at 200 messages a
/// second, which leaves the machine to others; else bursts as fast as they go.
pub(super) async fn soak(peers: &Peers, amqp: &str, minutes: u64, paced: bool) -> Result<Value> {
    /// Messages published at once, and the fewest that wait.
    const LUMP: u32 = 5000;
    /// What stays is warm after so long.
    const WARM: Duration = Duration::from_secs(60);
    declared(amqp, "bench-soak").await?;
    let client = Client::connect(amqp).await?;
    let port = ports::free()?;
    let at = port.to_string();
    let delay = if paced { "1000" } else { "0" };
    let _app =
        peers.peer(&["app", "--port", &at, "--count", "1000000000000", "--delay-milliseconds", delay])?;
    let (sidecar, _) = peers.sidecar(amqp, "bench-soak", port, &["--prefetch", "200"])?;
    let begin = Instant::now();
    let mut start = None;
    let mut messages = 0_u64;
    while begin.elapsed() < Duration::from_secs(minutes * 60) {
        if client.ready("bench-soak").await?.is_some_and(|ready| ready < LUMP) {
            messages += client.publish_all("bench-soak", (0..LUMP).map(|_| vec![b'x'; 256])).await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        if start.is_none() && begin.elapsed() >= WARM {
            start = Some(sidecar.memory_kib("VmRSS")?);
        }
    }
    let end = sidecar.memory_kib("VmRSS")?;
    let peak = sidecar.memory_kib("VmHWM")?;
    let cpu = sidecar.cpu_seconds()? / begin.elapsed().as_secs_f64() * 100.0;
    Ok(json!({
        "rss_start_kib": start.unwrap_or(end), "rss_end_kib": end, "rss_peak_kib": peak, "messages": messages,
        "minutes": minutes, "paced": paced, "cpu_percent": figure(cpu),
    }))
}
