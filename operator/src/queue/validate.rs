//! Step 2: everything that can be wrong before a broker is asked. Pure.

use kube::ResourceExt;
use warren_api::Queue;
use warren_api::conditions::queue::BROKER_REACHABLE;
use warren_broker::BrokerAccess;

use crate::problem::Problem;
use crate::secrets::SecretState;

/// Parses the Secret.
pub fn validate(queue: &Queue, secret: &SecretState) -> Result<BrokerAccess, Problem> {
    let name = &queue.spec.broker.secret_ref.name;
    let namespace = queue.namespace().unwrap_or_default();
    let keys = match secret {
        SecretState::Found(keys) => keys,
        SecretState::Missing => {
            return Err(Problem::new(
                BROKER_REACHABLE,
                "SecretNotFound",
                format!(
                    "there is no Secret \"{name}\" in namespace \"{namespace}\": create it with the key \"uri\" (amqp://user:password@host:5672/vhost), or name another in spec.broker.secretRef"
                ),
            ));
        }
        SecretState::Unreadable(why) => {
            return Err(Problem::new(
                BROKER_REACHABLE,
                "SecretUnreadable",
                format!(
                    "the API server cannot give Secret \"{name}\" in namespace \"{namespace}\": {why}. See its log; it is tried again by itself"
                ),
            ));
        }
        SecretState::Forbidden => {
            return Err(Problem::new(
                BROKER_REACHABLE,
                "SecretForbidden",
                format!(
                    "the operator may not read Secret \"{name}\" in namespace \"{namespace}\": grant its ServiceAccount get on Secrets there (the chart's rbac.create does)"
                ),
            ));
        }
    };
    BrokerAccess::parse(keys, queue.spec.broker.vhost.as_deref()).map_err(|error| {
        Problem::new(BROKER_REACHABLE, "SecretInvalid", format!("Secret \"{name}\": {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use warren_api::QueueSpec;

    use super::*;

    fn queue() -> Queue {
        let mut queue = Queue::new("orders", QueueSpec::default());
        queue.metadata.namespace = Some("shop".to_owned());
        queue
    }

    #[test]
    fn a_missing_secret_says_what_to_create() {
        let problem = validate(&queue(), &SecretState::Missing).unwrap_err();
        assert_eq!(problem.reason, "SecretNotFound");
        assert!(problem.message.contains("\"rabbitmq\" in namespace \"shop\""), "{}", problem.message);
    }

    #[test]
    fn a_secret_without_an_address_says_which_keys_to_write() {
        let problem = validate(&queue(), &SecretState::Found(Arc::default())).unwrap_err();
        assert_eq!(problem.reason, "SecretInvalid");
        assert!(problem.message.contains("\"uri\""), "{}", problem.message);
    }

    #[test]
    fn the_spec_s_vhost_wins() {
        let keys = BTreeMap::from([("uri".to_owned(), b"amqp://u:p@host/a".to_vec())]);
        let mut queue = queue();
        queue.spec.broker.vhost = Some("b".to_owned());
        let access = validate(&queue, &SecretState::Found(Arc::new(keys))).unwrap();
        assert_eq!(access.vhost(), "b");
    }
}
