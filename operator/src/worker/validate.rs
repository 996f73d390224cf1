//! Step 2: everything that can be wrong with a Worker, found before anything is applied. Pure; later steps read only
//! [`ValidWorker`].

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::ResourceExt;
use warren_api::conditions::worker::{QUEUE_READY, TEMPLATE_VALID};
use warren_api::names::{PUBLISH_PORT, SIDECAR_CONTAINER, SIDECAR_PORT};
use warren_api::queue::AdoptionPolicy;
use warren_api::worker::{DRAIN_MARGIN_SECONDS, PATH_MESSAGE, ScalingMode};
use warren_api::{Queue, Worker};
use warren_broker::BrokerAccess;

use super::dereference::{Surroundings, worker_secret};
use super::pods::only;
use crate::problem::{NAME_TAKEN, Problem, QUEUE_NOT_FOUND};
use crate::queue::plan::made_elsewhere;
use crate::queue::status::{is_single, others};
use crate::secrets::SecretState;

/// Volumes that the sidecar brings.
pub const CONFIG_VOLUME: &str = "warren-config";
/// See [`CONFIG_VOLUME`].
pub const BROKER_VOLUME: &str = "warren-broker";
/// See [`CONFIG_VOLUME`].
pub const NO_TOKEN_VOLUME: &str = "warren-no-token";

/// Reason of an order that cannot be kept.
pub const DISORDER: &str = "OrderingNotGuaranteed";

/// A Worker that can be built.
#[derive(Clone, Debug)]
pub struct ValidWorker<'a> {
    /// The resource.
    pub worker: &'a Worker,
    /// Its Queue.
    pub queue: &'a Queue,
    /// The Secret that the sidecars mount.
    pub secret: String,
    /// The container that handles messages.
    pub container: String,
    /// The port it listens on.
    pub port: u16,
    /// Whether consuming is held.
    pub held: bool,
    /// The pod that alone may consume, where an order depends on that; empty: none yet.
    pub only_pod: Option<String>,
    /// Seconds that a drain may take.
    pub drain_seconds: i64,
    /// The `terminationGracePeriodSeconds` of the template, raised where it was too short for a drain.
    pub grace_seconds: i64,
}

/// Seconds that a drain may take.
pub fn drain_seconds(worker: &Worker) -> i32 {
    let least = worker.spec.handler.http.timeout_seconds.saturating_add(DRAIN_MARGIN_SECONDS);
    worker.spec.shutdown.drain_timeout_seconds.unwrap_or(least).max(least)
}

/// Why the order that `consumer.orderingKey` asks for cannot be kept: several pods would each get some messages of a key.
fn unordered(worker: &Worker, queue: &Queue) -> Option<Problem> {
    let spec = &worker.spec;
    spec.consumer.ordering_key.as_ref()?;
    let (most, field) = match spec.scaling.mode {
        ScalingMode::Builtin => (spec.scaling.max_replicas, "scaling.maxReplicas"),
        ScalingMode::External | ScalingMode::Manual => (spec.replicas, "replicas"),
    };
    let one_at_a_time = is_single(queue) || most <= 1;
    (!one_at_a_time).then(|| {
        let way_out = match queue.spec.single_active_consumer {
            true => "mend what its condition Declared says, as the queue that the broker has may lack singleActiveConsumer",
            false => "use a Queue with singleActiveConsumer: true",
        };
        let message = format!(
            "consumer.orderingKey needs one consuming pod at a time, and consuming is held until then: {way_out}, or set {field}: 1"
        );
        Problem::new(QUEUE_READY, DISORDER, message)
    })
}

/// The same where other pods would get some of a key's messages; `beside`: see there.
fn not_alone(worker: &Worker, queue: &Queue, beside: Option<&str>) -> Option<Problem> {
    let beside = beside?;
    worker.spec.consumer.ordering_key.as_ref()?;
    (!is_single(queue)).then(|| {
        let message = format!(
            "consumer.orderingKey needs one consuming pod at a time, and consuming is held, since {beside}"
        );
        Problem::new(QUEUE_READY, DISORDER, message)
    })
}

/// Why a Queue gives its Workers nothing to consume: the queue of its name is somebody else's.
fn not_ours(queue: &Queue) -> Option<Problem> {
    let (reason, declared) = others(queue)?;
    let message =
        format!("Queue \"{}\": {}. Consuming is held until then", queue.name_any(), declared.message);
    Some(Problem::new(QUEUE_READY, reason, message))
}

