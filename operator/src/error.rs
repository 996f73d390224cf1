//! Errors of a reconcile: only what the API server does can fail one; everything else is a condition.

use std::time::Duration;

/// Why a reconcile has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// An object cannot be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// A stable name for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api(kube::Error::Api(status)) if status.code == 409 => "conflict",
            Self::Api(kube::Error::Api(status)) if status.code == 404 => "gone",
            Self::Api(kube::Error::Api(status)) if status.code == 403 => "forbidden",
            Self::Api(kube::Error::Api(_)) => "refused",
            Self::Api(_) => "unreachable",
            Self::Json(_) => "json",
        }
    }
}

/// How long to wait before attempt `attempt` + 1; `jitter` is random in 0..1.
pub fn retry_delay(attempt: u32, jitter: f64) -> Duration {
    let seconds = 0.5 * f64::from(1_u32 << attempt.min(7));
    Duration::from_secs_f64(seconds.min(60.0) * jitter.mul_add(0.5, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_up_to_a_minute() {
        assert!(retry_delay(0, 1.0) <= Duration::from_millis(500));
        assert_eq!(retry_delay(30, 1.0), Duration::from_secs(60));
        assert!(retry_delay(30, 0.0) >= Duration::from_secs(30));
    }

    #[test]
    fn retries_of_many_do_not_come_at_one_moment() {
        assert_eq!(retry_delay(30, 0.0), Duration::from_secs(30));
        assert!(retry_delay(0, 0.0) < retry_delay(0, 0.5) && retry_delay(0, 0.5) < retry_delay(0, 1.0));
    }

    #[test]
    fn an_answer_of_the_api_server_is_counted_by_what_it_means() {
        let answered = |code| {
            let status =
                serde_json::json!({"status": "Failure", "reason": "R", "message": "m", "code": code});
            Error::from(kube::Error::Api(serde_json::from_value(status).unwrap())).category()
        };
        assert_eq!([409, 404, 403, 422].map(answered), ["conflict", "gone", "forbidden", "refused"]);
        assert_eq!(Error::from(kube::Error::Service("timed out".into())).category(), "unreachable");
    }
}
