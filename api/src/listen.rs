//! Where a server listens, and how many connections it has room for. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

/// Addresses to try in order: `address`, and, where that is all of IPv6 (and with it IPv4), all of IPv4 alone, for a node without
/// IPv6.
pub fn addresses(address: SocketAddr) -> [SocketAddr; 2] {
    let all = address.ip().is_unspecified();
    [address, if all { (Ipv4Addr::UNSPECIFIED, address.port()).into() } else { address }]
}

/// The connections of a server, with `T` each, that has room for so many. Where there are more, the one goes that has been
/// without a request for longest: who has asked is answered, and who comes to ask, such as a probe, is let in.
#[derive(Debug)]
pub struct Places<T> {
    most: usize,
    last: u64,
    silent: VecDeque<(u64, T)>,
    asking: BTreeMap<u64, T>,
}

impl<T> Places<T> {
    /// Room for so many.
    pub fn new(most: usize) -> Self {
        Self { most, last: 0, silent: VecDeque::new(), asking: BTreeMap::new() }
    }

    /// Lets a connection in: its number, and what goes for it. None: all that are here wait for an answer.
    pub fn enter(&mut self, it: T) -> Option<(u64, Option<T>)> {
        let full = self.silent.len() + self.asking.len() >= self.most;
        let gone = if full { Some(self.silent.pop_front()?.1) } else { None };
        self.last += 1;
        self.silent.push_back((self.last, it));
        Some((self.last, gone))
    }

    /// A connection has a request. One that has just been told to go may come here, too.
    pub fn asks(&mut self, number: u64) {
        if let Some(it) = self.take_silent(number) {
            self.asking.insert(number, it);
        }
    }

    /// Its request has its answer, or nobody waits for one.
    pub fn answered(&mut self, number: u64) {
        if let Some(it) = self.asking.remove(&number) {
            self.silent.push_back((number, it));
        }
    }

    /// A connection has ended.
    pub fn leave(&mut self, number: u64) {
        self.asking.remove(&number);
        self.take_silent(number);
    }

    fn take_silent(&mut self, number: u64) -> Option<T> {
        let at = self.silent.iter().position(|(other, _)| *other == number)?;
        self.silent.remove(at).map(|(_, it)| it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_ipv6_falls_back_to_all_of_ipv4_and_nothing_else_does() {
        let tried = |address: &str| addresses(address.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(tried("[::]:80"), ["[::]:80", "0.0.0.0:80"]);
        assert_eq!(tried("127.0.0.1:80"), ["127.0.0.1:80", "127.0.0.1:80"]);
    }

    #[test]
    fn where_there_is_no_room_the_connection_goes_that_has_not_asked_for_longest() {
        let mut places = Places::new(3);
        let enter = |places: &mut Places<_>, name| places.enter(name).map(|(_, gone)| gone);
        for name in ["drain", "probe", "silent"] {
            assert_eq!(enter(&mut places, name), Some(None));
        }
        places.asks(1);
        places.asks(2);
        places.answered(2);
        assert_eq!(enter(&mut places, "scrape"), Some(Some("silent")));
        places.asks(3);
        assert_eq!(enter(&mut places, "other"), Some(Some("probe")), "it has had its answer");
        places.leave(4);
        assert_eq!(enter(&mut places, "next"), Some(None));
    }

    #[test]
    fn nobody_who_waits_for_an_answer_goes_for_a_newcomer() {
        let mut places = Places::new(2);
        for number in 1..=2 {
            places.enter(());
            places.asks(number);
        }
        assert_eq!(places.enter(()), None);
        places.answered(1);
        assert_eq!(places.enter(()), Some((3, Some(()))));
        places.leave(2);
        assert_eq!(places.enter(()), Some((4, None)));
    }
}
