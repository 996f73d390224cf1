//! The rights that the operator needs in the namespaces it watches; `charts/warren/files/rbac-rules.yaml` is this list.

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::leader::LEASE;

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

/// Every rule.
pub fn rules() -> Vec<PolicyRule> {
    vec![
        // Resources of the Warren API.
        rule(warren_api::GROUP, &["queues", "workers"], &["list", "watch"]),
        // For finalizers.
        rule(warren_api::GROUP, &["queues"], &["patch"]),
        rule(warren_api::GROUP, &["queues/status", "workers/status"], &["patch"]),
        // What a Worker becomes; the garbage collector deletes it.
        rule("apps", &["deployments"], &["get", "list", "watch", "create", "patch"]),
        rule("apps", &["deployments/scale"], &["patch"]),
        rule("", &["configmaps"], &["get", "list", "watch", "create", "patch"]),
        // Removed again when spec.disruption is.
        rule("policy", &["poddisruptionbudgets"], &["get", "list", "watch", "create", "patch", "delete"]),
        // The scaler finds the sidecars, and marks which pods may go first.
        rule("", &["pods"], &["list", "watch", "patch"]),
        // The brokers' addresses and users: named Secrets only, never a list.
        rule("", &["secrets"], &["get"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]
}

/// For the election of a leader, in the operator's own namespace, as `charts/warren/templates/rbac.yaml` gives it.
pub fn election() -> [PolicyRule; 2] {
    let leases = |verbs: &[&str]| rule("coordination.k8s.io", &["leases"], verbs);
    // What is made has no name yet.
    [
        leases(&["create"]),
        PolicyRule { resource_names: Some(vec![LEASE.to_owned()]), ..leases(&["get", "update"]) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_can_be_changed_in_its_status_alone() {
        let workers =
            |rule: &PolicyRule| rule.resources.iter().flatten().any(|resource| resource == "workers");
        let verbs: Vec<_> = rules().into_iter().filter(workers).flat_map(|rule| rule.verbs).collect();
        assert_eq!(verbs, ["list", "watch"]);
    }

    #[test]
    fn the_chart_gives_what_an_election_needs() {
        let chart = include_str!("../../charts/warren/templates/rbac.yaml");
        let list = |texts: Vec<String>| texts.join(", ");
        let rules = election().map(|rule| {
            let PolicyRule { api_groups, resources, resource_names, verbs, .. } = rule;
            let (groups, resources) = (list(api_groups.unwrap()), list(resources.unwrap()));
            let names = resource_names.map(|names| format!("  resourceNames: [{}]\n", list(names)));
            let (names, verbs) = (names.unwrap_or_default(), list(verbs));
            format!("- apiGroups: [{groups}]\n  resources: [{resources}]\n{names}  verbs: [{verbs}]\n")
        });
        let rules = format!("rules:\n{}---\n", rules.concat());
        assert!(chart.contains(&rules), "{rules}");
    }

    #[test]
    fn what_is_watched_alone_is_not_read_by_name() {
        let reads = |resource: &str| {
            let of = |rule: &PolicyRule| rule.resources.iter().flatten().any(|name| name == resource);
            rules().into_iter().filter(of).any(|rule| rule.verbs.iter().any(|verb| verb == "get"))
        };
        assert!(!["queues", "workers", "pods"].into_iter().any(reads));
        assert!(["secrets", "configmaps", "deployments", "poddisruptionbudgets"].into_iter().all(reads));
    }

    #[test]
    fn secrets_can_only_be_read_by_name() {
        let rules = rules();
        let secrets: Vec<_> =
            rules.iter().filter(|rule| rule.resources.iter().flatten().any(|r| r == "secrets")).collect();
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets[0].verbs, ["get"]);
    }
}
