//! What a message of the wire may hold: bytes before anything is decoded, then what is in it before it is taken.
//!
//! ```text
//! topic          bytes          besides
//! up/case        16 MiB         64 cases a batch; of an `ask` 16 KiB and 128 ids
//! up/…           64 KiB         what the types say
//! down/verdict   64 KiB         revision from 1, 5 scores, 100 boxes, 128 ids, texts of 2 KiB, numbers that are numbers
//! down/…         64 KiB         what the types say
//! cloud/…/status 4 KiB          32 wire versions
//! ```
//! The types themselves read more: what an earlier version wrote to a disk stays readable.

use alloc::format;
use alloc::string::String;

use serde::de::DeserializeOwned;

use crate::codec::check_size;
use crate::{
    Answer, BATCH_CASES_MAX, BOXES_MAX, Case, CaseMessage, CloudStatus, DOCUMENT_BYTES_MAX, DecodeError, DeviceStatus,
    DownMessage, IDS_MAX, LOSSES_MAX, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, ModelRef, Output, Reply, Reported,
    SCORES_MAX, Telemetry, Verdict, WIRE_VERSION, from_cbor, from_json, to_json,
};

/// The largest message on `down/verdict`. A broker may have 64 of them on their way to one device.
pub const DOWN_BYTES_MAX: usize = 64 * 1024;

/// The largest status of a cloud instance: a device remembers one of each.
pub const CLOUD_STATUS_BYTES_MAX: usize = 4 * 1024;

/// The largest question: [`IDS_MAX`] of the longest ids.
pub const ASK_BYTES_MAX: usize = 16 * 1024;

/// The longest label, task, name, version or reason.
pub const TEXT_BYTES_MAX: usize = 2 * 1024;

/// The most wire versions that a cloud says it reads.
pub const WIRE_VERSIONS_MAX: usize = 32;

/// A score may be so far outside 0 to 1: sums of floats are not exact.
const SCORE_SLACK: f32 = 1e-3;

/// A message as it comes from the wire.
pub trait Message: Sized {
    /// The most bytes that are decoded.
    const BYTES_MAX: usize;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;

    /// Refuses what has more than it may have, or what nothing can follow from. A message of a later version is left to
    /// whoever holds it.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Reads one message: size, form, content.
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        check_size(bytes, Self::BYTES_MAX)?;
        let message = Self::decode(bytes)?;
        message.check().map_err(DecodeError::Bound)?;
        Ok(message)
    }
}

macro_rules! documents {
    ($($document:ty),*) => {$(
        impl Message for $document {
            const BYTES_MAX: usize = DOCUMENT_BYTES_MAX;

            fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                json(bytes)
            }
        }
    )*};
}

documents!(DeviceStatus, Answer, Reported, Reply, Telemetry);

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    from_json(bytes, bytes.len())
}

impl Message for CloudStatus {
    const BYTES_MAX: usize = CLOUD_STATUS_BYTES_MAX;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        json(bytes)
    }

    fn check(&self) -> Result<(), String> {
        at_most("wire versions", self.wire.len(), WIRE_VERSIONS_MAX)
    }
}

impl Message for CaseMessage {
    const BYTES_MAX: usize = MESSAGE_BYTES_MAX;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        // A map of one text of three letters, as this crate and every other encoder in canonical form writes it.
        if bytes.starts_with(b"\xa1\x63ask") {
            check_size(bytes, ASK_BYTES_MAX)?;
        }
        from_cbor(bytes, bytes.len())
    }

    /// What is wrong with one case is told to its device, by [`Case::check`].
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Case(_) => Ok(()),
            Self::Batch(cases) => at_most("cases", cases.len(), BATCH_CASES_MAX),
            Self::Ask { ids } => at_most("ids", ids.len(), IDS_MAX),
        }
    }
}

impl Message for DownMessage {
    const BYTES_MAX: usize = DOWN_BYTES_MAX;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        from_cbor(bytes, bytes.len())
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Verdict(verdict) => verdict.check(),
            Self::Received { ids } | Self::Unknown { ids } => at_most("ids", ids.len(), IDS_MAX),
            Self::Failed { reason, .. } | Self::Dead { reason, .. } => text("reason", reason),
            Self::Busy { .. } | Self::Send { .. } => Ok(()),
            Self::Checks(checks) => {
                model(&checks.model)?;
                model(&checks.cloud)?;
                at_most("losses", checks.lost.len(), LOSSES_MAX)?;
                at_most("steps that held", checks.held.len(), LOSSES_MAX)
            }
        }
    }
}

