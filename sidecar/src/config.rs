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

/// How often the files are looked at: a pod that keeps an order waits for its name, which may come just after it has started. The
/// kubelet takes up to two minutes to bring a change, and a second where the operator hastens it.
const LOOK: Duration = Duration::from_secs(1);
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

/// Whether messages get an ordering key other than those that are held have: these have none, or the former one, and would be
/// handled beside and after the new ones of their key.
pub fn orders_anew(from: &SidecarConfig, to: &SidecarConfig) -> bool {
    let key = &to.consumer.ordering_key;
    key.is_some() && *key != from.consumer.ordering_key
}

/// The settings with which what runs may end before another configuration counts.
pub fn leaving(from: &SidecarConfig, to: &SidecarConfig, fixed: &Fixed) -> Settings {
    let settings = settings(from, fixed);
    // What comes again under another key must come as it came.
    Settings { paused: true, ordered: settings.ordered || orders_anew(from, to), ..settings }
}

/// The files of a pod.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration file.
    pub config: PathBuf,
    /// The folder of the broker Secret, a file a key.
    pub broker: PathBuf,
    /// The name of that Secret; none: not told.
    pub secret: Option<String>,
    /// The pod's name; none: not told.
    pub pod: Option<String>,
    /// Longest time-out of a handler call, in seconds, that a drain of this pod leaves room for. Where `timeoutSeconds` is
    /// raised, the file says so before the rollout brings pods that may drain for longer.
    pub longest_call_seconds: u32,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            config: Path::new(names::CONFIG_DIR).join(names::CONFIG_KEY),
            broker: PathBuf::from(names::BROKER_DIR),
            secret: None,
            pod: None,
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
    fn read_config(&self, last: Option<&SidecarConfig>) -> Result<SidecarConfig, ConfigError> {
        let mut config = read_config(&self.config)?;
        if matches!((&config.secret, &self.secret), (Some(theirs), Some(ours)) if theirs != ours) {
            // It is for pods that are on their way, and names a queue of their broker: what this pod has ends as it was.
            config = last.cloned().unwrap_or(config);
            config.consumer.paused = true;
        }
        if matches!((&config.consumer.only_pod, &self.pod), (Some(only), Some(ours)) if only != ours) {
            config.consumer.paused = true;
        }
        config.handler.timeout_seconds = config.handler.timeout_seconds.min(self.longest_call_seconds);
        Ok(config)
    }

    /// Reads the files once, and again whenever they change. What cannot be used of a change is logged and the last good state
    /// of it stays.
    ///
    /// # Errors
    /// If they cannot be used at the start.
    pub fn watch(self) -> Result<Live, ConfigError> {
        let config = self.read_config(None)?;
        let (accesses, access) =
            watch::channel(Arc::new(read_access(&self.broker, config.queue.vhost.as_deref())?));
        let (configs, config) = watch::channel(Arc::new(config));
        keep_looking("a changed file cannot be used: its last good state stays", move || {
            self.look(&configs, &accesses)
        });
        Ok(Live { config, access })
    }

    /// Takes over what has changed, from the configuration and from the Secret each by itself.
    fn look(
        &self,
        configs: &watch::Sender<Arc<SidecarConfig>>,
        accesses: &watch::Sender<Arc<BrokerAccess>>,
    ) -> Vec<ConfigError> {
        let last = configs.borrow().clone();
        let config = self.read_config(Some(&last));
        let vhost = config.as_ref().unwrap_or(&last).queue.vhost.clone();
        let access = read_access(&self.broker, vhost.as_deref());
        // Another virtual host comes with its access or not at all: the last one may have a queue of the same name.
        let together = vhost == last.queue.vhost || access.is_ok();
        let config = config.map(|config| {
            if together && replace_if_changed(configs, config) {
                tracing::info!("the configuration has changed");
            }
        });
        [config.err(), access.map(|access| take_over(accesses, access)).err()].into_iter().flatten().collect()
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
        let access = read_access(&folder, vhost.as_deref());
        access.map(|access| take_over(&sender, access)).err().into_iter().collect()
    });
    Ok(receiver)
}

fn take_over(sender: &watch::Sender<Arc<BrokerAccess>>, access: BrokerAccess) {
    if replace_if_changed(sender, access) {
        tracing::info!("the broker's Secret has changed");
    }
}

