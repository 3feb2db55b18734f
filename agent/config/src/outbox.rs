//! `[outbox]`: how much is kept for the cloud, for how long, and what goes when there is no room.

use std::time::Duration;

use hedge_core::outbox::WhenFull;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use hedge_outbox::Limits;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    pub cases_max: u64,
    pub bytes_max: u64,
    /// New cases are refused while the disk has less than this free.
    pub free_bytes_min: u64,
    pub payload_bytes_max: u64,
    /// What happens to a new case when a cap is reached.
    pub when_full: WhenFullName,
    /// A case is dropped when it has waited so long, counted while the device is switched on.
    #[serde(rename = "age_max_s", deserialize_with = "age_max")]
    pub(super) age_max: Duration,
    /// How long an answer waits to be able to say `stored`.
    pub store_wait_ms: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFullName {
    /// Dead letters go, then the cases worth least, if they are worth less than the new one.
    #[default]
    EvictLowest,
    RefuseNew,
}

/// With less, cases would go before a link that is up could take them.
const AGE_MAX_LEAST_S: u64 = 60;

fn age_max<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match u64::deserialize(deserializer)? {
        seconds @ AGE_MAX_LEAST_S.. => Ok(Duration::from_secs(seconds)),
        seconds => Err(D::Error::custom(format!(
            "{seconds} s is too short for a case to be answered; give it at least {AGE_MAX_LEAST_S}"
        ))),
    }
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            cases_max: 100_000,
            bytes_max: 1024 * 1024 * 1024,
            free_bytes_min: 64 * 1024 * 1024,
            payload_bytes_max: 8 * 1024 * 1024,
            when_full: WhenFullName::default(),
            // A month of outage; what has waited longer is of little use to anyone.
            age_max: Duration::from_secs(30 * 24 * 3600),
            store_wait_ms: 250,
        }
    }
}

impl OutboxConfig {
    #[must_use]
    pub fn store_wait(&self) -> Duration {
        Duration::from_millis(self.store_wait_ms)
    }

    #[must_use]
    pub fn age_max(&self) -> Duration {
        self.age_max
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            cases_max: self.cases_max,
            bytes_max: self.bytes_max,
            free_bytes_min: self.free_bytes_min,
            payload_bytes_max: self.payload_bytes_max,
            when_full: match self.when_full {
                WhenFullName::EvictLowest => WhenFull::EvictLowest,
                WhenFullName::RefuseNew => WhenFull::RefuseNew,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_that_no_case_could_live_to_is_refused_in_words() {
        let read = |text: &str| toml::from_str::<OutboxConfig>(text);
        assert_eq!(read("age_max_s = 3600").expect("valid").age_max(), Duration::from_secs(3600));
        let refused = read("age_max_s = 0").expect_err("refused").to_string();
        assert!(refused.contains("age_max_s") && refused.contains("at least 60"), "{refused}");
        let refused = read("when_full = \"panic\"").expect_err("refused").to_string();
        assert!(refused.contains("evict_lowest") && refused.contains("refuse_new"), "{refused}");
    }
}
