//! `threshold` of a `[[model]]`: what an answer must reach to stay on the device.

use std::collections::BTreeMap;

use hedge_core::judge::{InvalidSetting, Threshold, ThresholdScale, Thresholds};
use hedge_proto::{Share, Weight};
use serde::Deserialize;

/// What is not given is the bundle's suggestion.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct ThresholdConfig {
    score_min: Option<f32>,
    margin_min: Option<f32>,
    entropy_max: Option<f32>,
    /// `score_min` for single classes, by label.
    classes: BTreeMap<String, Share>,
    /// What cases about single classes are worth, by label.
    weights: BTreeMap<String, Weight>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    score_min: Option<f32>,
    margin_min: Option<f32>,
    entropy_max: Option<f32>,
    #[serde(default)]
    classes: BTreeMap<String, Share>,
    #[serde(default)]
    weights: BTreeMap<String, Weight>,
}

impl TryFrom<Fields> for ThresholdConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { score_min, margin_min, entropy_max, classes, weights } = fields;
        let config = Self { score_min, margin_min, entropy_max, classes, weights };
        config.over(None).map_err(|error| error.to_string())?;
        Ok(config)
    }
}

impl ThresholdConfig {
    /// Only a `score_min`.
    pub fn of(score_min: f32) -> Result<Self, InvalidSetting> {
        let config = Self { score_min: Some(score_min), ..Self::default() };
        config.over(None).map(|_| config)
    }

    /// With a bundle's suggestion for what is not given; `None` if nobody says a `score_min`.
    #[must_use]
    pub fn resolve(&self, suggested: Option<Threshold>, labels: &[String]) -> Option<Thresholds> {
        let all = self.over(suggested).ok().flatten()?;
        // A name may stand for several classes: ImageNet has two cranes.
        let named = labels.iter().enumerate();
        let classes = named.clone().filter_map(|(class, label)| Some((class, *self.classes.get(label)?))).collect();
        let weights = named.filter_map(|(class, label)| Some((class, *self.weights.get(label)?))).collect();
        Some(Thresholds { all, classes, weights, scale: ThresholdScale::ONE })
    }

    #[must_use]
    pub fn score_min(&self) -> Option<f32> {
        self.score_min
    }

    #[must_use]
    pub fn margin_min(&self) -> Option<f32> {
        self.margin_min
    }

    #[must_use]
    pub fn entropy_max(&self) -> Option<f32> {
        self.entropy_max
    }

    #[must_use]
    pub fn classes(&self) -> &BTreeMap<String, Share> {
        &self.classes
    }

    #[must_use]
    pub fn weights(&self) -> &BTreeMap<String, Weight> {
        &self.weights
    }

    fn over(&self, suggested: Option<Threshold>) -> Result<Option<Threshold>, InvalidSetting> {
        let margin_min = self.margin_min.or(suggested.map(|threshold| threshold.margin_min())).unwrap_or(0.0);
        let entropy_max = self.entropy_max.or(suggested.map(|threshold| threshold.entropy_max())).unwrap_or(1.0);
        let score_min = self.score_min.or(suggested.map(|threshold| threshold.score_min()));
        // Also without a score_min the others must be what they say.
        let checked = Threshold::new(score_min.unwrap_or(0.0), margin_min, entropy_max)?;
        Ok(score_min.map(|_| checked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<ThresholdConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn what_is_not_given_is_the_bundles_suggestion() {
        let suggested = Threshold::new(0.6, 0.2, 0.9).expect("valid");
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let given = config("margin_min = 0.1\nclasses = { dog = 0.8, cow = 0.9 }").expect("valid");
        let thresholds = given.resolve(Some(suggested), &labels).expect("complete");
        assert_eq!(thresholds.all, Threshold::new(0.6, 0.1, 0.9).expect("valid"));
        assert_eq!(thresholds.of(1).score_min(), 0.8);
        assert_eq!(thresholds.of(0).score_min(), 0.6);
        assert_eq!(given.resolve(None, &labels), None, "nobody says a score_min");
    }

    #[test]
    fn what_is_said_of_a_name_holds_for_every_class_of_that_name() {
        let labels = ["r", "crane", "crane"].map(str::to_owned);
        let given = config("score_min = 0.5\nclasses = { crane = 0.9 }\nweights = { crane = 2 }").expect("valid");
        let thresholds = given.resolve(None, &labels).expect("complete");
        assert_eq!([0, 1, 2].map(|class| thresholds.of(class).score_min()), [0.5, 0.9, 0.9]);
        assert_eq!(thresholds.weights.keys().copied().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        for (text, part) in [
            ("entropy_max = 7.0", "entropy_max = 7"),
            ("classes = { cat = 1.5 }", "1.5"),
            ("weights = { cat = 0 }", "0.01 to 100"),
            ("scor_min = 1", "scor_min"),
        ] {
            let error = config(text).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
