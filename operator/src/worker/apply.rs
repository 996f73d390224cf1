//! Step 4: the objects by server-side apply, and only where they are not as they should be.

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use warren_api::Worker;
use warren_api::conditions::worker::TEMPLATE_VALID;
use warren_api::names::CONFIG_KEY;

use super::annotate::annotate;
use super::build::{Built, TEMPLATE_DIGEST, digest};
use super::covers::covers;
use super::dereference::Surroundings;
use super::live::{Live, LiveConfigMap, LiveDeployment, LiveDisruptionBudget};
use super::owed::owed_config;
use super::pods::staying;
use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::problem::{NAME_TAKEN, Problem, REFUSED};

/// The digest of a Deployment that was replaced, until server-side apply alone owns what it has.
pub const REPLACED: &str = "replaced";
/// Annotation of a running pod: a digest of the sidecar's configuration that it was last told of.
const CONFIG_DIGEST: &str = "warren.dev/config-digest";

/// How often ownership is given back while somebody else changes the Deployment.
const DISOWNING: usize = 10;

/// What has come of it.
pub struct Applied {
    /// Whether there was no Deployment.
    pub made: bool,
    /// What is wrong with the PodDisruptionBudget, without which the rest does its work.
    pub budget: Option<Problem>,
}

/// Applies what differs. The inner error is what the API server does not take.
pub async fn apply(
    worker: &Worker,
    built: &Built,
    around: &Surroundings,
    context: &Context,
) -> Result<Result<Applied, Problem>, Error> {
    let namespace = worker.namespace().unwrap_or_default();
    let config_maps: Api<LiveConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let deployments: Api<LiveDeployment> = Api::namespaced(context.client.clone(), &namespace);
    let reconfigured =
        around.config_map.as_deref().is_some_and(|live| !covers(&live.object(), &built.config_map));
    // The pods mount the ConfigMap: it comes first.
    if let Err(refusal) = one(&config_maps, worker, &built.config_map, around.config_map.as_deref()).await? {
        return Ok(Err(refusal.problem));
    }
    if reconfigured {
        hasten(&built.config_map["data"], around, context).await;
    }
    if let Some(live) = around.deployment.as_deref().filter(|live| live.is_free_for(worker)) {
        if live.facts.replaced {
            disown(&deployments, &live.name_any()).await?;
        }
        if let Err(refusal) = change_strategy(&deployments, live, &built.deployment).await? {
            return Ok(Err(refusal.problem));
        }
    }
    let live = around.deployment.as_deref();
    let made = match one(&deployments, worker, &built.deployment, live).await? {
        // One that is not in the cache is this Worker's too, or there is none: of somebody else's the refusal is another.
        Err(refusal) if refusal.code == 422 && live.is_none_or(|live| live.is_free_for(worker)) => {
            replace_spec(&deployments, worker, &built.deployment, refusal).await?
        }
        made => made,
    };
    let made = match made {
        Ok(made) => made,
        Err(refusal) => return Ok(Err(refusal.problem)),
    };
    let budgets: Api<LiveDisruptionBudget> = Api::namespaced(context.client.clone(), &namespace);
    let live = around.disruption_budget.as_deref();
    let budget = match &built.disruption_budget {
        Some(desired) => one(&budgets, worker, desired, live).await?.err().map(|refusal| refusal.problem),
        None => {
            if let Some(live) = live.filter(|live| live.is_owned_by(worker)) {
                remove(&budgets, live).await?;
            }
            None
        }
    };
    Ok(Ok(Applied { made, budget }))
}

