//! What the application's answer means: DESIGN's table of statuses, without I/O.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde::de::value::{Error as Unknown, StrDeserializer};
use warren_api::headers as names;

use crate::copy::cut;
use crate::core::{DeadReason, Failure, Verdict};

/// How much of a body is kept as the text of why a message failed.
pub const EXCERPT: usize = 512;

/// The verdict of an answer. `body` is the beginning of its body; `wall` the wall clock, for a `Retry-After` that is a date.
pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], wall: SystemTime) -> Verdict {
    let after = retry_after_of(headers, wall);
    let said = match headers.get(names::OUTCOME).map(|value| value.to_str().unwrap_or("not text").trim()) {
        None => Ok(by_status(status)),
        Some("later") if status != 202 => {
            Err(format!("warren-outcome: later needs status 202, the handler answered {status}"))
        }
        Some(word) => Said::named(word)
            .ok_or_else(|| format!("the handler answered an unknown warren-outcome, \"{}\"", cut(word, 40))),
    };
    match said {
        Ok(said) => {
            said.verdict(status, after, || reason_of(headers).unwrap_or_else(|| describe(status, body)))
        }
        Err(problem) => Said::Retry.verdict(status, after, || problem),
    }
}

/// An answer in one word, for a call or for one message of a batch.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// Done.
    Ack,
    /// Not done: try again.
    Retry,
    /// Never going to work.
    DeadLetter,
    /// It ends later by `/deliveries/{id}`.
    Later,
    /// Too much at present. A status says so, and no word.
    #[serde(skip)]
    NotNow,
}

impl Said {
    fn named(word: &str) -> Option<Self> {
        Self::deserialize(StrDeserializer::<Unknown>::new(word)).ok()
    }

    /// What it comes to. `status` is that of the whole answer, `after` when to try again, `detail` why, for people.
    pub fn verdict(self, status: u16, after: Option<Duration>, detail: impl FnOnce() -> String) -> Verdict {
        match self {
            Self::Ack => Verdict::Ack,
            Self::Later => Verdict::Later,
            Self::NotNow => Verdict::NotNow { after, status },
            Self::Retry => Verdict::Retry(Failure { status: Some(status), after, detail: detail() }),
            Self::DeadLetter => Verdict::DeadLetter { reason: DeadReason::Rejected, detail: detail() },
        }
    }
}

fn by_status(status: u16) -> Said {
    match status {
        200..=299 => Said::Ack,
        400 | 410 | 413 | 415 | 422 => Said::DeadLetter,
        429 | 503 => Said::NotNow,
        _ => Said::Retry,
    }
}

/// Status and the beginning of the body, as text.
fn describe(status: u16, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body.get(..body.len().min(EXCERPT)).unwrap_or_default());
    let body = body.trim();
    if body.is_empty() {
        format!("the handler answered {status}")
    } else {
        format!("the handler answered {status}: {body}")
    }
}

/// The `warren-reason` of an answer or request: UTF-8, or Latin-1, which is what many servers make of text in headers.
pub fn reason_of(headers: &HeaderMap) -> Option<String> {
    let bytes = headers.get(names::REASON)?.as_bytes();
    let latin = || bytes.iter().copied().map(char::from).collect();
    let reason = std::str::from_utf8(bytes).map_or_else(|_| latin(), str::to_owned);
    Some(cut(&reason, EXCERPT).to_owned())
}

