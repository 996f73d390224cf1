//! Objects as a watch lists them, and as an answer to a write has them: one that this program cannot read is left out, and keeps
//! none of the others from being read. Who may write one object of a kind must not be able to stop the work for everybody.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Debug;

use kube::api::ObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// How much of an error is kept: it may quote the object.
const LONGEST_ERROR: usize = 300;

/// An object of kind `K`, or what tells it from others and why it cannot be read.
#[derive(Clone, Debug)]
pub enum Tolerant<K> {
    /// It could be read.
    Read(K),
    /// It could not be.
    Unreadable {
        /// Its name, namespace and version alone.
        metadata: Box<ObjectMeta>,
        /// What is wrong with it.
        error: String,
    },
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tolerant<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Objects in objects without an end, which the parser gives up over, end this one here and not the list around it.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(match read(raw.get()) {
            Ok(object) => Self::Read(object),
            Err(error) => {
                let error = error.to_string().chars().take(LONGEST_ERROR).collect();
                Self::Unreadable { metadata: Box::new(name_of(raw.get())), error }
            }
        })
    }
}

/// A key whose value the parser parses anew, as deep again as it may go at all. The API server writes it as it is.
const PARSED_ANEW: &str = "$serde_json::private::RawValue";

fn read<K: DeserializeOwned>(text: &str) -> serde_json::Result<K> {
    if text.contains(PARSED_ANEW) {
        return Err(serde::de::Error::custom(format!("it has \"{PARSED_ANEW}\", which is no name to use")));
    }
    serde_json::from_value(without_managed_fields(&mut serde_json::Deserializer::from_str(text))?)
}

/// What tells an object from others, and a watch where it is.
fn name_of(text: &str) -> ObjectMeta {
    #[derive(Deserialize, Default)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
    }
    let Object { metadata: Metadata { name, namespace, resource_version } } =
        serde_json::from_str(text).unwrap_or_default();
    ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }
}

impl<K: Resource<DynamicType = ()>> Resource for Tolerant<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Read(object) => object.meta(),
            Self::Unreadable { metadata, .. } => metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Read(object) => object.meta_mut(),
            Self::Unreadable { metadata, .. } => metadata,
        }
    }
}

/// Reads an object without `metadata.managedFields`, which the API server takes from requests as they are: times that no
/// calendar here knows, and objects in objects without an end.
pub(crate) fn without_managed_fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
        #[serde(flatten)]
        others: Map<String, Value>,
    }
    #[derive(Deserialize, Default)]
    struct Metadata {
        /// Skipped without a look into it.
        #[serde(default, rename = "managedFields")]
        _managed: IgnoredAny,
        #[serde(flatten)]
        others: Map<String, Value>,
    }
    let Object { metadata, others: mut object } = Object::deserialize(deserializer)?;
    object.insert("metadata".to_owned(), Value::Object(metadata.others));
    Ok(Value::Object(object))
}

/// Leaves what cannot be read out of what a watch says.
#[derive(Debug)]
pub struct Sieve<K: Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    told: HashSet<ObjectRef<K>>,
}

impl<K: Resource<DynamicType = ()> + Clone + Debug> Sieve<K> {
    /// In front of a cache.
    pub fn before(store: Store<K>) -> Self {
        Self { store, told: HashSet::new() }
    }

