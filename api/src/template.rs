//! A pod template inside a custom resource.
//!
//! It is kept as the text of the JSON that the user wrote, of which values take many times the memory, and which goes into the
//! Deployment as it is. It carries the real pod schema without descriptions, so that the API server refuses misspelt fields and
//! the CRD stays small enough for client-side `kubectl apply` (256 KiB, <https://kubernetes.io/docs/reference/kubectl/>). Fields
//! that are newer than the release of Kubernetes that `k8s-openapi` is built for are not in that schema: they are refused, or
//! dropped, as misspelt ones are.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// Most containers in a template: bounds the cost of the CEL rules over them.
const MAX_CONTAINERS: u64 = 32;

/// Most bytes of a template, as compact JSON.
const LARGEST: usize = 256 * 1024;

/// A pod template as the user wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Kept);

/// What is kept of a template. One that is refused for its size takes no memory of the operator, which others need.
#[derive(Clone, Debug, PartialEq)]
enum Kept {
    Json(Arc<str>),
    TooLarge { bytes: usize },
}

impl Template {
    /// The template as a typed pod template.
    ///
    /// # Errors
    /// What in the template is not as Kubernetes defines it, or that it is too large.
    pub fn parse(&self) -> Result<PodTemplateSpec, serde_json::Error> {
        match &self.0 {
            Kept::Json(json) => serde_json::from_str(json),
            Kept::TooLarge { bytes } => Err(Error::custom(format!(
                "it has {bytes} bytes, and {LARGEST} are the most: move what is large into a ConfigMap that it mounts"
            ))),
        }
    }

    /// The template as JSON; null where it is too large.
    pub fn value(&self) -> Value {
        match &self.0 {
            Kept::Json(json) => serde_json::from_str(json).unwrap_or_default(),
            Kept::TooLarge { .. } => Value::Null,
        }
    }
}

impl From<Value> for Template {
    fn from(value: Value) -> Self {
        let json = value.to_string();
        Self(match json.len() {
            bytes if bytes > LARGEST => Kept::TooLarge { bytes },
            _ => Kept::Json(json.into()),
        })
    }
}

impl Default for Template {
    fn default() -> Self {
        Value::Null.into()
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Fractions, too, as a Deployment does: `x-kubernetes-int-or-string` takes none, and another type cannot be named. No lists
        // and objects, which may go deeper than an operator can read.
        let any = json!({"x-kubernetes-preserve-unknown-fields": true, "pattern": QUANTITY, "maxItems": 0, "maxProperties": 0});
        let mut schema = kubernetes_schema::<PodTemplateSpec>(&any);
        bound_containers(&mut schema);
        schema.insert("required".to_owned(), json!(["spec"]));
        Schema::from(schema)
    }
}

/// The text of a quantity, see <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
const QUANTITY: &str =
    r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))?$";

/// The schema of container resources, without descriptions.
pub(crate) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    let quantity = json!({"x-kubernetes-int-or-string": true, "pattern": QUANTITY});
    Schema::from(kubernetes_schema::<ResourceRequirements>(&quantity))
}

/// The schema of a Kubernetes type, inlined and made structural, with this one for each quantity.
fn kubernetes_schema<T: JsonSchema>(quantity: &Value) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut value = settings.into_generator().into_root_schema_for::<T>().to_value();
    make_structural(&mut value, quantity);
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Rewrites what `k8s-openapi` emits into what an API server takes in a CRD: no descriptions, quantities as given, ports as
/// int-or-string, no nulls.
fn make_structural(value: &mut Value, quantity: &Value) {
    let Value::Object(map) = value else { return };
    for noise in ["description", "title", "$schema", "nullable", "default", "components", "definitions"] {
        map.remove(noise);
    }
    if is_port(map) {
        *map = Map::from_iter([("x-kubernetes-int-or-string".to_owned(), Value::Bool(true))]);
        return;
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for (name, property) in properties.iter_mut() {
            make_structural(property, quantity);
            match name.as_str() {
                "sizeLimit" | "divisor" => *property = quantity.clone(),
                "limits" | "requests" if property["additionalProperties"].is_object() => {
                    property["additionalProperties"] = quantity.clone();
                }
                _ => {}
            }
        }
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(schema) = map.get_mut(nested) {
            make_structural(schema, quantity);
        }
    }
}

/// Whether a schema is `IntOrString`, which has no type of its own or a union of two.
fn is_port(map: &Map<String, Value>) -> bool {
    map.contains_key("x-kubernetes-int-or-string")
        || map.get("format").is_some_and(|format| format == "int-or-string")
        || map.contains_key("anyOf")
        || map.contains_key("oneOf")
}

fn bound_containers(schema: &mut Map<String, Value>) {
    let Some(containers) = schema
        .get_mut("properties")
        .and_then(|p| p.pointer_mut("/spec/properties/containers"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    containers.insert("minItems".to_owned(), 1.into());
    containers.insert("maxItems".to_owned(), MAX_CONTAINERS.into());
    if let Some(name) = containers.get_mut("items").and_then(|i| i.pointer_mut("/properties/name")) {
        name["maxLength"] = 63.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_where_kubernetes_takes_a_quantity_is_understood() {
        let template = Template::from(json!({"spec": {"containers": [
            {"name": "app", "resources": {"limits": {"cpu": 1, "memory": "64Mi"}, "requests": {"cpu": 0.5}}}
        ], "volumes": [{"name": "data", "emptyDir": {"sizeLimit": 1024}}]}}));
        let spec = template.parse().unwrap().spec.unwrap();
        let resources = spec.containers[0].resources.clone().unwrap();
        assert_eq!(
            (&*resources.limits.unwrap()["cpu"].0, &*resources.requests.unwrap()["cpu"].0),
            ("1", "0.5")
        );
        let volume = spec.volumes.unwrap()[0].empty_dir.clone().unwrap();
        assert_eq!(volume.size_limit.unwrap().0, "1024");
    }

    #[test]
    fn a_template_is_read_and_written_as_the_user_wrote_it() {
        let written =
            json!({"spec": {"containers": [{"name": "app", "resources": {"limits": {"cpu": 0.5}}}]}});
        let template: Template = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&template).unwrap(), written);
        assert_eq!((template.value(), Template::default().value()), (written, Value::Null));
    }

    #[test]
    fn a_template_that_would_fill_the_memory_is_not_taken_apart() {
        let variables: Vec<_> = (0..20_000).map(|number| json!({"name": format!("A{number:05}")})).collect();
        let template = Template::from(json!({"spec": {"containers": [{"name": "app", "env": variables}]}}));
        let error = template.parse().unwrap_err().to_string();
        assert!(error.contains("bytes, and 262144 are the most"), "{error}");
        assert!(matches!(template.0, Kept::TooLarge { .. }), "it is not kept");
    }

    #[test]
    fn a_template_of_the_wrong_shape_says_where() {
        let template = Template::from(json!({"spec": {"containers": [{"name": 7}]}}));
        assert!(template.parse().unwrap_err().to_string().contains("string"));
    }
}
