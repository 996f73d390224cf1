//! Operators as processes beside a real API server and a real broker: conditions, finalizers, and who leads.

use std::ops::Deref;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_tests::amqp::Client;
use warren_tests::broker::Vhost;
use warren_tests::namespace::Namespace;
use warren_tests::operator::{Operator, READY, WRITES};

use crate::cluster;

/// The metric of Queues' reconciles that the API server did not let end.
const FORBIDDEN: &str = "warren_operator_reconcile_errors_total{category=\"forbidden\",kind=\"queue\"}";

/// A namespace and a vhost of the same name.
pub struct Room {
    namespace: Namespace,
    pub vhost: Vhost,
}

impl Deref for Room {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// What the next stage's operator, which watches all namespaces, would else find.
impl Drop for Room {
    fn drop(&mut self) {
        self.namespace.discard();
    }
}

/// An operator that watches these namespaces as the user of a kubeconfig.
async fn watching(kubeconfig: &Path, namespaces: &[&str], identity: &str) -> Result<Operator> {
    let binary = Operator::build().await?;
    Operator::watching(&binary, kubeconfig, namespaces, identity).await
}

impl Room {
    pub async fn new(name: &str) -> Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let vhost = Vhost::new(&name).await?;
        let namespace = Namespace::new(cluster().await, &name, json!({})).await?;
        namespace.secret("rabbitmq", &vhost.uri()).await?;
        Ok(Self { namespace, vhost })
    }

    pub async fn operator(&self, identity: &str) -> Result<Operator> {
        let binary = Operator::build().await?;
        Operator::start(&binary, &self.cluster, &self.name, identity).await
    }

    /// A Worker of a Queue whose pods need not start.
    pub async fn worker(&self, name: &str, queue: &str, fields: Value) -> Result<()> {
        let container = json!({"name": "app", "image": "app", "ports": [{"containerPort": 8080}]});
        let mut spec =
            json!({"queueRef": {"name": queue}, "template": {"spec": {"containers": [container]}}});
        for (field, value) in fields.as_object().context("no object")? {
            spec[field] = value.clone();
        }
        self.apply("Worker", name, spec).await
    }