/// Has sidecars hold consuming or go on, where nothing else of a Worker could be applied.
pub async fn hold_or_go_on(worker: &Worker, around: &Surroundings, context: &Context) -> Result<(), Error> {
    let Some((live, config)) = around.config_map.as_deref().zip(owed_config(worker, around)) else {
        return Ok(());
    };
    let data = json!({CONFIG_KEY: serde_json::to_string_pretty(&config)?});
    let namespace = worker.namespace().unwrap_or_default();
    let config_maps: Api<LiveConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    // What was written since it was read is newer, and brings the Worker here again.
    let read = json!({"resourceVersion": live.resource_version()});
    let patch = Patch::Merge(json!({"metadata": read, "data": data}));
    match config_maps.patch(&live.name_any(), &PatchParams::apply(FIELD_MANAGER), &patch).await {
        Ok(_) => hasten(&data, around, context).await,
        Err(kube::Error::Api(answer)) if answer.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Whether an object is this Worker's.
fn owned(object: &impl Resource, worker: &Worker) -> bool {
    object.owner_references().iter().any(|owner| Some(&owner.uid) == worker.metadata.uid.as_ref())
}

/// Deletes this very object; one that is gone is as good, and so is one that has its place since.
async fn remove(api: &Api<LiveDisruptionBudget>, live: &LiveDisruptionBudget) -> Result<(), Error> {
    let preconditions = Preconditions { uid: live.uid(), resource_version: None };
    let this = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&live.name_any(), &this).await {
        Ok(_) => {
            tracing::info!(namespace = live.namespace(), name = %live.name_any(), "PodDisruptionBudget removed");
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes out what the API server has filled in for the strategy that a Deployment had: it refuses that beside `Recreate`, and
/// server-side apply leaves what nobody has applied.
async fn change_strategy(
    api: &Api<LiveDeployment>,
    live: &LiveDeployment,
    desired: &Value,
) -> Result<Result<(), Refusal>, Error> {
    if !recreates(desired) || live.object()["spec"]["strategy"]["rollingUpdate"].is_null() {
        return Ok(Ok(()));
    }
    let params = PatchParams::apply(FIELD_MANAGER);
    let strategy = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    match api.patch(&live.name_any(), &params, &Patch::Merge(strategy)).await {
        Ok(_) => Ok(Ok(())),
        // One that is gone is made anew.
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(Ok(())),
        Err(kube::Error::Api(refusal)) if is_refusal(refusal.code, &refusal.message) => {
            Ok(Err(Refusal::of("Deployment", &refusal)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a Deployment's old pods end before the new ones start.
fn recreates(deployment: &Value) -> bool {
    deployment["spec"]["strategy"]["type"] == "Recreate"
}

/// Applies a Deployment that is there and was refused, without what others have put into its lists, such as by `kubectl set env` or
/// `rollout undo`: server-side apply leaves that beside what the Worker asks for, and a variable with two sources is refused.
async fn replace_spec(
    api: &Api<LiveDeployment>,
    worker: &Worker,
    desired: &Value,
    refusal: Refusal,
) -> Result<Result<bool, Refusal>, Error> {
    let name = desired["metadata"]["name"].as_str().unwrap_or_default();
    let mut required = required(worker, desired);
    if recreates(desired) {
        required["spec"]["strategy"]["rollingUpdate"] = Value::Null;
    }
    // All of it, so that what is refused for another reason is refused here too, and nothing is rolled out in part.
    let annotations = json!({"annotations": {TEMPLATE_DIGEST: REPLACED}});
    let whole = Patch::Merge(json!({"metadata": annotations, "spec": required["spec"]}));
    match api.patch(name, &PatchParams::apply(FIELD_MANAGER).validation_strict(), &whole).await {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(Err(refusal)),
        Err(kube::Error::Api(refusal)) if is_refusal(refusal.code, &refusal.message) => {
            return Ok(Err(Refusal::of("Deployment", &refusal)));
        }
        Err(error) => return Err(error.into()),
    }
    disown(api, name).await?;
    let applied = one(api, worker, desired, None).await?;
    if applied.is_ok() {
        tracing::warn!(
            namespace = worker.namespace(),
            name,
            "what others had put into the Deployment was in the way, and is taken out"
        );
    }
    Ok(applied)
}

/// Has what [`replace_spec`] has written be owned by server-side apply alone: what the Worker asks for no more would else stay.
async fn disown(api: &Api<LiveDeployment>, name: &str) -> Result<(), Error> {
    let mut tries = 1..DISOWNING;
    loop {
        let Some(live) = api.get_metadata_opt(name).await? else { return Ok(()) };
        let mut owners = live.metadata.managed_fields.clone().unwrap_or_default();
        owners.retain(|owner| {
            owner.manager.as_deref() != Some(FIELD_MANAGER)
                || owner.operation.as_deref() != Some("Update")
                || owner.subresource.as_deref().is_some_and(|part| !part.is_empty())
        });
        let metadata = json!({"resourceVersion": live.resource_version(), "managedFields": owners});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            // The Deployment's controller has written its status meanwhile, as it does after each change.
            Err(kube::Error::Api(answer)) if answer.code == 409 && tries.next().is_some() => {}
            disowned => return Ok(disowned.map(drop)?),
        }
    }
}

/// What an object must have. In mode Builtin the scaler writes a Deployment's replicas, and a cache that has not seen that
/// yet is no reason to apply.
fn required(worker: &Worker, desired: &Value) -> Value {
    let mut required = desired.clone();
    if worker.scales_itself()
        && let Some(spec) = required.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.remove("replicas");
    }
    required
}

/// The kubelet looks at a pod's ConfigMaps once a minute or so, and at once when the pod itself changes, see
/// <https://kubernetes.io/docs/tasks/configure-pod-container/configure-pod-configmap/#mounted-configmaps-are-updated-automatically>.
async fn hasten(data: &Value, around: &Surroundings, context: &Context) {
    let digest = digest(data);
    // A pod that this does not reach sees the ConfigMap when the kubelet looks next.
    let values = staying(&around.pods).map(|pod| (pod.clone(), digest.clone()));
    annotate(context, CONFIG_DIGEST, values.collect()).await;
}

/// What the API server does not take.
struct Refusal {
    code: u16,
    problem: Problem,
}

impl Refusal {
    fn of(kind: &str, answer: &Status) -> Self {
        Self { code: answer.code, problem: refused(kind, answer.code, &answer.message) }
    }
}

/// Applies one object; gives whether there was none.
async fn one<K, F>(
    api: &Api<Live<K, F>>,
    worker: &Worker,
    desired: &Value,
    live: Option<&Live<K, F>>,
) -> Result<Result<bool, Refusal>, Error>
where
    K: Resource<DynamicType = ()>,
    Live<K, F>: DeserializeOwned + Clone,
{
    let name = desired["metadata"]["name"].as_str().unwrap_or_default();
    let made = match live.filter(|live| live.is_warrens()) {
        Some(live) if covers(&live.object(), &required(worker, desired)) => return Ok(Ok(false)),
        Some(_) => false,
        // What is not in the cache, which holds labelled objects only, may be somebody else's, as may what has the label alone.
        None => {
            let found = api.get_metadata_opt(name).await?;
            if found.as_ref().is_some_and(|found| !owned(found, worker)) {
                let kind = K::kind(&());
                let message = format!(
                    "{kind} \"{name}\" exists and is not this Worker's: rename or delete one of them"
                );
                let problem = Problem::new(TEMPLATE_VALID, NAME_TAKEN, message);
                return Ok(Err(Refusal { code: 409, problem }));
            }
            found.is_none()
        }
    };
    match api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(desired)).await {
        Ok(_) => {
            tracing::info!(namespace = worker.namespace(), worker = %worker.name_any(), kind = %K::kind(&()), name, "applied");
            Ok(Ok(made))
        }
        Err(kube::Error::Api(refusal)) if is_refusal(refusal.code, &refusal.message) => {
            Ok(Err(Refusal::of(&K::kind(&()), &refusal)))
        }
        Err(error) => Err(error.into()),
    }
}

/// What the API server does not take, and what to do about it.
fn refused(kind: &str, code: u16, answer: &str) -> Problem {
    let mend = match (code, kind) {
        (403, _) => {
            ". A right of the operator, a quota or a policy of the namespace is in the way: see to that; it is tried again by itself"
        }
        (_, "Deployment") => {
            ". Correct spec.template, or spec.sidecar where it is about the init container warren-sidecar"
        }
        (_, _) => "",
    };
    let message = format!("the API server does not take the {kind}: {answer}{mend}");
    Problem::new(TEMPLATE_VALID, REFUSED, message)
}

/// Whether an answer is about what was sent, so that sending it again changes nothing.
fn is_refusal(code: u16, message: &str) -> bool {
    match code {
        400 | 413 | 422 => true,
        // 403 is admission's word for quotas and policies too; a namespace that is going refuses everything.
        403 => true,
        // So server-side apply answers where a field does not fit the schema, or is no quantity. Any other 500, such as over a
        // webhook that is down, passes by itself.
        500 => {
            ["typed patch object", "failed to convert new object"].iter().any(|text| message.contains(text))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_with_what_is_to_be_mended() {
        let told = |kind, code| refused(kind, code, "no").message;
        assert!(told("Deployment", 422).contains(". Correct spec.template, or spec.sidecar"));
        for kind in ["Deployment", "ConfigMap"] {
            assert!(told(kind, 403).contains("a quota or a policy"), "{}", told(kind, 403));
            assert!(!told(kind, 403).contains("template"));
        }
        assert!(told("ConfigMap", 422).ends_with("take the ConfigMap: no"));
        let schema = "failed to create typed patch object (shop/a; apps/v1, Kind=Deployment): field not declared in schema";
        let quantity = "failed to convert new object (shop/a; apps/v1, Kind=Deployment) to proper version: quantities must match the regular expression";
        let webhook = "Internal error occurred: failed calling webhook \"a.example\": connection refused";
        assert!(is_refusal(500, schema) && is_refusal(500, quantity) && !is_refusal(500, webhook));
    }
}
