use crate::{patched, refused, send};

const TEMPLATE: &str = "{spec: {containers: [{name: app, image: app, ports: [{containerPort: 8080}]}]}}";

fn worker(fields: &str) -> String {
    named("invoices", fields, TEMPLATE)
}

fn named(name: &str, fields: &str, template: &str) -> String {
    format!(
        "apiVersion: warren.dev/v1alpha1\nkind: Worker\nmetadata: {{name: {name}}}\n\
         spec: {{queueRef: {{name: orders}}, {fields} template: {template}}}\n"
    )
}

#[tokio::test]
async fn the_smallest_worker_has_fair_dispatch_and_scales_from_zero() {
    let worker = send(&worker("")).await.unwrap();
    assert_eq!(worker["spec"]["consumer"]["prefetch"], 1);
    assert_eq!(worker["spec"]["scaling"]["minReplicas"], 0);
    assert_eq!(worker["spec"]["handler"]["http"]["timeoutSeconds"], 30);
}

#[tokio::test]
async fn a_prefetch_of_0_or_70000_is_refused() {
    refused(&worker("consumer: {prefetch: 0},"), "greater than or equal to 1").await;
    refused(&worker("consumer: {prefetch: 70000},"), "less than or equal to 2000").await;
}

#[tokio::test]
async fn more_concurrency_than_prefetch_is_refused() {
    refused(&worker("consumer: {prefetch: 2, concurrency: 3},"), "Raise prefetch or lower concurrency").await;
}

#[tokio::test]
async fn a_batch_larger_than_the_prefetch_or_with_a_reply_is_refused() {
    let batch = |http: &str, most: u32| {
        worker(&format!(
            "consumer: {{prefetch: 5}}, handler: {{http: {http}, batch: {{maxMessages: {most}}}}},"
        ))
    };
    refused(&batch("{}", 6), "cannot exceed consumer.prefetch").await;
    refused(&batch("{reply: true}", 5), "cannot be combined with handler.batch").await;
    assert!(send(&batch("{}", 5)).await.is_ok());
}

#[tokio::test]
async fn an_ordering_key_that_means_the_routing_key_in_other_words_is_refused() {
    for meant in ["routingKey", "routing_key", "warren-routing-key"] {
        let ordered = format!("scaling: {{maxReplicas: 1}}, consumer: {{orderingKey: {meant}}},");
        refused(&worker(&ordered), "write \"routing-key\"").await;
    }
}

#[tokio::test]
async fn a_template_without_the_named_container_is_refused() {
    refused(&worker("handler: {container: other},"), "handler.container names no container of the template")
        .await;
    assert!(send(&worker("handler: {container: app},")).await.is_ok());
}

#[tokio::test]
async fn a_name_that_no_queue_can_have_is_refused() {
    let worker = worker("").replace("name: orders", "name: 'Q Q'");
    refused(&worker, "a Queue's name has small letters").await;
}

#[tokio::test]
async fn the_sidecar_s_own_ports_are_refused() {
    for port in [9400, 9401] {
        refused(&worker(&format!("handler: {{http: {{port: {port}}}}},")), "the sidecar's").await;
    }
}

#[tokio::test]
async fn a_relative_path_is_refused() {
    refused(&worker("handler: {http: {path: work}},"), "path must start with").await;
}

#[tokio::test]
async fn a_path_that_no_uri_has_is_refused() {
    let path = |path: &str| worker(&format!("handler: {{http: {{path: \"{path}\"}}}},"));
    for wrong in ["/my orders", "/a#b", "/größe", "/{id}"] {
        refused(&path(wrong), "percent-encode others").await;
    }
    for right in ["/", "/my%20orders/(v1)/it's?a=b&c=~d", "/a-b_c.d:e@f!g$h*i+j,k;l"] {
        assert!(send(&path(right)).await.is_ok(), "{right}");
    }
}

#[tokio::test]
async fn a_misspelt_field_of_the_template_is_refused() {
    let template = "{spec: {containers: [{name: app, imag: app}]}}";
    refused(&named("invoices", "", template), "unknown field \"spec.template.spec.containers[0].imag\"")
        .await;
}

#[tokio::test]
async fn quantities_may_be_numbers_as_in_a_deployment() {
    let template = "{spec: {containers: [{name: app, image: app, resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 0.5}}}]}}";
    assert!(send(&named("invoices", "", template)).await.is_ok());
}

