//! Asks the cloud's authority for a certificate: the first with a pairing code, each further one with the last.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hedge_core::identity;
use hedge_proto::{
    DOCUMENT_BYTES_MAX, DeviceId, ENROL_PATH, EnrolRequest, Enrolled, NotEnrolled, PairingCode, RENEW_PATH,
    RenewRequest, from_json, in_one_line, to_json,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::http::http_body;
use super::verifier::{Verifier, pinned};
use super::{Certificate, CertificateClock, built_ms};

/// A handshake and two messages over a slow link; the next try is not far.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The cloud's own reasons are a sentence or two.
const REASON_CHARS_MAX: usize = 500;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("{0}")]
    Key(String),
    #[error("{url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} is not the cloud of this pairing code: no authority there has the fingerprint {fingerprint}")]
    Stranger { url: String, fingerprint: String },
    #[error("{url} refuses: {reason}")]
    Refused { url: String, reason: String },
    #[error("{url} answers what is no certificate for this device's key: {reason}")]
    Unusable { url: String, reason: String },
}

/// A key that stays on this device (P-256, PEM).
pub fn new_key() -> Result<String, EnrolError> {
    KeyPair::generate().map(|key| key.serialize_pem()).map_err(key_error)
}

/// Uses up a pairing code. Asking again with the same code and key is harmless while the code holds.
pub async fn enrol(code: &PairingCode, device: Option<DeviceId>, key: &str) -> Result<Enrolled, EnrolError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let rule = pinned(provider.clone(), code.fingerprint.clone());
    let verifier = Verifier { provider: provider.clone(), rule };
    let tls = builder(provider, CertificateClock::since(None))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let request = request(key, device.as_ref())?;
    let body = to_json(&EnrolRequest { secret: code.secret.clone(), device, request });
    let enrolled = post(&code.url(), ENROL_PATH, body, tls).await.map_err(|error| match error {
        EnrolError::Unreachable { url, reason } if reason.contains("UnknownIssuer") => {
            EnrolError::Stranger { url, fingerprint: code.fingerprint.clone() }
        }
        other => other,
    })?;
    for_this_key(&code.url(), key, enrolled)
}

/// What a renewal is made from.
pub struct Held<'a> {
    pub url: &'a str,
    pub certificate: &'a str,
    pub key: &'a str,
    pub authorities: &'a Path,
}

/// Asks for a new certificate; the last one may have run out.
pub async fn renew(held: &Held<'_>) -> Result<Enrolled, EnrolError> {
    let unusable = |reason: String| EnrolError::Key(reason);
    let own =
        CertificateDer::from_pem_slice(held.certificate.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let own = Certificate::parse(&own).map_err(unusable)?;
    let mut roots = rustls::RootCertStore::empty();
    let at = |error: &dyn std::fmt::Display| EnrolError::Key(format!("{}: {error}", held.authorities.display()));
    let pem = hedge_inference::read_pem(held.authorities).map_err(|error| at(&error))?;
    let authorities =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|error| at(&error))?;
    roots.add_parsable_certificates(authorities);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        builder(provider, CertificateClock::since(Some(&own)))?.with_root_certificates(roots).with_no_client_auth();
    let request = request(held.key, None)?;
    let body = to_json(&RenewRequest { certificate: held.certificate.to_owned(), request });
    let enrolled = for_this_key(held.url, held.key, post(held.url, RENEW_PATH, body, tls).await?)?;
    may_replace(&own, &enrolled, built_ms())
        .map_err(|reason| EnrolError::Unusable { url: held.url.to_owned(), reason })?;
    Ok(enrolled)
}

/// Why the new certificate would lock out the device that holds `own`, if it would.
fn may_replace(own: &Certificate, enrolled: &Enrolled, built_ms: u64) -> Result<(), String> {
    let new = CertificateDer::from_pem_slice(enrolled.certificate.as_bytes()).map_err(|error| error.to_string())?;
    let new = Certificate::parse(&new)?;
    if new.names != own.names {
        return Err("it bears another name than this device's certificate".to_owned());
    }
    if !identity::may_replace(own.validity, new.validity, built_ms) {
        return Err("the certificate in it ended long ago; set the clock of the cloud".to_owned());
    }
    Ok(())
}

