//! Hands out loopback addresses that nobody else listens on.
//!
//! All of 127.0.0.0/8 is this machine, so each listener gets an address instead of a port. Unlike a port that was
//! free a moment ago, it is still free when the program binds it, and again when the program is restarted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

/// Addresses handed out by this process; a process starts a handful of programs, never 250.
static NEXT: AtomicU8 = AtomicU8::new(1);

/// An address of this process's own, with a port of the caller's choice.
///
/// The middle of the address is the process id, so that tests running beside each other differ.
#[must_use]
pub fn own(port: u16) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // 127.0.0.x is where people's own services listen: keep off it.
    let high = high.max(1);
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high, low, last)), port)
}

/// Below these the system hands no port out to whoever connects; above, services of people's own are rare.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A port that is free on every address, for a program that listens on all of them whatever it is told.
///
/// Free it is again when this returns. Each process begins to look at another one, so that it stays so.
pub fn own_port() -> std::io::Result<u16> {
    let [.., high, low] = std::process::id().to_be_bytes();
    // Four a process, for five thousand of them.
    let process = u16::from_be_bytes([high, low]) % 5_000;
    let first = PORTS.start + 4 * process + u16::from(NEXT.fetch_add(1, Ordering::Relaxed)) % 4;
    let free = |port: &u16| std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, *port)).is_ok();
    let found = (first..PORTS.end).chain(PORTS.start..first).find(free);
    found.ok_or_else(|| std::io::Error::other("every port is taken"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_addresses_of_one_process_differ_and_are_on_the_loopback_network() {
        let (a, b) = (super::own(1883), super::own(1883));
        assert_ne!(a, b);
        assert!(a.ip().is_loopback() && b.ip().is_loopback());
    }
}
