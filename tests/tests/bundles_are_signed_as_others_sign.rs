//! A bundle signed by `hedge-cloud` is verified by PyPI's `model_signing`, and one signed there by us; whatever was
//! changed since is refused by both.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use hedge_tests::publisher::done;
use hedge_tests::{places, skip};

fn bundle(dir: &Path, words: &[&str]) -> Result<Output> {
    Ok(Command::new(places::program("hedge-cloud")?).current_dir(dir).arg("bundle").args(words).output()?)
}

/// What it says while it refuses.
#[track_caller]
fn refused(output: &Output, because: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(because), "{said}");
}

/// A key and a packed, signed bundle in `packed`.
fn signed(dir: &Path) -> Result<()> {
    let model = places::model("fashion-small");
    done(&bundle(dir, &["key", "release"])?);
    done(&bundle(dir, &["pack", &model.display().to_string(), "packed"])?);
    done(&bundle(dir, &["sign", "packed", "--key", "release.key"])?);
    Ok(())
}

#[test]
fn model_signing_verifies_ours_and_we_verify_theirs() -> Result<()> {
    let Some(python) = std::env::var_os("HEDGETEST_PYTHON") else {
        skip::skipped("no Python environment with model_signing; `cargo xtask test` makes one");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    signed(dir)?;
    let model_signing = |words: &[&str]| -> Result<Output> {
        Ok(Command::new(&python).current_dir(dir).args(["-m", "model_signing"]).args(words).output()?)
    };
    let check = ["verify", "key", "--signature", "packed/model.sig", "--public_key", "release.pub", "packed"];
    done(&model_signing(&check)?);

    // Theirs replaces ours, and is ours to check.
    std::fs::remove_file(dir.join("packed/model.sig"))?;
    done(&model_signing(&[
        "sign",
        "key",
        "--signature",
        "packed/model.sig",
        "--private_key",
        "release.key",
        "packed",
    ])?);
    let said = done(&bundle(dir, &["verify", "packed", "--key", "release.pub"])?);
    ensure!(said.contains("all as signed"), "{said}");

    std::fs::write(dir.join("packed/labels.txt"), "a\nb\n")?;
    refused(
        &bundle(dir, &["verify", "packed", "--key", "release.pub"])?,
        "labels.txt: it is not the file that was signed",
    );
    ensure!(!model_signing(&check)?.status.success(), "they refuse it, too");
    Ok(())
}

#[test]
fn a_bundle_is_packed_signed_published_and_found_in_the_list() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    signed(dir)?;
    for owner in ["owner-1", "owner-2", "owner-3"] {
        done(&bundle(dir, &["key", owner])?);
    }
    let root = ["root", "--to", "published", "--root-key", "owner-1.pub", "--root-key", "owner-2.pub"];
    let root = [&root[..], &["--root-threshold", "2", "--release-key", "release.pub", "--key", "owner-1.key"]].concat();
    let said = done(&bundle(dir, &root)?);
    ensure!(said.contains("1 more must sign"), "{said}");
    let publish = ["publish", "packed", "--to", "published", "--key", "release.key"];
    refused(&bundle(dir, &publish)?, "root/1.json");
    let said = done(&bundle(dir, &["sign", "published/root/1.unfinished.json", "--key", "owner-2.key"])?);
    ensure!(said.contains("published/root/1.json"), "{said}");
    done(&bundle(dir, &publish)?);
    let said = done(&bundle(dir, &["inspect", "published"])?);
    ensure!(said.contains("2 of 2 keys sign roots") && said.contains("fashion-small/1: "), "{said}");
    done(&bundle(dir, &["verify", "published/fashion-small/1", "--folder", "published"])?);

    // What is published stays as it is, and a key that the root does not list publishes nothing.
    done(&bundle(dir, &["sign", "packed", "--key", "release.key"])?);
    refused(&bundle(dir, &publish)?, "published already");
    done(&bundle(dir, &["sign", "packed", "--key", "owner-3.key"])?);
    refused(&bundle(dir, &publish)?, "no key that counts");

    // The release key is stolen: two owners put another in its place.
    done(&bundle(dir, &["key", "next"])?);
    let next =
        ["root", "--to", "published", "--release-key", "next.pub", "--key", "owner-1.key", "--key", "owner-2.key"];
    ensure!(done(&bundle(dir, &next)?).contains("root/2.json"));
    refused(&bundle(dir, &["verify", "published/fashion-small/1", "--folder", "published"])?, "no key that counts");
    std::fs::remove_dir_all(dir.join("published/fashion-small"))?;
    done(&bundle(dir, &["sign", "packed", "--key", "next.key"])?);
    let said = done(&bundle(dir, &["publish", "packed", "--to", "published", "--key", "next.key"])?);
    ensure!(said.contains("begins anew"), "{said}");
    Ok(())
}

#[test]
fn an_encrypted_or_foreign_key_is_named_and_no_key_is_overwritten() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    signed(dir)?;
    refused(&bundle(dir, &["key", "release"])?, "release.pub");
    std::fs::write(dir.join("x.key"), "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")?;
    refused(&bundle(dir, &["sign", "packed", "--key", "x.key"])?, "openssl pkcs8");
    refused(&bundle(dir, &["pack", "packed", "packed"])?, "packed");
    Ok(())
}