    /// What an operator may do that is [`limited_to`] the namespace.
    async fn role(&self, rules: Value) -> Result<()> {
        let metadata = json!({"name": "all", "namespace": self.name});
        let version = "rbac.authorization.k8s.io/v1";
        let role = json!({"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules});
        self.cluster.apply(&role.to_string()).await.map(drop)
    }

    /// Waits until a Queue's condition is so.
    pub async fn condition(
        &self,
        name: &str,
        kind: &str,
        status: &str,
        reason: &str,
        word: &str,
    ) -> Result<()> {
        self.condition_of("wq", name, kind, (status, reason, word)).await
    }

    /// Waits until a Worker's `QueueReady` is so, and its sidecars are told to consume or not to.
    async fn consuming(&self, worker: &str, queue_ready: (&str, &str, &str), consumes: bool) -> Result<()> {
        self.condition_of("wk", worker, "QueueReady", queue_ready).await?;
        let name = format!("{worker}-sidecar");
        self.eventually(&format!("consuming is {consumes}"), async || {
            let config = self.get("configmap", &name).await?;
            let held = config["data"].to_string().replace(['\\', '"', ' '], "").contains("paused:true");
            ensure!(held != consumes, "{}", config["data"]);
            Ok(())
        })
        .await
    }

    async fn condition_of(
        &self,
        resource: &str,
        name: &str,
        kind: &str,
        (status, reason, word): (&str, &str, &str),
    ) -> Result<()> {
        self.namespace.condition((resource, name), kind, (status, reason), &[word]).await.map(drop)
    }

    /// Waits until a field of the spec of a Worker's Deployment, by its JSON pointer, is so.
    async fn deployed(&self, worker: &str, field: &str, wanted: Value) -> Result<()> {
        self.eventually(&format!("the Deployment's {field} is {wanted}"), async || {
            let deployment = self.get("deployment", worker).await?;
            let told = deployment["spec"].pointer(field);
            ensure!(told == Some(&wanted), "{told:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a Worker's Deployment asks for so many replicas.
    async fn replicas(&self, worker: &str, count: u64) -> Result<()> {
        self.deployed(worker, "/replicas", count.into()).await
    }

    /// A pod of a Worker, that no kubelet runs.
    async fn pod(&self, name: &str, worker: &str) -> Result<()> {
        let metadata = json!({"name": name, "namespace": self.name, "labels": {"warren.dev/worker": worker}});
        let spec = json!({"containers": [{"name": "app", "image": "app"}]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string();
        // The namespace may not have its ServiceAccount yet.
        self.eventually("there is a pod", async || self.cluster.apply(&pod).await.map(drop)).await
    }

    /// A webhook without which the API server takes nothing of a rule in this namespace, and that does not answer; waits until it
    /// counts for a command of `kubectl`.
    async fn webhook_that_is_down(&self, rule: Value, tried: &[&str]) -> Result<()> {
        let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.name}, "webhooks": [{"name": "away.example.com", "failurePolicy": "Fail",
                "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.name}}, "rules": [rule]}]});
        self.cluster.apply(&webhook.to_string()).await?;
        self.eventually("the webhook counts", async || {
            let refused = self.kubectl(tried).await.err().context("it was taken")?;
            ensure!(format!("{refused:#}").contains("failed calling webhook"), "{refused:#}");
            Ok(())
        })
        .await
    }

    async fn end_pod(&self, name: &str) -> Result<()> {
        self.cluster.kill(&self.name, &["pod", name]).await
    }

    pub async fn ready(&self, name: &str) -> Result<()> {
        self.condition(name, "Ready", "True", "Declared", "").await
    }

    pub async fn gone(&self, name: &str) -> Result<()> {
        self.namespace.gone("wq", name).await
    }
}

#[tokio::test]
async fn of_two_queues_that_name_the_same_broker_queue_the_older_keeps_it() -> Result<()> {
    let room = Room::new("conflict").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    // Of two that were created in the same second, the name decides.
    room.queue("second", json!({"queueName": "orders"})).await?;
    room.condition("second", "Declared", "False", "Conflict", "\"orders\" in namespace").await?;
    // A derived name conflicts too.
    room.queue("third", json!({"queueName": "orders.dlq"})).await?;
    room.condition("third", "Declared", "False", "Conflict", "\"orders.dlq\"").await?;
    room.ready("orders").await?;
    room.kubectl(&["delete", "wq", "orders"]).await?;
    room.ready("second").await
}

#[tokio::test]
async fn a_name_that_is_given_up_in_one_watched_namespace_goes_to_the_next_queue_in_another() -> Result<()> {
    // Of two that were created in the same second, the namespace's name decides.
    let (one, other) = (Room::new("given-a").await?, Room::new("given-b").await?);
    let both = [one.name.as_str(), other.name.as_str()];
    let _operator = watching(one.cluster.kubeconfig(), &both, "one").await?;
    one.secret("shared", &other.vhost.uri()).await?;
    one.queue("older", json!({"queueName": "orders", "broker": {"secretRef": {"name": "shared"}}})).await?;
    one.ready("older").await?;
    other.queue("younger", json!({"queueName": "orders"})).await?;
    other.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    one.kubectl(&["delete", "wq", "older"]).await?;
    // Sooner than a Queue is looked at for no reason.
    other.ready("younger").await
}

#[tokio::test]
async fn an_older_queue_keeps_its_name_while_its_secret_is_away() -> Result<()> {
    let room = Room::new("secretless").await?;
    let operator = room.operator("one").await?;
    room.secret("own", &room.vhost.uri()).await?;
    room.queue("orders", json!({"broker": {"secretRef": {"name": "own"}}})).await?;
    room.ready("orders").await?;
    room.queue("younger", json!({"queueName": "orders"})).await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"orders\" in namespace").await?;
    room.kubectl(&["delete", "secret", "own"]).await?;
    room.condition("orders", "BrokerReachable", "False", "SecretNotFound", "\"own\"").await?;
    // The younger one is looked at again.
    room.queue("younger", json!({"queueName": "orders", "retry": {"delaysSeconds": [7]}})).await?;
    room.eventually("the younger one is refused anew", async || {
        let queue = room.get("wq", "younger").await?;
        let conditions = queue["status"]["conditions"].as_array().context("no conditions")?;
        let declared = conditions.iter().find(|c| c["type"] == "Declared").context("no such condition")?;
        ensure!(declared["observedGeneration"] == queue["metadata"]["generation"], "{declared}");
        ensure!(declared["reason"] == "Conflict", "{declared}");
        Ok(())
    })
    .await?;
    // Nor does it take over by a restart.
    operator.stop().await?;
    let _second = room.operator("two").await?;
    room.queue("later", json!({})).await?;
    room.ready("later").await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"orders\" in namespace").await?;
    // Nor does one that is new then.
    room.queue("youngest", json!({"queueName": "orders"})).await?;
    room.condition("youngest", "Declared", "False", "Conflict", "\"orders\" in namespace").await?;
    room.secret("own", &room.vhost.uri()).await?;
    room.ready("orders").await
}

#[tokio::test]
async fn a_worker_whose_one_replica_keeps_the_order_replaces_its_pod_and_one_without_order_rolls()
-> Result<()> {
    let room = Room::new("strategy").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let one = json!({"maxReplicas": 1});
    for (consumer, strategy) in [
        (json!({}), "RollingUpdate"),
        // What the API server has filled in for the other strategy must go.
        (json!({"orderingKey": "x-customer"}), "Recreate"),
        (json!({}), "RollingUpdate"),
    ] {
        room.worker("invoices", "orders", json!({"scaling": one, "consumer": consumer})).await?;
        room.deployed("invoices", "/strategy/type", strategy.into()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_deployment_that_an_orphaning_deletion_has_left_is_taken_over_in_another_form() -> Result<()> {
    let room = Room::new("orphan").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let one = json!({"maxReplicas": 1});
    room.worker("invoices", "orders", json!({"scaling": one})).await?;
    room.deployed("invoices", "/strategy/type", "RollingUpdate".into()).await?;
    room.kubectl(&["delete", "wk", "invoices", "--cascade=orphan"]).await?;
    room.eventually("the Deployment has no owner", async || {
        let deployment = room.get("deployment", "invoices").await?;
        ensure!(deployment["metadata"]["ownerReferences"].is_null(), "{}", deployment["metadata"]);
        Ok(())
    })
    .await?;
    let consumer = json!({"orderingKey": "x-customer"});
    room.worker("invoices", "orders", json!({"scaling": one, "consumer": consumer})).await?;
    room.deployed("invoices", "/strategy/type", "Recreate".into()).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("True", "Accepted", "")).await
}

#[tokio::test]
async fn a_policy_that_refuses_a_strategy_is_told_in_its_own_words() -> Result<()> {
    let room = Room::new("policy").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let one = json!({"maxReplicas": 1});
    room.worker("invoices", "orders", json!({"scaling": one})).await?;
    room.deployed("invoices", "/strategy/type", "RollingUpdate".into()).await?;
    let (version, name) = ("admissionregistration.k8s.io/v1", &room.name);
    let deployments = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments"]});
    let policy = json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": {
        "matchConstraints": {"resourceRules": [deployments]},
        "validations": [{"expression": "object.spec.strategy.type != 'Recreate'", "message": "no downtime here"}]}});
    room.cluster.apply(&policy.to_string()).await?;
    let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
    let binding = json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": here}});
    room.cluster.apply(&binding.to_string()).await?;
    let recreate = r#"{"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}"#;
    let tried = ["patch", "deployment", "invoices", "--type=merge", "--dry-run=server", "-p", recreate];
    room.eventually("the policy counts", async || {
        let refused = room.kubectl(&tried).await.err().context("it was taken")?;
        ensure!(format!("{refused:#}").contains("no downtime here"), "{refused:#}");
        Ok(())
    })
    .await?;
    let consumer = json!({"orderingKey": "x-customer"});
    room.worker("invoices", "orders", json!({"scaling": one, "consumer": consumer})).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("False", "Refused", "no downtime here")).await?;
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        room.kubectl(&["delete", kind, name]).await?;
    }
    room.deployed("invoices", "/strategy/type", "Recreate".into()).await
}

#[tokio::test]
async fn an_account_that_a_template_names_no_more_is_not_kept() -> Result<()> {
    let room = Room::new("account").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let containers = json!([{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]);
    for (spec, account) in [
        (json!({"containers": containers, "serviceAccountName": "shop"}), "shop"),
        // The API server would keep it by the field's old name.
        (json!({"containers": containers}), "default"),
        (json!({"containers": containers, "serviceAccount": "other"}), "other"),
    ] {
        room.worker("invoices", "orders", json!({"template": {"spec": spec}})).await?;
        for name in ["serviceAccountName", "serviceAccount"] {
            room.deployed("invoices", &format!("/template/spec/{name}"), account.into()).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_queue_leaves_on_another_virtual_host_is_told() -> Result<()> {
    let room = Room::new("moved").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    let other = Vhost::new("moved-to").await?;
    room.queue("orders", json!({"broker": {"vhost": other.name}})).await?;
    room.eventually("what is left behind is told", async || {
        let events = room.events("BrokerChanged").await?;
        let former = room.vhost.name.replace('-', "%2D");
        ensure!(events.contains(&format!("/{former} is another broker")), "{events}");
        Ok(())
    })
    .await?;
    room.eventually("the Queue is kept there", async || {
        let client = Client::connect(&other.uri()).await?;
        ensure!(client.ready("orders").await? == Some(0), "not yet");
        Ok(())
    })
    .await?;
    let left = Client::connect(&room.vhost.uri()).await?;
    assert_eq!(left.ready("orders").await?, Some(0), "nothing is deleted");
    Ok(())
}

#[tokio::test]
async fn consuming_is_held_for_an_order_until_one_pod_alone_is_left() -> Result<()> {
    let room = Room::new("one-pod").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    room.pod("left", "gone").await?;
    let ordered = json!({"scaling": {"maxReplicas": 1}, "consumer": {"orderingKey": "x-customer"}});
    room.worker("invoices", "orders", ordered).await?;
    let held = |word| ("False", "OrderingNotGuaranteed", word);
    let consumes = ("True", "QueueReady", "");
    room.consuming("invoices", held("Worker \"gone\""), false).await?;
    room.end_pod("left").await?;
    room.consuming("invoices", consumes, true).await?;
    room.pod("first", "invoices").await?;
    room.pod("second", "invoices").await?;
    room.consuming("invoices", held("pod first has not ended"), false).await?;
    room.end_pod("first").await?;
    room.consuming("invoices", consumes, true).await?;
    // Whatever takes its place while no operator looks does not consume.
    let alone = async |pod: &str| {
        room.eventually(&format!("{pod} alone may consume"), async || {
            let config = room.get("configmap", "invoices-sidecar").await?;
            let file = config["data"]["config.json"].as_str().context("no file")?;
            let config: Value = serde_json::from_str(file)?;
            ensure!(config["consumer"]["onlyPod"] == pod, "{config}");
            Ok(())
        })
        .await
    };
    alone("second").await?;
    // What else cannot be applied keeps neither two of them from holding, nor the one that is left from going on.
    let container = json!({"name": "app", "image": "app", "ports": [{"containerPort": 9400}]});
    let taken = json!({"spec": {"template": {"spec": {"containers": [container]}}}}).to_string();
    room.kubectl(&["patch", "wk", "invoices", "--type=merge", "-p", &taken]).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("False", "PortTaken", "9400")).await?;
    room.pod("third", "invoices").await?;
    room.consuming("invoices", held("pod second has not ended"), false).await?;
    room.end_pod("second").await?;
    room.consuming("invoices", consumes, true).await?;
    alone("third").await
}

#[tokio::test]
async fn sidecars_that_cannot_be_told_of_another_queue_hold_an_order_through_a_restart() -> Result<()> {
    let room = Room::new("untold").await?;
    let operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    room.worker("away", "orders", json!({})).await?;
    room.consuming("away", ("True", "QueueReady", ""), true).await?;
    // That Queue is not there: its sidecars would go on with the one before, whenever they come.
    let turned = r#"{"spec": {"queueRef": {"name": "mistyped"}}}"#;
    room.kubectl(&["patch", "wk", "away", "--type=merge", "-p", turned]).await?;
    room.condition_of("wk", "away", "QueueReady", ("False", "QueueNotFound", "mistyped")).await?;
    let ordered = json!({"scaling": {"maxReplicas": 1}, "consumer": {"orderingKey": "x-customer"}});
    room.worker("invoices", "orders", ordered).await?;
    let held = ("False", "OrderingNotGuaranteed", "Worker \"away\"");
    room.consuming("invoices", held, false).await?;
    room.pod("of-away", "away").await?;
    operator.stop().await?;
    let before = room.get("configmap", "invoices-sidecar").await?;
    let _second = room.operator("two").await?;
    room.queue("later", json!({})).await?;
    room.ready("later").await?;
    let another = json!({"metadata": {"labels": {"looked-at": "again"}}}).to_string();
    room.kubectl(&["patch", "wk", "invoices", "--type=merge", "-p", &another]).await?;
    room.consuming("invoices", held, false).await?;
    let after = room.get("configmap", "invoices-sidecar").await?;
    ensure!(before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"], "{after}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_consumed_from_a_queue_that_is_somebody_else_s() -> Result<()> {
    let room = Room::new("somebody-s").await?;
    let broker = Client::connect(&room.vhost.uri()).await?;
    broker.declare_durable("orders", "quorum").await?;
    broker.publish("orders", b"theirs").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({"adoptionPolicy": "FailIfExists"})).await?;
    room.worker("invoices", "orders", json!({})).await?;
    room.consuming("invoices", ("False", "AlreadyExists", "adoptionPolicy: Adopt"), false).await?;
    room.condition_of("wk", "invoices", "ScalingActive", ("True", "Paused", "QueueReady")).await?;
    let deployment = room.get("deployment", "invoices").await?;
    ensure!(deployment["spec"]["replicas"] == 0, "{}", deployment["spec"]);
    broker.delete("orders").await?;
    room.consuming("invoices", ("True", "QueueReady", ""), true).await
}

#[tokio::test]
async fn replicas_that_a_policy_refuses_are_told_and_come_when_it_is_gone() -> Result<()> {
    let room = Room::new("refused").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({})).await?;
    let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/scale"]});
    let scale = ["scale", "deployment/invoices", "--replicas=1", "--dry-run=server"];
    room.forbid(rule, ("object.spec.replicas == 0", "no pods today"), &scale).await?;
    Client::connect(&room.vhost.uri()).await?.publish("orders", b"one").await?;
    let told = ("False", "ScaleRefused", "no pods today");
    room.condition_of("wk", "invoices", "ScalingActive", told).await?;
    room.allow().await?;
    room.replicas("invoices", 1).await
}

#[tokio::test]
async fn a_worker_at_its_maximum_has_an_event_and_decisions_are_counted_and_the_pace_of_looks_is_told()
-> Result<()> {
    let room = Room::new("at-maximum").await?;
    let operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({"scaling": {"maxReplicas": 1}})).await?;
    room.consuming("invoices", ("True", "QueueReady", ""), true).await?;
    let messages = (0..100).map(|n| format!("message {n}").into_bytes());
    Client::connect(&room.vhost.uri()).await?.publish_all("orders", messages).await?;
    room.condition_of("wk", "invoices", "ScalingActive", ("True", "AtMaximum", "allows 1")).await?;
    room.eventually("an event tells", async || {
        let events = room.events("AtMaximum").await?;
        ensure!(events.contains("worker/invoices") && events.contains("allows 1"), "{events}");
        Ok(())
    })
    .await?;
    room.eventually("the metrics tell", async || {
        for reason in ["ScaledOut", "AtMaximum"] {
            let labels = format!("namespace=\"{}\",worker=\"invoices\",reason=\"{reason}\"", room.name);
            let decisions =
                operator.metric(&format!("warren_operator_scale_decisions_total{{{labels}}}")).await?;
            ensure!(decisions >= 1.0, "{reason}: {decisions}");
        }
        let interval = operator.metric("warren_operator_probe_interval_seconds").await?;
        ensure!(interval == 0.4, "{interval}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_webhook_that_is_down_is_told_and_the_replicas_of_mode_manual_count_all_the_same() -> Result<()> {
    let room = Room::new("webhook").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({"scaling": {"mode": "Manual"}, "replicas": 0})).await?;
    room.consuming("invoices", ("True", "QueueReady", ""), true).await?;
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["configmaps"]});
    let marked = ["label", "configmap/invoices-sidecar", "seen=1", "--dry-run=server", "--overwrite"];
    room.webhook_that_is_down(rule, &marked).await?;
    let change = json!({"spec": {"replicas": 2, "consumer": {"prefetch": 5}}}).to_string();
    room.kubectl(&["patch", "wk", "invoices", "--type=merge", "-p", &change]).await?;
    let told = ("False", "NotApplied", "failed calling webhook");
    room.condition_of("wk", "invoices", "TemplateValid", told).await?;
    room.replicas("invoices", 2).await?;
    room.cluster.kubectl(&["delete", "validatingwebhookconfiguration", &room.name]).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("True", "Accepted", "")).await
}

#[tokio::test]
async fn a_webhook_that_keeps_a_worker_from_scaling_is_told_until_it_answers() -> Result<()> {
    let room = Room::new("scale-webhook").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({})).await?;
    room.consuming("invoices", ("True", "QueueReady", ""), true).await?;
    let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/scale"]});
    let scale = ["scale", "deployment/invoices", "--replicas=1", "--dry-run=server"];
    room.webhook_that_is_down(rule, &scale).await?;
    Client::connect(&room.vhost.uri()).await?.publish("orders", b"one").await?;
    let told = ("False", "ScaleRefused", "failed calling webhook");
    room.condition_of("wk", "invoices", "ScalingActive", told).await?;
    room.cluster.kubectl(&["delete", "validatingwebhookconfiguration", &room.name]).await?;
    room.replicas("invoices", 1).await
}

#[tokio::test]
async fn what_somebody_has_put_into_a_deployment_s_template_does_not_keep_the_worker_from_being_applied()
-> Result<()> {
    let room = Room::new("set-env").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let app = |env: Value| {
        let container =
            json!({"name": "app", "image": "app", "ports": [{"containerPort": 8080}], "env": env});
        json!({"template": {"spec": {"containers": [container]}}})
    };
    let variables = async |what: &str, is_right: &dyn Fn(&str) -> bool| {
        room.eventually(what, async || {
            let path = "jsonpath={.spec.template.spec.containers[0].env}";
            let env = room.kubectl(&["get", "deployment", "invoices", "-o", path]).await?;
            ensure!(is_right(&env), "{env}");
            Ok(())
        })
        .await
    };
    let accepted = ("True", "Accepted", "");
    room.worker("invoices", "orders", app(json!([{"name": "PW", "value": "plain"}]))).await?;
    room.condition_of("wk", "invoices", "TemplateValid", accepted).await?;
    variables("there is the first", &|env| env.contains("plain")).await?;
    let secret = json!({"secretKeyRef": {"name": "rabbitmq", "key": "uri"}});
    let second = json!([{"name": "PW", "valueFrom": secret}, {"name": "FOO", "value": "foo"}]);
    room.worker("invoices", "orders", app(second)).await?;
    variables("there is the second", &|env| env.contains("secretKeyRef") && env.contains("foo")).await?;
    // As `rollout undo` does, which takes the whole template of before: two sources of one variable, and the other one gone.
    let undone = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/env", "value": [{"name": "PW", "value": "plain"}]}]);
    let undo = ["patch", "deployment", "invoices", "--type=json", "--field-manager=kubectl-rollout", "-p"];
    room.kubectl(&[&undo[..], &[&undone.to_string()]].concat()).await?;
    variables("they are the Worker's again", &|env| {
        env.contains("secretKeyRef") && env.contains("foo") && !env.contains("plain")
    })
    .await?;
    room.condition_of("wk", "invoices", "TemplateValid", accepted).await?;
    // What was put back goes with the Worker's wish for it.
    room.worker("invoices", "orders", app(json!([{"name": "PW", "valueFrom": secret}]))).await?;
    variables("one is left", &|env| env.contains("secretKeyRef") && !env.contains("foo")).await
}

#[tokio::test]
async fn a_deployment_that_has_lost_its_label_is_taken_back_also_where_what_else_was_changed_is_refused()
-> Result<()> {
    let room = Room::new("no-label").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let ordered = json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}});
    room.worker("invoices", "orders", ordered).await?;
    let is_ours = async || {
        room.eventually("the Deployment has its label and its strategy", async || {
            let path = "jsonpath={.metadata.labels.warren\\.dev/worker} {.spec.strategy}";
            let shown = room.kubectl(&["get", "deployment", "invoices", "-o", path]).await?;
            ensure!(shown.starts_with("invoices ") && !shown.contains("rollingUpdate"), "{shown}");
            Ok(())
        })
        .await
    };
    is_ours().await?;
    // Server-side apply leaves the figures of a rolling update, and the API server refuses them beside `Recreate`.
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    let patch = json!({"metadata": {"labels": {"warren.dev/worker": null}}, "spec": {"strategy": rolling}});
    room.kubectl(&["patch", "deployment", "invoices", "--type=merge", "-p", &patch.to_string()]).await?;
    is_ours().await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("True", "Accepted", "")).await
}