/// An answer that would lock the device out is refused before it replaces what works.
fn for_this_key(url: &str, key: &str, enrolled: Enrolled) -> Result<Enrolled, EnrolError> {
    let unusable = |reason: String| EnrolError::Unusable { url: url.to_owned(), reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(enrolled.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| unusable(error.to_string()))?;
    let authorities = CertificateDer::pem_slice_iter(enrolled.authorities.as_bytes()).flatten().count();
    if authorities == 0 { Err(unusable("it names no authority".to_owned())) } else { Ok(enrolled) }
}

type Builder = rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>;

fn builder(provider: Arc<rustls::crypto::CryptoProvider>, clock: Arc<CertificateClock>) -> Result<Builder, EnrolError> {
    rustls::ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .map_err(|error| EnrolError::Key(error.to_string()))
}

/// A certificate request for `key`, which only its holder can make.
fn request(key: &str, device: Option<&DeviceId>) -> Result<String, EnrolError> {
    let key = KeyPair::from_pem(key).map_err(key_error)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(device) = device {
        params.distinguished_name.push(DnType::CommonName, device.as_str());
    }
    params.serialize_request(&key).and_then(|request| request.pem()).map_err(key_error)
}

fn key_error(error: rcgen::Error) -> EnrolError {
    EnrolError::Key(format!("the device's key: {error}"))
}

async fn post(base: &str, path: &str, body: Vec<u8>, tls: rustls::ClientConfig) -> Result<Enrolled, EnrolError> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let unreachable = |error: &reqwest::Error| EnrolError::Unreachable { url: url.clone(), reason: in_one_line(error) };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(|error| unreachable(&error))?;
    let sent = client.post(&url).header("content-type", "application/json").body(body).send().await;
    let response = sent.map_err(|error| unreachable(&error))?;
    let status = response.status();
    let Some(text) = http_body(response, DOCUMENT_BYTES_MAX).await.map_err(|error| unreachable(&error))? else {
        return Err(EnrolError::Unusable { url, reason: "the answer is too long".to_owned() });
    };
    if !status.is_success() {
        let reason =
            from_json::<NotEnrolled>(&text, DOCUMENT_BYTES_MAX).map_or_else(|_| status.to_string(), |said| said.error);
        // What a stranger says goes to a terminal.
        let reason = reason.chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect();
        // A cloud that broke off may have signed for the key.
        let broke_off = status.is_server_error();
        return Err(if broke_off {
            EnrolError::Unreachable { url, reason }
        } else {
            EnrolError::Refused { url, reason }
        });
    }
    from_json(&text, DOCUMENT_BYTES_MAX).map_err(|error| EnrolError::Unusable { url, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(name: &str, years: (i32, i32)) -> Enrolled {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(years.0, 1, 1), rcgen::date_time_ymd(years.1, 1, 1));
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem();
        let device = DeviceId::new(name).expect("valid");
        Enrolled { device, certificate, authorities: String::new(), broker: String::new() }
    }

    #[test]
    fn a_renewal_that_would_lock_the_device_out_is_refused() {
        let held = signed("gate-7", (2026, 2027)).certificate;
        let held = CertificateDer::from_pem_slice(held.as_bytes()).expect("PEM");
        let held = Certificate::parse(&held).expect("a certificate");
        let built_2025_ms = 1_735_689_600_000;
        let check = |name: &str, years: (i32, i32), part: Option<&str>| {
            let said = may_replace(&held, &signed(name, years), built_2025_ms).err();
            let fits = part.map_or(said.is_none(), |part| said.as_ref().is_some_and(|said| said.contains(part)));
            assert!(fits, "{name} {years:?}: {said:?}");
        };
        check("gate-7", (2027, 2028), None);
        check("gate-7", (1970, 1971), Some("set the clock of the cloud"));
        check("gate-8", (2027, 2028), Some("another name"));
    }
}
