//! Whether an object of the API server already is as it should be. Pure.

use serde_json::Value;

/// Whether everything in `desired` is in `live` too; what the API server filled in by itself does not matter.
pub fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, value)| match (live.get(key), key.as_str()) {
                (Some(found), "limits" | "requests" | "overhead") => quantities_cover(found, value),
                (Some(found), "sizeLimit" | "divisor") => same_quantity(found, value),
                (Some(_), key) if value == "" && is_filled_in(key) => true,
                (Some(found), _) => covers(found, value),
                (None, key) => is_empty(value) || is_left_out(key, value),
            })
        }
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, desired)| covers(live, desired))
        }
        (live, desired) => live == desired,
    }
}

/// The API server drops what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether the API server has a default for a field that is given as nothing, as a chart may write it.
fn is_filled_in(key: &str) -> bool {
    const FILLED_IN: [&str; 10] = [
        "imagePullPolicy",
        "pullPolicy",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "dnsPolicy",
        "restartPolicy",
        "schedulerName",
        "path",
        "scheme",
        "apiVersion",
    ];
    FILLED_IN.contains(&key)
}

/// Whether the API server leaves a field out that is set to this. Fields that it keeps, such as `runAsUser: 0`, mean something
/// other than nothing, and many of them are in no list: these here are the ones that do not.
fn is_left_out(key: &str, value: &Value) -> bool {
    match key {
        "hostIPC" | "hostNetwork" | "hostPID" | "paused" | "readOnly" | "stdin" | "stdinOnce" | "tty" => {
            *value == false
        }
        "hostPort" | "initialDelaySeconds" => *value == 0,
        _ => false,
    }
}

fn quantities_cover(live: &Value, desired: &Value) -> bool {
    let (Value::Object(live), Value::Object(desired)) = (live, desired) else { return live == desired };
    desired.iter().all(|(key, value)| live.get(key).is_some_and(|found| same_quantity(found, value)))
}

/// `1`, `"1"` and `"1000m"` are the same, and the API server writes one where the user wrote another.
fn same_quantity(a: &Value, b: &Value) -> bool {
    if a == b {
        return true;
    }
    match (quantity(a), quantity(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= a.abs() * 1e-9,
        _ => false,
    }
}

/// A quantity as <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/> has them.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    if let Ok(plain) = text.parse() {
        return Some(plain);
    }
    let digits = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, suffix) = text.split_at(digits);
    let factor: f64 = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_api_server_do_not_matter_and_changes_do() {
        let desired = json!({"a": {"b": 1}, "list": [{"name": "x"}], "empty": {}});
        assert!(covers(
            &json!({"a": {"b": 1, "c": 2}, "list": [{"name": "x", "policy": "Always"}]}),
            &desired
        ));
        assert!(!covers(&json!({"a": {"b": 2}, "list": [{"name": "x"}]}), &desired));
        assert!(!covers(&json!({"a": {"b": 1}, "list": [{"name": "x"}, {"name": "y"}]}), &desired));
        assert!(!covers(&json!({"a": {"b": 1}}), &desired));
    }

    #[test]
    fn what_is_left_blank_and_has_a_default_is_no_difference() {
        let live = json!({"imagePullPolicy": "IfNotPresent", "httpGet": {"path": "/", "port": 1}, "overhead": {"cpu": "1"}});
        let blank =
            json!({"imagePullPolicy": "", "httpGet": {"path": "", "port": 1}, "overhead": {"cpu": "1000m"}});
        assert!(covers(&live, &blank));
        assert!(!covers(&json!({"image": "app:1"}), &json!({"image": ""})));
    }

    #[test]
    fn quantities_are_compared_by_value() {
        let desired = json!({"limits": {"cpu": "1000m", "memory": "1024Mi"}});
        assert!(covers(&json!({"limits": {"cpu": "1", "memory": "1Gi"}}), &desired));
        assert!(covers(&json!({"limits": {"cpu": 1, "memory": "1Gi"}}), &desired));
        assert!(!covers(&json!({"limits": {"cpu": "2", "memory": "1Gi"}}), &desired));
    }

    #[test]
    fn what_the_api_server_leaves_out_is_no_difference_and_what_it_keeps_is_one() {
        let live = json!({"containers": [{"name": "app", "volumeMounts": [{"name": "data"}], "securityContext": {}}]});
        let desired = |mount, security| {
            json!({"hostNetwork": false, "containers": [{
                "name": "app", "tty": false, "volumeMounts": [mount], "securityContext": security,
            }]})
        };
        let mount = |read_only: bool| json!({"name": "data", "readOnly": read_only});
        assert!(covers(&live, &desired(mount(false), json!({}))));
        assert!(!covers(&live, &desired(mount(true), json!({}))));
        for security in [json!({"runAsUser": 0}), json!({"allowPrivilegeEscalation": false})] {
            assert!(!covers(&live, &desired(mount(false), security.clone())), "{security}");
        }
        let probe = |delay: u32| json!({"initialDelaySeconds": delay});
        assert!(covers(&json!({}), &probe(0)) && !covers(&json!({}), &probe(1)));
        assert!(!covers(&probe(5), &probe(0)), "a delay that went");
    }

    #[test]
    fn a_single_quantity_is_compared_by_value_too() {
        let volume = |limit: &str| json!({"emptyDir": {"sizeLimit": limit}});
        assert!(covers(&volume("1Gi"), &volume("1024Mi")));
        assert!(!covers(&volume("1Gi"), &volume("1Mi")));
    }

    #[test]
    fn what_is_empty_however_deep_is_no_difference_where_the_api_server_has_nothing() {
        let live = json!({"name": "app"});
        let desired =
            json!({"name": "app", "workingDir": "", "lifecycle": {"preStop": {}}, "env": [], "tty": null});
        assert!(covers(&live, &desired));
        for more in
            [json!({"name": "app", "env": [""]}), json!({"name": "app", "lifecycle": {"preStop": {"x": 1}}})]
        {
            assert!(!covers(&live, &more), "{more}");
        }
    }

    #[test]
    fn a_quantity_that_no_float_has_is_the_same_in_another_unit() {
        let limits = |cpu: &str| json!({"limits": {"cpu": cpu}});
        assert!(covers(&limits("700m"), &limits("0.7")) && covers(&limits("0.7"), &limits("700m")));
        assert!(!covers(&limits("700m"), &limits("0.7001")));
    }
}
