//! Certificates and keys as PEM files, or in plain words what such a file holds instead.

use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates of a PEM file, at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = hedge_inference::read_pem(path).map_err(|error| error.to_string())?;
    let read =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|error| damaged(&error))?;
    if read.is_empty() { Err(instead_of_certificate(&bytes, path)) } else { Ok(read) }
}

/// The private key of a PEM file.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = hedge_inference::read_pem(path).map_err(|error| error.to_string())?;
    match instead_of_key(&bytes, path) {
        Some(what) => Err(what),
        None => PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| damaged(&error)),
    }
}

/// The library shows the bytes of the line that it misses.
fn damaged(error: &pem::Error) -> String {
    let what = match error {
        pem::Error::MissingSectionEnd { .. } => "its line -----END …----- is missing or not a line of its own",
        pem::Error::IllegalSectionStart { .. } => "its line -----BEGIN …----- is not whole",
        pem::Error::Base64Decode(_) => "there is something between its lines that is no base64",
        _ => "it cannot be read",
    };
    format!("its PEM is damaged ({what}); copy the whole file again")
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
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_no_certificate_says_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("device.pem");
        for (bytes, words) in [
            (&b""[..], "it is empty"),
            (b"\x30\x82\x01\x8e\x30\x82", "it is DER, not PEM; `openssl x509 -inform der"),
            (b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "are the two files swapped?"),
            (b"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n", "it is a request"),
            (b"-----BEGIN CERTIFICATE-----\nMAA=\n", "its line -----END …----- is missing"),
            (b"-----BEGIN CERTIFICATE-----MAA=-----END CERTIFICATE-----", "its line -----END …----- is missing"),
            (b"-----BEGIN CERTIFICATE-----\nM*A=\n-----END CERTIFICATE-----\n", "is no base64"),
        ] {
            std::fs::write(&path, bytes).expect("written");
            for error in [crate::Certificate::read(&path).expect_err(words), read_certificates(&path).expect_err(words)]
            {
                assert!(error.contains(words) && !error.contains("["), "`{error}` does not say `{words}`");
            }
        }
    }
}
