//! Step 4: the objects by server-side apply, and only where they are not as they should be.

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use warren_api::Worker;
use warren_api::conditions::worker::TEMPLATE_VALID;
use warren_api::names::CONFIG_KEY;
use warren_api::worker::ScalingMode;

use super::annotate::annotate;
use super::build::{Built, digest};
use super::covers::covers;
use super::dereference::{Surroundings, consumes};
use super::live::{Live, LiveConfigMap, LiveDeployment, LiveDisruptionBudget};
use super::pods::{only, staying};
use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::problem::Problem;

/// Annotation of a running pod: a digest of the sidecar's configuration that it was last told of.
const CONFIG_DIGEST: &str = "warren.dev/config-digest";

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
    if let Err(problem) = one(&config_maps, worker, &built.config_map, around.config_map.as_deref()).await? {
        return Ok(Err(problem));
    }
    if reconfigured {
        hasten(&built.config_map["data"], around, context).await;
    }
    if let Some(live) = around.deployment.as_deref().filter(|live| live.is_owned_by(worker)) {
        change_strategy(&deployments, live, &built.deployment).await?;
    }
    let live = around.deployment.as_deref();
    let mut made = one(&deployments, worker, &built.deployment, live).await?;
    if made.is_err()
        && let Some(live) = live.filter(|live| live.is_owned_by(worker))
        && replace_template(&deployments, live, &built.deployment).await?
    {
        made = one(&deployments, worker, &built.deployment, Some(live)).await?;
    }
    let made = match made {
        Ok(made) => made,
        Err(problem) => return Ok(Err(problem)),
    };
    let budgets: Api<LiveDisruptionBudget> = Api::namespaced(context.client.clone(), &namespace);
    let live = around.disruption_budget.as_deref();
    let budget = match &built.disruption_budget {
        Some(desired) => one(&budgets, worker, desired, live).await?.err(),
        None => {
            if let Some(live) = live.filter(|live| live.is_owned_by(worker)) {
                remove(&budgets, live).await?;
            }
            None
        }
    };
    Ok(Ok(Applied { made, budget }))
}

/// Names the pod that alone may consume for an order, where nothing else of a Worker could be applied: one that takes the place of
/// another does not wait for what is to be mended. Nobody watches over the order of a Queue that the Worker names no more.
pub async fn name_only_pod(worker: &Worker, around: &Surroundings, context: &Context) -> Result<(), Error> {
    let live = around.config_map.as_deref().filter(|live| live.is_owned_by(worker));
    let (Some((live, mut config)), Some(queue), None) =
        (live.zip(around.told()), around.queue.as_deref(), &around.beside)
    else {
        return Ok(());
    };
    let only = only(&around.pods).unwrap_or_default();
    if !consumes(&config, queue) || config.consumer.only_pod.as_ref().is_none_or(|told| *told == only) {
        return Ok(());
    }
    config.consumer.only_pod = Some(only);
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
) -> Result<(), Error> {
    let recreates = desired["spec"]["strategy"]["type"] == "Recreate";
    if !recreates || live.object()["spec"]["strategy"]["rollingUpdate"].is_null() {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER);
    let strategy = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    match api.patch(&live.name_any(), &params, &Patch::Merge(strategy)).await {
        Ok(_) => Ok(()),
        // One that is gone is made anew.
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes out what others have put into the lists of a Deployment's template, such as by `kubectl set env` or `rollout undo`: server-side
/// apply leaves that beside what the Worker asks for, and a variable with two sources is refused. Gives whether the API server takes it.
async fn replace_template(
    api: &Api<LiveDeployment>,
    live: &LiveDeployment,
    desired: &Value,
) -> Result<bool, Error> {
    let template = Patch::Merge(json!({"spec": {"template": desired["spec"]["template"]}}));
    // What the API server does not know is not to be left out.
    let params = PatchParams::apply(FIELD_MANAGER).validation_strict();
    match api.patch(&live.name_any(), &params, &template).await {
        Ok(_) => {
            tracing::warn!(namespace = live.namespace(), name = %live.name_any(), "what others had put into the Deployment's template was in the way, and is taken out");
            Ok(true)
        }
        // The template itself is not taken.
        Err(kube::Error::Api(answer)) if is_refusal(answer.code, &answer.message) || answer.code == 404 => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// What an object must have. In mode Builtin the scaler writes a Deployment's replicas, and a cache that has not seen that
/// yet is no reason to apply.
fn required(worker: &Worker, desired: &Value) -> Value {
    let mut required = desired.clone();
    if worker.spec.scaling.mode == ScalingMode::Builtin
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

/// Applies one object; gives whether there was none.
async fn one<K, F>(
    api: &Api<Live<K, F>>,
    worker: &Worker,
    desired: &Value,
    live: Option<&Live<K, F>>,
) -> Result<Result<bool, Problem>, Error>
where
    K: Resource<DynamicType = ()>,
    Live<K, F>: DeserializeOwned + Clone,
{
    let name = desired["metadata"]["name"].as_str().unwrap_or_default();
    let made = match live {
        Some(live) if covers(&live.object(), &required(worker, desired)) => return Ok(Ok(false)),
        Some(_) => false,
        // What is not in the cache, which holds labelled objects only, may be somebody else's.
        None => {
            let found = api.get_metadata_opt(name).await?;
            if found.as_ref().is_some_and(|found| !owned(found, worker)) {
                let kind = K::kind(&());
                return Ok(Err(Problem::new(
                    TEMPLATE_VALID,
                    "NameTaken",
                    format!(
                        "{kind} \"{name}\" exists and is not this Worker's: rename or delete one of them"
                    ),
                )));
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
            Ok(Err(refused(&K::kind(&()), refusal.code, &refusal.message)))
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
    Problem::new(TEMPLATE_VALID, "Refused", message)
}

/// Whether an answer is about what was sent, so that sending it again changes nothing.
fn is_refusal(code: u16, message: &str) -> bool {
    match code {
        400 | 413 | 422 => true,
        // 403 is admission's word for quotas and policies too; a namespace that is going refuses everything.
        403 => true,
        // So server-side apply answers where a field does not fit the schema. Any other 500, such as over a webhook that is
        // down, passes by itself.
        500 => message.contains("typed patch object"),
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
        let webhook = "Internal error occurred: failed calling webhook \"a.example\": connection refused";
        assert!(is_refusal(500, schema) && !is_refusal(500, webhook));
    }
}
