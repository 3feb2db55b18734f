//! Signs a bundle's folder, and believes a signed one only if every file is as signed and none came besides.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use hedge_core::release::PublicKey;
use hedge_proto::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::envelope::{Envelope, Payload};
use super::key::PrivateKey;
use super::{FILES_MAX, SIGNATURE, SIGNATURE_BYTES_MAX, SigningError, onnx};
use crate::bundle::{Bundle, MODEL_BYTES_MAX, sum_of};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";

/// How deep folders lie within each other in a bundle.
const DEPTH_MAX: usize = 8;

/// What a signature says of a folder that is as it says.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Of the signature's file.
    pub signature: Digest,
    /// The sum of every file, by its name in the folder.
    pub files: BTreeMap<String, Digest>,
    /// Which of the keys have signed.
    pub signers: BTreeSet<PublicKey>,
}

impl Verified {
    /// Reads a signature by one of `keys`. Nothing is said yet of any file.
    pub fn read(signature: &[u8], path: &Path, keys: &BTreeSet<PublicKey>) -> Result<Self, SigningError> {
        let malformed = |reason| SigningError::Malformed { what: path.display().to_string(), reason };
        let envelope = Envelope::read(Payload::Statement, signature).map_err(malformed)?;
        let signers = envelope.signers(keys);
        if signers.is_empty() {
            return Err(SigningError::NotByThese(path.to_owned()));
        }
        let files = read_statement(envelope.bytes()).map_err(malformed)?;
        Ok(Self { signature: Digest::of(signature), files, signers })
    }
}

/// Whether the folder has a signature at all.
#[must_use]
pub fn is_signed(dir: &Path) -> bool {
    dir.join(SIGNATURE).exists()
}

/// Writes the folder's signature over all that is in it.
pub fn sign_folder(dir: &Path, key: &PrivateKey) -> Result<PathBuf, SigningError> {
    let mut files = BTreeMap::new();
    for name in names(dir)? {
        files.insert(name.clone(), sum_of(&dir.join(&name))?);
    }
    if files.is_empty() {
        return Err(SigningError::Differs { path: dir.to_owned(), reason: "there is no file to sign".to_owned() });
    }
    let named = fs::canonicalize(dir).map_err(SigningError::io(dir))?;
    let named = named.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let mut envelope = Envelope::new(Payload::Statement, statement(&named, &files).to_string().into_bytes());
    envelope.sign(key)?;
    let path = dir.join(SIGNATURE);
    fs::write(&path, envelope.to_json()).map_err(SigningError::io(&path))?;
    Ok(path)
}

/// Whether one of `keys` has signed the folder, every file is as signed, and there is no other.
pub fn verify_folder(dir: &Path, keys: &BTreeSet<PublicKey>) -> Result<Verified, SigningError> {
    let path = dir.join(SIGNATURE);
    let mut signature = Vec::new();
    let file = fs::File::open(&path).map_err(SigningError::io(&path))?;
    file.take(SIGNATURE_BYTES_MAX + 1).read_to_end(&mut signature).map_err(SigningError::io(&path))?;
    if signature.len() as u64 > SIGNATURE_BYTES_MAX {
        let reason = format!("it has more than {SIGNATURE_BYTES_MAX} bytes");
        return Err(SigningError::Malformed { what: path.display().to_string(), reason });
    }
    let verified = Verified::read(&signature, &path, keys)?;
    let there = names(dir)?;
    let differs =
        |name: &str, reason: &str| Err(SigningError::Differs { path: dir.join(name), reason: reason.to_owned() });
    if let Some(name) = there.iter().find(|name| !verified.files.contains_key(*name)) {
        return differs(name, "the signature does not name it; remove it, or sign the folder again");
    }
    for (name, sum) in &verified.files {
        if !there.contains(name) {
            return differs(name, "the signature names it and it is not there; copy the bundle again");
        }
        if sum_of(&dir.join(name))? != *sum {
            return differs(name, "it is not the file that was signed; copy the bundle again");
        }
    }
    Ok(verified)
}

