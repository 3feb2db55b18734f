//! Looks at committed records, beside the writer and without holding it up.

use hedge_proto::{Case, CaseId, DeviceId, DeviceStatus, Digest, ModelRef, Telemetry, Verdict, from_json};
use serde::Serialize;
use serde_json::Value;

use super::objects::{self, KEPT_COLUMNS};
use super::sql::{Row, Sql};
use super::{Database, ROW_BYTES_MAX, RecordsAt, Standing, StoreError, Totals, count, damaged};

/// One case as recorded, without its payload.
#[derive(Debug, Clone)]
pub struct CaseRow {
    pub case: Case,
    pub received_ms: u64,
    pub standing: Standing,
    /// When the verdict was given.
    pub given_ms: Option<u64>,
    /// Whether local and cloud answer say the same; absent without a verdict or a local answer.
    pub agrees: Option<bool>,
    pub payload_bytes: u64,
    /// The payload is still here.
    pub payload_kept: bool,
}

impl CaseRow {
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        if let Standing::Answered(verdict) = &self.standing { Some(verdict) } else { None }
    }
}

/// One device as recorded.
#[derive(Debug, Clone, Default)]
pub struct DeviceRow {
    pub device: String,
    pub status: Option<DeviceStatus>,
    pub status_ms: Option<u64>,
    pub telemetry: Option<Telemetry>,
    pub telemetry_ms: Option<u64>,
    pub cases: u64,
    pub agreed: u64,
    pub disagreed: u64,
    /// When its last new case arrived.
    pub case_ms: Option<u64>,
    /// Versions of the settings in force and of those wanted, and what became of the last wanted ones.
    pub in_force: Option<u64>,
    pub wanted: Option<u64>,
    pub outcome: Option<String>,
    /// Grows with its history.
    pub events: u64,
}

/// Which agent a device runs, if it says so, and its bundles.
pub(crate) type Runs = (Option<String>, Vec<ModelRef>);

/// The settings of one device: documents as they came.
#[derive(Debug, Clone, Default)]
pub struct SettingsRow {
    pub reported: Option<Value>,
    pub reported_ms: Option<u64>,
    pub desired: Option<Value>,
    pub desired_ms: Option<u64>,
}

/// One event of a device's history.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceEvent {
    pub at_ms: u64,
    /// `desired`, `reported` or `reply`.
    pub kind: String,
    pub document: Value,
}

/// Sees each commit as a whole.
pub struct Reader {
    pub(super) sql: Sql,
    at: RecordsAt,
}

pub(super) const CASE_COLUMNS: &str = "c.header, c.received_ms, c.state, c.reason, c.agrees, c.payload_bytes, \
     (SELECT p.seq FROM payloads p WHERE p.seq = c.seq), v.verdict, v.given_ms, c.wanted_ms \
     FROM cases c LEFT JOIN verdicts v ON v.seq = c.seq \
     AND v.revision = (SELECT MAX(revision) FROM verdicts w WHERE w.seq = c.seq)";

/// Around what a device's documents say, which [`Reader::device_columns`] has words for.
const DEVICE_COLUMNS: [&str; 2] = [
    "device, status, status_ms, telemetry, telemetry_ms, COALESCE(n.cases, 0), \
     COALESCE(n.agreed, 0), COALESCE(n.disagreed, 0), n.case_ms, ",
    ", (SELECT MAX(seq) FROM device_events e WHERE e.device = devices.device) \
     FROM devices LEFT JOIN device_cases n USING (device)",
];

impl Reader {
    /// Opens records that a [`super::Writer`] has opened before.
    pub fn open(at: &RecordsAt) -> Result<Self, StoreError> {
        Ok(Self { sql: at.open_for_reading()?, at: at.clone() })
    }

    /// Cases that wait for a person, oldest first.
    pub fn to_review(&self, device: Option<&DeviceId>, limit: u32) -> Result<Vec<CaseRow>, StoreError> {
        let statement = format!(
            "SELECT {CASE_COLUMNS} WHERE c.review = 1 AND c.state = 0 AND (?2 = '' OR c.device = ?2) \
             ORDER BY c.seq LIMIT ?1"
        );
        let device = device.map_or("", DeviceId::as_str);
        self.sql.rows(&statement, &[limit.into(), device.into()], case_row)
    }

    pub fn case(&self, id: &CaseId) -> Result<Option<CaseRow>, StoreError> {
        self.sql.row(&format!("SELECT {CASE_COLUMNS} WHERE c.id = ?1"), &[(&id.to_string()).into()], case_row)
    }

