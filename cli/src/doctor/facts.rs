//! What the doctor reads. Each part may be refused on its own: a user with few rights still learns what can be told.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use warren_api::{Queue, Worker};

use crate::cluster::Cluster;
use crate::exposition::Exposition;

/// The definitions that an installation has.
pub const DEFINITIONS: [&str; 2] = ["queues.warren.dev", "workers.warren.dev"];
/// Questions about rights that are asked at once.
const AT_ONCE: usize = 8;

/// A thing read, or why not.
pub type Read<T> = Result<T, String>;

/// A right that the operator needs, and whether it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// As "verb resource.group".
    pub what: String,
    /// Whether it is given.
    pub given: bool,
}

/// Everything that was read.
#[derive(Debug)]
pub struct Facts {
    pub namespace: String,
    /// Whether each of [`DEFINITIONS`] is established.
    pub definitions: Read<Vec<(String, bool)>>,
    pub operator: Read<Vec<Pod>>,
    pub metrics: Read<Exposition>,
    pub rights: Read<Vec<Right>>,
    pub queues: Read<Vec<Queue>>,
    pub workers: Read<Vec<Worker>>,
    /// By name: the Secret's keys, none where there is no such Secret.
    pub secrets: BTreeMap<String, Read<Option<Secret>>>,
    pub policies: Read<Vec<NetworkPolicy>>,
    /// By Worker.
    pub sidecars: Read<BTreeMap<String, Vec<Option<Exposition>>>>,
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Reads everything about a Queue, or about all of the namespace.
pub async fn read(cluster: &Cluster, queue: Option<&str>) -> anyhow::Result<Facts> {
    cluster.client.apiserver_version().await?;
    let all = ListParams::default();
    let operator = cluster.operator_pods().await.map_err(said);
    let account = operator.as_ref().ok().and_then(|pods| {
        let pod = pods.first()?;
        let account = pod.spec.as_ref()?.service_account_name.clone()?;
        Some(format!("system:serviceaccount:{}:{account}", pod.namespace()?))
    });
    let rights = match account {
        Some(account) => rights(cluster, &account).await,
        None => Err("there is no operator pod to ask for".to_owned()),
    };
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
    for name in names {
        let secret = cluster.api::<Secret>().get_opt(&name).await.map_err(said);
        secrets.insert(name, secret);
    }
    Ok(Facts {
        namespace: cluster.namespace.clone(),
        definitions: definitions(cluster).await,
        metrics: cluster.operator_metrics().await.map_err(|error| format!("{error:#}")),
        operator,
        rights,
        queues,
        workers,
        secrets,
        policies: cluster.api::<NetworkPolicy>().list(&all).await.map(|list| list.items).map_err(said),
        sidecars: cluster.sidecars(None).await.map_err(said),
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

/// Asks for each of the operator's own rules.
async fn rights(cluster: &Cluster, account: &str) -> Read<Vec<Right>> {
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let questions: Vec<_> = warren_operator::rbac::rules()
        .into_iter()
        .flat_map(|rule| {
            let group = rule.api_groups.unwrap_or_default().pop().unwrap_or_default();
            let verbs = rule.verbs;
            let pairs = rule.resources.unwrap_or_default().into_iter();
            pairs
                .flat_map(move |resource| {
                    verbs.clone().into_iter().map({
                        let group = group.clone();
                        move |verb| (group.clone(), resource.clone(), verb)
                    })
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let asked = questions.into_iter().map(|(group, resource, verb)| {
        let reviews = reviews.clone();
        async move {
            let (name, sub) = match resource.split_once('/') {
                Some((name, sub)) => (name.to_owned(), Some(sub.to_owned())),
                None => (resource.clone(), None),
            };
            let attributes = ResourceAttributes {
                namespace: Some(cluster.namespace.clone()),
                group: Some(group.clone()),
                resource: Some(name),
                subresource: sub,
                verb: Some(verb.clone()),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                user: Some(account.to_owned()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(said)?;
            let dot = if group.is_empty() { "" } else { "." };
            Ok(Right {
                what: format!("{verb} {resource}{dot}{group}"),
                given: answer.status.is_some_and(|status| status.allowed),
            })
        }
    });
    let answers: Vec<Read<Right>> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    answers.into_iter().collect()
}
