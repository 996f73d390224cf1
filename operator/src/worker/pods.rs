//! What can be told of a Worker's pods from their status. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use warren_api::names::SIDECAR_CONTAINER;

/// The reason of a container that ended again and again, and waits to be started.
const CRASH: &str = "CrashLoopBackOff";
/// Reasons of a container whose image is not to be had.
const NO_IMAGE: [&str; 4] = ["ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"];
/// A container that has run for so long starts at once when it ends, see
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>.
const LONG_RUN: SignedDuration = SignedDuration::from_mins(10);
/// The label by which pods of one template are known.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Other reasons of a waiting container that do not pass by themselves, or not soon.
const STUCK: [&str; 4] = [CRASH, "CreateContainerConfigError", "CreateContainerError", "RunContainerError"];

/// What keeps pods from working: a reason and a sentence.
pub fn trouble(pods: &[Arc<Pod>], now: Timestamp) -> Option<(String, String)> {
    staying(pods).find_map(|pod| stuck(pod).or_else(|| on_trial(pod, now)).or_else(|| unschedulable(pod)))
}

/// Whether a pod runs that may end soon again, which nobody tells of if it does not.
pub fn is_any_on_trial(pods: &[Arc<Pod>], now: Timestamp) -> bool {
    staying(pods).any(|pod| on_trial(pod, now).is_some())
}

/// Whether pods are not to be expected: one that waits for a node or for its image may still come.
pub fn cannot_start(pods: &[Arc<Pod>]) -> bool {
    staying(pods).filter_map(|pod| stuck(pod)).any(|(reason, _)| STUCK.contains(&reason.as_str()))
}

/// Whether a pod ends again and again.
pub fn crashes(pod: &Pod) -> bool {
    stuck(pod).is_some_and(|(reason, _)| reason == CRASH)
}

/// Pods that neither end nor have ended.
pub fn staying(pods: &[Arc<Pod>]) -> impl Iterator<Item = &Arc<Pod>> {
    pods.iter().filter(|pod| !ending(pod) && !ended(pod))
}

/// Whether a pod has been let go: it takes no further messages, and nobody counts on it.
pub const fn ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn stuck(pod: &Pod) -> Option<(String, String)> {
    container_statuses(pod).find_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state.waiting.as_ref();
        let (reason, last) = match state.terminated.as_ref().filter(|_| ends_again(pod, container)) {
            // For up to a minute the kubelet says so of one that it will start again.
            Some(last) => (CRASH, Some(last)),
            None => {
                let stuck = |reason: &&str| STUCK.contains(reason) || NO_IMAGE.contains(reason);
                let reason = waiting?.reason.as_deref().filter(stuck)?;
                (reason, container.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
            }
        };
        if let Some(last) = last.filter(|_| reason == CRASH) {
            return Some(crashed(pod, container, last));
        }
        let detail = waiting.and_then(|waiting| waiting.message.clone());
        let detail = detail.unwrap_or_else(|| "no detail".to_owned());
        let (name, pod_name) = (&container.name, pod.name_any());
        let look = match reason {
            CRASH => format!("see kubectl logs {pod_name} -c {name} --previous"),
            "CreateContainerConfigError" => {
                "see that the Secrets and ConfigMaps it names exist, and to its securityContext (runAsNonRoot)"
                    .to_owned()
            }
            reason if NO_IMAGE.contains(&reason) => "check the image's name, tag and pull secret".to_owned(),
            _ => "check its command, mounts and securityContext".to_owned(),
        };
        Some((reason.to_owned(), format!("pod {pod_name}, container {name}: {detail}; {look}")))
    })
}

/// A container that has ended soon, and not for the first time, and does not run for much longer by now than it did then: between
/// two ends nothing is mended.
fn on_trial(pod: &Pod, now: Timestamp) -> Option<(String, String)> {
    container_statuses(pod).find_map(|container| {
        let since = container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
        let last = container.last_state.as_ref()?.terminated.as_ref()?;
        let ran = last.finished_at.as_ref()?.0.duration_since(last.started_at.as_ref()?.0);
        let soon = ran < LONG_RUN && now.duration_since(since.0) < (ran * 2).min(LONG_RUN);
        let ends = last.exit_code != 0 || !is_init(pod, &container.name);
        (container.restart_count > 1 && soon && ends).then(|| crashed(pod, container, last))
    })
}

