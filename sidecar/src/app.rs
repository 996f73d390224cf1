//! A sidecar put together: servers, publisher, engine, signals.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use warren_broker::BrokerAccess;
use warren_broker::connect::ConnectOptions;

use crate::amqp::publisher::Publisher;
use crate::config::{Fixed, Live};
use crate::handler::endpoint::Endpoint;
use crate::health::Health;
use crate::inbox::Inbox;
use crate::metrics::{Labels, Metrics};
use crate::otlp::Spans;
use crate::runtime::{self, Parts};
use crate::server::admin::Admin;
use crate::server::local::Local;
use crate::server::publish::Publish;
use crate::server::{Bounds, Closing, listen, serve};

/// The ports of a sidecar.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Metrics, probes and drain.
    pub admin: SocketAddr,
    /// The application's side.
    pub local: SocketAddr,
}

impl Ports {
    /// A pod's: everyone may scrape and probe, only the pod itself may publish.
    pub fn pod() -> Self {
        Self {
            admin: (Ipv6Addr::UNSPECIFIED, warren_api::names::SIDECAR_PORT).into(),
            local: (Ipv4Addr::LOCALHOST, warren_api::names::PUBLISH_PORT).into(),
        }
    }
}

/// A sidecar that listens and is ready to run.
#[derive(Debug)]
pub struct Sidecar {
    ports: Ports,
    parts: Parts,
    servers: Closing,
}

impl Sidecar {
    /// Listens, and serves from now on what the engine is not needed for.
    ///
    /// # Errors
    /// If a port is taken.
    pub async fn bind(live: Live, fixed: Fixed, endpoint: Endpoint, ports: Ports) -> std::io::Result<Self> {
        let (admin, local) = (listen(ports.admin).await?, listen_locally(ports.local).await?);
        let ports = Ports { admin: admin.local_addr()?, local: local.0.local_addr()? };
        let (sender, inbox) = mpsc::unbounded_channel();
        let labels = {
            let config = live.config.borrow();
            Labels {
                namespace: config.namespace.clone(),
                worker: config.worker.clone(),
                queue: config.queue.name.clone(),
            }
        };
        let metrics = Arc::new(Metrics::new(labels).map_err(std::io::Error::other)?);
        let health = Arc::new(Health::default());
        // What publishes turns to another broker when the consumer does, and not before: until then copies belong where their
        // messages came from.
        let (access, followed) = watch::channel(live.access.borrow().clone());
        let publisher = publisher(followed, &fixed.instance);
        let drain_token = fixed.drain_token.as_deref().map(Arc::from);
        let servers = spawn_servers(
            admin,
            Admin {
                metrics: Arc::clone(&metrics),
                health: Arc::clone(&health),
                engine: Some(sender.clone()),
                drain_token,
            },
            local,
            Local { engine: Some(sender.clone()), publish: Publish::new(&publisher, Arc::clone(&metrics)) },
        );
        let spans = fixed.spans.clone().map(|config| {
            let live = live.config.borrow();
            let defaults = vec![
                ("service.name".to_owned(), live.worker.clone()),
                ("k8s.namespace.name".to_owned(), live.namespace.clone()),
            ];
            Spans::start(config, defaults, Arc::clone(&metrics))
        });
        let parts = Parts { live, access, fixed, endpoint, metrics, health, inbox, sender, publisher, spans };
        Ok(Self { ports, parts, servers })
    }

    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The way to the engine's loop.
    pub fn inbox(&self) -> mpsc::UnboundedSender<Inbox> {
        self.parts.sender.clone()
    }

    /// Runs until it is told to end.
    pub async fn run(self) {
        runtime::run(self.parts).await;
        self.servers.close().await;
    }
}

/// Runs a sidecar until a signal ends it.
///
/// # Errors
/// If a port is taken.
pub async fn run(
    signals: Signals,
    live: Live,
    fixed: Fixed,
    endpoint: Endpoint,
    ports: Ports,
) -> std::io::Result<()> {
    let sidecar = Sidecar::bind(live, fixed, endpoint, ports).await?;
    signals.forward(sidecar.inbox());
    sidecar.run().await;
    Ok(())
}