/// Looks again and again for as long as the process lives. Problems are logged when they are news.
fn keep_looking(unusable: &'static str, mut look: impl FnMut() -> Vec<ConfigError> + Send + 'static) {
    tokio::spawn(async move {
        let mut looks = tokio::time::interval(LOOK);
        let mut told = String::new();
        loop {
            looks.tick().await;
            let problems: Vec<String> = look().iter().map(ToString::to_string).collect();
            let problems = problems.join("; ");
            if !problems.is_empty() && problems != told {
                tracing::warn!(error = %problems, "{unusable}");
            }
            told = problems;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod's files, and what was last taken over from them.
    struct Pod {
        files: Files,
        configs: watch::Sender<Arc<SidecarConfig>>,
        accesses: watch::Sender<Arc<BrokerAccess>>,
        _folder: tempfile::TempDir,
    }

    fn config(prefetch: u16, vhost: &str) -> String {
        serde_json::json!({
            "namespace": "shop", "worker": "invoices",
            "queue": {"name": "orders", "type": "Quorum", "vhost": vhost, "retryDelaysSeconds": [5], "maxAttempts": 3},
            "handler": {"path": "/", "timeoutSeconds": 30},
            "consumer": {"prefetch": prefetch, "concurrency": 1},
        })
        .to_string()
    }

    impl Pod {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = Files {
                config: folder.path().join("config.json"),
                broker: folder.path().to_owned(),
                secret: Some("staging".to_owned()),
                pod: None,
                longest_call_seconds: 60,
            };
            std::fs::write(&files.config, config(1, "a")).unwrap();
            std::fs::write(files.broker.join("uri"), "amqp://u:p@first").unwrap();
            let configs = watch::Sender::new(Arc::new(files.read_config(None).unwrap()));
            let accesses = watch::Sender::new(Arc::new(read_access(&files.broker, Some("a")).unwrap()));
            Self { files, configs, accesses, _folder: folder }
        }

        /// Prefetch and address after a look at these contents, and how many problems it found.
        fn look(&self, config: &str, uri: &str) -> (u16, String, usize) {
            std::fs::write(&self.files.config, config).unwrap();
            std::fs::write(self.files.broker.join("uri"), uri).unwrap();
            let problems = self.files.look(&self.configs, &self.accesses);
            (self.configs.borrow().consumer.prefetch, self.accesses.borrow().address(), problems.len())
        }
    }

    #[test]
    fn what_is_held_goes_back_in_order_before_another_ordering_key_counts() {
        let fixed = Fixed {
            instance: "pod".to_owned(),
            drain_timeout: Duration::from_secs(60),
            grace_period: Duration::from_secs(75),
            drain_token: None,
            spans: None,
        };
        let with_key = |key: Option<&str>| {
            let mut config: SidecarConfig = serde_json::from_str(&config(5, "a")).unwrap();
            config.consumer.ordering_key = key.map(str::to_owned);
            config
        };
        for (from, to, anew) in [
            (None, Some("x-customer"), true),
            (Some("x-customer"), Some("x-order"), true),
            (Some("x-customer"), Some("x-customer"), false),
            (Some("x-customer"), None, false),
            (None, None, false),
        ] {
            let (from, to) = (with_key(from), with_key(to));
            assert_eq!(orders_anew(&from, &to), anew);
            let settings = leaving(&from, &to, &fixed);
            let ordered = anew || from.consumer.ordering_key.is_some();
            assert_eq!((settings.paused, settings.ordered, settings.prefetch), (true, ordered, 5));
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_keeps_no_change_of_the_other_back() {
        let pod = Pod::new();
        assert_eq!(pod.look(&config(2, "a"), "nonsense"), (2, "amqp://first:5672/a".to_owned(), 1));
        assert_eq!(pod.look("nonsense", "amqp://u:p@second"), (2, "amqp://second:5672/a".to_owned(), 1));
        assert_eq!(pod.look("nonsense", "nonsense"), (2, "amqp://second:5672/a".to_owned(), 2));
        assert_eq!(pod.look(&config(3, "b"), "amqp://u:p@third"), (3, "amqp://third:5672/b".to_owned(), 0));
    }

    #[test]
    fn a_configuration_for_pods_with_another_secret_ends_this_one_s_consuming_on_the_queue_that_it_has() {
        let pod = Pod::new();
        let with = |secret: &str, queue: &str, prefetch| {
            let mut config: SidecarConfig = serde_json::from_str(&config(prefetch, "a")).unwrap();
            (config.secret, config.queue.name) = (Some(secret.to_owned()), queue.to_owned());
            serde_json::to_string(&config).unwrap()
        };
        let look = |config: &str| {
            pod.look(config, "amqp://u:p@first");
            let config = pod.configs.borrow();
            (config.queue.name.clone(), config.consumer.prefetch, config.consumer.paused)
        };
        assert_eq!(look(&with("staging", "orders", 2)), ("orders".to_owned(), 2, false));
        assert_eq!(look(&with("prod", "invoices", 3)), ("orders".to_owned(), 2, true));
        assert_eq!(look(&with("staging", "refunds", 4)), ("refunds".to_owned(), 4, false));
        // A pod that begins with the file of those before it.
        std::fs::write(&pod.files.config, with("prod", "invoices", 3)).unwrap();
        assert!(pod.files.read_config(None).unwrap().consumer.paused);
    }

    #[test]
    fn a_pod_consumes_once_it_is_the_only_one_that_may() {
        let mut pod = Pod::new();
        pod.files.pod = Some("p-2".to_owned());
        let paused = |only_pod: Option<&str>| {
            let mut config: SidecarConfig = serde_json::from_str(&config(2, "a")).unwrap();
            config.consumer.only_pod = only_pod.map(str::to_owned);
            std::fs::write(&pod.files.config, serde_json::to_string(&config).unwrap()).unwrap();
            pod.files.read_config(None).unwrap().consumer.paused
        };
        let told = [None, Some("p-2"), Some("p-1"), Some("")];
        assert_eq!(told.map(paused), [false, false, true, true]);
    }

    #[test]
    fn another_virtual_host_comes_together_with_its_access() {
        let pod = Pod::new();
        assert_eq!(pod.look(&config(2, "b"), "nonsense"), (1, "amqp://first:5672/a".to_owned(), 1));
        assert_eq!(pod.look(&config(2, "b"), "amqp://u:p@first"), (2, "amqp://first:5672/b".to_owned(), 0));
    }
}
