//! What a folder of published bundles holds, for people: which bundles there are, and whose keys have signed each.
//!
//! A device checks every file before it takes one. Here only signatures are, so a page is drawn without reading models.

use std::path::Path;

use anyhow::Context as _;
use hedge_core::release::{List, PublicKey};
use hedge_inference::bundle::sum_of;
use hedge_inference::signing::{Payload, SIGNATURE, public_pem};
use hedge_proto::{Digest, Name};
use serde::Serialize;

use super::{list_path, read_envelope, trusted};

/// How much of a key's sum is told: `sha256sum` of its `.pub` begins with it.
const KEY_DIGITS: usize = 12;

/// The list as devices read it.
#[derive(Debug, Serialize)]
pub struct Published {
    version: u64,
    issued_ms: u64,
    /// After this, devices take nothing from it.
    expires_ms: u64,
    pub bundles: Vec<PublishedBundle>,
}

/// One bundle of the list.
#[derive(Debug, Serialize)]
pub struct PublishedBundle {
    pub name: Name,
    pub version: Name,
    bytes: u64,
    /// Release keys that have signed it, by the beginning of their sums.
    signed_by: Vec<String>,
    /// How many devices may take it; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<usize>,
    /// Why no device takes it as it lies there.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
}

/// Reads a folder's list, and of each bundle its signature.
pub fn published(folder: &Path) -> anyhow::Result<Published> {
    let trusted = trusted(folder)?;
    let release = &trusted.root().release;
    let path = list_path(folder);
    let envelope = read_envelope(&path, Payload::List)?;
    release
        .met_by("the list of bundles", &envelope.signers(&release.keys))
        .with_context(|| path.display().to_string())?;
    let list: List = serde_json::from_slice(envelope.bytes()).with_context(|| path.display().to_string())?;
    let bundles = list.bundles.into_iter().map(|entry| {
        let file = folder.join(entry.name.as_str()).join(entry.version.as_str()).join(SIGNATURE);
        let signers = sum_of(&file).map_err(anyhow::Error::from).and_then(|sum| {
            anyhow::ensure!(sum == entry.signature, "its signature is another than the list says");
            Ok(read_envelope(&file, Payload::Statement)?.signers(&release.keys))
        });
        let (signed_by, wrong) = match signers {
            Ok(keys) if keys.is_empty() => (Vec::new(), Some("no release key has signed it".to_owned())),
            Ok(keys) => (keys.iter().map(short).collect(), None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let devices = entry.devices.map(|some| some.len());
        PublishedBundle { name: entry.name, version: entry.version, bytes: entry.bytes, signed_by, devices, wrong }
    });
    let bundles = bundles.collect();
    Ok(Published { version: list.version, issued_ms: list.issued_ms, expires_ms: list.expires_ms, bundles })
}

fn short(key: &PublicKey) -> String {
    Digest::of(public_pem(key).as_bytes()).to_string().chars().take(KEY_DIGITS).collect()
}
