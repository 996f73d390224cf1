//! Where a server listens. Pure.

use std::net::{Ipv4Addr, SocketAddr};

/// Addresses to try in order: `address`, and, where that is all of IPv6 (and with it IPv4), all of IPv4 alone, for a node without
/// IPv6.
pub fn addresses(address: SocketAddr) -> [SocketAddr; 2] {
    let all = address.ip().is_unspecified();
    [address, if all { (Ipv4Addr::UNSPECIFIED, address.port()).into() } else { address }]
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
}
