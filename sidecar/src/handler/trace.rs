//! W3C trace context (<https://www.w3.org/TR/trace-context/>): the message's own, or a new one.

use crate::message::Message;

/// The header that carries trace and parent ids.
pub const TRACEPARENT: &str = "traceparent";
/// The header that carries vendors' additions.
pub const TRACESTATE: &str = "tracestate";

/// A trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace, 32 hexadecimal digits.
    pub trace_id: String,
    /// The span that caused the message, 16 hexadecimal digits; none at the root.
    pub parent_id: Option<String>,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl Context {
    /// Parses a `traceparent` of version 00, or of a later version that begins like it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let zeros = |part: &str| part.bytes().all(|b| b == b'0');
        if !hex(version, 2) || version == "ff" || !hex(trace, 32) || !hex(parent, 16) || !hex(flags, 2) {
            return None;
        }
        if zeros(trace) || zeros(parent) || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        Some(Self { trace_id: trace.to_owned(), parent_id: Some(parent.to_owned()), sampled })
    }

    /// The message's context, if it has one.
    pub fn of(message: &Message) -> Option<Self> {
        message.header(TRACEPARENT).and_then(Self::parse)
    }

    /// A new trace, of which nobody has said yet that it is recorded.
    pub fn fresh() -> Self {
        Self { trace_id: format!("{:032x}", rand::random::<u128>().max(1)), parent_id: None, sampled: false }
    }

    /// The `traceparent` that names `span_id` as the parent.
    pub fn header(&self, span_id: &str) -> String {
        format!("00-{}-{span_id}-{:02x}", self.trace_id, u8::from(self.sampled))
    }
}

/// A new span id, 16 hexadecimal digits.
pub fn span_id() -> String {
    format!("{:016x}", rand::random::<u64>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_goes_on_with_a_new_parent() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!(
            context.header("00f067aa0ba902b7"),
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
        );
    }

    #[test]
    fn what_the_standard_forbids_is_no_trace() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }
}
