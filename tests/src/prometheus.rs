//! Prometheus beside the cluster: it scrapes pods once a second, and tests ask it what users' dashboards ask.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::lifeline::{self, Lifeline};
use crate::process::Daemon;
use crate::site::Site;
use crate::{http, ports};

/// A Prometheus. It ends when the value is dropped, and also when the process ends in any way.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    discovery: JoinHandle<()>,
    _lifeline: Lifeline,
}

/// One series of an answer, with its newest value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its labels, as an object.
    pub labels: Value,
    /// Its value.
    pub value: f64,
}

impl Prometheus {
    /// Starts Prometheus. It scrapes all pods of the cluster that have a port named `metrics` or the annotation
    /// `prometheus.io/scrape: "true"` with `prometheus.io/port`, and evaluates the rules in the files given.
    pub async fn start(cluster: &Cluster, rules: &[PathBuf]) -> Result<Self> {
        let site = Site::current()?;
        let port = ports::free()?;
        let name = format!("prometheus-{port}");
        let dir = site.run.join(&name);
        std::fs::create_dir_all(&dir)?;
        let file = dir.join("prometheus.json");
        let targets = dir.join("targets.json");
        std::fs::write(&file, config(&targets, rules).to_string())?;
        let lifeline = Lifeline::tie(&site, &dir, &[&name])?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let daemon = Daemon::new(name, "/usr/bin/prometheus").owned().args([
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address=0.0.0.0:{port}"),
            "--log.level=warn".to_owned(),
        ]);
        let running = daemon.start(&site).await?;
        lifeline::note(&dir, &running.record.process)?;
        let ready = || async { http::get(address, "/-/ready").await.is_ok() };
        running.until_ready(Duration::from_secs(60), ready).await?;
        let discovery = tokio::spawn(discover(cluster.clone(), targets));
        Ok(Self { address, discovery, _lifeline: lifeline })
    }

    /// All series that a PromQL expression gives now.
    pub async fn query(&self, promql: &str) -> Result<Vec<Sample>> {
        let query: String = url_encode(promql);
        let answer = http::get(self.address, &format!("/api/v1/query?query={query}")).await?;
        samples(&serde_json::from_str(&answer)?).with_context(|| format!("query {promql}: {answer}"))
    }

    /// The one value that a PromQL expression gives now; none when there is no series, an error when there are several.
    pub async fn value(&self, promql: &str) -> Result<Option<f64>> {
        match self.query(promql).await?.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.value)),
            several => bail!("{promql} gives {} series", several.len()),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.discovery.abort();
    }
}

fn config(targets: &Path, rules: &[PathBuf]) -> Value {
    json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": rules,
        "scrape_configs": [{
            "job_name": "pods",
            "honor_labels": true,
            "file_sd_configs": [{"files": [targets]}],
        }],
    })
}

/// Keeps the file of targets as the cluster's pods are. Debian's Prometheus is built without its own search for them.
async fn discover(cluster: Cluster, file: PathBuf) {
    loop {
        // A cluster that does not answer now is asked again: the test that waits for a value says what is missing.
        let _ = follow(&cluster, &file).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow(cluster: &Cluster, file: &Path) -> Result<()> {
    let mut watch = cluster.kubectl_command();
    watch.args(["get", "pods", "--all-namespaces", "--watch", "--no-headers"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut changes = BufReader::new(watch.stdout.take().context("kubectl has no output")?).lines();
    loop {
        let pods: Value = cluster.get(&["pods", "--all-namespaces"]).await?;
        let partial = file.with_extension("partial");
        std::fs::write(&partial, targets(&pods).to_string())?;
        std::fs::rename(&partial, file)?;
        changes.next_line().await?.context("the watch ended")?;
        // Changes come in groups: look once for all of a group.
        let quiet = Duration::from_millis(200);
        while let Ok(line) = tokio::time::timeout(quiet, changes.next_line()).await {
            line?.context("the watch ended")?;
        }
    }
}

/// The targets among a list of pods, in the form of Prometheus' files.
fn targets(pods: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for pod in list(&pods["items"]) {
        let (Some(ip), Some("Running")) = (pod["status"]["podIP"].as_str(), pod["status"]["phase"].as_str())
        else {
            continue;
        };
        let annotations = &pod["metadata"]["annotations"];
        let containers = [list(&pod["spec"]["initContainers"]), list(&pod["spec"]["containers"])].concat();
        let named = containers.iter().flat_map(|container| list(&container["ports"]));
        let named =
            named.filter(|port| port["name"] == "metrics").map(|port| port["containerPort"].to_string());
        let annotated = annotations["prometheus.io/port"].as_str().map(str::to_owned);
        let annotated = annotated.filter(|_| annotations["prometheus.io/scrape"] == "true");
        let ports: BTreeSet<String> = named.chain(annotated).collect();
        for port in ports {
            found.push(json!({
                "targets": [format!("{ip}:{port}")],
                "labels": {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]},
            }));
        }
    }
    Value::Array(found)
}

fn samples(answer: &Value) -> Option<Vec<Sample>> {
    let result = &answer["data"]["result"];
    let number = |value: &Value| value[1].as_str()?.parse().ok();
    match answer["data"]["resultType"].as_str()? {
        "scalar" => Some(vec![Sample { labels: json!({}), value: number(result)? }]),
        "vector" => {
            let series = result.as_array()?.iter();
            series
                .map(|one| Some(Sample { labels: one["metric"].clone(), value: number(&one["value"])? }))
                .collect()
        }
        _ => None,
    }
}

fn url_encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_pods_are_scraped_by_port_name_and_by_annotation() {
        let pod = |spec: Value, phase: &str, annotations: Value| {
            json!({"metadata": {"namespace": "n", "name": "p", "annotations": annotations}, "spec": spec,
                "status": {"podIP": "10.0.0.9", "phase": phase}})
        };
        let port = json!({"initContainers": [{"ports": [{"name": "metrics", "containerPort": 9400}]}]});
        let asked = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9400"});
        let labels = json!({"namespace": "n", "pod": "p"});
        let expected = json!([{"targets": ["10.0.0.9:9400"], "labels": labels}]);
        assert_eq!(targets(&json!({"items": [pod(port.clone(), "Running", json!({}))]})), expected);
        assert_eq!(targets(&json!({"items": [pod(json!({}), "Running", asked.clone())]})), expected);
        assert_eq!(targets(&json!({"items": [pod(port.clone(), "Running", asked)]})), expected);
        assert_eq!(targets(&json!({"items": [pod(port, "Succeeded", json!({}))]})), json!([]));
    }

    #[test]
    fn scalars_and_vectors_are_read() {
        let scalar = json!({"data": {"resultType": "scalar", "result": [1.0, "2.5"]}});
        assert_eq!(samples(&scalar).unwrap()[0].value, 2.5);
        let vector = json!({"data": {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [1.0, "3"]}]}});
        assert_eq!(samples(&vector).unwrap(), [Sample { labels: json!({"a": "b"}), value: 3.0 }]);
        assert!(samples(&json!({"status": "error"})).is_none());
    }
}
