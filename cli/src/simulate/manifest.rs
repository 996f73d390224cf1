//! The Worker of a manifest, with its Queue. Parsed once.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Deserializer, Track};
use serde_yaml::Value;
use thiserror::Error;
use warren_api::{Queue, Worker};

/// What is wrong with a manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is no YAML.
    #[error("the manifest cannot be read: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// A value that is not what its field takes.
    #[error("{kind} \"{name}\"{field}: {why}")]
    Value {
        /// Of the resource.
        kind: &'static str,
        /// Of the resource.
        name: String,
        /// Its path, with words around it; nothing where it is the resource itself.
        field: String,
        /// What is wrong with it.
        why: serde_yaml::Error,
    },
    /// A field that the API server refuses, too.
    #[error("{kind} \"{name}\" has an unknown field \"{field}\": correct its name, or remove it")]
    Unknown {
        /// Of the resource.
        kind: &'static str,
        /// Of the resource.
        name: String,
        /// Its path.
        field: String,
    },
    /// There is no Worker in it.
    #[error("the manifest has no Worker (kind: Worker, apiVersion: warren.dev/v1alpha1)")]
    NoWorker,
    /// There is more than one.
    #[error("the manifest has {0} Workers: give one of them with --worker NAME, or a manifest with it alone")]
    ManyWorkers(usize),
    /// There is more than one of the name.
    #[error("the manifest has {0} Workers \"{1}\": give the namespace of one of them with --namespace NAME")]
    ManyNamespaces(usize, String),
    /// The one that was asked for is not there.
    #[error("the manifest has no Worker \"{0}\"")]
    NotFound(String),
    /// There is none in the namespace that was asked for.
    #[error("the manifest has no Worker in namespace \"{0}\"")]
    NoneIn(String),
}

/// Which Worker of a manifest is meant, if there are several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: Option<&'a str>,
    /// Its namespace. A Worker that names none is in any.
    pub namespace: Option<&'a str>,
}

impl Wanted<'_> {
    fn is(&self, worker: &Worker) -> bool {
        let (name, namespace) = (worker.metadata.name.as_deref(), worker.metadata.namespace.as_deref());
        self.name.is_none_or(|wanted| name == Some(wanted))
            && self.namespace.zip(namespace).is_none_or(|(wanted, namespace)| wanted == namespace)
    }
}

/// Reads the Worker `wanted`, or the only one, of one or more documents or a List, and its Queue; one of defaults, if it is not
/// there.
///
/// # Errors
/// See [`ManifestError`].
pub fn parse(manifest: &str, wanted: Wanted<'_>) -> Result<(Worker, Queue), ManifestError> {
    let (mut workers, mut queues) = (Vec::new(), Vec::new());
    for document in serde_yaml::Deserializer::from_str(manifest) {
        read(Value::deserialize(document)?, &mut workers, &mut queues)?;
    }
    let all = workers.len();
    workers.retain(|worker| wanted.is(worker));
    let found = workers.len();
    let worker = match (workers.pop(), wanted.name, wanted.namespace) {
        (Some(worker), ..) if found == 1 => worker,
        (Some(_), Some(name), _) => return Err(ManifestError::ManyNamespaces(found, name.to_owned())),
        (Some(_), None, _) => return Err(ManifestError::ManyWorkers(found)),
        (None, Some(name), _) => return Err(ManifestError::NotFound(name.to_owned())),
        (None, None, Some(namespace)) if all > 0 => return Err(ManifestError::NoneIn(namespace.to_owned())),
        (None, None, _) => return Err(ManifestError::NoWorker),
    };
    let queue = queues.into_iter().find(|queue| {
        let namespaces = queue.metadata.namespace.as_ref().zip(worker.metadata.namespace.as_ref());
        queue.metadata.name.as_ref() == Some(&worker.spec.queue_ref.name)
            && namespaces.is_none_or(|(one, other)| one == other)
    });
    Ok((worker, queue.unwrap_or_default()))
}

/// Adds what is Warren's; a List, as `kubectl get` prints it, is its items.
fn read(value: Value, workers: &mut Vec<Worker>, queues: &mut Vec<Queue>) -> Result<(), ManifestError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    if let Some(items) = value.get("items").and_then(Value::as_sequence) {
        for item in items {
            read(item.clone(), workers, queues)?;
        }
    } else if text("apiVersion").starts_with("warren.dev/") {
        match text("kind") {
            "Worker" => workers.push(strictly("Worker", value)?),
            "Queue" => queues.push(strictly("Queue", value)?),
            _ => {}
        }
    }
    Ok(())
}

/// A resource whose spec has no field that is not its own. A template is not looked into.
fn strictly<T: DeserializeOwned>(kind: &'static str, value: Value) -> Result<T, ManifestError> {
    let name = value.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
    let name = name.unwrap_or_default().to_owned();
    let (mut unknown, mut track) = (None, Track::new());
    let resource = serde_ignored::deserialize(Deserializer::new(value, &mut track), |path| {
        // What is optional is a step of its own.
        let path = path.to_string().replace(".?", "");
        if path.starts_with("spec.") {
            unknown.get_or_insert(path);
        }
    });
    match (resource, unknown) {
        (Err(why), _) => {
            let path = track.path();
            let field = match path.iter().len() {
                0 => String::new(),
                _ => format!(", field \"{path}\""),
            };
            Err(ManifestError::Value { kind, name, field, why })
        }
        (Ok(_), Some(field)) => Err(ManifestError::Unknown { kind, name, field }),
        (Ok(resource), None) => Ok(resource),
    }
}

