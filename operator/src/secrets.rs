//! Secrets, read with `get` alone: the operator may neither list nor watch them.
//!
//! Each Secret in use is read again every few seconds; when it changes, the resources that use it are reconciled. One read
//! serves all who use the same Secret.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use futures::{StreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{GetParams, Request};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use serde::Deserialize;
use serde::de::Error;
use tokio::time::Instant;
use warren_api::{Queue, Worker};
use warren_broker::access::{KEYS, longest_value};

use crate::locked::locked;

/// How old a read may be when a resource is reconciled.
const FRESH: Duration = Duration::from_secs(2);
/// How often each Secret in use is read.
const POLL: Duration = Duration::from_secs(5);
/// Between the beginnings of two such reads.
const READ_SPACING: Duration = Duration::from_millis(40);
/// How many Secrets are read in a round; those of others wait for the next.
const OF_A_ROUND: usize = 125;
/// Reads at once: one that is not answered keeps none of the others waiting.
const AT_ONCE: usize = 8;
/// How long a read may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a Secret that was never read cannot be read before that is told: what takes less passes by itself, mostly.
const LASTING: Duration = Duration::from_secs(20);
/// A user that has not asked for so long is gone; living ones are reconciled far more often.
const FORGET_USER: Duration = Duration::from_secs(3600);

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretState {
    /// Its keys.
    Found(Arc<BTreeMap<String, Vec<u8>>>),
    /// There is none.
    Missing,
    /// The operator may not read it.
    Forbidden,
    /// The API server has not been able to give it for a while, and never has; what it says.
    Unreadable(String),
}

/// Who is reconciled when a Secret changes.
#[derive(Clone, Debug)]
pub enum User {
    /// A Queue.
    Queue(ObjectRef<Queue>, UnboundedSender<ObjectRef<Queue>>),
    /// A Worker.
    Worker(ObjectRef<Worker>, UnboundedSender<ObjectRef<Worker>>),
}

impl User {
    fn key(&self) -> (&'static str, String) {
        match self {
            Self::Queue(queue, _) => ("queue", queue.name.clone()),
            Self::Worker(worker, _) => ("worker", worker.name.clone()),
        }
    }

    fn notify(&self) {
        // The receivers end only with the process.
        match self {
            Self::Queue(queue, changed) => drop(changed.unbounded_send(queue.clone())),
            Self::Worker(worker, changed) => drop(changed.unbounded_send(worker.clone())),
        }
    }
}

type Name = (String, String);

#[derive(Debug, Default)]
struct Slot {
    state: Option<(SecretState, Instant)>,
    /// When it was last read, or that was tried.
    tried: Option<Instant>,
    /// Since when that has failed, and how.
    failed: Option<Failed>,
    users: HashMap<(&'static str, String), (User, Instant)>,
    /// Held while it is read, so that many readers make one request.
    reading: Arc<tokio::sync::Mutex<()>>,
}

/// Reads that have failed, one after the other.
#[derive(Debug)]
struct Failed {
    first: Instant,
    last: Instant,
    why: String,
}

/// The Secrets in use.
pub struct Secrets {
    client: Client,
    slots: Mutex<HashMap<Name, Slot>>,
}

impl Secrets {
    /// None yet.
    pub fn new(client: Client) -> Self {
        Self { client, slots: Mutex::default() }
    }

    /// Reads a Secret, and has `user` reconciled when it changes. While the API server cannot give it, what was read last counts.
    ///
    /// # Errors
    /// The API server did not answer, and never has; after a while that is no error, but so.
    pub async fn get(&self, namespace: &str, name: &str, user: User) -> Result<SecretState, kube::Error> {
        let key = (namespace.to_owned(), name.to_owned());
        let reading = {
            let mut slots = locked(&self.slots);
            let slot = slots.entry(key.clone()).or_default();
            slot.users.insert(user.key(), (user, Instant::now()));
            if let Some(state) = slot.fresh() {
                return Ok(state);
            }
            slot.reading.clone()
        };
        let _one_at_a_time = reading.lock().await;
        if let Some(state) =
            locked(&self.slots).get(&key).and_then(|slot| slot.fresh().or_else(|| slot.missed()))
        {
            return Ok(state);
        }
        let read = self.read(&key).await;
        read.or_else(|error| {
            let mut slots = locked(&self.slots);
            let slot = slots.get_mut(&key);
            let missed = slot.and_then(|slot| {
                let now = Instant::now();
                let first = slot.failed.as_ref().map_or(now, |failed| failed.first);
                slot.failed = Some(Failed { first, last: now, why: error.to_string() });
                slot.missed()
            });
            missed.ok_or(error)
        })
    }

