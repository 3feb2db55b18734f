//! Payloads in a store that speaks S3 or in a folder, shared by three instances: read wherever they are wanted, deleted with
//! their cases, and none lost while the store is away.
#![allow(dead_code, clippy::cast_precision_loss, reason = "the devices are those of the bench")]

#[path = "../benches/fleet/device.rs"]
mod device;

use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use device::{Device, Fleet, LABEL, Stage, TASK};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Cloud, CloudSetup, Mosquitto, ObjectStore, Postgres, skip, wait};
use serde_json::json;
use tokio::sync::watch;

const DEVICES: usize = 6;

/// Of all devices together.
const CASES_PER_S: f64 = 30.0;

/// For what is no promise in time.
const PATIENCE: Duration = Duration::from_secs(120);

fn of(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Where payloads lie.
enum Store {
    Bucket(ObjectStore),
    Folder(PathBuf),
}

impl Store {
    fn environment(&self) -> Vec<(String, String)> {
        match self {
            Self::Bucket(store) => store.environment(),
            Self::Folder(path) => vec![("HEDGE_CLOUD_PAYLOADS".to_owned(), format!("file://{}", path.display()))],
        }
    }

    /// Whether it has a payload of this case.
    fn has(&self, case: &str) -> Result<bool> {
        Ok(match self {
            Self::Bucket(store) => store.names()?.iter().any(|name| name.starts_with(&format!("hedge/{case}/"))),
            Self::Folder(path) => {
                let inner = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
                let of_case = |file: &DirEntry| file.file_name().to_string_lossy().starts_with(&format!("{case}_"));
                let inner = inner.iter().filter(|entry| entry.path().is_dir());
                inner.flat_map(|entry| std::fs::read_dir(entry.path())).flatten().flatten().any(|file| of_case(&file))
            }
        })
    }

    fn take_away(&self) -> Result<()> {
        match self {
            Self::Bucket(store) => store.freeze(),
            Self::Folder(path) => Ok(std::fs::rename(path, path.with_extension("away"))?),
        }
    }

    fn bring_back(&self) -> Result<()> {
        match self {
            Self::Bucket(store) => store.thaw(),
            Self::Folder(path) => Ok(std::fs::rename(path.with_extension("away"), path)?),
        }
    }
}

#[test]
fn payloads_in_an_object_store_are_read_deleted_and_not_lost_while_it_is_away() -> Result<()> {
    if !skip::has_mosquitto() || !skip::has_postgres() || !skip::has_object_store() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    read_deleted_and_not_lost(dir.path(), &Store::Bucket(ObjectStore::start(dir.path())?))
}

#[test]
fn payloads_in_a_folder_are_read_deleted_and_not_lost_while_it_is_away() -> Result<()> {
    if !skip::has_mosquitto() || !skip::has_postgres() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    read_deleted_and_not_lost(dir.path(), &Store::Folder(dir.path().join("payloads")))
}

fn read_deleted_and_not_lost(dir: &Path, store: &Store) -> Result<()> {
    let postgres = Postgres::start(dir)?;
    let mosquitto = Mosquitto::start_with(dir, &MosquittoSetup { shipped_limits: true, ..MosquittoSetup::default() })?;
    let mut clouds = Vec::new();
    for number in 1..=3 {
        let mut setup =
            CloudSetup { instance: format!("cloud-{number}"), ..CloudSetup::stub(&mosquitto.url(), TASK, LABEL) };
        setup.environment = store.environment();
        setup.environment.push(("HEDGE_CLOUD_RECORDS".to_owned(), postgres.url()));
        let cloud = Cloud::start(dir, &setup)?;
        cloud.wait_until_connected()?;
        clouds.push(cloud);
    }
    let every = Some(Duration::from_secs_f64(DEVICES as f64 / CASES_PER_S));
    let fleet = Arc::new(Fleet { every, ..Fleet::at(mosquitto.address())? });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (stage, stages) = watch::channel(Stage::Working);
    for number in 0..DEVICES {
        runtime.spawn(Device::new(fleet.clone(), stages.clone(), number)?.run(number as f64 / DEVICES as f64));
    }
    let counts = &fleet.counts;
    wait::until_true("cases are answered", PATIENCE, || Ok(of(&counts.answered) >= 60))?;

    // What one instance has put, each of them shows; nothing of it is in the database.
    let cases = clouds[0].get("/api/cases")?;
    let case = cases[0]["id"].as_str().context("a case")?.to_owned();
    ensure!(store.has(&case)?, "the payload of {case} is not there");
    for cloud in &clouds {
        let url = format!("{}/api/cases/{case}/payload", cloud.dashboard());
        let read = ureq::get(&url).call()?.body_mut().read_to_vec()?;
        // The first bytes tell one payload from another.
        assert_eq!((read.len(), &read[8..]), (fleet.payload.len(), &fleet.payload[8..]));
    }
    let path = format!("/api/cases/{case}/delete");
    let found = clouds[1].post(&path, &json!({}))?;
    clouds[1].post(&path, &json!({"cases": 1, "until_ms": found["until_ms"]}))?;
    wait::until_true("the payload is deleted", PATIENCE, || Ok(!store.has(&case)?))?;

    // Without it devices are told to wait, and go on by themselves.
    store.take_away()?;
    wait::until_true("devices are told to wait", PATIENCE, || Ok(of(&counts.busy) > 0))?;
    store.bring_back()?;
    let wanted = of(&counts.answered) + 30;
    wait::until_true("cases are answered again", PATIENCE, || Ok(of(&counts.answered) >= wanted))?;
    stage.send_replace(Stage::Finishing);
    wait::until_true("every case is answered", PATIENCE, || Ok(of(&counts.answered) == of(&counts.made)))
        .with_context(|| clouds.iter().map(Cloud::log_end).collect::<Vec<_>>().join("\n"))?;
    assert_eq!(of(&counts.twice), 0);
    for cloud in &clouds {
        let figures = cloud.get("/api/figures")?;
        assert_eq!((&figures["waiting"], &figures["failed"], &figures["dead"]), (&json!(0), &json!(0), &json!(0)));
    }
    Ok(())
}
