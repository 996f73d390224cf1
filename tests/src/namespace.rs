//! A namespace of a test's own: Warren's resources in it, and waits for what their conditions say.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace of a cluster. It stays when the value goes: [`Namespace::delete`] takes it away.
pub struct Namespace {
    /// The cluster.
    pub cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes one with the labels given, `json!({})` for none.
    pub async fn new(cluster: &Cluster, name: &str, labels: Value) -> Result<Self> {
        let metadata = json!({"name": name, "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        cluster.apply(&namespace.to_string()).await?;
        Ok(Self { cluster: cluster.clone(), name: name.to_owned() })
    }

    /// The same without labels, once what an earlier run has left of it is gone.
    pub async fn anew(cluster: &Cluster, name: &str) -> Result<Self> {
        cluster.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=10m"]).await?;
        Self::new(cluster, name, json!({})).await
    }

    /// Takes it away, without waiting for it.
    pub async fn delete(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]).await.map(drop)
    }

    /// The same where a value goes: a namespace that stays goes with the cluster.
    pub fn discard(&self) {
        let mut kubectl = self.cluster.kubectl_command().into_std();
        kubectl.args(["delete", "namespace", &self.name, "--wait=false"]);
        let _ = kubectl.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// Writes a Secret with the address of a broker.
    pub async fn secret(&self, name: &str, uri: &str) -> Result<()> {
        self.secret_of(name, json!({"uri": uri})).await
    }

    /// Writes a Secret with some keys.
    pub async fn secret_of(&self, name: &str, keys: Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": self.name});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys});
        self.cluster.apply(&secret.to_string()).await.map(drop)
    }

    /// A Queue or a Worker as an object.
    pub fn object(&self, kind: &str, name: &str, spec: &Value) -> Value {
        let metadata = json!({"name": name, "namespace": self.name});
        json!({"apiVersion": "warren.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    }

    /// Applies a Queue or a Worker.
    pub async fn apply(&self, kind: &str, name: &str, spec: Value) -> Result<()> {
        self.cluster.apply(&self.object(kind, name, &spec).to_string()).await.map(drop)
    }

    /// Applies many objects at once.
    pub async fn apply_all(&self, objects: Vec<Value>) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).await.map(drop)
    }

    /// Applies a Queue.
    pub async fn queue(&self, name: &str, spec: Value) -> Result<()> {
        self.apply("Queue", name, spec).await
    }

    /// Has the API server refuse, in this namespace, requests that fit `rule` and for which a CEL expression is false, with a message;
    /// until [`Namespace::allow`]. Waits until it refuses `kubectl` with `refused`.
    pub async fn forbid(
        &self,
        rule: Value,
        (expression, message): (&str, &str),
        refused: &[&str],
    ) -> Result<()> {
        let here = json!({"matchLabels": {"kubernetes.io/metadata.name": self.name}});
        let (api, name) = ("admissionregistration.k8s.io/v1", json!({"name": self.name}));
        let policy = json!({"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": name, "spec": {
            "matchConstraints": {"namespaceSelector": here, "resourceRules": [rule]},
            "validations": [{"expression": expression, "message": message}],
        }});
        let binding = json!({"apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": name,
            "spec": {"policyName": self.name, "validationActions": ["Deny"]}});
        self.cluster.apply(&policy.to_string()).await?;
        self.cluster.apply(&binding.to_string()).await?;
        self.eventually("the policy counts", async || {
            let answer = self.kubectl(refused).await.err().context("it was taken")?;
            ensure!(format!("{answer:#}").contains(message), "{answer:#}");
            Ok(())
        })
        .await
    }

    /// Takes back what [`Namespace::forbid`] has forbidden.
    pub async fn allow(&self) -> Result<()> {
        for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
            self.cluster.kubectl(&["delete", kind, &self.name]).await?;
        }
        Ok(())
    }

    /// `kubectl` in this namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.name], args].concat()).await
    }

    /// An object, such as `get("wk", "invoices")`.
    pub async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.cluster.get(&["-n", &self.name, kind, name]).await
    }

    /// The events of a reason, as `kubectl get` lists them.
    pub async fn events(&self, reason: &str) -> Result<String> {
        self.kubectl(&["get", "events", "--field-selector", &format!("reason={reason}")]).await
    }

    /// Waits until a condition has the status, the reason and a message that holds each of `words`; gives the message.
    pub async fn condition(
        &self,
        (kind, name): (&str, &str),
        condition: &str,
        (status, reason): (&str, &str),
        words: &[&str],
    ) -> Result<String> {
        self.eventually(&format!("{kind}/{name} has {condition}={status}, reason {reason}"), async || {
            let object = self.get(kind, name).await?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
            let found = conditions.iter().find(|c| c["type"] == condition).context("no such condition")?;
            ensure!(found["status"] == status && found["reason"] == reason, "{found}");
            let message = found["message"].as_str().unwrap_or_default();
            ensure!(words.iter().all(|word| message.contains(word)), "{message}");
            Ok(message.to_owned())
        })
        .await
    }

    /// Waits until the resource's summary condition is True.
    pub async fn ready(&self, kind: &str, name: &str) -> Result<()> {
        self.eventually(&format!("{kind}/{name} is Ready"), async || {
            let object = self.get(kind, name).await?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ensure!(ready, "{}", object["status"]);
            Ok(())
        })
        .await
    }

    /// Waits until an object is not there any more.
    pub async fn gone(&self, kind: &str, name: &str) -> Result<()> {
        self.eventually(&format!("{kind}/{name} is gone"), async || {
            let left = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
        .await
    }

    /// Waits with this namespace's pods, events and logs shown when it takes too long.
    pub async fn eventually<T>(&self, what: &str, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        self.cluster.eventually(&self.name, PATIENCE, what, condition).await
    }
}
