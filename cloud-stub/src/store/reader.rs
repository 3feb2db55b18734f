//! Looks at committed records, beside the writer and without holding it up.

use std::path::Path;

use hedge_proto::{Case, CaseId, DeviceId, DeviceStatus, Telemetry, Verdict, from_cbor, from_json};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use serde_json::Value;

use super::{Standing, State, StoreError, Totals, count, damaged, schema};

pub(super) const ROW_BYTES_MAX: usize = 1024 * 1024;

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
    pub(super) connection: Connection,
}

pub(super) const CASE_COLUMNS: &str = "c.header, c.received_ms, c.state, c.reason, c.agrees, c.payload_bytes, \
     EXISTS (SELECT 1 FROM payloads p WHERE p.seq = c.seq), v.verdict, v.given_ms \
     FROM cases c LEFT JOIN verdicts v ON v.seq = c.seq \
     AND v.revision = (SELECT MAX(revision) FROM verdicts w WHERE w.seq = c.seq)";

const DEVICE_COLUMNS: &str = "device, status, status_ms, telemetry, telemetry_ms, IFNULL(n.cases, 0), \
     IFNULL(n.agreed, 0), IFNULL(n.disagreed, 0), n.case_ms, \
     json_extract(reported, '$.version'), json_extract(desired, '$.version'), \
     json_extract(reported, '$.last.outcome'), \
     (SELECT MAX(seq) FROM device_events e WHERE e.device = devices.device) \
     FROM devices LEFT JOIN device_cases n USING (device)";

impl Reader {
    /// Opens records that a [`super::Writer`] has opened before.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { connection: schema::open_for_reading(path)? })
    }

    /// Cases that wait for a person, oldest first.
    pub fn to_review(&self, limit: u32) -> Result<Vec<CaseRow>, StoreError> {
        self.connection
            .prepare_cached(&format!(
                "SELECT {CASE_COLUMNS} WHERE c.review = 1 AND c.state = 0 ORDER BY c.seq LIMIT ?1"
            ))?
            .query_map([limit], |row| Ok(case_row(row)))?
            .map(|row| row?)
            .collect()
    }

    pub fn case(&self, id: &CaseId) -> Result<Option<CaseRow>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {CASE_COLUMNS} WHERE c.id = ?1"))?
            .query_row([id.to_string()], |row| Ok(case_row(row)))
            .optional()?
            .transpose()
    }

    /// A case's content type and payload, while it is kept.
    pub fn payload(&self, id: &CaseId) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT content_type, bytes FROM cases JOIN payloads USING (seq) WHERE id = ?1")?
            .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?)
    }

    /// All devices by name.
    pub fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {DEVICE_COLUMNS} ORDER BY device"))?
            .query_map([], |row| Ok(device_row(row)))?
            .map(|row| row?)
            .collect()
    }

    pub fn device(&self, device: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {DEVICE_COLUMNS} WHERE device = ?1"))?
            .query_row([device.as_str()], |row| Ok(device_row(row)))
            .optional()?
            .transpose()
    }

    pub fn settings(&self, device: &DeviceId) -> Result<SettingsRow, StoreError> {
        let row = self
            .connection
            .prepare_cached("SELECT reported, reported_ms, desired, desired_ms FROM devices WHERE device = ?1")?
            .query_row([device.as_str()], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((reported, reported_ms, desired, desired_ms)) = row else { return Ok(SettingsRow::default()) };
        let document = |json: Option<String>| json.map(|json| serde_json::from_str(&json).map_err(damaged)).transpose();
        Ok(SettingsRow {
            reported: document(reported)?,
            reported_ms: Option::<i64>::map(reported_ms, count),
            desired: document(desired)?,
            desired_ms: Option::<i64>::map(desired_ms, count),
        })
    }

    /// A device's history, newest first.
    pub fn history(&self, device: &DeviceId) -> Result<Vec<DeviceEvent>, StoreError> {
        self.connection
            .prepare_cached("SELECT at_ms, kind, json FROM device_events WHERE device = ?1 ORDER BY seq DESC")?
            .query_map([device.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?
            .map(|row| {
                let (at_ms, kind, json) = row?;
                Ok(DeviceEvent { at_ms: count(at_ms), kind, document: serde_json::from_str(&json).map_err(damaged)? })
            })
            .collect()
    }

    pub fn totals(&self) -> Result<Totals, StoreError> {
        let text: Option<String> =
            self.connection.prepare_cached("SELECT json FROM totals")?.query_row([], |row| row.get(0)).optional()?;
        text.map_or_else(|| Ok(Totals::default()), |text| serde_json::from_str(&text).map_err(damaged))
    }
}

pub(super) fn case_row(row: &Row<'_>) -> Result<CaseRow, StoreError> {
    let header: Vec<u8> = row.get(0)?;
    let reason: Option<String> = row.get(3)?;
    let verdict: Option<Vec<u8>> = row.get(7)?;
    let verdict = verdict.map(|bytes| from_cbor::<Verdict>(&bytes, ROW_BYTES_MAX)).transpose().map_err(damaged)?;
    let reason = reason.unwrap_or_default();
    let standing = match State::read(row.get(2)?)? {
        State::Waiting => Standing::Waiting,
        State::Failed => Standing::Failed(reason),
        State::Dead => Standing::Dead(reason),
        State::Answered => Standing::Answered(verdict.ok_or_else(|| damaged("an answered case without a verdict"))?),
    };
    Ok(CaseRow {
        case: from_cbor(&header, ROW_BYTES_MAX).map_err(damaged)?,
        received_ms: count(row.get(1)?),
        standing,
        given_ms: row.get::<_, Option<i64>>(8)?.map(count),
        agrees: row.get(4)?,
        payload_bytes: count(row.get(5)?),
        payload_kept: row.get(6)?,
    })
}

fn device_row(row: &Row<'_>) -> Result<DeviceRow, StoreError> {
    let status: Option<Vec<u8>> = row.get(1)?;
    let telemetry: Option<Vec<u8>> = row.get(3)?;
    let number = |column: usize| Ok::<_, StoreError>(row.get::<_, Option<i64>>(column)?.map(count));
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
        in_force: number(9)?,
        wanted: number(10)?,
        outcome: row.get(11)?,
        events: number(12)?.unwrap_or(0),
    })
}
