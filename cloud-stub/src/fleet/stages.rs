//! A change that goes to a few devices first, and to more only while those are well. No IO and no time.

use std::collections::BTreeMap;
use std::str::FromStr;

use hedge_proto::{DeviceId, Digest, Faults};
use serde_json::Value;

use super::board::Device;

/// How many of a hundred devices are changed after each stage: rising, up to all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages(Vec<u8>);

impl FromStr for Stages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rising list of percentages that ends with 100, such as 10,50,100");
        let parts = text.split(',').map(|part| part.trim().trim_end_matches('%').parse().map_err(|_| wrong()));
        let shares: Vec<u8> = parts.collect::<Result<_, _>>()?;
        let rising = shares.first().is_some_and(|first| *first > 0) && shares.is_sorted_by(|one, next| one < next);
        if rising && shares.last() == Some(&100) { Ok(Self(shares)) } else { Err(wrong()) }
    }
}

impl Stages {
    /// Which devices each stage changes. Names that are alike are often of one site, so the order is by their sums; who is
    /// away cannot say how it is, and comes last. None is empty that need not be.
    #[must_use]
    pub fn of(&self, devices: &BTreeMap<DeviceId, Device>) -> Vec<Vec<DeviceId>> {
        let mut order: Vec<&DeviceId> = devices.keys().collect();
        order.sort_by_cached_key(|name| (devices[*name].is_offline(), Digest::of(name.as_str().as_bytes())));
        let there = order.iter().filter(|name| !devices[**name].is_offline()).count();
        let mut order = order.into_iter().cloned();
        let mut taken = 0;
        let mut stages = Vec::new();
        for share in &self.0 {
            let upto = if *share == 100 { devices.len() } else { (there * usize::from(*share)).div_ceil(100) };
            stages.push(order.by_ref().take(upto - taken).collect());
            taken = upto;
        }
        stages.retain(|stage: &Vec<DeviceId>| !stage.is_empty());
        stages
    }
}

/// What a device is measured by that is to be changed. Of one that has the settings already, from an earlier attempt, it is
/// not known what was wrong before them: all that is wrong now counts.
#[must_use]
pub fn before(device: &Device, has_them: bool) -> Device {
    let mut before = device.clone();
    if let Some(status) = before.status.as_mut().filter(|_| has_them) {
        status.faults.clear();
    }
    before
}

/// What is wrong with devices that were changed, beyond what was wrong before. A device that was not asked to be there
/// is not missed.
#[must_use]
pub fn worse(before: &Device, now: &Device) -> Option<String> {
    let faults = |device: &Device| device.status.as_ref().map(|status| status.faults.clone()).unwrap_or_default();
    let (had, has): (Faults, Faults) = (faults(before), faults(now));
    if let Some((part, sentence)) = has.iter().find(|(part, _)| !had.contains_key(*part)) {
        return Some(format!("{part}: {sentence}"));
    }
    // Without a status it was taken out of service meanwhile.
    let is_away = now.is_offline() || now.status.is_none();
    let left = before.status.is_some() && !before.is_offline() && is_away && now.window_every_s().is_none();
    left.then(|| "it has left since".to_owned())
}

/// The models that `settings` want another bundle for, and that the device does not run yet.
#[must_use]
pub fn missing(device: &Device, settings: &Value) -> Option<String> {
    let loaded = device.status.iter().flat_map(|status| &status.models);
    let loaded: Vec<_> = loaded.map(|model| (model.name.as_str(), model.version.as_str())).collect();
    let models = settings["model"].as_object()?;
    models.iter().find_map(|(model, settings)| {
        let wanted = &settings["wanted"];
        let (name, version) = (wanted["name"].as_str()?, wanted["version"].as_str()?);
        let looks_on = wanted["shadow"] == Value::Bool(true);
        (!looks_on && !loaded.contains(&(name, version)))
            .then(|| format!("model {model} does not run {name}/{version}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{DeviceState, DeviceStatus, ModelRef};
    use serde_json::json;

    fn device(state: DeviceState) -> Device {
        let mut status = DeviceStatus::offline(1);
        status.state = state;
        Device { status: Some(status), ..Device::default() }
    }

    fn fleet(there: usize, away: usize) -> BTreeMap<DeviceId, Device> {
        let name = |number| DeviceId::new(&format!("device-{number}")).expect("a name");
        let state = |number| if number < there { DeviceState::Online } else { DeviceState::Offline };
        (0..there + away).map(|number| (name(number), device(state(number)))).collect()
    }

    #[test]
    fn each_device_is_in_one_stage_and_who_is_away_in_the_last() {
        for (there, away) in [(0, 0), (0, 3), (1, 0), (3, 1), (10, 0), (95, 10), (1000, 7)] {
            let devices = fleet(there, away);
            let stages = "10,50%, 100".parse::<Stages>().expect("stages").of(&devices);
            let mut all: Vec<&DeviceId> = stages.iter().flatten().collect();
            all.sort();
            assert_eq!(all, devices.keys().collect::<Vec<_>>(), "{there} and {away}");
            let Some((last, others)) = stages.split_last() else { continue };
            assert!(others.iter().flatten().all(|name| !devices[name].is_offline()));
            assert!(there <= 10 || others[0].len() == there.div_ceil(10));
            assert!(last.len() >= away);
        }
    }

    #[test]
    fn stages_rise_to_all() {
        for wrong in ["", "10", "50,10,100", "0,100", "10,10,100", "10,101", "a,100", "10,100,100"] {
            assert!(wrong.parse::<Stages>().is_err(), "{wrong}");
        }
        assert_eq!("100".parse::<Stages>(), Ok(Stages(vec![100])));
    }

    #[test]
    fn a_new_fault_and_a_device_that_left_end_it_and_an_old_fault_does_not() {
        let (well, mut ill, away) =
            (device(DeviceState::Online), device(DeviceState::Online), device(DeviceState::Offline));
        if let Some(status) = &mut ill.status {
            status.faults.insert("bundle.front".to_owned(), "its golden samples differ".to_owned());
        }
        assert_eq!(worse(&well, &well), None);
        assert!(worse(&well, &ill).is_some_and(|why| why.contains("golden")));
        assert_eq!(worse(&before(&ill, false), &ill), None);
        assert!(worse(&before(&ill, true), &ill).is_some(), "the settings may have brought it about");
        assert!(worse(&well, &away).is_some());
        assert_eq!(worse(&away, &away), None);
        assert!(worse(&well, &Device::default()).is_some(), "taken out of service");
        assert_eq!(worse(&Device::default(), &Device::default()), None);
    }

    #[test]
    fn a_wanted_bundle_is_missing_until_it_runs() {
        let mut one = device(DeviceState::Online);
        let wanted = json!({"model": {"front": {"wanted": {"name": "m", "version": "2"}}}});
        assert!(missing(&one, &wanted).is_some_and(|what| what.contains("m/2")));
        assert_eq!(missing(&one, &json!({"log": {"level": "warn"}})), None);
        assert_eq!(
            missing(&one, &json!({"model": {"front": {"wanted": {"name": "m", "version": "2", "shadow": true}}}})),
            None
        );
        if let Some(status) = &mut one.status {
            status.models = vec![ModelRef { name: "m".to_owned(), version: "2".to_owned() }];
        }
        assert_eq!(missing(&one, &wanted), None);
    }
}
