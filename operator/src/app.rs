//! Puts the parts together: one server, and a set of controllers for each scope.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tower::filter::FilterLayer;
use tower::timeout::TimeoutLayer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::args::{Args, LogFormat};
use crate::brokers::{Brokers, LaneOptions};
use crate::context::{SIDECARS_LEARN, Shutdown};
use crate::leader::{Elector, Leadership};
use crate::metrics::Metrics;
use crate::scaler::record::Records;
use crate::scope;
use crate::secrets::Secrets;
use crate::server::{Telling, serve};

/// How long a connection to the API server may say nothing while an answer is due: longer than a watch.
const SILENCE: Duration = Duration::from_secs(100);
/// How long an answer of the API server may take to begin: what waits for one holds places and locks that others need.
const ANSWER: Duration = Duration::from_secs(30);
/// How long controllers get to end what they are doing.
const GRACE: Duration = Duration::from_secs(5);
/// How long a quorum queue may hold back a message that it no longer counts: twice three minutes, and some.
const HELD_BACK: Duration = Duration::from_secs(380);

/// Parts that all scopes share.
pub(crate) struct Shared {
    pub(crate) args: Args,
    pub(crate) client: Client,
    pub(crate) reporter: Reporter,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) brokers: Arc<Brokers>,
    pub(crate) records: Arc<Records>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) shutdown: Shutdown,
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// No API server to speak to, the listening address is taken, or the leadership was lost.
pub async fn run(args: Args) -> anyhow::Result<()> {
    init_logs(args.log_format);
    let config =
        Config::infer().await.context("no Kubernetes API server: run in a pod, or set KUBECONFIG")?;
    let leadership = Leadership::none();
    let client = client(config, &leadership)?;
    let (end, shutdown) = Shutdown::channel();
    let shared = Shared::new(args, client, shutdown.clone(), &leadership)?;
    let ready = Arc::new(AtomicBool::new(false));
    let telling = Telling {
        metrics: shared.metrics.clone(),
        brokers: shared.brokers.clone(),
        records: shared.records.clone(),
        leadership: leadership.clone(),
        ready: ready.clone(),
    };
    let mut server = tokio::spawn(serve(shared.args.listen, telling, shutdown));
    let elector = shared.elector(leadership.clone());
    let mut work = std::pin::pin!(lead(&shared, &elector, &leadership, &ready));
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        served = &mut server => served?.context("serving failed"),
        () = ended_by_signal() => {
            tracing::info!("ending");
            end.send_replace(true);
            // What has begun may end; then a standby may lead.
            tokio::time::timeout(GRACE, &mut work).await.unwrap_or_else(|_| {
                tracing::warn!("some work did not end in time");
                Ok(())
            })
        }
    };
    if shared.args.leader_elect {
        elector.release().await;
    }
    outcome
}

/// A client whose writes each pass the guard.
fn client(mut config: Config, leadership: &Leadership) -> anyhow::Result<Client> {
    // An API server that dies between a request and its answer leaves a connection that never ends by itself.
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // The library would send again behind the guard, and what may be out of date by then. Whoever asked asks anew.
    config.default_retry = false;
    let guard = leadership.clone();
    Ok(ClientBuilder::try_from(config)
        .context("the API server's address or credentials are not usable")?
        .with_layer(&TimeoutLayer::new(ANSWER))
        .with_layer(&FilterLayer::new(move |request| guard.guard(request)))
        .build())
}

