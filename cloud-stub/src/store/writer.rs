//! The one owner of all changes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::answerers::{Micro, Month};
use hedge_proto::{Case, CaseId, DeviceId, Digest, Name, PayloadForm, Verdict, to_cbor};

use super::checkpoint::Checkpoints;
use super::files::{Files, Lock};
use super::lease::{self, Lease};
use super::objects::{self, KEPT_COLUMNS, Objects, Payload, Sweeping};
use super::postgres::Session;
use super::sql::{Row, Sql, Value};
use super::{DEAD, Database, FAILED, Known, RecordsAt, Standing, StoreError, Totals, WAITING, count, damaged, schema};

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

/// All writing goes through here, from one thread.
pub struct Writer {
    pub(super) sql: Sql,
    /// Who writes.
    pub(super) instance: String,
    pub(super) lease: Lease,
    objects: Option<Objects>,
    _checkpoints: Option<Checkpoints>,
    _sweeping: Option<Sweeping>,
    /// Of records in a file.
    files: Option<Files>,
    _lock: Option<Lock>,
}

/// Of one case that waits: as [`waiting`] reads it.
pub(super) const WAITING_COLUMNS: &str = "id, task, payload_bytes, declined, review, wanted_ms";

pub(super) fn waiting(row: &Row<'_>) -> Result<Waiting, StoreError> {
    let declined: Option<String> = row.get(3)?;
    let declined = declined.unwrap_or_default();
    Ok(Waiting {
        id: row.get::<String>(0)?.parse().map_err(damaged)?,
        task: row.get(1)?,
        bytes: count(row.get(2)?),
        declined: declined.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        review: row.get::<i64>(4)? != 0,
    })
}

impl Writer {
    /// Opens the records, making or upgrading them. `instance` is who writes; on a server nobody else may be called so.
    pub fn open(at: &RecordsAt, instance: &Name) -> Result<Self, StoreError> {
        let (lock, sql, checkpoints, files) = match &at.database {
            Database::File(path) => {
                let lock = Lock::take(path)?;
                let sql = Sql::File(schema::open(path)?);
                (Some(lock), sql, Checkpoints::start(path), Some(Files::of(path)?))
            }
            Database::Server(server) => {
                let session = Session::new(server);
                session.upgrade(&schema::server_steps().map_err(damaged)?)?;
                (None, Sql::Server(Box::new(session)), None, None)
            }
        };
        let instance = instance.to_string();
        let lease = Lease::take(&sql, &instance)?;
        let objects = at.objects.clone();
        if let Some(objects) = &objects {
            objects.check(objects::has_some(&sql)?)?;
        }
        let sweeping = objects.clone().map(|objects| Sweeping::start(objects, at.clone())).transpose()?;
        Ok(Self { sql, instance, lease, objects, _checkpoints: checkpoints, _sweeping: sweeping, files, _lock: lock })
    }

