//! A sidecar in this process, between a vhost of a real broker and an application of the test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use warren_api::queue::QueueType;
use warren_api::sidecar::{ConsumerConfig, HandlerConfig, QueueConfig, SidecarConfig};
use warren_api::worker::PrefetchMode;
use warren_broker::BrokerAccess;
use warren_broker::lapin::BasicProperties;
use warren_sidecar::app::{Ports, Sidecar};
use warren_sidecar::config::{Files, Fixed, Live};
use warren_sidecar::handler::endpoint::Endpoint;
use warren_sidecar::inbox::Inbox;
use warren_tests::amqp::Client;
use warren_tests::app::App;
use warren_tests::broker::each_release::OfRelease;
use warren_tests::broker::{Broker, Options, Version, Vhost};
use warren_tests::wait::eventually;

/// How long anything may take on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The queue of every test.
pub const QUEUE: &str = "orders";

/// A vhost on a broker that tests share.
pub struct Place {
    pub broker: Arc<Broker>,
    pub vhost: String,
}

/// A vhost of its own on the shared broker.
impl OfRelease for Place {
    async fn of_release(version: Version, test: &str) -> Result<Self> {
        let Vhost { broker, name } = Vhost::on(version, test).await?;
        Ok(Self { broker, vhost: name })
    }
}

impl Place {
    /// A broker of its own, for faults.
    pub async fn own(options: Options) -> Result<Self> {
        Ok(Self { broker: Arc::new(Broker::start(options).await?), vhost: "/".to_owned() })
    }

    pub fn uri(&self) -> String {
        self.broker.uri(&self.vhost)
    }

    /// The broker is well and a classic queue is there, but its process does nothing until it is told to resume.
    pub async fn suspend(&self, queue: &str) -> Result<()> {
        self.process(queue, "suspend").await
    }

    /// After [`suspend`](Self::suspend).
    pub async fn resume(&self, queue: &str) -> Result<()> {
        self.process(queue, "resume").await
    }

    async fn process(&self, queue: &str, what: &str) -> Result<()> {
        let found =
            format!("rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>))", self.vhost);
        let done = self.broker.eval(&format!("{{ok, Q}} = {found}, sys:{what}(amqqueue:get_pid(Q))")).await?;
        ensure!(done.contains("{ok, ok}"), "{what}: {done}");
        Ok(())
    }

    /// A user of this vhost that configures nothing, and may write to and read what these patterns match; its URI.
    pub async fn user(&self, name: &str, write: &str, read: &str) -> Result<String> {
        let name = format!("{name}-{}", self.vhost);
        self.broker.user(&name, "secret").await?;
        self.broker.permissions(&name, &self.vhost, "^$", write, read).await?;
        let uri = self.uri();
        let (_, rest) = uri.split_once('@').unwrap();
        Ok(format!("amqp://{name}:secret@{rest}"))
    }

    pub async fn client(&self) -> Result<Client> {
        Client::connect(&self.uri()).await
    }

    /// Declares the queue of a configuration, as the operator would.
    pub async fn declare(&self, config: &SidecarConfig) -> Result<()> {
        let access = BrokerAccess::from_uri(&self.uri())?;
        warren_sidecar::cli::declare_queue(&access, config).await.map_err(|error| anyhow!(error))
    }

    /// Declares the queue and starts a sidecar that hands its messages to an application.
    pub async fn sidecar(&self, config: SidecarConfig, port: u16) -> Result<Running> {
        self.declare(&config).await?;
        Running::start(config, BrokerAccess::from_uri(&self.uri())?, port).await
    }
}

/// The default Worker of a test: a quorum queue with one rung of a second.
pub fn config() -> SidecarConfig {
    SidecarConfig {
        namespace: "shop".to_owned(),
        worker: "invoices".to_owned(),
        secret: None,
        queue: QueueConfig {
            name: QUEUE.to_owned(),
            queue_type: QueueType::Quorum,
            vhost: None,
            retry_delays_seconds: vec![1],
            max_attempts: 2,
            consumer_timeout_seconds: None,
        },
        handler: HandlerConfig {
            path: "/messages".to_owned(),
            timeout_seconds: 10,
            reply: false,
            max_body_bytes: None,
            batch: None,
        },
        consumer: ConsumerConfig {
            prefetch: 1,
            concurrency: 1,
            paused: false,
            prefetch_mode: PrefetchMode::Fixed,
            ordering_key: None,
            only_pod: None,
        },
    }
}

/// A sidecar that runs.
pub struct Running {
    pub admin: SocketAddr,
    pub local: SocketAddr,
    pub config: watch::Sender<Arc<SidecarConfig>>,
    pub access: watch::Sender<Arc<BrokerAccess>>,
    inbox: tokio::sync::mpsc::UnboundedSender<Inbox>,
    task: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts one that is given its configuration live.
    pub async fn start(config: SidecarConfig, access: BrokerAccess, port: u16) -> Result<Self> {
        Self::exporting(config, access, port, None).await
    }