#[tokio::test]
async fn a_rollout_that_somebody_has_paused_goes_on_and_is_told() -> Result<()> {
    let room = Room::new("paused").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({})).await?;
    room.replicas("invoices", 0).await?;
    room.kubectl(&["rollout", "pause", "deployment/invoices"]).await?;
    room.eventually("it is told, and goes on", async || {
        let told = room.events("RolloutResumed").await?;
        ensure!(told.contains("consumer.paused"), "{told}");
        let paused = ["get", "deployment", "invoices", "-o", "jsonpath={.spec.paused}"];
        let paused = room.kubectl(&paused).await?;
        ensure!(paused.is_empty(), "{paused}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_deployment_that_somebody_scales_is_put_back_and_told_where_others_decide_too() -> Result<()> {
    let room = Room::new("reverted").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({"scaling": {"mode": "External"}, "replicas": 2})).await?;
    room.replicas("invoices", 2).await?;
    // What is wanted is no news, whatever the caches know of it by then.
    room.kubectl(&["scale", "wk/invoices", "--replicas=3"]).await?;
    room.replicas("invoices", 3).await?;
    room.eventually("the status says so", async || {
        let desired = ["get", "wk", "invoices", "-o", "jsonpath={.status.desiredReplicas}"];
        ensure!(room.kubectl(&desired).await? == "3");
        Ok(())
    })
    .await?;
    assert_eq!(room.events("ScaleReverted").await?, "");
    room.kubectl(&["scale", "deployment/invoices", "--replicas=5"]).await?;
    room.eventually("it is told", async || {
        let told = room.events("ScaleReverted").await?;
        ensure!(told.contains("set 5 replicas") && told.contains("puts back 3"), "{told}");
        Ok(())
    })
    .await?;
    room.replicas("invoices", 3).await
}

#[tokio::test]
async fn in_mode_manual_the_replicas_count_also_while_the_queue_is_gone() -> Result<()> {
    let room = Room::new("obeyed").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.worker("invoices", "orders", json!({"scaling": {"mode": "Manual"}, "replicas": 2})).await?;
    room.replicas("invoices", 2).await?;
    room.kubectl(&["delete", "wq", "orders"]).await?;
    let gone = ("False", "QueueNotFound", "\"orders\"");
    room.condition_of("wk", "invoices", "QueueReady", gone).await?;
    for count in [0, 3] {
        room.kubectl(&["scale", "wk/invoices", &format!("--replicas={count}")]).await?;
        room.replicas("invoices", count).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_is_made_soon_after_somebody_else_s_deployment_of_its_name_is_gone() -> Result<()> {
    let room = Room::new("taken").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let metadata = json!({"name": "invoices", "namespace": room.name});
    let labels = json!({"app": "other"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": labels}, "template": template});
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec});
    room.cluster.apply(&other.to_string()).await?;
    room.worker("invoices", "orders", json!({})).await?;
    let taken = ("False", "NameTaken", "Deployment \"invoices\"");
    room.condition_of("wk", "invoices", "TemplateValid", taken).await?;
    room.kubectl(&["delete", "deployment", "invoices"]).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("True", "Accepted", "")).await
}

#[tokio::test]
async fn what_has_the_label_of_a_worker_and_is_somebody_else_s_is_left_as_it_is() -> Result<()> {
    let room = Room::new("labelled").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    let name = "invoices-sidecar";
    let metadata = json!({"name": name, "namespace": room.name, "labels": {"warren.dev/worker": "invoices"}});
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.json": "theirs"}});
    room.cluster.apply(&theirs.to_string()).await?;
    room.worker("invoices", "orders", json!({})).await?;
    let taken = ("False", "NameTaken", "ConfigMap \"invoices-sidecar\"");
    room.condition_of("wk", "invoices", "TemplateValid", taken).await?;
    let left: Value = serde_json::from_str(&room.kubectl(&["get", "configmap", name, "-o", "json"]).await?)?;
    assert_eq!((&left["data"], &left["metadata"]["ownerReferences"]), (&theirs["data"], &Value::Null));
    room.kubectl(&["delete", "configmap", name]).await?;
    room.condition_of("wk", "invoices", "TemplateValid", ("True", "Accepted", "")).await
}

#[tokio::test]
async fn a_time_that_no_calendar_knows_in_managed_fields_keeps_no_object_from_its_work() -> Result<()> {
    let room = Room::new("calendar").await?;
    room.queue("orders", json!({"deletionPolicy": "Delete"})).await?;
    room.worker("billing", "orders", json!({})).await?;
    room.pod("stray", "gone").await?;
    // The API server takes them from whoever may change the object.
    for (resource, name, version) in [
        ("wq", "orders", "warren.dev/v1alpha1"),
        ("wk", "billing", "warren.dev/v1alpha1"),
        ("pod", "stray", "v1"),
    ] {
        let entry = json!({
            "manager": "old", "operation": "Update", "apiVersion": version, "time": "9999-12-31T23:59:59Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:annotations": {"f:note": {}}}},
        });
        let patch = json!({"metadata": {"managedFields": [entry]}}).to_string();
        room.kubectl(&["patch", resource, name, "--type=merge", "-p", &patch]).await?;
        let kept = room.kubectl(&["get", resource, name, "-o", "json", "--show-managed-fields"]).await?;
        assert!(kept.contains("9999-12-31"), "{kept}");
    }
    let _operator = room.operator("one").await?;
    room.ready("orders").await?;
    room.consuming("billing", ("True", "QueueReady", ""), true).await?;
    room.kubectl(&["delete", "wk", "billing"]).await?;
    room.end_pod("stray").await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    room.gone("orders").await
}

