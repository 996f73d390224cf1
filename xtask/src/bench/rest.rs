//! Latency, publishing, and the sidecar at rest and over time.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use warren_tests::amqp::Client;
use warren_tests::ports;

use super::peers::Peers;
use super::{figure, median, say};

async fn declared(amqp: &str, queue: &str) -> Result<()> {
    Client::connect(amqp).await?.declare_durable(queue, "quorum").await
}

/// From publish to handler, one message at a time.
pub(super) async fn latency(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    declared(amqp, "bench-latency").await?;
    let mut figures = [const { Vec::new() }; 4];
    let measure = async |raw: bool| -> Result<Value> {
        let port = ports::free()?;
        let at = port.to_string();
        let mut arguments =
            vec!["latency", "--amqp", amqp, "--queue", "bench-latency", "--count", "1000", "--port", &at];
        if raw {
            arguments.push("--raw");
        }
        let mut peer = peers.peer(&arguments)?;
        let _sidecar = if raw { None } else { Some(peers.sidecar(amqp, "bench-latency", port, &[])?) };
        peer.json().await
    };
    for round in 1..=rounds {
        say(&format!("Round {round} of {rounds}"));
        let (warren, raw) = (measure(false).await?, measure(true).await?);
        let all = [&warren["p50_us"], &warren["p99_us"], &raw["p50_us"], &raw["p99_us"]];
        for (figures, value) in figures.iter_mut().zip(all) {
            figures.push(value.as_f64().unwrap_or(0.0));
        }
    }
    let [warren_p50, warren_p99, raw_p50, raw_p99] = figures.map(|figures| figure(median(figures)));
    Ok(
        json!({"warren_p50_us": warren_p50, "warren_p99_us": warren_p99, "raw_p50_us": raw_p50, "raw_p99_us": raw_p99}),
    )
}

/// Confirmed publishes through the sidecar by 64 callers, against AMQP with 64 confirms in flight; and by one.
pub(super) async fn publish(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    declared(amqp, "bench-publish").await?;
    let client = Client::connect(amqp).await?;
    let (_sidecar, port) = peers.sidecar(amqp, "bench-publish", ports::free()?, &[])?;
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
            }
            client.purge("bench-publish").await?;
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

/// Memory at prefetch 200 over time, a steady load of messages.
pub(super) async fn soak(peers: &Peers, amqp: &str, minutes: u64) -> Result<Value> {
    declared(amqp, "bench-soak").await?;
    let port = ports::free()?;
    let at = port.to_string();
    let _app = peers.peer(&["app", "--port", &at, "--count", "1000000000000"])?;
    let (sidecar, _) = peers.sidecar(amqp, "bench-soak", port, &["--prefetch", "200"])?;
    let fill = ["fill", "--amqp", amqp, "--queue", "bench-soak", "--count", "5000", "--size", "256"];
    let until = std::time::Instant::now() + Duration::from_secs(minutes * 60);
    let mut start = 0;
    let mut messages = 0_u64;
    while std::time::Instant::now() < until {
        peers.peer(&fill)?.json().await?;
        messages += 5000;
        tokio::time::sleep(Duration::from_millis(500)).await;
        // The first messages warm up what stays.
        if messages == 50_000 {
            start = sidecar.memory_kib("VmRSS")?;
        }
    }
    let end = sidecar.memory_kib("VmRSS")?;
    let peak = sidecar.memory_kib("VmHWM")?;
    Ok(
        json!({"rss_start_kib": start, "rss_end_kib": end, "rss_peak_kib": peak, "messages": messages, "minutes": minutes}),
    )
}
