//! Finds objects that no record names: those of commits that came to nothing, and of deletions that were not carried out.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use hedge_proto::Digest;

use super::{Objects, REQUEST_MAX, timed};
use crate::store::{Reader, RecordsAt, StoreError};
use crate::{utc, wall_ms};

/// How often all objects are looked at. A list of a thousand costs what one object costs to put.
const EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after the start for the first time: whoever starts again and again does not list again and again.
const FIRST: Duration = Duration::from_secs(60 * 60);

/// Younger objects may belong to a commit that is under way.
const AGE_MIN: Duration = Duration::from_secs(60 * 60);

/// How many objects are listed at once.
const PAGE: usize = 1000;

/// Looks at all objects from time to time, as long as this lives.
pub(in crate::store) struct Sweeping(#[expect(dead_code, reason = "what ends with it is the thread")] SyncSender<()>);

impl Sweeping {
    pub(in crate::store) fn start(objects: Objects, at: RecordsAt) -> Result<Self, StoreError> {
        let (alive, ended) = sync_channel(0);
        let work = move || {
            let mut wait = FIRST;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(wait) {
                wait = EVERY;
                let before_ms = wall_ms().saturating_sub(u64::try_from(AGE_MIN.as_millis()).unwrap_or(u64::MAX));
                match Reader::open(&at).and_then(|reader| objects.sweep(&reader, before_ms)) {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "objects that no record names are deleted"),
                    Err(error) => tracing::warn!("objects that no record names could not be looked for: {error}"),
                }
            }
        };
        let thread = std::thread::Builder::new().name("sweep".to_owned());
        thread.spawn(work).map_err(|error| StoreError::Objects(error.to_string()))?;
        Ok(Self(alive))
    }
}

impl Objects {
    /// Has those deleted that are older and that no record names; how many.
    pub(in crate::store) fn sweep(&self, reader: &Reader, before_ms: u64) -> Result<u64, StoreError> {
        let (before, mut after, mut count) = (as_listed(before_ms), None::<String>, 0);
        loop {
            let (backend, from) = (self.0.backend.clone(), after.take());
            let page = self.wait(async move { timed(REQUEST_MAX, backend.list(from, PAGE)).await })?;
            let Some((last, _)) = page.last() else { return Ok(count) };
            after = Some(last.clone());
            let mut left_over = Vec::new();
            for (key, modified) in page {
                let named = match read(&key) {
                    // None of ours: whoever put it there may want it.
                    None => true,
                    Some((id, sum)) => reader.names_payload(id, &sum)?,
                };
                if !named && modified.get(..before.len()).is_some_and(|modified| modified < before.as_str()) {
                    left_over.push(key);
                }
            }
            count += left_over.len() as u64;
            self.delete(left_over);
        }
    }
}

fn read(key: &str) -> Option<(&str, Digest)> {
    let (id, sum) = key.split_once('/')?;
    let sum = sum.parse().ok()?;
    id.parse::<hedge_proto::CaseId>().is_ok().then_some((id, sum))
}

/// As lists have it, without what is below a second: in the order of time.
pub(super) fn as_listed(ms: u64) -> String {
    utc(ms).replace(' ', "T")
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_written_as_lists_have_them() {
        assert_eq!(super::as_listed(784_111_777_500), "1994-11-06T08:49:37");
    }
}