/// Whether every model of an opened bundle is one file that needs nothing else.
pub fn self_contained(bundle: &Bundle) -> Result<(), SigningError> {
    for variant in &bundle.manifest().variants {
        let path = bundle.variant_path(variant);
        let model = fs::read(&path).map_err(SigningError::io(&path))?;
        onnx::check(&model).map_err(|reason| SigningError::Differs { path, reason })?;
    }
    Ok(())
}

/// The names of all files below a folder but its signature, in order. Links and devices are refused, not followed.
fn names(dir: &Path) -> Result<BTreeSet<String>, SigningError> {
    let mut found = BTreeSet::new();
    walk(dir, "", 0, &mut found)?;
    found.remove(SIGNATURE);
    Ok(found)
}

fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut BTreeSet<String>) -> Result<(), SigningError> {
    for entry in fs::read_dir(dir).map_err(SigningError::io(dir))? {
        let entry = entry.map_err(SigningError::io(dir))?;
        let path = entry.path();
        let differs = |reason: &str| Err(SigningError::Differs { path: path.clone(), reason: reason.to_owned() });
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
            return differs("its name is not UTF-8");
        };
        let kind = entry.file_type().map_err(SigningError::io(&path))?;
        if kind.is_dir() && depth < DEPTH_MAX {
            walk(&path, &format!("{name}/"), depth + 1, found)?;
        } else if kind.is_file() {
            found.insert(name);
        } else {
            return differs("a signed bundle holds files and folders only, no links, and those not too deep");
        }
        if found.len() > FILES_MAX {
            return differs("a signed bundle has at most 1024 files");
        }
        let bytes = entry.metadata().map_err(SigningError::io(&path))?.len();
        if bytes > MODEL_BYTES_MAX {
            return differs("it is larger than any model may be");
        }
    }
    Ok(())
}

/// The statement of `model_signing` 1.0: files in order, and the sum of their sums.
fn statement(name: &str, files: &BTreeMap<String, Digest>) -> Value {
    let resource = |(name, sum): (&String, &Digest)| json!({ "name": name, "algorithm": "sha256", "digest": sum });
    json!({
        "_type": STATEMENT,
        "subject": [{ "name": name, "digest": { "sha256": sum_of_sums(files.values()) } }],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": [SIGNATURE],
            },
            "resources": files.iter().map(resource).collect::<Vec<_>>(),
        },
    })
}

fn sum_of_sums<'a>(sums: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut all = Sha256::new();
    sums.for_each(|sum| all.update(sum.0));
    Digest(all.finalize().into())
}

/// The files a statement names, if it is one that is read here.
fn read_statement(bytes: &[u8]) -> Result<BTreeMap<String, Digest>, String> {
    let statement: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let text = |pointer: &str| statement.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    for (pointer, expected) in [
        ("/_type", STATEMENT),
        ("/predicateType", PREDICATE),
        ("/predicate/serialization/method", "files"),
        ("/predicate/serialization/hash_type", "sha256"),
    ] {
        if text(pointer) != expected {
            return Err(format!("`{pointer}` is \"{}\" where \"{expected}\" is read", text(pointer)));
        }
    }
    let resources = statement.pointer("/predicate/resources").and_then(Value::as_array);
    let resources = resources.ok_or("`/predicate/resources` is no list")?;
    if resources.len() > FILES_MAX {
        return Err(format!("it names {} files, more than {FILES_MAX}", resources.len()));
    }
    let (mut files, mut sums) = (BTreeMap::new(), Vec::new());
    for resource in resources {
        let (name, sum) = read_resource(resource)?;
        sums.push(sum);
        if files.insert(name.clone(), sum).is_some() {
            return Err(format!("it names `{name}` twice"));
        }
    }
    if text("/subject/0/digest/sha256") != sum_of_sums(sums.iter()).to_string() {
        return Err("its subject is not the sum of the sums it names".to_owned());
    }
    Ok(files)
}

