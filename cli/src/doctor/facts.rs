//! What the doctor reads. Each part may be refused on its own: a user with few rights still learns what can be told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use warren_api::{Queue, Worker};
use warren_operator::rbac;

use crate::cluster::{Cluster, Sidecar};
use crate::read::{Read, said};

/// The definitions that an installation has.
pub const DEFINITIONS: [&str; 2] = ["queues.warren.dev", "workers.warren.dev"];
/// Questions about rights that are asked at once.
const AT_ONCE: usize = 8;

/// A right that the operator needs, and whether it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// As "verb resource.group", and where, unless it is the namespace that is asked about.
    pub what: String,
    /// Whether it is given.
    pub given: bool,
}

/// Everything that was read.
#[derive(Debug)]
pub struct Facts {
    pub namespace: String,
    /// Whether there is such a namespace: lists of one that is not there are empty, and rights may be given in it.
    pub exists: Read<bool>,
    /// Whether each of [`DEFINITIONS`] is established.
    pub definitions: Read<Vec<(String, bool)>>,
    /// The one namespace in which the operator's pods were looked for; none: all.
    pub searched: Option<String>,
    pub operator: Read<Vec<Pod>>,
    /// Whether one of its pods leads.
    pub leads: Read<bool>,
    pub rights: Read<Vec<Right>>,
    pub queues: Read<Vec<Queue>>,
    pub workers: Read<Vec<Worker>>,
    /// By name: the Secret's keys, none where there is no such Secret.
    pub secrets: BTreeMap<String, Read<Option<Secret>>>,
    pub policies: Read<Vec<NetworkPolicy>>,
    pub sidecars: Read<Vec<Sidecar>>,
}

/// Reads everything about a Queue, or about all of the namespace.
pub async fn read(cluster: &Cluster, queue: Option<&str>) -> anyhow::Result<Facts> {
    cluster.client.apiserver_version().await.context("ask the API server for its version")?;
    let all = ListParams::default();
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let exists = namespaces.get_opt(&cluster.namespace).await.map(|found| found.is_some()).map_err(said);
    let operator = cluster.operator_pods().await.map_err(said);
    let account = operator.as_ref().map(|pods| {
        let pod = pods.first()?;
        Some((pod.namespace()?, pod.spec.as_ref()?.service_account_name.clone()?))
    });
    let mut queues = cluster.api::<Queue>().list(&all).await.map(|list| list.items).map_err(said);
    let mut workers = cluster.api::<Worker>().list(&all).await.map(|list| list.items).map_err(said);
    if let Some(name) = queue {
        if let Ok(queues) = &mut queues {
            queues.retain(|queue| queue.name_any() == name);
            anyhow::ensure!(
                !queues.is_empty(),
                "there is no Queue \"{name}\" in namespace {}",
                cluster.namespace
            );
        }
        if let Ok(workers) = &mut workers {
            workers.retain(|worker| worker.spec.queue_ref.name == name);
        }
    }
    let mut secrets = BTreeMap::new();
    let names: BTreeSet<String> = queues.iter().flatten().flat_map(secret_names).collect();
    for name in &names {
        let secret = cluster.api::<Secret>().get_opt(name).await.map_err(said);
        secrets.insert(name.clone(), secret);
    }
    let rights = match account {
        Ok(Some((home, account))) => rights(cluster, &names, &home, &account).await,
        Ok(None) => Err("there is no operator pod to ask for".to_owned()),
        Err(why) => Err(why.clone()),
    };
    Ok(Facts {
        namespace: cluster.namespace.clone(),
        exists,
        definitions: definitions(cluster).await,
        leads: cluster.operator_metrics().await.map(|leader| leader.is_some()).map_err(said),
        searched: cluster.operator_namespace.clone(),
        operator,
        rights,
        queues,
        workers,
        secrets,
        policies: cluster.api::<NetworkPolicy>().list(&all).await.map(|list| list.items).map_err(said),
        sidecars: cluster.sidecars().await.map_err(said),
    })
}

/// The Secrets that a Queue names.
pub fn secret_names(queue: &Queue) -> Vec<String> {
    let broker = &queue.spec.broker;
    let worker = broker.worker_secret_ref.iter().map(|secret| secret.name.clone());
    std::iter::once(broker.secret_ref.name.clone()).chain(worker).collect()
}

async fn definitions(cluster: &Cluster) -> Read<Vec<(String, bool)>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut found = Vec::new();
    for name in DEFINITIONS {
        let definition = api.get_opt(name).await.map_err(said)?;
        let conditions = definition.and_then(|definition| definition.status?.conditions).unwrap_or_default();
        let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
        found.push((name.to_owned(), established));
    }
    Ok(found)
}