fn crashed(pod: &Pod, container: &ContainerStatus, last: &ContainerStateTerminated) -> (String, String) {
    let (name, pod, code) = (&container.name, pod.name_any(), last.exit_code);
    let why = last.reason.as_deref().unwrap_or("Error");
    let message = format!(
        "pod {pod}, container {name}: it ended with exit code {code} ({why}); see kubectl logs {pod} -c {name} --previous"
    );
    (CRASH.to_owned(), message)
}

fn is_init(pod: &Pod, container: &str) -> bool {
    let mut inits = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    inits.any(|init| init.name == container)
}

/// Whether a container has ended, soon after its start and not for the first time. An init container ends by itself once it has
/// succeeded.
fn ends_again(pod: &Pod, container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| {
        let ran = ended.started_at.as_ref().zip(ended.finished_at.as_ref());
        let soon = ran.is_none_or(|(from, to)| to.0.duration_since(from.0) < LONG_RUN);
        soon && container.restart_count > 0 && (ended.exit_code != 0 || !is_init(pod, &container.name))
    })
}

/// Whether pods wait for an image of the sidecar's with which none of their kind runs.
pub fn cannot_get(pods: &[Arc<Pod>], image: &str) -> bool {
    let kind = |pod: &Pod| pod.labels().get(POD_TEMPLATE_HASH).cloned();
    let waits = |pod: &&Arc<Pod>| {
        container_statuses(pod).any(|container| {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            container.name == SIDECAR_CONTAINER
                && container.image == image
                && reason.is_some_and(|reason| NO_IMAGE.contains(&reason))
        })
    };
    let runs = |pod: &Pod| pods.iter().any(|other| kind(other) == kind(pod) && sidecar_runs(other));
    staying(pods).filter(waits).any(|pod| !runs(pod))
}

fn unschedulable(pod: &Pod) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let reason = scheduled.reason.clone().filter(|reason| reason == "Unschedulable")?;
    let message = scheduled.message.clone().unwrap_or_default();
    Some((
        reason,
        format!("pod {} fits no node: {message}; free or add capacity, or ask for less", pod.name_any()),
    ))
}

fn container_statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    })
}

/// Whether the sidecar runs now, so that it can be scraped.
pub fn sidecar_runs(pod: &Pod) -> bool {
    running_sidecar(pod).is_some()
}

/// Since when the sidecar runs, by the clock of its node.
pub fn sidecar_since(pod: &Pod) -> Option<Timestamp> {
    running_sidecar(pod)?.started_at.as_ref().map(|since| since.0)
}

fn running_sidecar(pod: &Pod) -> Option<&ContainerStateRunning> {
    let mut sidecars = container_statuses(pod).filter(|container| container.name == SIDECAR_CONTAINER);
    sidecars.find_map(|sidecar| sidecar.state.as_ref()?.running.as_ref())
}

/// Whether a pod has ended and will not come back.
pub fn ended(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| phase == "Succeeded" || phase == "Failed")
}

/// Of several pods that have not ended one, and rather one that ends: where one alone may consume, it is in the way.
pub fn extra(pods: &[Arc<Pod>]) -> Option<String> {
    let mut there: Vec<_> = pods.iter().filter(|pod| !ended(pod)).collect();
    there.sort_by_key(|pod| (!ending(pod), pod.name_any()));
    there.first().filter(|_| there.len() > 1).map(|pod| pod.name_any())
}

/// The only pod that has not ended.
pub fn only(pods: &[Arc<Pod>]) -> Option<String> {
    let mut there = pods.iter().filter(|pod| !ended(pod));
    there.next().filter(|_| there.next().is_none()).map(|pod| pod.name_any())
}

