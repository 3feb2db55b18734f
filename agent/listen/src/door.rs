//! Decides which requests are let in, and which of them may change devices. Who makes them is asked elsewhere, if at all;
//! here counts where the program listens, under which name it was opened, and which page a request was made by.
//!
//! A page of elsewhere must not act through somebody's browser. It cannot give a header of ours without asking
//! first (and is never told yes), and its origin is another. With a name of its own that it lets point here (DNS
//! rebinding) origin and host would be equal; so that name must be an address, `localhost`, or one the operator gave.
//!
//! Programs that are no browsers say nothing of origins, and are asked for nothing: whoever runs one on this machine
//! could say anything.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;

/// What a request that changes something must bring, with any value.
pub const OPERATE_HEADER: HeaderName = HeaderName::from_static("hedge-operate");

/// What browsers say of who made a request: `same-origin`, or `none` for an address that was typed in.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// How much of a strange name an error repeats.
const NAME_CHARS_SHOWN: usize = 100;

/// Where a program listens and under which names it may be opened.
#[derive(Debug, Clone)]
pub struct Door {
    pub listen: SocketAddr,
    /// Host names a proxy in front of the program is reached by; it asks who is there.
    pub names: Vec<String>,
    /// How an operator gives such a name, as errors say it.
    pub naming: &'static str,
    pub look_only: bool,
}

/// Why a request is not let in, or may not change anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("`{host}` is no name of this program: use localhost or an address, or give the name {naming}")]
    Name { host: String, naming: &'static str },
    #[error("this page was started with --look-only")]
    LookOnly,
    #[error("the request does not come from this page: its origin is `{0}`")]
    Origin(String),
    #[error("another website made this request (its browser says `{0}`); only programs and Hedge's own pages may")]
    Elsewhere(String),
    #[error("a request that changes something needs the header `{}`", OPERATE_HEADER)]
    NoHeader,
}

impl Door {
    /// Whether the page may be read at all. On loopback only a browser on this machine is there, and what it shows
    /// is not for the pages of others.
    pub fn may_look(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let host = self.host(headers)?;
        if self.listen.ip().is_loopback() && !is_here(&host) && !self.is_named(&host) {
            return Err(self.no_name(host.as_str()));
        }
        Ok(())
    }

    /// Whether a request to an interface for programs is let in: under a right name, and made by a program or by a
    /// page of the same origin, not by one of elsewhere through a browser on this machine.
    pub fn lets_ask(&self, headers: &HeaderMap) -> Result<(), Refused> {
        self.may_look(headers)?;
        let site = headers.contains_key(SITE).then(|| only(headers, &SITE).unwrap_or("several"));
        if let Some(site) = site.filter(|site| !["same-origin", "none"].contains(site)) {
            return Err(Refused::Elsewhere(site.to_owned()));
        }
        // Browsers too old to say more name the origin of what changes something.
        if headers.contains_key(ORIGIN) { self.is_own_origin(headers) } else { Ok(()) }
    }

    /// Whether devices may be changed under the name the page was opened by. Where others reach it, who is there was
    /// asked already, and a browser shows a login only to the name it was given under.
    pub fn may_act(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let host = self.host(headers)?;
        match () {
            () if self.look_only => Err(Refused::LookOnly),
            () if self.is_named(&host) => Ok(()),
            () if !self.listen.ip().is_loopback() || is_here(&host) => Ok(()),
            () => Err(self.no_name(host.as_str())),
        }
    }

    /// Whether this request may change devices.
    pub fn lets_act(&self, headers: &HeaderMap) -> Result<(), Refused> {
        self.may_act(headers)?;
        self.is_own_origin(headers)?;
        if headers.contains_key(OPERATE_HEADER) { Ok(()) } else { Err(Refused::NoHeader) }
    }

    fn is_own_origin(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let host = self.host(headers)?;
        let origin = only(headers, &ORIGIN).unwrap_or("none");
        let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if from.is_some_and(|from| from.eq_ignore_ascii_case(host.as_str())) {
            return Ok(());
        }
        Err(Refused::Origin(origin.to_owned()))
    }

    fn host(&self, headers: &HeaderMap) -> Result<Authority, Refused> {
        let text = only(headers, &HOST).unwrap_or("none");
        let host = text.parse::<Authority>().ok().filter(|_| !text.contains('@'));
        host.ok_or_else(|| self.no_name(text))
    }

    fn no_name(&self, host: &str) -> Refused {
        let host = host.chars().take(NAME_CHARS_SHOWN).collect();
        Refused::Name { host, naming: self.naming }
    }

    fn is_named(&self, host: &Authority) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host.host()))
    }
}

