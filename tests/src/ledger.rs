//! What a device has said about its outbox: which cases it stored and which it dropped when asked to.
//!
//! The oracle of tests in which only one device and its disk are real. Cases are told apart by their payloads, too:
//! each is a picture of noise that can be made again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, CaseId, Refusal};

use crate::fashion::noise_png;
use crate::interface::Interface;

/// How to make a payload again.
#[derive(Debug, Clone, Copy)]
pub struct Picture {
    /// Behind the picture itself: readers of PNG stop at its end.
    pub bytes: usize,
    pub seed: u64,
}

/// Pixels of the picture proper: it costs the device little, so that the disk is what is tested.
const PIXELS: usize = 400;

impl Picture {
    fn make(self) -> Result<Vec<u8>> {
        let mut payload = noise_png(PIXELS, self.seed)?;
        let mut state = self.seed | 1;
        payload.extend(
            std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .take(self.bytes),
        );
        Ok(payload)
    }
}

/// For any number of threads.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    stored: BTreeMap<String, Picture>,
    /// Asked to be dropped; whether that was done nobody said.
    perhaps: BTreeSet<String>,
    dropped: BTreeSet<String>,
    refused: BTreeMap<Refusal, u64>,
}

impl Ledger {
    /// Posts one picture and notes what the device said of its case; nothing if it did not answer.
    pub fn post(&self, http: &Interface, source: &str, picture: Picture) -> Result<CaseFate> {
        let answer = http.post(source, "", "image/png", &picture.make()?)?;
        let fate = answer.case.context("the device was sure of a picture of noise")?;
        let mut book = self.book();
        match fate {
            CaseFate::Stored => drop(book.stored.insert(short(&answer.id), picture)),
            CaseFate::Refused(refusal) => *book.refused.entry(refusal).or_default() += 1,
            CaseFate::Pending => {}
            // Nothing ends before its answer is given.
            CaseFate::Dead | CaseFate::Dropped => anyhow::bail!("{} has ended already: {fate:?}", answer.id),
        }
        Ok(fate)
    }

    /// Has a case dropped.
    pub fn drop_case(&self, http: &Interface, id: &str) -> Result<()> {
        {
            let mut book = self.book();
            book.stored.remove(id);
            book.perhaps.insert(id.to_owned());
        }
        let (status, text) = http.post_json("/v1/queue/drop", &format!("{{\"ids\":[\"{id}\"]}}"))?;
        ensure!(status == 200 && !text.contains("problem"), "dropping {id}: {status} {text}");
        let mut book = self.book();
        book.perhaps.remove(id);
        book.dropped.insert(id.to_owned());
        Ok(())
    }

    /// The ids of what must be there.
    #[must_use]
    pub fn stored(&self) -> Vec<String> {
        self.book().stored.keys().cloned().collect()
    }

    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.book().refused.get(&refusal).copied().unwrap_or(0)
    }

    /// Compares all of it with what the device holds, byte by byte. Returns how many cases were checked.
    pub fn check(&self, http: &Interface) -> Result<usize> {
        let (status, text) = http.get("/v1/queue/ids")?;
        ensure!(status == 200, "GET of the ids: {status} {text}");
        let held: BTreeSet<String> = serde_json::from_str(&text)?;
        let book = self.book();
        let lost: Vec<_> = book.stored.keys().filter(|id| !held.contains(*id)).collect();
        ensure!(lost.is_empty(), "{} of {} stored cases are lost: {lost:?}", lost.len(), book.stored.len());
        let back: Vec<_> = book.dropped.iter().filter(|id| held.contains(*id)).collect();
        ensure!(back.is_empty(), "dropped cases are back: {back:?}");
        for (id, picture) in &book.stored {
            let payload = http.bytes(&format!("/v1/queue/cases/{id}/payload"))?;
            ensure!(payload == picture.make()?, "the payload of {id} has changed");
        }
        Ok(book.stored.len())
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id as the queue lists it: without the device.
fn short(id: &CaseId) -> String {
    format!("{:016x}.{}", id.key.epoch.0, id.key.sequence)
}
