//! Test brokers: real RabbitMQ nodes with ports, data and Erlang names of their own, which share nothing.

mod config;
mod control;
pub mod each_release;
mod options;
mod release;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OnceCell};

pub use self::config::{Ports, USER};
pub use self::control::{Alarm, Vhost};
pub use self::options::{Options, Tls, Version};
use self::release::Release;
use crate::lifeline::{self, Lifeline};
use crate::process::{Daemon, Identity, Record};
use crate::site::Site;
use crate::{leftovers, ports};

/// A broker takes 5 to 9 s to start, and much longer where others compile.
const PATIENCE: Duration = Duration::from_secs(180);

/// A RabbitMQ node. It ends when the value is dropped, and also when the process ends in any way.
#[derive(Debug)]
pub struct Broker {
    options: Options,
    id: String,
    site: Site,
    dir: PathBuf,
    release: Release,
    ports: Ports,
    password: String,
    node: Mutex<Option<Identity>>,
    _lifeline: Option<Lifeline>,
}

impl Broker {
    /// Starts a broker and waits until it answers.
    pub async fn start(options: Options) -> Result<Self> {
        let site = Site::current()?;
        leftovers::reap(&site).await?;
        let release = Release::get(&site, options.version).await?;
        let id = if options.lasting { format!("broker-{}", options.name) } else { unique(&options.name) };
        let dir = site.run.join("brokers").join(&id);
        let (ports, password) = if options.lasting && dir.join("identity").exists() {
            recall(&dir.join("identity"))?
        } else {
            std::fs::create_dir_all(dir.join("data"))?;
            let chosen = (choose_ports()?, secret());
            remember(&dir.join("identity"), &chosen)?;
            chosen
        };
        let lifeline = if options.lasting {
            None
        } else {
            Some(Lifeline::tie(&site, &dir, &[&id, &format!("{id}-names")])?)
        };
        let broker = Self {
            options,
            id,
            site,
            dir,
            release,
            ports,
            password,
            node: Mutex::new(None),
            _lifeline: lifeline,
        };
        broker.write_files()?;
        broker.names().await?;
        broker.start_again().await?;
        Ok(broker)
    }

    /// A broker of 3.10 that all tests of this process share. A test uses a [`Vhost`] of its own, and leaves the broker
    /// itself alone.
    pub async fn shared() -> Result<Arc<Self>> {
        Self::shared_of(Version::V3_10).await
    }

    /// The same of a release.
    pub async fn shared_of(version: Version) -> Result<Arc<Self>> {
        static V3_10: OnceCell<Arc<Broker>> = OnceCell::const_new();
        static V4_0: OnceCell<Arc<Broker>> = OnceCell::const_new();
        let (shared, name) = match version {
            Version::V3_10 => (&V3_10, "shared"),
            Version::V4_0 => (&V4_0, "shared4"),
        };
        let start = async || anyhow::Ok(Arc::new(Self::start(Options::new(name).version(version)).await?));
        shared.get_or_try_init(start).await.cloned()
    }

