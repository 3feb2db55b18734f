//! DSSE envelopes: bytes, what kind of bytes they are, and signatures over both.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_core::release::{KEYS_MAX, PublicKey};
use hedge_proto::Digest;
use serde::{Deserialize, Serialize};

use super::SigningError;
use super::key::{PrivateKey, public_pem, verifies};
use crate::what_else;

/// What is in an envelope. Signatures are over its kind, too, so that no document passes for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// `hedge_core::release::Root`.
    Root,
    /// `hedge_core::release::List`.
    List,
    /// The sums of a bundle's files. Its envelope lies in a Sigstore bundle.
    Statement,
}

impl Payload {
    fn kind(self) -> &'static str {
        match self {
            Self::Root => "application/vnd.hedge.root+json",
            Self::List => "application/vnd.hedge.list+json",
            Self::Statement => "application/vnd.in-toto+json",
        }
    }
}

const SIGSTORE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Signed bytes. They are not believed, nor parsed, before [`Envelope::signers`] has been asked.
#[derive(Debug, Clone)]
pub struct Envelope {
    payload: Payload,
    bytes: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone)]
struct Signature {
    /// For people and other tools; nothing goes by it.
    key: String,
    bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    payload: String,
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Serialize, Deserialize)]
struct DsseSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sigstore {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Dsse,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Material {
    public_key: Hint,
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Hint {
    hint: String,
}

impl Envelope {
    #[must_use]
    pub fn new(payload: Payload, bytes: Vec<u8>) -> Self {
        Self { payload, bytes, signatures: Vec::new() }
    }

