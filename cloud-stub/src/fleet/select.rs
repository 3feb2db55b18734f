//! Which devices of a fleet are meant: `--where link=online,model=photo-small`.

use std::str::FromStr;

use hedge_proto::{DeviceId, ModelRef, SettingsOutcome};

use super::board::{Device, LINKS};

/// What conditions are about.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub name: &'a str,
    pub link: &'a str,
    pub models: &'a [ModelRef],
    pub version: Option<&'a str>,
    pub outcome: Option<SettingsOutcome>,
}

/// Conditions that must all hold; none at all is every device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Where(Vec<Condition>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Name(String),
    Link(String),
    Model(String),
    Version(String),
    Outcome(SettingsOutcome),
}

impl FromStr for Where {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(condition).collect::<Result<_, _>>().map(Self)
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is no condition; write KEY=VALUE"))?;
    let value = value.trim().to_owned();
    match key.trim() {
        "name" => Ok(Condition::Name(value)),
        "link" if LINKS.contains(&value.as_str()) => Ok(Condition::Link(value)),
        "link" => Err(format!("link is one of {}, not `{value}`", LINKS.join(", "))),
        "model" => Ok(Condition::Model(value)),
        "version" => Ok(Condition::Version(value)),
        "outcome" => serde_json::from_value(value.clone().into())
            .map(Condition::Outcome)
            .map_err(|_| format!("outcome is applied, on_trial, refused or failed, not `{value}`")),
        other => Err(format!("`{other}` is none of name, link, model, version, outcome")),
    }
}

impl Where {
    #[must_use]
    pub fn holds(&self, name: &DeviceId, device: &Device) -> bool {
        let status = device.status.as_ref();
        let last = device.reported.as_ref().and_then(|reported| reported.last.as_ref());
        self.holds_of(&Facts {
            name: name.as_str(),
            link: device.link(),
            models: status.map_or(&[], |status| &status.models),
            version: status.and_then(|status| status.version.as_deref()),
            outcome: last.map(|last| last.outcome),
        })
    }

    #[must_use]
    pub fn holds_of(&self, facts: &Facts<'_>) -> bool {
        self.0.iter().all(|condition| condition.holds(facts))
    }
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Name(pattern) => matches(pattern, facts.name),
            Self::Link(link) => facts.link == link,
            Self::Model(pattern) => match pattern.split_once('/') {
                Some((name, version)) => {
                    facts.models.iter().any(|model| matches(name, &model.name) && matches(version, &model.version))
                }
                None => facts.models.iter().any(|model| matches(pattern, &model.name)),
            },
            Self::Version(pattern) => facts.version.is_some_and(|version| matches(pattern, version)),
            Self::Outcome(outcome) => facts.outcome == Some(*outcome),
        }
    }
}

/// Whether `text` is like `pattern`, in which `*` is any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(inner) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else { return false };
    // Each part between stars is taken at its first place: whatever follows has the most text left.
    let find = |text: &'_ str, part: &str| text.find(part).map(|at| at + part.len());
    middle.split('*').try_fold(0, |from, part| Some(from + find(&inner[from..], part)?)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{DeviceState, DeviceStatus, ModelRef};

    #[track_caller]
    fn check(conditions: &str, expected: bool) {
        let models = vec![ModelRef { name: "photo-small".to_owned(), version: "2".to_owned() }];
        let status = DeviceStatus {
            state: DeviceState::Online,
            connection: 1,
            window_every_s: None,
            link: None,
            version: Some("0.1.0".to_owned()),
            wire: vec![1],
            models,
            faults: Default::default(),
        };
        let device = Device { status: Some(status), ..Device::default() };
        let name = DeviceId::new("hall-1").expect("valid");
        let conditions: Where = conditions.parse().expect("conditions");
        assert_eq!(conditions.holds(&name, &device), expected, "{conditions:?}");
    }

    #[test]
    fn all_conditions_must_hold() {
        check("link=online,model=photo-small", true);
        check("link=online,model=photo-large", false);
        check("link=offline", false);
        check("model=photo-small/2", true);
        check("model=photo-*/1", false);
        check("version=0.1.*", true);
        check("outcome=failed", false);
    }

    #[test]
    fn a_star_is_any_text() {
        for (pattern, expected) in [
            ("hall-1", true),
            ("hall-*", true),
            ("*1", true),
            ("*a*l*", true),
            ("h*2", false),
            ("", false),
            ("*", true),
            ("*-*-*", false),
        ] {
            check(&format!("name={pattern}"), expected);
        }
        check("name = hall-* , model = photo-small", true);
    }

    #[test]
    fn a_condition_that_cannot_be_meant_is_refused() {
        for (text, part) in
            [("online", "KEY=VALUE"), ("link=up", "online"), ("outcome=x", "refused"), ("colour=red", "none of")]
        {
            let error = text.parse::<Where>().expect_err("refused");
            assert!(error.contains(part), "{error}");
        }
    }
}