#[tokio::test]
async fn a_deletion_that_is_blocked_says_why_and_retain_lets_go() -> Result<()> {
    let room = Room::new("blocked").await?;
    let _operator = room.operator("one").await?;
    room.queue("plain", json!({})).await?;
    room.queue("orders", json!({"deletionPolicy": "DeleteIfEmpty"})).await?;
    room.ready("plain").await?;
    room.ready("orders").await?;
    let finalizers = room.kubectl(&["get", "wq", "plain", "-o", "jsonpath={.metadata.finalizers}"]).await?;
    assert_eq!(finalizers.trim(), "", "Retain needs none");
    let client = Client::connect(&room.vhost.uri()).await?;
    client.publish("orders", b"in the way").await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    room.condition("orders", "DeletionBlocked", "True", "NotEmpty", "\"orders\" has 1 messages").await?;
    let retain = r#"{"spec": {"deletionPolicy": "Retain"}}"#;
    room.kubectl(&["patch", "wq", "orders", "--type=merge", "-p", retain]).await?;
    room.gone("orders").await?;
    // With its message.
    client.holds("orders", 1).await?;

    // Without its broker too.
    room.secret("elsewhere", "amqp://u:p@127.0.0.1:1/").await?;
    room.queue("lost", json!({"deletionPolicy": "Delete", "broker": {"secretRef": {"name": "elsewhere"}}}))
        .await?;
    room.condition("lost", "BrokerReachable", "False", "BrokerUnreachable", "127.0.0.1:1").await?;
    room.kubectl(&["delete", "wq", "lost", "--wait=false"]).await?;
    room.condition("lost", "DeletionBlocked", "True", "BrokerUnreachable", "set deletionPolicy: Retain")
        .await?;
    room.kubectl(&["patch", "wq", "lost", "--type=merge", "-p", retain]).await?;
    room.gone("lost").await?;

    // What is empty goes, with its finalizer.
    room.queue("empty", json!({"deletionPolicy": "DeleteIfEmpty"})).await?;
    room.ready("empty").await?;
    room.kubectl(&["delete", "wq", "empty", "--wait=false"]).await?;
    room.gone("empty").await?;
    assert_eq!(client.ready("empty").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_queue_is_kept_whole_while_a_pod_of_a_worker_that_is_gone_may_hold_its_messages() -> Result<()> {
    let room = Room::new("pods-left").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({"deletionPolicy": "DeleteIfEmpty", "retry": {"delaysSeconds": [5]}})).await?;
    room.ready("orders").await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    client.publish("orders", b"in the way").await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    // By now the broker's lane is told to remove it.
    room.condition("orders", "DeletionBlocked", "True", "NotEmpty", "\"orders\" has 1 messages").await?;
    room.pod("left", "gone").await?;
    room.condition("orders", "DeletionBlocked", "True", "WorkersRunning", "Worker \"gone\"").await?;
    client.purge("orders").await?;
    // It is kept as if it were not being deleted, although it is empty.
    client.delete("orders.retry.5s").await?;
    room.eventually("the rung is back", async || {
        ensure!(client.ready("orders.retry.5s").await?.is_some(), "not yet");
        Ok(())
    })
    .await?;
    assert_eq!(client.ready("orders").await?, Some(0));
    room.end_pod("left").await?;
    room.gone("orders").await?;
    assert_eq!(client.ready("orders").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_queue_that_went_while_no_operator_ran_is_told_as_lost_and_a_new_one_is_not() -> Result<()> {
    let room = Room::new("recreated").await?;
    let first = room.operator("one").await?;
    for name in ["orders", "sound"] {
        room.queue(name, json!({})).await?;
        room.ready(name).await?;
    }
    first.stop().await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    client.delete("orders").await?;
    room.queue("new", json!({})).await?;
    let second = room.operator("two").await?;
    room.ready("new").await?;
    room.eventually("the loss is told", async || {
        let events = room.events("QueueRecreated").await?;
        ensure!(events.contains("queue/orders") && events.contains("with its messages"), "{events}");
        ensure!(!events.contains("queue/new") && !events.contains("queue/sound"), "{events}");
        Ok(())
    })
    .await?;
    let lost = async |queue: &str| {
        let labels = format!("namespace=\"{}\",queue=\"{queue}\"", room.name);
        second.metric(&format!("warren_operator_queue_recreated_timestamp_seconds{{{labels}}}")).await
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    assert!((since - lost("orders").await?).abs() < 600.0, "seconds since 1970");
    assert_eq!((lost("sound").await?, lost("new").await?), (0.0, 0.0));
    assert_eq!(client.ready("orders").await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn each_queue_and_worker_that_is_not_ready_has_a_metric_with_the_cause() -> Result<()> {
    let room = Room::new("causes").await?;
    let operator = room.operator("one").await?;
    room.secret("elsewhere", "amqp://u:p@127.0.0.1:1/").await?;
    room.queue("sound", json!({})).await?;
    room.queue("away", json!({"broker": {"secretRef": {"name": "elsewhere"}}})).await?;
    // Of two that were created in the same second, the name decides.
    room.queue("twin", json!({"queueName": "sound"})).await?;
    room.worker("of-away", "away", json!({})).await?;
    room.worker("mistyped", "no-such-queue", json!({})).await?;
    let container =
        json!({"name": "app", "image": "app", "ports": [{"containerPort": 8080}, {"containerPort": 9400}]});
    room.worker("refused", "sound", json!({"template": {"spec": {"containers": [container]}}})).await?;
    for (kind, name, cause) in [
        ("queue", "away", "broker"),
        ("queue", "twin", "other"),
        ("worker", "of-away", "queue"),
        ("worker", "mistyped", "other"),
        ("worker", "refused", "other"),
    ] {
        let labels = format!("namespace=\"{}\",{kind}=\"{name}\",cause=\"{cause}\"", room.name);
        operator.until(&format!("warren_operator_{kind}_not_ready{{{labels}}}"), 1.0).await?;
    }
    operator.until("warren_operator_queues{ready=\"true\"}", 1.0).await?;
    assert!((operator.metric("warren_operator_queues{ready=\"false\"}").await? - 2.0).abs() < 0.5);
    Ok(())
}

#[tokio::test]
async fn a_worker_that_was_changed_before_the_operator_started_is_not_said_to_have_turned() -> Result<()> {
    let room = Room::new("unseen").await?;
    let first = room.operator("one").await?;
    room.queue("orders", json!({"deletionPolicy": "Delete"})).await?;
    room.ready("orders").await?;
    room.worker("other", "other", json!({})).await?;
    room.pod("of-other", "other").await?;
    let changed = r#"{"spec": {"scaling": {"minReplicas": 1}}}"#;
    room.kubectl(&["patch", "wk", "other", "--type=merge", "-p", changed]).await?;
    first.stop().await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    let _second = room.operator("two").await?;
    let said = "Worker \"other\" was changed before the operator started";
    room.condition("orders", "DeletionBlocked", "True", "WorkersRunning", said).await?;
    let retain = r#"{"spec": {"deletionPolicy": "Retain"}}"#;
    room.kubectl(&["patch", "wq", "orders", "--type=merge", "-p", retain]).await?;
    room.gone("orders").await
}

#[tokio::test]
async fn a_namespace_goes_with_a_queue_whose_deletion_needs_the_secret_that_goes_too() -> Result<()> {
    let (home, room) = (Room::new("namespace-home").await?, Room::new("namespace-gone").await?);
    // Its Lease stays.
    let namespaces = [home.name.as_str(), room.name.as_str()];
    let _operator = watching(room.cluster.kubeconfig(), &namespaces, "one").await?;
    room.queue("orders", json!({"deletionPolicy": "Delete"})).await?;
    room.ready("orders").await?;
    // The worst order: the Secret goes long before the Queue.
    room.kubectl(&["delete", "secret", "rabbitmq"]).await?;
    room.condition("orders", "BrokerReachable", "False", "SecretNotFound", "\"rabbitmq\"").await?;
    room.delete().await?;
    room.namespace.gone("ns", &room.name).await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    assert_eq!(client.ready("orders").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_conflict_whose_queue_is_gone_names_an_older_one_of_which_it_is_not_known_where_it_is() -> Result<()>
{
    let room = Room::new("unplaced").await?;
    let _operator = room.operator("one").await?;
    let named = |secret: &str| json!({"queueName": "orders", "broker": {"secretRef": {"name": secret}}});
    room.queue("oldest", named("never")).await?;
    room.condition("oldest", "BrokerReachable", "False", "SecretNotFound", "\"never\"").await?;
    room.queue("one", named("rabbitmq")).await?;
    room.ready("one").await?;
    room.queue("two", named("rabbitmq")).await?;
    room.condition("two", "Declared", "False", "Conflict", "\"one\"").await?;
    room.kubectl(&["delete", "wq", "one"]).await?;
    room.condition("two", "Declared", "False", "Conflict", "\"oldest\"").await?;
    room.kubectl(&["delete", "wq", "oldest"]).await?;
    room.ready("two").await
}

#[tokio::test]
async fn a_younger_queue_leaves_what_an_older_one_without_its_secret_may_own() -> Result<()> {
    let room = Room::new("older").await?;
    let first = room.operator("one").await?;
    for queue in ["older", "younger"] {
        room.secret(queue, &room.vhost.uri()).await?;
        let policy = if queue == "older" { "Retain" } else { "Delete" };
        let broker = json!({"secretRef": {"name": queue}});
        room.queue(queue, json!({"queueName": "orders", "deletionPolicy": policy, "broker": broker})).await?;
        if queue == "older" {
            room.ready(queue).await?;
        }
    }
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    for queue in ["older", "younger"] {
        room.kubectl(&["delete", "secret", queue]).await?;
        room.condition(queue, "BrokerReachable", "False", "SecretNotFound", queue).await?;
    }
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    // With another spec, too: what was changed may be just how the broker is reached.
    let ladder = r#"{"spec": {"retry": {"delaysSeconds": [7]}}}"#;
    room.kubectl(&["patch", "wq", "younger", "--type=merge", "-p", ladder]).await?;
    room.eventually("the change is seen", async || {
        let seen = "jsonpath={.metadata.generation} {.status.observedGeneration}";
        let seen = room.kubectl(&["get", "wq", "younger", "-o", seen]).await?;
        let both = seen.split_once(' ').context("two numbers")?;
        ensure!(both.0 == both.1, "{seen}");
        Ok(())
    })
    .await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    // What the next operator knows, it knows from the objects; whose the queue is, and where, may not be written there.
    first.stop().await?;
    let nothing = r#"{"status": {"brokerAddress": null, "conditions": []}}"#;
    for queue in ["older", "younger"] {
        room.kubectl(&["patch", "wq", queue, "--subresource=status", "--type=merge", "-p", nothing]).await?;
    }
    room.kubectl(&["delete", "wq", "younger", "--wait=false"]).await?;
    room.secret("younger", &room.vhost.uri()).await?;
    let _second = room.operator("two").await?;
    room.condition("younger", "DeletionBlocked", "True", "Conflict", "Queue \"older\"").await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    assert_eq!(client.ready("orders").await?, Some(0), "it is the older one's");
    room.secret("older", &room.vhost.uri()).await?;
    room.ready("older").await?;
    room.gone("younger").await?;
    assert_eq!(client.ready("orders").await?, Some(0));
    Ok(())
}

/// A Queue "younger" that says that an older one of another namespace has its queue, in which a message waits, and no operator.
struct BesideLate {
    late: Room,
    room: Room,
    broker: Client,
}

impl BesideLate {
    async fn new(name: &str) -> Result<Self> {
        // Of two that were created in the same second, the namespace's name decides.
        let (late, room) = (Room::new(&format!("{name}-a")).await?, Room::new(&format!("{name}-b")).await?);
        let broker = Client::connect(&room.vhost.uri()).await?;
        let beside = Self { late, room, broker };
        let first = beside.operator(beside.room.cluster.kubeconfig(), "one").await?;
        let Self { late, room, broker } = &beside;
        late.secret("shared", &room.vhost.uri()).await?;
        let spec = json!({"queueName": "orders", "broker": {"secretRef": {"name": "shared"}}});
        late.queue("older", spec).await?;
        late.ready("older").await?;
        room.queue("younger", json!({"queueName": "orders", "deletionPolicy": "Delete"})).await?;
        room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
        first.stop().await?;
        broker.publish("orders", b"the older one's").await?;
        Ok(beside)
    }

    async fn operator(&self, kubeconfig: &Path, identity: &str) -> Result<Operator> {
        watching(kubeconfig, &[&self.room.name, &self.late.name], identity).await
    }
}

#[tokio::test]
async fn a_younger_queue_leaves_what_an_older_one_in_a_namespace_that_is_late_owns() -> Result<()> {
    let beside = BesideLate::new("ages").await?;
    let BesideLate { room, broker, .. } = &beside;
    room.kubectl(&["delete", "wq", "younger", "--wait=false"]).await?;
    // As late as can be: the older one's namespace may not be read at all.
    let limited = limited_to(room).await?;
    let _second = beside.operator(limited.path(), "two").await?;
    room.gone("younger").await?;
    broker.holds("orders", 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_younger_queue_takes_nothing_over_while_the_older_one_s_namespace_is_late() -> Result<()> {
    let beside = BesideLate::new("takes").await?;
    let BesideLate { room, broker, .. } = &beside;
    let limited = limited_to(room).await?;
    let second = beside.operator(limited.path(), "two").await?;
    // By then the younger one has been looked at.
    room.queue("later", json!({})).await?;
    room.ready("later").await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    second.stop().await?;
    // What was late is known in the end.
    let third = beside.operator(room.cluster.kubeconfig(), "three").await?;
    room.queue("last", json!({})).await?;
    room.ready("last").await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    third.stop().await?;
    let _fourth = beside.operator(limited.path(), "four").await?;
    room.kubectl(&["delete", "wq", "younger", "--wait=false"]).await?;
    room.gone("younger").await?;
    broker.holds("orders", 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_queue_that_somebody_else_s_finalizer_keeps_says_that_it_is_let_go() -> Result<()> {
    let room = Room::new("kept").await?;
    let _operator = room.operator("one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    let patch = async |finalizers: &str| {
        let patch = format!("{{\"metadata\": {{\"finalizers\": {finalizers}}}}}");
        room.kubectl(&["patch", "wq", "orders", "--type=merge", "-p", &patch]).await.map(drop)
    };
    patch("[\"example.com/keeps\"]").await?;
    room.kubectl(&["delete", "wq", "orders", "--wait=false"]).await?;
    room.condition("orders", "DeletionBlocked", "True", "OtherFinalizer", "\"example.com/keeps\"").await?;
    room.condition("orders", "Ready", "False", "Deleting", "").await?;
    let declared = "jsonpath={.status.conditions[?(@.type==\"Declared\")].status}";
    assert_eq!(room.kubectl(&["get", "wq", "orders", "-o", declared]).await?, "");
    patch("null").await?;
    room.gone("orders").await
}

/// The operator may do all but change Queues, their status excepted: it cannot take its finalizer away.
fn no_finalizers() -> Value {
    let verbs = ["get", "list", "watch", "create", "update", "delete"];
    let patched = ["queues/status", "leases", "events"];
    json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": verbs},
        {"apiGroups": ["*"], "resources": patched, "verbs": ["patch"]},
    ])
}

#[tokio::test]
async fn a_name_goes_to_the_younger_queue_only_when_the_older_one_s_finalizer_is_gone() -> Result<()> {
    let room = Room::new("finalizer").await?;
    let kubeconfig = limited_to(&room).await?;
    let operator = watching(kubeconfig.path(), &[&room.name], "one").await?;
    room.queue("older", json!({"queueName": "orders", "deletionPolicy": "Delete"})).await?;
    room.ready("older").await?;
    room.queue("younger", json!({"queueName": "orders"})).await?;
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    room.role(no_finalizers()).await?;
    room.kubectl(&["delete", "wq", "older", "--wait=false"]).await?;
    let client = Client::connect(&room.vhost.uri()).await?;
    room.eventually("the older one's queue is removed", async || {
        ensure!(client.ready("orders").await?.is_none(), "not yet");
        Ok(())
    })
    .await?;
    room.eventually("the finalizer is refused several times", async || {
        ensure!(operator.metric(FORBIDDEN).await? >= 3.0, "not yet");
        Ok(())
    })
    .await?;
    // What the younger one would make, another try would delete.
    assert_eq!(client.ready("orders").await?, None);
    room.condition("younger", "Declared", "False", "Conflict", "\"older\" in namespace").await?;
    room.role(json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])).await?;
    room.gone("older").await?;
    room.ready("younger").await
}

/// A kubeconfig of a user who has every right in the room's namespace, and none elsewhere.
async fn limited_to(room: &Room) -> Result<tempfile::NamedTempFile> {
    let user = format!("user-of-{}", room.name);
    let metadata = json!({"name": "all", "namespace": room.name});
    let group = "rbac.authorization.k8s.io";
    room.role(json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])).await?;
    let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "all"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}]});
    room.cluster.apply(&binding.to_string()).await?;
    let raw = ["config", "view", "--raw", "--flatten", "-o", "json"];
    let mut config: Value = serde_json::from_str(&room.cluster.kubectl(&raw).await?)?;
    config["users"][0]["user"]["as"] = user.into();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    Ok(file)
}

#[tokio::test]
async fn a_namespace_that_may_not_be_read_keeps_no_other_one_waiting() -> Result<()> {
    let room = Room::new("scopes").await?;
    let kubeconfig = limited_to(&room).await?;
    let namespaces = [room.name.as_str(), "kube-system"];
    let _operator = watching(kubeconfig.path(), &namespaces, "one").await?;
    room.queue("orders", json!({})).await?;
    room.ready("orders").await?;
    room.worker("invoices", "orders", json!({})).await?;
    Client::connect(&room.vhost.uri()).await?.publish("orders", b"work").await?;
    room.eventually("the Worker is scaled", async || {
        let deployment = room.get("deployment", "invoices").await?;
        ensure!(deployment["spec"]["replicas"].as_u64() > Some(0), "{}", deployment["spec"]["replicas"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_thousand_queues_on_a_dead_broker_leave_ten_on_a_live_one_alone() -> Result<()> {
    let room = Room::new("dead").await?;
    room.secret("dead", "amqp://u:p@127.0.0.1:1/").await?;
    let spec = json!({"broker": {"secretRef": {"name": "dead"}}});
    let queues = |name: &str, count: usize, spec: &Value| {
        (0..count).map(|number| room.object("Queue", &format!("{name}-{number}"), spec)).collect()
    };
    room.apply_all(queues("dead", 2_000, &spec)).await?;
    let operator = room.operator("one").await?;
    // How quickly an API server takes 2,000 statuses is not what is asked here.
    operator.until("warren_operator_queues{ready=\"false\"}", 2_000.0).await?;
    let since = Instant::now();
    room.apply_all(queues("live", 10, &json!({}))).await?;
    operator.until(READY, 10.0).await?;
    println!("10 Queues beside 2,000 on a dead broker: Ready after {:.1} s", since.elapsed().as_secs_f64());
    ensure!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    room.condition("dead-1999", "BrokerReachable", "False", "BrokerUnreachable", "127.0.0.1:1").await
}

#[tokio::test]
async fn a_standby_leads_within_15_s_of_a_crash_and_2_s_of_a_graceful_end() -> Result<()> {
    let room = Room::new("leader").await?;
    let leader = "warren_operator_leader";
    let first = room.operator("first").await?;
    first.until(leader, 1.0).await?;
    let second = room.operator("second").await?;
    room.queue("before", json!({})).await?;
    room.ready("before").await?;
    room.eventually("the second stands by", async || second.metric(leader).await.map(drop)).await?;
    assert_eq!(second.metric(leader).await?, 0.0, "one leads");
    assert!(first.metric(WRITES).await? > 0.0);
    assert_eq!(second.metric(WRITES).await?, 0.0, "a standby writes nothing");

    let since = Instant::now();
    first.kill9().await?;
    second.until(leader, 1.0).await?;
    let crash = since.elapsed();
    ensure!(crash < Duration::from_secs(15), "{crash:?}");
    room.queue("after", json!({})).await?;
    room.ready("after").await?;

    let third = room.operator("third").await?;
    room.eventually("the third stands by", async || third.metric(leader).await.map(drop)).await?;
    let since = Instant::now();
    let leads = async {
        third.until(leader, 1.0).await?;
        anyhow::Ok(since.elapsed())
    };
    let (ended, graceful) = tokio::join!(second.stop(), leads);
    ended?;
    let graceful = graceful?;
    println!("a standby led {crash:?} after a crash and {graceful:?} after SIGTERM");
    ensure!(graceful < Duration::from_secs(3), "{graceful:?}");
    room.queue("last", json!({})).await?;
    room.ready("last").await
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_is_made_again_by_its_holder_who_goes_on() -> Result<()> {
    let room = Room::new("lease").await?;
    let leader = "warren_operator_leader";
    let mut first = room.operator("first").await?;
    first.until(leader, 1.0).await?;
    let second = room.operator("second").await?;
    room.eventually("the second stands by", async || second.metric(leader).await.map(drop)).await?;
    room.queue("before", json!({})).await?;
    room.ready("before").await?;
    // Within two renewals the second has seen the Lease.
    for _ in 0..2 {
        let renewed = async || {
            let lease = room.get("lease", "warren-operator").await?;
            lease["spec"]["renewTime"].as_str().map(str::to_owned).context("no time")
        };
        let before = renewed().await?;
        room.eventually("the Lease is renewed", async || {
            ensure!(renewed().await? != before, "{before}");
            Ok(())
        })
        .await?;
    }
    room.kubectl(&["delete", "lease", "warren-operator"]).await?;
    room.eventually("the Lease is there again", async || {
        let lease = room.get("lease", "warren-operator").await?;
        ensure!(lease["spec"]["holderIdentity"] == "first", "{}", lease["spec"]);
        Ok(())
    })
    .await?;
    room.queue("after", json!({})).await?;
    room.ready("after").await?;
    ensure!(first.runs()?, "it ended");
    assert_eq!(second.metric(leader).await?, 0.0, "one leads");
    Ok(())
}
