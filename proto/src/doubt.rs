//! How unsure a model is of its answer, in numbers that mean the same for every model.

use alloc::string::String;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! measures {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One way to be unsure. In the order in which they are given as the reason for asking.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Measure { $($(#[$doc])* $variant,)* }

        impl Measure {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As it is written in JSON and settings.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        const COUNT: usize = [$($name),*].len();
    };
}

measures! {
    /// Classes: 1 − the best probability.
    Score = "score",
    /// Classes: 1 − the distance of the best probability to the second.
    Margin = "margin",
    /// Classes: entropy as a share of its maximum, so that it means the same for 10 and 1000 classes.
    Entropy = "entropy",
    /// Boxes: 1 − the mean score of those shown; where none is, how near the best hidden one came to being shown.
    MeanShown = "mean_shown",
    /// Boxes: 1 − the F1 that is expected of those shown, if scores are probabilities.
    ExpectedLoss = "expected_loss",
    /// Boxes: the number of mistakes to expect, e / (1 + e). Grows with the number of things to be seen.
    Errors = "errors",
    /// Boxes: the probability that anything is shown wrongly or missed.
    AnyError = "any_error",
    /// Boxes: how many nearly were shown, n / (1 + n).
    CountGap = "count_gap",
    /// How much more often than usual the answer has changed over the last frames of its source.
    Flicker = "flicker",
    /// 1 − what an output of the model itself says about its being right.
    Confidence = "confidence",
    /// The probability that the cloud contradicts it, by all of the above, as the device has learned it from verdicts.
    Learned = "learned",
}

impl Measure {
    fn at(self) -> usize {
        self as usize
    }

    /// The measure that `score_min` speaks of, for each kind of answer.
    pub const OF_SCORE: [Self; 2] = [Self::Score, Self::MeanShown];
}

/// A number for each measure that applies to an answer: 0 is no doubt, 1 is nothing but doubt.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Doubt([Option<f32>; COUNT]);

impl Doubt {
    pub const NONE: Self = Self([None; COUNT]);

    /// The same with one measure more. What is no number is nothing but doubt.
    #[must_use]
    pub fn with(mut self, measure: Measure, value: f32) -> Self {
        self.0[measure.at()] = Some(if value.is_nan() { 1.0 } else { value.clamp(0.0, 1.0) });
        self
    }

    #[must_use]
    pub fn without(mut self, measure: Measure) -> Self {
        self.0[measure.at()] = None;
        self
    }

    #[must_use]
    pub fn get(&self, measure: Measure) -> Option<f32> {
        self.0[measure.at()]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Measure, f32)> + '_ {
        Measure::ALL.iter().filter_map(|measure| Some((*measure, self.get(*measure)?)))
    }

    /// How sure the answer is, as people are told: 1 − the measure that `score_min` speaks of.
    #[must_use]
    pub fn score(&self) -> Option<f32> {
        Measure::OF_SCORE.iter().find_map(|measure| self.get(*measure)).map(|doubt| 1.0 - doubt)
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

impl Serialize for Doubt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.iter().count()))?;
        self.iter().try_for_each(|(measure, value)| map.serialize_entry(measure.name(), &value))?;
        map.end()
    }
}

/// Measures of a later version are passed over.
impl<'de> Deserialize<'de> for Doubt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Measures;
        impl<'de> Visitor<'de> for Measures {
            type Value = Doubt;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("numbers by measure")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Doubt, A::Error> {
                let mut doubt = Doubt::NONE;
                while let Some(name) = fields.next_key::<String>()? {
                    match Measure::ALL.iter().find(|measure| measure.name() == name) {
                        Some(measure) => doubt = doubt.with(*measure, fields.next_value()?),
                        None => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(doubt)
            }
        }
        deserializer.deserialize_map(Measures)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Doubt {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "Doubt".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let measures: serde_json::Map<String, serde_json::Value> = Measure::ALL
            .iter()
            .map(|measure| (measure.name().into(), serde_json::json!({ "type": "number", "minimum": 0, "maximum": 1 })))
            .collect();
        schemars::json_schema!({ "type": "object", "properties": measures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_of_a_later_version_is_passed_over_and_what_is_no_number_is_all_doubt() {
        let read: Doubt = serde_json::from_str(r#"{"score":0.25,"tea_leaves":7}"#).expect("reads");
        assert_eq!(read, Doubt::NONE.with(Measure::Score, 0.25));
        assert_eq!(Doubt::NONE.with(Measure::Margin, f32::NAN).get(Measure::Margin), Some(1.0));
        assert_eq!(serde_json::to_string(&read).expect("written"), r#"{"score":0.25}"#);
    }
}
