//! Who did what by the page: noted before it is done, and again when it has ended.
//!
//! It has a connection of its own: what somebody does must not wait for the intake, nor be lost with a batch of cases.
//! The oldest entries go beyond [`ROWS_MAX`].

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::files::Files;
use super::sql::{Row, Sql};
use super::{Database, Reader, RecordsAt, StoreError, count, damaged, postgres, schema};
use crate::{signed, wall_ms};

/// How many entries are kept: a year of a busy day's work, some 20 MB.
const ROWS_MAX: i64 = 100_000;

/// The oldest are removed once in so many entries.
const PRUNE_EVERY: i64 = 100;

/// How much of each word an entry keeps.
const CHARS_MAX: usize = 200;

/// What somebody does, before it is done.
#[derive(Debug, Clone, Default)]
pub struct Act {
    /// Empty where nobody is asked.
    pub who: String,
    pub address: String,
    pub act: &'static str,
    /// The device or case.
    pub about: String,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    pub seq: u64,
    pub at_ms: u64,
    pub who: String,
    pub address: String,
    pub act: String,
    pub about: String,
    pub detail: String,
    /// `begun`: how it ended is not known, because the program was killed.
    pub outcome: String,
}

/// Where acts are noted. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    sql: Arc<Mutex<Sql>>,
    /// Of records in a file.
    files: Option<Arc<Files>>,
}

impl Audit {
    /// Of records that a [`super::Writer`] has opened before.
    pub fn open(at: &RecordsAt) -> Result<Self, StoreError> {
        let (sql, files) = match &at.database {
            Database::File(path) => {
                let sql = Sql::File(schema::connect(path)?);
                // The log lies beside the records once they were read from.
                sql.exists("SELECT seq FROM audit LIMIT 1", &[])?;
                (sql, Some(Arc::new(Files::of(path)?)))
            }
            Database::Server(server) => (Sql::Server(Box::new(postgres::Session::new(server))), None),
        };
        Ok(Self { sql: Arc::new(Mutex::new(sql)), files })
    }

    /// Blocks until it would survive a power cut. Returns what [`Self::end`] goes by.
    pub fn begin(&self, act: &Act) -> Result<u64, StoreError> {
        let sql = self.sql.lock().unwrap_or_else(PoisonError::into_inner);
        let statement = "INSERT INTO audit (at_ms, who, address, act, about, detail, outcome) \
             VALUES (?1, ?2, ?3, ?4, ?5, '', 'begun') RETURNING seq";
        let (who, about) = (shortened(&act.who), shortened(&act.about));
        let values = [wall_ms().into(), (&who).into(), (&act.address).into(), act.act.into(), (&about).into()];
        let seq: Option<i64> = sql.row(statement, &values, |row| row.get(0))?;
        let seq = seq.ok_or_else(|| damaged("an act has no number"))?;
        if seq % PRUNE_EVERY == 0 {
            sql.execute("DELETE FROM audit WHERE seq <= ?1", &[(seq - ROWS_MAX).into()])?;
        }
        self.files.as_ref().map_or(Ok(()), |files| files.check())?;
        Ok(count(seq))
    }

    pub fn end(&self, seq: u64, detail: &str, outcome: &str) -> Result<(), StoreError> {
        let connection = self.sql.lock().unwrap_or_else(PoisonError::into_inner);
        let (detail, outcome) = (shortened(detail), shortened(outcome));
        let values = [seq.into(), (&detail).into(), (&outcome).into()];
        connection.execute("UPDATE audit SET detail = ?2, outcome = ?3 WHERE seq = ?1", &values)
    }
}

fn shortened(text: &str) -> String {
    hedge_proto::readable(text, CHARS_MAX)
}

impl Reader {
    /// The latest acts, the newest first; with `before`, those before that one.
    pub fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let statement = "SELECT seq, at_ms, who, address, act, about, detail, outcome FROM audit \
             WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
        let before = before.map_or(i64::MAX, signed);
        self.sql.rows(statement, &[before.into(), limit.into()], audit_row)
    }
}

fn audit_row(row: &Row<'_>) -> Result<AuditRow, StoreError> {
    Ok(AuditRow {
        seq: count(row.get(0)?),
        at_ms: count(row.get(1)?),
        who: row.get(2)?,
        address: row.get(3)?,
        act: row.get(4)?,
        about: row.get(5)?,
        detail: row.get(6)?,
        outcome: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Writer;
    use crate::store::testing::{Records, everywhere};

    fn opened(records: &Records) -> (Audit, Reader) {
        drop(Writer::open(&records.at, &hedge_proto::Name::new("one").expect("valid")).expect("records"));
        (Audit::open(&records.at).expect("opened"), Reader::open(&records.at).expect("records"))
    }

    fn act(about: &str) -> Act {
        Act { who: "ann".to_owned(), address: "192.0.2.1".to_owned(), act: "command", about: about.to_owned() }
    }

    #[test]
    fn who_did_what_is_on_record_before_it_is_done() {
        everywhere(|records| {
            let (audit, reader) = opened(records);
            let first = audit.begin(&act("hall-1")).expect("noted");
            let begun = reader.audit(None, 9).expect("read");
            assert_eq!((begun[0].outcome.as_str(), begun[0].who.as_str()), ("begun", "ann"));
            audit.end(first, "restart\u{1b}[2J", "200").expect("noted");
            let second = audit.begin(&act(&"x".repeat(5000))).expect("noted");
            let [newest, ended] = &reader.audit(None, 9).expect("read")[..] else { panic!("two") };
            assert_eq!((newest.seq, newest.about.len(), ended.seq), (second, CHARS_MAX, first));
            assert_eq!((ended.detail.as_str(), ended.outcome.as_str()), ("restart\u{fffd}[2J", "200"));
            assert_eq!(reader.audit(Some(second), 9).expect("read"), std::slice::from_ref(ended));
        });
    }

    #[test]
    fn only_so_many_acts_are_kept() {
        everywhere(|records| {
            let (audit, reader) = opened(records);
            let first = audit.begin(&act("first")).expect("noted");
            {
                let sql = audit.sql.lock().expect("free");
                // As after a long time: the numbers go on from here.
                let far = sql.either(
                    "INSERT INTO audit SELECT ?1, at_ms, who, address, act, about, detail, outcome FROM audit",
                    "SELECT setval(pg_get_serial_sequence('audit', 'seq'), ?1)",
                );
                sql.rows(far, &[(ROWS_MAX + 2 * PRUNE_EVERY - 1).into()], |_| Ok(())).expect("far");
            }
            audit.begin(&act("latest")).expect("noted");
            let kept = reader.audit(None, 9).expect("read");
            assert_eq!(kept[0].about, "latest");
            assert!(kept.iter().all(|row| row.seq != first), "{kept:?}");
        });
    }
}