    /// Changes that become durable together, or not at all: dropping a batch undoes it.
    pub fn batch(&mut self) -> Result<Batch<'_>, StoreError> {
        self.batch_about(std::iter::empty())
    }

    /// The same, while no other instance changes anything of these devices.
    pub fn batch_about<'d>(&mut self, devices: impl Iterator<Item = &'d DeviceId>) -> Result<Batch<'_>, StoreError> {
        self.fence()?;
        self.sql.begin()?;
        let batch = Batch {
            sql: &self.sql,
            instance: &self.instance,
            objects: self.objects.as_ref(),
            files: self.files.as_ref(),
            to_put: RefCell::default(),
            to_delete: RefCell::default(),
            changed: Cell::new(false),
            committed: false,
        };
        if let Sql::Server(session) = &self.sql {
            session.execute(lease::FENCED, &[(&self.instance).into(), self.lease.process.into()])?;
            let mut keys: Vec<i64> = devices.map(lock_key).collect();
            keys.sort_unstable();
            keys.dedup();
            if !keys.is_empty() {
                let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
                // In order: two that want the same devices never each hold what the other waits for.
                let statement = "SELECT pg_advisory_xact_lock(key) FROM (SELECT CAST(part AS BIGINT) AS key \
                     FROM unnest(string_to_array(?1, ',')) AS part ORDER BY 1) AS keys";
                session.execute(statement, &[(&keys.join(",")).into()])?;
            }
        }
        Ok(batch)
    }

    /// What this instance has counted; see [`super::Reader::totals`].
    pub fn totals(&self) -> Result<Totals, StoreError> {
        let statement = "SELECT json FROM totals WHERE instance = ?1";
        let read = |row: &Row<'_>| serde_json::from_str(&row.get::<String>(0)?).map_err(damaged);
        Ok(self.sql.row(statement, &[(&self.instance).into()], read)?.unwrap_or_default())
    }

    /// How many devices are on record. Looks at each of them.
    pub fn device_count(&self) -> Result<u64, StoreError> {
        Ok(count(self.sql.row("SELECT COUNT(*) FROM devices", &[], |row| row.get(0))?.unwrap_or(0)))
    }

    /// When the last case came that is on record.
    pub fn newest_ms(&self) -> Result<Option<u64>, StoreError> {
        let statement = "SELECT received_ms FROM cases ORDER BY seq DESC LIMIT 1";
        self.sql.row(statement, &[], |row| Ok(count(row.get(0)?)))
    }

    /// All cases that wait for an answer of this instance, oldest first.
    pub fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let statement = format!(
            "SELECT {WAITING_COLUMNS} FROM cases WHERE state = 0 AND wanted_ms IS NULL AND instance = ?1 ORDER BY seq"
        );
        self.sql.rows(&statement, &[(&self.instance).into()], waiting)
    }

    /// What a month's calls have cost, by answerer.
    pub fn spent(&self, month: Month) -> Result<BTreeMap<String, Micro>, StoreError> {
        let statement = "SELECT answerer, micro FROM spent WHERE month = ?1";
        let rows = self.sql.rows(statement, &[month.0.into()], |row| Ok((row.get(0)?, Micro(count(row.get(1)?)))))?;
        Ok(rows.into_iter().collect())
    }

    /// A case and its payload; `None` once the payload has gone, or the case is not this instance's any more.
    pub fn load(&self, id: &CaseId) -> Result<Option<(Case, Payload)>, StoreError> {
        let statement = format!(
            "SELECT header, {KEPT_COLUMNS} FROM cases JOIN payloads USING (seq) WHERE id = ?1 AND instance = ?2"
        );
        self.sql.row(&statement, &[(&id.to_string()).into(), (&self.instance).into()], |row| {
            let case = row.cbor(0)?;
            let payload = match (objects::kept(row, 1, id)?, &self.objects) {
                (Ok(bytes), _) => Payload::Here(bytes),
                (Err(key), Some(objects)) => Payload::Coming(objects.get(key)),
                (Err(_), None) => return Err(StoreError::ElsewhereUnknown),
            };
            Ok((case, payload))
        })
    }
}

/// Two devices that share a key wait for each other sometimes.
fn lock_key(device: &DeviceId) -> i64 {
    let Digest([a, b, c, d, e, f, g, h, ..]) = Digest::of(device.as_str().as_bytes());
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Changes on their way into one commit.
pub struct Batch<'w> {
    pub(super) sql: &'w Sql,
    instance: &'w str,
    objects: Option<&'w Objects>,
    files: Option<&'w Files>,
    /// Objects that are put before the commit, and those that are deleted after it.
    to_put: RefCell<Vec<(String, Vec<u8>)>>,
    to_delete: RefCell<Vec<String>>,
    changed: Cell<bool>,
    committed: bool,
}

impl Batch<'_> {
    pub(super) fn instance(&self) -> &str {
        self.instance
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.sql.rollback();
        }
    }
}

