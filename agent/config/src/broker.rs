//! `[broker]`: where the broker is and how the device shows who it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hedge_core::identity::NamedBy;
use hedge_core::link::RECOVERY_AFTER;
use hedge_proto::{Name, Topics, host_and_port};
use serde::Deserialize;
use serde::de::Error as _;

use super::Problem;
use super::settings::seconds;

/// Where the broker is and how the device shows who it is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`, with host and optional port.
    pub url: BrokerUrl,
    /// In front of `hedge/v1/…`, for brokers shared with others.
    #[serde(default = "no_prefix", deserialize_with = "topics")]
    pub prefix: Topics,
    /// The device id if not given.
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// PEM; the system's certificates if not given.
    pub ca_file: Option<PathBuf>,
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Where the device's name stands.
    #[serde(default)]
    pub identity: IdentityFrom,
    /// TLS application protocol, for brokers that share port 443.
    pub alpn: Option<String>,
    /// `http://host:port` of a proxy that allows CONNECT.
    pub proxy: Option<ProxyUrl>,
    /// The link profile's if not given.
    pub keep_alive_s: Option<u16>,
    /// The name of a `[credentials.NAME]`, which then says all of `username` to `key_file`.
    pub credentials: Option<Name>,
    /// Where to go when this broker is away for long. Not settable remotely.
    pub recovery: Option<Box<BrokerConfig>>,
    /// Without a connection for so long, the recovery broker is dialled, too.
    #[serde(default, rename = "recovery_after_s", deserialize_with = "seconds")]
    recovery_after: Option<Duration>,
}

/// `[credentials.NAME]`: how the device shows who it is, under a name that remote settings may use.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialsConfig {
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl BrokerConfig {
    /// The files whose content is a secret.
    pub fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.password_file.iter().chain(&self.key_file)
    }

    /// How long the usual broker may be away; `None` if there is no other.
    #[must_use]
    pub fn recovery_after(&self) -> Option<Duration> {
        self.recovery.as_ref().map(|_| self.recovery_after.unwrap_or(RECOVERY_AFTER))
    }

    /// Puts named credentials in their place.
    pub(super) fn resolve(&mut self, known: &BTreeMap<Name, CredentialsConfig>) -> Result<(), Problem> {
        if let Some(name) = &self.credentials {
            let credentials = known.get(name).cloned().ok_or_else(|| {
                let known = known.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
                let message = format!("there is no [credentials.{name}] on this device; there are: {known}");
                Problem { field: vec!["broker".to_owned(), "credentials".to_owned()], span: None, message }
            })?;
            let CredentialsConfig { username, password_file, ca_file, certificate_file, key_file } = credentials;
            (self.username, self.password_file) = (username, password_file);
            (self.ca_file, self.certificate_file, self.key_file) = (ca_file, certificate_file, key_file);
        }
        match &mut self.recovery {
            Some(recovery) if recovery.recovery.is_some() => {
                let message = "a recovery broker has no recovery broker".to_owned();
                Err(Problem { field: vec!["broker".to_owned(), "recovery".to_owned()], span: None, message })
            }
            Some(recovery) if recovery.recovery_after.is_some() => {
                let message = "recovery_after_s belongs to [broker], not to [broker.recovery]".to_owned();
                Err(Problem { field: vec!["broker".to_owned(), "recovery".to_owned()], span: None, message })
            }
            Some(recovery) => recovery.resolve(known),
            None => Ok(()),
        }
    }
}

/// `[enrolment]`: who renews the device's certificate before it runs out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentConfig {
    /// `https://host:port` of the cloud's enrolment endpoint. certificate_file and ca_file in `[broker]` are rewritten.
    pub url: String,
}

/// Which part of the certificate names the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityFrom {
    /// `device` and the certificate must agree; either alone is enough.
    #[default]
    Agreed,
    CommonName,
    SubjectAltName,
    /// `device` or the host name, whatever the certificate says.
    Configuration,
}

impl From<IdentityFrom> for NamedBy {
    fn from(from: IdentityFrom) -> Self {
        match from {
            IdentityFrom::Agreed => Self::Agreed,
            IdentityFrom::CommonName => Self::CommonName,
            IdentityFrom::SubjectAltName => Self::SubjectAltName,
            IdentityFrom::Configuration => Self::Configuration,
        }
    }
}

fn no_prefix() -> Topics {
    Topics::new("").unwrap_or_else(|_| unreachable!("no prefix is a valid prefix"))
}

fn topics<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Topics, D::Error> {
    Topics::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// How bytes travel to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerTransport {
    Tcp,
    Tls,
    WebSocket,
    WebSocketTls,
}

