//! What the facts mean, and what to do. Pure.

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt as _};
use warren_api::conditions::queue::{BROKER_REACHABLE, DELETION_BLOCKED};
use warren_api::{Queue, Worker};
use warren_broker::BrokerAccess;
use warren_operator::scaler::reason::Reason;
use warren_operator::worker::pods;

use super::facts::{Facts, secret_names};
use crate::cluster::Sidecar;
use crate::read::Read;

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// It cannot be told.
    Unknown,
}

/// One line of the checklist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub verdict: Verdict,
    /// What was looked at.
    pub what: String,
    /// What is wrong and what to do, or why it cannot be told.
    pub detail: Option<String>,
}

impl Check {
    pub fn good(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what: what.into(), detail: None }
    }

    pub fn bad(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what: what.into(), detail: Some(detail.into()) }
    }

    pub fn unknown(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, what: what.into(), detail: Some(detail.into()) }
    }
}

/// Every check, from the installation to the Queues and their Workers.
pub fn checks(facts: &Facts) -> Vec<Check> {
    let mut all = vec![definitions(facts), operator(facts), leader(facts)];
    all.push(match facts.exists {
        Ok(false) => Check::bad(
            format!("namespace {} exists", facts.namespace),
            "there is no such namespace: name another with --namespace, see kubectl get namespaces",
        ),
        // Who may not read namespaces learns the rest all the same.
        Ok(true) | Err(_) => rights(facts),
    });
    match &facts.queues {
        Err(why) => all.push(Check::unknown("Queues", why)),
        Ok(queues) => all.extend(queues.iter().flat_map(|queue| of_queue(queue, facts))),
    }
    match &facts.workers {
        Err(why) => all.push(Check::unknown("Workers", why)),
        Ok(workers) => all.extend(workers.iter().flat_map(|worker| of_worker(worker, facts))),
    }
    all
}

fn definitions(facts: &Facts) -> Check {
    let what = "custom resource definitions are installed";
    match &facts.definitions {
        Err(why) => Check::unknown(what, why),
        Ok(all) => {
            let missing: Vec<&str> =
                all.iter().filter(|(_, established)| !established).map(|(name, _)| name.as_str()).collect();
            if missing.is_empty() {
                return Check::good(what);
            }
            Check::bad(
                what,
                format!("{} not there: install the chart, or kubectl apply -f crds/", missing.join(", ")),
            )
        }
    }
}

fn operator(facts: &Facts) -> Check {
    let what = "the operator runs";
    match &facts.operator {
        Err(why) => Check::unknown(what, why),
        Ok(pods) if pods.is_empty() => {
            let (within, other) = match &facts.searched {
                Some(home) => {
                    (format!(" in namespace {home}"), "ask for another --operator-namespace, or for none, ")
                }
                None => (String::new(), ""),
            };
            Check::bad(
                what,
                format!(
                    "there is no pod{within} of one that watches this namespace: {other}install the chart, name the namespace in its watchNamespaces, or set its replicas above 0"
                ),
            )
        }
        Ok(pods) => {
            let ready = pods.iter().filter(|pod| pods::ready(pod)).count();
            let names: Vec<String> = pods
                .iter()
                .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
                .collect();
            if ready == 0 {
                return Check::bad(
                    what,
                    format!("no pod is ready: kubectl describe and logs of {}", names.join(", ")),
                );
            }
            Check::good(format!("{what}: {ready} of {} pods ready ({})", pods.len(), names.join(", ")))
        }
    }
}

fn leader(facts: &Facts) -> Check {
    let what = "an operator leads and tells its metrics";
    match &facts.leads {
        Err(why) => Check::unknown(what, why),
        Ok(true) => Check::good(what),
        Ok(false) => Check::bad(
            what,
            "none of its pods leads, so that nothing is reconciled or scaled: within 15 s of a start one should; if it stays so, see its rights below, and kubectl logs of its pods",
        ),
    }
}

fn rights(facts: &Facts) -> Check {
    let what = format!("the operator has its rights in namespace {}", facts.namespace);
    match &facts.rights {
        Err(why) => Check::unknown(what, format!("{why} (needs create on subjectaccessreviews)")),
        Ok(rights) => {
            let missing: Vec<&str> =
                rights.iter().filter(|right| !right.given).map(|right| right.what.as_str()).collect();
            if missing.is_empty() {
                return Check::good(what);
            }
            Check::bad(
                what,
                format!(
                    "missing: {}. Set the chart's rbac.create, or grant them to the operator's ServiceAccount yourself",
                    missing.join(", ")
                ),
            )
        }
    }
}