/// Asks for each of the operator's own rules, of Secrets for those that are named; `home`: the namespace of its pods, where they
/// elect who leads.
async fn rights(
    cluster: &Cluster,
    secrets: &BTreeSet<String>,
    home: &str,
    account: &str,
) -> Read<Vec<Right>> {
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let user = format!("system:serviceaccount:{home}:{account}");
    // Rights may be given to these, too, and the API server adds none: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-subjects>.
    let groups =
        ["system:serviceaccounts", &format!("system:serviceaccounts:{home}"), "system:authenticated"]
            .map(str::to_owned);
    let rules = needed(secrets);
    let here = rules.iter().flat_map(|rule| questions(&cluster.namespace, rule));
    let election = rbac::election();
    let election = election.iter().flat_map(|rule| questions(home, rule));
    let election = election.map(|(what, asked)| (format!("{what} in namespace {home}"), asked));
    let asked = here.chain(election).map(|(what, attributes)| {
        let (reviews, user, groups) = (&reviews, user.clone(), groups.to_vec());
        async move {
            let spec = SubjectAccessReviewSpec {
                user: Some(user),
                groups: Some(groups),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(said)?;
            Ok(Right { what, given: answer.status.is_some_and(|status| status.allowed) })
        }
    });
    let answers: Vec<Read<Right>> =
        futures::stream::iter(asked.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
    answers.into_iter().collect()
}

/// The operator's own rules for a namespace where it reads so many Secrets: it needs no others, and a role may give no others.
fn needed(secrets: &BTreeSet<String>) -> Vec<PolicyRule> {
    let mut rules = rbac::rules();
    for rule in rules.iter_mut().filter(|rule| rule.resources.iter().flatten().any(|name| name == "secrets"))
    {
        rule.resource_names = Some(secrets.iter().cloned().collect());
    }
    rules
}

/// What a rule gives in a namespace, one right each, in words and as the API server is asked for it.
fn questions(namespace: &str, rule: &PolicyRule) -> Vec<(String, ResourceAttributes)> {
    let mut objects: Vec<_> = rule.resource_names.iter().flatten().map(Some).collect();
    if objects.is_empty() {
        objects.push(None);
    }
    objects.into_iter().flat_map(|object| questions_of(namespace, rule, object)).collect()
}

/// The same of one object, or of all.
fn questions_of(
    namespace: &str,
    rule: &PolicyRule,
    object: Option<&String>,
) -> Vec<(String, ResourceAttributes)> {
    let group = rule.api_groups.iter().flatten().next().cloned().unwrap_or_default();
    let dot = if group.is_empty() { "" } else { "." };
    let of = object.map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let question = |resource: &String, verb: &String| {
        let (name, sub) = match resource.split_once('/') {
            Some((name, sub)) => (name, Some(sub.to_owned())),
            None => (resource.as_str(), None),
        };
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            group: Some(group.clone()),
            resource: Some(name.to_owned()),
            name: object.cloned(),
            subresource: sub,
            verb: Some(verb.clone()),
            ..ResourceAttributes::default()
        };
        (format!("{verb} {resource}{dot}{group}{of}"), attributes)
    };
    let resources = rule.resources.iter().flatten();
    resources.flat_map(|resource| rule.verbs.iter().map(move |verb| question(resource, verb))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_of_a_rule_is_asked_for_subresources_too() {
        let rules = rbac::rules();
        let scale =
            rules.iter().find(|rule| rule.resources.iter().flatten().any(|r| r == "deployments/scale"));
        let (what, asked) = questions("shop", scale.unwrap()).pop().unwrap();
        assert_eq!(what, "patch deployments/scale.apps");
        assert_eq!(
            (asked.resource.as_deref(), asked.subresource.as_deref()),
            (Some("deployments"), Some("scale"))
        );
        let all =
            rules.iter().flat_map(|rule| questions("shop", rule)).map(|(what, _)| what).collect::<Vec<_>>();
        assert!(
            all.contains(&"get secrets".to_owned()) && all.contains(&"create configmaps".to_owned()),
            "{all:?}"
        );
        let election: Vec<_> = rbac::election().iter().flat_map(|rule| questions("warren", rule)).collect();
        let asked: Vec<_> =
            election.iter().map(|(what, asked)| (what.as_str(), asked.name.as_deref())).collect();
        assert_eq!(asked[0], ("create leases.coordination.k8s.io", None));
        assert_eq!(asked[1], ("get leases.coordination.k8s.io \"warren-operator\"", Some("warren-operator")));
    }

    #[test]
    fn of_secrets_only_those_that_queues_name_are_asked_for() {
        let secrets = |names: &[&str]| {
            let rules = needed(&names.iter().map(|name| (*name).to_owned()).collect());
            let asked = rules.iter().flat_map(|rule| questions("shop", rule));
            asked.map(|(what, _)| what).filter(|what| what.contains("secrets")).collect::<Vec<_>>()
        };
        assert_eq!(secrets(&["a", "b"]), ["get secrets \"a\"", "get secrets \"b\""]);
        assert_eq!(secrets(&[]), ["get secrets"]);
    }
}
