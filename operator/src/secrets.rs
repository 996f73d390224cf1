//! Secrets, read with `get` alone: the operator may neither list nor watch them.
//!
//! Each Secret in use is read again every few seconds; when it changes, the resources that use it are reconciled. One read
//! serves all who use the same Secret.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{GetParams, Request};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use serde::Deserialize;
use serde::de::Error;
use tokio::time::Instant;
use warren_api::{Queue, Worker};

use crate::locked::locked;

/// How old a read may be when a resource is reconciled.
const FRESH: Duration = Duration::from_secs(2);
/// How often each Secret in use is read.
const POLL: Duration = Duration::from_secs(5);
/// Reads a second at most.
const READ_SPACING: Duration = Duration::from_millis(40);
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
    users: HashMap<(&'static str, String), (User, Instant)>,
    /// Held while it is read, so that many readers make one request.
    reading: Arc<tokio::sync::Mutex<()>>,
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

    /// Reads a Secret, and has `user` reconciled when it changes.
    ///
    /// # Errors
    /// The API server did not answer.
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
        if let Some(state) = locked(&self.slots).get(&key).and_then(Slot::fresh) {
            return Ok(state);
        }
        self.read(&key).await
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
        let state = match self.client.request_text(request).await {
            Ok(text) => SecretState::Found(Arc::new(keys(&text)?)),
            Err(kube::Error::Api(status)) if status.code == 404 => SecretState::Missing,
            Err(kube::Error::Api(status)) if status.code == 403 => SecretState::Forbidden,
            Err(error) => return Err(error),
        };
        let mut slots = locked(&self.slots);
        if let Some(slot) = slots.get_mut(key) {
            let before = slot.state.replace((state.clone(), Instant::now()));
            if before.is_some_and(|(before, _)| before != state) {
                slot.users.values().for_each(|(user, _)| user.notify());
            }
        }
        Ok(state)
    }

    /// Reads each Secret in use again and again, for ever.
    pub async fn poll(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL.mul_f64(rand::random_range(0.8..1.2))).await;
            for key in self.in_use() {
                if let Err(error) = self.read(&key).await {
                    tracing::debug!(namespace = %key.0, secret = %key.1, %error, "not read");
                }
                tokio::time::sleep(READ_SPACING).await;
            }
        }
    }

    fn in_use(&self) -> Vec<Name> {
        let mut slots = locked(&self.slots);
        slots.retain(|_, slot| {
            slot.users.retain(|_, (_, seen)| seen.elapsed() < FORGET_USER);
            !slot.users.is_empty()
        });
        slots.keys().cloned().collect()
    }
}

impl Slot {
    fn fresh(&self) -> Option<SecretState> {
        self.state.as_ref().filter(|(_, read)| read.elapsed() < FRESH).map(|(state, _)| state.clone())
    }
}

/// The keys of a Secret; an error says nothing of what is in it.
fn keys(text: &str) -> Result<BTreeMap<String, Vec<u8>>, kube::Error> {
    #[derive(Deserialize)]
    struct Keys {
        data: Option<BTreeMap<String, ByteString>>,
    }
    let read: Keys = serde_json::from_str(text)
        .map_err(|_| kube::Error::SerdeError(Error::custom("a Secret's data cannot be read")))?;
    Ok(read.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect())
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
}