/// Waits for the leadership and works for as long as it lasts.
async fn lead(
    shared: &Shared,
    elector: &Elector,
    leadership: &Leadership,
    ready: &AtomicBool,
) -> anyhow::Result<()> {
    let lease = if shared.args.leader_elect {
        // A standby is as ready as it can be.
        ready.store(true, Ordering::Relaxed);
        tracing::info!("standing by");
        let lease = tokio::select! {
            lease = elector.acquire() => lease,
            () = shared.shutdown.clone().cancelled() => {
                elector.withdraw().await;
                return Ok(());
            }
        };
        ready.store(false, Ordering::Relaxed);
        Some(lease)
    } else {
        leadership.permanent();
        None
    };
    tracing::info!("leading");
    let mut helpers = JoinSet::new();
    helpers.spawn(shared.secrets.clone().poll());
    let work = work(shared, ready);
    let kept = async {
        match lease {
            Some(lease) => elector.keep(lease).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        worked = work => worked,
        () = kept => anyhow::bail!("the leadership was lost: ending at once, another replica leads"),
    }
}

/// Works in every scope as soon as its own caches are filled: a namespace that cannot be read keeps no other one waiting.
async fn work(shared: &Shared, ready: &AtomicBool) -> anyhow::Result<()> {
    // Each is registered before the first one starts: what is not known yet may be the others' concern.
    let start = |scope: Option<String>| scope::start(shared, scope.clone(), shared.brokers.register(scope));
    let mut starting: FuturesUnordered<_> = shared.args.scopes().into_iter().map(start).collect();
    let mut running = JoinSet::new();
    let mut ended = std::pin::pin!(shared.shutdown.clone().cancelled());
    loop {
        tokio::select! {
            Some(started) = starting.next() => {
                running.spawn(started?);
                if !ready.swap(true, Ordering::Relaxed) {
                    // One that waits for its caches repairs and scales nothing.
                    shared.metrics.leads(true);
                    tracing::info!("ready");
                }
            }
            Some(_) = running.join_next() => {
                anyhow::ensure!(shared.shutdown.is_cancelled(), "a controller ended by itself");
                break;
            }
            () = &mut ended => break,
        }
    }
    while running.join_next().await.is_some() {}
    Ok(())
}

impl Shared {
    fn new(args: Args, client: Client, shutdown: Shutdown, leadership: &Leadership) -> anyhow::Result<Self> {
        let identity = args.identity();
        let options = LaneOptions {
            connection_name: format!("warren-operator {identity}"),
            drift_check: args.drift_check(),
            sidecars_learn: SIDECARS_LEARN,
            held_back: HELD_BACK,
            leadership: leadership.clone(),
        };
        let reporter = Reporter { controller: "warren-operator".to_owned(), instance: Some(identity) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            reporter,
            metrics: Arc::new(Metrics::new()?),
            brokers: Arc::new(Brokers::new(options)),
            secrets: Arc::new(Secrets::new(client.clone())),
            records: Arc::default(),
            shutdown,
            client,
            args,
        })
    }

    fn elector(&self, leadership: Leadership) -> Elector {
        let namespace = self.args.namespace.as_deref().unwrap_or_else(|| self.client.default_namespace());
        Elector::new(self.client.clone(), namespace, self.args.identity(), leadership)
    }
}

fn init_logs(format: LogFormat) {
    let filter = EnvFilter::builder().parse_lossy(log_filter(std::env::var("RUST_LOG").ok()));
    let logs = tracing_subscriber::registry().with(filter).with(filter_fn(warren_broker::may_be_logged));
    // A second initialisation, which only tests do, leaves the first.
    let _ = match format {
        LogFormat::Json => logs.with(fmt::layer().json().flatten_event(true)).try_init(),
        LogFormat::Text => logs.with(fmt::layer().with_ansi(std::io::stdout().is_terminal())).try_init(),
    };
}

/// What is logged, where `RUST_LOG` is `wanted`.
fn log_filter(wanted: Option<String>) -> String {
    let wanted = wanted.filter(|wanted| !wanted.is_empty());
    let mut wanted = wanted.unwrap_or_else(|| "info,kube=warn".to_owned());
    // The library logs each refusal as an error of its own; here refusals are conditions.
    if !wanted.contains("lapin") {
        wanted.push_str(",lapin=off");
    }
    // It warns with the whole text of an answer that it cannot read: a list of all tenants' objects, or a Secret.
    wanted.push_str(",kube_client=error");
    // It warns of each list that is refused; here that is told once a minute.
    wanted.push_str(",kube_runtime=error");
    wanted
}

async fn ended_by_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use axum::http::StatusCode;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::DeleteParams;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_takes_a_request_and_says_nothing_is_not_waited_for() {
        warren_broker::install_crypto_provider();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let pods: Api<Pod> = Api::namespaced(client(Config::new(url), &Leadership::none()).unwrap(), "shop");
        let since = tokio::time::Instant::now();
        assert!(pods.get("p-1").await.is_err());
        assert!(since.elapsed() <= ANSWER + Duration::from_secs(1), "{:?}", since.elapsed());
    }

    #[test]
    fn answers_of_the_api_server_are_never_logged_whatever_is_asked_for() {
        for wanted in [None, Some(""), Some("debug"), Some("kube_client=trace,lapin=info")] {
            let filter = log_filter(wanted.map(str::to_owned));
            assert!(filter.ends_with(",kube_client=error,kube_runtime=error"), "{filter}");
            let filter = EnvFilter::builder().parse_lossy(filter).to_string();
            assert_eq!(filter.matches("kube_client").count(), 1, "{filter}");
        }
    }

    #[tokio::test]
    async fn a_write_that_the_api_server_puts_off_is_not_sent_again_behind_the_guard() {
        warren_broker::install_crypto_provider();
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let answer = move || {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            std::future::ready(if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NOT_FOUND })
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = axum::serve(listener, axum::Router::new().fallback(answer));
        let leadership = Leadership::none();
        leadership.permanent();
        let pods: Api<Pod> = Api::namespaced(client(Config::new(url), &leadership).unwrap(), "shop");
        let parameters = DeleteParams::default();
        tokio::select! {
            deleted = pods.delete("p-1", &parameters) => assert!(deleted.is_err()),
            _ = std::future::IntoFuture::into_future(server) => panic!("the server ended"),
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
