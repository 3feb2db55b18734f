//! Reads the certificates and keys that `[broker]` names, and says what it found in place of them.
//!
//! Whatever TLS takes is taken. The rest has a sentence that names the file, what is in it, and the command that makes it
//! what it should be.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::options::{OptionsError, unreadable};
use hedge_config::BrokerConfig;
use hedge_identity::{Certificate, CertificateClock};

/// Where both openssl lines stand.
const RECIPE: &str = "docs/identity.md, Certificates with openssl, has the two lines that make one";

/// Whom the device trusts and how it shows who it is.
pub fn client_config(config: &BrokerConfig) -> Result<rustls::ClientConfig, OptionsError> {
    let own = config.certificate_file.as_deref().and_then(|file| Certificate::read(file).ok());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_details(provider.clone(), CertificateClock::since(own.as_ref()))
        .with_safe_default_protocol_versions()
        .map_err(|error| OptionsError::Broker(error.to_string()))?
        .with_root_certificates(roots(config.ca_file.as_deref())?);
    let mut tls = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            let own = certified(&provider, certificate, key)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(half("key_file", "certificate_file")),
        (None, Some(_)) => return Err(half("certificate_file", "key_file")),
    };
    tls.alpn_protocols = config.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(tls)
}

fn half(missing: &str, given: &str) -> OptionsError {
    OptionsError::Broker(format!("{missing} is missing: it belongs together with {given}; give both"))
}

/// The device's own certificate and its key.
fn certified(
    provider: &rustls::crypto::CryptoProvider,
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, OptionsError> {
    let chain = certificates("certificate_file", certificate)?;
    let der = private_key(key)?;
    let signing = provider.key_provider.load_private_key(der.clone_key()).map_err(|error| {
        let what = kind_of_key(der.secret_der()).unwrap_or("a key of a kind that this device cannot use");
        tracing::debug!(%error, "the key is not loaded");
        let advice = "RSA of 2048 bits or more, P-256, P-384 and Ed25519 work: \
                      `openssl ecparam -name prime256v1 -genkey -noout -out device.key`, then a new certificate for it";
        unreadable("key_file", key, &format!("it holds {what}; {advice}"))
    })?;
    let several = chain.len() > 1;
    let own = CertifiedKey::new(chain, signing);
    match own.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(own),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let other = certificate.display();
            let advice = "`openssl pkey -in KEY -pubout` and `openssl x509 -in CERTIFICATE -pubkey -noout` print the \
                          same for a pair";
            let first = if several { ", in which the device's own certificate must be the first" } else { "" };
            Err(unreadable(
                "key_file",
                key,
                &format!("it is not the key of certificate_file = {other}{first}; {advice}"),
            ))
        }
        Err(error) if format!("{error:?}").contains("UnsupportedCertVersion") => {
            let what = "it is an X.509 version 1 certificate, which brokers and TLS do not take";
            Err(unreadable("certificate_file", certificate, &format!("{what}; {RECIPE}")))
        }
        Err(error) => {
            let what = format!("it is no certificate that TLS takes ({error})");
            Err(unreadable("certificate_file", certificate, &format!("{what}; {RECIPE}")))
        }
    }
}

/// Kinds of keys that people make and TLS here does not use, by their object identifiers.
fn kind_of_key(der: &[u8]) -> Option<&'static str> {
    let has = |oid: &[u8]| der.windows(oid.len()).any(|part| part == oid);
    Some(match () {
        () if has(b"\x06\x05\x2b\x81\x04\x00\x23") => "a P-521 key",
        () if has(b"\x06\x05\x2b\x81\x04\x00\x0a") => "a secp256k1 key",
        () if has(b"\x06\x03\x2b\x65\x71") => "an Ed448 key",
        () if has(b"\x06\x07\x2a\x86\x48\xce\x38\x04\x01") => "a DSA key",
        // An RSA key of 1024 bits has about 600 bytes.
        () if der.len() < 900 && has(b"\x02\x03\x01\x00\x01") => "an RSA key of less than 2048 bits",
        () => return None,
    })
}

pub fn roots(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, OptionsError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca_file {
        for certificate in certificates("ca_file", path)? {
            let what =
                |error: rustls::Error| format!("it holds what is no certificate of an authority ({error}); {RECIPE}");
            roots.add(certificate).map_err(|error| unreadable("ca_file", path, &what(error)))?;
        }
        return Ok(roots);
    }
    let system = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(system.certs);
    if added == 0 {
        return Err(OptionsError::Broker(
            "this system has no CA certificates; install `ca-certificates` or give ca_file".into(),
        ));
    }
    Ok(roots)
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    hedge_identity::read_certificates(path).map_err(|error| unreadable(field, path, &error))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, OptionsError> {
    hedge_identity::read_key(path).map_err(|error| unreadable("key_file", path, &error))
}

#[cfg(test)]
mod tests;
