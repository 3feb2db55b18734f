//! The one owner of all changes.

use std::collections::BTreeMap;
use std::path::Path;

use hedge_proto::{
    Case, CaseId, DeviceId, DeviceStatus, Digest, PayloadForm, Telemetry, Verdict, from_cbor, to_cbor, to_json,
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::answerers::{Micro, Month};

use super::checkpoint::Checkpoints;
use super::{Known, Standing, State, StoreError, Totals, count, damaged, schema, sql};

/// How much is kept, and how long. Payloads go first; verdicts and the ids they belong to stay longest.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub payload_bytes_max: u64,
    pub payload_age_ms: u64,
    pub record_age_ms: u64,
}

/// A case that has no verdict yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: CaseId,
    pub task: String,
    /// Of its payload.
    pub bytes: u64,
    /// Names of the answerers that will not answer it.
    pub declined: Vec<String>,
    /// It waits for a person.
    pub review: bool,
}

impl Waiting {
    /// One that nobody has looked at.
    #[must_use]
    pub fn new(id: CaseId, task: String, bytes: u64) -> Self {
        Self { id, task, bytes, declined: Vec::new(), review: false }
    }
}

/// The most rows one pruning step removes, so that no commit takes long.
const PRUNE_ROWS_MAX: u32 = 500;

/// How many events a device's history keeps: with the bound on each, at most 800 KiB a device.
pub const EVENTS_PER_DEVICE_MAX: u32 = 200;

/// The largest row this program writes into a CBOR column.
const ROW_BYTES_MAX: usize = 1024 * 1024;

/// All writing goes through here, from one thread.
pub struct Writer {
    pub(super) connection: Connection,
    _checkpoints: Option<Checkpoints>,
}