impl Case {
    /// What of it is more than a case may have. The size of the whole is up to its reader.
    pub fn check(&self) -> Result<(), String> {
        self.said.iter().try_for_each(Output::check)?;
        if self.view.is_some_and(|view| !view.is_finite()) {
            return Err("its `view` is not numbers".into());
        }
        model(&self.model)?;
        text("task", &self.task)?;
        text("source", &self.source)?;
        text("content_type", &self.content_type)?;
        text("decision.reason", self.decision.reason.name())?;
        let bytes = if self.metadata.is_empty() { 0 } else { to_json(&self.metadata).len() };
        at_most("bytes of metadata", bytes, METADATA_BYTES_MAX)
    }
}

impl Verdict {
    fn check(&self) -> Result<(), String> {
        if self.v > WIRE_VERSION {
            return Ok(());
        }
        if self.revision == 0 {
            return Err("its revision is 0, and revisions count from 1: 0 is the device's own answer".into());
        }
        text("task", &self.task)?;
        model(&self.model)?;
        self.said.check()
    }
}

impl Output {
    /// What of it is more than an answer may have, or no answer.
    fn check(&self) -> Result<(), String> {
        let named = |label: &str| if label.is_empty() { Err("a label is empty".into()) } else { text("label", label) };
        match self {
            Self::Classes(scores) => {
                at_most("scores", scores.len(), SCORES_MAX)?;
                if scores.is_empty() {
                    return Err("it names no label".into());
                }
                scores.iter().try_for_each(|one| named(&one.label).and_then(|()| in_range(one.score)))
            }
            Self::Boxes(found) => {
                at_most("boxes", found.len(), BOXES_MAX)?;
                found.iter().try_for_each(|one| {
                    named(&one.label)?;
                    in_range(one.score)?;
                    if one.place.is_finite() { Ok(()) } else { Err("a box is not numbers".into()) }
                })
            }
        }
    }
}

fn at_most(what: &str, count: usize, max: usize) -> Result<(), String> {
    if count > max { Err(format!("it has {count} {what}, more than the {max} that are read")) } else { Ok(()) }
}

fn text(field: &str, text: &str) -> Result<(), String> {
    at_most(&format!("bytes of `{field}`"), text.len(), TEXT_BYTES_MAX)
}

fn model(model: &ModelRef) -> Result<(), String> {
    text("model.name", &model.name)?;
    text("model.version", &model.version)
}