    /// Reads one with such a payload and no other.
    pub fn read(payload: Payload, text: &[u8]) -> Result<Self, String> {
        // Many a server, and every hotel's network, has a page for what it has not.
        let unsigned = |error: serde_json::Error| {
            let looks = what_else(text).map_or_else(String::new, |what| format!("{what}, "));
            format!("it is {looks}no signed document: {error}")
        };
        let dsse = if payload == Payload::Statement {
            let sigstore: Sigstore = serde_json::from_slice(text).map_err(unsigned)?;
            if sigstore.media_type != SIGSTORE {
                return Err(format!("`mediaType` is \"{}\" where \"{SIGSTORE}\" is read", sigstore.media_type));
            }
            sigstore.dsse_envelope
        } else {
            serde_json::from_slice(text).map_err(unsigned)?
        };
        if dsse.payload_type != payload.kind() {
            return Err(format!("`payloadType` is \"{}\" where \"{}\" is read", dsse.payload_type, payload.kind()));
        }
        if dsse.signatures.len() > KEYS_MAX {
            return Err(format!("it has {} signatures, more than {KEYS_MAX}", dsse.signatures.len()));
        }
        let decode = |field: &str, text: &str| {
            // Either alphabet is allowed.
            let text = text.replace('-', "+").replace('_', "/");
            STANDARD.decode(text).map_err(|error| format!("`{field}` is not base64: {error}"))
        };
        let signature = |one: DsseSignature| Ok(Signature { bytes: decode("sig", &one.sig)?, key: one.keyid });
        Ok(Self {
            payload,
            bytes: decode("payload", &dsse.payload)?,
            signatures: dsse.signatures.into_iter().map(signature).collect::<Result<_, String>>()?,
        })
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a signature. A key signs once.
    pub fn sign(&mut self, key: &PrivateKey) -> Result<(), SigningError> {
        let public = key.public()?;
        let name = Digest::of(public_pem(&public).as_bytes()).to_string();
        self.signatures.retain(|signature| signature.key != name);
        let bytes = key.sign(&encoded(self.payload.kind(), &self.bytes))?;
        self.signatures.push(Signature { key: name, bytes });
        Ok(())
    }

    /// Which of these keys have signed it.
    #[must_use]
    pub fn signers(&self, keys: &BTreeSet<PublicKey>) -> BTreeSet<PublicKey> {
        let message = encoded(self.payload.kind(), &self.bytes);
        let signed = |key: &&PublicKey| self.signatures.iter().any(|one| verifies(key, &message, &one.bytes));
        keys.iter().take(KEYS_MAX).filter(signed).copied().collect()
    }

    #[must_use]
    pub fn to_json(&self) -> String {
        let bundled = self.payload == Payload::Statement;
        let signature = |one: &Signature| DsseSignature {
            // Who reads a Sigstore bundle finds the key by its hint.
            keyid: if bundled { String::new() } else { one.key.clone() },
            sig: STANDARD.encode(&one.bytes),
        };
        let dsse = Dsse {
            payload: STANDARD.encode(&self.bytes),
            payload_type: self.payload.kind().to_owned(),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        let hint = self.signatures.first().map(|one| one.key.clone()).unwrap_or_default();
        let text = if bundled {
            let verification_material = Material { public_key: Hint { hint }, tlog_entries: Vec::new() };
            serde_json::to_string(&Sigstore {
                media_type: SIGSTORE.to_owned(),
                verification_material,
                dsse_envelope: dsse,
            })
        } else {
            serde_json::to_string(&dsse)
        };
        // Strings and lists of strings have a form in JSON.
        text.unwrap_or_default() + "\n"
    }
}

/// What is signed: DSSE's pre-authentication encoding.
fn encoded(kind: &str, bytes: &[u8]) -> Vec<u8> {
    [format!("DSSEv1 {} {kind} {} ", kind.len(), bytes.len()).as_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the DSSE protocol, its signature written as ASN.1, which Sigstore bundles hold.
    #[test]
    fn the_published_vector_of_dsse_verifies() {
        let message = encoded("http://example.com/HelloWorld", b"hello world");
        assert_eq!(message, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        let key = concat!(
            "\"0467cd390f77aa359cb08c2235f652270493a9ed832b0abcc01f70954c0390d238",
            "0c782bd54e269125a44f4433aff1432ce94e12bca73aa67ac80cea12608ddf74\""
        );
        let key: PublicKey = serde_json::from_str(key).expect("a key");
        let signature = STANDARD
            .decode(concat!(
                "MEQCIANyarEBrVbCdjtsaqyOSHJ14qeRk6CdxfhZ2fjvPEo7",
                "AiBR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
            ))
            .expect("base64");
        assert!(verifies(&key, &message, &signature));
        assert!(!verifies(&key, b"DSSEv1 29 http://example.com/HelloWorld 11 hello worlt", &signature));
    }

    #[test]
    fn signatures_are_counted_by_key_and_kind() {
        let (first, second) = (PrivateKey::generate().expect("a key").0, PrivateKey::generate().expect("a key").0);
        let keys = BTreeSet::from([first.public().expect("a key"), second.public().expect("a key")]);
        let mut envelope = Envelope::new(Payload::List, b"{}".to_vec());
        assert!(envelope.signers(&keys).is_empty());
        envelope.sign(&first).expect("signed");
        envelope.sign(&first).expect("signed");
        assert_eq!(envelope.signers(&keys).len(), 1, "signing twice is signing once");
        envelope.sign(&second).expect("signed");
        let text = envelope.to_json();
        let read = Envelope::read(Payload::List, text.as_bytes()).expect("an envelope");
        assert_eq!(read.signers(&keys), keys);
        assert!(Envelope::read(Payload::Root, text.as_bytes()).is_err(), "a list is no root");
        let passed_off = text.replace("vnd.hedge.list", "vnd.hedge.root");
        let read = Envelope::read(Payload::Root, passed_off.as_bytes()).expect("an envelope");
        assert!(read.signers(&keys).is_empty(), "nor signed as one");
    }

    #[test]
    fn what_is_no_envelope_is_refused_with_a_reason() {
        for text in
            ["", "{}", "[]", r#"{"payload":"*","payloadType":"application/vnd.hedge.list+json","signatures":[]}"#]
        {
            assert!(Envelope::read(Payload::List, text.as_bytes()).is_err(), "{text}");
        }
        let page = Envelope::read(Payload::List, b"<!DOCTYPE html><p>Please log in").expect_err("a page");
        assert!(page.starts_with("it is a web page, no signed document"), "{page}");
        let many = r#"{"sig":""},"#.repeat(17);
        let many = format!(
            r#"{{"payload":"","payloadType":"application/vnd.hedge.list+json","signatures":[{}]}}"#,
            many.trim_end_matches(',')
        );
        assert!(Envelope::read(Payload::List, many.as_bytes()).expect_err("too many").contains("17 signatures"));
    }
}