fn of_queue(queue: &Queue, facts: &Facts) -> Vec<Check> {
    let name = queue.name_any();
    let mut all: Vec<Check> = secret_names(queue)
        .iter()
        .map(|secret| of_secret(&name, secret, facts.secrets.get(secret), queue))
        .collect();
    all.extend(of_conditions("Queue", &name, queue.conditions()));
    let seen = queue.status.as_ref().and_then(|status| status.observed_generation);
    all.extend(of_generation("Queue", &name, queue.metadata.generation, seen));
    all
}

fn of_secret(queue: &str, name: &str, secret: Option<&Read<Option<Secret>>>, spec: &Queue) -> Check {
    let what = format!("Queue {queue}: Secret {name} tells where the broker is");
    let secret = match secret {
        None => return Check::unknown(what, "it was not read"),
        Some(Err(why)) => return Check::unknown(what, why),
        Some(Ok(None)) => {
            return Check::bad(
                what,
                format!("there is no Secret {name}: create it, or name another in spec.broker"),
            );
        }
        Some(Ok(Some(secret))) => secret,
    };
    let keys = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
    match BrokerAccess::parse(&keys, spec.spec.broker.vhost.as_deref()) {
        Ok(access) => Check::good(format!("{what}: {}", access.address())),
        Err(error) => Check::bad(what, error.to_string()),
    }
}

fn of_conditions(kind: &str, name: &str, conditions: &[Condition]) -> Vec<Check> {
    if conditions.is_empty() {
        return vec![Check::bad(
            format!("{kind} {name} has a status"),
            "no operator has looked at it: see whether it runs and watches this namespace",
        )];
    }
    conditions.iter().map(|condition| of_condition(kind, name, condition)).collect()
}

/// Where the conditions are not about the spec as it is.
fn of_generation(kind: &str, name: &str, now: Option<i64>, seen: Option<i64>) -> Option<Check> {
    seen.zip(now).filter(|(seen, now)| seen < now).map(|_| {
        Check::unknown(
            format!("{kind} {name}: the operator has seen its last change"),
            "the conditions above are of the spec before it: look again in a moment; if it stays so, see the operator's log",
        )
    })
}

fn of_condition(kind: &str, name: &str, condition: &Condition) -> Check {
    let what = match condition.type_.as_str() {
        BROKER_REACHABLE => format!("{kind} {name}: {BROKER_REACHABLE}, from the operator"),
        other => format!("{kind} {name}: {other}"),
    };
    let detail = format!("{}: {}", condition.reason, condition.message);
    // What is wrong when it is there, rather than when it is not.
    let good = if condition.type_ == DELETION_BLOCKED { "False" } else { "True" };
    match condition.status.as_str() {
        status if status == good => Check::good(what),
        "Unknown" => Check::unknown(what, detail),
        _ => Check::bad(what, detail),
    }
}

fn of_worker(worker: &Worker, facts: &Facts) -> Vec<Check> {
    let name = worker.name_any();
    let conditions = worker.conditions();
    let mut all = of_conditions("Worker", &name, conditions);
    let seen = worker.status.as_ref().and_then(|status| status.observed_generation);
    all.extend(of_generation("Worker", &name, worker.metadata.generation, seen));
    let unreachable = |reason| conditions.iter().any(|condition| condition.reason == reason);
    if unreachable(Reason::MetricsUnreachable.as_str()) {
        all.push(policies(&name, facts));
    } else if unreachable(Reason::SidecarsUnreachable.as_str()) {
        // Others are reached: it may be something else.
        all.push(Check { verdict: Verdict::Unknown, ..policies(&name, facts) });
    }
    all.extend(connections(&name, facts));
    all.extend(publishing(&name, facts));
    all
}

