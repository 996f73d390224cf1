//! Consuming through the handler, against pika and raw consumers.

use anyhow::Result;
use serde_json::{Value, json};
use warren_tests::amqp::Client;
use warren_tests::ports;

use super::peers::Peers;
use super::{figure, median, say};

/// What one run of the sidecar showed.
struct Through {
    rate: f64,
    cpu_us: f64,
    rss_kib: u64,
}

/// A queue that is filled, emptied and filled again.
struct Filled<'a> {
    peers: &'a Peers,
    amqp: &'a str,
    queue: String,
    size: usize,
}

impl<'a> Filled<'a> {
    async fn new(peers: &'a Peers, amqp: &'a str, queue_type: &str, size: usize) -> Result<Self> {
        let queue = format!("bench-{queue_type}-{size}");
        Client::connect(amqp).await?.declare_durable(&queue, queue_type).await?;
        Ok(Self { peers, amqp, queue, size })
    }

    async fn fill(&self, count: u64) -> Result<()> {
        let (count, size) = (count.to_string(), self.size.to_string());
        let arguments =
            ["fill", "--amqp", self.amqp, "--queue", &self.queue, "--count", &count, "--size", &size];
        self.peers.peer(&arguments)?.json().await?;
        Ok(())
    }

    async fn through(&self, count: u64, prefetch: u16, more: &[&str]) -> Result<Through> {
        self.fill(count).await?;
        let (port, total, window) = (ports::free()?, count.to_string(), prefetch.to_string());
        let at = port.to_string();
        let mut arguments = vec!["app", "--port", &at, "--count", &total];
        if more.contains(&"--batch") {
            arguments.push("--batch");
        }
        let mut app = self.peers.peer(&arguments)?;
        let mut options = vec!["--prefetch", window.as_str()];
        options.extend(more);
        let (sidecar, _) = self.peers.sidecar(self.amqp, &self.queue, port, &options)?;
        app.json().await?;
        let cpu = sidecar.cpu_seconds()?;
        let result = app.json().await?;
        let cpu_us = (sidecar.cpu_seconds()? - cpu) * 1e6 / count as f64;
        let rate = result["rate"].as_f64().unwrap_or(0.0);
        let rss_kib = sidecar.memory_kib("VmHWM")?;
        sidecar.terminate().await?;
        Ok(Through { rate, cpu_us, rss_kib })
    }

    /// At prefetch 1 through a consumer of a few lines to the same application: what the two hops take without a sidecar.
    async fn by_hand(&self, count: u64) -> Result<f64> {
        self.fill(count).await?;
        let (port, total) = (ports::free()?.to_string(), count.to_string());
        let mut app = self.peers.peer(&["app", "--port", &port, "--count", &total])?;
        let by_hand =
            self.peers.peer(&["by-hand", "--amqp", self.amqp, "--queue", &self.queue, "--port", &port])?;
        app.json().await?;
        let result = app.json().await?;
        by_hand.terminate().await?;
        Ok(number(&result, "rate"))
    }

    async fn raw(&self, count: u64, prefetch: u16, multiple: bool) -> Result<Value> {
        self.fill(count).await?;
        let (count, prefetch) = (count.to_string(), prefetch.to_string());
        let mut arguments = vec!["raw", "--amqp", self.amqp, "--queue", &self.queue, "--count", &count];
        arguments.extend(["--prefetch", &prefetch]);
        if multiple {
            arguments.push("--multiple");
        }
        self.peers.peer(&arguments)?.json().await
    }

    async fn pika(&self, count: u64, prefetch: u16) -> Result<Value> {
        self.fill(count).await?;
        self.peers.pika(self.amqp, &self.queue, count, prefetch).await
    }
}

