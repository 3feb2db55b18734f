//! `[payloads]` and `[bundles]`: what goes over HTTPS, and where.

use std::fmt;
use std::path::PathBuf;

use hedge_proto::host_and_port;
use serde::Deserialize;

/// Without it, what is too large for the broker can never be sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadsConfig {
    /// `https://host[:port]` of the cloud's `--payload-listen`.
    pub url: HttpUrl,
    /// PEM; the system's certificates if not given.
    pub ca_file: Option<PathBuf>,
    /// The file's content is shown with every request.
    pub token_file: Option<PathBuf>,
}

/// Where signed bundles are fetched from; they are believed for their signatures only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundlesConfig {
    /// The folder of published bundles on a web server, `/bundles` of the cloud's `--payload-listen`, or an artifact of a
    /// registry of containers.
    pub url: BundlesUrl,
    /// The first root, which says whose signatures count; needed until a bundle has been fetched once.
    pub root: Option<PathBuf>,
    /// PEM; the system's certificates if not given.
    pub ca_file: Option<PathBuf>,
    /// The file's content is shown with every request; `NAME:PASSWORD` to a registry.
    pub token_file: Option<PathBuf>,
}

/// `https://…` or `http://…`; `oci://host[:port]/name[:tag]` or `oci+http://…` of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BundlesUrl {
    pub at: HttpUrl,
    pub is_registry: bool,
}

impl TryFrom<String> for BundlesUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("oci") {
            Some(rest) if rest.starts_with("://") => {
                Ok(Self { at: format!("https{rest}").try_into()?, is_registry: true })
            }
            Some(rest) if rest.starts_with("+http://") => {
                Ok(Self { at: rest.trim_start_matches('+').to_owned().try_into()?, is_registry: true })
            }
            _ => Ok(Self { at: text.try_into()?, is_registry: false }),
        }
    }
}

impl fmt::Display for BundlesUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_registry, self.at.tls) {
            (false, _) => write!(f, "{}", self.at),
            (true, tls) => {
                write!(f, "{}://{}{}", if tls { "oci" } else { "oci+http" }, self.at.authority(), self.at.path)
            }
        }
    }
}

/// `https://host[:port][/path]`, or `http://` where nobody else is on the way.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HttpUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// In front of what is asked for, without a slash at its end; empty if not given.
    pub path: String,
}

impl TryFrom<String> for HttpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let shown = text.rsplit_once('@').map_or(text.as_str(), |(_, rest)| rest);
        let wrong =
            |why: &str| format!("`{shown}` is not https://host:port, such as https://cloud.example:8443: {why}");
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if path.contains(['?', '#', ' ']) {
            return Err(wrong("its path has a `?`, `#` or space in it"));
        }
        let (host, port) = host_and_port(authority, if tls { 443 } else { 80 }).map_err(wrong)?;
        Ok(Self { tls, host, port, path: path.trim_end_matches('/').to_owned() })
    }
}

impl HttpUrl {
    /// `host:port`, an address of IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_told_from_a_folder_and_written_as_it_was_read() {
        let read = |text: &str| BundlesUrl::try_from(text.to_owned());
        for (text, tls, is_registry) in [
            ("oci://registry.example:443/farm/models:1", true, true),
            ("oci+http://127.0.0.1:5000/models", false, true),
            ("https://models.example:443/bundles", true, false),
        ] {
            let url = read(text).expect("valid");
            assert_eq!((url.to_string().as_str(), url.at.tls, url.is_registry), (text, tls, is_registry));
        }
        for bad in ["oci:/x", "oci+https://x", "ocix://x", "oci://"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_read_whole_or_refused() {
        let read = |text: &str| HttpUrl::try_from(text.to_owned());
        let url = read("https://cloud.example/hedge/").expect("valid");
        assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (true, "cloud.example", 443, "/hedge"));
        assert_eq!(read("http://[::1]:8081").expect("valid").port, 8081);
        for text in ["https://cloud.example:443/hedge", "http://[::1]:8081"] {
            assert_eq!(read(text).expect("valid").to_string(), text);
        }
        for bad in
            ["", "cloud.example", "ftp://c", "https://", "https://user:secret@c", "https://c:99999", "https://c/?a"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
