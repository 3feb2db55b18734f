//! What a broker shows of itself in a TLS handshake, also when it is not trusted.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::Error;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerified;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use hedge_core::link::Trouble;
use hedge_proto::readable;

use hedge_agent::uplink::{read_certificate, refused_in_tls};
use hedge_identity::{Certificate, Shown};

/// How many of a certificate's names are shown, and how much of each.
const NAMES_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 100;

/// The certificates shown, and why they are not trusted.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) chain: Vec<Certificate>,
    pub(super) refused: Option<Error>,
    /// What the first is for, by its subjectAltName.
    names: Vec<String>,
    /// Who issued the last.
    issuer: String,
}

/// Trusts whom `strict` trusts, and writes down what was shown.
pub(super) fn seeing(
    strict: Arc<WebPkiServerVerifier>,
    seen: Arc<Mutex<Seen>>,
) -> impl Fn(&Shown<'_>) -> Result<ServerCertVerified, Error> + Send + Sync {
    move |shown| {
        let verified = shown.verify(&strict);
        let chain = std::iter::once(shown.own).chain(shown.intermediates);
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen {
            chain: chain.filter_map(|der| Certificate::parse(der).ok()).collect(),
            refused: verified.as_ref().err().cloned(),
            names: names(shown.own),
            issuer: issuer(shown.intermediates.last().unwrap_or(shown.own)),
        };
        verified
    }
}

/// The hosts that a certificate is for.
fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress([a, b, c, d]) => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
        GeneralName::IPAddress(bytes) => {
            <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
        }
        _ => None,
    });
    names.take(NAMES_MAX).map(|name| readable(&name, NAME_CHARS_MAX)).collect()
}

/// The common name of who issued a certificate, or all there is.
fn issuer(der: &[u8]) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return String::new() };
    let issuer = certificate.issuer();
    let name = issuer.iter_common_name().find_map(|name| name.as_str().ok().map(str::to_owned));
    readable(&name.unwrap_or_else(|| issuer.to_string()), NAME_CHARS_MAX)
}

/// Why a broker's certificate is not trusted, and what to do. `host` is what the device calls it.
pub(super) fn explain(error: &Error, seen: &Seen, host: &str) -> (String, String) {
    let trouble = match error {
        Error::InvalidCertificate(error) => read_certificate(error),
        error => refused_in_tls(error),
    };
    let (what, todo) = (trouble.what().to_owned(), trouble.todo());
    let names = seen.names.join(", ");
    match trouble {
        Trouble::OtherName if names.is_empty() => {
            let what = format!("{what}: it has no subjectAltName at all, and a CN alone does not count");
            (what, format!("give the broker one for `{host}`: {}", recipe(host)))
        }
        Trouble::OtherName => {
            let what = format!("{what}: for {names}, not for `{host}`");
            (what, format!("use one of these names as host in `url`, or give the broker one: {}", recipe(host)))
        }
        Trouble::UnknownIssuer => {
            let (issuer, sent) = (&seen.issuer, seen.chain.len());
            let what = format!("{what}: `{issuer}` issued the last of the {sent} that the broker sends");
            let advice = "set ca_file in [broker] to the certificate of the broker's authority. If that is the one above \
                          this issuer, the broker lacks the intermediate certificate: put it behind the broker's own in \
                          its certfile, `cat server.pem intermediate.pem > chain.pem`";
            (what, advice.to_owned())
        }
        Trouble::OldCertificate | Trouble::AuthorityAsBroker | Trouble::WrongPurpose | Trouble::UnknownSignature => {
            (what, format!("{todo}: {}", recipe(host)))
        }
        Trouble::NotTrusted => (format!("{what}: {error}"), todo.to_owned()),
        _ => (what, todo.to_owned()),
    }
}

/// The two lines that make a certificate for a broker, signed by an authority one has.
pub(super) fn recipe(host: &str) -> String {
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "`openssl req -newkey rsa:2048 -nodes -keyout server.key -subj \"/CN={host}\" -out server.csr` and `openssl x509 \
         -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile <(printf \
         \"basicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth\\nsubjectAltName={kind}:{host}\") -out server.pem`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::CertificateError;

    #[test]
    fn a_certificate_that_is_not_trusted_is_told_with_its_own_names() {
        let seen = Seen { names: vec!["a.example".to_owned()], issuer: "Middle".to_owned(), ..Seen::default() };
        let said = |error, seen: &Seen| {
            let (what, todo) = explain(&Error::InvalidCertificate(error), seen, "broker.example");
            format!("{what} -> {todo}")
        };
        assert!(said(CertificateError::NotValidForName, &seen).contains("for a.example, not for `broker.example`"));
        let bare = said(CertificateError::NotValidForName, &Seen::default());
        assert!(bare.contains("no subjectAltName") && bare.contains("subjectAltName=DNS:broker.example"), "{bare}");
        let unknown = said(CertificateError::UnknownIssuer, &seen);
        assert!(unknown.contains("`Middle` issued") && unknown.contains("lacks the intermediate"), "{unknown}");
        assert!(recipe("127.0.0.1").contains("subjectAltName=IP:127.0.0.1"));
    }
}
