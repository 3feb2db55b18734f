//! The command line of `hedge-cloud bundle`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use hedge_core::release::{List, PublicKey, name_and_version};
use hedge_inference::Bundle;
use hedge_inference::bundle::MANIFEST;
use hedge_inference::signing::{
    Payload, PrivateKey, is_signed, public_pem, read_public_key, self_contained, sign_folder, verify_folder,
};
use hedge_proto::Name;

use super::{list_path, publish, read_envelope, root, trusted};

const AFTER: &str = "\
From keys to a published bundle, once:
  hedge-cloud bundle key owner-1; hedge-cloud bundle key owner-2      (on machines of their own)
  hedge-cloud bundle key release
  hedge-cloud bundle root --to bundles --root-key owner-1.pub --root-key owner-2.pub --root-threshold 2 \\
    --release-key release.pub --key owner-1.key
  hedge-cloud bundle sign bundles/root/1.unfinished.json --key owner-2.key

and for each model:
  hedge-cloud bundle pack models/fashion-small packed
  hedge-cloud bundle sign packed --key release.key
  hedge-cloud bundle publish packed --to bundles --key release.key

A signature is in the format of OpenSSF Model Signing. Python's `model_signing` verifies it:
  model_signing verify key --signature packed/model.sig --public_key release.pub packed

docs/bundles.md says who keeps which key, and what to do when one is stolen.";

