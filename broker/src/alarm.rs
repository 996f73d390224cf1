//! What a broker says of the publishes that it does not read, taken in at a bounded rate: a peer may say it without end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::Event;

/// How long is counted, and how often a change is logged at most.
const WINDOW: Duration = Duration::from_secs(1);
/// More events than a broker has reason to send in that time.
const MOST: u32 = 100;

/// What an event means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing new.
    Nothing,
    /// Publishes are no longer read, for this reason, or are read again.
    Changed {
        /// Why not, while they are not.
        blocked: Option<Arc<str>>,
        /// Whether it is logged.
        log: bool,
    },
    /// The peer is not to be listened to any longer.
    TooMuch,
}

/// What was heard on a connection so far.
#[derive(Debug)]
pub struct Alarm {
    blocked: Option<Arc<str>>,
    since: Instant,
    heard: u32,
    logged: Option<Instant>,
}

impl Alarm {
    /// Nothing was heard yet.
    pub fn new(now: Instant) -> Self {
        Self { blocked: None, since: now, heard: 0, logged: None }
    }

    /// Takes an event in.
    pub fn hear(&mut self, event: Event, now: Instant) -> Heard {
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.heard) = (now, 0);
        }
        self.heard += 1;
        if self.heard > MOST {
            return Heard::TooMuch;
        }
        let blocked = match event {
            Event::ConnectionBlocked(reason) => Some(Arc::from(reason)),
            Event::ConnectionUnblocked => None,
            // Flow is the library's business; later kinds of event change nothing here.
            _ => return Heard::Nothing,
        };
        if blocked == self.blocked {
            return Heard::Nothing;
        }
        self.blocked.clone_from(&blocked);
        let log = self.logged.is_none_or(|logged| now.duration_since(logged) >= WINDOW);
        if log {
            self.logged = Some(now);
        }
        Heard::Changed { blocked, log }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(reason: &str) -> Event {
        Event::ConnectionBlocked(reason.to_owned())
    }

    #[test]
    fn only_a_change_is_told_and_logged_once_a_second() {
        let start = Instant::now();
        let mut alarm = Alarm::new(start);
        let changed = |reason: Option<&str>, log| Heard::Changed { blocked: reason.map(Arc::from), log };
        assert_eq!(alarm.hear(Event::ConnectionUnblocked, start), Heard::Nothing);
        assert_eq!(alarm.hear(blocked("memory"), start), changed(Some("memory"), true));
        assert_eq!(alarm.hear(blocked("memory"), start), Heard::Nothing);
        assert_eq!(alarm.hear(blocked("disk"), start), changed(Some("disk"), false));
        assert_eq!(alarm.hear(Event::ConnectionUnblocked, start + WINDOW), changed(None, true));
    }

    #[test]
    fn a_peer_that_says_more_than_a_broker_would_is_given_up_and_one_that_says_it_slowly_is_not() {
        let start = Instant::now();
        let mut alarm = Alarm::new(start);
        let heard: Vec<_> = (0..=MOST).map(|_| alarm.hear(Event::SendFlow(true), start)).collect();
        assert_eq!(heard.iter().position(|heard| *heard == Heard::TooMuch), Some(MOST as usize));
        let mut alarm = Alarm::new(start);
        for second in 0..MOST * 3 {
            let now = start + WINDOW / 2 * second;
            assert_ne!(alarm.hear(blocked("memory"), now), Heard::TooMuch);
        }
    }
}
