//! Keeps what each device's spot checks have come to, and adds those of a fleet up.

use hedge_core::judge::evidence::Evidence;
use hedge_proto::{DeviceId, ModelRef, SpotChecks, to_cbor};

use super::{Batch, StoreError, count, damaged};

/// Devices whose checks are added up. More would say the same more exactly.
const DEVICES_MAX: u32 = 1000;

fn key(cloud: &ModelRef) -> Result<String, StoreError> {
    serde_json::to_string(cloud).map_err(damaged)
}

impl Batch<'_> {
    /// Keeps what one device tells; it has counted from the beginning, so what it told before goes.
    pub fn set_spot_checks(&self, device: &DeviceId, told: &SpotChecks, now_ms: u64) -> Result<(), StoreError> {
        self.change(
            "INSERT INTO spot_checks (device, model, version, cloud, at_ms, counted) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (model, version, cloud, device) DO UPDATE SET at_ms = excluded.at_ms, counted = excluded.counted",
            &[
                device.as_str().into(),
                (&told.model.name).into(),
                (&told.model.version).into(),
                (&key(&told.cloud)?).into(),
                now_ms.into(),
                (&to_cbor(told)).into(),
            ],
        )
    }

    /// All devices' together. What is no count is left out, and so is whoever tells of more checks that held than it has
    /// sent cases: one device that invents them would certify all others.
    pub fn fleet_checks(&self, model: &ModelRef, cloud: &ModelRef) -> Result<SpotChecks, StoreError> {
        let rows = self.sql.rows(
            "SELECT counted, n.cases FROM spot_checks JOIN device_cases n USING (device) \
             WHERE model = ?1 AND version = ?2 AND cloud = ?3 ORDER BY at_ms DESC LIMIT ?4",
            &[(&model.name).into(), (&model.version).into(), (&key(cloud)?).into(), DEVICES_MAX.into()],
            |row| {
                let told: SpotChecks = row.cbor(0)?;
                Ok((Evidence::heard(&told), count(row.get(1)?)))
            },
        )?;
        let (mut fleet, mut devices) = (Evidence::default(), 0);
        for (heard, cases) in rows {
            if let Some(counted) = heard.filter(|counted| counted.unlost() <= cases as f64) {
                fleet.merge(&counted);
                devices += 1;
            }
        }
        Ok(fleet.told(model.clone(), cloud.clone(), devices))
    }

    /// Forgets those of devices that have told nothing since, and all of one device.
    pub fn forget_spot_checks(&self, before_ms: u64, device: Option<&DeviceId>) -> Result<(), StoreError> {
        let device = device.map_or("", DeviceId::as_str);
        let values = [before_ms.into(), device.into()];
        // Hardly ever anything: looked for first, because a commit that changes nothing writes nothing.
        if self.sql.exists("SELECT device FROM spot_checks WHERE at_ms < ?1 OR device = ?2 LIMIT 1", &values)? {
            self.change("DELETE FROM spot_checks WHERE at_ms < ?1 OR device = ?2", &values)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Writer;
    use crate::store::testing::{case, everywhere};
    use hedge_proto::{Case, CaseId, Name};

    fn model(version: &str) -> ModelRef {
        ModelRef { name: "small".to_owned(), version: version.to_owned() }
    }

    #[test]
    fn the_checks_of_all_devices_with_a_version_are_added_up() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let batch = writer.batch().expect("a batch");
            let name = |name: &str| Name::new(name).expect("valid");
            // Each has sent as many cases.
            for (sequence, device) in (0..).zip(["a", "a", "b", "b", "b", "c", "d", "e"]) {
                let case = case(sequence);
                let id = CaseId { device: name(device), ..case.id };
                batch.record(&Case { id, ..case }, b"p", 1).expect("recorded");
            }
            let told = |cloud: &str, checks: f64| SpotChecks {
                model: model("1"),
                cloud: model(cloud),
                devices: 1,
                checks,
                lost: vec![(120, 3, 1.0)],
                held: vec![(98, 1.0)],
            };
            let set = |device: &str, version: &str, told: &SpotChecks| {
                let told = SpotChecks { model: model(version), ..told.clone() };
                batch.set_spot_checks(&name(device), &told, 5).expect("kept");
            };
            set("a", "1", &told("c", 1.0));
            set("a", "1", &told("c", 3.0));
            set("b", "1", &told("c", 4.0));
            // Another version here, another in the cloud, what is no count, and more than was ever sent.
            set("b", "2", &told("c", 2.0));
            set("c", "1", &told("d", 2.0));
            set("d", "1", &SpotChecks { lost: vec![(250, 9, -1.0)], ..told("c", 2.0) });
            set("e", "1", &told("c", 3.0));
            let fleet = batch.fleet_checks(&model("1"), &model("c")).expect("read");
            assert_eq!((fleet.devices, fleet.checks, fleet.lost), (2, 7.0, vec![(120, 3, 2.0)]));
            assert_eq!(fleet.held, [(98, 2.0)]);
            batch.forget_spot_checks(0, Some(&name("b"))).expect("forgotten");
            assert_eq!(batch.fleet_checks(&model("1"), &model("c")).expect("read").devices, 1);
            batch.forget_spot_checks(6, None).expect("forgotten");
            assert_eq!(batch.fleet_checks(&model("1"), &model("c")).expect("read").devices, 0);
        });
    }
}
