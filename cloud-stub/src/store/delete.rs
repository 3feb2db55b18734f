//! Removes cases for good because somebody asked for it: the case, its payload and everything that was said of it. What
//! was counted stays counted.

use hedge_proto::{CaseId, DeviceId, word};

use super::{Batch, Sought, StoreError, count};

/// What a case was that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    pub id: CaseId,
    pub task: String,
    /// It had no answer yet.
    pub waited: bool,
    /// Its whole sample was wanted.
    pub wanted: bool,
    /// It waited for a person.
    pub in_review: bool,
    pub bytes: u64,
    /// Its payload was still kept.
    pub payload_kept: bool,
}

impl Sought {
    /// Every case there is.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        let Self { device, task, label, agrees, authority, waits_for_person, since_ms, until_ms, .. } = self;
        let named = device.is_some() || task.is_some() || label.is_some() || authority.is_some();
        !named && agrees.is_none() && !waits_for_person && since_ms.is_none() && until_ms.is_none()
    }

    /// The device of which every case is meant, if nothing else is said.
    #[must_use]
    pub fn whole_device(&self) -> Option<&DeviceId> {
        let rest = Self { device: None, ..self.clone() };
        self.device.as_ref().filter(|_| rest.is_everything())
    }

    /// For people.
    #[must_use]
    pub fn in_words(&self) -> String {
        let words = [
            self.device.as_ref().map(|device| format!("device={device}")),
            self.task.as_ref().map(|task| format!("task={task}")),
            self.label.as_ref().map(|label| format!("label={label}")),
            self.agrees.map(|agrees| format!("agrees={agrees}")),
            self.authority.map(|authority| format!("authority={}", word(&authority))),
            self.waits_for_person.then(|| "waiting".to_owned()),
            self.since_ms.map(|ms| format!("since_ms={ms}")),
            self.until_ms.map(|ms| format!("until_ms={ms}")),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

impl Batch<'_> {
    /// `None`: the case is not on record.
    pub fn delete(&self, id: &CaseId) -> Result<Option<Deleted>, StoreError> {
        let statement = "SELECT c.seq, c.task, c.state, c.review, c.payload_bytes, p.seq, \
             c.payload_sha256, CAST(LENGTH(p.bytes) AS BIGINT), c.wanted_ms \
             FROM cases c LEFT JOIN payloads p ON p.seq = c.seq WHERE c.id = ?1";
        let found = self.sql.row(statement, &[(&id.to_string()).into()], |row| {
            let waited = row.get::<i64>(2)? == 0;
            let deleted = Deleted {
                id: id.clone(),
                task: row.get(1)?,
                waited,
                wanted: row.get::<Option<i64>>(8)?.is_some(),
                in_review: waited && row.get::<i64>(3)? == 1,
                bytes: count(row.get(4)?),
                payload_kept: row.get::<Option<i64>>(5)?.is_some(),
            };
            let object: (Vec<u8>, Option<i64>) = (row.get(6)?, row.get(7)?);
            Ok((row.get::<i64>(0)?, deleted, object))
        })?;
        let Some((seq, deleted, (sum, bytes_here))) = found else { return Ok(None) };
        if let Some(bytes_here) = bytes_here.filter(|_| deleted.bytes > 0) {
            self.let_go(id, &sum, bytes_here)?;
        }
        for table in ["corrections", "payloads", "verdicts", "cases"] {
            self.change(&format!("DELETE FROM {table} WHERE seq = ?1"), &[seq.into()])?;
        }
        Ok(Some(deleted))
    }
}

#[cfg(test)]
mod tests {
    use hedge_proto::{Authority, ModelRef, Name, Output, Verdict, WIRE_VERSION};

    use crate::store::testing::{case, everywhere};
    use crate::store::{Reader, Sought, Writer};

    #[test]
    fn a_case_that_is_deleted_leaves_nothing_and_others_stay() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let batch = writer.batch().expect("a batch");
            for sequence in 0..3 {
                batch.record(&case(sequence), b"picture", 1).expect("recorded");
            }
            let verdict = Verdict {
                v: WIRE_VERSION,
                id: case(1).id,
                revision: 1,
                authority: Authority::Model,
                task: "t".to_owned(),
                said: Output::label("a"),
                model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
            };
            batch.answer(&verdict, None, 2).expect("answered");
            batch.commit().expect("committed");

            let batch = writer.batch().expect("a batch");
            let (waiting, answered) =
                (batch.delete(&case(0).id).expect("deleted"), batch.delete(&case(1).id).expect("deleted"));
            assert_eq!(
                [waiting, answered].map(|gone| gone.map(|gone| (gone.waited, gone.bytes, gone.payload_kept))),
                [Some((true, 7, true)), Some((false, 7, true))]
            );
            assert_eq!(batch.delete(&case(1).id).expect("looked"), None);
            batch.commit().expect("committed");

            let reader = Reader::open(&records.at).expect("records");
            let left = reader.find(&Sought::default(), 9).expect("read").expect("a list").rows;
            assert_eq!(left.iter().map(|row| &row.case.id).collect::<Vec<_>>(), [&case(2).id]);
            assert!(reader.payload(&case(1).id).expect("read").is_none());
            assert!(reader.words(&case(1).id).expect("read").is_empty());
            assert!(reader.payload(&case(2).id).expect("read").is_some());
        });
    }
}