impl Writer {
    /// Opens the records, making or upgrading them.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { connection: schema::open(path)?, _checkpoints: Checkpoints::start(path) })
    }

    /// Changes that become durable together, or not at all: dropping a batch undoes it.
    pub fn batch(&mut self) -> Result<Batch<'_>, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let changes_before = transaction.total_changes();
        Ok(Batch { transaction, changes_before })
    }

    pub fn totals(&self) -> Result<Totals, StoreError> {
        let text: Option<String> =
            self.connection.query_row("SELECT json FROM totals", [], |row| row.get(0)).optional()?;
        text.map_or_else(|| Ok(Totals::default()), |text| serde_json::from_str(&text).map_err(damaged))
    }

    /// How many devices are on record. Looks at each of them.
    pub fn device_count(&self) -> Result<u64, StoreError> {
        Ok(count(self.connection.query_row("SELECT COUNT(*) FROM devices", [], |row| row.get(0))?))
    }

    /// All cases without a verdict, oldest first.
    pub fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let mut statement = self
            .connection
            .prepare("SELECT id, task, payload_bytes, declined, review FROM cases WHERE state = 0 ORDER BY seq")?;
        let rows = statement.query_map([], |row| {
            let declined: Option<String> = row.get(3)?;
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, declined.unwrap_or_default(), row.get(4)?))
        })?;
        rows.map(|row| {
            let (id, task, bytes, declined, review) = row?;
            let declined = declined.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            Ok(Waiting { id: id.parse().map_err(damaged)?, task, bytes: count(bytes), declined, review })
        })
        .collect()
    }

    /// What a month's calls have cost, by answerer.
    pub fn spent(&self, month: Month) -> Result<BTreeMap<String, Micro>, StoreError> {
        let mut statement = self.connection.prepare("SELECT answerer, micro FROM spent WHERE month = ?1")?;
        let rows = statement.query_map([month.0], |row| Ok((row.get(0)?, Micro(count(row.get(1)?)))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A case and its payload; `None` once the payload has gone.
    pub fn load(&self, id: &CaseId) -> Result<Option<(Case, Vec<u8>)>, StoreError> {
        let row = self
            .connection
            .prepare_cached("SELECT header, bytes FROM cases JOIN payloads USING (seq) WHERE id = ?1")?
            .query_row([id.to_string()], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(header, bytes)| Ok((from_cbor(&header, ROW_BYTES_MAX).map_err(damaged)?, bytes))).transpose()
    }
}

/// Changes on their way into one commit.
pub struct Batch<'w> {
    pub(super) transaction: Transaction<'w>,
    changes_before: u64,
}

impl Batch<'_> {
    /// Whether there is anything to commit.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.transaction.total_changes() != self.changes_before
    }

    /// Returns when everything in the batch would survive a power cut.
    pub fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit()?)
    }

    /// What is on record about a case, this batch included.
    pub fn known(&self, id: &CaseId) -> Result<Option<Known>, StoreError> {
        let row = self
            .transaction
            .prepare_cached("SELECT seq, payload_sha256, state, reason FROM cases WHERE id = ?1")?
            .query_row([id.to_string()], known_columns)
            .optional()?;
        let Some((seq, sum, state, reason)) = row else { return Ok(None) };
        let reason = reason.unwrap_or_default();
        let standing = match State::read(state)? {
            State::Waiting => Standing::Waiting,
            State::Failed => Standing::Failed(reason),
            State::Dead => Standing::Dead(reason),
            State::Answered => Standing::Answered(self.verdict(seq)?),
        };
        Ok(Some(Known { payload_sha256: Digest(sum.as_slice().try_into().map_err(damaged)?), standing }))
    }

    fn verdict(&self, seq: i64) -> Result<Verdict, StoreError> {
        let bytes: Vec<u8> = self
            .transaction
            .prepare_cached("SELECT verdict FROM verdicts WHERE seq = ?1 ORDER BY revision DESC LIMIT 1")?
            .query_row([seq], |row| row.get(0))?;
        from_cbor(&bytes, ROW_BYTES_MAX).map_err(damaged)
    }

    /// A recorded case as one that waits.
    pub fn as_waiting(&self, id: &CaseId) -> Result<Waiting, StoreError> {
        let (task, bytes) = self
            .transaction
            .prepare_cached("SELECT task, payload_bytes FROM cases WHERE id = ?1")?
            .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Waiting::new(id.clone(), task, count(bytes)))
    }

    /// Takes a new case in as waiting. `header` is the case without its payload.
    pub fn record(&self, header: &Case, payload: &[u8], now_ms: u64) -> Result<(), StoreError> {
        let id = header.id.to_string();
        let device = header.id.device.as_str();
        self.transaction
            .prepare_cached(
                "INSERT INTO cases (id, device, task, received_ms, payload_sha256, payload_bytes, content_type, \
                 header, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0)",
            )?
            .execute(params![
                id,
                device,
                header.task,
                sql(now_ms),
                header.payload_sha256.0,
                sql(payload.len() as u64),
                header.content_type,
                to_cbor(header)
            ])?;
        let seq = self.transaction.last_insert_rowid();
        if header.form != PayloadForm::Nothing {
            self.transaction
                .prepare_cached("INSERT INTO payloads (seq, bytes) VALUES (?1, ?2)")?
                .execute(params![seq, payload])?;
        }
        self.transaction.prepare_cached("INSERT OR IGNORE INTO devices (device) VALUES (?1)")?.execute([device])?;
        self.transaction
            .prepare_cached(
                "INSERT INTO device_cases (device, cases, case_ms) VALUES (?1, 1, ?2) \
                 ON CONFLICT (device) DO UPDATE SET cases = cases + 1, case_ms = ?2",
            )?
            .execute(params![device, sql(now_ms)])?;
        Ok(())
    }

    /// Closes a case with a verdict. `agrees` is absent when the device had no answer of its own.
    pub fn answer(&self, verdict: &Verdict, agrees: Option<bool>, now_ms: u64) -> Result<(), StoreError> {
        let seq = self.seq(&verdict.id)?;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO verdicts (seq, revision, given_ms, verdict) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![seq, verdict.revision, sql(now_ms), to_cbor(verdict)])?;
        self.transaction
            .prepare_cached("UPDATE cases SET state = 1, reason = NULL, agrees = ?2, review = 0 WHERE seq = ?1")?
            .execute(params![seq, agrees])?;
        if let Some(agrees) = agrees {
            self.transaction
                .prepare_cached(
                    "UPDATE device_cases SET agreed = agreed + ?2, disagreed = disagreed + 1 - ?2 WHERE device = ?1",
                )?
                .execute(params![verdict.id.device.as_str(), agrees])?;
        }
        Ok(())
    }

    /// Notes that the model could not answer; the case may be tried again.
    pub fn fail(&self, id: &CaseId, reason: &str) -> Result<(), StoreError> {
        self.set_state(id, State::Failed, Some(reason))
    }

    /// Notes that a case will never be answered.
    pub fn kill(&self, id: &CaseId, reason: &str) -> Result<(), StoreError> {
        self.set_state(id, State::Dead, Some(reason))
    }

    /// Opens a failed case for another try.
    pub fn reopen(&self, id: &CaseId) -> Result<(), StoreError> {
        self.set_state(id, State::Waiting, None)
    }

    fn set_state(&self, id: &CaseId, state: State, reason: Option<&str>) -> Result<(), StoreError> {
        // Who tries a case again asks everybody again.
        self.transaction
            .prepare_cached("UPDATE cases SET state = ?2, reason = ?3, declined = NULL, review = 0 WHERE id = ?1")?
            .execute(params![id.to_string(), state as i64, reason])?;
        Ok(())
    }

    /// Notes that an answerer will not answer a case; another is asked.
    pub fn decline(&self, id: &CaseId, answerer: &str) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("UPDATE cases SET declined = IFNULL(declined, '') || ?2 || ',' WHERE id = ?1")?
            .execute(params![id.to_string(), answerer])?;
        Ok(())
    }

    /// Puts a case into the review queue: it waits for a person.
    pub fn review(&self, id: &CaseId) -> Result<(), StoreError> {
        self.transaction.prepare_cached("UPDATE cases SET review = 1 WHERE id = ?1")?.execute([id.to_string()])?;
        Ok(())
    }

    /// A case that waits for a person, and how many bytes its payload has.
    pub fn under_review(&self, id: &CaseId) -> Result<Option<(Case, u64)>, StoreError> {
        let row = self
            .transaction
            .prepare_cached("SELECT header, payload_bytes FROM cases WHERE id = ?1 AND review = 1 AND state = 0")?
            .query_row([id.to_string()], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(header, bytes)| Ok((from_cbor(&header, ROW_BYTES_MAX).map_err(damaged)?, count(bytes)))).transpose()
    }

    /// Notes what an answerer's calls have cost in a month so far.
    pub fn set_spent(&self, month: Month, answerer: &str, spent: Micro) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO spent (month, answerer, micro) VALUES (?1, ?2, ?3)")?
            .execute(params![month.0, answerer, sql(spent.0)])?;
        Ok(())
    }

    pub fn device_status(&self, device: &DeviceId) -> Result<Option<DeviceStatus>, StoreError> {
        let json: Option<Vec<u8>> = self
            .transaction
            .prepare_cached("SELECT status FROM devices WHERE device = ?1")?
            .query_row([device.as_str()], |row| row.get(0))
            .optional()?
            .flatten();
        json.map(|json| hedge_proto::from_json(&json, ROW_BYTES_MAX).map_err(damaged)).transpose()
    }

    pub fn set_device_status(&self, device: &DeviceId, status: &DeviceStatus, now_ms: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO devices (device, status, status_ms) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (device) DO UPDATE SET status = ?2, status_ms = ?3",
            )?
            .execute(params![device.as_str(), to_json(status), sql(now_ms)])?;
        Ok(())
    }

    pub fn set_telemetry(&self, device: &DeviceId, telemetry: &Telemetry, now_ms: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO devices (device, telemetry, telemetry_ms) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (device) DO UPDATE SET telemetry = ?2, telemetry_ms = ?3",
            )?
            .execute(params![device.as_str(), to_json(telemetry), sql(now_ms)])?;
        Ok(())
    }

    /// What a device reported, and what is wanted of it: the documents as they are on record.
    pub fn settings_documents(&self, device: &DeviceId) -> Result<(Option<String>, Option<String>), StoreError> {
        let row = self
            .transaction
            .prepare_cached("SELECT reported, desired FROM devices WHERE device = ?1")?
            .query_row([device.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(row.unwrap_or_default())
    }

    /// Keeps, or forgets, what a device reported as its settings.
    pub fn set_reported(&self, device: &DeviceId, json: Option<&str>, now_ms: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO devices (device, reported, reported_ms) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (device) DO UPDATE SET reported = ?2, reported_ms = ?3",
            )?
            .execute(params![device.as_str(), json, sql(now_ms)])?;
        Ok(())
    }

    /// Keeps, or forgets, what is wanted as a device's settings.
    pub fn set_desired(&self, device: &DeviceId, json: Option<&str>, now_ms: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO devices (device, desired, desired_ms) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (device) DO UPDATE SET desired = ?2, desired_ms = ?3",
            )?
            .execute(params![device.as_str(), json, sql(now_ms)])?;
        Ok(())
    }

    /// Whether the device's history has this very event.
    pub fn has_event(&self, device: &DeviceId, kind: &str, json: &str) -> Result<bool, StoreError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT 1 FROM device_events WHERE device = ?1 AND kind = ?2 AND json = ?3")?;
        Ok(statement.exists(params![device.as_str(), kind, json])?)
    }

    /// Adds to a device's history, from which the oldest goes beyond [`EVENTS_PER_DEVICE_MAX`].
    pub fn add_event(&self, device: &DeviceId, kind: &str, json: &str, now_ms: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT INTO device_events (device, at_ms, kind, json) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![device.as_str(), sql(now_ms), kind, json])?;
        self.transaction
            .prepare_cached(
                "DELETE FROM device_events WHERE device = ?1 AND seq <= \
                 (SELECT seq FROM device_events WHERE device = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![device.as_str(), EVENTS_PER_DEVICE_MAX])?;
        Ok(())
    }

    /// Forgets a device's status, as an empty retained message asks for.
    pub fn clear_device_status(&self, device: &DeviceId) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("UPDATE devices SET status = NULL, status_ms = NULL WHERE device = ?1")?
            .execute([device.as_str()])?;
        Ok(())
    }

    pub fn is_device(&self, device: &DeviceId) -> Result<bool, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT 1 FROM devices WHERE device = ?1")?;
        Ok(statement.exists([device.as_str()])?)
    }

    pub fn set_totals(&self, totals: &Totals) -> Result<(), StoreError> {
        let json = serde_json::to_string(totals).map_err(damaged)?;
        self.transaction.prepare_cached("INSERT OR REPLACE INTO totals (one, json) VALUES (1, ?1)")?.execute([json])?;
        Ok(())
    }

    /// Removes some of what is too old or too much: payloads of closed cases first, oldest first, then whole
    /// records past their age. Returns the payload bytes removed; call again while that is not 0.
    pub fn prune(&self, keep: &Keep, payload_bytes: u64, now_ms: u64) -> Result<u64, StoreError> {
        let mut over = payload_bytes.saturating_sub(keep.payload_bytes_max);
        let too_old_ms = now_ms.saturating_sub(keep.payload_age_ms);
        let oldest: Vec<(i64, i64, i64)> = self
            .transaction
            .prepare_cached(
                "SELECT seq, payload_bytes, received_ms FROM payloads JOIN cases USING (seq) WHERE state != 0 \
                 ORDER BY seq LIMIT ?1",
            )?
            .query_map([PRUNE_ROWS_MAX], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let mut removed = 0;
        for (seq, bytes, received_ms) in oldest {
            if over == 0 && count(received_ms) >= too_old_ms {
                break;
            }
            self.transaction.prepare_cached("DELETE FROM payloads WHERE seq = ?1")?.execute([seq])?;
            removed += count(bytes);
            over = over.saturating_sub(count(bytes));
        }
        self.prune_records(now_ms.saturating_sub(keep.record_age_ms))?;
        Ok(removed)
    }

    fn prune_records(&self, too_old_ms: u64) -> Result<(), StoreError> {
        // Rows are in order of time, so only the oldest few are looked at. Payloads go before, so that their
        // sum stays right.
        let old = "SELECT seq FROM (SELECT seq, received_ms, state FROM cases ORDER BY seq LIMIT ?2) \
                   WHERE received_ms < ?1 AND state != 0 AND seq NOT IN (SELECT seq FROM payloads)";
        for table in ["corrections", "verdicts", "cases"] {
            self.transaction
                .prepare_cached(&format!("DELETE FROM {table} WHERE seq IN ({old})"))?
                .execute(params![sql(too_old_ms), PRUNE_ROWS_MAX])?;
        }
        Ok(())
    }

    fn seq(&self, id: &CaseId) -> Result<i64, StoreError> {
        Ok(self
            .transaction
            .prepare_cached("SELECT seq FROM cases WHERE id = ?1")?
            .query_row([id.to_string()], |row| row.get(0))?)
    }
}

