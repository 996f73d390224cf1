use std::sync::Arc;

use serde_json::json;
use warren_api::QueueStatus;
use warren_api::queue::Declared;

use super::super::dereference::Surroundings;
use super::super::validate::tests::{declared, saying, surroundings, worker};
use super::super::validate::validate;
use super::*;

fn built(spec: Value, rolled: &Rolled) -> Built {
    let (worker, around) = (worker(spec), surroundings());
    build(&validate(&worker, &around).unwrap(), rolled, "sidecar:new", 3)
}

fn fresh(spec: Value) -> Built {
    built(spec, &Rolled::default())
}

fn rolled_from(built: &Built, image: &str) -> Rolled {
    let digest = built.deployment["metadata"]["annotations"][TEMPLATE_DIGEST].as_str().unwrap();
    Rolled { digest: Some(digest.to_owned()), image: Some(image.to_owned()) }
}

#[test]
fn the_sidecar_is_a_native_one_without_privileges() {
    let built = fresh(json!({}));
    let sidecar = &built.deployment["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["image"], "sidecar:new");
    let security = &sidecar["securityContext"];
    assert_eq!(
        (
            &security["runAsNonRoot"],
            &security["readOnlyRootFilesystem"],
            &security["capabilities"]["drop"][0]
        ),
        (&json!(true), &json!(true), &json!("ALL"))
    );
    assert_eq!(sidecar["resources"], json!({"requests": {"cpu": "10m", "memory": "32Mi"}}));
}

#[test]
fn the_sidecar_s_spans_go_where_those_of_the_application_go() {
    let env = json!([
        {"name": "PASSWORD", "value": "secret"},
        {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "COLLECTOR", "value": "$(HOST):4318"},
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://$(COLLECTOR)"},
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}},
    ]);
    let app = json!({"name": "app", "ports": [{"containerPort": 8080}], "env": env});
    let other = json!({"name": "other", "env": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_off"}]});
    let template = json!({"spec": {"containers": [app, other]}});
    let built = fresh(json!({"template": template, "handler": {"container": "app"}}));
    let sidecar = &built.deployment["spec"]["template"]["spec"]["initContainers"][0];
    let names = sidecar["env"].as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap());
    let taken: Vec<&str> = names.filter(|name| !name.starts_with("WARREN_")).collect();
    assert_eq!(taken, ["HOST", "COLLECTOR", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES"]);
}

#[test]
fn only_the_sidecar_mounts_the_secret() {
    let pod = fresh(json!({})).deployment["spec"]["template"]["spec"].clone();
    assert!(pod["containers"][0].get("volumeMounts").is_none());
    let mounts = pod["initContainers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["name"] == BROKER_VOLUME));
}

#[test]
fn the_sidecar_has_an_empty_folder_where_the_api_server_would_mount_a_token() {
    let pod = fresh(json!({})).deployment["spec"]["template"]["spec"].clone();
    let mounts = pod["initContainers"][0]["volumeMounts"].as_array().unwrap();
    let there = mounts.iter().find(|mount| mount["mountPath"] == TOKEN_DIR).unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == there["name"]).unwrap();
    assert_eq!(volume["downwardAPI"], json!({}), "no data on the node, which would keep the pod there");
}

#[test]
fn the_pods_account_is_said_by_its_one_name_and_the_default_one_too() {
    for (fields, account) in [
        (json!({}), "default"),
        (json!({"serviceAccountName": "shop"}), "shop"),
        (json!({"serviceAccount": "shop"}), "shop"),
        (json!({"serviceAccount": "other", "serviceAccountName": "shop"}), "shop"),
        (json!({"serviceAccountName": ""}), "default"),
    ] {
        let mut spec = json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let pod = fresh(json!({"template": {"spec": spec}})).deployment["spec"]["template"]["spec"].clone();
        let told = (pod["serviceAccountName"].as_str(), pod.get("serviceAccount"));
        assert_eq!(told, (Some(account), None), "{fields}");
    }
}

#[test]
fn a_pod_drains_before_its_application_is_told_to_end_unless_the_user_has_a_hook() {
    let hook = |built: &Built| {
        built.deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"].clone()
    };
    let drain = hook(&fresh(json!({})));
    assert_eq!((&drain["httpGet"]["path"], &drain["httpGet"]["port"]), (&json!("/drain"), &json!(9400)));
    assert_eq!(drain["httpGet"]["httpHeaders"][0]["value"], drain_token("u-1"));
    let own = json!({"exec": {"command": ["sleep", "5"]}});
    let with_hook = fresh(json!({"template": {"spec": {"containers": [
        {"name": "app", "ports": [{"containerPort": 80}], "lifecycle": {"preStop": own}}
    ]}}}));
    assert_eq!(hook(&with_hook), own);
}

#[test]
fn the_users_template_is_otherwise_untouched() {
    let template = json!({
        "metadata": {"labels": {"app.kubernetes.io/name": "mine"}, "annotations": {"config.linkerd.io/skip-inbound-ports": "7000"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "fieldOfTheFuture": {"x": 1},
            "containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}, {"name": "other"}],
            "initContainers": [{"name": "first"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    let built = fresh(json!({"template": template})).deployment["spec"]["template"].clone();
    assert_eq!(built["metadata"]["labels"]["app.kubernetes.io/name"], "mine");
    assert_eq!(built["metadata"]["annotations"]["config.linkerd.io/skip-inbound-ports"], "7000,9400");
    let spec = &built["spec"];
    assert_eq!((&spec["nodeSelector"]["disk"], &spec["fieldOfTheFuture"]["x"]), (&json!("ssd"), &json!(1)));
    assert_eq!(
        (&spec["initContainers"][0]["name"], &spec["volumes"][0]["name"]),
        (&json!("first"), &json!("data"))
    );
    assert_eq!(spec["containers"][1], json!({"name": "other"}));
}

#[test]
fn what_is_read_live_does_not_roll_the_pods() {
    // A drain that is long enough for the longer calls too.
    let shutdown = json!({"drainTimeoutSeconds": 600});
    let before = fresh(json!({"shutdown": shutdown})).deployment;
    let live = json!({"consumer": {"prefetch": 50, "concurrency": 5, "paused": true}, "scaling": {"maxReplicas": 7},
                      "handler": {"http": {"path": "/x", "timeoutSeconds": 300}}, "shutdown": shutdown});
    let after = fresh(live);
    assert_eq!(after.deployment, before);
    let config: SidecarConfig =
        serde_json::from_str(after.config_map["data"][CONFIG_KEY].as_str().unwrap()).unwrap();
    assert_eq!(
        (config.consumer.prefetch, config.consumer.concurrency, config.consumer.paused),
        (50, 5, true)
    );
    assert_eq!((config.handler.path.as_str(), config.handler.timeout_seconds), ("/x", 300));
    assert_eq!(config.queue.retry_delays_seconds, [5, 60, 600]);
}

#[test]
fn longer_calls_and_another_secret_roll_the_pods_which_keep_their_sidecar_s_image() {
    let before = fresh(json!({}));
    let rolled = rolled_from(&before, "sidecar:old");
    let longer = built(json!({"handler": {"http": {"timeoutSeconds": 300}}}), &rolled);
    assert_ne!(longer.deployment["spec"]["template"], before.deployment["spec"]["template"]);
    let mut around = surroundings();
    let broker = &mut Arc::make_mut(around.queue.as_mut().unwrap()).spec.broker;
    broker.worker_secret_ref = Some(serde_json::from_value(json!({"name": "other"})).unwrap());
    let worker = worker(json!({}));
    let moved = build(&validate(&worker, &around).unwrap(), &rolled, "sidecar:new", 3);
    let secret = &moved.deployment["spec"]["template"]["spec"]["volumes"][1]["secret"]["secretName"];
    assert_eq!(secret, "other");
    assert_eq!((longer.image.as_str(), moved.image.as_str()), ("sidecar:old", "sidecar:old"));
}

#[test]
fn an_operator_upgrade_keeps_the_image_until_something_else_rolls_the_pods() {
    let rolled = rolled_from(&fresh(json!({})), "sidecar:old");
    assert_eq!(built(json!({}), &rolled).image, "sidecar:old");
    assert_eq!(built(json!({"sidecar": {"logLevel": "debug"}}), &rolled).image, "sidecar:new");
    assert_eq!(built(json!({"sidecar": {"upgradePolicy": "Automatic"}}), &rolled).image, "sidecar:new");
    assert_eq!(built(json!({"sidecar": {"image": "mine:1"}}), &rolled).image, "mine:1");
}

/// What differs here restarts the pods of every Worker when its operator is upgraded: change the file only where that is meant,
/// and say so in CHANGELOG.md.
#[test]
fn the_pods_of_the_smallest_worker_are_those_of_the_release_before() {
    let deployment = fresh(json!({})).deployment;
    let digest = &deployment["metadata"]["annotations"][TEMPLATE_DIGEST];
    let pods = json!({"digest": digest, "template": deployment["spec"]["template"]});
    let before: Value = serde_json::from_str(include_str!("smallest_pods.json")).unwrap();
    assert_eq!(pods, before, "{pods:#}");
}

#[test]
fn both_objects_are_owned_by_the_worker() {
    let built = fresh(json!({}));
    for object in [&built.config_map, &built.deployment] {
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"], &owner["controller"]),
            (&json!("Worker"), &json!("u-1"), &json!(true))
        );
    }
}

#[test]
fn a_disruption_budget_is_built_only_when_it_is_asked_for() {
    assert_eq!(fresh(json!({})).disruption_budget, None);
    let budget = fresh(json!({"disruption": {"maxUnavailable": 2}})).disruption_budget.unwrap();
    assert_eq!(budget["spec"]["maxUnavailable"], 2);
    assert_eq!(budget["spec"]["selector"]["matchLabels"], json!({WORKER_LABEL: "invoices"}));
    assert_eq!(budget["metadata"]["ownerReferences"][0]["uid"], "u-1");
}

/// What sidecars are told of a Queue whose spec has the ladder `wanted`, and whose broker the ladder `declared`.
fn told(wanted: &[i32], declared: Option<&[i32]>) -> Vec<u32> {
    let mut around = surroundings();
    let queue = Arc::make_mut(around.queue.as_mut().unwrap());
    queue.spec.retry.delays_seconds = wanted.to_vec();
    let declared =
        declared.map(|delays| Declared { retry_delays_seconds: delays.to_vec(), ..Declared::default() });
    queue.status = Some(QueueStatus { declared, ..QueueStatus::default() });
    of_the_queue(&around).retry_delays_seconds
}

fn of_the_queue(around: &Surroundings) -> QueueConfig {
    let worker = worker(json!({}));
    let built = build(&validate(&worker, around).unwrap(), &Rolled::default(), "sidecar:new", 1);
    let text = built.config_map["data"][CONFIG_KEY].as_str().unwrap();
    serde_json::from_str::<SidecarConfig>(text).unwrap().queue
}

#[test]
fn a_consumer_timeout_that_the_broker_does_not_know_is_not_gone_by() {
    let told = |status: Option<&str>| {
        let mut around = surroundings();
        around.queue =
            status.map(|status| saying(CONSUMER_TIMEOUT_EFFECTIVE, status, "r").into()).or(around.queue);
        Arc::make_mut(around.queue.as_mut().unwrap()).spec.consumer_timeout_seconds = Some(7200);
        of_the_queue(&around).consumer_timeout_seconds
    };
    assert_eq!(told(Some("False")), None, "the broker's own counts");
    for status in [None, Some("True"), Some("Unknown")] {
        assert_eq!(told(status), Some(7200), "{status:?}");
    }
}

#[test]
fn a_ladder_holds_whole_until_every_rung_of_the_next_is_on_the_broker() {
    for (wanted, declared, expected) in [
        // None of the new rungs, and one of two: the old ladder, in its order.
        (&[10, 120][..], Some(&[5, 60, 600][..]), &[5, 60, 600][..]),
        (&[5, 3600], Some(&[5, 60, 600]), &[5, 60, 600]),
        (&[20], Some(&[10, 5, 60]), &[5, 10, 60]),
        // All of them: the new one, whatever is left of the old one.
        (&[10, 120], Some(&[10, 120, 600]), &[10, 120]),
        (&[5], Some(&[5, 60, 600]), &[5]),
        (&[], Some(&[5, 60, 600]), &[]),
        // A ladder for a queue that had none: as before, until it is there.
        (&[5], Some(&[]), &[]),
        // A Queue that was never declared has the ladder that it asks for.
        (&[5, 60, 600], None, &[5, 60, 600]),
    ] {
        assert_eq!(told(wanted, declared), expected, "{wanted:?} where {declared:?} is declared");
    }
}

#[test]
fn the_attempts_are_those_of_the_ladder_that_counts() {
    let attempts = |declared: Declared| {
        let mut around = surroundings();
        let queue = Arc::make_mut(around.queue.as_mut().unwrap());
        (queue.spec.retry.delays_seconds, queue.spec.retry.max_attempts) = (vec![300, 3600], 8);
        queue.status = Some(QueueStatus { declared: Some(declared), ..QueueStatus::default() });
        of_the_queue(&around).max_attempts
    };
    let mut former = Declared::default();
    former.has_ladder(&Retry { delays_seconds: vec![5, 300], max_attempts: 24 });
    former.begun_delays_seconds = vec![3600];
    assert_eq!(attempts(former.clone()), 24);
    former.has_ladder(&Retry { delays_seconds: vec![300, 3600], max_attempts: 8 });
    assert_eq!(former.begun_delays_seconds, [5]);
    assert_eq!(attempts(former), 8);
    assert_eq!(attempts(Declared::default()), 8, "an operator before this one has not said it");
}

#[test]
fn where_one_replica_alone_keeps_the_order_the_old_pod_goes_before_the_new_one_comes() {
    let strategy = |single: bool, consumer: Value| {
        let mut around = surroundings();
        Arc::make_mut(around.queue.as_mut().unwrap()).spec.single_active_consumer = single;
        let worker = worker(json!({"consumer": consumer, "scaling": {"maxReplicas": 1}}));
        let built = build(&validate(&worker, &around).unwrap(), &Rolled::default(), "sidecar:new", 1);
        built.deployment["spec"]["strategy"].clone()
    };
    let ordered = json!({"orderingKey": "x-customer"});
    assert_eq!(strategy(false, ordered.clone()), json!({"type": "Recreate"}));
    // The broker lets one of several pods consume.
    let rolling = json!({"type": "RollingUpdate"});
    assert_eq!((strategy(true, ordered), strategy(false, json!({}))), (rolling.clone(), rolling));
}

#[test]
fn all_that_a_worker_and_its_queue_say_reaches_the_sidecars() {
    let mut around = surroundings();
    let queue = Arc::make_mut(around.queue.as_mut().unwrap());
    queue.spec = serde_json::from_value(json!({
        "type": "Classic", "queueName": "shop.orders", "broker": {"vhost": "shop"},
        "retry": {"delaysSeconds": [7], "maxAttempts": 9}, "consumerTimeoutSeconds": 7200,
    }))
    .unwrap();
    let worker = worker(json!({
        "scaling": {"maxReplicas": 1},
        "consumer": {"prefetch": 50, "prefetchMode": "Auto", "orderingKey": "x-customer"},
        "handler": {"http": {"path": "/x", "timeoutSeconds": 31, "reply": true, "maxBodyBytes": 1024},
                    "batch": {"maxMessages": 20, "maxWaitMilliseconds": 5}},
    }));
    let built = build(&validate(&worker, &around).unwrap(), &Rolled::default(), "sidecar:new", 1);
    let config: Value = serde_json::from_str(built.config_map["data"][CONFIG_KEY].as_str().unwrap()).unwrap();
    let expected = json!({
        "namespace": "shop", "worker": "invoices", "secret": "rabbitmq",
        "queue": {"name": "shop.orders", "type": "Classic", "vhost": "shop", "retryDelaysSeconds": [7],
                  "maxAttempts": 9, "consumerTimeoutSeconds": 7200},
        "handler": {"path": "/x", "timeoutSeconds": 31, "reply": true, "maxBodyBytes": 1024,
                    "batch": {"maxMessages": 20, "maxWaitMilliseconds": 5}},
        "consumer": {"prefetch": 50, "concurrency": 50, "paused": false, "prefetchMode": "Auto",
                     "orderingKey": "x-customer", "onlyPod": ""},
    });
    assert_eq!(config, expected, "{config:#}");
}

#[test]
fn the_sidecar_has_the_image_the_resources_and_the_log_level_that_the_worker_says() {
    let sidecar = |said: Value| {
        let built = fresh(json!({"sidecar": said}));
        built.deployment["spec"]["template"]["spec"]["initContainers"][0].clone()
    };
    let own = sidecar(json!({"resources": {"limits": {"memory": "1Gi"}}, "logLevel": "debug"}));
    assert_eq!(own["resources"], json!({"limits": {"memory": "1Gi"}}));
    let level = json!({"name": "WARREN_LOG_LEVEL", "value": "debug"});
    assert!(own["env"].as_array().unwrap().contains(&level), "{own:#}");
    assert_eq!(sidecar(json!({"image": ""}))["image"], "sidecar:new");
}

#[test]
fn what_has_consuming_held_is_in_the_sidecars_configuration() {
    let paused = |around: &Surroundings, spec: Value| {
        let worker = worker(spec);
        let built = build(&validate(&worker, around).unwrap(), &Rolled::default(), "sidecar:new", 1);
        let text = built.config_map["data"][CONFIG_KEY].as_str().unwrap();
        serde_json::from_str::<SidecarConfig>(text).unwrap().consumer.paused
    };
    let several = json!({"consumer": {"orderingKey": "x-customer"}, "scaling": {"maxReplicas": 2}});
    assert!(!paused(&surroundings(), json!({})) && paused(&surroundings(), several));
    let queue = Some(Arc::new(declared("False", "Conflict")));
    assert!(paused(&Surroundings { queue, ..surroundings() }, json!({})));
}

#[test]
fn a_volume_without_a_source_is_the_empty_folder_that_kubernetes_makes_of_it() {
    let volumes =
        json!([{"name": "cache"}, {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let containers = json!([{"name": "app", "ports": [{"containerPort": 8080}]}]);
    let template = json!({"spec": {"containers": containers, "volumes": volumes}});
    let pod = fresh(json!({"template": template})).deployment["spec"]["template"]["spec"].clone();
    assert_eq!(pod["volumes"][0], json!({"name": "cache", "emptyDir": {}}));
    assert_eq!(pod["volumes"][1], volumes[1]);
}

#[test]
fn an_annotation_of_ports_that_is_empty_names_the_sidecar_s_alone() {
    let annotations = json!({"traffic.sidecar.istio.io/excludeInboundPorts": ""});
    let containers = json!([{"name": "app", "ports": [{"containerPort": 8080}]}]);
    let template = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
    let metadata = fresh(json!({"template": template})).deployment["spec"]["template"]["metadata"].clone();
    assert_eq!(metadata["annotations"]["traffic.sidecar.istio.io/excludeInboundPorts"], "9400");
}

#[test]
fn a_sidecar_of_which_no_resources_are_said_asks_for_the_little_that_it_takes_and_can_add_any_grace_period() {
    let template = json!({"spec": {
        "terminationGracePeriodSeconds": i64::MAX,
        "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}],
    }});
    let built = fresh(json!({"sidecar": {"resources": {}}, "template": template}));
    let pod = &built.deployment["spec"]["template"]["spec"];
    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["resources"], json!({"requests": {"cpu": "10m", "memory": "32Mi"}}));
    assert_eq!(pod["terminationGracePeriodSeconds"], i64::MAX);
    let grace = json!({"name": "WARREN_GRACE_PERIOD_SECONDS", "value": u32::MAX.to_string()});
    assert!(sidecar["env"].as_array().unwrap().contains(&grace), "{sidecar:#}");
}

#[test]
fn a_port_whose_protocol_is_left_blank_is_given_without_one() {
    let blank = |name: &str| json!({"name": name, "ports": [{"containerPort": 8080, "protocol": ""}]});
    let template = json!({"spec": {"containers": [blank("app")], "initContainers": [blank("first")]}});
    let spec = fresh(json!({"template": template})).deployment["spec"]["template"]["spec"].clone();
    for container in [&spec["containers"][0], &spec["initContainers"][0]] {
        assert_eq!(container["ports"], json!([{"containerPort": 8080}]));
    }
}

#[test]
fn a_variable_of_the_application_that_has_the_name_of_one_of_the_sidecar_s_is_not_given_twice() {
    let env = json!([
        {"name": "WARREN_POD_NAME", "value": "mine"},
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "k8s.pod.name=$(WARREN_POD_NAME)"},
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"},
    ]);
    let app = json!({"name": "app", "env": env, "ports": [{"containerPort": 8080}]});
    let deployment = fresh(json!({"template": {"spec": {"containers": [app]}}})).deployment;
    let env = deployment["spec"]["template"]["spec"]["initContainers"][0]["env"].as_array().unwrap().clone();
    let named = |name: &str| env.iter().filter(|variable| variable["name"] == name).count();
    assert_eq!((named("WARREN_POD_NAME"), named("OTEL_RESOURCE_ATTRIBUTES")), (1, 1));
}