impl Batch<'_> {
    /// Whether there is anything to commit.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.changed.get()
    }

    /// Returns when everything in the batch would survive a power cut.
    pub fn commit(mut self) -> Result<(), StoreError> {
        if let Some(objects) = self.objects {
            objects.put_all(self.to_put.take())?;
        }
        self.sql.commit()?;
        self.committed = true;
        self.files.map_or(Ok(()), Files::check)?;
        // Only now: what a next process will find in the place of these records may still name them.
        if let Some(objects) = self.objects {
            objects.delete(self.to_delete.take());
        }
        Ok(())
    }

    /// Whether it has as many payload bytes as can be brought elsewhere in one commit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.to_put.borrow().iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() >= objects::COMMIT_BYTES_MAX
    }

    /// Whether what lies elsewhere can be reached.
    pub fn probe(&self) -> Result<(), StoreError> {
        self.objects.map_or(Ok(()), Objects::probe)
    }

    /// What of a payload lies in its row: nothing, where it is brought elsewhere.
    pub(super) fn here<'p>(&self, header: &Case, payload: &'p [u8]) -> &'p [u8] {
        if self.objects.is_none() || payload.is_empty() {
            return payload;
        }
        let key = objects::key(&header.id, &header.payload_sha256);
        self.to_put.borrow_mut().push((key, payload.to_vec()));
        &[]
    }

    /// The object of a payload's row is deleted after the commit, if it has one.
    pub(super) fn let_go(&self, id: &CaseId, sum: &[u8], bytes_here: i64) -> Result<(), StoreError> {
        if bytes_here == 0 && self.objects.is_some() {
            let sum = Digest(sum.try_into().map_err(damaged)?);
            self.to_delete.borrow_mut().push(objects::key(id, &sum));
        }
        Ok(())
    }

    pub(super) fn change(&self, statement: &str, values: &[Value<'_>]) -> Result<(), StoreError> {
        self.changed.set(true);
        self.sql.execute(statement, values)
    }

    /// What is on record about a case, this batch included.
    pub fn known(&self, id: &CaseId) -> Result<Option<Known>, StoreError> {
        let statement = "SELECT payload_sha256, state, reason, \
             (SELECT verdict FROM verdicts v WHERE v.seq = cases.seq ORDER BY revision DESC LIMIT 1), \
             wanted_ms, other_sha256 FROM cases WHERE id = ?1";
        self.sql.row(statement, &[(&id.to_string()).into()], |row| {
            let standing = Standing::read(row.get(1)?, row.get(2)?, row.get(4)?, row.get(3)?)?;
            let digest = |sum: Vec<u8>| sum.as_slice().try_into().map(Digest).map_err(damaged);
            let other_sha256 = row.get::<Option<Vec<u8>>>(5)?.map(digest).transpose()?;
            Ok(Known { payload_sha256: digest(row.get(0)?)?, other_sha256, standing })
        })
    }

    /// Whether a case waits for this instance's answer. Another may have taken it over, and answered it.
    pub fn is_ours(&self, id: &CaseId) -> Result<bool, StoreError> {
        let statement = "SELECT seq FROM cases WHERE id = ?1 AND state = 0 AND instance = ?2";
        self.sql.exists(statement, &[(&id.to_string()).into(), self.instance.into()])
    }

    /// A recorded case as one that waits.
    pub fn as_waiting(&self, id: &CaseId) -> Result<Waiting, StoreError> {
        let statement = "SELECT task, payload_bytes FROM cases WHERE id = ?1";
        let found = self.sql.row(statement, &[(&id.to_string()).into()], |row| {
            Ok(Waiting::new(id.clone(), row.get(0)?, count(row.get(1)?)))
        })?;
        found.ok_or_else(|| damaged(format!("the case {id} has gone")))
    }

    /// Takes a new case in as waiting. `header` is the case without its payload.
    pub fn record(&self, header: &Case, payload: &[u8], now_ms: u64) -> Result<(), StoreError> {
        let id = header.id.to_string();
        let device = header.id.device.as_str();
        let offered = header.offer;
        self.change(
            "INSERT INTO cases (id, device, task, received_ms, payload_sha256, payload_bytes, content_type, \
             header, state, instance, other_sha256) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10)",
            &[
                (&id).into(),
                device.into(),
                (&header.task).into(),
                now_ms.into(),
                header.payload_sha256.0.as_slice().into(),
                (payload.len() as u64).into(),
                (&header.content_type).into(),
                (&to_cbor(header)).into(),
                self.instance.into(),
                offered.as_ref().map(|offer| offer.payload_sha256.0.as_slice()).into(),
            ],
        )?;
        if header.form != PayloadForm::Nothing {
            self.change(
                "INSERT INTO payloads (seq, bytes) VALUES ((SELECT seq FROM cases WHERE id = ?1), ?2)",
                &[(&id).into(), self.here(header, payload).into()],
            )?;
        }
        self.change("INSERT INTO devices (device) VALUES (?1) ON CONFLICT (device) DO NOTHING", &[device.into()])?;
        self.change(
            "INSERT INTO device_cases (device, cases, case_ms) VALUES (?1, 1, ?2) \
             ON CONFLICT (device) DO UPDATE SET cases = device_cases.cases + 1, case_ms = ?2",
            &[device.into(), now_ms.into()],
        )
    }

    /// Closes a case with a verdict. `agrees` is absent when the device had no answer of its own.
    pub fn answer(&self, verdict: &Verdict, agrees: Option<bool>, now_ms: u64) -> Result<(), StoreError> {
        let id = verdict.id.to_string();
        self.change(
            "INSERT INTO verdicts (seq, revision, given_ms, verdict) \
             VALUES ((SELECT seq FROM cases WHERE id = ?1), ?2, ?3, ?4) \
             ON CONFLICT (seq, revision) DO UPDATE SET given_ms = excluded.given_ms, verdict = excluded.verdict",
            &[(&id).into(), verdict.revision.into(), now_ms.into(), (&to_cbor(verdict)).into()],
        )?;
        self.change(
            "UPDATE cases SET state = 1, reason = NULL, agrees = ?2, review = 0 WHERE id = ?1",
            &[(&id).into(), agrees.into()],
        )?;
        if let Some(agrees) = agrees {
            self.change(
                "UPDATE device_cases SET agreed = agreed + ?2, disagreed = disagreed + ?3 WHERE device = ?1",
                &[verdict.id.device.as_str().into(), agrees.into(), (!agrees).into()],
            )?;
        }
        Ok(())
    }

    /// Notes that the model could not answer; the case may be tried again.
    pub fn fail(&self, id: &CaseId, reason: &str) -> Result<(), StoreError> {
        self.set_state(id, FAILED, Some(reason))
    }

    /// Notes that a case will never be answered.
    pub fn kill(&self, id: &CaseId, reason: &str) -> Result<(), StoreError> {
        self.set_state(id, DEAD, Some(reason))
    }

    /// Opens a failed case for another try, by this instance.
    pub fn reopen(&self, id: &CaseId) -> Result<(), StoreError> {
        self.set_state(id, WAITING, None)
    }

    fn set_state(&self, id: &CaseId, state: i64, reason: Option<&str>) -> Result<(), StoreError> {
        // Who tries a case again asks everybody again.
        self.change(
            "UPDATE cases SET state = ?2, reason = ?3, declined = NULL, review = 0, instance = ?4 WHERE id = ?1",
            &[(&id.to_string()).into(), state.into(), reason.into(), self.instance.into()],
        )
    }

    /// Notes that an answerer will not answer a case; another is asked.
    pub fn decline(&self, id: &CaseId, answerer: &str) -> Result<(), StoreError> {
        self.change(
            "UPDATE cases SET declined = COALESCE(declined, '') || ?2 || ',' WHERE id = ?1",
            &[(&id.to_string()).into(), answerer.into()],
        )
    }

    /// Puts a case into the review queue: it waits for a person.
    pub fn review(&self, id: &CaseId) -> Result<(), StoreError> {
        self.change("UPDATE cases SET review = 1 WHERE id = ?1", &[(&id.to_string()).into()])
    }

    /// A case that waits for a person, and how many bytes its payload has.
    pub fn under_review(&self, id: &CaseId) -> Result<Option<(Case, u64)>, StoreError> {
        let statement = "SELECT header, payload_bytes FROM cases WHERE id = ?1 AND review = 1 AND state = 0";
        self.sql.row(statement, &[(&id.to_string()).into()], |row| Ok((row.cbor(0)?, count(row.get(1)?))))
    }

    /// Adds to what an answerer's calls have cost in a month. Returns what they have cost so far, all instances' together.
    pub fn add_spent(&self, month: Month, answerer: &str, micro: i64) -> Result<Micro, StoreError> {
        let statement = "INSERT INTO spent (month, answerer, micro) VALUES (?1, ?2, ?3) \
             ON CONFLICT (month, answerer) DO UPDATE SET micro = spent.micro + excluded.micro RETURNING micro";
        self.changed.set(true);
        let spent = self.sql.row(statement, &[month.0.into(), answerer.into(), micro.into()], |row| row.get(0))?;
        Ok(Micro(count(spent.unwrap_or(0))))
    }

    /// What this instance has counted.
    pub fn set_totals(&self, totals: &Totals) -> Result<(), StoreError> {
        let json = serde_json::to_string(totals).map_err(damaged)?;
        self.change(
            "INSERT INTO totals (instance, json) VALUES (?1, ?2) ON CONFLICT (instance) DO UPDATE SET json = excluded.json",
            &[self.instance.into(), (&json).into()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Records, case, everywhere};
    use crate::store::{Reader, Sought};
    use hedge_proto::{Authority, ModelRef, Output, WIRE_VERSION};

    fn verdict(id: CaseId, revision: u32) -> Verdict {
        let said = Output::label(&format!("revision {revision}"));
        let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        Verdict { v: WIRE_VERSION, id, revision, authority: Authority::Model, task: "t".to_owned(), said, model }
    }

    fn open(records: &Records) -> Writer {
        Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records")
    }

    #[test]
    fn a_batch_that_is_dropped_leaves_nothing() {
        everywhere(|records| {
            let mut writer = open(records);
            writer.batch().expect("a batch").record(&case(1), b"p", 1).expect("recorded");
            let batch = writer.batch().expect("a batch");
            assert_eq!(batch.known(&case(1).id).expect("read"), None);
        });
    }

    #[test]
    fn the_highest_revision_is_the_answer() {
        everywhere(|records| {
            let mut writer = open(records);
            let batch = writer.batch().expect("a batch");
            batch.record(&case(1), b"p", 1).expect("recorded");
            for revision in [2, 1] {
                batch.answer(&verdict(case(1).id, revision), None, 2).expect("answered");
            }
            let answered = Some(Known {
                payload_sha256: case(1).payload_sha256,
                other_sha256: None,
                standing: Standing::Answered(verdict(case(1).id, 2)),
            });
            assert_eq!(batch.known(&case(1).id).expect("read"), answered);
            batch.commit().expect("committed");
            let reader = Reader::open(&records.at).expect("records");
            assert_eq!(reader.find(&Sought::default(), 10).expect("read").expect("a list").rows.len(), 1);
        });
    }
}