/// Serves the publish API alone, for a producer that consumes nothing, until a signal ends it.
///
/// # Errors
/// If a port is taken.
pub async fn publish_only(
    signals: Signals,
    access: watch::Receiver<Arc<BrokerAccess>>,
    instance: &str,
    ports: Ports,
) -> std::io::Result<()> {
    let (admin, local) = (listen(ports.admin).await?, listen_locally(ports.local).await?);
    let (sender, mut inbox) = mpsc::unbounded_channel();
    signals.forward(sender);
    let metrics = Arc::new(Metrics::new(Labels::default()).map_err(std::io::Error::other)?);
    let health = Arc::new(Health::default());
    let publisher = publisher(access, instance);
    let servers = spawn_servers(
        admin,
        Admin { metrics: Arc::clone(&metrics), health: Arc::clone(&health), engine: None, drain_token: None },
        local,
        Local { engine: None, publish: Publish::new(&publisher, Arc::clone(&metrics)) },
    );
    let mut pulse = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = pulse.tick() => {
                health.beat();
                // A producer may wait for the API; whether the broker is there each answer says.
                health.connected();
                metrics.blocked.set(i64::from(publisher.blocked().is_some()));
            }
            message = inbox.recv() => if matches!(message, Some(Inbox::Terminate | Inbox::Abandon) | None) {
                servers.close().await;
                return Ok(());
            },
        }
    }
}

/// What publishes for a sidecar, by whose name its connection goes.
fn publisher(access: watch::Receiver<Arc<BrokerAccess>>, instance: &str) -> Publisher {
    let options = ConnectOptions::named(format!("warren-sidecar {instance} publish")).with_large_frames();
    Publisher::new(access, options)
}

/// Listeners of the application's port: at the address that was asked for, and at the IPv6 loopback beside that of IPv4.
type LocalPort = (TcpListener, Option<TcpListener>);

/// `localhost` may be either loopback address, and some clients try only the first that the resolver gives.
async fn listen_locally(address: SocketAddr) -> std::io::Result<LocalPort> {
    let first = listen(address).await?;
    if address.ip() != Ipv4Addr::LOCALHOST {
        return Ok((first, None));
    }
    let second = listen((Ipv6Addr::LOCALHOST, first.local_addr()?.port()).into()).await;
    // A machine need not have IPv6.
    Ok((first, second.inspect_err(|error| tracing::info!(%error, "served on 127.0.0.1 alone")).ok()))
}

fn spawn_servers(admin_port: TcpListener, admin: Admin, local_port: LocalPort, local: Local) -> Closing {
    let closing = Closing::default();
    tokio::spawn(serve(admin_port, Bounds::ANYBODY, closing.subscribe(), move |request| {
        admin.clone().handle(request)
    }));
    let (first, second) = local_port;
    let local = move |request| local.clone().handle(request);
    for port in [Some(first), second].into_iter().flatten() {
        tokio::spawn(serve(port, Bounds::APPLICATION, closing.subscribe(), local.clone()));
    }
    closing
}

/// SIGTERM, and Ctrl-C at a terminal, which the second time does not wait. What comes after they are listened to is forwarded, also
/// what comes before that begins. A process with PID 1 never learns of one that came before it listened, see signal(7) and
/// `pid_namespaces(7)`.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens to them from now on.
    ///
    /// # Errors
    /// If the process may not.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    fn forward(self, sender: mpsc::UnboundedSender<Inbox>) {
        let Self { mut terminate, mut interrupt } = self;
        tokio::spawn(async move {
            let mut interrupted = false;
            loop {
                let message = tokio::select! {
                    _ = terminate.recv() => Inbox::Terminate,
                    _ = interrupt.recv() => {
                        let again = std::mem::replace(&mut interrupted, true);
                        if again { Inbox::Abandon } else { Inbox::Terminate }
                    }
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_applications_port_is_on_both_loopback_addresses_or_on_that_of_ipv4_alone() {
        let (first, second) = listen_locally((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok();
        let address = second.as_ref().map(|second| second.local_addr().unwrap());
        assert_eq!(address, has_ipv6.then(|| (Ipv6Addr::LOCALHOST, port).into()));
        // Who has the other address already keeps it.
        while let Ok(taken) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await {
            let port = taken.local_addr().unwrap().port();
            // Another test may have that port at the other address.
            let Ok((_, third)) = listen_locally((Ipv4Addr::LOCALHOST, port).into()).await else { continue };
            assert!(third.is_none());
            break;
        }
    }
}