#[tokio::test]
async fn a_quantity_with_a_unit_that_there_is_not_is_refused_with_its_field() {
    let limits = |memory: &str| format!("resources: {{limits: {{memory: {memory}}}}}");
    let of_app =
        |memory: &str| format!("{{spec: {{containers: [{{name: app, image: app, {}}}]}}}}", limits(memory));
    let of_sidecar = |memory: &str| worker(&format!("sidecar: {{{}}},", limits(memory)));
    for wrong in ["64MB", "128mb", "1 Gi"] {
        let field = "spec.template.spec.containers[0].resources.limits.memory";
        refused(&named("invoices", "", &of_app(wrong)), field).await;
        refused(&of_sidecar(wrong), "spec.sidecar.resources.limits.memory").await;
    }
    for right in ["64M", "1.5Gi", "1e9", "134217728", "128974848000m", ".5Gi"] {
        assert!(send(&named("invoices", "", &of_app(right))).await.is_ok(), "{right}");
        assert!(send(&of_sidecar(right)).await.is_ok(), "{right}");
    }
}

#[tokio::test]
async fn a_template_without_containers_is_refused() {
    refused(&named("invoices", "", "{spec: {containers: []}}"), "at least 1 items").await;
}

#[tokio::test]
async fn fewer_most_than_fewest_replicas_are_refused() {
    refused(&worker("scaling: {minReplicas: 3, maxReplicas: 2},"), "lower the one or raise the other").await;
}

#[tokio::test]
async fn a_target_of_no_or_negative_seconds_is_refused() {
    refused(&worker("scaling: {targetWaitSeconds: 0},"), "greater than or equal to 1").await;
    refused(&worker("scaling: {targetWaitSeconds: -5},"), "greater than or equal to 1").await;
}

#[tokio::test]
async fn a_drain_shorter_than_a_call_is_refused() {
    refused(&worker("shutdown: {drainTimeoutSeconds: 44},"), "at least handler.http.timeoutSeconds + 15")
        .await;
    assert!(send(&worker("shutdown: {drainTimeoutSeconds: 45},")).await.is_ok());
}

#[tokio::test]
async fn a_name_that_cannot_be_part_of_a_pod_s_name_is_refused() {
    refused(&named("a.b", "", TEMPLATE), "no dots").await;
    refused(&named(&"x".repeat(53), "", TEMPLATE), "at most 52 characters").await;
}

#[tokio::test]
async fn the_scale_subresource_writes_the_replicas() {
    let scaled = patched("wk", "scaled", &named("scaled", "", TEMPLATE), r#"{"spec":{"replicas":4}}"#).await;
    assert!(scaled.is_ok(), "{scaled:?}");
}

fn scheduled(cron: &str, fields: &str) -> String {
    worker(&format!("scaling: {{maxReplicas: 5, schedules: [{{cron: \"{cron}\", {fields}}}]}},"))
}

#[tokio::test]
async fn a_schedule_is_taken_with_utc_as_its_time_zone() {
    for cron in ["0 8 * * 1-5", "*/5 8-18 1,15 * MON", "@daily"] {
        let worker = send(&scheduled(cron, "minReplicas: 5")).await.unwrap();
        assert_eq!(worker["spec"]["scaling"]["schedules"][0]["timezone"], "UTC");
    }
}

#[tokio::test]
async fn a_schedule_without_five_fields_or_for_more_than_the_maximum_is_refused() {
    for cron in ["soon", "0 8 * *", "0 0 8 * * 1-5", "", ", * * * *", "0 8,,9 * * *", "0 8 * * 1,"] {
        refused(&scheduled(cron, "minReplicas: 1"), "cron").await;
    }
    refused(&scheduled("0 8 * *", "minReplicas: 1"), "minute hour day month weekday").await;
    refused(&scheduled("0 8 * * *", "minReplicas: 6"), "lower the one or raise the other").await;
    refused(&scheduled("0 8 * * *", "minReplicas: -1"), "greater than or equal to 0").await;
    refused(&scheduled("0 8 * * *", "timezone: UTC"), "minReplicas").await;
}

#[tokio::test]
async fn a_disruption_of_no_pod_at_all_is_refused() {
    refused(&worker("disruption: {maxUnavailable: 0},"), "greater than or equal to 1").await;
    assert!(send(&worker("disruption: {maxUnavailable: 1},")).await.is_ok());
}