fn in_range(score: f32) -> Result<(), String> {
    if (-SCORE_SLACK..=1.0 + SCORE_SLACK).contains(&score) { Ok(()) } else { Err("a score is not from 0 to 1".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, CaseId, CommandMessage, Desired, Found, LabelScore, Rect, Topic, to_cbor};
    use alloc::borrow::ToOwned;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use alloc::{boxed::Box, vec};

    type Read = fn(&[u8]) -> Option<DecodeError>;

    /// Who reads the messages of a topic, and up to how many bytes.
    fn reader(topic: &Topic) -> (usize, Read) {
        match topic {
            Topic::UpStatus(_) => (DeviceStatus::BYTES_MAX, |bytes| DeviceStatus::read(bytes).err()),
            Topic::UpCase(_) => (CaseMessage::BYTES_MAX, |bytes| CaseMessage::read(bytes).err()),
            Topic::UpAnswer(..) => (Answer::BYTES_MAX, |bytes| Answer::read(bytes).err()),
            Topic::UpReported(_) => (Reported::BYTES_MAX, |bytes| Reported::read(bytes).err()),
            Topic::UpReply(_) => (Reply::BYTES_MAX, |bytes| Reply::read(bytes).err()),
            Topic::UpTelemetry(_) => (Telemetry::BYTES_MAX, |bytes| Telemetry::read(bytes).err()),
            Topic::DownVerdict(_) => (DownMessage::BYTES_MAX, |bytes| DownMessage::read(bytes).err()),
            Topic::DownDesired(_) => (DOCUMENT_BYTES_MAX, |bytes| Desired::read(bytes).err()),
            Topic::DownCommand(_) => (DOCUMENT_BYTES_MAX, |bytes| CommandMessage::read(bytes).err()),
            Topic::CloudStatus(_) => (CloudStatus::BYTES_MAX, |bytes| CloudStatus::read(bytes).err()),
        }
    }

    #[test]
    fn every_message_has_a_bound_in_bytes_that_holds_before_it_is_decoded() {
        for topic in Topic::all() {
            let (bytes_max, read) = reader(&topic);
            let error = |bytes| read(&vec![b'~'; bytes]).expect("no message");
            assert!(!matches!(error(bytes_max), DecodeError::TooLarge { .. }), "{topic:?}");
            assert_eq!(error(bytes_max + 1), DecodeError::TooLarge { bytes: bytes_max + 1, bytes_max }, "{topic:?}");
        }
        let ask = [b"\xa1\x63ask".as_slice(), &vec![0; ASK_BYTES_MAX]].concat();
        assert!(matches!(CaseMessage::read(&ask), Err(DecodeError::TooLarge { bytes_max: ASK_BYTES_MAX, .. })));
    }

    fn id(sequence: usize) -> CaseId {
        format!("{}.{:016x}.{sequence}", "d".repeat(64), u64::MAX).parse().expect("valid")
    }

    fn verdict(change: impl FnOnce(&mut Verdict)) -> DownMessage {
        let mut verdict = Verdict {
            v: WIRE_VERSION,
            id: id(1),
            revision: 1,
            authority: Authority::Model,
            task: "t".to_owned(),
            said: classify(SCORES_MAX, 0.2),
            model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
        };
        change(&mut verdict);
        DownMessage::Verdict(verdict)
    }

    fn classify(count: usize, score: f32) -> Output {
        Output::Classes((0..count).map(|at| LabelScore { label: at.to_string(), score }).collect())
    }

    fn detect(height: f32, count: usize) -> Output {
        let one = Found { label: "a".to_owned(), score: 0.5, place: Rect { height, ..Rect::WHOLE } };
        Output::Boxes(vec![one; count])
    }

    fn ids(count: usize) -> Vec<CaseId> {
        (0..count).map(id).collect()
    }

    #[track_caller]
    fn check<M: Message + serde::Serialize>(message: &M, expected: &str) {
        let read = M::read(&to_cbor(message)).err().map_or("".to_owned(), |error| error.to_string());
        assert!(
            if expected.is_empty() { read.is_empty() } else { read.contains(expected) },
            "`{read}`: not `{expected}`"
        );
    }

    #[test]
    fn a_message_that_says_too_much_or_nothing_is_not_taken() {
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        check(&verdict(|_| {}), "");
        check(&verdict(|one| one.said = detect(0.5, BOXES_MAX)), "");
        check(&verdict(|one| one.said = detect(0.5, 0)), "");
        check(&verdict(|one| one.revision = 0), "revision is 0");
        check(&verdict(|one| one.said = classify(SCORES_MAX + 1, 0.1)), "6 scores");
        check(&verdict(|one| one.said = classify(1, f32::NAN)), "score is not from 0 to 1");
        check(&verdict(|one| one.said = classify(1, 7.0)), "score is not from 0 to 1");
        check(&verdict(|one| one.said = detect(0.5, BOXES_MAX + 1)), "101 boxes");
        check(&verdict(|one| one.said = detect(f32::INFINITY, 1)), "box is not numbers");
        check(&verdict(|one| one.task = long.clone()), "`task`");
        check(&verdict(|one| one.model.name = long.clone()), "`model.name`");
        check(&verdict(|one| one.said = Output::Classes(Vec::new())), "names no label");
        check(&verdict(|one| one.said = Output::label("")), "label is empty");
        check(&DownMessage::Received { ids: ids(IDS_MAX) }, "");
        check(&DownMessage::Unknown { ids: ids(IDS_MAX + 1) }, "129 ids");
        check(&DownMessage::Dead { id: id(1), reason: long }, "`reason`");
        check(&CaseMessage::Ask { ids: ids(IDS_MAX) }, "");
        check(&CaseMessage::Ask { ids: ids(IDS_MAX + 1) }, "129 ids");
        check(&CaseMessage::Batch(vec![case(); BATCH_CASES_MAX + 1]), "65 cases");
        check(&CaseMessage::Case(Box::new(case())), "");
        // A later version may count in another way; it is held, not refused.
        check(&verdict(|one| (one.v, one.revision) = (WIRE_VERSION + 1, 0)), "");
        let wire = CloudStatus::read(format!("{{\"state\":\"online\",\"wire\":{:?}}}", vec![1; 33]).as_bytes());
        assert!(wire.expect_err("refused").to_string().contains("33 wire versions"));
    }

    fn case() -> Case {
        crate::asyncapi::examples::case()
    }

    #[test]
    fn a_case_that_has_more_than_a_case_may_have_is_named() {
        let mut case = case();
        assert_eq!(case.check(), Ok(()));
        case.metadata.insert("k".to_owned(), "v".repeat(METADATA_BYTES_MAX));
        assert!(case.check().expect_err("refused").contains("bytes of metadata"));
        case.metadata.clear();
        case.said = Some(classify(SCORES_MAX + 1, 0.1));
        assert!(case.check().expect_err("refused").contains("6 scores"));
        case.said = None;
        case.decision.reason = "tea_leaves".into();
        assert_eq!(case.check(), Ok(()), "a later version may have more reasons");
        case.decision.reason = "x".repeat(TEXT_BYTES_MAX + 1).as_str().into();
        assert!(case.check().expect_err("refused").contains("`decision.reason`"));
    }
}
