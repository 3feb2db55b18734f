//! Where the broker is and how to prove who we are: parsed whole before anything is dialled.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use hedge_proto::host_and_port;
use rumqttc::{TlsConfiguration, Transport};

/// A broker's address: `mqtt://host[:port]` or `mqtts://host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

/// Why an address is not a broker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a broker's address: {why}; write mqtt://host:1883 or mqtts://host:8883")]
pub struct InvalidEndpoint {
    text: String,
    why: &'static str,
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        // What may hold a password is not repeated.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let wrong = |why| InvalidEndpoint { text: shown.to_owned(), why };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(wrong("its scheme is neither mqtt nor mqtts")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(wrong("it has more than a host and a port"));
        }
        let default_port = if tls { 8883 } else { 1883 };
        let (host, port) = host_and_port(rest, default_port).map_err(wrong)?;
        Ok(Self { host, port, tls })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// Files and a name that prove who we are, as the command line names them.
#[derive(Debug, Clone, Default, Args)]
pub struct Credentials {
    /// Authorities that may have signed the broker's certificate (PEM); without it the system's are used
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_CA")]
    pub ca: Option<PathBuf>,

    /// Our certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_CERT", requires = "key")]
    pub cert: Option<PathBuf>,

    /// The key of our certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_KEY", requires = "cert")]
    pub key: Option<PathBuf>,

    /// User name for the broker
    #[arg(long, value_name = "NAME", env = "HEDGE_CLOUD_USERNAME")]
    pub username: Option<String>,

    /// File that holds the password and nothing else
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PASSWORD_FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
}

/// Why a connection cannot be set up from what was given.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("{path} cannot be read: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("a certificate needs its key and a key its certificate; give both --cert and --key")]
    HalfPair,
    #[error("--cert needs --ca: the broker's certificate must be checked against a named authority")]
    NoAuthority,
    #[error("certificates are for mqtts:// brokers, and this one is mqtt://")]
    NoTls,
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl Credentials {
    /// The transport to `endpoint`, with every file read.
    pub(super) fn transport(&self, endpoint: &Endpoint) -> Result<Transport, CredentialsError> {
        let client_auth = match (&self.cert, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => return Err(CredentialsError::HalfPair),
        };
        if !endpoint.tls {
            let given = self.ca.is_some() || client_auth.is_some();
            return if given { Err(CredentialsError::NoTls) } else { Ok(Transport::tcp()) };
        }
        match &self.ca {
            Some(ca) => {
                let ca = read(ca)?;
                Ok(Transport::tls_with_config(TlsConfiguration::Simple { ca, alpn: None, client_auth }))
            }
            None if client_auth.is_some() => Err(CredentialsError::NoAuthority),
            None => Transport::try_tls_with_default_config().map_err(|error| CredentialsError::Tls(error.to_string())),
        }
    }

    /// User and password; the password's file may end in a newline.
    pub(super) fn login(&self) -> Result<Option<(String, Vec<u8>)>, CredentialsError> {
        let Some(user) = &self.username else { return Ok(None) };
        let mut password = self.password_file.as_deref().map(read).transpose()?.unwrap_or_default();
        while matches!(password.last(), Some(b'\n' | b'\r')) {
            password.pop();
        }
        Ok(Some((user.clone(), password)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    hedge_inference::read_pem(path).map_err(|source| CredentialsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_and_ports_have_defaults() {
        for (text, expected) in [
            ("mqtt://broker", "mqtt://broker:1883"),
            ("mqtts://broker/", "mqtts://broker:8883"),
            ("mqtt://127.0.0.1:5000", "mqtt://127.0.0.1:5000"),
            ("mqtt://[::1]:5000", "mqtt://[::1]:5000"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|endpoint| endpoint.to_string()), Ok(expected.to_owned()));
        }
        for text in [
            "broker",
            "http://broker",
            "mqtt://",
            "mqtt://broker:99999",
            "mqtt://broker:0",
            "mqtt://user@broker",
            "mqtt://a/b",
            "mqtt://[::1]23883",
            "mqtt://::1",
            "mqtt://my broker",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