/// The header's value, if it is there once and is text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// A name that no name server decides on.
fn is_here(host: &Authority) -> bool {
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(listen: &str, names: &[&str]) -> Door {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Door { listen: listen.parse().expect("an address"), names, naming: "with --name", look_only: false }
    }

    fn request(host: &str, origin: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(HOST, host), (ORIGIN, origin), (OPERATE_HEADER, "yes")] {
            if !value.is_empty() {
                headers.append(name, value.parse().expect("a value"));
            }
        }
        headers
    }

    #[test]
    fn only_this_page_opened_by_an_address_or_a_given_name_changes_devices() {
        let here = door("127.0.0.1:8080", &["hedge.example"]);
        for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "10.1.2.3", "hedge.example:444"] {
            assert_eq!(here.lets_act(&request(host, &format!("http://{host}"))), Ok(()), "{host}");
            assert_eq!(here.lets_act(&request(host, &format!("https://{host}"))), Ok(()), "{host}");
        }
        for (host, origin) in [
            ("evil.example:8080", "http://evil.example:8080"),
            ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example"),
            ("localhost.evil.example", "http://localhost.evil.example"),
            ("127.0.0.1@evil.example", "http://127.0.0.1@evil.example"),
            ("127.0.0.1:8080", "http://evil.example"),
            ("127.0.0.1:8080", "http://127.0.0.1:8081"),
            ("127.0.0.1:8080", "http://localhost:8080"),
            ("127.0.0.1:8080", "null"),
            ("127.0.0.1:8080", ""),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("", "http://127.0.0.1:8080"),
            ("", ""),
        ] {
            assert!(here.lets_act(&request(host, origin)).is_err(), "{host} from {origin}");
        }
        let mut plain = request("127.0.0.1:8080", "http://127.0.0.1:8080");
        plain.remove(OPERATE_HEADER);
        assert_eq!(here.lets_act(&plain), Err(Refused::NoHeader));
        let mut twice = request("127.0.0.1:8080", "http://127.0.0.1:8080");
        twice.append(HOST, "evil.example".parse().expect("a value"));
        assert!(here.lets_act(&twice).is_err());
    }

    #[test]
    fn a_page_that_others_reach_is_theirs_under_any_name_and_never_another_websites() {
        let asks = |door: &Door, host: &str| door.lets_act(&request(host, &format!("https://{host}")));
        let open = door("0.0.0.0:8080", &[]);
        for host in ["10.1.2.3:8080", "localhost:8080", "hedge.example"] {
            assert_eq!(asks(&open, host), Ok(()), "{host}");
            assert_eq!(open.may_look(&request(host, "")), Ok(()));
            assert!(open.lets_act(&request(host, "https://evil.example")).is_err(), "{host}");
        }
        let closed = Door { look_only: true, ..open };
        assert_eq!(asks(&closed, "hedge.example"), Err(Refused::LookOnly));
    }

    #[test]
    fn what_loopback_shows_is_not_for_rebound_names() {
        let here = door("127.0.0.1:8080", &[]);
        assert_eq!(here.may_look(&request("localhost:1", "")), Ok(()));
        assert!(matches!(here.may_look(&request("evil.example:8080", "")), Err(Refused::Name { .. })));
    }

    #[test]
    fn programs_ask_freely_and_pages_of_elsewhere_not_at_all() {
        let here = door("127.0.0.1:8787", &["edge.example"]);
        let ask = |given: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(name, value.parse().expect("a value"));
            }
            here.lets_ask(&headers)
        };
        let host = (HOST, "127.0.0.1:8787");
        assert_eq!(ask(std::slice::from_ref(&host)), Ok(()), "what curl says");
        assert_eq!(ask(&[(HOST, "edge.example")]), Ok(()), "a proxy that was named");
        assert_eq!(ask(&[host.clone(), (SITE, "same-origin"), (ORIGIN, "http://127.0.0.1:8787")]), Ok(()));
        assert_eq!(ask(&[host.clone(), (SITE, "none")]), Ok(()), "typed into a browser");
        for refused in [
            vec![(HOST, "evil.example:8787")],
            vec![(HOST, "evil.example:8787"), (ORIGIN, "http://evil.example:8787"), (SITE, "same-origin")],
            vec![],
            vec![host.clone(), (SITE, "cross-site")],
            vec![host.clone(), (SITE, "same-site")],
            vec![host.clone(), (SITE, "none"), (SITE, "cross-site")],
            vec![host.clone(), (ORIGIN, "http://evil.example")],
            vec![host.clone(), (ORIGIN, "http://127.0.0.1:8788")],
            vec![host.clone(), (ORIGIN, "null")],
        ] {
            assert!(ask(&refused).is_err(), "{refused:?}");
        }
    }
}
