//! `[privacy]`: the most of a sample that may ever leave the device. Nothing from afar changes it.

use hedge_core::privacy::Ceiling;
use hedge_proto::{FieldError, Payload, Settings};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::states::payload;

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacyConfig {
    #[serde(deserialize_with = "ceiling")]
    ceiling: Option<Payload>,
}

/// A ceiling has no order in which things go.
fn ceiling<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Payload>, D::Error> {
    match payload(deserializer)? {
        Some(Payload::ThumbnailFirst(side)) => Err(D::Error::custom(format!(
            "thumbnail_first is no ceiling: give \"whole\" if the whole may leave when the cloud asks for it, or \
             {{ thumbnail = {side} }} if it never may"
        ))),
        ceiling => Ok(ceiling),
    }
}

impl PrivacyConfig {
    #[must_use]
    pub fn ceiling(&self) -> Ceiling {
        self.ceiling.map_or(Ceiling::NONE, Ceiling)
    }

    /// What a damaged file says of it, by its lines that are whole. Where it says what cannot be read, nothing may leave.
    pub(super) fn of_damaged(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines().map(str::trim_start);
        lines.find(|line| line.starts_with("[privacy") || line.starts_with("privacy"))?;
        let section = lines.take_while(|line| !line.starts_with('['));
        let read = section.filter_map(|line| toml::from_str::<Self>(line).ok()).find(|said| said.ceiling.is_some());
        Some(read.unwrap_or(Self { ceiling: Some(Payload::Nothing) }))
    }

    /// As the file writes it.
    pub(super) fn table(self) -> toml::Table {
        let Ceiling(most) = self.ceiling();
        let ceiling = match most.side() {
            None => toml::Value::from(most.to_string()),
            Some((_, side_max)) => toml::Table::from_iter([("thumbnail".to_owned(), side_max.into())]).into(),
        };
        toml::Table::from_iter([("ceiling".to_owned(), ceiling)])
    }

    /// The payloads that settings from afar ask for and that may not leave.
    pub fn refused(&self, settings: &Settings) -> impl Iterator<Item = FieldError> {
        let ceiling = self.ceiling();
        let asked = settings.link.as_ref().and_then(|link| link.states.as_ref()).map(|states| {
            let spoken = [("online", &states.online), ("degraded", &states.degraded)]
                .map(|(name, state)| (name, state.as_ref().and_then(|state| state.payload)));
            let silent = [("offline", &states.offline), ("over_budget", &states.over_budget)]
                .map(|(name, state)| (name, state.as_ref().and_then(|state| state.payload)));
            [spoken, silent].concat()
        });
        asked.into_iter().flatten().filter_map(move |(state, payload)| {
            let payload = payload?;
            (!ceiling.allows(payload)).then(|| {
                let most = ceiling.0;
                let reason =
                    format!("`{payload}` is more than may leave this device: its own [privacy] ceiling is `{most}`");
                FieldError::new(format!("link.states.{state}.payload"), reason)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, ConfigFile};
    use serde_json::json;

    fn file(text: &str) -> ConfigFile {
        ConfigFile::parse(text, "agent.toml", std::iter::empty()).expect("valid")
    }

    #[test]
    fn what_was_set_from_afar_before_is_held_to_a_lower_ceiling() {
        let local = file("[privacy]\nceiling = { thumbnail = 320 }");
        let online = |payload: serde_json::Value| {
            let settings = Settings::read(json!({"link": {"states": {"online": {"payload": payload}}}}));
            local.overlaid(&settings.expect("a document")).expect("fits").policies().online.payload
        };
        assert_eq!(online(json!("nothing")), Payload::Nothing);
        assert_eq!(online(json!("embedding")), Payload::Embedding);
        assert_eq!(online(json!({"thumbnail": 64})), Payload::Thumbnail(64));
        for more in [json!({"thumbnail": 321}), json!({"thumbnail_first": 321}), json!("whole"), json!(null)] {
            assert_eq!(online(more), Payload::Thumbnail(320));
        }
        assert_eq!(online(json!({"thumbnail_first": 64})), Payload::Thumbnail(64), "nothing is offered");
    }

    #[test]
    fn the_ceiling_holds_whatever_the_file_says_of_a_state() {
        let states = "[link.states.online]\npayload = \"whole\"\n[link.states.offline]\npayload = { thumbnail = 64 }";
        let policies = file(&format!("[privacy]\nceiling = {{ thumbnail = 320 }}\n{states}")).config.policies();
        let payloads = [policies.online, policies.degraded, policies.offline, policies.over_budget];
        let [most, less] = [320, 64].map(Payload::Thumbnail);
        assert_eq!(payloads.map(|policy| policy.payload), [most, most, less, most]);
        assert_eq!(Config::default().privacy.ceiling(), Ceiling::NONE);
    }

    #[test]
    fn a_form_that_this_version_does_not_know_is_refused_by_its_line() {
        for (ceiling, said) in [
            ("\"outline\"", "outline"),
            ("{ thumbnail = 5 }", "from 16 to 4096"),
            ("1", ""),
            ("{ thumbnail_first = 64 }", "is no ceiling"),
        ] {
            let text = format!("[privacy]\nceiling = {ceiling}\n");
            let refused = ConfigFile::parse(&text, "agent.toml", std::iter::empty()).map(drop);
            let error = refused.expect_err(ceiling).to_string();
            assert!(error.contains("agent.toml:2") && error.contains(said), "{error}");
        }
    }
}
