//! What the plugin reads of a cluster. Thin: it performs requests and gives values.

use std::env;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use futures::StreamExt;
use futures::future::{join_all, ready};
use hyper_util::client::proxy::matcher::Matcher;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use warren_api::metrics::LEADER;
use warren_api::names::{SIDECAR_PORT, WORKER_LABEL};
use warren_operator::scaler::record::Told;
use warren_operator::scaler::sample::{self, Sample};
use warren_operator::worker::pods::sidecar_runs;

use crate::exposition::Exposition;
use crate::read::{Read, said};

/// Labels of the operator's pods, as the chart sets them.
pub const OPERATOR_LABELS: &str = "app.kubernetes.io/part-of=warren,app.kubernetes.io/component=operator";
/// The operator's port.
const OPERATOR_PORT: u16 = 8080;
/// Sidecars that are read at once.
const AT_ONCE: usize = 16;
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a pod may take to answer: the API server waits for it without an end.
const PAGE: Duration = Duration::from_secs(5);
/// How long all pods of a namespace may take, of which many may be out of reach.
const ALL_PAGES: Duration = Duration::from_secs(20);

/// Which cluster and namespace.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Target {
    /// Namespace; default: the context's
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Context of the kubeconfig; default: the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// The kubeconfig; default: KUBECONFIG, then ~/.kube/config
    #[arg(long, global = true, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of Warren's operator, for those who may not list pods in all; default: looked for in all
    #[arg(long, global = true, value_name = "NAME")]
    pub operator_namespace: Option<String>,
}

impl Target {
    /// What is empty says nothing, as with kubectl: a script's `--namespace "$NS"` without an NS asks for the context's.
    pub fn tidy(&mut self) {
        for name in [&mut self.namespace, &mut self.context, &mut self.operator_namespace] {
            name.take_if(|name| name.is_empty());
        }
        self.kubeconfig.take_if(|path| path.as_os_str().is_empty());
    }
}

/// A cluster, seen as one user.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The way through it to pods.
    pages: Client,
    /// The namespace that is asked about.
    pub namespace: String,
    /// The operator's; none: it is looked for in all.
    pub operator_namespace: Option<String>,
}

/// A pod whose sidecar runs.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// The pod.
    pub pod: Pod,
    /// When it answered.
    pub at: Instant,
    /// Its metrics.
    pub said: Read<Sample>,
}

impl Sidecar {
    /// Whether it is one of a Worker's.
    pub fn is_of(&self, worker: &str) -> bool {
        self.pod.labels().get(WORKER_LABEL).is_some_and(|of| of == worker)
    }
}

/// The files that KUBECONFIG lists, as one. Those that are not there are passed over, see
/// <https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/>; none: it lists none.
fn named(list: &OsStr) -> anyhow::Result<Option<Kubeconfig>> {
    let listed: Vec<PathBuf> = env::split_paths(list).filter(|path| path != Path::new("")).collect();
    let mut all: Option<Kubeconfig> = None;
    for path in listed.iter().filter(|path| path.exists()) {
        let read =
            Kubeconfig::read_from(path).map(tidy).with_context(|| format!("read {}", path.display()))?;
        all = Some(match all {
            Some(all) => all.merge(read).context("merge the files of KUBECONFIG")?,
            None => read,
        });
    }
    if all.is_none() && !listed.is_empty() {
        bail!("none of the files that KUBECONFIG lists is there");
    }
    Ok(all)
}

/// What is empty says nothing, as kubectl reads it.
fn tidy(mut read: Kubeconfig) -> Kubeconfig {
    read.current_context.take_if(|name| name.is_empty());
    for context in read.contexts.iter_mut().filter_map(|named| named.context.as_mut()) {
        context.namespace.take_if(|name| name.is_empty());
    }
    read
}

/// The proxy that a kubeconfig names for the cluster of a context, or of the current one.
fn proxy_of(read: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let name = context.or(read.current_context.as_deref())?;
    let context = read.contexts.iter().find(|context| context.name == name)?.context.as_ref()?;
    let cluster = read.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|url| !url.is_empty())
}

/// An exception as the library reads it: `*.domain` is `.domain`, and one of another port excepts nothing.
fn exception<'a>(one: &'a str, server: &http::Uri) -> Option<&'a str> {
    let one = one.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(one);
    let port = |port: &str| port.parse::<u16>().ok();
    match one.rsplit_once(':').and_then(|(host, number)| Some((host, port(number)?))) {
        Some((host, number)) if !host.contains(':') => (server.port_u16() == Some(number)).then_some(host),
        _ => Some(one),
    }
}

