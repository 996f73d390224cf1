//! The command line.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, RangedU64ValueParser};
use clap::{Args, Parser, Subcommand};
use warren_api::names;
use warren_api::queue::{QueueSpec, QueueType, Retry};
use warren_api::sidecar::{BatchConfig, ConsumerConfig, HandlerConfig, QueueConfig, SidecarConfig};
use warren_api::worker::{DRAIN_MARGIN_SECONDS, PrefetchMode};
use warren_broker::connect::{ConnectOptions, connect};
use warren_broker::{BrokerAccess, SecretError, declare, topology};

use crate::app::{self, Ports, Signals};
use crate::config::{self, Files, Fixed, Live};
use crate::handler::endpoint::Endpoint;
use crate::otlp;

/// A kubelet kills up to a few seconds after the grace period: it counts whole seconds of a hook, gives two where none are left, and
/// takes a moment. Whoever consumed again just then would begin what is cut off.
const KILL_MARGIN: u64 = 10;
/// Seconds that a drain needs beyond the longest call.
const DRAIN_MARGIN: u64 = DRAIN_MARGIN_SECONDS.unsigned_abs() as u64;

/// What ends the program.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Consumes a RabbitMQ queue for the application beside it, over HTTP.
#[derive(Debug, Parser)]
#[command(name = "warren-sidecar", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in a pod that the operator made.
    Run(RunArgs),
    /// Run on this machine, without Kubernetes.
    Local(LocalArgs),
    /// Serve the publish API alone, beside an application that only produces.
    Publish(PublishArgs),
}

/// What a producer's sidecar is told.
#[derive(Debug, Args)]
struct PublishArgs {
    /// The broker, such as amqp://guest:guest@localhost:5672; without it the Secret's files are read.
    #[arg(long, env = "WARREN_AMQP", hide_env_values = true)]
    amqp: Option<String>,
    /// The folder of the broker Secret.
    #[arg(long, default_value_os_t = Files::default().broker)]
    broker: PathBuf,
    /// Virtual host; default: the address's or the Secret's.
    #[arg(long)]
    vhost: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, env = "WARREN_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// The pod's name.
    #[arg(long, env = "WARREN_POD_NAME", default_value = "producer")]
    pod_name: String,
    /// Port of metrics and probes.
    #[arg(long, default_value_t = names::SIDECAR_PORT)]
    admin_port: u16,
    /// Port of the publish API, on localhost.
    #[arg(long, default_value_t = names::PUBLISH_PORT)]
    local_port: u16,
}

/// What the operator sets.
#[derive(Debug, Args)]
struct RunArgs {
    /// The application's port on localhost.
    #[arg(long, env = "WARREN_HANDLER_PORT")]
    handler_port: u16,
    /// How long a drain may take.
    #[arg(long, env = "WARREN_DRAIN_TIMEOUT_SECONDS", default_value_t = 45, value_parser = seconds())]
    drain_timeout_seconds: u64,
    /// The pod's grace period: one that lives on after it was not to be ended, and consumes again; default the drain's time and 15 s.
    #[arg(long, env = "WARREN_GRACE_PERIOD_SECONDS", value_parser = seconds())]
    grace_period_seconds: Option<u64>,
    /// What a drain request must carry.
    #[arg(long, env = "WARREN_DRAIN_TOKEN", hide_env_values = true)]
    drain_token: Option<String>,
    /// The Secret that the pod mounts.
    #[arg(long, env = "WARREN_BROKER_SECRET")]
    broker_secret: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, env = "WARREN_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// The pod's name.
    #[arg(long, env = "WARREN_POD_NAME", default_value = "pod")]
    pod_name: String,
    /// The configuration file.
    #[arg(long, default_value_os_t = Files::default().config)]
    config: PathBuf,
    /// The folder of the broker Secret.
    #[arg(long, default_value_os_t = Files::default().broker)]
    broker: PathBuf,
}