/// The budgets: prefetch 200 against pika, prefetch 1 against a raw consumer.
pub(super) async fn budgets(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    const MANY: u64 = 40_000;
    const FEW: u64 = 10_000;
    let queue = Filled::new(peers, amqp, "quorum", 256).await?;
    let (mut warren, mut cpu, mut rss) = (vec![], vec![], 0);
    let (mut pika, mut pika_cpu, mut raw, mut multiple) = (vec![], vec![], vec![], vec![]);
    let (mut warren_one, mut warren_one_cpu, mut raw_one, mut by_hand_one) = (vec![], vec![], vec![], vec![]);
    for round in 1..=rounds {
        say(&format!("Round {round} of {rounds}"));
        let through = queue.through(MANY, 200, &[]).await?;
        warren.push(through.rate);
        cpu.push(through.cpu_us);
        rss = rss.max(through.rss_kib);
        let peer = queue.pika(MANY, 200).await?;
        pika.push(number(&peer, "rate"));
        pika_cpu.push(number(&peer, "cpu_us"));
        let one = queue.through(FEW, 1, &[]).await?;
        warren_one.push(one.rate);
        warren_one_cpu.push(one.cpu_us);
        raw_one.push(number(&queue.raw(FEW, 1, false).await?, "rate"));
        by_hand_one.push(queue.by_hand(FEW).await?);
        raw.push(number(&queue.raw(MANY, 200, false).await?, "rate"));
        multiple.push(number(&queue.raw(MANY, 200, true).await?, "rate"));
    }
    Ok(json!({
        "warren_rate": figure(median(warren)), "warren_cpu_us": figure(median(cpu)), "warren_rss_kib": rss,
        "pika_rate": figure(median(pika)), "pika_cpu_us": figure(median(pika_cpu)),
        "raw_rate": figure(median(raw)), "raw_multiple_rate": figure(median(multiple)),
        "p1_warren_rate": figure(median(warren_one)), "p1_warren_cpu_us": figure(median(warren_one_cpu)),
        "p1_raw_rate": figure(median(raw_one)), "p1_by_hand_rate": figure(median(by_hand_one)),
    }))
}

/// Every prefetch, queue type and size, once.
pub(super) async fn matrix(peers: &Peers, amqp: &str) -> Result<Value> {
    let mut rows = Vec::new();
    for queue_type in ["quorum", "classic"] {
        for size in [256, 16 * 1024] {
            let queue = Filled::new(peers, amqp, queue_type, size).await?;
            for prefetch in [1, 10, 50, 200, 1000] {
                let count = if prefetch == 1 {
                    2_000
                } else if size > 256 {
                    10_000
                } else {
                    30_000
                };
                let through = queue.through(count, prefetch, &[]).await?;
                let raw = number(&queue.raw(count, prefetch, false).await?, "rate");
                let pika = queue.pika(count, prefetch).await?;
                // Fewer than it acknowledges at once would never come.
                let multiple = if prefetch >= 200 {
                    figure(number(&queue.raw(count, prefetch, true).await?, "rate"))
                } else {
                    Value::Null
                };
                say(&format!(
                    "{queue_type} {size} B prefetch {prefetch}: {:.0}/s, raw {raw:.0}/s, pika {:.0}/s",
                    through.rate,
                    number(&pika, "rate")
                ));
                rows.push(json!({
                    "type": queue_type, "size": size, "prefetch": prefetch,
                    "warren_rate": figure(through.rate), "warren_cpu_us": figure(through.cpu_us),
                    "warren_rss_kib": through.rss_kib, "raw_rate": figure(raw), "raw_multiple_rate": multiple,
                    "pika_rate": figure(number(&pika, "rate")), "pika_cpu_us": figure(number(&pika, "cpu_us")),
                }));
            }
        }
    }
    Ok(json!({ "rows": rows }))
}

/// Batches of 100 at prefetch 1000, against a raw consumer that acknowledges many at once.
pub(super) async fn batch(peers: &Peers, amqp: &str, rounds: usize) -> Result<Value> {
    const COUNT: u64 = 60_000;
    let queue = Filled::new(peers, amqp, "quorum", 256).await?;
    let (mut rate, mut multiple) = (vec![], vec![]);
    for round in 1..=rounds {
        say(&format!("Round {round} of {rounds}"));
        let options = ["--batch", "100", "--concurrency", "8"];
        rate.push(queue.through(COUNT, 1000, &options).await?.rate);
        multiple.push(number(&queue.raw(COUNT, 1000, true).await?, "rate"));
    }
    Ok(json!({"rate": figure(median(rate)), "raw_multiple_rate": figure(median(multiple))}))
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(0.0)
}
