//! The test cluster is what the other tests stand on: it does what they expect of a Kubernetes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_tests::broker::{Broker, Options};
use warren_tests::golang;
use warren_tests::http;
use warren_tests::images;
use warren_tests::progress::Lines;
use warren_tests::prometheus::Prometheus;
use warren_tests::{Cluster, wait::eventually};

const NAMESPACE: &str = "smoke";
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: smoke, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: smoke, namespace: smoke}
spec:
  selector: {matchLabels: {app: smoke}}
  template:
    metadata: {labels: {app: smoke}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      initContainers:
      - name: beside
        image: localhost/warren-pause:dev
        restartPolicy: Always
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
      containers:
      - name: smoke
        image: localhost/smoke:dev
        ports: [{name: metrics, containerPort: 8080}]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
---
apiVersion: v1
kind: Service
metadata: {name: smoke, namespace: smoke}
spec: {selector: {app: smoke}, ports: [{port: 80, targetPort: metrics}]}
";

#[tokio::test]
async fn a_restricted_pod_finds_names_services_brokers_and_prometheus_finds_it() -> Result<()> {
    let cluster = Cluster::for_tests(&Lines).await?;
    let binary = golang::program("tests/cluster/smoke").await?;
    let image = images::program(&cluster, "localhost/smoke:dev", &binary).await?;
    ensure!(image.size > 0);
    ensure!(!images::program(&cluster, "localhost/smoke:dev", &binary).await?.changed, "imported twice");
    cluster.apply(MANIFEST).await?;
    let status = ["rollout", "status", "deployment/smoke", "-n", NAMESPACE, "--timeout=5s"];
    cluster
        .eventually(NAMESPACE, PATIENCE, "the pod is ready", async || cluster.kubectl(&status).await)
        .await?;

    let listens = async || {
        let logs = cluster.kubectl(&["logs", "-n", NAMESPACE, "deployment/smoke"]).await?;
        ensure!(logs.contains("listening"), "{logs}");
        Ok(())
    };
    eventually(PATIENCE, "the program listens", listens).await?;
    let arguments = ["exec", "-n", NAMESPACE, "deployment/smoke", "-c", "smoke", "--", "/nothing"];
    let error = format!("{:#}", cluster.kubectl(&arguments).await.unwrap_err());
    ensure!(error.contains("no such file"), "exec did not reach the container: {error}");
    let forbidden = ["run", "root", "-n", NAMESPACE, "--image=localhost/smoke:dev"];
    let error = format!("{:#}", cluster.kubectl(&forbidden).await.unwrap_err());
    ensure!(error.contains("PodSecurity"), "{error}");

    let pods: serde_json::Value = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app=smoke"]).await?;
    let address = pods["items"][0]["status"]["podIP"].as_str().unwrap_or_default();
    let address = SocketAddr::new(address.parse()?, 8080);
    let broker = Broker::start(Options::new("smoke")).await?;
    let fetch = async |url: &str| http::get(address, &format!("/fetch?url={url}")).await;
    eventually(PATIENCE, "names and Services work in the pod", async || {
        let answer = fetch("http://smoke.smoke.svc/hello").await?;
        ensure!(answer == "hello", "{answer}");
        Ok(())
    })
    .await?;
    // RabbitMQ answers what is no AMQP with the version that it speaks.
    let url = format!("http://{}:{}/", cluster.host_address(), broker.ports().amqp);
    let error = format!("{:#}", fetch(&url).await.unwrap_err());
    ensure!(error.contains("AMQP"), "{error}");

    let prometheus = Prometheus::start(&cluster, &[]).await?;
    eventually(PATIENCE, "the pod is scraped", async || {
        let value = prometheus.value("smoke_metric{namespace='smoke'}").await?;
        ensure!(value == Some(42.0), "{value:?}");
        Ok(())
    })
    .await?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE]).await?;
    Ok(())
}