/// A Worker in flags.
#[derive(Debug, Args)]
struct LocalArgs {
    /// The broker, such as amqp://guest:guest@localhost:5672. In the environment it is not seen in the process list.
    #[arg(long, env = "WARREN_AMQP", hide_env_values = true)]
    amqp: String,
    /// The queue to consume; with --config the configuration's.
    #[arg(long, required_unless_present = "config", value_parser = NonEmptyStringValueParser::new())]
    queue: Option<String>,
    /// Where the application takes messages, such as http://localhost:8080/messages.
    #[arg(long)]
    handler: String,
    /// Declare the queue with its retry and dead-letter queues, as a Queue with defaults would.
    #[arg(long)]
    declare: bool,
    /// With --declare: a classic queue instead of a quorum queue.
    #[arg(long)]
    classic: bool,
    /// Messages held unacknowledged at most; default 1, or as many as --batch.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2000))]
    prefetch: Option<u16>,
    /// Handler calls at once; default prefetch.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2000))]
    concurrency: Option<u16>,
    /// Seconds after which a call counts as failed.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86400))]
    timeout_seconds: u32,
    /// Seconds that a failed message waits before each further attempt, such as 5,60,600. Without a value: no retries, the first
    /// failure dead-letters.
    #[arg(long, num_args = 0..=1, value_delimiter = ',', default_values_t = [5, 60, 600])]
    retry_delays_seconds: Vec<u32>,
    /// Attempts in all.
    #[arg(long, default_value_t = 24)]
    max_attempts: u32,
    /// Several messages in one POST: at most so many.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2000))]
    batch: Option<u16>,
    /// With --batch: how long the first message waits for others.
    #[arg(long, default_value_t = 20)]
    batch_wait_milliseconds: u32,
    /// A header's name, or routing-key: same value, one at a time, in order.
    #[arg(long)]
    ordering_key: Option<String>,
    /// The window follows the load; --prefetch is its ceiling.
    #[arg(long)]
    auto_prefetch: bool,
    /// Send the body of a 2xx to the message's reply_to.
    #[arg(long)]
    reply: bool,
    /// Dead-letter messages with a larger body.
    #[arg(long)]
    max_body_bytes: Option<u64>,
    /// How long Ctrl-C waits for what runs; default the time-out and 15 s.
    #[arg(long, value_parser = seconds())]
    drain_timeout_seconds: Option<u64>,
    /// A configuration file as a pod gets it; it replaces the flags about queue and consuming.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Port of metrics, probes and drain; 0 picks a free one.
    #[arg(long, default_value_t = names::SIDECAR_PORT)]
    admin_port: u16,
    /// Port for the application; 0 picks a free one.
    #[arg(long, default_value_t = names::PUBLISH_PORT)]
    local_port: u16,
    /// error, warn, info, debug or trace.
    #[arg(long, env = "WARREN_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// What a person should read.
    pub async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Run(args) => run(args).await,
            Command::Local(args) => local(args).await,
            Command::Publish(args) => publish(args).await,
        }
    }
}

async fn run(args: RunArgs) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    crate::logging::start(&args.log_level);
    let longest_call_seconds = longest_call_seconds(args.drain_timeout_seconds);
    let files = Files {
        config: args.config,
        broker: args.broker,
        secret: args.broker_secret,
        pod: Some(args.pod_name.clone()),
        longest_call_seconds,
    };
    let live = files.watch()?;
    let path = live.config.borrow().handler.path.clone();
    let endpoint = Endpoint::local(args.handler_port, &path)?;
    let fixed = Fixed {
        instance: args.pod_name,
        drain_timeout: Duration::from_secs(args.drain_timeout_seconds),
        grace_period: grace_period(args.grace_period_seconds, args.drain_timeout_seconds),
        drain_token: args.drain_token.filter(|token| !token.is_empty()),
        spans: spans(),
    };
    Ok(app::run(signals, live, fixed, endpoint, Ports::pod()).await?)
}

/// Seconds that can be added to any moment.
fn seconds() -> RangedU64ValueParser {
    clap::value_parser!(u64).range(..=u64::from(u32::MAX))
}