/// The proxy to an API server: the cluster's own, else that of the environment, unless it excepts the server or that is on this
/// machine, see <https://pkg.go.dev/net/http#ProxyFromEnvironment>. The library compares the exceptions with the proxy.
fn proxy(
    own: Option<String>,
    environment: impl Fn(&str) -> Option<String>,
    server: &http::Uri,
) -> anyhow::Result<Option<http::Uri>> {
    let said =
        |names: [&str; 2]| names.iter().filter_map(|name| environment(name)).find(|said| !said.is_empty());
    let excepted = || {
        let except = said(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse().is_ok_and(|host: IpAddr| host.is_loopback());
        let except: Vec<_> = except.split(',').filter_map(|one| exception(one.trim(), server)).collect();
        let matcher = Matcher::builder().all("http://proxy").no(except.join(",")).build();
        is_here || except.contains(&"*") || matcher.intercept(server).is_none()
    };
    let of_environment = || said(["HTTPS_PROXY", "https_proxy"]).filter(|_| !excepted());
    let Some(url) = own.or_else(of_environment) else { return Ok(None) };
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    url.parse().map(Some).context("read the address of the proxy to the API server")
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does.
    ///
    /// # Errors
    /// There is none, or it names no such context.
    pub async fn connect(target: &Target) -> anyhow::Result<Self> {
        let context = target.context.as_deref();
        let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
        let read = match &target.kubeconfig {
            Some(file) => Some(Kubeconfig::read_from(file).map(tidy).context("read the kubeconfig")?),
            None => named(env::var_os("KUBECONFIG").unwrap_or_default().as_os_str())?,
        };
        let read = match read.map_or_else(|| Kubeconfig::read().map(tidy), Ok) {
            // In a pod a file without a context is none, as no file is.
            Ok(read)
                if read.current_context.is_some() || context.is_some() || target.kubeconfig.is_some() =>
            {
                Some(read)
            }
            Err(error) if context.is_some() => return Err(error).context("read the kubeconfig"),
            Ok(_) | Err(_) => None,
        };
        let own_proxy = read.as_ref().and_then(|read| proxy_of(read, context));
        let mut config = match read {
            Some(read) => {
                Config::from_custom_kubeconfig(read, &options).await.context("use the kubeconfig")?
            }
            None => Config::infer()
                .await
                .context("find a kubeconfig (--kubeconfig, KUBECONFIG or ~/.kube/config)")?,
        };
        let server = &config.cluster_url;
        if server.scheme().is_none() {
            bail!(
                "the kubeconfig's server \"{server}\" does not say how to reach it: write https://{server}"
            );
        }
        config.proxy_url = proxy(own_proxy, |name| env::var(name).ok(), server)?;
        // From the request on, however long the connection was idle before.
        (config.read_timeout, config.reset_reader_on_write) = (Some(ANSWER), true);
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let operator_namespace = target.operator_namespace.clone();
        let client = Client::try_from(config.clone())?;
        // What a pod does not answer is to be told, and not to be asked for again until the time is up.
        config.default_retry = false;
        let pages = Client::try_from(config)?;
        Ok(Self { client, pages, namespace, operator_namespace })
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
    pub async fn operator_pods(&self) -> anyhow::Result<Vec<Pod>> {
        let client = self.client.clone();
        let (pods, whose): (Api<Pod>, _) = match &self.operator_namespace {
            Some(namespace) => (Api::namespaced(client, namespace), "list the operator's pods"),
            None => (
                Api::all(client),
                "list the operator's pods in all namespaces (--operator-namespace NAME asks for one)",
            ),
        };
        let pods = pods.list(&ListParams::default().labels(OPERATOR_LABELS)).await.context(whose)?;
        Ok(watching(pods.items, &self.namespace))
    }

    /// The metrics of the operator that leads, through the API server; none where all have answered and none leads.
    ///
    /// # Errors
    /// There is no operator, or who leads cannot be told.
    pub async fn operator_metrics(&self) -> anyhow::Result<Option<Exposition>> {
        let metrics = self.of_operator("metrics").await?;
        let metrics =
            metrics.into_iter().map(|text| text.map(|text| Exposition::new(text.unwrap_or_default())));
        leading(metrics.collect())
    }

    /// The sidecars of all pods in the namespace.
    ///
    /// # Errors
    /// The API server refuses the list of pods.
    pub async fn sidecars(&self) -> anyhow::Result<Vec<Sidecar>> {
        let of_workers = ListParams::default().labels(WORKER_LABEL);
        let pods = self.api::<Pod>().list(&of_workers).await.context("list pods")?.items;
        let until = tokio::time::Instant::now() + ALL_PAGES;
        let reads = pods.into_iter().filter(sidecar_runs).map(|pod| async move {
            let page = self.page(&pod, SIDECAR_PORT, "metrics");
            let text = tokio::time::timeout_at(until, page).await.unwrap_or_else(|_| {
                Err(anyhow!("pod {}: the {} s for all pods were over", pod.name_any(), ALL_PAGES.as_secs()))
            });
            // Who has gone since the list was made is none.
            let text = text.transpose()?;
            let said = text.map_err(said).and_then(|text| {
                sample::parse(&text)
                    .ok_or_else(|| format!("pod {}: these are no sidecar's metrics", pod.name_any()))
            });
            Some(Sidecar { pod, at: Instant::now(), said })
        });
        Ok(futures::stream::iter(reads).buffer_unordered(AT_ONCE).filter_map(ready).collect().await)
    }

    /// What the operator that leads remembers of its decisions about a Worker; none where no operator scales it.
    ///
    /// # Errors
    /// The operator cannot be asked.
    pub async fn decisions(&self, worker: &str) -> anyhow::Result<Option<Told>> {
        let pages = self.of_operator(&format!("decisions/{}/{worker}", self.namespace)).await?;
        // One that does not lead knows nothing; one that does tells enough, whatever became of the others.
        match pages.iter().flatten().flatten().next() {
            Some(text) => serde_json::from_str(text)
                .context("read what the operator tells, which may be of another version than this plugin"),
            None => pages.into_iter().collect::<anyhow::Result<Vec<_>>>().map(|_| None),
        }
    }

    /// A page of each of the operator's pods that run.
    async fn of_operator(&self, page: &str) -> anyhow::Result<Vec<anyhow::Result<Option<String>>>> {
        let pods = self.operator_pods().await?;
        if pods.is_empty() {
            let namespace = &self.namespace;
            let home = self.operator_namespace.as_ref();
            let within = home.map(|home| format!(" in namespace {home}")).unwrap_or_default();
            bail!(
                "there is no operator pod with the labels {OPERATOR_LABELS}{within} that watches namespace {namespace}"
            );
        }
        let pages = pods.iter().filter(|pod| running(pod)).map(|pod| self.page(pod, OPERATOR_PORT, page));
        Ok(join_all(pages).await)
    }

    /// A page of a pod, through the API server; none where there is no such page, or the pod is gone.
    async fn page(&self, pod: &Pod, port: u16, page: &str) -> anyhow::Result<Option<String>> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{page}");
        let request = http::Request::get(path).body(Vec::new())?;
        let answer = match tokio::time::timeout(PAGE, self.pages.request_text(request)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(None),
            Ok(answer) => answer.map(Some).map_err(anyhow::Error::new),
            Err(_) => Err(anyhow!("there was no answer within {} s", PAGE.as_secs())),
        };
        answer.with_context(|| format!("read /{page} of pod {name} through the API server"))
    }
}

/// What the one that leads says; none where all have answered and none leads.
fn leading(metrics: Vec<anyhow::Result<Exposition>>) -> anyhow::Result<Option<Exposition>> {
    let leads = |metrics: &Exposition| metrics.sum(LEADER, &[]).is_some_and(|leads| leads > 0.0);
    let (mut unread, mut found) = (None, None);
    for metrics in metrics {
        match metrics {
            Ok(metrics) if leads(&metrics) => found = Some(metrics),
            Ok(_) => {}
            Err(error) => unread = Some(error),
        }
    }
    match (found, unread) {
        (None, Some(error)) => Err(error),
        (found, _) => Ok(found),
    }
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Those of several operators' pods that watch a namespace: of the one that names it, else of one that watches all.
fn watching(pods: Vec<Pod>, namespace: &str) -> Vec<Pod> {
    let (naming, others): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| watched(pod).iter().any(|one| one == namespace));
    if naming.is_empty() {
        others.into_iter().filter(|pod| watched(pod).is_empty()).collect()
    } else {
        naming
    }
}

/// The namespaces that an operator's pod is told to watch, as the operator reads them: by its flag, else by the variable.
/// Empty: all.
fn watched(pod: &Pod) -> Vec<String> {
    const FLAG: &str = "--watch-namespaces=";
    let named = |container: &Container| {
        let args: Vec<&str> = container.args.iter().flatten().map(String::as_str).collect();
        // The value may be an argument of its own.
        let args = args.join(" ").replace("--watch-namespaces ", FLAG);
        let flag = args.split(' ').find_map(|arg| arg.strip_prefix(FLAG)).map(str::to_owned);
        let mut variables = container.env.iter().flatten();
        flag.or_else(|| variables.find(|one| one.name == "WARREN_WATCH_NAMESPACES")?.value.clone())
    };
    let named = pod.spec.iter().flat_map(|spec| &spec.containers).find_map(named).unwrap_or_default();
    named.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;

    use kube::client::Body;
    use serde_json::json;
    use warren_api::names::SIDECAR_CONTAINER;

    use super::*;

    /// A pod of a Worker with what its sidecar said.
    pub(crate) fn sidecar(worker: &str, uid: &str, at: Instant, said: Read<Sample>) -> Sidecar {
        let metadata = json!({"uid": uid, "labels": {(WORKER_LABEL): worker, "app": "shop"}});
        let pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        Sidecar { pod, at, said }
    }

    #[test]
    fn files_of_kubeconfig_that_are_not_there_are_passed_over_and_the_others_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            let text = format!("contexts: [{{name: {name}, context: {{cluster: c, user: u}}}}]");
            std::fs::write(&path, text).unwrap();
            path
        };
        let (one, two, none) = (file("one"), file("two"), folder.path().join("none"));
        let contexts = |files: &[&PathBuf]| {
            let read = named(&env::join_paths(files).unwrap())?;
            let names = read.map(|read| read.contexts.into_iter().map(|context| context.name));
            anyhow::Ok(names.map(Iterator::collect::<Vec<_>>))
        };
        assert_eq!(contexts(&[]).unwrap(), None);
        assert_eq!(contexts(&[&none, &one]).unwrap().unwrap(), ["one"]);
        assert_eq!(contexts(&[&one, &none, &two]).unwrap().unwrap(), ["one", "two"]);
        assert!(contexts(&[&none]).unwrap_err().to_string().contains("none of the files"));
    }

    #[test]
    fn what_a_kubeconfig_leaves_empty_the_next_one_or_the_default_says() {
        let read = |text: &str| tidy(serde_yaml::from_str(text).unwrap());
        let blank = "{current-context: '', contexts: [{name: a, context: {cluster: c, namespace: ''}}]}";
        let all = read(blank).merge(read("current-context: a")).unwrap();
        assert_eq!(all.current_context.as_deref(), Some("a"));
        assert_eq!(all.contexts[0].context.as_ref().unwrap().namespace, None);
    }

    #[test]
    fn the_proxy_is_the_clusters_own_or_that_of_the_environment_where_it_excepts_no_such_server() {
        let read: Kubeconfig = serde_yaml::from_str(
            "{current-context: a, contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: d}}],
              clusters: [{name: c, cluster: {proxy-url: 'http://own:1'}}, {name: d, cluster: {proxy-url: ''}}]}",
        )
        .unwrap();
        assert_eq!(
            (proxy_of(&read, None).as_deref(), proxy_of(&read, Some("b"))),
            (Some("http://own:1"), None)
        );

        let found = |own: Option<&str>, variables: &[(&str, &str)], server: &str| {
            let environment = |name: &str| {
                variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
            };
            let proxy = proxy(own.map(str::to_owned), environment, &server.parse().unwrap());
            proxy.unwrap().map(|url| url.to_string())
        };
        let server = "https://10.1.2.3:6443";
        let through = |variables: &[(&str, &str)]| found(None, variables, server);
        assert_eq!(through(&[]), None);
        assert_eq!(
            through(&[("HTTPS_PROXY", ""), ("https_proxy", "proxy:3128")]).unwrap(),
            "http://proxy:3128/"
        );
        let but = |except| through(&[("HTTPS_PROXY", "socks5://proxy:3"), ("no_proxy", except)]);
        assert_eq!((but("10.0.0.0/8"), but("shop, 10.1.2.3"), but("*")), (None, None, None));
        assert_eq!(
            (
                but("10.1.2.3:6443"),
                found(None, &[("HTTPS_PROXY", "p"), ("NO_PROXY", "*.corp")], "https://a.corp")
            ),
            (None, None)
        );
        assert_eq!([but("10.1.2.3:443"), but("*.corp")].map(Option::unwrap), ["socks5://proxy:3/"; 2]);
        assert_eq!([but("proxy"), but("192.168.0.0/16")].map(Option::unwrap), ["socks5://proxy:3/"; 2]);
        for here in ["https://127.0.0.1:6443", "https://localhost", "https://[::1]:6443"] {
            assert_eq!(found(None, &[("HTTPS_PROXY", "http://proxy")], here), None);
        }
        let own = found(Some("http://own:1"), &[("HTTPS_PROXY", "http://proxy"), ("NO_PROXY", "*")], server);
        assert_eq!(own.unwrap(), "http://own:1/");
    }

    fn leader(leads: u32) -> Exposition {
        Exposition::new(format!("warren_operator_leader {leads}\n"))
    }

    #[test]
    fn the_one_that_leads_is_found_among_those_that_stand_by_or_cannot_be_read() {
        let unread = || Err(anyhow::anyhow!("refused"));
        for answers in [vec![unread(), Ok(leader(0)), Ok(leader(1))], vec![Ok(leader(1)), unread()]] {
            assert_eq!(leading(answers).unwrap(), Some(leader(1)));
        }
        assert_eq!(leading(vec![Ok(leader(0)), Ok(leader(0))]).unwrap(), None);
        for answers in [vec![unread(), Ok(leader(0))], vec![Ok(leader(0)), unread()]] {
            assert!(leading(answers).is_err(), "the one that was not read may lead");
        }
    }

    fn through(client: Client) -> Cluster {
        let pages = client.clone();
        Cluster { client, pages, namespace: "shop".to_owned(), operator_namespace: None }
    }

    fn asked<F>(answer: fn() -> F) -> (Cluster, Pod)
    where
        F: Future<Output = http::Response<Body>> + Send + 'static,
    {
        let service =
            tower::service_fn(
                move |_: http::Request<Body>| async move { Ok::<_, Infallible>(answer().await) },
            );
        let pod = json!({"metadata": {"name": "invoices-1", "namespace": "shop"}});
        let cluster = through(Client::new(service, "shop"));
        (cluster, serde_json::from_value(pod).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_leaves_a_request_open_counts_as_one_that_cannot_be_read() {
        let (cluster, pod) = asked(std::future::pending);
        let error = said(cluster.page(&pod, SIDECAR_PORT, "metrics").await.unwrap_err());
        assert_eq!(
            error,
            "read /metrics of pod invoices-1 through the API server: there was no answer within 5 s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_of_pods_that_are_out_of_reach_take_no_minutes() {
        let server = |request: http::Request<Body>| async move {
            if request.uri().path().ends_with("/proxy/metrics") {
                std::future::pending::<()>().await;
            }
            let running = json!([{"name": SIDECAR_CONTAINER, "state": {"running": {}}}]);
            let pod = |number| {
                json!({"metadata": {"name": format!("invoices-{number}"), "namespace": "shop"},
                    "status": {"initContainerStatuses": running}})
            };
            let list = json!({"metadata": {}, "items": (0..300).map(pod).collect::<Vec<_>>()});
            Ok::<_, Infallible>(http::Response::new(Body::from(list.to_string().into_bytes())))
        };
        let cluster = through(Client::new(tower::service_fn(server), "shop"));
        let begun = tokio::time::Instant::now();
        let read = cluster.sidecars().await.unwrap();
        assert!(begun.elapsed() <= ALL_PAGES, "{:?}", begun.elapsed());
        let unread = read.iter().filter_map(|sidecar| sidecar.said.as_ref().err()).collect::<Vec<_>>();
        assert_eq!(unread.len(), 300);
        assert!(unread[299].contains("the 20 s for all pods were over"), "{}", unread[299]);
    }

    #[tokio::test]
    async fn a_page_that_is_not_there_is_none() {
        let (cluster, pod) =
            asked(|| async { http::Response::builder().status(404).body(Body::empty()).unwrap() });
        assert_eq!(cluster.page(&pod, OPERATOR_PORT, "decisions/shop/invoices").await.unwrap(), None);
    }

    #[test]
    fn what_an_operator_watches_is_read_as_it_reads_it_itself() {
        let told = |args: &[&str], variable: &str| {
            let env = json!([{"name": "WARREN_WATCH_NAMESPACES", "value": variable}]);
            let containers = json!([{"name": "operator", "args": args, "env": env}]);
            let pod = json!({"metadata": {}, "spec": {"containers": containers}});
            watched(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(told(&["--watch-namespaces=shop,mail"], "other"), ["shop", "mail"]);
        assert_eq!(told(&["--watch-namespaces", "shop", "--listen=[::]:1"], "other"), ["shop"]);
        assert_eq!(told(&["--log-format=json"], "shop,"), ["shop"]);
        assert!(told(&["--watch-namespaces="], "").is_empty() && told(&[], "").is_empty());
    }

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
