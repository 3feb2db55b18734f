//! `hedge-cloud bundle`: signs model bundles, and keeps a folder of them that devices fetch from.
//!
//! ```text
//! FOLDER/root/1.json, 2.json, …     whose signatures count, each signed by the one before it
//! FOLDER/list.json                  which bundles there are, signed by release keys
//! FOLDER/NAME/VERSION/…             a bundle: model.sig and what it names
//! ```
//! Any web server can serve the folder: what is in it is believed for its signatures only.

pub mod cli;
mod publish;
mod published;
mod root;

pub use published::{Published, PublishedBundle, published};

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hedge_core::release::{DOCUMENT_BYTES_MAX, PublicKey, Root, Trusted};
use hedge_identity::write_whole;
use hedge_inference::signing::{Envelope, Payload, PrivateKey};

/// Where the root of this version is.
fn root_path(folder: &Path, version: u64) -> PathBuf {
    folder.join("root").join(format!("{version}.json"))
}

fn list_path(folder: &Path) -> PathBuf {
    folder.join("list.json")
}

fn read_envelope(path: &Path, payload: Payload) -> anyhow::Result<Envelope> {
    let shown = path.display();
    let bytes = std::fs::metadata(path).with_context(|| shown.to_string())?.len();
    anyhow::ensure!(bytes <= DOCUMENT_BYTES_MAX, "{shown} has {bytes} bytes, more than {DOCUMENT_BYTES_MAX}");
    let text = std::fs::read(path).with_context(|| shown.to_string())?;
    Envelope::read(payload, &text).map_err(|reason| anyhow::anyhow!("{shown}: {reason}"))
}

/// A root as the owner of the folder has it: signed as it says itself.
fn read_root(path: &Path) -> anyhow::Result<Root> {
    let envelope = read_envelope(path, Payload::Root)?;
    let root: Root = serde_json::from_slice(envelope.bytes()).with_context(|| path.display().to_string())?;
    root.check()?;
    root.root.met_by("the root", &envelope.signers(&root.root.keys)).with_context(|| path.display().to_string())?;
    Ok(root)
}

/// Follows the roots of a folder from the first, as a device does.
fn trusted(folder: &Path) -> anyhow::Result<Trusted> {
    let mut trusted = Trusted::begin(read_root(&root_path(folder, 1))?)?;
    loop {
        let path = root_path(folder, trusted.root().version + 1);
        if !path.exists() {
            return Ok(trusted);
        }
        let envelope = read_envelope(&path, Payload::Root)?;
        let next = trusted.next_root(envelope.bytes(), |keys| envelope.signers(keys));
        next.with_context(|| path.display().to_string())?;
    }
}

/// Keys to sign with, each one that counts among `keys`: what another signs would look signed and count nowhere.
fn signing_keys<'a>(
    paths: &[PathBuf],
    keys: impl Iterator<Item = &'a PublicKey> + Clone,
    what: &str,
) -> anyhow::Result<Vec<PrivateKey>> {
    let read = |path: &PathBuf| {
        let key = PrivateKey::read(path)?;
        let public = key.public()?;
        let counts = keys.clone().any(|one| *one == public);
        anyhow::ensure!(
            counts,
            "{}: it is none of the keys that may sign {what}; `hedge-cloud bundle root` sets which may",
            path.display()
        );
        Ok(key)
    };
    paths.iter().map(read).collect()
}

/// Who fetches it meanwhile gets the old or the new one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| write_whole(path, text.as_bytes(), 0o644));
    written.with_context(|| path.display().to_string())
}
