//! Cases of which not all has come: those without their sample, and thumbnails whose device offers the whole.
//!
//! ```text
//!  thumbnail ─▶ model ── sure ─────────────────────────────▶ verdict
//!                 └─ not sure ─▶ wanted ── the whole ─▶ model ──▲
//!                                  └─ too late, or no more to be had: the thumbnail must do ─▶ model
//! ```
//! While a whole is wanted, `send` is the answer to whatever the device says of its case, so that none of these messages has
//! to arrive.

use clap::Args;
use hedge_proto::{Case, CaseId, DeviceId, DownMessage, Output, PayloadForm, Share};

use super::Intake;
use super::decide::{self, dead};
use super::desk::Desk;
use crate::signed;
use crate::store::StoreError;
use crate::trend::Bucket;

/// The most samples that are wanted of one device at a time; of the others the thumbnails must do. Half of what a device
/// may have under way (`hedge_core::uplink::OWED_MAX`), so that it goes on sending while it cannot send these.
const WANTED_MAX: u64 = 256;

/// When a thumbnail is enough.
#[derive(Debug, Clone, Copy, Args)]
pub struct Enough {
    /// Where a device sends a thumbnail first and offers the whole picture: ask for it if what was made of the thumbnail has a
    /// lower score than this: by default, if it is more likely wrong than right. 0 never asks, 1 nearly always
    #[arg(long, value_name = "SCORE", env = "HEDGE_CLOUD_THUMBNAIL_SCORE_MIN", default_value = "0.5", value_parser = score)]
    pub thumbnail_score_min: Share,

    /// How long, in seconds, the whole picture may take to come. After that the case is answered from its thumbnail
    #[arg(long, value_name = "S", env = "HEDGE_CLOUD_WHOLE_WAIT_S", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=30 * 86_400))]
    pub whole_wait_s: u32,
}

fn score(text: &str) -> Result<Share, String> {
    let number: f32 = text.parse().map_err(|_| format!("`{text}` is not a number from 0 to 1"))?;
    Share::new(number).map_err(|error| error.to_string())
}

impl Enough {
    /// Whether `said`, which was made of a thumbnail, may stand. What has no box has no score: it stands if the device saw
    /// nothing either.
    #[must_use]
    pub fn is_sure(&self, said: &Output, own: Option<&Output>) -> bool {
        let least = self.thumbnail_score_min.value();
        match said {
            Output::Classes(scores) => scores.first().is_none_or(|best| best.score >= least),
            Output::Boxes(found) if found.is_empty() => matches!(own, Some(Output::Boxes(own)) if own.is_empty()),
            // The measure that tells best whether two detectors agree.
            Output::Boxes(found) => {
                let sum: f32 = found.iter().map(|one| one.score).sum();
                sum / found.len() as f32 >= least
            }
        }
    }

    /// Whether more of this case's sample can be had, and is ever asked for.
    #[must_use]
    pub fn may_ask(&self, case: &Case) -> bool {
        self.thumbnail_score_min > Share::ZERO && case.offer.is_some_and(|offer| offer.form == PayloadForm::Whole)
    }
}

impl Intake {
    /// Cases whose whole samples have not come in time.
    pub(super) fn overdue(&self, now_ms: u64) -> Result<Vec<CaseId>, StoreError> {
        let wait_ms = u64::from(self.enough.whole_wait_s) * 1000;
        self.writer.overdue(now_ms.saturating_sub(wait_ms))
    }
}

impl Desk<'_, '_> {
    /// A case without its sample is closed as it is recorded. It counts neither for nor against the device's model.
    pub(super) fn note(&mut self, from: &DeviceId, case: &Case) -> Result<(), StoreError> {
        self.batch.record(case, &[], self.now_ms)?;
        self.note_trend(from, Bucket::case(0));
        self.totals.cases += 1;
        let said = match decide::standing_answer(case) {
            Ok(verdict) => {
                self.batch.answer(&verdict, None, self.now_ms)?;
                self.totals.answered += 1;
                DownMessage::Verdict(verdict)
            }
            Err(reason) => {
                self.batch.kill(&case.id, reason)?;
                self.totals.dead += 1;
                dead(&case.id, reason)
            }
        };
        self.effects.replies.add(from, said);
        Ok(())
    }

    /// Asks a device for the whole of what it has sent a thumbnail of. False: as much is wanted of it as may be.
    pub(super) fn want(&mut self, case: &Case) -> Result<bool, StoreError> {
        if self.batch.wanted_of(&case.id.device)? >= WANTED_MAX {
            return Ok(false);
        }
        self.batch.want(&case.id, self.now_ms)?;
        let send = DownMessage::Send { id: case.id.clone(), form: PayloadForm::Whole };
        self.effects.replies.add(&case.id.device, send);
        Ok(true)
    }

    /// The whole has come.
    pub(super) fn complete(&mut self, from: &DeviceId, case: &Case, payload: &[u8]) -> Result<(), StoreError> {
        let received = DownMessage::Received { ids: vec![case.id.clone()] };
        self.effects.replies.add(from, received);
        let Some((work, thumbnail_bytes)) = self.batch.complete(case, payload)? else { return Ok(()) };
        self.note_trend(from, Bucket { cases: 0, ..Bucket::case(work.bytes) });
        self.totals.received_bytes += work.bytes;
        self.totals.payload_bytes += signed(work.bytes) - signed(thumbnail_bytes);
        self.take_work(work);
        Ok(())
    }

    /// The whole does not come.
    pub(super) fn make_do(&mut self, id: &CaseId) -> Result<(), StoreError> {
        if let Some(work) = self.batch.make_do(id)? {
            tracing::info!(case = %id, "its whole sample does not come; it is answered from the thumbnail");
            self.take_work(work);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{Found, LabelScore, Rect};

    fn enough(score: f32) -> Enough {
        Enough { thumbnail_score_min: Share::new(score).expect("a share"), whole_wait_s: 1 }
    }

    fn class(score: f32) -> Output {
        Output::Classes(vec![LabelScore { label: "cat".to_owned(), score }])
    }

    fn boxes(scores: &[f32]) -> Output {
        let found = |score: &f32| Found { label: "cat".to_owned(), score: *score, place: Rect::WHOLE };
        Output::Boxes(scores.iter().map(found).collect())
    }

    #[test]
    fn a_thumbnail_is_enough_for_what_scores_high_and_for_nothing_where_the_device_saw_nothing() {
        for (said, own, is_sure) in [
            (class(0.7), None, true),
            (class(0.69), Some(class(0.9)), false),
            (class(f32::NAN), None, false),
            (boxes(&[0.9, 0.5]), None, true),
            (boxes(&[0.9, 0.49]), None, false),
            (boxes(&[]), Some(boxes(&[])), true),
            (boxes(&[]), Some(boxes(&[0.5])), false),
            (boxes(&[]), None, false),
        ] {
            assert_eq!(enough(0.7).is_sure(&said, own.as_ref()), is_sure, "{said:?} where the device said {own:?}");
        }
    }
}