/// Whether the sidecars are connected; nothing where no pod stays.
fn connections(worker: &str, facts: &Facts) -> Option<Check> {
    let what = format!("Worker {worker}: the broker is reachable from its pods");
    let sidecars = match &facts.sidecars {
        Err(why) => return Some(Check::unknown(what, why)),
        Ok(sidecars) => of(worker, sidecars),
    };
    if sidecars.is_empty() {
        return None;
    }
    let read: Vec<bool> = sidecars.iter().filter_map(|one| Some(one.said.as_ref().ok()?.connected)).collect();
    let away = read.iter().filter(|connected| !**connected).count();
    let unread = sidecars.iter().find_map(|one| one.said.as_ref().err());
    let (read, all, namespace) = (read.len(), sidecars.len(), &facts.namespace);
    Some(match unread {
        _ if away > 0 => Check::bad(
            what,
            format!(
                "{away} of the {read} sidecars that answer are not connected: kubectl logs --namespace {namespace} -l warren.dev/worker={worker} -c warren-sidecar"
            ),
        ),
        Some(why) => {
            Check::unknown(what, format!("{read} of {all} sidecars answer and are connected: {why}"))
        }
        None => Check::good(format!("{what}: {read} connected")),
    })
}

/// Whether the broker takes what the sidecars publish. Where they are not all connected, or do not answer, [`connections`]
/// says so, and those that are blocked are named all the same.
fn publishing(worker: &str, facts: &Facts) -> Option<Check> {
    let what = format!("Worker {worker}: no alarm of the broker holds up what its pods publish");
    let sidecars = of(worker, facts.sidecars.as_ref().ok()?);
    let blocked =
        sidecars.iter().filter(|one| one.said.as_ref().is_ok_and(|said| said.publish_blocked)).count();
    if blocked > 0 {
        return Some(Check::bad(
            what,
            format!(
                "it blocks {blocked} of {} sidecars, by a memory or disk alarm: what is to be tried again, dead-lettered or replied waits. Give the broker room (rabbitmqctl status shows its alarms); all goes on by itself then",
                sidecars.len()
            ),
        ));
    }
    let connected = sidecars.iter().all(|one| one.said.as_ref().is_ok_and(|said| said.connected));
    (connected && !sidecars.is_empty()).then(|| Check::good(what))
}

/// The sidecars of a Worker's pods that stay.
fn of<'a>(worker: &str, sidecars: &'a [Sidecar]) -> Vec<&'a Sidecar> {
    sidecars.iter().filter(|sidecar| sidecar.is_of(worker) && !pods::ending(&sidecar.pod)).collect()
}

/// A hint where the operator cannot scrape.
fn policies(worker: &str, facts: &Facts) -> Check {
    let what = format!("Worker {worker}: the operator may reach port 9400 of its pods");
    let (policies, sidecars) = match (&facts.policies, &facts.sidecars) {
        (Err(why), _) | (_, Err(why)) => return Check::unknown(what, why),
        (Ok(policies), Ok(sidecars)) => (policies, of(worker, sidecars)),
    };
    let names: Vec<String> = policies
        .iter()
        .filter(|policy| sidecars.iter().any(|sidecar| restricts(policy, &sidecar.pod)))
        .map(ResourceExt::name_any)
        .collect();
    if names.is_empty() {
        return Check::unknown(
            what,
            "no NetworkPolicy of this namespace is about these pods: look at a service mesh, and at policies of the operator's namespace",
        );
    }
    Check::bad(
        what,
        format!("see NetworkPolicy {}: allow TCP 9400 from the operator's namespace", names.join(", ")),
    )
}