/// Whether a Worker waits to know of the broker's queue what it depends on: that the one which must not have existed is its Queue's own,
/// or that the one which is to keep an order gives its messages to one consumer at a time.
pub fn is_unsure(worker: &Worker, queue: &Queue) -> bool {
    let made = queue.status.as_ref().is_some_and(|status| status.created == Some(true));
    let keeps_order = worker.spec.consumer.ordering_key.is_some() && is_single(queue);
    let there = queue.declared().is_some_and(|declared| declared.main_queue);
    match queue.spec.adoption_policy {
        AdoptionPolicy::Adopt => keeps_order && !there,
        AdoptionPolicy::FailIfExists => !made || keeps_order && !there,
        // Nothing is compared: whoever made it is taken at the spec's word.
        AdoptionPolicy::AsIs => false,
    }
}

/// What is wrong that has consuming held; `beside`: whose pods may consume, too.
fn hold_of(worker: &Worker, queue: &Queue, beside: Option<&str>) -> Option<Problem> {
    not_ours(queue).or_else(|| unordered(worker, queue)).or_else(|| not_alone(worker, queue, beside))
}

/// The same of the Queue that the Worker names.
pub fn hold(worker: &Worker, around: &Surroundings) -> Option<Problem> {
    hold_of(worker, around.queue.as_deref()?, around.beside.as_deref())
}

/// Whether consuming is held; `beside`: see [`hold_of`].
pub fn held(worker: &Worker, queue: &Queue, beside: Option<&str>) -> bool {
    worker.spec.consumer.paused || is_unsure(worker, queue) || hold_of(worker, queue, beside).is_some()
}

/// The pod that alone may consume, where an order depends on that; empty: none yet. One that takes the place of another while no
/// operator looks waits until one does: the other may not have ended.
pub fn only_pod(worker: &Worker, queue: &Queue, pods: &[Arc<Pod>]) -> Option<String> {
    let depends = worker.spec.consumer.ordering_key.is_some() && !is_single(queue);
    depends.then(|| only(pods).unwrap_or_default())
}

/// The port that the handler listens on; none where the template names none.
pub fn port(worker: &Worker) -> Option<u16> {
    let pod = worker.spec.template.parse().ok()?.spec?;
    handler_port(worker, handler_container(worker, &pod).ok()?).ok()
}

/// Whether a Queue that must not have existed was made on another broker, which says nothing of this one. An error where the pods
/// cannot use their Secret.
pub fn has_moved(queue: &Queue, around: &Surroundings) -> Result<bool, Problem> {
    let secret = worker_secret(queue);
    let access = secret_is_usable(queue, secret, around.secret.as_ref())?;
    Ok(secret == queue.spec.broker.secret_ref.name && made_elsewhere(queue, &access.address()))
}

/// Finds what is wrong, or gives what is to be built.
pub fn validate<'a>(worker: &'a Worker, around: &'a Surroundings) -> Result<ValidWorker<'a>, Problem> {
    let template = |reason, message: String| Problem::new(TEMPLATE_VALID, reason, message);
    let parsed = worker.spec.template.parse().map_err(|error| {
        template(
            "TemplateInvalid",
            format!("spec.template is not a pod template: {error}. Correct that field"),
        )
    })?;
    let pod = parsed.spec.unwrap_or_default();
    let container = handler_container(worker, &pod)?;
    let port = handler_port(worker, container)?;
    if !worker.spec.handler.http.path_is_valid() {
        return Err(template("PathInvalid", format!("spec.handler.http.{PATH_MESSAGE}")));
    }
    reserved(&pod)?;

    let queue = around.queue.as_deref().ok_or_else(|| queue_not_found(worker))?;
    let moved = has_moved(queue, around)?;
    let beside = around.beside.as_deref();
    let drain_seconds = i64::from(drain_seconds(worker));
    let least_grace = drain_seconds + i64::from(DRAIN_MARGIN_SECONDS);
    Ok(ValidWorker {
        worker,
        queue,
        secret: worker_secret(queue).to_owned(),
        held: moved || held(worker, queue, beside),
        only_pod: only_pod(worker, queue, &around.pods),
        container: container.name.clone(),
        port,
        drain_seconds,
        grace_seconds: pod.termination_grace_period_seconds.unwrap_or(0).max(least_grace),
    })
}