    /// Starts the node again with the data it has. Nothing happens when it runs.
    pub async fn start_again(&self) -> Result<()> {
        let mut node = self.node.lock().await;
        if let Some(record) = Record::running(&self.site, &self.id)? {
            *node = Some(record.process);
            return Ok(());
        }
        let launch = self.release.launch(&self.dir, "rabbitmq-server", &[]);
        let mut daemon = Daemon::new(self.id.as_str(), launch.program).args(launch.args);
        for (name, value) in self.environment() {
            daemon = daemon.env(name, value);
        }
        let running = if self.options.lasting { daemon } else { daemon.owned() }.start(&self.site).await?;
        lifeline::note(&self.dir, &running.record.process)?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.endpoint().1));
        let greets = !self.options.tls_only;
        let record = running.until_ready(PATIENCE, || answers(address, greets)).await?;
        *node = Some(record.process);
        Ok(())
    }

    /// Ends the node as an administrator would: with SIGTERM, and time to close its files.
    pub async fn sigterm(&self) -> Result<()> {
        self.end(Signal::SIGTERM).await
    }

    /// Ends the node as a crash would. The data stays.
    pub async fn kill9(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    /// The node crashes, and comes back without its queues, messages, users and vhosts, but those it began with.
    pub async fn wipe(&self) -> Result<()> {
        self.kill9().await?;
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        std::fs::create_dir_all(&data)?;
        self.start_again().await
    }

    /// The node stops doing anything, while its connections stay open: a half-open network, as clients see it.
    pub async fn freeze(&self) -> Result<()> {
        self.process().await?.signal(Signal::SIGSTOP);
        Ok(())
    }

    /// Ends [`Self::freeze`].
    pub async fn thaw(&self) -> Result<()> {
        self.process().await?.signal(Signal::SIGCONT);
        Ok(())
    }

    /// The node's process, for measurements.
    pub async fn process(&self) -> Result<Identity> {
        let node = self.node.lock().await;
        node.clone().filter(Identity::is_alive).with_context(|| format!("{} does not run", self.options.name))
    }

    /// Ends a broker and removes its data.
    pub async fn remove(self) -> Result<()> {
        self.kill9().await?;
        for (name, record) in Record::all(&self.site)? {
            if name == self.id || name == self.names_id() {
                record.end(&self.site, Duration::from_secs(1)).await?;
            }
        }
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }

    /// Its ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The password of [`USER`].
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The URI of a vhost for programs on this machine.
    pub fn uri(&self, vhost: &str) -> String {
        self.uri_at(IpAddr::from([127, 0, 0, 1]), vhost)
    }

    /// The URI of a vhost by another address of this machine, such as [`crate::Cluster::host_address`] for pods.
    pub fn uri_at(&self, host: IpAddr, vhost: &str) -> String {
        let (user, password, vhost) = (USER, self.password(), config::encode(vhost));
        let (scheme, port) = self.endpoint();
        format!("{scheme}://{user}:{password}@{host}:{port}/{vhost}")
    }

    /// What clients are given: without TLS, where that is spoken.
    fn endpoint(&self) -> (&'static str, u16) {
        if self.options.tls_only { ("amqps", self.ports.amqps) } else { ("amqp", self.ports.amqp) }
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let mut node = self.node.lock().await;
        let Some(process) = node.take() else { return Ok(()) };
        process.signal(signal);
        if !process.gone_within(Duration::from_secs(180)).await {
            bail!("{} does not end after {signal}", self.options.name);
        }
        Ok(())
    }

    /// Starts the name server of Erlang nodes, unless it runs.
    async fn names(&self) -> Result<()> {
        if Record::running(&self.site, &self.names_id())?.is_some() {
            return Ok(());
        }
        let port = self.ports.names.to_string();
        let daemon = Daemon::new(self.names_id(), "epmd").log(&self.id).args([
            "-port",
            &port,
            "-address",
            "127.0.0.1",
        ]);
        let running = if self.options.lasting { daemon } else { daemon.owned() }.start(&self.site).await?;
        lifeline::note(&self.dir, &running.record.process)?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports.names));
        running.until_ready(PATIENCE, || answers(address, false)).await?;
        Ok(())
    }

    fn names_id(&self) -> String {
        format!("{}-names", self.id)
    }

    fn write_files(&self) -> Result<()> {
        let inside = self.release.inside(&self.dir);
        let write = |name: &str, text: &str| {
            std::fs::write(self.dir.join(name), text)
                .with_context(|| format!("write {name} of {}", self.options.name))
        };
        write("rabbitmq.conf", &config::rabbitmq_conf(&self.options, self.ports, &self.password, &inside))?;
        write("enabled_plugins", "[].\n")?;
        write("environment.conf", "")?;
        if let Some(tls) = &self.options.tls {
            write("ca.crt", &tls.ca)?;
            write("tls.crt", &tls.certificate)?;
            write("tls.key", &tls.key)?;
        }
        let cookie = self.dir.join(".erlang.cookie");
        if !cookie.exists() {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(&cookie, secret())?;
            std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400))?;
        }
        Ok(())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let inside = self.release.inside(&self.dir);
        let file = |name: &str| format!("{inside}/{name}");
        vec![
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("LC_ALL", "C.UTF-8".into()),
            ("HOME", inside.clone()),
            ("ERL_EPMD_PORT", self.ports.names.to_string()),
            ("ERL_CRASH_DUMP_SECONDS", "0".into()),
            ("RABBITMQ_NODENAME", "warren@localhost".into()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("RABBITMQ_CONF_ENV_FILE", file("environment.conf")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", file("generated")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".into()),
            // The script then becomes the node, instead of being its parent: signals reach the node itself.
            ("RUNNING_UNDER_SYSTEMD", "true".into()),
        ]
    }
}

/// Whether AMQP is spoken at an address: a broker listens before it is ready, but then says nothing.
async fn answers(address: SocketAddr, greets: bool) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        if greets {
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await?;
        }
        std::io::Result::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.is_ok_and(|result| result.is_ok())
}

fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("broker-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn choose_ports() -> Result<Ports> {
    Ok(Ports {
        amqp: ports::free()?,
        amqps: ports::free()?,
        distribution: ports::free()?,
        names: ports::free()?,
    })
}

fn remember(path: &Path, chosen: &(Ports, String)) -> Result<()> {
    std::fs::write(path, serde_json::to_vec(chosen)?).with_context(|| format!("write {}", path.display()))
}

fn recall(path: &Path) -> Result<(Ports, String)> {
    serde_json::from_slice(&std::fs::read(path)?)
        .with_context(|| format!("{} is not what it was written as: run cargo xtask down", path.display()))
}

/// Not for secrets that matter: a test broker's password, which another machine of the network can't guess.
fn secret() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}