    /// A case's content type and payload, while it is kept.
    pub fn payload(&self, id: &CaseId) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        let statement =
            format!("SELECT content_type, {KEPT_COLUMNS} FROM cases JOIN payloads USING (seq) WHERE id = ?1");
        let read = |row: &Row<'_>| Ok((row.get::<String>(0)?, objects::kept(row, 1, id)?));
        match self.sql.row(&statement, &[(&id.to_string()).into()], read)? {
            None => Ok(None),
            Some((content_type, Ok(bytes))) => Ok(Some((content_type, bytes))),
            Some((content_type, Err(key))) => {
                let objects = self.at.objects.as_ref().ok_or(StoreError::ElsewhereUnknown)?;
                Ok(objects.get_now(key)?.map(|bytes| (content_type, bytes)))
            }
        }
    }

    /// Whether a record has a payload of this sum.
    pub(super) fn names_payload(&self, id: &str, sum: &Digest) -> Result<bool, StoreError> {
        let statement = "SELECT seq FROM cases JOIN payloads USING (seq) WHERE id = ?1 AND payload_sha256 = ?2";
        self.sql.exists(statement, &[id.into(), sum.0.as_slice().into()])
    }

    /// All devices by name.
    pub fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.sql.rows(&format!("SELECT {} ORDER BY device", self.device_columns()), &[], device_row)
    }

    pub fn device(&self, device: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        let statement = format!("SELECT {} WHERE device = ?1", self.device_columns());
        self.sql.row(&statement, &[device.as_str().into()], device_row)
    }

    /// Which agent each device runs, and which bundles it has loaded.
    pub(crate) fn versions(&self) -> Result<Vec<Runs>, StoreError> {
        self.sql.rows("SELECT status FROM devices WHERE status IS NOT NULL", &[], |row| {
            let status: DeviceStatus = from_json(&row.get::<Vec<u8>>(0)?, ROW_BYTES_MAX).map_err(damaged)?;
            Ok((status.version, status.models))
        })
    }

    fn device_columns(&self) -> String {
        // As text: a device may report a number that no column takes.
        let said = self.sql.either(
            "CAST(json_extract(reported, '$.version') AS TEXT), CAST(json_extract(desired, '$.version') AS TEXT), \
             json_extract(reported, '$.last.outcome')",
            "CAST(reported AS json) ->> 'version', CAST(desired AS json) ->> 'version', \
             CAST(reported AS json) #>> '{last,outcome}'",
        );
        let [before, after] = DEVICE_COLUMNS;
        format!("{before}{said}{after}")
    }

    pub fn settings(&self, device: &DeviceId) -> Result<SettingsRow, StoreError> {
        let statement = "SELECT reported, reported_ms, desired, desired_ms FROM devices WHERE device = ?1";
        let document = |row: &Row<'_>, column| -> Result<Option<Value>, StoreError> {
            let json: Option<String> = row.get(column)?;
            json.map(|json| serde_json::from_str(&json).map_err(damaged)).transpose()
        };
        let found = self.sql.row(statement, &[device.as_str().into()], |row| {
            Ok(SettingsRow {
                reported: document(row, 0)?,
                reported_ms: row.get::<Option<i64>>(1)?.map(count),
                desired: document(row, 2)?,
                desired_ms: row.get::<Option<i64>>(3)?.map(count),
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// A device's history, newest first.
    pub fn history(&self, device: &DeviceId) -> Result<Vec<DeviceEvent>, StoreError> {
        let statement = "SELECT at_ms, kind, json FROM device_events WHERE device = ?1 ORDER BY seq DESC";
        self.sql.rows(statement, &[device.as_str().into()], |row| {
            let document = serde_json::from_str(&row.get::<String>(2)?).map_err(damaged)?;
            Ok(DeviceEvent { at_ms: count(row.get(0)?), kind: row.get(1)?, document })
        })
    }

    /// Of all instances together.
    pub fn totals(&self) -> Result<Totals, StoreError> {
        super::totals(&self.sql)
    }

    /// How much room the records take.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        match &self.at.database {
            // The database and what is not merged into it yet.
            Database::File(path) => {
                let log = path.with_extension("sqlite-wal");
                let files = [path, &log].into_iter().filter_map(|file| std::fs::metadata(file).ok());
                Ok(files.map(|file| file.len()).sum())
            }
            Database::Server(_) => {
                let size = self.sql.row("SELECT pg_database_size(current_database())", &[], |row| row.get(0))?;
                Ok(count(size.unwrap_or(0)))
            }
        }
    }
}

pub(super) fn case_row(row: &Row<'_>) -> Result<CaseRow, StoreError> {
    Ok(CaseRow {
        case: row.cbor(0)?,
        received_ms: count(row.get(1)?),
        standing: Standing::read(row.get(2)?, row.get(3)?, row.get(9)?, row.get(7)?)?,
        given_ms: row.get::<Option<i64>>(8)?.map(count),
        agrees: row.get::<Option<i64>>(4)?.map(|agrees| agrees != 0),
        payload_bytes: count(row.get(5)?),
        payload_kept: row.get::<Option<i64>>(6)?.is_some(),
    })
}

fn device_row(row: &Row<'_>) -> Result<DeviceRow, StoreError> {
    let status: Option<Vec<u8>> = row.get(1)?;
    let telemetry: Option<Vec<u8>> = row.get(3)?;
    let number = |column: usize| Ok::<_, StoreError>(row.get::<Option<i64>>(column)?.map(count));
    let version = |column: usize| Ok::<_, StoreError>(row.get::<Option<String>>(column)?.and_then(|n| n.parse().ok()));
    Ok(DeviceRow {
        device: row.get(0)?,
        status: status.map(|json| from_json(&json, ROW_BYTES_MAX)).transpose().map_err(damaged)?,
        status_ms: number(2)?,
        telemetry: telemetry.map(|json| from_json(&json, ROW_BYTES_MAX)).transpose().map_err(damaged)?,
        telemetry_ms: number(4)?,
        cases: count(row.get(5)?),
        agreed: count(row.get(6)?),
        disagreed: count(row.get(7)?),
        case_ms: number(8)?,
        in_force: version(9)?,
        wanted: version(10)?,
        outcome: row.get(11)?,
        events: number(12)?.unwrap_or(0),
    })
}
