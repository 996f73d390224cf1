//! Which of the messages in flight on a channel the broker gave back. Pure.
//!
//! The broker says `basic.return` before it confirms an unroutable message, but confirms others in between, and many at once
//! in no order. The library keeps returned messages in a queue and hands the first one to whichever confirm comes next, so that
//! a confirm may carry another message's return. Here each return finds its own message again.
//!
//! What this rests on: returns come in the order of publishing, each before the confirm of its message
//! (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>), and each confirm takes one return if there is any.
//! So a confirm is that of a stored message as soon as every earlier return is known to have been taken by somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};

use warren_broker::lapin::types::ShortString;

/// What tells a message from others. Two that are equal in all of it may stand for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The exchange.
    pub exchange: ShortString,
    /// The routing key.
    pub routing_key: ShortString,
    /// The message's id.
    pub message_id: Option<ShortString>,
    /// The payload's length in bytes.
    pub length: usize,
    /// A hash of the payload, which itself need not be kept until the confirm.
    pub digest: u64,
}

impl Identity {
    /// That of a message.
    pub fn of(
        exchange: ShortString,
        routing_key: ShortString,
        message_id: Option<ShortString>,
        body: &[u8],
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(body);
        Self { exchange, routing_key, message_id, length: body.len(), digest: hasher.finish() }
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every queue that it was routed to has it.
    Stored,
    /// No queue took it.
    Unroutable,
    /// A queue refused it.
    Refused,
}

/// A return of a message that nobody has sent: nothing that the channel says can be told apart any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strange;

#[derive(Debug)]
struct Entry {
    identity: Identity,
    returned: bool,
    confirm: Option<Confirm>,
}

#[derive(Clone, Copy, Debug)]
struct Confirm {
    acked: bool,
    /// Whether it took a return, so that its own may have been behind that.
    took: bool,
    /// Whether it was known before the last look.
    old: bool,
}

/// The messages in flight on one channel, by the order in which they were sent.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Entry>,
    /// Of these, the ones that are confirmed and wait until their fate is certain. A queue that confirms nothing may hold many
    /// others for long, which are not looked at.
    confirmed: BTreeSet<u64>,
    sent: u64,
    /// Messages before this one are not given back any more: a later one was.
    returned_up_to: u64,
    /// Whether a confirm since the last look found no return waiting.
    none_waited: bool,
}

impl Ledger {
    /// Notes that a message was sent; gives its number.
    pub fn sent(&mut self, identity: Identity) -> u64 {
        self.sent += 1;
        self.entries.insert(self.sent, Entry { identity, returned: false, confirm: None });
        self.sent
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes the confirm of a message, with the return that it took.
    ///
    /// # Errors
    /// If that return is of no message in flight.
    pub fn confirmed(&mut self, number: u64, acked: bool, took: Option<&Identity>) -> Result<(), Strange> {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.confirm = Some(Confirm { acked, took: took.is_some(), old: false });
            self.confirmed.insert(number);
        }
        let Some(identity) = took else {
            self.none_waited = true;
            return Ok(());
        };
        let owner = self.entries.iter_mut().find(|(_, entry)| !entry.returned && entry.identity == *identity);
        let (number, entry) = owner.ok_or(Strange)?;
        entry.returned = true;
        self.returned_up_to = self.returned_up_to.max(*number);
        Ok(())
    }