fn read_resource(resource: &Value) -> Result<(String, Digest), String> {
    let text = |field: &str| resource.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = text("name");
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if !name.split('/').all(plain) || name == SIGNATURE || name.chars().any(char::is_control) {
        return Err(format!("`{}` is not the name of a file inside the bundle's folder", name.escape_debug()));
    }
    if text("algorithm") != "sha256" {
        return Err(format!("`{name}` has a sum by `{}`; only sha256 is read", text("algorithm").escape_debug()));
    }
    let sum = text("digest").parse().map_err(|error| format!("`{name}`: {error}"))?;
    Ok((name.to_owned(), sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Signed {
        dir: tempfile::TempDir,
        keys: BTreeSet<PublicKey>,
    }

    fn signed() -> Signed {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("golden")).expect("a folder");
        for (name, content) in [("manifest.toml", "m"), ("golden/a.png", "a"), ("model.onnx", "o")] {
            fs::write(dir.path().join(name), content).expect("written");
        }
        let (key, _) = PrivateKey::generate().expect("a key");
        sign_folder(dir.path(), &key).expect("signed");
        Signed { dir, keys: BTreeSet::from([key.public().expect("a key")]) }
    }

    #[track_caller]
    fn refused(signed: &Signed, because: &str) {
        let why = verify_folder(signed.dir.path(), &signed.keys).expect_err("it is refused").to_string();
        assert!(why.contains(because), "{why}");
    }

    #[test]
    fn a_signed_folder_verifies_and_names_its_files() {
        let signed = signed();
        let verified = verify_folder(signed.dir.path(), &signed.keys).expect("it is whole");
        assert_eq!(verified.files.keys().collect::<Vec<_>>(), ["golden/a.png", "manifest.toml", "model.onnx"]);
        assert_eq!(verified.signers, signed.keys);
    }

    #[test]
    fn a_tampered_missing_or_added_file_is_refused_by_name() {
        let one = signed();
        fs::write(one.dir.path().join("model.onnx"), "p").expect("written");
        refused(&one, "model.onnx: it is not the file that was signed");
        let one = signed();
        fs::write(one.dir.path().join("manifest.toml"), "m ").expect("written");
        refused(&one, "manifest.toml");
        let one = signed();
        fs::remove_file(one.dir.path().join("golden/a.png")).expect("removed");
        refused(&one, "golden/a.png");
        let one = signed();
        fs::write(one.dir.path().join("extra.so"), "x").expect("written");
        refused(&one, "extra.so: the signature does not name it");
        let one = signed();
        fs::remove_file(one.dir.path().join("model.onnx")).expect("removed");
        std::os::unix::fs::symlink("/etc/hostname", one.dir.path().join("model.onnx")).expect("linked");
        refused(&one, "no links");
    }

    #[test]
    fn another_key_or_a_changed_signature_is_refused() {
        let one = signed();
        let other = Signed { keys: signed().keys, ..signed() };
        refused(&other, "no key that counts");
        let path = one.dir.path().join(SIGNATURE);
        let text = fs::read_to_string(&path).expect("read");
        let envelope = Envelope::read(Payload::Statement, text.as_bytes()).expect("an envelope");
        let changed = String::from_utf8(envelope.bytes().to_vec()).expect("text").replace("model.onnx", "other.onnx");
        let payload = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
        fs::write(&path, text.replace(&payload(envelope.bytes()), &payload(changed.as_bytes()))).expect("written");
        refused(&one, "no key that counts");
        fs::write(&path, vec![b' '; 2 * 1024 * 1024]).expect("written");
        refused(&one, "more than");
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused_even_signed() {
        for name in ["../x", "/etc/passwd", "a/../b", "a//b", "./a", "", "a\\b", "a\u{0}b", SIGNATURE] {
            let files = BTreeMap::from([(name.to_owned(), Digest::of(b""))]);
            assert!(read_statement(statement("m", &files).to_string().as_bytes()).is_err(), "{name:?}");
        }
        let files = BTreeMap::from([("a/b.onnx".to_owned(), Digest::of(b""))]);
        let good = statement("m", &files).to_string();
        read_statement(good.as_bytes()).expect("a statement");
        for (from, to) in
            [("Statement/v1", "Statement/v0"), ("signature/v1.0", "signature/v9"), ("\"files\"", "\"shards\"")]
        {
            assert!(read_statement(good.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }
}
