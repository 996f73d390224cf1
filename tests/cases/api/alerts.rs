//! The chart's alerts, as Helm renders them and Prometheus evaluates them.

use anyhow::Result;
use serde_yaml::Value;
use warren_tests::command::run_program;
use warren_tests::site;

use crate::cluster;

#[tokio::test]
async fn each_alert_fires_for_what_it_tells_of_and_for_nothing_else() -> Result<()> {
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
    std::fs::write(file("alerts.yaml"), include_str!("alerts.yaml"))?;
    run_program("promtool", ["test", "rules", &file("alerts.yaml").to_string_lossy()]).await?;
    Ok(())
}