/// What is wrong where the Queue that a Worker names is not there.
pub fn queue_not_found(worker: &Worker) -> Problem {
    let name = &worker.spec.queue_ref.name;
    let namespace = worker.namespace().unwrap_or_default();
    let message = format!(
        "there is no Queue \"{name}\" in namespace \"{namespace}\": create it, or name another in spec.queueRef"
    );
    Problem::new(QUEUE_READY, QUEUE_NOT_FOUND, message)
}

/// Whether sidecars can take a broker's address and credentials from the Secret that they mount.
fn secret_is_usable(
    queue: &Queue,
    secret: &str,
    state: Option<&SecretState>,
) -> Result<BrokerAccess, Problem> {
    let needed = format!("the pods need Secret \"{secret}\", which Queue \"{}\" names", queue.name_any());
    let problem = |reason, wrong: String| Err(Problem::new(QUEUE_READY, reason, format!("{needed}{wrong}")));
    match state {
        Some(SecretState::Found(keys)) => match BrokerAccess::parse(keys, queue.spec.broker.vhost.as_deref()) {
            Ok(access) => match missed_vhost(queue, secret, &access) {
                Some(_) if queue.spec.broker.vhost.is_some() || is_changed(queue) => {
                    let vhost = access.vhost();
                    let wrong = format!(": the Queue has not been kept in virtual host \"{vhost}\" yet, as its own conditions say");
                    problem("QueueMoving", wrong)
                }
                Some(vhost) => problem(
                    "SecretInvalid",
                    format!(
                        ": its virtual host is \"{}\", and the Queue is in \"{vhost}\". Name that one in the Secret, or one for both in the Queue's spec.broker.vhost",
                        access.vhost()
                    ),
                ),
                None => Ok(access),
            },
            Err(error) => problem("SecretInvalid", format!(": {error}")),
        },
        Some(SecretState::Forbidden) => problem(
            "SecretForbidden",
            ", and the operator may not read it to see that it is usable: grant its ServiceAccount get on Secrets there (the chart's rbac.create does)"
                .to_owned(),
        ),
        Some(SecretState::Unreadable(why)) => problem(
            "SecretUnreadable",
            format!(", and the API server cannot give it: {why}. See its log; it is tried again by itself"),
        ),
        Some(SecretState::Missing) | None => problem(
            "SecretNotFound",
            ", and there is none: create it with the key \"uri\" (amqp://user:password@host:5672/vhost)".to_owned(),
        ),
    }
}

/// Whether a Queue was changed, and not looked at since.
fn is_changed(queue: &Queue) -> bool {
    queue.status.as_ref().is_none_or(|status| status.observed_generation != queue.metadata.generation)
}

/// Whether the Secret of a Worker's sidecars names another virtual host than the Queue's.
pub fn leads_elsewhere(queue: &Queue, around: &Surroundings) -> bool {
    let Some(SecretState::Found(keys)) = &around.secret else { return false };
    BrokerAccess::parse(keys, queue.spec.broker.vhost.as_deref())
        .is_ok_and(|access| missed_vhost(queue, worker_secret(queue), &access).is_some())
}

/// The virtual host that the Queue was last seen in, where sidecars learn of another one, from another Secret than the operator.
fn missed_vhost(queue: &Queue, secret: &str, access: &BrokerAccess) -> Option<String> {
    let address = queue.status.as_ref()?.broker_address.as_deref()?;
    if secret == queue.spec.broker.secret_ref.name {
        return None;
    }
    BrokerAccess::vhost_of(address).filter(|vhost| vhost != access.vhost())
}

fn handler_container<'p>(worker: &Worker, pod: &'p PodSpec) -> Result<&'p Container, Problem> {
    let wanted = worker.spec.handler.container.as_deref();
    let found = match wanted {
        None => pod.containers.first(),
        Some(name) => pod.containers.iter().find(|container| container.name == name),
    };
    found.ok_or_else(|| {
        let names: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
        let message = match wanted {
            None => "spec.template has no container: add the one that handles messages".to_owned(),
            Some(name) => format!(
                "spec.template has no container \"{name}\": set spec.handler.container to one of [{}], or leave it out for the first",
                names.join(", ")
            ),
        };
        Problem::new(TEMPLATE_VALID, "ContainerNotFound", message)
    })
}