/// The `Retry-After` of an answer or request.
pub fn retry_after_of(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, wall)
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str, wall: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    // So many seconds that no number holds them are longer than any delay.
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(u64::from(u32::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(wall).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn answer(status: u16, pairs: &[(&'static str, &str)]) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        classify(status, &headers, b"why", SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    fn is_retry(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Retry(_))
    }

    #[test]
    fn a_2xx_acks() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(answer(status, &[]), Verdict::Ack);
        }
    }

    #[test]
    fn a_400_410_413_415_422_dead_letters_at_once_with_the_reason() {
        for status in [400, 410, 413, 415, 422] {
            assert_eq!(
                answer(status, &[]),
                Verdict::DeadLetter {
                    reason: DeadReason::Rejected,
                    detail: format!("the handler answered {status}: why")
                }
            );
        }
    }

    #[test]
    fn a_5xx_408_425_any_other_4xx_and_1xx_3xx_go_to_the_ladder() {
        for status in
            [500, 501, 502, 504, 599, 408, 425, 401, 403, 404, 405, 409, 418, 431, 100, 103, 301, 304, 307]
        {
            assert!(is_retry(&answer(status, &[])), "{status}");
        }
    }

    #[test]
    fn a_429_or_503_is_not_now() {
        assert_eq!(answer(429, &[]), Verdict::NotNow { after: None, status: 429 });
        let after = Some(Duration::from_secs(7));
        assert_eq!(answer(503, &[("retry-after", "7")]), Verdict::NotNow { after, status: 503 });
    }

    #[test]
    fn warren_outcome_overrides_the_status() {
        assert_eq!(answer(500, &[("warren-outcome", "ack")]), Verdict::Ack);
        assert!(is_retry(&answer(200, &[("warren-outcome", "retry")])));
        assert_eq!(
            answer(200, &[("warren-outcome", "dead-letter"), ("warren-reason", "no such customer")]),
            Verdict::DeadLetter { reason: DeadReason::Rejected, detail: "no such customer".to_owned() }
        );
        assert_eq!(answer(202, &[("warren-outcome", "later")]), Verdict::Later);
    }

    #[test]
    fn a_reason_beyond_ascii_is_kept_in_utf_8_and_in_latin_1() {
        let euro = "5 \u{20ac}";
        for (sent, kept) in [(euro.as_bytes(), euro), (&b"f\xfcr 5%"[..], "f\u{fc}r 5%")] {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(names::REASON),
                HeaderValue::from_bytes(sent).unwrap(),
            )]);
            assert_eq!(reason_of(&headers).as_deref(), Some(kept));
            let detail = kept.to_owned();
            let verdict = classify(422, &headers, b"", SystemTime::UNIX_EPOCH);
            assert_eq!(verdict, Verdict::DeadLetter { reason: DeadReason::Rejected, detail });
        }
    }

    #[test]
    fn an_outcome_that_means_nothing_never_acks() {
        assert!(is_retry(&answer(200, &[("warren-outcome", "perhaps")])));
        assert!(is_retry(&answer(200, &[("warren-outcome", "not-now")])));
        assert!(is_retry(&answer(200, &[("warren-outcome", "later")])));
    }

    #[test]
    fn retry_after_may_be_seconds_or_a_date() {
        let Verdict::Retry(failure) = answer(500, &[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")]) else {
            panic!()
        };
        assert_eq!(failure.after, Some(Duration::from_secs(60)));
        for many in ["4294967296", "99999999999999999999"] {
            let Verdict::Retry(failure) = answer(500, &[("retry-after", many)]) else { panic!() };
            assert_eq!(failure.after, Some(Duration::from_secs(u64::from(u32::MAX))));
        }
        let Verdict::Retry(failure) = answer(500, &[("retry-after", "soon")]) else { panic!() };
        assert_eq!(failure.after, None);
    }

    #[test]
    fn a_date_that_is_past_asks_for_no_pause_and_a_huge_answer_is_kept_in_part() {
        let past = [("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")];
        assert_eq!(answer(503, &past), Verdict::NotNow { after: Some(Duration::ZERO), status: 503 });
        let Verdict::Retry(failure) =
            classify(500, &HeaderMap::new(), &[b'x'; EXCERPT * 2], SystemTime::UNIX_EPOCH)
        else {
            panic!()
        };
        assert!(failure.detail.len() < EXCERPT + 50, "{}", failure.detail.len());
    }

    #[test]
    fn an_outcome_that_is_no_text_never_acks_and_one_with_spaces_counts() {
        let said = |bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(names::OUTCOME, HeaderValue::from_bytes(bytes).unwrap());
            classify(200, &headers, b"", SystemTime::UNIX_EPOCH)
        };
        assert!(is_retry(&said(b"\xff")));
        assert_eq!(said(b"ack "), Verdict::Ack);
    }
}