/// Whether a pod is Ready.
pub fn ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn pod(status: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "p-1"}, "status": status})).unwrap())
    }

    #[test]
    fn of_several_pods_one_that_ends_is_in_the_way_and_one_that_has_ended_is_not() {
        let named = |name: &str, ends: bool, phase: &str| {
            let at = ends.then_some("2026-01-01T00:00:00Z");
            let metadata = json!({"name": name, "deletionTimestamp": at});
            let pod = json!({"metadata": metadata, "status": {"phase": phase}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let (stays, ends) = (named("a", false, "Running"), named("b", true, "Running"));
        assert_eq!(extra(&[stays.clone(), ends]), Some("b".to_owned()));
        assert_eq!(extra(&[stays, named("c", true, "Succeeded")]), None);
    }

    #[test]
    fn a_crash_loop_names_pod_container_and_exit_code() {
        let pod = pod(json!({"containerStatuses": [{
            "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 2, "reason": "Error"}},
        }]}));
        let (reason, message) = trouble(std::slice::from_ref(&pod), NOW).unwrap();
        assert_eq!(reason, "CrashLoopBackOff");
        assert!(crashes(&pod));
        assert!(message.contains("p-1, container app") && message.contains("exit code 2"), "{message}");
    }

    #[test]
    fn a_container_that_has_ended_again_is_one_too_while_the_kubelet_does_not_say_so_yet() {
        let ended = |kind: &str, restarts: u32, code: u32, to: &str| {
            let state = json!({"exitCode": code, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": to});
            pod(json!({kind: [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
                "state": {"terminated": state},
            }]}))
        };
        let soon = "2026-01-01T00:00:02Z";
        let app = "containerStatuses";
        let (reason, message) = trouble(&[ended(app, 5, 3, soon)], NOW).unwrap();
        assert!(reason == CRASH && message.contains("exit code 3"), "{message}");
        assert!(crashes(&ended(app, 1, 0, soon)));
        assert!(!crashes(&ended(app, 0, 3, soon)), "it is started again at once");
        assert!(!crashes(&ended(app, 1, 3, "2026-01-01T01:00:00Z")), "so is one that ran for long");
        assert!(!crashes(&ended("initContainerStatuses", 1, 0, soon)), "its work is done");
    }

    #[test]
    fn a_container_that_runs_between_two_ends_is_in_trouble_until_it_has_run_for_longer() {
        let runs = |restarts: u32, code: u32, since: &str| {
            let last = json!({"exitCode": code, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:20Z"});
            let pods = [pod(json!({"containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
                "state": {"running": {"startedAt": since}}, "lastState": {"terminated": last},
            }]}))];
            let now = "2026-01-01T00:05:39Z".parse().unwrap();
            assert_eq!(is_any_on_trial(&pods, now), trouble(&pods, now).is_some());
            trouble(&pods, now)
        };
        let (reason, message) = runs(7, 1, "2026-01-01T00:05:00Z").unwrap();
        assert!(reason == CRASH && message.contains("ended with exit code 1"), "{message}");
        assert!(runs(2, 0, "2026-01-01T00:05:00Z").is_some());
        assert_eq!(runs(7, 1, "2026-01-01T00:04:59Z"), None, "it lives longer now");
        assert_eq!(runs(1, 1, "2026-01-01T00:05:00Z"), None, "that happens");
    }

    #[test]
    fn a_container_that_ran_for_long_or_has_run_for_ten_minutes_since_is_in_no_trouble_any_more() {
        let runs = |last_end: &str, since: &str, now: &str| {
            let last = json!({"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": last_end});
            let pods = [pod(json!({"containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 7,
                "state": {"running": {"startedAt": since}}, "lastState": {"terminated": last},
            }]}))];
            is_any_on_trial(&pods, now.parse().unwrap())
        };
        let eight_minutes = "2026-01-01T00:08:00Z";
        let begun = "2026-01-01T00:08:10Z";
        assert!(runs(eight_minutes, begun, "2026-01-01T00:18:09Z"));
        assert!(!runs(eight_minutes, begun, "2026-01-01T00:18:10Z"), "twice as long is too long to be told");
        assert!(!runs("2026-01-01T00:10:00Z", "2026-01-01T00:10:10Z", "2026-01-01T00:10:20Z"));
    }

    #[test]
    fn pods_that_end_or_have_ended_are_in_no_trouble() {
        let waits = |ends: Option<&str>, phase: &str| {
            let status = json!({"phase": phase, "containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "CreateContainerError"}},
            }]});
            let pod = json!({"metadata": {"name": "p-1", "deletionTimestamp": ends}, "status": status});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods = [waits(Some("2026-01-01T00:00:00Z"), "Pending"), waits(None, "Failed")];
        assert!(trouble(&pods, NOW).is_none() && !cannot_start(&pods));
        assert!(trouble(&[waits(None, "Pending")], NOW).is_some() && cannot_start(&[waits(None, "Pending")]));
    }

    #[test]
    fn a_pod_that_waits_for_its_image_or_a_node_may_still_come() {
        let waits = |reason: &str| {
            [pod(json!({"containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason}},
            }]}))]
        };
        assert!(cannot_start(&waits("CrashLoopBackOff")) && !cannot_start(&waits("ImagePullBackOff")));
        let scheduled = |reason: &str| {
            let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason});
            [pod(json!({"conditions": [condition]}))]
        };
        assert!(!cannot_start(&scheduled("Unschedulable")));
        assert_eq!(trouble(&scheduled("SchedulingGated"), NOW), None, "somebody holds it back");
    }

    #[test]
    fn a_container_that_cannot_be_created_or_started_is_told_of_with_what_to_look_at() {
        for (reason, hint) in [
            ("ErrImagePull", "check the image's name"),
            (
                "CreateContainerConfigError",
                "Secrets and ConfigMaps it names exist, and to its securityContext",
            ),
            ("CreateContainerError", "check its command, mounts and securityContext"),
            ("RunContainerError", "check its command, mounts and securityContext"),
        ] {
            let pod = pod(json!({"containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": "what the kubelet says"}},
            }]}));
            let (said, message) = trouble(&[pod], NOW).unwrap();
            assert_eq!(said, reason);
            assert!(message.contains("what the kubelet says") && message.contains(hint), "{message}");
            assert_eq!(message.contains("image's"), NO_IMAGE.contains(&reason), "{message}");
        }
    }

    #[test]
    fn an_image_is_not_to_be_had_where_pods_wait_for_it_and_none_of_their_template_runs() {
        let pod = |template: &str, state: Value| {
            let sidecar = json!({
                "name": SIDECAR_CONTAINER, "image": "sidecar:typo", "imageID": "", "ready": false,
                "restartCount": 0, "state": state,
            });
            let metadata = json!({"name": "p", "labels": {"pod-template-hash": template}});
            let pod = json!({"metadata": metadata, "status": {"initContainerStatuses": [sidecar]}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let waits = |template| pod(template, json!({"waiting": {"reason": "ImagePullBackOff"}}));
        let runs = |template| pod(template, json!({"running": {}}));
        assert!(cannot_get(&[waits("b"), runs("a")], "sidecar:typo"));
        assert!(!cannot_get(&[waits("b"), runs("b")], "sidecar:typo"), "one node alone cannot pull it");
        assert!(!cannot_get(&[waits("b")], "sidecar:other"));
    }

    #[test]
    fn a_pod_that_fits_no_node_is_said_and_no_crash() {
        let pod = pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
        ]}));
        assert_eq!(trouble(std::slice::from_ref(&pod), NOW).unwrap().0, "Unschedulable");
        assert!(!crashes(&pod));
    }

    #[test]
    fn a_pod_that_is_only_starting_is_no_trouble() {
        let pod = pod(json!({"containerStatuses": [{
            "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }]}));
        assert_eq!(trouble(&[pod], NOW), None);
    }
}
