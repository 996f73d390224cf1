//! The chart's alerts, as Helm renders them and Prometheus evaluates them.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Deserialize as _;
use serde_yaml::Value;
use warren_tests::command::run_program;
use warren_tests::site;

use crate::cluster;

#[tokio::test]
async fn all_parts_of_the_chart_render_at_once() -> Result<()> {
    let chart = site::workspace().join("charts/warren");
    let chart = chart.to_string_lossy();
    let mut render = vec!["template", "warren", &chart, "--namespace", "warren-system"];
    let values = [
        "replicas=2",
        "metrics.serviceMonitor.enabled=true",
        "metrics.podMonitor.enabled=true",
        "metrics.rules.enabled=true",
        "metrics.dashboard.enabled=true",
        "networkPolicy.enabled=true",
        "watchNamespaces={shop,mail}",
        // What is left blank is none.
        "podLabels=null",
        "metrics.rules.labels=null",
    ];
    for value in values {
        render.extend(["--set", value]);
    }
    let rendered = cluster().await.helm(&render).await?;
    let kinds = serde_yaml::Deserializer::from_str(&rendered)
        .map(|document| Ok(Value::deserialize(document)?["kind"].as_str().unwrap_or_default().to_owned()))
        .collect::<Result<BTreeSet<_>>>()?;
    for kind in ["NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule", "Role", "Deployment"] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_alert_fires_for_what_it_tells_of_and_for_nothing_else_and_keda_is_not_told_none_for_unknown()
-> Result<()> {
    let chart = site::workspace().join("charts/warren");
    let chart = chart.to_string_lossy();
    let enable = "metrics.rules.enabled=true";
    let render = ["template", "warren", &chart, "--namespace", "warren-system", "--set", enable];
    let only = ["--show-only", "templates/prometheusrule.yaml"];
    let rendered = cluster().await.helm(&[&render[..], &only].concat()).await?;
    let rules: Value = serde_yaml::from_str(&rendered)?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("rules.yaml"), serde_yaml::to_string(&rules["spec"])?)?;
    std::fs::write(file("keda.yaml"), serde_yaml::to_string(&kedas_query()?)?)?;
    std::fs::write(file("alerts.yaml"), include_str!("alerts.yaml"))?;
    run_program("promtool", ["test", "rules", &file("alerts.yaml").to_string_lossy()]).await?;
    Ok(())
}

/// What KEDA asks for in the documented example, as a rule of the name `keda`.
fn kedas_query() -> Result<Value> {
    let example = site::workspace().join("examples/scaling/keda.yaml");
    let example: Value = serde_yaml::from_str(&std::fs::read_to_string(example)?)?;
    let query = example["spec"]["triggers"][0]["metadata"]["query"].as_str().unwrap_or_default();
    let rule = serde_json::json!({"record": "keda", "expr": query});
    Ok(serde_yaml::to_value(serde_json::json!({"groups": [{"name": "keda", "rules": [rule]}]}))?)
}