/// Longest time-out of a handler call that such a drain leaves room for.
fn longest_call_seconds(drain: u64) -> u32 {
    let seconds = drain.saturating_sub(DRAIN_MARGIN).max(1);
    seconds.try_into().unwrap_or(u32::MAX)
}

/// How long a pod may live after the begin of a drain.
fn grace_period(said: Option<u64>, drain: u64) -> Duration {
    Duration::from_secs(said.unwrap_or(drain + DRAIN_MARGIN) + KILL_MARGIN)
}

async fn local(args: LocalArgs) -> Result<(), Failure> {
    crate::logging::start(&args.log_level);
    let config = local_config(&args)?;
    let access = access(&args.amqp, config.queue.vhost.as_deref())?;
    let mut endpoint = Endpoint::parse(&args.handler)?;
    if args.config.is_some() {
        endpoint = endpoint.with_path(&config.handler.path)?;
    }
    if args.declare {
        declare_queue(&access, &config).await?;
    }
    let drain =
        args.drain_timeout_seconds.unwrap_or(u64::from(config.handler.timeout_seconds) + DRAIN_MARGIN);
    let fixed = Fixed {
        instance: "local".to_owned(),
        drain_timeout: Duration::from_secs(drain),
        grace_period: grace_period(None, drain),
        drain_token: None,
        spans: spans(),
    };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ports = Ports { admin: (here, args.admin_port).into(), local: (here, args.local_port).into() };
    tracing::info!(queue = %config.queue.name, handler = %endpoint.url(), broker = %access.address(), "local mode; Ctrl-C ends it");
    Ok(app::run(Signals::listen()?, Live::fixed(config, access), fixed, endpoint, ports).await?)
}

/// Where the environment wants spans to go. A sidecar that cannot obey says so and works without.
fn spans() -> Option<otlp::Config> {
    otlp::Config::from_variables(|name| std::env::var(name).ok()).unwrap_or_else(|error| {
        tracing::error!(%error, "no spans are exported");
        None
    })
}

/// A URI of the command line; `vhost` wins over its own, as in a pod over the Secret's.
fn access(uri: &str, vhost: Option<&str>) -> Result<BrokerAccess, Failure> {
    let secret = BTreeMap::from([("uri".to_owned(), uri.as_bytes().to_vec())]);
    BrokerAccess::parse(&secret, vhost).map_err(|error| match error {
        SecretError::Invalid { problem, .. } => format!("--amqp is not usable: {problem}").into(),
        other => other.into(),
    })
}

async fn publish(args: PublishArgs) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    crate::logging::start(&args.log_level);
    let access = match &args.amqp {
        Some(uri) => config::fixed_access(access(uri, args.vhost.as_deref())?),
        None => config::watch_access(args.broker, args.vhost)?,
    };
    let mut ports = Ports::pod();
    ports.admin.set_port(args.admin_port);
    ports.local.set_port(args.local_port);
    Ok(app::publish_only(signals, access, &args.pod_name, ports).await?)
}

