//! Conditions as `metav1.Condition` has them; the time of a transition is kept while the status stays.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;
use serde_json::{Value, json};

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is not known yet.
    Unknown,
}

impl Status {
    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What is to be said, before times are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The condition's type.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Status,
    /// CamelCase, for programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Statement {
    /// A statement.
    pub fn new(
        kind: &'static str,
        status: impl Into<Status>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status: status.into(), reason: reason.into(), message: message.into() }
    }

    /// A former condition as it was.
    pub fn of(kind: &'static str, before: &Condition) -> Self {
        let status = match before.status.as_str() {
            "True" => Status::True,
            "False" => Status::False,
            _ => Status::Unknown,
        };
        Self::new(kind, status, before.reason.clone(), before.message.clone())
    }
}

/// The conditions that `statements` make of the former ones. Types that are not stated any more go.
pub fn conditions(
    former: &[Condition],
    statements: Vec<Statement>,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    statements
        .into_iter()
        .map(|Statement { kind, status, reason, message }| {
            let since = former
                .iter()
                .find(|c| c.type_ == kind && c.status == status.as_str())
                .map_or_else(|| now.clone(), |c| c.last_transition_time.clone());
            Condition {
                type_: kind.to_owned(),
                status: status.as_str().to_owned(),
                reason,
                message,
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// Whether a condition is True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

/// Whether a condition is False.
pub fn is_false(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "False")
}

/// A condition by its type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether a condition says something else than it did before, its words apart.
pub fn is_news(former: Option<&Condition>, now: &Condition) -> bool {
    former.is_none_or(|former| (&former.status, &former.reason) != (&now.status, &now.reason))
}

/// The merge patch that turns one status into another; none where they are equal.
///
/// # Errors
/// A status that is no JSON object.
pub fn status_patch<S: Serialize + PartialEq>(
    former: Option<&S>,
    status: &S,
) -> Result<Option<Value>, serde_json::Error> {
    if former == Some(status) {
        return Ok(None);
    }
    let mut patch = serde_json::to_value(status)?;
    if let Some(former) = former {
        clear_missing(&serde_json::to_value(former)?, &mut patch);
    }
    Ok(Some(json!({"status": patch})))
}

/// Has a merge patch remove what was there and is not any more, see RFC 7396.
fn clear_missing(former: &Value, patch: &mut Value) {
    let (Value::Object(former), Value::Object(patch)) = (former, patch) else { return };
    for (field, before) in former {
        match patch.get_mut(field) {
            Some(next) => clear_missing(before, next),
            None => _ = patch.insert(field.clone(), Value::Null),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use warren_api::QueueStatus;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn what_is_not_there_any_more_is_removed_at_every_depth() {
        let former = json!({"a": 1, "of": {"kept": 1, "gone": 2}, "list": [1], "whole": {"x": 1}});
        let next = json!({"of": {"kept": 3}, "list": []});
        let patch = status_patch(Some(&former), &next).unwrap();
        let expected = json!({"a": null, "of": {"kept": 3, "gone": null}, "list": [], "whole": null});
        assert_eq!(patch, Some(json!({"status": expected})));
    }

    #[test]
    fn the_time_of_a_transition_is_kept_while_the_status_stays() {
        let first = conditions(&[], vec![Statement::new("Ready", false, "A", "a")], Some(1), &at(1));
        let second = conditions(&first, vec![Statement::new("Ready", false, "B", "b")], Some(2), &at(2));
        assert_eq!((second[0].last_transition_time.clone(), second[0].reason.as_str()), (at(1), "B"));
        let third = conditions(&second, vec![Statement::new("Ready", true, "C", "c")], Some(2), &at(3));
        assert_eq!(third[0].last_transition_time, at(3));
    }

    #[test]
    fn an_equal_status_is_not_written_and_a_field_that_went_is_nulled() {
        let status = QueueStatus { broker_address: Some("amqp://a".to_owned()), ..QueueStatus::default() };
        assert_eq!(status_patch(Some(&status), &status).unwrap(), None);
        let patch = status_patch(Some(&status), &QueueStatus::default()).unwrap().unwrap();
        assert_eq!(patch["status"]["brokerAddress"], Value::Null);
    }

    #[test]
    fn what_is_not_known_is_not_true() {
        let said = [Status::True, Status::False, Status::Unknown].map(|status| {
            let all = conditions(&[], vec![Statement::new("Ready", status, "R", "m")], None, &at(1));
            (is_true(&all, "Ready"), is_true(&all, "Declared"))
        });
        assert_eq!(said, [(true, false), (false, false), (false, false)]);
    }
}