fn known_columns(row: &Row<'_>) -> rusqlite::Result<(i64, Vec<u8>, i64, Option<String>)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::case;
    use crate::store::{FILE_NAME, Reader, Sought};
    use hedge_proto::{Authority, ModelRef, Name, Output, WIRE_VERSION};

    fn verdict(id: CaseId, revision: u32) -> Verdict {
        let said = Output::label(&format!("revision {revision}"));
        let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        Verdict { v: WIRE_VERSION, id, revision, authority: Authority::Model, task: "t".to_owned(), said, model }
    }

    fn records() -> (tempfile::TempDir, Writer) {
        let dir = tempfile::tempdir().expect("a directory");
        let writer = Writer::open(&dir.path().join(FILE_NAME)).expect("records");
        (dir, writer)
    }

    #[test]
    fn a_batch_that_is_dropped_leaves_nothing() {
        let (_dir, mut writer) = records();
        writer.batch().expect("a batch").record(&case(1), b"p", 1).expect("recorded");
        let batch = writer.batch().expect("a batch");
        assert_eq!(batch.known(&case(1).id).expect("read"), None);
    }

    #[test]
    fn the_highest_revision_is_the_answer() {
        let (dir, mut writer) = records();
        let batch = writer.batch().expect("a batch");
        batch.record(&case(1), b"p", 1).expect("recorded");
        for revision in [2, 1] {
            batch.answer(&verdict(case(1).id, revision), None, 2).expect("answered");
        }
        let answered = Some(Known {
            payload_sha256: case(1).payload_sha256,
            standing: Standing::Answered(verdict(case(1).id, 2)),
        });
        assert_eq!(batch.known(&case(1).id).expect("read"), answered);
        batch.commit().expect("committed");
        let reader = Reader::open(&dir.path().join(FILE_NAME)).expect("records");
        assert_eq!(reader.find(&Sought::default(), 10).expect("read").expect("a list").rows.len(), 1);
    }

    #[test]
    fn a_history_keeps_the_newest_of_each_device() {
        let (dir, mut writer) = records();
        let (noisy, calm) = (Name::new("noisy").expect("valid"), Name::new("calm").expect("valid"));
        let batch = writer.batch().expect("a batch");
        batch.add_event(&calm, "reply", "{}", 1).expect("added");
        for n in 0..u64::from(EVENTS_PER_DEVICE_MAX) + 5 {
            batch.add_event(&noisy, "reply", &format!("{{\"n\": {n}}}"), n).expect("added");
        }
        batch.commit().expect("committed");
        let reader = Reader::open(&dir.path().join(FILE_NAME)).expect("records");
        let history = reader.history(&noisy).expect("read");
        assert_eq!(history.len(), EVENTS_PER_DEVICE_MAX as usize);
        assert_eq!(history[0].at_ms, u64::from(EVENTS_PER_DEVICE_MAX) + 4, "newest first");
        assert_eq!(reader.history(&calm).expect("read").len(), 1);
    }

    #[test]
    fn payloads_go_first_and_oldest_first_and_never_those_of_waiting_cases() {
        let (_dir, mut writer) = records();
        let batch = writer.batch().expect("a batch");
        for sequence in 0..10 {
            batch.record(&case(sequence), &[0; 100], 1000).expect("recorded");
            if sequence != 0 {
                batch.answer(&verdict(case(sequence).id, 1), None, 1000).expect("answered");
            }
        }
        batch.commit().expect("committed");
        let keep = Keep { payload_bytes_max: 750, payload_age_ms: 1_000_000, record_age_ms: 2_000_000 };
        let batch = writer.batch().expect("a batch");
        assert_eq!(batch.prune(&keep, 1000, 2000).expect("pruned"), 300);
        batch.commit().expect("committed");
        let kept: Vec<u64> = (0..10).filter(|n| writer.load(&case(*n).id).expect("read").is_some()).collect();
        assert_eq!(kept, [0, 4, 5, 6, 7, 8, 9]);

        // Past their age the others follow, and at last the answers, but never a case that waits.
        let batch = writer.batch().expect("a batch");
        assert_eq!(batch.prune(&keep, 700, 1_500_000).expect("pruned"), 600);
        assert!(batch.known(&case(1).id).expect("read").is_some(), "answers outlive payloads");
        assert_eq!(batch.prune(&keep, 100, 3_000_000).expect("pruned"), 0);
        assert_eq!(batch.known(&case(1).id).expect("read"), None);
        assert!(batch.known(&case(0).id).expect("read").is_some());
    }
}
