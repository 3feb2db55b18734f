//! Cases that somebody wants gone: deleted in one commit, and their places given back.

use hedge_proto::{CaseId, DeviceId};
use tokio::sync::oneshot;

use super::NotReviewed;
use super::desk::Desk;
use super::lanes::Lanes;
use crate::signed;
use crate::store::{Deleted, StoreError};

/// How many cases one event deletes: a commit stays short.
pub const DELETED_AT_ONCE_MAX: usize = 200;

/// Cases to delete, and whom to tell how many there were.
pub struct Unwanted {
    pub ids: Vec<CaseId>,
    /// A device of which everything goes: what became of it over time and what its spot checks came to, too.
    pub whole: Option<DeviceId>,
    pub told: oneshot::Sender<Result<usize, NotReviewed>>,
    pub(super) gone: Vec<Deleted>,
}

impl Unwanted {
    #[must_use]
    pub fn new(ids: Vec<CaseId>, told: oneshot::Sender<Result<usize, NotReviewed>>) -> Self {
        Self { ids, whole: None, told, gone: Vec::new() }
    }

    /// Also what became of this device over time.
    #[must_use]
    pub fn with_history_of(self, device: Option<DeviceId>) -> Self {
        Self { whole: device, ..self }
    }

    /// Once it is committed, or was not.
    pub(super) fn close(self, is_recorded: bool, lanes: &mut Lanes) {
        let told = if is_recorded { Ok(self.gone.len()) } else { Err(NotReviewed::NotRecorded) };
        if is_recorded {
            for Deleted { id, task, in_review, waited, wanted, bytes, .. } in &self.gone {
                if *in_review {
                    lanes.reviewed(&id.device, *bytes);
                } else if *waited && !*wanted && !lanes.has_model(task) {
                    lanes.release(task, &id.device, *bytes);
                }
                // One that waits for a model, or that a model has, gives its place back when its turn comes.
            }
        }
        if self.told.send(told).is_err() {
            tracing::debug!("who deleted cases has closed the page meanwhile");
        }
    }
}

impl Desk<'_, '_> {
    pub(super) fn delete(&mut self, unwanted: &mut Unwanted) -> Result<(), StoreError> {
        for id in &unwanted.ids {
            let Some(gone) = self.batch.delete(id)? else { continue };
            self.totals.waiting -= i64::from(gone.waited);
            if gone.payload_kept {
                self.totals.payload_bytes -= signed(gone.bytes);
            }
            unwanted.gone.push(gone);
        }
        unwanted.whole.iter().try_for_each(|device| {
            self.batch.forget_trends(device)?;
            self.batch.forget_spot_checks(0, Some(device))
        })
    }
}
