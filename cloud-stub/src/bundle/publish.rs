//! Puts a signed bundle where devices fetch from, and names it in the list.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use hedge_core::release::{Entry, List, Trusted};
use hedge_inference::Bundle;
use hedge_inference::signing::{Envelope, Payload, PrivateKey, SIGNATURE, Verified, self_contained, verify_folder};
use hedge_proto::Name;

use super::cli::PublishArgs;
use super::{list_path, read_envelope, replace, signing_keys, trusted};
use crate::wall_ms;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Opens a bundle whose signature one of the folder's release keys gave. Nothing of it is parsed before.
pub(super) fn open(dir: &Path, trusted: &Trusted) -> anyhow::Result<(Bundle, Verified)> {
    let verified = verify_folder(dir, &trusted.root().release.keys)?;
    let bundle = Bundle::open(dir)?;
    self_contained(&bundle)?;
    Ok((bundle, verified))
}

pub(super) fn write(args: &PublishArgs) -> anyhow::Result<String> {
    let folder = &args.to;
    let trusted = trusted(folder)?;
    let (mut list, fresh) = known(folder, &trusted)?;
    // Before anything is copied: what lies in the folder under a name and version stays so.
    let release = &trusted.root().release;
    let keys = signing_keys(&args.key, release.keys.iter(), "the list of bundles")?;
    let public = keys.iter().map(PrivateKey::public).collect::<Result<_, _>>()?;
    release.met_by("the list of bundles", &public)?;
    let mut said = String::new();
    for dir in &args.bundle {
        let (bundle, verified) = open(dir, &trusted)?;
        let entry = place(dir, folder, &bundle, &verified, &args.device)?;
        list.bundles.retain(|one| (&one.name, &one.version) != (&entry.name, &entry.version));
        said += &format!("{}/{} is in {}\n", entry.name, entry.version, folder.display());
        list.bundles.push(entry);
    }
    for (name, version) in &args.withdraw {
        let before = list.bundles.len();
        list.bundles.retain(|one| (&one.name, &one.version) != (name, version));
        ensure!(list.bundles.len() < before, "the list has no bundle {name}/{version}");
        said += &format!("{name}/{version} is withdrawn: devices that have it keep it, no other takes it\n");
    }
    list.version += 1;
    list.issued_ms = wall_ms();
    list.expires_ms = list.issued_ms + u64::from(args.days) * DAY_MS;
    list.check()?;
    let mut envelope = Envelope::new(Payload::List, serde_json::to_vec(&list)?);
    for key in &keys {
        envelope.sign(key)?;
    }
    replace(&list_path(folder), &envelope.to_json())?;
    let number = list.version;
    said += &format!("list {number} holds for {} days; publish again before", args.days);
    if !fresh {
        said +=
            "\nthe list before it was signed by keys that count no longer, so this one begins anew with its version";
    }
    Ok(said)
}

/// The list as it is. One that is not signed by today's keys is gone on from by its version alone.
fn known(folder: &Path, trusted: &Trusted) -> anyhow::Result<(List, bool)> {
    let path = list_path(folder);
    let mut list = List { version: 0, issued_ms: 0, expires_ms: 1, bundles: Vec::new() };
    if !path.exists() {
        return Ok((list, true));
    }
    let envelope = read_envelope(&path, Payload::List)?;
    let release = &trusted.root().release;
    let known: List = serde_json::from_slice(envelope.bytes()).with_context(|| path.display().to_string())?;
    if release.met_by("the list of bundles", &envelope.signers(&release.keys)).is_ok() {
        ensure!(
            known.version < u64::MAX / 2,
            "{}: version {} leaves no room; a key may be stolen: rotate release keys with `hedge-cloud bundle root`",
            path.display(),
            known.version
        );
        return Ok((known, true));
    }
    if known.version < u64::MAX / 2 {
        list.version = known.version;
    }
    Ok((list, false))
}

/// Copies the bundle's files. What is published under a name and version stays as it is.
fn place(dir: &Path, folder: &Path, bundle: &Bundle, verified: &Verified, devices: &[Name]) -> anyhow::Result<Entry> {
    let manifest = bundle.manifest();
    let (name, version) = (manifest.name.clone(), manifest.version.clone());
    let to = folder.join(name.as_str()).join(version.as_str());
    let mut bytes = 0;
    let old = to.join(SIGNATURE);
    let same = old.exists() && hedge_inference::bundle::sum_of(&old)? == verified.signature;
    ensure!(
        same || !old.exists(),
        "{} is published already and is another bundle; give this one another `version`",
        to.display()
    );
    for file in verified.files.keys().map(String::as_str).chain([SIGNATURE]) {
        let target = to.join(file);
        let at = || target.display().to_string();
        fs::create_dir_all(target.parent().unwrap_or(&to)).with_context(at)?;
        bytes += if same {
            fs::metadata(&target).with_context(at)?.len()
        } else {
            fs::copy(dir.join(file), &target).with_context(at)?
        };
    }
    let devices = (!devices.is_empty()).then(|| devices.iter().cloned().collect::<BTreeSet<_>>());
    Ok(Entry { name, version, signature: verified.signature, bytes, devices })
}
