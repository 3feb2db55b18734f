//! Who a server is: as a rule of ours says, and otherwise as strict as ever.

use std::fmt;
use std::sync::Arc;

use hedge_proto::FINGERPRINT_CHARS;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// What a server shows of itself, in one handshake.
pub struct Shown<'a> {
    pub own: &'a CertificateDer<'a>,
    pub intermediates: &'a [CertificateDer<'a>],
    name: &'a ServerName<'a>,
    now: UnixTime,
}

impl Shown<'_> {
    /// Whether its chain ends in one of the roots that `strict` holds, at its date and for its name.
    pub fn verify(&self, strict: &WebPkiServerVerifier) -> Result<ServerCertVerified, Error> {
        strict.verify_server_cert(self.own, self.intermediates, self.name, &[], self.now)
    }
}

/// Asks `rule` about the certificates and leaves signatures to the provider.
pub struct Verifier<R> {
    pub provider: Arc<CryptoProvider>,
    pub rule: R,
}

impl<R> fmt::Debug for Verifier<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

/// Trust at first sight: accepts a server whose chain ends in the authority with this fingerprint, which came with the
/// pairing code.
pub(crate) fn pinned(
    provider: Arc<CryptoProvider>,
    fingerprint: String,
) -> impl Fn(&Shown<'_>) -> Result<ServerCertVerified, Error> + Send + Sync {
    move |shown| {
        let is_pinned =
            |der: &&CertificateDer<'_>| hex::encode(Sha256::digest(der))[..FINGERPRINT_CHARS] == fingerprint;
        let Some(authority) = shown.intermediates.iter().find(is_pinned) else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let strict = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        shown.verify(&strict)
    }
}

impl<R: Fn(&Shown<'_>) -> Result<ServerCertVerified, Error> + Send + Sync> ServerCertVerifier for Verifier<R> {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.rule)(&Shown { own, intermediates, name, now })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