/// Whether a policy says what may come in to a pod.
fn restricts(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let incoming = spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|kind| kind == "Ingress"));
    let selected = Selector::try_from(spec.pod_selector.clone().unwrap_or_default())
        .is_ok_and(|selector| selector.matches(pod.labels()));
    incoming && selected
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use serde_json::json;
    use warren_operator::scaler::sample::Sample;

    use super::super::facts::Right;
    use super::*;
    use crate::cluster::tests::sidecar;

    /// The sidecars of Worker "invoices": connected, not connected, or not to be read.
    fn sidecars(all: &[Result<bool, &str>]) -> Read<Vec<Sidecar>> {
        let said = |one: &Result<bool, &str>| match one {
            Ok(connected) => Ok(Sample { connected: *connected, ..Sample::default() }),
            Err(why) => Err((*why).to_owned()),
        };
        Ok(all.iter().map(|one| sidecar("invoices", "a", Instant::now(), said(one))).collect())
    }

    fn condition(kind: &str, status: &str) -> serde_json::Value {
        json!({"type": kind, "status": status, "reason": "Why", "message": "do this", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    /// Of a sound installation with Queue "orders" and Worker "invoices".
    pub(in super::super) fn facts() -> Facts {
        let pod = json!({"metadata": {"name": "op", "namespace": "warren"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let queue = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Queue", "metadata": {"name": "orders"}, "spec": {},
            "status": {"conditions": [condition("Ready", "True"), condition("DeletionBlocked", "False")]}});
        let worker = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "Worker", "metadata": {"name": "invoices"},
            "spec": {"queueRef": {"name": "orders"}, "template": {}}, "status": {"conditions": [condition("Ready", "True")]}});
        let secret = json!({"metadata": {"name": "rabbitmq"}, "data": {"uri": "YW1xcDovL3U6aGlkZGVuQGhvc3Q6NTY3Mi8="}});
        Facts {
            namespace: "shop".to_owned(),
            exists: Ok(true),
            definitions: Ok(vec![("queues.warren.dev".to_owned(), true)]),
            searched: None,
            operator: Ok(vec![serde_json::from_value(pod).unwrap()]),
            leads: Ok(true),
            rights: Ok(vec![Right { what: "get secrets".to_owned(), given: true }]),
            queues: Ok(vec![serde_json::from_value(queue).unwrap()]),
            workers: Ok(vec![serde_json::from_value(worker).unwrap()]),
            secrets: BTreeMap::from([(
                "rabbitmq".to_owned(),
                Ok(Some(serde_json::from_value(secret).unwrap())),
            )]),
            policies: Ok(vec![]),
            sidecars: sidecars(&[Ok(true)]),
        }
    }

    fn wrong(facts: &Facts) -> Vec<String> {
        let all = checks(facts).into_iter().filter(|check| check.verdict != Verdict::Good);
        all.map(|check| format!("{}: {}", check.what, check.detail.unwrap_or_default())).collect()
    }

    #[test]
    fn a_sound_installation_has_nothing_wrong_and_no_password_is_shown() {
        assert_eq!(wrong(&facts()), Vec::<String>::new());
        assert!(!format!("{:?}", checks(&facts())).contains("hidden"));
    }

    #[test]
    fn each_fault_is_named_with_what_to_do() {
        let one = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            let wrong = wrong(&facts);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            wrong[0].clone()
        };
        assert!(
            one(|f| f.definitions = Ok(vec![("queues.warren.dev".to_owned(), false)]))
                .contains("kubectl apply")
        );
        assert!(one(|f| f.exists = Ok(false)).contains("there is no such namespace"));
        assert!(
            one(|f| f.operator = Ok(vec![]))
                .contains("no pod of one that watches this namespace: install the chart")
        );
        assert!(
            one(|f| (f.operator, f.searched) = (Ok(vec![]), Some("typo".to_owned())))
                .contains("no pod in namespace typo of one that watches this namespace: ask for another")
        );
        assert!(one(|f| f.operator = Ok(vec![Pod::default()])).contains("no pod is ready"));
        assert!(
            one(|f| f.rights = Ok(vec![Right { what: "get secrets".to_owned(), given: false }]))
                .contains("missing: get secrets")
        );
        assert!(
            one(|f| f.secrets = BTreeMap::from([("rabbitmq".to_owned(), Ok(None))])).contains("create it")
        );
        assert!(
            one(|f| f.secrets = BTreeMap::from([("rabbitmq".to_owned(), Ok(Some(Secret::default())))]))
                .contains("uri")
        );
        assert!(one(|f| f.leads = Ok(false)).contains("none of its pods leads"));
        assert!(
            one(|f| f.sidecars = sidecars(&[Ok(false), Ok(true), Err("late")])).contains(
                "1 of the 2 sidecars that answer are not connected: kubectl logs --namespace shop -l"
            )
        );
        assert!(one(|f| f.queues.as_mut().unwrap()[0].status = None).contains("no operator has looked"));
    }

    #[test]
    fn conditions_of_a_spec_before_its_last_change_are_told_from_those_of_this_one() {
        let told = |seen: Option<i64>| {
            let mut facts = facts();
            let queue = &mut facts.queues.as_mut().unwrap()[0];
            queue.metadata.generation = Some(2);
            queue.status.as_mut().unwrap().observed_generation = seen;
            let worker = &mut facts.workers.as_mut().unwrap()[0];
            worker.metadata.generation = Some(2);
            worker.status.as_mut().unwrap().observed_generation = seen;
            wrong(&facts)
        };
        assert_eq!(told(Some(2)), Vec::<String>::new());
        assert_eq!(told(None), Vec::<String>::new());
        let before = told(Some(1));
        assert_eq!(before.len(), 2, "{before:?}");
        assert!(before[0].starts_with("Queue orders: the operator has seen its last change: the conditions above are of the spec before it"), "{before:?}");
        assert!(before[1].starts_with("Worker invoices: the operator has seen"), "{before:?}");
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_neither_good_nor_bad() {
        let one = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            let unknown = checks(&facts).into_iter().filter(|check| check.verdict == Verdict::Unknown);
            let text = unknown.map(|check| check.detail.unwrap_or_default()).collect::<Vec<_>>().join("\n");
            (wrong(&facts).len(), text)
        };
        assert_eq!(one(|f| f.leads = Err("late".to_owned())), (1, "late".to_owned()));
        assert_eq!(one(|f| f.sidecars = Err("forbidden".to_owned())), (1, "forbidden".to_owned()));
        assert_eq!(
            one(|f| f.sidecars = sidecars(&[Ok(true), Err("late"), Err("late")])),
            (1, "1 of 3 sidecars answer and are connected: late".to_owned())
        );
        assert_eq!(one(|f| f.sidecars = Ok(vec![])), (0, String::new()), "no pod, nothing to say");
    }

    #[test]
    fn a_broker_that_blocks_what_pods_publish_is_told_of() {
        let told = |sidecars: Read<Vec<Sidecar>>, blocked: &[usize]| {
            let mut facts = Facts { sidecars, ..facts() };
            for index in blocked {
                facts.sidecars.as_mut().unwrap()[*index].said.as_mut().unwrap().publish_blocked = true;
            }
            let what = "Worker invoices: no alarm of the broker holds up what its pods publish";
            let check = checks(&facts).into_iter().find(|check| check.what == what);
            check.map(|check| (check.verdict, check.detail.unwrap_or_default()))
        };
        assert_eq!(told(sidecars(&[Ok(true), Ok(true)]), &[]), Some((Verdict::Good, String::new())));
        let (verdict, detail) = told(sidecars(&[Ok(true), Ok(true), Err("late")]), &[1]).unwrap();
        assert_eq!(verdict, Verdict::Bad);
        assert!(detail.starts_with("it blocks 1 of 3 sidecars, by a memory or disk alarm"), "{detail}");
        for untold in [sidecars(&[]), sidecars(&[Ok(true), Err("late")]), sidecars(&[Ok(true), Ok(false)])] {
            assert_eq!(told(untold, &[]), None);
        }
    }

    #[test]
    fn rights_are_told_of_a_namespace_that_is_there_or_may_not_be_read_and_of_no_other() {
        let told = |exists: Read<bool>| {
            let all = checks(&Facts { exists, ..facts() });
            assert!(all.iter().all(|check| check.verdict != Verdict::Unknown), "{all:?}");
            let rights = "the operator has its rights in namespace shop";
            all.iter().any(|check| check.verdict == Verdict::Good && check.what == rights)
        };
        assert!(told(Ok(true)) && told(Err("namespaces \"shop\" is forbidden".to_owned())));
        assert!(!told(Ok(false)));
    }

    /// What is wrong with a Worker whose scaler says so, among these policies.
    fn out_of_reach(reason: &str, policies: &[serde_json::Value]) -> Vec<Check> {
        let mut facts = facts();
        let mut scaling = condition("ScalingActive", "False");
        scaling["reason"] = json!(reason);
        let status = facts.workers.as_mut().unwrap()[0].status.as_mut().unwrap();
        status.conditions = vec![serde_json::from_value(scaling).unwrap()];
        facts.policies =
            policies.iter().cloned().map(|one| Ok(serde_json::from_value(one).unwrap())).collect();
        checks(&facts).into_iter().filter(|check| check.verdict != Verdict::Good).collect()
    }

    fn policy(name: &str, selector: &serde_json::Value, kind: &str) -> serde_json::Value {
        json!({"metadata": {"name": name}, "spec": {"podSelector": selector, "policyTypes": [kind]}})
    }

    #[test]
    fn a_condition_that_is_not_true_comes_with_its_message() {
        let checks = out_of_reach("Stalled", &[]);
        assert_eq!(checks.len(), 1, "{checks:?}");
        assert_eq!(checks[0].detail.as_deref(), Some("Stalled: do this"));
    }

    #[test]
    fn where_the_operator_cannot_scrape_the_policies_of_those_pods_are_named_and_no_others() {
        let policies = [
            policy("all", &json!({}), "Ingress"),
            policy("ours", &json!({"matchLabels": {"app": "shop"}}), "Ingress"),
            policy("going", &json!({}), "Egress"),
            policy(
                "theirs",
                &json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["shop"]}]}),
                "Ingress",
            ),
        ];
        let checks = out_of_reach("MetricsUnreachable", &policies);
        let detail = checks[1].detail.clone().unwrap();
        assert_eq!(checks[1].verdict, Verdict::Bad);
        assert!(detail.contains("NetworkPolicy all, ours: allow TCP 9400"), "{detail}");
        let some = out_of_reach("SidecarsUnreachable", &policies);
        assert_eq!((some[1].verdict, some[1].detail.clone()), (Verdict::Unknown, Some(detail)));
        let none = out_of_reach("MetricsUnreachable", &policies[2..]);
        assert_eq!(none[1].verdict, Verdict::Unknown);
        assert!(none[1].detail.as_ref().unwrap().contains("no NetworkPolicy"), "{none:?}");
    }

    #[test]
    fn what_cannot_be_read_or_is_of_others_is_never_told_as_good() {
        let one = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            wrong(&facts)
        };
        let why = || "forbidden".to_owned();
        for change in [
            (|f| f.queues = Err("forbidden".to_owned())) as fn(&mut Facts),
            |f| f.workers = Err("forbidden".to_owned()),
            |f| f.rights = Err("forbidden".to_owned()),
            |f| f.operator = Err("forbidden".to_owned()),
            |f| f.definitions = Err("forbidden".to_owned()),
            |f| drop(f.secrets.insert("rabbitmq".to_owned(), Err("forbidden".to_owned()))),
        ] {
            let wrong = one(change);
            assert!(wrong.len() == 1 && wrong[0].contains(&why()), "{wrong:?}");
        }
        assert!(one(|f| f.secrets.clear())[0].contains("it was not read"));
        assert!(one(|f| f.workers.as_mut().unwrap()[0].status = None)[0].contains("no operator has looked"));
        let conditions = |f: &mut Facts, kind: &str, status: &str| {
            let said = serde_json::from_value(condition(kind, status)).unwrap();
            f.queues.as_mut().unwrap()[0].status.as_mut().unwrap().conditions = vec![said];
        };
        let mut facts = facts();
        conditions(&mut facts, "DeletionBlocked", "True");
        assert_eq!(wrong(&facts), ["Queue orders: DeletionBlocked: Why: do this"]);
        conditions(&mut facts, "Declared", "Unknown");
        assert_eq!(checks(&facts).iter().filter(|check| check.verdict == Verdict::Unknown).count(), 1);
    }

    #[test]
    fn a_virtual_host_of_the_spec_counts_and_pods_that_end_or_are_of_others_do_not() {
        let mut facts = facts();
        facts.queues.as_mut().unwrap()[0].spec.broker.vhost = Some("x".repeat(256));
        assert!(wrong(&facts)[0].contains("virtual host has 256 bytes"), "{:?}", wrong(&facts));
        let mut facts = Facts { sidecars: sidecars(&[Ok(true), Ok(false)]), ..super::tests::facts() };
        assert_eq!(wrong(&facts).len(), 1);
        let ends = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        facts.sidecars.as_mut().unwrap()[1].pod.metadata.deletion_timestamp = Some(ends);
        assert_eq!(wrong(&facts), Vec::<String>::new());
        let of_another = sidecar("other", "b", Instant::now(), Ok(Sample::default()));
        facts.sidecars.as_mut().unwrap()[1] = of_another;
        assert_eq!(wrong(&facts), Vec::<String>::new());
    }

    #[test]
    fn a_policy_that_names_no_type_is_about_what_comes_in() {
        let policy = json!({"metadata": {"name": "plain"}, "spec": {"podSelector": {}}});
        let checks = out_of_reach("MetricsUnreachable", &[policy]);
        assert!(checks[1].detail.as_ref().unwrap().contains("NetworkPolicy plain"), "{checks:?}");
    }
}