#[cfg(test)]
mod tests {
    use warren_api::QueueType;

    use super::*;

    fn worker(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: warren.dev/v1alpha1\nkind: Worker\nmetadata: {{name: {name}}}\nspec: {{queueRef: {{name: orders}}, template: {{spec: {{podField: 1}}}}{spec}}}\n"
        )
    }

    fn queue(api_version: &str, kind: &str) -> String {
        format!(
            "apiVersion: {api_version}\nkind: Queue\nmetadata: {{name: orders}}\nspec: {{type: {kind}}}\n---\n"
        )
    }

    fn refused(manifest: &str) -> String {
        parse(manifest, Wanted::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_queue_of_another_group_is_not_the_worker_s() {
        let others = queue("rabbitmq.com/v1beta1", "quorum");
        let ours = queue("warren.dev/v1alpha1", "Classic");
        let kind = |manifest: String| {
            parse(&(manifest + &worker("invoices", "")), Wanted::default()).unwrap().1.spec.queue_type
        };
        assert_eq!(kind(others.clone()), QueueType::Quorum);
        assert_eq!(kind(others + &ours), QueueType::Classic);
        assert!(refused("apiVersion: apps/v1\nkind: Worker").contains("no Worker"));
    }

    #[test]
    fn a_list_as_kubectl_prints_it_is_its_items() {
        let item =
            |text: String| format!("- {}\n", text.trim_end_matches("---\n").replace('\n', "\n  ").trim_end());
        let list = "apiVersion: v1\nkind: List\nitems:\n".to_owned()
            + &item(queue("warren.dev/v1alpha1", "Classic"))
            + &item(worker("invoices", "") + "status: {newer: 1}\n");
        let (worker, queue) = parse(&list, Wanted::default()).unwrap();
        let found = (worker.metadata.name.as_deref(), queue.spec.queue_type);
        assert_eq!(found, (Some("invoices"), QueueType::Classic));
    }

    #[test]
    fn a_misspelt_field_is_refused_with_its_path() {
        for (spec, path) in [
            (", scaling: {targetWaitSecond: 30}", "spec.scaling.targetWaitSecond"),
            (", handler: {batch: {maxMessage: 9}}", "spec.handler.batch.maxMessage"),
            (", consumers: {prefetch: 9}", "spec.consumers"),
        ] {
            let told = refused(&worker("invoices", spec));
            assert!(told.contains(&format!("Worker \"invoices\" has an unknown field \"{path}\"")), "{told}");
        }
        let told = refused(&queue("warren.dev/v1alpha1", "Classic, singleActiveConsumers: true"));
        assert!(
            told.contains("Queue \"orders\" has an unknown field \"spec.singleActiveConsumers\""),
            "{told}"
        );
    }

    #[test]
    fn a_value_that_its_field_does_not_take_is_refused_with_both_their_names() {
        let told = refused(&worker("invoices", ", scaling: {targetWaitSeconds: soon}"));
        let expected =
            "Worker \"invoices\", field \"spec.scaling.targetWaitSeconds\": invalid type: string \"soon\"";
        assert!(told.starts_with(expected), "{told}");
        let told = refused("apiVersion: warren.dev/v1alpha1\nkind: Worker\nmetadata: {name: bare}\n");
        assert!(told.starts_with("Worker \"bare\": missing field `spec`"), "{told}");
        let told = refused(&queue("warren.dev/v1alpha1", "Fast"));
        assert!(told.starts_with("Queue \"orders\", field \"spec.type\": unknown variant `Fast`"), "{told}");
    }

    #[test]
    fn one_of_several_workers_is_chosen_by_its_name() {
        let two = worker("invoices", "") + "---\n" + &worker("letters", "");
        let named = |name| Wanted { name: Some(name), namespace: None };
        assert_eq!(parse(&two, named("letters")).unwrap().0.metadata.name.as_deref(), Some("letters"));
        assert!(refused(&two).contains("2 Workers: give one of them with --worker"));
        assert!(parse(&two, named("other")).unwrap_err().to_string().contains("no Worker \"other\""));
    }

    #[test]
    fn one_of_several_workers_of_a_name_is_chosen_by_its_namespace() {
        let both = worker("a, namespace: shop", "") + "---\n" + &worker("a, namespace: mail", "");
        let told = |name, namespace| match parse(&both, Wanted { name, namespace }) {
            Ok((worker, _)) => worker.metadata.namespace.unwrap(),
            Err(error) => error.to_string(),
        };
        assert_eq!(told(None, Some("mail")), "mail");
        assert_eq!(told(Some("a"), Some("shop")), "shop");
        assert!(told(Some("a"), None).contains("2 Workers \"a\": give the namespace"));
        assert!(told(None, Some("other")).contains("no Worker in namespace \"other\""));
        let (found, _) = parse(&worker("a", ""), Wanted { name: None, namespace: Some("shop") }).unwrap();
        assert_eq!(found.metadata.namespace, None, "it is in any");
    }
}
