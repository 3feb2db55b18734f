//! Says which tests could not run here and why, so that a green run never hides one.
//!
//! `cargo xtask test` collects the reasons and prints them at the end. In CI a skip is a failure: everything a
//! test needs can be installed there.

use std::io::Write as _;
use std::path::Path;

use crate::machine::Machine;
use crate::namespace::CloudSide;
use crate::{Ext4, browser, mosquitto, object_store, places, postgres, registry};

/// Notes that the calling test did not run. Panics in CI.
///
/// The test returns after this call.
#[track_caller]
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped {test}: {reason}");
    if let Some(list) = std::env::var_os("HEDGETEST_SKIPPED") {
        let noted = note(Path::new(&list), &format!("{test}: {reason}\n"));
        assert!(noted.is_ok(), "cannot write {}: {noted:?}", list.display());
    }
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {reason}");
}

#[track_caller]
fn is_here(here: bool, reason: &str) -> bool {
    if !here {
        skipped(reason);
    }
    here
}

fn note(list: &Path, line: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).open(list)?.write_all(line.as_bytes())
}

/// Whether ONNX Runtime is here; notes the skip if not.
#[track_caller]
pub fn has_onnxruntime() -> bool {
    is_here(
        places::onnxruntime().is_some(),
        "ONNX Runtime is not here; `cargo xtask test` fetches it and sets ORT_DYLIB_PATH",
    )
}

/// Whether mosquitto is installed; notes the skip if not.
#[track_caller]
pub fn has_mosquitto() -> bool {
    is_here(mosquitto::is_installed(), "mosquitto is not installed; on Debian: apt-get install mosquitto")
}

/// Whether a registry of containers is installed; notes the skip if not.
#[track_caller]
pub fn has_registry() -> bool {
    is_here(registry::is_installed(), "a registry is not installed; on Debian: apt-get install docker-registry")
}

/// Whether PostgreSQL is installed; notes the skip if not.
#[track_caller]
pub fn has_postgres() -> bool {
    is_here(postgres::is_installed(), "PostgreSQL is not installed; on Debian: apt-get install postgresql")
}

/// Whether an object store can be started; notes the skip if not.
#[track_caller]
pub fn has_object_store() -> bool {
    is_here(
        object_store::is_installed(),
        "there is no Python with moto; `cargo xtask test` makes one and sets HEDGETEST_PYTHON",
    )
}

/// Whether Chromium and its driver are installed; notes the skip if not.
#[track_caller]
pub fn has_browser() -> bool {
    is_here(
        Path::new(browser::CHROMEDRIVER).is_file(),
        "no browser is installed; on Debian: apt-get install --no-install-recommends chromium chromium-driver",
    )
}

/// Whether promtool is installed; notes the skip if not.
#[track_caller]
pub fn has_promtool() -> bool {
    is_here(
        Path::new(places::PROMTOOL).is_file(),
        "promtool is not installed; on Debian: apt-get install --no-install-recommends prometheus",
    )
}

/// Whether a machine can be booted here; notes the skip if not.
#[track_caller]
pub fn has_machine() -> bool {
    is_here(
        Machine::parts().is_some(),
        "no machine can be booted; `cargo xtask test` as root with mmdebstrap and systemd-container makes one",
    )
}

/// Whether this process may make network namespaces; notes the skip if not.
#[track_caller]
pub fn has_namespaces() -> bool {
    let reason = CloudSide::unavailable();
    is_here(reason.is_none(), reason.as_deref().unwrap_or_default())
}

/// Whether this process may mount a file system of its own; notes the skip if not.
#[track_caller]
pub fn has_ext4() -> bool {
    let reason = Ext4::unavailable();
    is_here(reason.is_none(), reason.as_deref().unwrap_or_default())
}
