//! Keeps what each device has said of itself, and its history.

use hedge_proto::{DeviceId, DeviceStatus, Telemetry, to_json};

use super::sql::Value;
use super::{Batch, ROW_BYTES_MAX, StoreError, damaged};

/// How many events a device's history keeps: with the bound on each, at most 800 KiB a device.
const EVENTS_PER_DEVICE_MAX: u32 = 200;

impl Batch<'_> {
    pub fn device_status(&self, device: &DeviceId) -> Result<Option<DeviceStatus>, StoreError> {
        let statement = "SELECT status FROM devices WHERE device = ?1";
        let json: Option<Option<Vec<u8>>> = self.sql.row(statement, &[device.as_str().into()], |row| row.get(0))?;
        json.flatten().map(|json| hedge_proto::from_json(&json, ROW_BYTES_MAX).map_err(damaged)).transpose()
    }

    pub fn set_device_status(&self, device: &DeviceId, status: &DeviceStatus, now_ms: u64) -> Result<(), StoreError> {
        self.set_document(device, "status", (&to_json(status)).into(), now_ms)
    }

    pub fn set_telemetry(&self, device: &DeviceId, telemetry: &Telemetry, now_ms: u64) -> Result<(), StoreError> {
        self.set_document(device, "telemetry", (&to_json(telemetry)).into(), now_ms)
    }

    /// What a device reported, and what is wanted of it: the documents as they are on record.
    pub fn settings_documents(&self, device: &DeviceId) -> Result<(Option<String>, Option<String>), StoreError> {
        let statement = "SELECT reported, desired FROM devices WHERE device = ?1";
        let row = self.sql.row(statement, &[device.as_str().into()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(row.unwrap_or_default())
    }

    /// Keeps, or forgets, what a device reported as its settings.
    pub fn set_reported(&self, device: &DeviceId, json: Option<&str>, now_ms: u64) -> Result<(), StoreError> {
        self.set_document(device, "reported", json.into(), now_ms)
    }

    /// Keeps, or forgets, what is wanted as a device's settings.
    pub fn set_desired(&self, device: &DeviceId, json: Option<&str>, now_ms: u64) -> Result<(), StoreError> {
        self.set_document(device, "desired", json.into(), now_ms)
    }

    /// Puts a document of this device into its column, and when it came beside it.
    fn set_document(
        &self,
        device: &DeviceId,
        column: &str,
        document: Value<'_>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let statement = format!(
            "INSERT INTO devices (device, {column}, {column}_ms) VALUES (?1, ?2, ?3) ON CONFLICT (device) \
             DO UPDATE SET {column} = excluded.{column}, {column}_ms = excluded.{column}_ms"
        );
        self.change(&statement, &[device.as_str().into(), document, now_ms.into()])
    }

    /// Whether the device's history has this very event.
    pub fn has_event(&self, device: &DeviceId, kind: &str, json: &str) -> Result<bool, StoreError> {
        let statement = "SELECT seq FROM device_events WHERE device = ?1 AND kind = ?2 AND json = ?3";
        self.sql.exists(statement, &[device.as_str().into(), kind.into(), json.into()])
    }

    /// Adds to a device's history, from which the oldest goes beyond `EVENTS_PER_DEVICE_MAX`.
    pub fn add_event(&self, device: &DeviceId, kind: &str, json: &str, now_ms: u64) -> Result<(), StoreError> {
        self.change(
            "INSERT INTO device_events (device, at_ms, kind, json) VALUES (?1, ?2, ?3, ?4)",
            &[device.as_str().into(), now_ms.into(), kind.into(), json.into()],
        )?;
        self.change(
            "DELETE FROM device_events WHERE device = ?1 AND seq <= \
             (SELECT seq FROM device_events WHERE device = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            &[device.as_str().into(), EVENTS_PER_DEVICE_MAX.into()],
        )
    }

    /// Forgets a device's status, as an empty retained message asks for.
    pub fn clear_device_status(&self, device: &DeviceId) -> Result<(), StoreError> {
        self.change("UPDATE devices SET status = NULL, status_ms = NULL WHERE device = ?1", &[device.as_str().into()])
    }

    pub fn is_device(&self, device: &DeviceId) -> Result<bool, StoreError> {
        self.sql.exists("SELECT device FROM devices WHERE device = ?1", &[device.as_str().into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::everywhere;
    use crate::store::{Reader, Writer};
    use hedge_proto::Name;

    #[test]
    fn a_history_keeps_the_newest_of_each_device() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let (noisy, calm) = (Name::new("noisy").expect("valid"), Name::new("calm").expect("valid"));
            let batch = writer.batch().expect("a batch");
            batch.add_event(&calm, "reply", "{}", 1).expect("added");
            for n in 0..u64::from(EVENTS_PER_DEVICE_MAX) + 5 {
                batch.add_event(&noisy, "reply", &format!("{{\"n\": {n}}}"), n).expect("added");
            }
            batch.commit().expect("committed");
            let reader = Reader::open(&records.at).expect("records");
            let history = reader.history(&noisy).expect("read");
            assert_eq!(history.len(), EVENTS_PER_DEVICE_MAX as usize);
            assert_eq!(history[0].at_ms, u64::from(EVENTS_PER_DEVICE_MAX) + 4, "newest first");
            assert_eq!(reader.history(&calm).expect("read").len(), 1);
        });
    }
}
