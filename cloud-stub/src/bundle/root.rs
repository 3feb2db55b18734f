//! Roots: whose signatures count.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hedge_core::release::{PublicKey, Role, Root, Trusted};
use hedge_inference::signing::{Envelope, Payload, read_public_key};

use super::cli::RootArgs;
use super::{read_envelope, replace, root_path, signing_keys, trusted};
use crate::wall_ms;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Writes the next root. What is not given is as in the one before it.
pub(super) fn write(args: &RootArgs) -> anyhow::Result<String> {
    let folder = &args.to;
    let before = if root_path(folder, 1).exists() { Some(trusted(folder)?) } else { None };
    let root = next(args, before.as_ref().map(Trusted::root))?;
    let mut envelope = Envelope::new(Payload::Root, serde_json::to_vec(&root)?);
    add(&mut envelope, &args.key, &root, before.as_ref().map(Trusted::root))?;
    let path = root_path(folder, root.version);
    let missing = missing(&envelope, &root, before.as_ref().map(Trusted::root));
    let path = if missing == 0 { path } else { unfinished(&path) };
    replace(&path, &envelope.to_json())?;
    Ok(said(&path, missing))
}

/// One that has too few signatures is not where devices look.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished.json")
}

fn said(path: &Path, missing: usize) -> String {
    let path = path.display();
    match missing {
        0 => format!("wrote {path}"),
        _ => format!(
            "wrote {path}; {missing} more must sign it: `hedge-cloud bundle sign {path} --key FILE`, wherever their keys are"
        ),
    }
}

/// Signs with keys of this root, or of the one before it.
fn add(envelope: &mut Envelope, paths: &[PathBuf], root: &Root, before: Option<&Root>) -> anyhow::Result<()> {
    let own = root.root.keys.iter().chain(before.iter().flat_map(|before| before.root.keys.iter()));
    for key in signing_keys(paths, own, "this root")? {
        envelope.sign(&key)?;
    }
    Ok(())
}

/// How many more must sign it.
fn missing(envelope: &Envelope, root: &Root, before: Option<&Root>) -> usize {
    let lacks = |role: &Role| role.threshold.saturating_sub(envelope.signers(&role.keys).len());
    lacks(&root.root).max(before.map_or(0, |before| lacks(&before.root)))
}

fn next(args: &RootArgs, before: Option<&Root>) -> anyhow::Result<Root> {
    let role = |keys: &[PathBuf], threshold: Option<usize>, before: Option<&Role>, flag: &str| {
        let keys: BTreeSet<PublicKey> = match (keys, before) {
            ([], Some(before)) => before.keys.clone(),
            ([], None) => bail!("the first root needs --{flag}, once for each key"),
            (keys, _) => keys.iter().map(|path| read_public_key(path)).collect::<Result<_, _>>()?,
        };
        let threshold = threshold.or(before.map(|before| before.threshold)).unwrap_or(1);
        Ok(Role { threshold, keys })
    };
    let issued_ms = wall_ms();
    let root = Root {
        version: before.map_or(1, |before| before.version + 1),
        issued_ms,
        expires_ms: issued_ms + u64::from(args.days) * DAY_MS,
        root: role(&args.root_key, args.root_threshold, before.map(|root| &root.root), "root-key")?,
        release: role(&args.release_key, args.release_threshold, before.map(|root| &root.release), "release-key")?,
    };
    root.check()?;
    Ok(root)
}

/// Adds a signature to an unfinished root, and puts it in its place once enough have signed.
pub(super) fn sign(path: &Path, keys: &[PathBuf]) -> anyhow::Result<String> {
    let mut envelope = read_envelope(path, Payload::Root)?;
    let root: Root = serde_json::from_slice(envelope.bytes()).with_context(|| path.display().to_string())?;
    root.check()?;
    let folder = path.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let before = if root.version > 1 { Some(trusted(folder)?) } else { None };
    add(&mut envelope, keys, &root, before.as_ref().map(Trusted::root))?;
    let missing = missing(&envelope, &root, before.as_ref().map(Trusted::root));
    replace(path, &envelope.to_json())?;
    if missing > 0 {
        return Ok(said(path, missing));
    }
    let place = root_path(folder, root.version);
    if place != path {
        std::fs::rename(path, &place).with_context(|| place.display().to_string())?;
    }
    Ok(said(&place, 0))
}
