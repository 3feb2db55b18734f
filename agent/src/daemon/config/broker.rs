//! `[broker]`: where the broker is and how the device shows who it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hedge_core::identity::NamedBy;
use hedge_core::link::RECOVERY_AFTER;
use hedge_proto::{Name, Topics};
use serde::Deserialize;
use serde::de::Error as _;

use super::{Problem, Seconds};

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
    pub recovery_after_s: Option<Seconds>,
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
    /// How long the usual broker may be away; `None` if there is no other.
    #[must_use]
    pub fn recovery_after(&self) -> Option<Duration> {
        let after = self.recovery_after_s.map_or(RECOVERY_AFTER, Seconds::duration);
        self.recovery.as_ref().map(|_| after)
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
            Some(recovery) if recovery.recovery_after_s.is_some() => {
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
        let expected = || {
            format!(
                "`{text}` is not mqtt://, mqtts://, ws:// or wss:// with a host, such as mqtts://broker.example:8883"
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let (transport, default_port) = match scheme {
            "mqtt" => (BrokerTransport::Tcp, 1883),
            "mqtts" => (BrokerTransport::Tls, 8883),
            "ws" => (BrokerTransport::WebSocket, 80),
            "wss" => (BrokerTransport::WebSocketTls, 443),
            _ => return Err(expected()),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let websocket = matches!(transport, BrokerTransport::WebSocket | BrokerTransport::WebSocketTls);
        if !websocket && !matches!(path, "" | "/") {
            return Err(format!("`{text}` has a path, which only ws:// and wss:// take"));
        }
        let (host, port) = host_and_port(authority, default_port).ok_or_else(expected)?;
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
        text.strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'))
            .and_then(|authority| host_and_port(authority, 3128))
            .map(|(host, port)| Self { host, port })
            .ok_or_else(|| format!("`{text}` is not a proxy of the form http://host:port"))
    }
}

/// Splits `host`, `host:port`, `[v6]` and `[v6]:port`.
pub(super) fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    if authority.contains('@') {
        return None; // a password in a URL ends up in logs
    }
    let (host, port) = if let Some(v6) = authority.strip_prefix('[') {
        let (host, rest) = v6.split_once(']')?;
        (host, rest.strip_prefix(':'))
    } else {
        authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
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
        for bad in ["", "broker", "mqtt://", "mqtt://h:99999", "mqtt://user:secret@h", "mqtt://h/path", "ftp://h"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