fn local_config(args: &LocalArgs) -> Result<SidecarConfig, Failure> {
    if let Some(path) = &args.config {
        return Ok(config::read_config(path)?);
    }
    let prefetch = args.prefetch.or(args.batch).unwrap_or(1);
    if args.batch.is_some_and(|batch| batch > prefetch) {
        return Err("--batch cannot exceed --prefetch: no more messages are held at once. Raise --prefetch or lower --batch".into());
    }
    if args.reply && args.batch.is_some() {
        return Err(
            "--reply answers one message and cannot be combined with --batch: leave one of them out".into()
        );
    }
    let endpoint = Endpoint::parse(&args.handler)?;
    let queue_type = if args.classic { QueueType::Classic } else { QueueType::Quorum };
    Ok(SidecarConfig {
        namespace: "local".to_owned(),
        worker: "local".to_owned(),
        secret: None,
        queue: QueueConfig {
            name: args.queue.clone().unwrap_or_default(),
            queue_type,
            vhost: None,
            retry_delays_seconds: args.retry_delays_seconds.clone(),
            max_attempts: args.max_attempts,
            consumer_timeout_seconds: None,
        },
        handler: HandlerConfig {
            path: endpoint.path().to_owned(),
            timeout_seconds: args.timeout_seconds,
            reply: args.reply,
            max_body_bytes: args.max_body_bytes,
            batch: args.batch.map(|max_messages| BatchConfig {
                max_messages,
                max_wait_milliseconds: args.batch_wait_milliseconds,
            }),
        },
        consumer: ConsumerConfig {
            prefetch,
            concurrency: args.concurrency.unwrap_or(prefetch).min(prefetch),
            paused: false,
            prefetch_mode: if args.auto_prefetch { PrefetchMode::Auto } else { PrefetchMode::Fixed },
            ordering_key: args.ordering_key.clone(),
            only_pod: None,
        },
    })
}

/// Declares a configuration's queue with its retry and dead-letter queues, as a Queue with defaults would.
///
/// # Errors
/// What a person should read.
pub async fn declare_queue(access: &BrokerAccess, config: &SidecarConfig) -> Result<(), Failure> {
    let delays = config
        .queue
        .retry_delays_seconds
        .iter()
        .map(|delay| i32::try_from(*delay))
        .collect::<Result<_, _>>()?;
    let spec = QueueSpec {
        queue_type: config.queue.queue_type,
        retry: Retry { delays_seconds: delays, max_attempts: i32::try_from(config.queue.max_attempts)? },
        ..QueueSpec::default()
    };
    let connection = connect(access, &ConnectOptions::named("warren-sidecar declare")).await?;
    let channel = connection.create_channel().await?;
    declare::declare(&channel, &topology::plan(&config.queue.name, &spec)).await?;
    connection.close(200, "declared".into()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(flags: &[&str]) -> Result<SidecarConfig, Failure> {
        let line =
            ["warren-sidecar", "local", "--amqp", "amqp://h", "--queue", "q", "--handler", "http://h/"];
        match Cli::try_parse_from(line.iter().chain(flags))?.command {
            Command::Local(args) => local_config(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_prefetch_has_room_for_a_batch_or_the_batch_is_refused() {
        for (flags, prefetch, batch) in [
            (&[][..], 1, None),
            (&["--batch", "100"], 100, Some(100)),
            (&["--batch", "100", "--prefetch", "200"], 200, Some(100)),
        ] {
            let config = config_of(flags).unwrap();
            assert_eq!(config.consumer.prefetch, prefetch);
            assert_eq!(config.handler.batch.map(|batch| batch.max_messages), batch);
        }
        let both = config_of(&["--batch", "100", "--reply"]).unwrap_err();
        assert!(both.to_string().contains("--reply answers one message"), "{both}");
        let refused = config_of(&["--batch", "100", "--prefetch", "10"]).unwrap_err();
        assert!(refused.to_string().contains("--prefetch"), "{refused}");
    }

    #[test]
    fn retry_delays_are_the_defaults_or_those_of_the_flag_and_none_where_it_has_no_value() {
        for (flags, delays) in [
            (&[][..], &[5, 60, 600][..]),
            (&["--retry-delays-seconds", "2,30"], &[2, 30]),
            (&["--retry-delays-seconds", "2", "--retry-delays-seconds=30"], &[2, 30]),
            (&["--retry-delays-seconds"], &[]),
            (&["--retry-delays-seconds", "--declare"], &[]),
        ] {
            assert_eq!(config_of(flags).unwrap().queue.retry_delays_seconds, delays, "{flags:?}");
        }
    }

    #[test]
    fn a_virtual_host_wins_over_that_of_the_uri() {
        assert_eq!(access("amqp://u:p@h/a", Some("b")).unwrap().vhost(), "b");
        assert_eq!(access("amqp://u:p@h/a", None).unwrap().vhost(), "a");
    }
}