/// Sign model bundles, and keep a folder of them that devices can fetch from
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Debug, Subcommand)]
enum BundleCommand {
    /// Copy what belongs to a bundle into a new folder, having checked that it needs nothing else
    Pack {
        /// The folder with the model's `manifest.toml`
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The new folder
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
    /// Make a key to sign with: NAME.key, which is secret, and NAME.pub
    Key {
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
    /// Sign a bundle's folder, or an unfinished root
    Sign {
        #[arg(value_name = "DIR|ROOT")]
        path: PathBuf,
        /// The key (PEM); for a root several may be given
        #[arg(long, value_name = "FILE", required = true)]
        key: Vec<PathBuf>,
    },
    /// Check that a bundle is signed, that every file is as signed, and that it needs nothing else
    Verify {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A public key (PEM) that may have signed it
        #[arg(long, value_name = "FILE", required_unless_present = "folder")]
        key: Vec<PathBuf>,
        /// A folder of published bundles whose release keys may have signed it
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
    /// Say what a bundle, or a folder of published bundles, holds and who signed it
    Inspect {
        #[arg(value_name = "DIR|FOLDER")]
        path: PathBuf,
    },
    /// Write the next root: whose signatures count. What is not given stays as it is
    Root(RootArgs),
    /// Copy signed bundles into a folder that devices fetch from, and sign the list of what is there
    Publish(PublishArgs),
}

#[derive(Debug, Args)]
pub(super) struct RootArgs {
    /// The folder of published bundles
    #[arg(long, value_name = "FOLDER")]
    pub(super) to: PathBuf,
    /// A public key (PEM) that may sign roots; give all
    #[arg(long, value_name = "FILE")]
    pub(super) root_key: Vec<PathBuf>,
    /// How many of them must sign [default: as before, at first 1]
    #[arg(long, value_name = "N")]
    pub(super) root_threshold: Option<usize>,
    /// A public key (PEM) that may sign bundles and their list; give all
    #[arg(long, value_name = "FILE")]
    pub(super) release_key: Vec<PathBuf>,
    /// How many of them must sign the list [default: as before, at first 1]
    #[arg(long, value_name = "N")]
    pub(super) release_threshold: Option<usize>,
    /// How many days it holds
    #[arg(long, value_name = "DAYS", default_value_t = 730, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) days: u16,
    /// A key (PEM) to sign it with now
    #[arg(long, value_name = "FILE")]
    pub(super) key: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// A signed bundle; none to sign the same list for longer
    #[arg(value_name = "DIR")]
    pub(super) bundle: Vec<PathBuf>,
    /// The folder of published bundles
    #[arg(long, value_name = "FOLDER")]
    pub(super) to: PathBuf,
    /// A release key (PEM); as many as the root wants
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) key: Vec<PathBuf>,
    /// A device that may take these bundles; all may if none is given
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Vec<Name>,
    /// A bundle that no device may take any more
    #[arg(long, value_name = "NAME/VERSION", value_parser = name_and_version)]
    pub(super) withdraw: Vec<(Name, Name)>,
    /// How many days the list holds: a device that is shown an old list notices after so long
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) days: u16,
}

/// Does what was asked; the text is for standard output.
pub fn run(args: &BundleArgs) -> anyhow::Result<String> {
    match &args.command {
        BundleCommand::Pack { dir, out } => pack(dir, out),
        BundleCommand::Key { name } => make_key(name),
        BundleCommand::Sign { path, key } if path.is_dir() => {
            ensure!(key.len() == 1, "a bundle has one signature; give one --key");
            let mut said = String::new();
            for key in key {
                said = format!("wrote {}", sign_folder(path, &PrivateKey::read(key)?)?.display());
            }
            Ok(said)
        }
        BundleCommand::Sign { path, key } => root::sign(path, key),
        BundleCommand::Verify { dir, key, folder } => verify(dir, key, folder.as_deref()),
        BundleCommand::Inspect { path } if list_path(path).exists() || path.join("root").is_dir() => {
            inspect_folder(path)
        }
        BundleCommand::Inspect { path } => inspect(path),
        BundleCommand::Root(args) => root::write(args),
        BundleCommand::Publish(args) => publish::write(args),
    }
}

fn make_key(name: &Path) -> anyhow::Result<String> {
    let with = |end: &str| PathBuf::from(format!("{}.{end}", name.display()));
    let (secret, public) = (with("key"), with("pub"));
    let (key, pem) = PrivateKey::generate()?;
    // One that is there may have signed what devices run.
    let open = |path: &Path, mode| fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let write = |path: &Path, mode, text: &str| {
        let written = open(path, mode).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.with_context(|| path.display().to_string())
    };
    write(&public, 0o644, &public_pem(&key.public()?))?;
    write(&secret, 0o600, &pem)?;
    Ok(format!("wrote {} (keep it secret, and a copy offline) and {}", secret.display(), public.display()))
}

fn pack(dir: &Path, out: &Path) -> anyhow::Result<String> {
    let bundle = Bundle::open(dir)?;
    self_contained(&bundle)?;
    let (manifest, files) = (bundle.manifest(), bundle.files());
    fs::create_dir(out).with_context(|| format!("the new folder {}", out.display()))?;
    let mut bytes = 0;
    for file in &files {
        let to = out.join(file);
        let at = || to.display().to_string();
        fs::create_dir_all(to.parent().unwrap_or(out)).with_context(at)?;
        bytes += fs::copy(dir.join(file), &to).with_context(at)?;
    }
    Ok(format!(
        "{} {}: {} files, {bytes} bytes in {}; next: `hedge-cloud bundle sign {} --key FILE`",
        manifest.name,
        manifest.version,
        files.len(),
        out.display(),
        out.display()
    ))
}

fn verify(dir: &Path, keys: &[PathBuf], folder: Option<&Path>) -> anyhow::Result<String> {
    let mut keys = keys.iter().map(|path| read_public_key(path)).collect::<Result<BTreeSet<PublicKey>, _>>()?;
    if let Some(folder) = folder {
        keys.extend(trusted(folder)?.root().release.keys.iter());
    }
    let verified = verify_folder(dir, &keys)?;
    // What Python has signed may be a model without a manifest.
    if dir.join(MANIFEST).exists() {
        self_contained(&Bundle::open(dir)?)?;
    }
    Ok(format!("{}: {} files, all as signed", dir.display(), verified.files.len()))
}

fn inspect(dir: &Path) -> anyhow::Result<String> {
    let bundle = Bundle::open(dir)?;
    let manifest = bundle.manifest();
    let mut said = format!("bundle     {} {} in {}\n", manifest.name, manifest.version, dir.display());
    said += &format!("task       {} ({} labels)\n", manifest.task, bundle.labels().len());
    for variant in &manifest.variants {
        said += &format!("variant    {}: {} bytes, sha256 {}\n", variant.name, variant.bytes, variant.sha256);
    }
    said += match self_contained(&bundle) {
        Ok(()) => "contents   one file a model, no custom operators\n".to_owned(),
        Err(error) => format!("contents   not to be delivered: {error}\n"),
    }
    .as_str();
    said += if is_signed(dir) {
        "signature  there; `hedge-cloud bundle verify` says whether it is good"
    } else {
        "signature  none: a device runs it only if it lies on the device"
    };
    Ok(said)
}

fn inspect_folder(folder: &Path) -> anyhow::Result<String> {
    let trusted = trusted(folder)?;
    let root = trusted.root();
    let day = |ms: u64| i64::try_from(ms.saturating_sub(crate::wall_ms()) / (24 * 3600 * 1000)).unwrap_or(i64::MAX);
    let mut said = format!(
        "root       {}: {} of {} keys sign roots, {} of {} sign the list, {} days left\n",
        root.version,
        root.root.threshold,
        root.root.keys.len(),
        root.release.threshold,
        root.release.keys.len(),
        day(root.expires_ms)
    );
    let path = list_path(folder);
    if !path.exists() {
        return Ok(said + "list       none; `hedge-cloud bundle publish` makes it");
    }
    let envelope = read_envelope(&path, Payload::List)?;
    root.release.met_by("the list of bundles", &envelope.signers(&root.release.keys))?;
    let list: List = serde_json::from_slice(envelope.bytes())?;
    said += &format!("list       {}: {} bundles, {} days left", list.version, list.bundles.len(), day(list.expires_ms));
    for one in &list.bundles {
        let who =
            one.devices.as_ref().map_or_else(|| "all devices".to_owned(), |some| format!("{} devices", some.len()));
        said += &format!("\nbundle     {}/{}: {} bytes, for {who}", one.name, one.version, one.bytes);
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BundleArgs,
    }

    fn bundle(dir: &Path, line: &str) -> Result<String, String> {
        let words = line.split(' ').map(|word| match word.split_once('/') {
            Some((_, rest)) => dir.join(rest).display().to_string(),
            None => word.to_owned(),
        });
        let line: Line = clap::Parser::try_parse_from(["bundle".to_owned()].into_iter().chain(words)).expect("a line");
        run(&line.args).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_key_that_does_not_count_signs_no_root_and_leaves_nothing_in_the_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        for key in ["owner", "release", "other"] {
            bundle(dir, &format!("key ./{key}")).expect("a key");
        }
        let root = "root --to ./public --root-key ./owner.pub --release-key ./release.pub --key";
        let error = bundle(dir, &format!("{root} ./other.key")).expect_err("refused");
        assert!(error.contains("other.key: it is none of the keys that may sign this root"), "{error}");
        assert!(!dir.join("public").exists());
        bundle(dir, &format!("{root} ./owner.key")).expect("signed");
        let error = bundle(dir, "publish ./nowhere --to ./public --key ./other.key").expect_err("refused");
        assert!(error.contains("other.key: it is none of the keys that may sign the list of bundles"), "{error}");
        bundle(dir, "publish --to ./public --key ./release.key").expect("an empty list");
    }
}
