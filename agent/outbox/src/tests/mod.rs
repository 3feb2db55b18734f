//! The outbox's promises, on a disk that forgets, tears and fills up.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cuts;
mod damage;
mod eviction;
mod faults;
mod format;
mod inspect;
mod model;
mod paper;
mod recent;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_core::outbox::WhenFull;
use hedge_proto::{CaseKey, Epoch};

use self::paper::PaperDisk;
use super::{Limits, NewCase, OpenReport, Outbox};

/// Small segments, so that short tests see several come and go.
const SEGMENT_BYTES: u64 = 2048;

const LIMITS: Limits = Limits {
    cases_max: 1000,
    bytes_max: 10 * 1024 * 1024,
    free_bytes_min: 0,
    payload_bytes_max: 64 * 1024,
    when_full: WhenFull::RefuseNew,
};

fn key(sequence: u64) -> CaseKey {
    CaseKey { epoch: Epoch(0xABCD), sequence }
}

fn case(sequence: u64, sort_key: f64, payload_bytes: usize) -> NewCase {
    let filler = u8::try_from(sequence % 251).unwrap();
    NewCase {
        key: key(sequence),
        sort_key,
        stored_at: Moment(1000 + sequence),
        header: format!("header of {sequence}").into_bytes(),
        payload: Bytes::from(vec![filler; payload_bytes]),
    }
}

/// An outbox on a paper disk, its queue in a folder of the test's own.
struct Bench {
    disk: Arc<PaperDisk>,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { disk: Arc::default(), folder: tempfile::tempdir().unwrap(), runtime }
    }

    fn queue(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    fn open(&self) -> (Outbox, OpenReport) {
        self.open_with(LIMITS)
    }

    fn open_with(&self, limits: Limits) -> (Outbox, OpenReport) {
        let disk = Arc::clone(&self.disk);
        Outbox::open_on(disk, &self.queue(), limits, SEGMENT_BYTES, None).unwrap()
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}