    async fn read(&self, key: &Name) -> Result<SecretState, kube::Error> {
        let (namespace, name) = key;
        if !is_name(name) {
            return Ok(SecretState::Missing);
        }
        let path = Secret::url_path(&(), Some(namespace));
        let request =
            Request::new(path).get(name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        // As text: the library would log what it cannot parse.
        if let Some(slot) = locked(&self.slots).get_mut(key) {
            slot.tried = Some(Instant::now());
        }
        let read = tokio::time::timeout(ANSWER, self.client.request_text(request)).await;
        let late = |_| Err(kube::Error::Service("a Secret was not read in time".into()));
        let state = match read.unwrap_or_else(late) {
            Ok(text) => SecretState::Found(Arc::new(keys(&text)?)),
            Err(kube::Error::Api(status)) if status.code == 404 => SecretState::Missing,
            Err(kube::Error::Api(status)) if status.code == 403 => SecretState::Forbidden,
            Err(error) => return Err(error),
        };
        let mut slots = locked(&self.slots);
        if let Some(slot) = slots.get_mut(key) {
            let before = slot.state.replace((state.clone(), Instant::now()));
            let failed = slot.failed.take().is_some();
            if before.map_or(failed, |(before, _)| before != state) {
                slot.users.values().for_each(|(user, _)| user.notify());
            }
        }
        Ok(state)
    }

    /// Reads the Secrets in use again and again, for ever.
    pub async fn poll(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL.mul_f64(rand::random_range(0.8..1.2))).await;
            let spaced = stream::iter(round(self.in_use(), OF_A_ROUND)).then(async |key| {
                tokio::time::sleep(READ_SPACING).await;
                key
            });
            let read = async |key: Name| {
                let Some(reading) = self.reading(&key) else { return };
                // An answer that is older than another must not come after it.
                let _one_at_a_time = reading.lock().await;
                if let Err(error) = self.read(&key).await {
                    tracing::debug!(namespace = %key.0, secret = %key.1, %error, "not read");
                }
            };
            spaced.for_each_concurrent(AT_ONCE, read).await;
        }
    }

    fn reading(&self, key: &Name) -> Option<Arc<tokio::sync::Mutex<()>>> {
        locked(&self.slots).get(key).map(|slot| slot.reading.clone())
    }

    /// The Secrets in use, with the times of their last reads.
    fn in_use(&self) -> Vec<(Name, Option<Instant>)> {
        let mut slots = locked(&self.slots);
        slots.retain(|_, slot| {
            slot.users.retain(|_, (_, seen)| seen.elapsed() < FORGET_USER);
            !slot.users.is_empty()
        });
        slots.iter().map(|(key, slot)| (key.clone(), slot.tried)).collect()
    }
}

impl Slot {
    /// What counts where another attempt has failed a moment ago, as not each of many waits for one of its own: what was read last.
    fn missed(&self) -> Option<SecretState> {
        let Failed { first, why, .. } =
            self.failed.as_ref().filter(|failed| failed.last.elapsed() < FRESH)?;
        let unreadable = || (first.elapsed() >= LASTING).then(|| SecretState::Unreadable(why.clone()));
        self.state.as_ref().map(|(state, _)| state.clone()).or_else(unreadable)
    }

    fn fresh(&self) -> Option<SecretState> {
        self.state.as_ref().filter(|(_, read)| read.elapsed() < FRESH).map(|(state, _)| state.clone())
    }
}

