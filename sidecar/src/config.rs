//! What the sidecar is told: the ConfigMap and the broker Secret as files, read again when they change, and what is fixed for
//! the pod's life as environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use warren_api::names;
use warren_api::sidecar::SidecarConfig;
use warren_api::worker::PrefetchMode;
use warren_broker::{BrokerAccess, SecretError};

use crate::core::{Batch, Ladder, Settings};
use crate::otlp;

/// How often the files are looked at. The kubelet takes up to two minutes to bring a change.
const LOOK: Duration = Duration::from_secs(5);
/// The broker's own time-out for acknowledgements unless the queue says otherwise.
const BROKER_CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The configuration is not what the operator writes.
    #[error("{path} is no sidecar configuration: {error}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// The broker Secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The live part of the configuration.
#[derive(Clone, Debug)]
pub struct Live {
    /// What to do.
    pub config: watch::Receiver<Arc<SidecarConfig>>,
    /// Where the broker is.
    pub access: watch::Receiver<Arc<BrokerAccess>>,
}

/// What is fixed for the process.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The pod, or the host: part of the connections' names.
    pub instance: String,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// How long after a drain's begin a pod is ended at the latest.
    pub grace_period: Duration,
    /// What a drain request must carry; none: nothing.
    pub drain_token: Option<String>,
    /// Where spans go; none: nowhere.
    pub spans: Option<otlp::Config>,
}

/// The engine's settings out of a configuration and what is fixed.
pub fn settings(config: &SidecarConfig, fixed: &Fixed) -> Settings {
    let SidecarConfig { queue, handler, consumer, .. } = config;
    let prefetch = consumer.prefetch.max(1);
    Settings {
        prefetch,
        // With an ordering key each change of the window stops all work for a moment.
        auto_prefetch: consumer.prefetch_mode == PrefetchMode::Auto && consumer.ordering_key.is_none(),
        ordered: consumer.ordering_key.is_some(),
        concurrency: consumer.concurrency.clamp(1, prefetch),
        paused: consumer.paused,
        ladder: Ladder {
            delays_seconds: queue.retry_delays_seconds.clone(),
            max_attempts: queue.max_attempts.max(1),
        },
        batch: handler.batch.map(|batch| Batch {
            max_messages: batch.max_messages.clamp(1, prefetch),
            max_wait: Duration::from_millis(u64::from(batch.max_wait_milliseconds)),
        }),
        late_timeout: Duration::from_secs(u64::from(handler.timeout_seconds)),
        drain_timeout: fixed.drain_timeout,
        grace_period: fixed.grace_period,
        consumer_timeout: queue
            .consumer_timeout_seconds
            .map_or(BROKER_CONSUMER_TIMEOUT, |seconds| Duration::from_secs(u64::from(seconds))),
    }
}

/// The files of a pod.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration file.
    pub config: PathBuf,
    /// The folder of the broker Secret, a file a key.
    pub broker: PathBuf,
    /// Longest time-out of a handler call, in seconds, that a drain of this pod leaves room for. Where `timeoutSeconds` is
    /// raised, the file says so before the rollout brings pods that may drain for longer.
    pub longest_call_seconds: u32,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            config: Path::new(names::CONFIG_DIR).join(names::CONFIG_KEY),
            broker: PathBuf::from(names::BROKER_DIR),
            longest_call_seconds: u32::MAX,
        }
    }
}

/// Reads a configuration file.
///
/// # Errors
/// If it cannot be read or is none.
pub fn read_config(path: &Path) -> Result<SidecarConfig, ConfigError> {
    let text =
        std::fs::read(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    serde_json::from_slice(&text).map_err(|error| ConfigError::Malformed { path: path.to_owned(), error })
}

/// Reads a mounted Secret: each file that is not hidden is a key.
///
/// # Errors
/// If the folder cannot be read or its keys make no address.
pub fn read_access(folder: &Path, vhost: Option<&str>) -> Result<BrokerAccess, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: folder.to_owned(), error };
    let mut keys = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The kubelet's own links and folders begin with dots.
        if !name.starts_with('.') && entry.path().is_file() {
            keys.insert(name, std::fs::read(entry.path()).map_err(unreadable)?);
        }
    }
    Ok(BrokerAccess::parse(&keys, vhost)?)
}

impl Files {
    fn read(&self) -> Result<(SidecarConfig, BrokerAccess), ConfigError> {
        let mut config = read_config(&self.config)?;
        config.handler.timeout_seconds = config.handler.timeout_seconds.min(self.longest_call_seconds);
        let access = read_access(&self.broker, config.queue.vhost.as_deref())?;
        Ok((config, access))
    }

    /// Reads the files once, and again whenever they change. A change that cannot be used is logged and the last good state
    /// stays.
    ///
    /// # Errors
    /// If they cannot be used at the start.
    pub fn watch(self) -> Result<Live, ConfigError> {
        let (config, access) = self.read()?;
        let (send_config, config) = watch::channel(Arc::new(config));
        let (send_access, access) = watch::channel(Arc::new(access));
        keep_looking("the changed configuration cannot be used: the last good one stays", move || {
            let (config, access) = self.read()?;
            if replace_if_changed(&send_config, config) {
                tracing::info!("the configuration has changed");
            }
            if replace_if_changed(&send_access, access) {
                tracing::info!("the broker's Secret has changed");
            }
            Ok(())
        });
        Ok(Live { config, access })
    }
}

/// An access that never changes.
pub fn fixed_access(access: BrokerAccess) -> watch::Receiver<Arc<BrokerAccess>> {
    // A dropped sender means: no change will come.
    watch::channel(Arc::new(access)).1
}

/// Reads a mounted Secret, and again whenever it changes.
///
/// # Errors
/// If it cannot be used at the start.
pub fn watch_access(
    folder: PathBuf,
    vhost: Option<String>,
) -> Result<watch::Receiver<Arc<BrokerAccess>>, ConfigError> {
    let (sender, receiver) = watch::channel(Arc::new(read_access(&folder, vhost.as_deref())?));
    keep_looking("the broker's Secret cannot be used: the last good one stays", move || {
        if replace_if_changed(&sender, read_access(&folder, vhost.as_deref())?) {
            tracing::info!("the broker's Secret has changed");
        }
        Ok(())
    });
    Ok(receiver)
}

/// Looks again and again for as long as the process lives. A problem is logged when it is news.
fn keep_looking(unusable: &'static str, mut look: impl FnMut() -> Result<(), ConfigError> + Send + 'static) {
    tokio::spawn(async move {
        let mut looks = tokio::time::interval(LOOK);
        let mut problem = String::new();
        loop {
            looks.tick().await;
            match look() {
                Ok(()) => problem.clear(),
                Err(error) if error.to_string() != problem => {
                    problem = error.to_string();
                    tracing::warn!(%error, "{unusable}");
                }
                Err(_) => {}
            }
        }
    });
}

fn replace_if_changed<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) -> bool {
    sender.send_if_modified(|current| {
        let changed = **current != value;
        if changed {
            *current = Arc::new(value);
        }
        changed
    })
}

impl Live {
    /// A configuration that never changes.
    pub fn fixed(config: SidecarConfig, access: BrokerAccess) -> Self {
        // A dropped sender means: no change will come.
        let (_, config) = watch::channel(Arc::new(config));
        Self { config, access: fixed_access(access) }
    }
}