fn handler_port(worker: &Worker, container: &Container) -> Result<u16, Problem> {
    let first = || container.ports.iter().flatten().map(|port| port.container_port).next();
    let port = worker.spec.handler.http.port.or_else(first).ok_or_else(|| {
        Problem::new(
            TEMPLATE_VALID,
            "PortMissing",
            format!(
                "container \"{}\" names no port: set spec.handler.http.port, or give the container ports: [{{containerPort: 8080}}]",
                container.name
            ),
        )
    })?;
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| {
        Problem::new(
            TEMPLATE_VALID,
            "PortMissing",
            format!("port {port} is not a port: use one from 1 to 65535"),
        )
    })
}

/// Volumes of the sidecar.
const OWN_VOLUMES: [&str; 3] = [CONFIG_VOLUME, BROKER_VOLUME, NO_TOKEN_VOLUME];

/// What the sidecar needs for itself.
fn reserved(pod: &PodSpec) -> Result<(), Problem> {
    if pod.host_network == Some(true) {
        let message = format!(
            "spec.template has hostNetwork: true, with which everything on the node could publish through the sidecar's port {PUBLISH_PORT}, which is for the pod alone: leave it out"
        );
        return Err(Problem::new(TEMPLATE_VALID, "TemplateInvalid", message));
    }
    let all = || pod.containers.iter().chain(pod.init_containers.iter().flatten());
    for container in all() {
        if container.name == SIDECAR_CONTAINER {
            let message = format!(
                "a container is named \"{SIDECAR_CONTAINER}\", which is the sidecar's name: rename it"
            );
            return Err(Problem::new(TEMPLATE_VALID, NAME_TAKEN, message));
        }
        for port in container.ports.iter().flatten().map(|port| port.container_port) {
            if port == i32::from(SIDECAR_PORT) || port == i32::from(PUBLISH_PORT) {
                return Err(Problem::new(
                    TEMPLATE_VALID,
                    "PortTaken",
                    format!(
                        "container \"{}\" uses port {port}, but {SIDECAR_PORT} and {PUBLISH_PORT} are the sidecar's: let it listen on another port",
                        container.name
                    ),
                ));
            }
        }
        let mut mounts = container.volume_mounts.iter().flatten().map(|mount| &*mount.name);
        if let Some(name) = mounts.find(|name| OWN_VOLUMES.contains(name)) {
            let message = format!(
                "container \"{}\" mounts \"{name}\", which is the sidecar's volume: leave it out",
                container.name
            );
            return Err(Problem::new(TEMPLATE_VALID, NAME_TAKEN, message));
        }
    }
    for volume in pod.volumes.iter().flatten() {
        if OWN_VOLUMES.contains(&&*volume.name) {
            let message = format!("volume \"{}\" has a name that the sidecar uses: rename it", volume.name);
            return Err(Problem::new(TEMPLATE_VALID, NAME_TAKEN, message));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use warren_api::queue::Declared;
    use warren_api::{QueueSpec, QueueStatus};
    use warren_broker::declare::Object;

    use super::*;

    /// A Worker "invoices" on Queue "orders" whose spec is `spec` over the smallest.
    pub(crate) fn worker(spec: Value) -> Worker {
        let mut whole = json!({
            "queueRef": {"name": "orders"},
            "template": {"spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}]}},
        });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "warren.dev/v1alpha1",
            "kind": "Worker",
            "metadata": {"name": "invoices", "namespace": "shop", "uid": "u-1", "generation": 3},
            "spec": whole,
        }))
        .unwrap()
    }

    fn found(keys: &[(&str, &str)]) -> SecretState {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        SecretState::Found(Arc::new(keys.collect()))
    }

    pub(crate) fn surroundings() -> Surroundings {
        let mut queue = Queue::new("orders", QueueSpec::default());
        queue.metadata.namespace = Some("shop".to_owned());
        Surroundings {
            queue: Some(Arc::new(queue)),
            secret: Some(found(&[("uri", "amqp://u:p@host/shop")])),
            ..Surroundings::default()
        }
    }

    fn problem(spec: Value) -> Problem {
        validate(&worker(spec), &surroundings()).unwrap_err()
    }

    #[test]
    fn the_smallest_worker_is_valid() {
        let (worker, around) = (worker(json!({})), surroundings());
        let valid = validate(&worker, &around).unwrap();
        assert_eq!((valid.container.as_str(), valid.port), ("app", 8080));
        assert_eq!((valid.drain_seconds, valid.grace_seconds), (45, 60));
    }

    #[test]
    fn a_longer_grace_period_of_the_user_stays() {
        let worker = worker(json!({"template": {"spec": {
            "terminationGracePeriodSeconds": 600,
            "containers": [{"name": "app", "ports": [{"containerPort": 80}]}],
        }}}));
        assert_eq!(validate(&worker, &surroundings()).unwrap().grace_seconds, 600);
    }

    #[test]
    fn what_is_wrong_with_a_template_is_named_with_a_way_out() {
        let containers = |value: Value| json!({"spec": {"containers": value}});
        for (spec, reason, text) in [
            (json!({"handler": {"container": "web"}}), "ContainerNotFound", "one of [app]"),
            (json!({"template": containers(json!([{"name": "app"}]))}), "PortMissing", "handler.http.port"),
            (
                json!({"template": containers(json!([{"name": "app", "ports": [{"containerPort": 9400}]}]))}),
                "PortTaken",
                "another port",
            ),
            (
                json!({"handler": {"http": {"port": 80}}, "template": containers(json!([{"name": "warren-sidecar"}]))}),
                "NameTaken",
                "rename",
            ),
            (json!({"template": containers(json!("x"))}), "TemplateInvalid", "not a pod template"),
            (
                json!({"template": {"spec": {"hostNetwork": true, "containers": [{"name": "app", "ports": [{"containerPort": 80}]}]}}}),
                "TemplateInvalid",
                "hostNetwork: true",
            ),
            (json!({"handler": {"http": {"path": "/my orders"}}}), "PathInvalid", "percent-encode"),
            (json!({"handler": {"http": {"path": "/a#b"}}}), "PathInvalid", "handler.http.path"),
            (json!({"handler": {"http": {"path": "a"}}}), "PathInvalid", "start with \"/\""),
        ] {
            let problem = problem(spec);
            assert_eq!((problem.condition, problem.reason), (TEMPLATE_VALID, reason));
            assert!(problem.message.contains(text), "{}", problem.message);
        }
    }

    #[test]
    fn an_order_that_several_pods_would_break_is_refused_and_holds_consuming() {
        let around = surroundings();
        let several = worker(json!({"consumer": {"orderingKey": "x-customer"}}));
        let problem = unordered(&several, around.queue.as_deref().unwrap()).unwrap();
        assert_eq!(problem.reason, "OrderingNotGuaranteed");
        assert!(validate(&several, &around).unwrap().held);
        let one = worker(json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}}));
        assert!(!validate(&one, &around).unwrap().held);
    }

    #[test]
    fn the_only_pod_of_an_order_is_named_and_none_while_there_are_several_or_none() {
        let one = worker(json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}}));
        let mut around = surroundings();
        let mut only = |pods: &[(&str, &str)]| {
            let pod = |(name, phase): &(&str, &str)| {
                Arc::new(
                    serde_json::from_value(json!({"metadata": {"name": name}, "status": {"phase": phase}}))
                        .unwrap(),
                )
            };
            around.pods = pods.iter().map(pod).collect();
            validate(&one, &around).unwrap().only_pod
        };
        assert_eq!(only(&[]).as_deref(), Some(""));
        assert_eq!(only(&[("a", "Pending")]).as_deref(), Some("a"));
        assert_eq!(only(&[("a", "Running"), ("b", "Pending")]).as_deref(), Some(""));
        assert_eq!(only(&[("a", "Failed"), ("b", "Pending")]).as_deref(), Some("b"));
        Arc::make_mut(around.queue.as_mut().unwrap()).spec.single_active_consumer = true;
        assert_eq!(validate(&one, &around).unwrap().only_pod, None, "the broker chooses");
        let mut other = declared("False", "ArgumentsDiffer");
        other.spec.single_active_consumer = true;
        let conditions = &mut other.status.as_mut().unwrap().conditions;
        conditions[0].message = "queue \"orders\" exists with another type".to_owned();
        around.queue = Some(Arc::new(other));
        let only_pod = validate(&one, &around).unwrap().only_pod;
        assert_eq!(only_pod.as_deref(), Some("b"), "the broker's queue may not choose");
        assert_eq!(validate(&worker(json!({})), &surroundings()).unwrap().only_pod, None);
    }

    #[test]
    fn an_order_that_another_worker_of_the_queue_would_break_is_refused_unless_the_broker_serves_one_pod() {
        let mut around =
            Surroundings { beside: Some("the pods of Worker \"other\" …".to_owned()), ..surroundings() };
        let one = worker(json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}}));
        let problem = hold(&one, &around).unwrap();
        assert!(problem.message.contains("Worker \"other\""), "{}", problem.message);
        assert!(validate(&one, &around).unwrap().held);
        assert!(!validate(&worker(json!({})), &around).unwrap().held, "it asks for no order");
        let mut queue = declared_once(Some(true));
        queue.spec.single_active_consumer = true;
        around.queue = Some(Arc::new(queue));
        assert!(!validate(&one, &around).unwrap().held);
    }

    #[test]
    fn an_order_that_a_single_active_consumer_is_to_keep_waits_until_the_broker_s_queue_was_compared_with_it()
    {
        use AdoptionPolicy::{Adopt, AsIs, FailIfExists};
        let ordered = worker(json!({"consumer": {"orderingKey": "x-customer"}}));
        let held = |worker: &Worker, adoption_policy, queue: Queue| {
            let spec = QueueSpec { single_active_consumer: true, adoption_policy, ..queue.spec };
            let queue = Some(Arc::new(Queue { spec, ..queue }));
            validate(worker, &Surroundings { queue, ..surroundings() }).unwrap().held
        };
        // Such as where the right to declare the dead-letter queue is missing, which comes before the main queue.
        for queue in [declared_once(None), declared_once(Some(false)), declared("False", "AccessRefused")] {
            assert!(held(&ordered, Adopt, queue.clone()), "{queue:?}");
            assert!(held(&ordered, FailIfExists, queue.clone()));
            assert!(!held(&ordered, AsIs, queue.clone()), "nothing is compared");
            assert!(!held(&worker(json!({})), Adopt, queue), "it asks for no order");
        }
        assert!(!held(&ordered, Adopt, declared_once(Some(true))), "also while the broker is away");
        // One that is known to differ keeps no order, and one pod does without.
        let mut differs = declared("False", "ArgumentsDiffer");
        differs.status.as_mut().unwrap().conditions[0].message = "queue \"orders\" exists".to_owned();
        let one = worker(json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 1}}));
        assert!(held(&ordered, Adopt, differs.clone()) && !held(&one, Adopt, differs));
    }

    #[test]
    fn a_single_active_consumer_that_the_queue_on_the_broker_may_lack_keeps_no_order() {
        use AdoptionPolicy::{Adopt, AsIs};
        let many = worker(json!({"consumer": {"orderingKey": "x-customer"}}));
        let mut around = surroundings();
        let mut held = |policy: AdoptionPolicy, reason: &str, object: &str| {
            let mut queue = declared("False", reason);
            queue.spec.single_active_consumer = true;
            queue.spec.adoption_policy = policy;
            let conditions = &mut queue.status.as_mut().unwrap().conditions;
            conditions[0].message = format!("{object} exists");
            around.queue = Some(Arc::new(queue));
            hold(&many, &around).map(|problem| problem.message)
        };
        let queue = |name: &str| Object::Queue(name.to_owned()).to_string();
        let differs = held(Adopt, "ArgumentsDiffer", &queue("orders"));
        assert!(differs.unwrap().contains("may lack singleActiveConsumer"));
        assert!(held(Adopt, "NotDurable", &queue("orders")).is_some());
        assert!(
            held(Adopt, "ArgumentsDiffer", &queue("orders.dlq")).is_some(),
            "the main queue was not compared"
        );
        let exchange = Object::Exchange("shop.events".to_owned()).to_string();
        assert_eq!(held(Adopt, "ArgumentsDiffer", &exchange), None, "it comes after the main queue");
        assert_eq!(held(Adopt, "AccessRefused", &queue("orders")), None);
        let compared = held(AsIs, "ArgumentsDiffer", &queue("orders.dlq"));
        assert_eq!(compared, None, "nothing is compared");
    }

    /// A Queue that says so of its declaration.
    pub(crate) fn declared(status: &str, reason: &str) -> Queue {
        saying("Declared", status, reason)
    }

    /// A Queue whose status says whether its main queue was declared.
    fn declared_once(main_queue: Option<bool>) -> Queue {
        let mut queue = surroundings().queue.map(Arc::unwrap_or_clone).unwrap();
        let declared = main_queue.map(|main_queue| Declared { main_queue, ..Declared::default() });
        queue.status = Some(QueueStatus { declared, ..QueueStatus::default() });
        queue
    }

    /// A Queue with a condition.
    pub(crate) fn saying(kind: &str, status: &str, reason: &str) -> Queue {
        let condition = json!({"type": kind, "status": status, "reason": reason, "message": "delete one of the two", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut queue = surroundings().queue.map(Arc::unwrap_or_clone).unwrap();
        queue.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
        queue
    }

    #[test]
    fn a_queue_that_is_somebody_else_s_is_not_consumed_and_one_that_is_away_or_waits_is() {
        let worker = worker(json!({}));
        let problem = |queue| {
            let around = Surroundings { queue: Some(Arc::new(queue)), ..surroundings() };
            let valid = validate(&worker, &around).unwrap();
            let hold = hold(&worker, &around);
            assert_eq!(valid.held, hold.is_some());
            hold
        };
        for reason in ["AlreadyExists", "Conflict"] {
            let problem = problem(declared("False", reason)).unwrap();
            assert_eq!((problem.condition, problem.reason), (QUEUE_READY, reason));
            for text in ["Queue \"orders\"", "delete one of the two", "Consuming is held"] {
                assert!(problem.message.contains(text), "{}", problem.message);
            }
        }
        for (status, reason) in [
            ("False", "ExchangeNotFound"),
            ("False", "BrokerUnreachable"),
            ("Unknown", "BrokerUnreachable"),
            ("Unknown", "Connecting"),
            ("True", "Declared"),
        ] {
            assert_eq!(problem(declared(status, reason)), None, "{reason}");
        }
    }

    #[test]
    fn a_missing_queue_is_said() {
        let worker = worker(json!({}));
        let without_queue = Surroundings { queue: None, ..surroundings() };
        assert_eq!(validate(&worker, &without_queue).unwrap_err().reason, "QueueNotFound");
    }

    #[test]
    fn a_secret_that_the_pods_cannot_use_is_said_with_what_is_wrong_with_it() {
        let worker = worker(json!({}));
        for (secret, reason, text) in [
            (SecretState::Missing, "SecretNotFound", "create it"),
            (SecretState::Forbidden, "SecretForbidden", "may not read"),
            (SecretState::Unreadable("no key".to_owned()), "SecretUnreadable", "cannot give it: no key"),
            (found(&[("password", "p")]), "SecretInvalid", "\"uri\""),
        ] {
            let around = Surroundings { secret: Some(secret), ..surroundings() };
            let problem = validate(&worker, &around).unwrap_err();
            assert_eq!((problem.condition, problem.reason), (QUEUE_READY, reason));
            assert!(
                problem.message.contains("\"rabbitmq\"") && problem.message.contains(text),
                "{problem:?}"
            );
        }
    }

    #[test]
    fn a_secret_of_the_workers_own_must_name_the_queue_s_virtual_host() {
        let worker = worker(json!({}));
        let around = |address: Option<&str>, uri: &str, spec: Value| {
            let mut queue = Queue::new("orders", serde_json::from_value(spec).unwrap());
            let status = QueueStatus { broker_address: address.map(str::to_owned), ..QueueStatus::default() };
            queue.status = Some(status);
            let secret = Some(found(&[("uri", uri)]));
            Surroundings { queue: Some(Arc::new(queue)), secret, ..Surroundings::default() }
        };
        let other = || json!({"broker": {"workerSecretRef": {"name": "other"}}});
        let of_both = json!({"broker": {"workerSecretRef": {"name": "other"}, "vhost": "shop"}});
        let (address, wrong) = (Some("amqp://in:5672/shop"), "amqp://u:p@out/mail");
        let problem = validate(&worker, &around(address, wrong, other())).unwrap_err();
        assert_eq!((problem.condition, problem.reason), (QUEUE_READY, "SecretInvalid"));
        for word in ["\"other\"", "\"mail\"", "\"shop\""] {
            assert!(problem.message.contains(word), "{}", problem.message);
        }
        let mut moving = around(address, wrong, other());
        Arc::make_mut(moving.queue.as_mut().unwrap()).spec.broker.vhost = Some("new".to_owned());
        assert_eq!(validate(&worker, &moving).unwrap_err().reason, "QueueMoving");
        let leads = |around: &Surroundings| leads_elsewhere(around.queue.as_deref().unwrap(), around);
        assert!(leads(&around(address, wrong, other())), "what consumes there is to stop");
        for fine in [
            around(address, "amqp://u:p@out/shop", other()),
            around(Some("amqp://in:5672/%2F"), "amqp://u:p@out", other()),
            around(address, wrong, of_both),
            around(None, wrong, other()),
            // The Queue's own Secret, which it has yet to read again.
            around(address, wrong, json!({})),
        ] {
            assert!(validate(&worker, &fine).is_ok() && !leads(&fine), "{:?}", fine.secret);
        }
    }

    #[test]
    fn a_drain_has_time_for_a_call_and_its_end_however_short_the_user_wants_it() {
        let drain = |seconds: i32| {
            let worker = worker(json!({"shutdown": {"drainTimeoutSeconds": seconds}}));
            let around = surroundings();
            let valid = validate(&worker, &around).unwrap();
            (valid.drain_seconds, valid.grace_seconds)
        };
        assert_eq!((drain(30), drain(600)), ((45, 60), (600, 615)));
    }

    #[test]
    fn a_queue_that_warren_made_on_another_broker_is_not_consumed_and_workers_of_their_own_secret_are_no_move()
     {
        let worker = worker(json!({}));
        let held = |uri: &str, secret: Value| {
            let mut queue = Queue::new("orders", serde_json::from_value(secret).unwrap());
            queue.spec.adoption_policy = AdoptionPolicy::FailIfExists;
            queue.status = Some(QueueStatus {
                created: Some(true),
                broker_address: Some("amqp://in:5672/shop".to_owned()),
                ..QueueStatus::default()
            });
            let secret = Some(found(&[("uri", uri)]));
            let around = Surroundings { queue: Some(Arc::new(queue)), secret, ..Surroundings::default() };
            validate(&worker, &around).unwrap().held
        };
        assert!(!held("amqp://u:p@in/shop", json!({})));
        assert!(held("amqp://u:p@other/shop", json!({})), "what is there may be somebody's");
        assert!(!held("amqp://u:p@out/shop", json!({"broker": {"workerSecretRef": {"name": "other"}}})));
    }

    #[test]
    fn the_port_of_the_spec_comes_before_that_of_the_container() {
        let worker = worker(json!({"handler": {"http": {"port": 9000}}}));
        assert_eq!(validate(&worker, &surroundings()).unwrap().port, 9000);
    }

    #[test]
    fn every_name_and_port_of_the_sidecar_s_is_its_own() {
        let app = |port: i32| json!([{"name": "app", "ports": [{"containerPort": port}]}]);
        let reason = |pod: Value| problem(json!({"template": {"spec": pod}})).reason;
        let also = |field: &str, value: Value| {
            let mut pod = json!({"containers": app(8080)});
            pod[field] = value;
            reason(pod)
        };
        for port in [SIDECAR_PORT, PUBLISH_PORT] {
            assert_eq!(reason(json!({"containers": app(port.into())})), "PortTaken", "{port}");
        }
        assert_eq!(also("initContainers", json!([{"name": SIDECAR_CONTAINER}])), "NameTaken");
        for volume in [CONFIG_VOLUME, BROKER_VOLUME, NO_TOKEN_VOLUME] {
            assert_eq!(also("volumes", json!([{"name": volume, "emptyDir": {}}])), "NameTaken", "{volume}");
            let mounts = json!([{"name": "other", "volumeMounts": [{"name": volume, "mountPath": "/x"}]}]);
            assert_eq!(also("initContainers", mounts), "NameTaken", "{volume}");
        }
        for port in [0, 70_000] {
            assert_eq!(reason(json!({"containers": app(port)})), "PortMissing", "{port}");
        }
    }
}