    /// One that exports spans too.
    pub async fn exporting(
        config: SidecarConfig,
        access: BrokerAccess,
        port: u16,
        spans: Option<warren_sidecar::otlp::Config>,
    ) -> Result<Self> {
        let (config, configs) = watch::channel(Arc::new(config));
        let (access, accesses) = watch::channel(Arc::new(access));
        Self::of(Live { config: configs, access: accesses }, (config, access), port, spans).await
    }

    /// One that reads its configuration and its Secret from files, as in a pod.
    pub async fn reading(files: Files, port: u16) -> Result<Self> {
        let live = files.watch()?;
        // Nobody listens to these: the files are what counts.
        let config = watch::Sender::new(live.config.borrow().clone());
        let access = watch::Sender::new(live.access.borrow().clone());
        Self::of(live, (config, access), port, None).await
    }

    async fn of(
        live: Live,
        (config, access): (watch::Sender<Arc<SidecarConfig>>, watch::Sender<Arc<BrokerAccess>>),
        port: u16,
        spans: Option<warren_sidecar::otlp::Config>,
    ) -> Result<Self> {
        let endpoint = Endpoint::local(port, &live.config.borrow().handler.path)?;
        let fixed = Fixed {
            instance: "test".to_owned(),
            drain_timeout: Duration::from_secs(20),
            grace_period: Duration::from_secs(35),
            drain_token: Some("token".to_owned()),
            spans,
        };
        let free: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let sidecar = Sidecar::bind(live, fixed, endpoint, Ports { admin: free, local: free }).await?;
        let Ports { admin, local } = sidecar.ports();
        let inbox = sidecar.inbox();
        let task = Some(tokio::spawn(sidecar.run()));
        Ok(Self { admin, local, config, access, inbox, task })
    }

    /// The value of a metric, with the labels that must be on its line.
    pub async fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = request(self.admin, "GET", "/metrics", &[], b"").await?.text();
        let line = text
            .lines()
            .find(|line| {
                line.starts_with(name) && line[name.len()..].starts_with('{') && line.contains(labels)
            })
            .with_context(|| format!("no metric {name} {labels} in\n{text}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    /// Waits for a metric to have a value.
    pub async fn until(&self, name: &str, labels: &str, value: f64) -> Result<()> {
        eventually(PATIENCE, &format!("{name}{{{labels}}} is {value}"), async || {
            let now = self.metric(name, labels).await?;
            ensure!((now - value).abs() < 0.5, "it is {now}");
            Ok(())
        })
        .await
    }

    /// Waits until the first message is at the application and another one is held besides.
    pub async fn one_runs_and_one_waits(&self, app: &App) -> Result<()> {
        eventually(PATIENCE, "one runs and one waits", async || {
            ensure!(app.calls().len() == 1);
            ensure!(self.metric("warren_sidecar_unsettled", "").await? > 1.5);
            Ok(())
        })
        .await
    }

    /// Waits until so many deliveries were settled with an outcome.
    pub async fn settled(&self, outcome: &str, count: u32) -> Result<()> {
        self.until("warren_sidecar_outcomes_total", &format!("outcome=\"{outcome}\""), f64::from(count)).await
    }

    /// Changes the configuration, as the operator would.
    pub fn configure(&self, change: impl FnOnce(&mut SidecarConfig)) {
        self.config.send_modify(|config| change(Arc::make_mut(config)));
    }

    /// SIGTERM, and its end.
    pub async fn terminate(mut self) -> Result<()> {
        self.inbox.send(Inbox::Terminate).ok().context("it runs")?;
        let task = self.task.take().context("it runs")?;
        tokio::time::timeout(PATIENCE, task).await??;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// An answer of the sidecar's servers.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One HTTP request on a connection of its own. One that is not answered fails, and with it the test that would hang.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let answer = tokio::time::timeout(PATIENCE, exchange(address, method, path, headers, body)).await;
    answer.with_context(|| format!("{method} {path} is not answered"))?
}

async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut stream = TcpStream::connect(address).await?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    // A server that refuses a body need not read it.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no answer")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Response { status, head, body: answer[end + 4..].to_vec() })
}

/// Waits for the one message of a queue.
pub async fn message_of(client: &Client, queue: &str) -> Result<(Vec<u8>, BasicProperties)> {
    eventually(PATIENCE, &format!("a message in {queue}"), async || {
        client.take(queue).await?.context("none yet")
    })
    .await
}

/// A message's headers that are text or numbers, as text.
pub fn headers_of(properties: &BasicProperties) -> BTreeMap<String, String> {
    use warren_broker::lapin::types::AMQPValue;
    let table = properties.headers().clone().unwrap_or_default();
    table
        .inner()
        .iter()
        .filter_map(|(name, value)| {
            let value = match value {
                AMQPValue::LongString(text) => text.to_string(),
                AMQPValue::LongInt(number) => number.to_string(),
                _ => return None,
            };
            Some((name.to_string(), value))
        })
        .collect()
}
