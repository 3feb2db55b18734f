//! Reads the certificates and keys that `[broker]` names, and says what it found in place of them.
//!
//! Whatever TLS takes is taken. The rest has a sentence that names the file, what is in it, and the command that makes it
//! what it should be.

use std::path::Path;
use std::sync::Arc;

use hedge_inference::read_pem;
use rustls::pki_types::pem::PemObject;
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
    let own = CertifiedKey::new(chain, signing);
    match own.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(own),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let other = certificate.display();
            let advice = "`openssl pkey -in KEY -pubout` and `openssl x509 -in CERTIFICATE -pubkey -noout` print the \
                          same for a pair";
            Err(unreadable("key_file", key, &format!("it is not the key of certificate_file = {other}; {advice}")))
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
    let bytes = read_pem(path).map_err(|error| unreadable(field, path, &error))?;
    let read = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(field, path, &instead_of_certificate(&bytes, path))),
        Err(error) => Err(unreadable(field, path, &format!("its PEM is damaged ({error}); copy the whole file again"))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, OptionsError> {
    let bytes = read_pem(path).map_err(|error| unreadable("key_file", path, &error))?;
    if let Some(what) = instead_of_key(&bytes, path) {
        return Err(unreadable("key_file", path, &what));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        unreadable("key_file", path, &format!("its PEM is damaged ({error}); copy the whole file again"))
    })
}

/// The beginning of a DER file, and of a PKCS#12 one, which is a DER sequence that begins with its version, 3.
fn is_der(bytes: &[u8]) -> bool {
    matches!(bytes, [0x30, 0x80..=0x84, ..] | [0x30, _, 0x02 | 0x30, ..])
}

fn is_pkcs12(bytes: &[u8]) -> bool {
    is_der(bytes) && bytes.get(..16).unwrap_or(bytes).windows(3).take(6).any(|part| part == [0x02, 0x01, 0x03])
}

fn has(bytes: &[u8], label: &str) -> bool {
    bytes.windows(label.len()).any(|part| part == label.as_bytes())
}

/// What there is in a file that holds no PEM certificate.
fn instead_of_certificate(bytes: &[u8], path: &Path) -> String {
    let file = path.display();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        "it is empty".to_owned()
    } else if is_pkcs12(bytes) {
        format!("it is a PKCS#12 file; `openssl pkcs12 -in {file} -nokeys -out {file}.pem` takes the certificates out")
    } else if has(bytes, "PKCS7-----") {
        format!(
            "it is a PKCS#7 file; `openssl pkcs7 -in {file} -print_certs -out {file}.pem` takes the certificates out"
        )
    } else if is_der(bytes) {
        format!("it is DER, not PEM; `openssl x509 -inform der -in {file} -out {file}.pem` makes it PEM")
    } else if has(bytes, "BEGIN TRUSTED CERTIFICATE") {
        format!("it is OpenSSL's own form; `openssl x509 -in {file} -out {file}.pem` makes it a plain certificate")
    } else if has(bytes, "CERTIFICATE REQUEST-----") {
        "it is a request for a certificate; have the authority sign it: `openssl x509 -req -in REQUEST -CA …`"
            .to_owned()
    } else if has(bytes, "PRIVATE KEY-----") {
        "it holds a private key and no certificate: are the two files swapped?".to_owned()
    } else {
        "it holds no PEM certificate (-----BEGIN CERTIFICATE-----)".to_owned()
    }
}

/// What there is in a file that holds no PEM key which can be used as it is.
fn instead_of_key(bytes: &[u8], path: &Path) -> Option<String> {
    let file = path.display();
    Some(if bytes.iter().all(u8::is_ascii_whitespace) {
        "it is empty".to_owned()
    } else if has(bytes, "BEGIN ENCRYPTED PRIVATE KEY") || has(bytes, "Proc-Type: 4,ENCRYPTED") {
        let advice = "and nobody is there to type its passphrase";
        format!("the key is encrypted, {advice}; `openssl pkey -in {file} -out {file}.plain` and chmod 600 take it off")
    } else if has(bytes, "BEGIN OPENSSH PRIVATE KEY") {
        format!("it is an SSH key; `ssh-keygen -p -m PEM -f {file}` rewrites it, or make a new one with openssl")
    } else if has(bytes, "PRIVATE KEY-----") {
        return None;
    } else if is_pkcs12(bytes) {
        format!("it is a PKCS#12 file; `openssl pkcs12 -in {file} -nocerts -nodes -out {file}.pem` takes the key out")
    } else if is_der(bytes) {
        format!("it is DER, not PEM; `openssl pkey -inform der -in {file} -out {file}.pem` makes it PEM")
    } else if has(bytes, "BEGIN CERTIFICATE") {
        "it holds a certificate and no private key: are the two files swapped?".to_owned()
    } else if has(bytes, "PUBLIC KEY-----") {
        "it holds a public key; the private one is needed".to_owned()
    } else {
        "it holds no PEM private key (-----BEGIN PRIVATE KEY-----)".to_owned()
    })
}

#[cfg(test)]
mod tests;