    /// What is certain by now. Called when every confirm that came before any noted one is noted too.
    pub fn decide(&mut self) -> Vec<(u64, Verdict)> {
        let all_confirmed = self.confirmed.len() == self.entries.len();
        let mut certain = Vec::new();
        for number in &self.confirmed {
            let Some(entry) = self.entries.get_mut(number) else { continue };
            let Some(confirm) = &mut entry.confirm else { continue };
            let own_would_be_known = !confirm.took
                || *number < self.returned_up_to
                || (confirm.old && self.none_waited)
                || all_confirmed;
            confirm.old = true;
            match (entry.returned, confirm.acked) {
                (true, _) => certain.push((*number, Verdict::Unroutable)),
                (false, false) => certain.push((*number, Verdict::Refused)),
                (false, true) if own_would_be_known => certain.push((*number, Verdict::Stored)),
                (false, true) => {}
            }
        }
        self.none_waited = false;
        for (number, _) in &certain {
            self.entries.remove(number);
            self.confirmed.remove(number);
        }
        certain
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn identity(name: u64) -> Identity {
        let id = ShortString::try_new(name.to_string()).ok();
        Identity::of(ShortString::default(), "orders".into(), id, b"body")
    }

    #[test]
    fn messages_that_differ_in_their_payload_alone_are_told_apart() {
        let of = |body: &[u8]| Identity::of("".into(), "orders".into(), None, body);
        assert!(of(b"one") == of(b"one") && of(b"one") != of(b"two") && of(b"") != of(b"\0"));
    }

    #[test]
    fn what_a_queue_does_not_confirm_holds_up_no_verdict_on_others() {
        let mut ledger = Ledger::default();
        let stuck: Vec<u64> = (1..=3).map(|name| ledger.sent(identity(name))).collect();
        for name in 4..9 {
            let number = ledger.sent(identity(name));
            ledger.confirmed(number, true, None).unwrap();
            assert_eq!(ledger.decide(), [(number, Verdict::Stored)]);
        }
        assert_eq!(ledger.len(), stuck.len());
        for number in stuck {
            ledger.confirmed(number, false, None).unwrap();
            assert_eq!(ledger.decide(), [(number, Verdict::Refused)]);
        }
    }

    #[test]
    fn a_return_that_another_confirm_took_finds_its_own_message() {
        let mut ledger = Ledger::default();
        let (stored, lost) = (ledger.sent(identity(1)), ledger.sent(identity(2)));
        ledger.confirmed(stored, true, Some(&identity(2))).unwrap();
        ledger.confirmed(lost, true, None).unwrap();
        assert_eq!(ledger.decide(), [(stored, Verdict::Stored), (lost, Verdict::Unroutable)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_confirm_that_took_an_earlier_return_waits_until_its_own_can_be_known() {
        let mut ledger = Ledger::default();
        let (first, second, third) =
            (ledger.sent(identity(1)), ledger.sent(identity(2)), ledger.sent(identity(3)));
        ledger.confirmed(second, true, Some(&identity(1))).unwrap();
        assert_eq!(ledger.decide(), []);
        ledger.confirmed(first, true, Some(&identity(2))).unwrap();
        assert_eq!(ledger.decide(), [(first, Verdict::Unroutable), (second, Verdict::Unroutable)]);
        ledger.confirmed(third, false, None).unwrap();
        assert_eq!(ledger.decide(), [(third, Verdict::Refused)]);
    }

    #[test]
    fn a_return_of_nobody_is_strange() {
        let mut ledger = Ledger::default();
        let only = ledger.sent(identity(1));
        assert_eq!(ledger.confirmed(only, true, Some(&identity(7))), Err(Strange));
    }

    /// The broker and the library: returns in order, confirms in any order, looks at any time, and between two looks
    /// confirms are noted in the wrong order.
    fn verdicts(routable: &[bool], steps: &[(usize, bool)]) -> HashMap<u64, Verdict> {
        let (mut ledger, mut waiting, mut verdicts) = (Ledger::default(), VecDeque::new(), HashMap::new());
        let (mut open, mut confirmed) = (Vec::new(), Vec::new());
        let mut to_send = routable.iter().zip(1..).peekable();
        let mut look = |ledger: &mut Ledger, confirmed: &mut Vec<(u64, Option<u64>)>| {
            for (number, took) in confirmed.drain(..).rev() {
                ledger.confirmed(number, true, took.map(identity).as_ref()).unwrap();
            }
            verdicts.extend(ledger.decide());
        };
        for (choice, looks) in steps {
            match to_send.next_if(|_| choice % 3 != 0 || open.is_empty()) {
                Some((routable, name)) => {
                    open.push(ledger.sent(identity(name)));
                    if !routable {
                        waiting.push_back(name);
                    }
                }
                None if !open.is_empty() => {
                    confirmed.push((open.remove(choice % open.len()), waiting.pop_front()));
                }
                None => {}
            }
            if *looks {
                look(&mut ledger, &mut confirmed);
            }
        }
        while let Some(number) = open.pop() {
            confirmed.push((number, waiting.pop_front()));
        }
        look(&mut ledger, &mut confirmed);
        assert!(ledger.is_empty(), "with everything confirmed, everything is certain");
        verdicts
    }

    proptest! {
        #[test]
        fn each_message_gets_its_own_verdict_in_whatever_order_confirms_come(
            routable in prop::collection::vec(any::<bool>(), 1..40),
            steps in prop::collection::vec((0_usize..1000, any::<bool>()), 1..120),
        ) {
            for (number, verdict) in verdicts(&routable, &steps) {
                let stored = routable[usize::try_from(number).unwrap() - 1];
                prop_assert_eq!(verdict, if stored { Verdict::Stored } else { Verdict::Unroutable });
            }
        }
    }
}
