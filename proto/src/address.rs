//! Reads `host`, `host:port`, `[v6]` and `[v6]:port`, as every address of a server is written.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};

/// Splits an address. The error says what is wrong with it, as a part of a sentence.
pub fn host_and_port(authority: &str, default_port: u16) -> Result<(String, u16), &'static str> {
    if authority.contains('@') {
        return Err("it has a user or password in it, which would end up in logs; give them in their own fields");
    }
    if authority.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it has a space or control character in it");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or("its `[` has no `]`")?;
            // An interface may follow a link-local address.
            let address = host.split_once('%').map_or(host, |(address, _)| address);
            address.parse::<Ipv6Addr>().map_err(|_| "its brackets hold no IPv6 address")?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':').ok_or("a colon is missing between `]` and the port")?)),
            }
        }
        None if authority.matches(':').count() > 1 => {
            return Err("an IPv6 address needs brackets, as in [::1]:1883");
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            check_name(host)?;
            (host, port)
        }
    };
    let port = match port {
        None => default_port,
        Some(port) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => {
            port.parse().map_err(|_| "its port is above 65535")?
        }
        Some(_) => return Err("its port is no number"),
    };
    if port == 0 { Err("port 0 is none") } else { Ok((host.to_owned(), port)) }
}

fn check_name(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("it names no host");
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        return Err("its host has a character that no host name has");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.split('.').any(str::is_empty) {
        return Err("its host has an empty part between dots");
    }
    // No top-level domain is a number, so this is meant for an address.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && name.parse::<Ipv4Addr>().is_err() {
        return Err("its host is no IPv4 address and no name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_meant_is_refused() {
        for (text, host, port) in [
            ("b", "b", 1883),
            ("b.example.", "b.example.", 1883),
            ("my_broker-1:8883", "my_broker-1", 8883),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("[::1]", "::1", 1883),
            ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
            ("3com.example:80", "3com.example", 80),
        ] {
            assert_eq!(host_and_port(text, 1883), Ok((host.to_owned(), port)), "{text}");
        }
        for (text, why) in [
            ("", "no host"),
            (":1883", "no host"),
            ("[::1]23883", "colon is missing"),
            ("[::1]garbage", "colon is missing"),
            ("[::1", "no `]`"),
            ("[b]:1883", "no IPv6"),
            ("[]:1883", "no IPv6"),
            ("::1", "needs brackets"),
            ("b:1:2", "needs brackets"),
            ("b:0", "port 0"),
            ("[::1]:0", "port 0"),
            ("b:65536", "above 65535"),
            ("b:", "no number"),
            ("b:+80", "no number"),
            ("b:18 83", "space"),
            ("my broker", "space"),
            ("b\n", "space"),
            ("user:secret@b", "user or password"),
            ("b?x=1", "character"),
            ("b#x", "character"),
            ("br\u{fc}cke", "character"),
            ("a..b", "empty part"),
            ("256.0.0.1", "no IPv4"),
            ("127.0.0.1.5", "no IPv4"),
            ("1883", "no IPv4"),
        ] {
            let error = host_and_port(text, 1883).expect_err(text);
            assert!(error.contains(why), "{text}: `{error}` does not say `{why}`");
        }
    }
}