/// The Secrets of a round, at most so many: those of each namespace that were read longest ago, and of no namespace a further one
/// before each has one. Many Secrets of one namespace make no other one's late.
fn round(mut in_use: Vec<(Name, Option<Instant>)>, most: usize) -> Vec<Name> {
    in_use.sort_by_key(|(_, tried)| *tried);
    let mut of_namespace: HashMap<String, usize> = HashMap::new();
    let ranked = in_use.into_iter().map(|(key, tried)| {
        let count = of_namespace.entry(key.0.clone()).or_default();
        *count += 1;
        (*count, tried, key)
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort();
    ranked.into_iter().take(most).map(|(_, _, key)| key).collect()
}

/// The keys of a Secret that are read; an error says nothing of what is in it.
fn keys(text: &str) -> Result<BTreeMap<String, Vec<u8>>, kube::Error> {
    #[derive(Deserialize)]
    struct Keys {
        data: Option<BTreeMap<String, ByteString>>,
    }
    let read: Keys = serde_json::from_str(text)
        .map_err(|_| kube::Error::SerdeError(Error::custom("a Secret's data cannot be read")))?;
    let keys = read.data.unwrap_or_default().into_iter().filter(|(key, _)| KEYS.contains(&key.as_str()));
    Ok(keys
        .map(|(key, ByteString(mut value))| {
            // One byte too many, by which it is refused.
            value.truncate(longest_value(&key) + 1);
            value.shrink_to_fit();
            (key, value)
        })
        .collect())
}

/// Whether a Secret can have this name, which goes into a request's path as it is. Admission did not always refuse others.
fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_secret_can_have_is_not_asked_for() {
        assert!(is_name("rabbitmq-default.user"));
        for name in ["A B", "rabbitmq?x", "../../shop/secrets/rabbitmq", ".."] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn of_a_secret_nothing_but_its_data_is_read_and_what_is_in_it_is_in_no_error() {
        let fields = r#"[{"time": "9999-12-31T23:59:59Z"}]"#;
        let secret = |data: &str| {
            format!(
                r#"{{"metadata": {{"name": "s", "managedFields": {fields}}}, "type": 7, "data": {data}}}"#
            )
        };
        assert_eq!(keys(&secret(r#"{"uri": "YQ=="}"#)).unwrap(), [("uri".to_owned(), b"a".to_vec())].into());
        assert!(keys(&secret("null")).unwrap().is_empty());
        for data in [r#""c2VjcmV0""#, r#"{"uri": "c2VjcmV0!"}"#, r#"{"uri": ["c2VjcmV0"]}"#] {
            let error = keys(&secret(data)).unwrap_err().to_string();
            assert!(!error.contains("c2VjcmV0") && error.contains("cannot be read"), "{error}");
        }
    }

    #[test]
    fn of_a_secret_no_more_is_kept_than_is_read() {
        let long = ByteString(vec![b'x'; 800_000]);
        let data: BTreeMap<_, _> = ["ca.crt", "other"].map(|key| (key.to_owned(), long.clone())).into();
        let kept = keys(&serde_json::json!({"data": data}).to_string()).unwrap();
        assert_eq!(
            kept.into_iter().map(|(key, value)| (key, value.len())).collect::<Vec<_>>(),
            [("ca.crt".to_owned(), longest_value("ca.crt") + 1)]
        );
    }

    #[test]
    fn many_secrets_of_one_namespace_make_no_other_ones_late() {
        let now = Instant::now();
        let key = |namespace: &str, name: usize| (namespace.to_owned(), format!("{name:04}"));
        // Each was read, one a second, those of "many" first.
        let many = (0..5000).map(|name| (key("many", name), name as u64));
        let few = [(key("a", 0), 6000), (key("b", 0), 6001), (key("b", 1), 6002)];
        let at = |second| Some(now + Duration::from_secs(second));
        let in_use = || many.clone().chain(few.clone()).map(|(key, second)| (key, at(second))).collect();
        assert_eq!(round(in_use(), 3), [key("many", 0), key("a", 0), key("b", 0)]);
        let all = round(in_use(), OF_A_ROUND);
        assert_eq!(all.len(), OF_A_ROUND);
        assert!(few.iter().all(|(few, _)| all.contains(few)));
        assert!(all.contains(&key("many", OF_A_ROUND - 4)), "what is left is for those that have more");
        let new = [(key("z", 1), None), (key("z", 0), at(1))];
        assert_eq!(round(new.to_vec(), 1), [key("z", 1)], "what was never read comes first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_is_not_answered_ends_and_is_not_the_next_one_again() {
        warren_broker::install_crypto_provider();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let secrets = Secrets::new(Client::try_from(kube::Config::new(url)).unwrap());
        let (sender, _receiver) = futures::channel::mpsc::unbounded();
        let user = User::Queue(ObjectRef::new("orders").within("shop"), sender);
        let since = Instant::now();
        assert!(secrets.get("shop", "rabbitmq", user).await.is_err());
        assert!(since.elapsed() <= ANSWER + Duration::from_secs(1), "{:?}", since.elapsed());
        assert!(secrets.in_use().iter().all(|(_, tried)| tried.is_some()));
    }

    #[test]
    fn of_the_secrets_of_a_namespace_those_that_were_read_longest_ago_come_first() {
        let now = Instant::now();
        let read = |name: &str, second| {
            let at = now + Duration::from_secs(second);
            (("shop".to_owned(), name.to_owned()), Some(at))
        };
        let names = |most| -> Vec<String> {
            let in_use = vec![read("a", 9), read("b", 3), read("c", 5), read("d", 1)];
            round(in_use, most).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(
            (names(2), names(9)),
            (vec!["d".into(), "b".into()], ["d", "b", "c", "a"].map(String::from).into())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_last_counts_while_the_api_server_cannot_give_it() {
        let fails = Arc::new(Mutex::new(false));
        let asked = fails.clone();
        let server = tower::util::service_fn(move |_: http::Request<kube::client::Body>| {
            let status = if *asked.lock().unwrap() { 500 } else { 200 };
            let secret = serde_json::json!({"data": {"uri": "YQ=="}}).to_string();
            let answer = http::Response::builder().status(status);
            let answer = answer.body(kube::client::Body::from(secret.into_bytes())).unwrap();
            std::future::ready(Ok::<_, std::convert::Infallible>(answer))
        });
        let secrets = Secrets::new(Client::new(server, "shop"));
        let (sender, mut receiver) = futures::channel::mpsc::unbounded();
        let user = || User::Queue(ObjectRef::new("orders").within("shop"), sender.clone());
        let read = secrets.get("shop", "rabbitmq", user()).await.unwrap();
        *fails.lock().unwrap() = true;
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(secrets.get("shop", "rabbitmq", user()).await.unwrap(), read);
        assert!(secrets.get("shop", "never", user()).await.is_err());
        tokio::time::advance(LASTING).await;
        let told = secrets.get("shop", "never", user()).await.unwrap();
        assert!(matches!(&told, SecretState::Unreadable(why) if !why.is_empty()), "{told:?}");
        *fails.lock().unwrap() = false;
        while receiver.try_recv().is_ok() {}
        secrets.read(&("shop".to_owned(), "never".to_owned())).await.unwrap();
        assert!(receiver.try_recv().is_ok(), "who waits for it is told");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(secrets.get("shop", "never", user()).await.unwrap(), read);
    }

    #[tokio::test]
    async fn who_uses_a_secret_is_told_of_it_when_it_has_changed_and_not_each_time_that_it_is_read() {
        let uri = Arc::new(Mutex::new("YQ=="));
        let served = uri.clone();
        let server = tower::util::service_fn(move |_: http::Request<kube::client::Body>| {
            let secret = serde_json::json!({"data": {"uri": *served.lock().unwrap()}}).to_string();
            let answer = http::Response::new(kube::client::Body::from(secret.into_bytes()));
            std::future::ready(Ok::<_, std::convert::Infallible>(answer))
        });
        let secrets = Secrets::new(Client::new(server, "shop"));
        let (sender, mut told) = futures::channel::mpsc::unbounded();
        let user = User::Queue(ObjectRef::new("orders").within("shop"), sender);
        secrets.get("shop", "rabbitmq", user).await.unwrap();
        let key = ("shop".to_owned(), "rabbitmq".to_owned());
        secrets.read(&key).await.unwrap();
        assert!(told.try_recv().is_err(), "it is as it was");
        *uri.lock().unwrap() = "Yg==";
        secrets.read(&key).await.unwrap();
        assert_eq!(told.try_recv().unwrap().name, "orders");
    }
}
