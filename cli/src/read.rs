//! What was read, or why not, as a sentence for people. Pure.

use kube::core::Status;

/// What kube gives as the reason of an answer that is no Status of the API server.
const UNPARSED: &str = "Failed to parse error data";

/// A thing read, or why not.
pub type Read<T> = Result<T, String>;

/// An error with its causes, each said once; of the API server's answers their message alone.
pub fn said(error: impl Into<anyhow::Error>) -> String {
    let error: anyhow::Error = error.into();
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = match cause.downcast_ref() {
            Some(kube::Error::Api(status)) => {
                parts.push(answered(status));
                break;
            }
            Some(kube::Error::Service(_) | kube::Error::HyperError(_)) => {
                "the API server cannot be reached".to_owned()
            }
            _ => cause.to_string(),
        };
        // Many an error says its cause, too.
        if !parts.last().is_some_and(|last| last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

fn answered(status: &Status) -> String {
    match (status.reason.as_str(), status.code) {
        (UNPARSED, 404) => {
            "the API server knows no such resource: Warren's definitions are not installed, see kubectl warren doctor".to_owned()
        }
        // A page of a proxy between, maybe.
        (UNPARSED, code) => {
            let line = status.message.lines().next().unwrap_or_default();
            format!("the API server answered {code}: {line}")
        }
        (_, code) if status.message.is_empty() => format!("the API server answered {code}"),
        _ => status.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn api(message: &str, reason: &str, code: u16) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn an_answer_of_the_api_server_is_its_message_said_once() {
        let refused = || api("pods is forbidden: User \"jane\" cannot list resource", "Forbidden", 403);
        assert_eq!(said(refused()), "pods is forbidden: User \"jane\" cannot list resource");
        let listing = Err::<(), _>(refused()).context("list pods").unwrap_err();
        assert_eq!(said(listing), "list pods: pods is forbidden: User \"jane\" cannot list resource");
        assert_eq!(said(api("", "", 500)), "the API server answered 500");
    }

    #[test]
    fn definitions_that_are_not_installed_are_named_as_such() {
        let text = said(api("404 page not found", UNPARSED, 404));
        assert!(text.contains("definitions are not installed, see kubectl warren doctor"), "{text}");
        assert_eq!(said(api("<html>\n<body>", UNPARSED, 502)), "the API server answered 502: <html>");
    }

    #[test]
    fn a_server_that_cannot_be_reached_is_said_with_the_cause() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let text = said(kube::Error::Service(refused.into()));
        assert_eq!(text, "the API server cannot be reached: connection refused");
    }

    #[test]
    fn a_cause_that_its_error_says_already_is_not_said_again() {
        let number = "x".parse::<u8>().unwrap_err();
        let text = number.to_string();
        let error = anyhow::Error::new(number).context(format!("line 3: {text}"));
        assert_eq!(said(error), format!("line 3: {text}"));
    }
}
