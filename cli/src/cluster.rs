//! What the plugin reads of a cluster. Thin: it performs requests and gives values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use warren_api::names::{SIDECAR_PORT, WORKER_LABEL};
use warren_operator::scaler::record::Told;

use crate::exposition::Exposition;

/// Labels of the operator's pods, as the chart sets them.
pub const OPERATOR_LABELS: &str = "app.kubernetes.io/part-of=warren,app.kubernetes.io/component=operator";
/// The operator's port.
const OPERATOR_PORT: u16 = 8080;
/// Sidecars that are read at once.
const AT_ONCE: usize = 16;

/// Which cluster and namespace.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// Namespace; default: the context's
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Context of the kubeconfig; default: the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// The kubeconfig; default: KUBECONFIG, then ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// A cluster, seen as one user.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The namespace that is asked about.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does.
    ///
    /// # Errors
    /// There is none, or it names no such context.
    pub async fn connect(target: &Target) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&target.kubeconfig, &target.context) {
            (Some(file), _) => {
                let read = Kubeconfig::read_from(file).context("read the kubeconfig")?;
                Config::from_custom_kubeconfig(read, &options).await.context("use the kubeconfig")?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.context("read the kubeconfig")?,
            (None, None) => Config::infer()
                .await
                .context("find a kubeconfig (--kubeconfig, KUBECONFIG or ~/.kube/config)")?,
        };
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    /// Something of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pods of the operator that watches the namespace, wherever they are.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn operator_pods(&self) -> kube::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let pods = pods.list(&ListParams::default().labels(OPERATOR_LABELS)).await?.items;
        Ok(watching(pods, &self.namespace))
    }

    /// The metrics of the operator that leads, through the API server.
    ///
    /// # Errors
    /// There is no operator, or its metrics cannot be read, with what to do.
    pub async fn operator_metrics(&self) -> anyhow::Result<Exposition> {
        let pods = self.operator_pods().await.context("list the operator's pods")?;
        let mut last = anyhow::anyhow!(
            "there is no operator pod with the labels {OPERATOR_LABELS} that watches namespace {}",
            self.namespace
        );
        for pod in &pods {
            match self.metrics(pod, OPERATOR_PORT).await {
                Ok(metrics) if metrics.sum("warren_operator_leader", &[]) == Some(0.0) => {
                    last = anyhow::anyhow!("no operator leads at the moment");
                }
                Ok(metrics) => return Ok(metrics),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The metrics of the sidecars of all pods in the namespace, by Worker; a pod that cannot be read is none.
    ///
    /// # Errors
    /// The API server refuses the list of pods.
    pub async fn sidecars(
        &self,
        worker: Option<&str>,
    ) -> kube::Result<BTreeMap<String, Vec<Option<Exposition>>>> {
        let selector =
            worker.map_or_else(|| WORKER_LABEL.to_owned(), |name| format!("{WORKER_LABEL}={name}"));
        let pods = self.api::<Pod>().list(&ListParams::default().labels(&selector)).await?.items;
        let reads = pods.into_iter().filter(running).map(|pod| async move {
            let worker = pod.labels().get(WORKER_LABEL).cloned().unwrap_or_default();
            (worker, self.metrics(&pod, SIDECAR_PORT).await.ok())
        });
        let answers: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        let mut by_worker: BTreeMap<String, Vec<Option<Exposition>>> = BTreeMap::new();
        for (worker, metrics) in answers {
            by_worker.entry(worker).or_default().push(metrics);
        }
        Ok(by_worker)
    }

    /// What the operator that leads remembers of its decisions about a Worker; none where no operator scales it.
    ///
    /// # Errors
    /// The operator cannot be asked.
    pub async fn decisions(&self, worker: &str) -> anyhow::Result<Option<Told>> {
        let pods = self.operator_pods().await.context("list the operator's pods")?;
        let path = format!("decisions/{}/{worker}", self.namespace);
        let mut last = None;
        for pod in &pods {
            match self.get(pod, OPERATOR_PORT, &path).await {
                Ok(text) => return Ok(Some(serde_json::from_str(&text)?)),
                // One that does not lead knows nothing.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => last = Some(error),
            }
        }
        match last {
            None => Ok(None),
            Some(error) => {
                Err(error).context("ask the operator through the API server (needs get on pods/proxy)")
            }
        }
    }

    async fn metrics(&self, pod: &Pod, port: u16) -> anyhow::Result<Exposition> {
        let text = self.get(pod, port, "metrics").await.with_context(|| {
            let name = pod.name_any();
            format!("read the metrics of pod {name} through the API server (needs get on pods/proxy)")
        })?;
        Ok(Exposition::parse(&text))
    }

    /// A page of a pod, through the API server.
    async fn get(&self, pod: &Pod, port: u16, page: &str) -> kube::Result<String> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{page}");
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await
    }
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Those of several operators' pods that watch a namespace: of the one that names it, else of one that watches all.
fn watching(pods: Vec<Pod>, namespace: &str) -> Vec<Pod> {
    let (naming, others): (Vec<_>, Vec<_>) = pods
        .into_iter()
        .partition(|pod| watched(pod).is_some_and(|watched| watched.iter().any(|one| one == namespace)));
    if naming.is_empty() { others.into_iter().filter(|pod| watched(pod).is_none()).collect() } else { naming }
}

/// The namespaces that an operator's pod is told to watch; none: all.
fn watched(pod: &Pod) -> Option<Vec<String>> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut args = containers.flat_map(|container| container.args.iter().flatten());
    let named = args.find_map(|arg| arg.strip_prefix("--watch-namespaces="))?;
    Some(named.split(',').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_operators_the_one_that_watches_the_namespace_is_asked() {
        let pod = |name: &str, args: &[&str]| -> Pod {
            let containers = json!([{"name": "operator", "args": args}]);
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": containers}}))
                .unwrap()
        };
        let all = pod("all", &["--log-format=json"]);
        let some = pod("some", &["--log-format=json", "--watch-namespaces=shop,mail"]);
        let asked = |pods: &[&Pod], namespace: &str| -> Vec<String> {
            let pods = pods.iter().map(|pod| (*pod).clone()).collect();
            watching(pods, namespace).iter().map(|pod| pod.name_any()).collect()
        };
        assert_eq!(asked(&[&all, &some], "shop"), ["some"]);
        assert_eq!(asked(&[&some, &all], "other"), ["all"]);
        assert!(asked(&[&some], "sho").is_empty());
    }
}