    /// What an event says of objects that can be read. One that no longer can be stays in the cache as it was last read, until
    /// it goes or all are listed anew.
    pub fn pass(&mut self, event: Event<Tolerant<K>>) -> Option<Event<K>> {
        Some(match event {
            Event::Apply(object) => Event::Apply(self.read(object)?),
            Event::InitApply(object) => Event::InitApply(self.read(object)?),
            Event::Delete(object) => {
                let key = ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default());
                self.told.remove(&key);
                Event::Delete(match object {
                    Tolerant::Read(object) => object,
                    Tolerant::Unreadable { .. } => (*self.store.get(&key)?).clone(),
                })
            }
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
        })
    }

    fn read(&mut self, object: Tolerant<K>) -> Option<K> {
        let key = ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default());
        match object {
            Tolerant::Read(object) => {
                self.told.remove(&key);
                Some(object)
            }
            Tolerant::Unreadable { error, .. } => {
                if self.told.insert(key.clone()) {
                    let (kind, namespace) = (K::kind(&()), key.namespace.unwrap_or_default());
                    tracing::warn!(%kind, %namespace, name = %key.name, %error, "this object cannot be read and is left out: correct or delete it");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::api::{ObjectList, WatchEvent};
    use kube::runtime::reflector::store;
    use serde_json::json;
    use warren_api::{Queue, Worker};

    use super::*;
    use crate::worker::live::Live;

    fn list<K: Clone + DeserializeOwned>(items: &[String]) -> Vec<Tolerant<K>> {
        let list = format!(
            r#"{{"kind": "List", "apiVersion": "v1", "metadata": {{"resourceVersion": "1"}}, "items": [{}]}}"#,
            items.join(",")
        );
        serde_json::from_str::<ObjectList<Tolerant<K>>>(&list).unwrap().items
    }

    fn queue(name: &str, spec: Value) -> Tolerant<Queue> {
        let metadata = json!({"name": name, "namespace": "shop", "uid": "u", "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn unreadable(name: &str) -> Tolerant<Queue> {
        queue(name, json!({"limits": {"maxLength": 3_000_000_000_u32}}))
    }

    #[test]
    fn an_object_that_cannot_be_read_leaves_the_rest_of_its_list() {
        let good = json!({"metadata": {"name": "good", "namespace": "a"}, "spec": {}}).to_string();
        let bad = json!({
            "metadata": {"name": "bad", "namespace": "b"}, "spec": {"limits": {"maxLength": 3_000_000_000_u32}},
        });
        let list = list::<Queue>(&[bad.to_string(), good]);
        let Tolerant::Unreadable { metadata, error } = &list[0] else { panic!("{list:?}") };
        assert_eq!((metadata.name.as_deref(), metadata.namespace.as_deref()), (Some("bad"), Some("b")));
        assert!(error.contains("3000000000"), "{error}");
        assert!(matches!(&list[1], Tolerant::Read(queue) if queue.name_any() == "good"));
    }

    #[test]
    fn an_object_that_is_nested_too_deep_is_named_and_leaves_the_rest_of_its_list() {
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        let bad = format!(
            r#"{{"metadata": {{"name": "bad", "namespace": "b", "resourceVersion": "7"}}, "spec": {{"queueRef": {{"name": "q"}}, "template": {{"spec": {deep}}}}}}}"#
        );
        let good = json!({"metadata": {"name": "good"}, "spec": {"queueRef": {"name": "q"}, "template": {}}});
        let list = list::<Worker>(&[bad.clone(), good.to_string()]);
        let Tolerant::Unreadable { metadata, error } = &list[0] else { panic!("{list:?}") };
        assert_eq!((metadata.name.as_deref(), metadata.namespace.as_deref()), (Some("bad"), Some("b")));
        // Without it a watch would begin anew.
        assert_eq!(metadata.resource_version.as_deref(), Some("7"));
        assert!(error.contains("recursion limit"), "{error}");
        let anew = json!({"metadata": {"name": "x", "annotations": {PARSED_ANEW: "[[1]]"}}, "spec": {}});
        let read = serde_json::from_str::<Tolerant<Queue>>(&anew.to_string()).unwrap();
        assert!(matches!(read, Tolerant::Unreadable { .. }), "{read:?}");
        assert!(matches!(&list[1], Tolerant::Read(worker) if worker.name_any() == "good"));
        let event = format!(r#"{{"type": "MODIFIED", "object": {bad}}}"#);
        let event = serde_json::from_str::<WatchEvent<Tolerant<Worker>>>(&event).unwrap();
        assert!(matches!(event, WatchEvent::Modified(Tolerant::Unreadable { .. })), "{event:?}");
    }

    #[test]
    fn whatever_stands_in_the_managed_fields_an_object_can_be_read() {
        let deep = format!("{}{}", r#"{"f:a":"#.repeat(5000), "{}".to_owned() + &"}".repeat(5000));
        let late = r#""9999-12-31T23:59:59Z""#;
        let template = r#"{"queueRef": {"name": "q"}, "template": {"spec": {"containers": []}}}"#;
        let object = |spec: &str| {
            format!(
                r#"{{"metadata": {{"name": "x", "managedFields": [{{"time": {late}, "fieldsV1": {deep}}}], "uid": "u"}}, "spec": {spec}}}"#
            )
        };
        let whole = |read: bool| assert!(read);
        let uid = Some("u");
        whole(
            matches!(&list::<Queue>(&[object("{}")])[..], [Tolerant::Read(q)] if q.metadata.uid.as_deref() == uid),
        );
        whole(
            matches!(&list::<Worker>(&[object(template)])[..], [Tolerant::Read(w)] if w.metadata.uid.as_deref() == uid),
        );
        let spec = r#"{"containers": []}"#;
        whole(
            matches!(&list::<Pod>(&[object(spec)])[..], [Tolerant::Read(p)] if p.metadata.uid.as_deref() == uid),
        );
        // Answers to what the operator writes are read so, too.
        serde_json::from_str::<Live<ConfigMap>>(&object("{}")).unwrap();
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was_until_it_is_deleted() {
        let (reader, mut writer) = store();
        let mut sieve = Sieve::before(reader.clone());
        let mut see = |event| {
            let event = sieve.pass(event);
            event.inspect(|event| writer.apply_watcher_event(event)).is_some()
        };
        assert!(see(Event::Apply(queue("a", json!({})))));
        assert!(!see(Event::Apply(unreadable("a"))) && !see(Event::Apply(unreadable("b"))));
        assert_eq!(reader.state().len(), 1);
        assert!(!see(Event::Delete(unreadable("b"))), "it was never there");
        assert!(see(Event::Delete(unreadable("a"))));
        assert!(reader.state().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_told_once_until_it_can_be() {
        let mut sieve = Sieve::before(store().0);
        for event in [Event::InitApply, Event::Apply, Event::Apply] {
            assert!(sieve.pass(event(unreadable("a"))).is_none());
            assert_eq!(sieve.told.len(), 1);
        }
        assert!(sieve.pass(Event::Apply(queue("a", json!({})))).is_some());
        assert!(sieve.told.is_empty());
    }
}
