//! `threshold` of a `[[model]]`: what an answer must reach to stay on the device.

use std::collections::BTreeMap;

use hedge_core::judge::{InvalidSetting, Limits, ThresholdScale, Thresholds};
use hedge_proto::{Share, ThresholdSettings, Weight};
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

    /// With a bundle's suggestion for what is not given; `None` if nobody says a `score_min`. `said_as` gives the word
    /// that an answer has for one of the model's own labels.
    #[must_use]
    pub fn resolve<'a>(
        &'a self,
        suggested: Option<Limits>,
        labels: &[String],
        said_as: impl Fn(&'a str) -> &'a str,
    ) -> Option<Thresholds> {
        let all = self.over(suggested).ok().flatten()?;
        let own = |label: &&String| labels.is_empty() || labels.contains(label);
        let classes = self.classes.iter().filter(|(label, _)| own(label));
        let weights = self.weights.iter().filter(|(label, _)| own(label));
        Some(Thresholds {
            all,
            labels: classes.map(|(label, share)| (said_as(label).to_owned(), *share)).collect(),
            weights: weights.map(|(label, weight)| (said_as(label).to_owned(), *weight)).collect(),
            scale: ThresholdScale::ONE,
        })
    }

    /// What is in force where nothing is given: a bundle's suggestion.
    #[must_use]
    pub fn suggestion(&self, suggested: Option<Limits>) -> ThresholdSettings {
        let Some(suggested) = suggested else { return ThresholdSettings::default() };
        let left = |given: Option<f32>, value: f32| Share::new(value).ok().filter(|_| given.is_none());
        ThresholdSettings {
            score_min: left(self.score_min, suggested.score_min()),
            margin_min: left(self.margin_min, suggested.margin_min()),
            entropy_max: left(self.entropy_max, suggested.entropy_max()),
            ..ThresholdSettings::default()
        }
    }

    /// The fields that name a label the model does not have, so that they have no effect.
    pub fn unknown<'a>(&'a self, labels: &'a [String]) -> impl Iterator<Item = String> + 'a {
        let classes = self.classes.keys().map(|label| ("classes", label));
        let weights = self.weights.keys().map(|label| ("weights", label));
        let unknown = classes.chain(weights).filter(|(_, label)| !labels.contains(label));
        unknown.map(|(list, label)| format!("{list}.{label}"))
    }

    /// One sentence on the fields that have no effect, if there are any.
    #[must_use]
    pub fn unknown_labels(&self, labels: &[String]) -> Option<String> {
        const SHOWN: usize = 8;
        let shown = |names: Vec<&str>, all: usize| {
            let more = if all > names.len() { format!(" and {} more", all - names.len()) } else { String::new() };
            names.join(", ") + &more
        };
        let unknown: Vec<String> = self.unknown(labels).map(|field| format!("threshold.{field}")).collect();
        let first = shown(unknown.iter().map(String::as_str).take(SHOWN).collect(), unknown.len());
        let known = shown(labels.iter().map(String::as_str).take(SHOWN).collect(), labels.len());
        (!unknown.is_empty())
            .then(|| format!("the model has no such label, so this has no effect: {first}; it has: {known}"))
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

    fn over(&self, suggested: Option<Limits>) -> Result<Option<Limits>, InvalidSetting> {
        let margin_min = self.margin_min.or(suggested.map(|threshold| threshold.margin_min())).unwrap_or(0.0);
        let entropy_max = self.entropy_max.or(suggested.map(|threshold| threshold.entropy_max())).unwrap_or(1.0);
        let score_min = self.score_min.or(suggested.map(|threshold| threshold.score_min()));
        // Also without a score_min the others must be what they say.
        let checked = Limits::new(score_min.unwrap_or(0.0), margin_min, entropy_max)?;
        let checked = suggested.map_or(checked, |suggested| checked.beside(&suggested));
        Ok(score_min.map(|_| checked))
    }
}

#[cfg(test)]
mod tests {
    use hedge_proto::{Measure, Output};

    use super::*;

    fn config(text: &str) -> Result<ThresholdConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn what_is_not_given_is_the_bundles_suggestion() {
        let suggested = Limits::new(0.6, 0.2, 0.9).expect("valid");
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let given = config("margin_min = 0.1\nclasses = { dog = 0.8, cow = 0.9 }").expect("valid");
        let thresholds = given.resolve(Some(suggested), &labels, |label| label).expect("complete");
        assert_eq!(thresholds.all, Limits::new(0.6, 0.1, 0.9).expect("valid"));
        assert_eq!(
            thresholds.labels.iter().map(|(label, share)| (label.as_str(), share.value())).collect::<Vec<_>>(),
            [("dog", 0.8)]
        );
        assert_eq!(given.resolve(None, &labels, |label| label), None, "nobody says a score_min");
    }

    #[test]
    fn a_measure_that_only_the_bundle_limits_stays_limited() {
        let most = Share::new(0.4).expect("valid");
        let suggested = Limits::new(0.6, 0.0, 1.0).expect("valid").at_most(Measure::Errors, most);
        let given = config("score_min = 0.9").expect("valid");
        let thresholds = given.resolve(Some(suggested), &[], |label| label).expect("complete");
        assert_eq!(thresholds.all.most(Measure::Errors), suggested.most(Measure::Errors));
        assert_eq!(thresholds.all.score_min(), 0.9);
    }

    #[test]
    fn a_threshold_for_a_label_is_looked_up_by_the_word_that_answers_have_for_it() {
        let labels = ["crane", "dog", "crane"].map(str::to_owned);
        let given = config("score_min = 0.5\nclasses = { crane = 0.9 }\nweights = { crane = 3 }").expect("valid");
        let word = |own| if own == "crane" { "bird" } else { own };
        let thresholds = given.resolve(None, &labels, word).expect("complete");
        assert_eq!(thresholds.of(&Output::label("bird")).0.score_min(), 0.9);
        assert_eq!(thresholds.of(&Output::label("dog")).0.score_min(), 0.5);
        assert_eq!(thresholds.of(&Output::label("bird")).1.value(), 3.0);
    }

    #[test]
    fn a_label_that_the_model_does_not_have_is_named() {
        let given = config("classes = { cow = 0.9, cat = 0.8 }\nweights = { cwo = 2 }").expect("valid");
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let sentence = given.unknown_labels(&labels).expect("said");
        for part in ["threshold.classes.cow", "threshold.weights.cwo", "it has: cat, dog"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(!sentence.contains("classes.cat"), "{sentence}");
        assert_eq!(config("classes = { cat = 0.8 }").expect("valid").unknown_labels(&labels), None);
        let many: Vec<String> = (0..1000).map(|number| format!("l{number}")).collect();
        assert!(given.unknown_labels(&many).is_some_and(|sentence| sentence.contains("l7 and 992 more")));
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
