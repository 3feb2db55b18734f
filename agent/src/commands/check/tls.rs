//! What a broker shows of itself in a TLS handshake, also when it is not trusted.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use crate::identity::Certificate;

/// Trusts whom the real one trusts, and remembers what was shown.
#[derive(Debug)]
pub(super) struct Seeing {
    inner: Arc<WebPkiServerVerifier>,
    seen: Mutex<Seen>,
}

/// The certificates shown, and why they are not trusted.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) chain: Vec<Certificate>,
    pub(super) refused: Option<Error>,
}

impl Seeing {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>) -> Arc<Self> {
        Arc::new(Self { inner, seen: Mutex::default() })
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Seeing {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let shown = std::iter::once(end_entity).chain(intermediates);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.chain = shown.filter_map(|der| Certificate::parse(der).ok()).collect();
        seen.refused = verified.as_ref().err().cloned();
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Why a broker's certificate is not trusted, and what to do.
pub(super) fn explain(error: &Error) -> (String, String) {
    let Error::InvalidCertificate(error) = error else {
        return (error.to_string(), "see the broker's log".to_owned());
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "the broker's certificate has expired".to_owned(),
            "renew it on the broker; if it is not expired there, this device's clock is wrong".to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "the broker's certificate is not valid yet".to_owned(),
            "this device's clock is most likely wrong: see the line `clock`".to_owned(),
        ),
        // An authority of the same name with another key gives no other error than a wrong signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "the broker's certificate comes from an authority this device does not know".to_owned(),
            "set ca_file in [broker] to the certificate of the broker's authority".to_owned(),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "the broker's certificate is for another name".to_owned(),
            "use the name in the certificate as host in `url`, or give the broker one for this name".to_owned(),
        ),
        other => (format!("the broker's certificate is not accepted: {other}"), "see docs/brokers.md".to_owned()),
    }
}
