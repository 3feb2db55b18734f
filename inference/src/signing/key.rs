//! Keys in PEM files, as `openssl` and Python read and write them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_core::release::PublicKey;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use super::SigningError;
use crate::read_pem;

/// What stands before the point in a public key of P-256 (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// How many characters a line of PEM has.
const PEM_LINE: usize = 64;

/// A key that signs.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl PrivateKey {
    /// A new key and its PEM text, which is secret.
    pub fn generate() -> Result<(Self, String), SigningError> {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| SigningError::Key("this system gives no random numbers for a key".to_owned()))?;
        let key = Self::from_der(der.as_ref()).map_err(|reason| SigningError::Key(format!("a new key: {reason}")))?;
        Ok((key, pem("PRIVATE KEY", der.as_ref())))
    }

    pub fn read(path: &Path) -> Result<Self, SigningError> {
        let text = read_pem(path).map_err(SigningError::io(path))?;
        let wrong = |reason: &str| SigningError::Key(format!("{}: {reason}", path.display()));
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| {
            wrong("it holds no unencrypted `PRIVATE KEY`; convert it with `openssl pkcs8 -topk8 -nocrypt -in FILE`")
        })?;
        Self::from_der(der.secret_pkcs8_der()).map_err(|reason| wrong(&reason))
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random)
            .map_err(|_| "it is not a key of ECDSA over P-256; make one with `hedge-cloud bundle key`".to_owned())?;
        Ok(Self { pair, random })
    }

    /// Its other half.
    pub fn public(&self) -> Result<PublicKey, SigningError> {
        let point = self.pair.public_key().as_ref().try_into();
        point.map(PublicKey).map_err(|_| SigningError::Key("the key has no uncompressed point".to_owned()))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let signature = self.pair.sign(&self.random, message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| SigningError::Key("this system gives no random numbers for a signature".to_owned()))
    }
}

pub fn read_public_key(path: &Path) -> Result<PublicKey, SigningError> {
    let text = read_pem(path).map_err(SigningError::io(path))?;
    let wrong = |reason: &str| SigningError::Key(format!("{}: {reason}", path.display()));
    let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(&text);
    let der = keys.next().and_then(Result::ok).ok_or_else(|| wrong("it holds no `PUBLIC KEY`"))?;
    if keys.next().is_some() {
        return Err(wrong("it holds several keys; give each a file of its own, and name every file"));
    }
    let point = der.strip_prefix(&SPKI_PREFIX[..]).and_then(|point| point.try_into().ok());
    point.map(PublicKey).ok_or_else(|| wrong("it is not a key of ECDSA over P-256"))
}

/// As Python's `cryptography` writes it, to the last line break: sums of this text name keys.
#[must_use]
pub fn public_pem(key: &PublicKey) -> String {
    pem("PUBLIC KEY", &[&SPKI_PREFIX[..], &key.0].concat())
}

pub(super) fn verifies(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.0).verify(message, signature).is_ok()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_keys_is_refused_and_not_read_to_the_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("owners.pub");
        let key = || public_pem(&PrivateKey::generate().expect("a key").0.public().expect("its other half"));
        let one = key();
        std::fs::write(&path, &one).expect("written");
        assert_eq!(public_pem(&read_public_key(&path).expect("a key")), one);
        std::fs::write(&path, one + &key()).expect("written");
        let error = read_public_key(&path).expect_err("refused").to_string();
        assert!(error.contains("owners.pub: it holds several keys"), "{error}");
    }
}