impl BrokerTransport {
    /// Whether anyone on the way can read along.
    #[must_use]
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Tcp | Self::WebSocket)
    }
}

/// `scheme://host[:port][/path]`, the path for WebSockets only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    pub transport: BrokerTransport,
    pub host: String,
    pub port: u16,
    /// With its leading slash; `/mqtt` if not given.
    pub path: String,
}

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "write mqtt://, mqtts://, ws:// or wss:// with a host, such as mqtts://broker.example:8883";
        // What may hold a password is not repeated.
        let shown = text.rsplit_once('@').map_or(text.as_str(), |(_, rest)| rest);
        let wrong = |why: &str| format!("`{shown}` is not a broker's address: {why}; {example}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (transport, default_port) = match scheme {
            "mqtt" => (BrokerTransport::Tcp, 1883),
            "mqtts" => (BrokerTransport::Tls, 8883),
            "ws" => (BrokerTransport::WebSocket, 80),
            "wss" => (BrokerTransport::WebSocketTls, 443),
            "tcp" => return Err(wrong("its scheme is called mqtt here")),
            "ssl" | "tls" => return Err(wrong("its scheme is called mqtts here")),
            _ => return Err(wrong("its scheme is none of a broker's")),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let websocket = matches!(transport, BrokerTransport::WebSocket | BrokerTransport::WebSocketTls);
        if !websocket && !matches!(path, "" | "/") {
            return Err(wrong("it has a path, which only ws:// and wss:// take"));
        }
        if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong("its path has a space or control character in it"));
        }
        let (host, port) = host_and_port(authority, default_port).map_err(wrong)?;
        let path = if matches!(path, "" | "/") { "/mqtt".to_owned() } else { path.to_owned() };
        Ok(Self { transport, host, port, path })
    }
}

impl std::fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.transport {
            BrokerTransport::Tcp => "mqtt",
            BrokerTransport::Tls => "mqtts",
            BrokerTransport::WebSocket => "ws",
            BrokerTransport::WebSocketTls => "wss",
        };
        let websocket = matches!(self.transport, BrokerTransport::WebSocket | BrokerTransport::WebSocketTls);
        let path = if websocket { self.path.as_str() } else { "" };
        write!(f, "{scheme}://{}:{}{path}", bracketed(&self.host), self.port)
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl std::fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}", bracketed(&self.host), self.port)
    }
}

/// `http://host:port`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ProxyUrl {
    pub host: String,
    pub port: u16,
}

impl TryFrom<String> for ProxyUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let shown = text.rsplit_once('@').map_or(text.as_str(), |(_, rest)| rest);
        let wrong = |why: &str| format!("`{shown}` is not a proxy of the form http://host:port: {why}");
        let rest = text.strip_prefix("http://").ok_or_else(|| wrong("it does not begin with http://"))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('/') {
            return Err(wrong("it has a path"));
        }
        host_and_port(authority, 3128).map(|(host, port)| Self { host, port }).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_addresses_are_read_whole_or_refused() {
        let read = |text: &str| BrokerUrl::try_from(text.to_owned());
        let url = read("wss://broker.example/path").expect("valid");
        assert_eq!((url.transport, url.port, url.path.as_str()), (BrokerTransport::WebSocketTls, 443, "/path"));
        for text in ["mqtt://[::1]:1883", "mqtts://b:8883", "ws://b:80/mqtt"] {
            assert_eq!(read(text).expect("valid").to_string(), text);
        }
        for (bad, why) in [
            ("", "no scheme"),
            ("broker", "no scheme"),
            ("tcp://broker", "called mqtt here"),
            ("ssl://broker", "called mqtts here"),
            ("ftp://h", "none of a broker's"),
            ("mqtt://", "no host"),
            ("mqtt://h:99999", "above 65535"),
            ("mqtt://h:0", "port 0"),
            ("mqtt://[::1]23883", "colon is missing"),
            ("mqtt://[::1]garbage", "colon is missing"),
            ("mqtt://my broker", "space"),
            ("mqtt://h/path", "has a path"),
            ("ws://h/a b", "path has a space"),
        ] {
            let error = read(bad).expect_err(bad);
            assert!(error.contains(why), "{bad}: `{error}` does not say `{why}`");
        }
        let error = read("mqtt://user:secret@h").expect_err("refused");
        assert!(error.contains("user or password") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn proxies_are_read_whole_or_refused() {
        let read = |text: &str| ProxyUrl::try_from(text.to_owned());
        assert_eq!(read("http://p/").expect("valid").to_string(), "http://p:3128");
        for bad in ["p:3128", "https://p", "http://[::1]8080", "http://p:0", "http://p/x", "http://a b", "http://u@p"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
