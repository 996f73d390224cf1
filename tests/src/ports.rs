//! Ports for the cluster and the brokers.
//!
//! They are taken from 20000 to 29999: below the range from which the kernel takes the local ports of outgoing
//! connections, so that a broker which restarts finds its port free, and below the range of NodePorts.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// `preferred` if nothing listens there, else another port.
pub fn prefer(preferred: u16) -> Result<u16> {
    if is_free(preferred) { Ok(preferred) } else { free() }
}

/// A port on which nothing listens, different at each call.
pub fn free() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that ask at the same time begin at places far apart, since neither holds what it was given yet.
    let origin = std::process::id().wrapping_mul(997);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = origin.wrapping_add(u32::from(step)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset)?;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + COUNT - 1)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_asked_for_in_turn_differ() {
        assert_ne!(free().unwrap(), free().unwrap());
    }

    #[test]
    fn a_taken_port_is_replaced() {
        let port = free().unwrap();
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        assert_ne!(prefer(port).unwrap(), port);
    }
}
