use crate::{patched, refused, send};

fn queue(spec: &str) -> String {
    named("orders", spec)
}

fn named(name: &str, spec: &str) -> String {
    format!("apiVersion: warren.dev/v1alpha1\nkind: Queue\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[tokio::test]
async fn an_empty_spec_is_a_whole_queue() {
    let queue = send(&queue("{}")).await.unwrap();
    assert_eq!(queue["spec"]["type"], "Quorum");
    assert_eq!(queue["spec"]["broker"]["secretRef"]["name"], "rabbitmq");
    assert_eq!(queue["spec"]["retry"], serde_json::json!({"delaysSeconds": [5, 60, 600], "maxAttempts": 24}));
    assert_eq!(queue["spec"]["limits"]["overflow"], "RejectPublish");
}

#[tokio::test]
async fn a_queue_name_of_300_bytes_is_refused() {
    let name = "x".repeat(300);
    refused(&queue(&format!("{{queueName: {name}}}")), "may not be more than 230").await;
}

#[tokio::test]
async fn a_resource_name_too_long_for_a_queue_asks_for_a_queue_name() {
    let name = "x".repeat(231);
    refused(&named(&name, "{}"), "shorten it or set spec.queueName").await;
    assert!(send(&named(&name, "{queueName: orders}")).await.is_ok());
}

#[tokio::test]
async fn names_that_rabbitmq_keeps_for_itself_are_refused() {
    refused(&queue("{queueName: amq.x}"), "choose another queueName").await;
    refused(&named("amq.x", "{}"), "choose another metadata.name or set spec.queueName").await;
}

#[tokio::test]
async fn a_queue_name_with_a_slash_is_refused() {
    refused(&queue("{queueName: a/b}"), "spec.queueName").await;
}

#[tokio::test]
async fn a_name_that_no_secret_can_have_is_refused() {
    for name in ["A B", "rabbitmq?x", "../../shop/secrets/rabbitmq", ".."] {
        for field in ["secretRef", "workerSecretRef"] {
            let broker = format!("{{broker: {{{field}: {{name: '{name}'}}}}}}");
            refused(&queue(&broker), "a Secret's name has small letters").await;
        }
    }
    assert!(send(&queue("{broker: {secretRef: {name: rabbitmq-default.user}}}")).await.is_ok());
    // The default would be another broker's.
    for unset in ["{}", "{name: }"] {
        refused(&queue(&format!("{{broker: {{workerSecretRef: {unset}}}}}")), "workerSecretRef.name").await;
    }
}

#[tokio::test]
async fn retry_delays_must_rise() {
    for delays in ["[5, 3]", "[5, 5]"] {
        refused(&queue(&format!("{{retry: {{delaysSeconds: {delays}}}}}")), "delaysSeconds must rise").await;
    }
    assert!(send(&queue("{retry: {delaysSeconds: []}}")).await.is_ok());
}

#[tokio::test]
async fn more_than_ten_retry_delays_are_refused() {
    refused(&queue("{retry: {delaysSeconds: [1,2,3,4,5,6,7,8,9,10,11]}}"), "must have at most 10 items")
        .await;
}

#[tokio::test]
async fn what_warren_never_does_to_a_queue_of_others_is_refused() {
    refused(&queue("{adoptionPolicy: AsIs, bindings: [{exchange: shop}]}"), "AsIs binds nothing").await;
    for policy in ["Delete", "DeleteIfEmpty"] {
        let spec = format!("{{adoptionPolicy: AsIs, deletionPolicy: {policy}}}");
        refused(&queue(&spec), "AsIs deletes nothing").await;
    }
    assert!(send(&queue("{adoptionPolicy: AsIs}")).await.is_ok());
}

#[tokio::test]
async fn a_limit_of_nothing_and_a_consumer_timeout_that_the_broker_does_not_take_are_refused() {
    for field in ["limits: {maxLength: 0}", "limits: {maxLengthBytes: 0}", "deadLetter: {maxLength: 0}"] {
        refused(&queue(&format!("{{{field}}}")), "greater than or equal to 1").await;
    }
    refused(&queue("{consumerTimeoutSeconds: 59}"), "greater than or equal to 60").await;
}

#[tokio::test]
async fn fields_of_the_other_queue_type_are_refused() {
    refused(&queue("{type: Classic, deliveryLimit: 5}"), "deliveryLimit works on quorum queues only").await;
    refused(&queue("{maxPriority: 5}"), "maxPriority works on classic queues only").await;
    refused(&queue("{type: Classic, consumerTimeoutSeconds: 60}"), "works on quorum queues only").await;
}

#[tokio::test]
async fn a_classic_queue_that_dead_letters_by_itself_has_no_limit_on_its_dead_letter_queue() {
    let lost = "what a classic queue dead-letters by itself is lost";
    refused(&queue("{type: Classic, limits: {messageTtlSeconds: 60}, deadLetter: {maxLength: 5}}"), lost)
        .await;
    let full = "{maxLengthBytes: 5, overflow: DropHead}";
    refused(&queue(&format!("{{type: Classic, limits: {full}, deadLetter: {{maxLength: 5}}}}")), lost).await;
    for allowed in [
        "{limits: {messageTtlSeconds: 60}, deadLetter: {maxLength: 5}}",
        "{type: Classic, limits: {messageTtlSeconds: 60}, deadLetter: {messageTtlSeconds: 5}}",
        "{type: Classic, limits: {overflow: DropHead}, deadLetter: {maxLength: 5}}",
    ] {
        assert!(send(&queue(allowed)).await.is_ok(), "{allowed}");
    }
}

#[tokio::test]
async fn a_limit_on_a_classic_queue_beside_a_ladder_is_refused_unless_it_drops_the_head() {
    refused(&queue("{type: Classic, limits: {maxLength: 5}}"), "a full classic queue drops expired retries")
        .await;
    for allowed in [
        "{type: Classic, limits: {maxLength: 5, overflow: DropHead}}",
        "{type: Classic, limits: {maxLength: 5}, retry: {delaysSeconds: []}}",
        "{limits: {maxLength: 5}}",
    ] {
        assert!(send(&queue(allowed)).await.is_ok(), "{allowed}");
    }
}

#[tokio::test]
async fn declaring_an_exchange_of_the_broker_s_own_is_refused() {
    let binding = "{bindings: [{exchange: amq.topic, routingKey: a, declare: {type: Topic}}]}";
    refused(&queue(binding), "leave out declare").await;
    assert!(send(&queue("{bindings: [{exchange: amq.topic, routingKey: a}]}")).await.is_ok());
}

#[tokio::test]
async fn an_exchange_of_any_name_is_bound_and_one_of_odd_characters_or_of_two_types_is_not_declared() {
    let odd = "'Shop.OrderPlaced, Shop.Contracts / v1'";
    assert!(send(&queue(&format!("{{bindings: [{{exchange: {odd}}}]}}"))).await.is_ok());
    let declared = format!("{{bindings: [{{exchange: {odd}, declare: {{type: Topic}}}}]}}");
    refused(&queue(&declared), "ASCII letters, digits and ._:-").await;
    let two = |one: &str, other: &str| {
        queue(&format!(
            "{{bindings: [{{exchange: e, routingKey: a, declare: {{type: {one}}}}}, {{exchange: e, declare: {{type: {other}}}}}]}}"
        ))
    };
    refused(&two("Topic", "Fanout"), "an exchange has one type").await;
    assert!(send(&two("Topic", "Topic")).await.is_ok());
}

#[tokio::test]
async fn what_amqp_cannot_say_is_refused_by_its_bytes_and_not_its_characters() {
    let (most, over) = ("x".repeat(255), "ж".repeat(128));
    let key = |key: &str| queue(&format!("{{bindings: [{{exchange: shop, routingKey: {key}}}]}}"));
    refused(&key(&over), "routingKey may have at most 255 bytes").await;
    refused(&key("\"order.#\\n\""), "should match").await;
    let vhost = |vhost: &str| queue(&format!("{{broker: {{vhost: {vhost}}}}}"));
    refused(&vhost(&over), "vhost may have at most 255 bytes").await;
    for allowed in [key(&most), vhost(&most)] {
        assert!(send(&allowed).await.is_ok(), "{allowed}");
    }
}

#[tokio::test]
async fn arguments_of_a_binding_that_no_frame_holds_are_refused() {
    let arguments = |name: usize, value: usize| {
        let (name, value) = ("n".repeat(name), "v".repeat(value));
        queue(&format!("{{bindings: [{{exchange: shop, arguments: {{{name}: {value}}}}}]}}"))
    };
    refused(&arguments(64, 1), "an argument's name may have at most 63 characters").await;
    refused(&arguments(1, 256), "may not be more than 255").await;
    assert!(send(&arguments(63, 255)).await.is_ok());
}

#[tokio::test]
async fn what_the_broker_cannot_change_is_immutable_and_points_to_the_way_around() {
    for (index, patch) in [
        r#"{"queueName":"other"}"#,
        r#"{"type":"Classic"}"#,
        r#"{"limits":{"maxLength":7}}"#,
        r#"{"deliveryLimit":7}"#,
        r#"{"singleActiveConsumer":true}"#,
        r#"{"consumerTimeoutSeconds":700}"#,
        r#"{"deadLetter":{"maxLength":7}}"#,
        r#"{"maxPriority":7}"#,
    ]
    .iter()
    .enumerate()
    {
        let name = format!("immutable-{index}");
        let change = format!("{{\"spec\":{patch}}}");
        let spec = if patch.contains("maxPriority") { "{type: Classic, maxPriority: 5}" } else { "{}" };
        let refusal = patched("wq", &name, &named(&name, spec), &change).await.unwrap_err();
        assert!(
            refusal.contains("is immutable") && refusal.contains("docs/changing-a-queue.md"),
            "{refusal}"
        );
    }
}

#[tokio::test]
async fn bindings_and_the_ladder_can_change() {
    let change = r#"{"spec":{"bindings":[{"exchange":"shop"}],"retry":{"delaysSeconds":[1]}}}"#;
    patched("wq", "mutable", &named("mutable", "{}"), change).await.unwrap();
}
