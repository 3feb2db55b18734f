//! `threshold` of a `[[model]]`: what an answer must reach to stay on the device.

use std::collections::BTreeMap;

use hedge_core::judge::{InvalidSetting, Limits, Rule, ThresholdScale, Thresholds};
use hedge_proto::{Allowance, ClassPolicy, OnShift, Share, ThresholdMode, ThresholdSettings, to_value};
use serde::Deserialize;

use crate::file::merge;

/// What is not given is the bundle's suggestion.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "ThresholdSettings")]
pub struct ThresholdConfig(ThresholdSettings);

/// Under a budget or a target so many answers are checked if nobody says how many.
const SPOT_CHECKS: f32 = 0.01;

impl TryFrom<ThresholdSettings> for ThresholdConfig {
    type Error = String;

    fn try_from(given: ThresholdSettings) -> Result<Self, String> {
        let mode = given.mode.unwrap_or(ThresholdMode::Fixed);
        if mode == ThresholdMode::Budget && given.budget.is_none_or(|budget| budget == Allowance::NONE) {
            return Err("mode = \"budget\" needs a budget: share, cases_per_hour, cases_per_day, bytes_per_hour or \
                        bytes_per_day, such as budget = { cases_per_day = 500 }"
                .into());
        }
        if mode == ThresholdMode::Target && given.target.is_none() {
            return Err("mode = \"target\" needs a target, such as target = { risk = 0.02, confidence = 0.95 }".into());
        }
        if let Some(target) = given.target {
            if target.risk == Share::ZERO {
                return Err("target.risk = 0 can never be shown by checks; give a number above 0, such as 0.02".into());
            }
            if target.confidence.value() > CONFIDENCE_MAX {
                return Err(format!(
                    "target.confidence = {} is more than checks can show; give {CONFIDENCE_MAX} or less",
                    target.confidence.value()
                ));
            }
        }
        Ok(Self(given))
    }
}

/// Beyond it the number of checks would have no end.
const CONFIDENCE_MAX: f32 = 0.9999;

impl ThresholdConfig {
    /// Only a `score_min`.
    pub fn of(score_min: f32) -> Result<Self, InvalidSetting> {
        let share = Share::new(score_min).map_err(|_| InvalidSetting {
            field: "score_min",
            value: score_min,
            expected: "a number from 0 to 1",
        })?;
        Ok(Self(ThresholdSettings { score_min: Some(share), ..ThresholdSettings::default() }))
    }

    /// The same with other fields over it, each by itself.
    pub fn with(&self, other: &ThresholdSettings) -> Result<Self, String> {
        let mut all = toml::Value::Table(toml::Table::new());
        merge(&mut all, &to_value(&self.0));
        merge(&mut all, &to_value(other));
        all.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }

    /// As it is given, without what the bundle suggests beside it.
    #[must_use]
    pub fn given(&self) -> &ThresholdSettings {
        &self.0
    }

    /// With a bundle's suggestion for what is not given; `None` if nobody says a `score_min` and nothing finds one.
    /// `said_as` gives the word that an answer has for one of the model's own labels.
    #[must_use]
    pub fn resolve<'a>(
        &'a self,
        suggested: Option<Limits>,
        labels: &[String],
        said_as: impl Fn(&'a str) -> &'a str,
    ) -> Option<Thresholds> {
        let rule = self.rule();
        let all = self.over(suggested).or((rule.mode != ThresholdMode::Fixed).then_some(Limits::NONE))?;
        let own = |label: &str| labels.is_empty() || labels.iter().any(|known| known == label);
        Some(Thresholds {
            all,
            labels: by_word(self.0.classes.as_ref(), own, &said_as),
            weights: by_word(self.0.weights.as_ref(), own, &said_as),
            policies: by_word(self.0.policies.as_ref(), own, &said_as),
            rule,
        })
    }

    /// The labels whose samples never leave the device.
    pub fn never_leaving(&self) -> impl Iterator<Item = &str> {
        let policies = of_labels(self.0.policies.as_ref());
        policies.filter(|(_, policy)| *policy == ClassPolicy::NeverLeave).map(|(label, _)| label)
    }

    fn rule(&self) -> Rule {
        let mode = self.0.mode.unwrap_or(ThresholdMode::Fixed);
        let usual = if mode == ThresholdMode::Fixed { 0.0 } else { SPOT_CHECKS };
        Rule {
            mode,
            allowance: self.0.budget.unwrap_or_default(),
            target: self.0.target,
            spot_checks: self.0.spot_checks.or_else(|| Share::new(usual).ok()).unwrap_or(Share::ZERO),
            // Numbers are what their owner wants to be kept to.
            on_shift: self.0.on_shift.unwrap_or(match mode {
                ThresholdMode::Fixed => OnShift::Watch,
                _ => OnShift::AskMore,
            }),
            learned: self.0.learned.unwrap_or(false) && mode != ThresholdMode::Fixed,
            scale: ThresholdScale::ONE,
        }
    }

    /// What is in force where nothing is given: a bundle's suggestion.
    #[must_use]
    pub fn suggestion(&self, suggested: Option<Limits>) -> ThresholdSettings {
        let Some(suggested) = suggested else { return ThresholdSettings::default() };
        let left = |given: Option<Share>, value: f32| Share::new(value).ok().filter(|_| given.is_none());
        ThresholdSettings {
            score_min: left(self.0.score_min, suggested.score_min()),
            margin_min: left(self.0.margin_min, suggested.margin_min()),
            entropy_max: left(self.0.entropy_max, suggested.entropy_max()),
            ..ThresholdSettings::default()
        }
    }

    /// One sentence on the fields that have no effect, if there are any.
    #[must_use]
    pub fn unknown_labels(&self, labels: &[String]) -> Option<String> {
        const SHOWN: usize = 8;
        let shown = |names: Vec<&str>, all: usize| {
            let more = if all > names.len() { format!(" and {} more", all - names.len()) } else { String::new() };
            names.join(", ") + &more
        };
        let unknown: Vec<String> = unknown_labels(&self.0, labels).map(|field| format!("threshold.{field}")).collect();
        let first = shown(unknown.iter().map(String::as_str).take(SHOWN).collect(), unknown.len());
        let known = shown(labels.iter().map(String::as_str).take(SHOWN).collect(), labels.len());
        (!unknown.is_empty())
            .then(|| format!("the model has no such label, so this has no effect: {first}; it has: {known}"))
    }

    fn over(&self, suggested: Option<Limits>) -> Option<Limits> {
        let given = |given: Option<Share>, suggested: Option<f32>| given.map(Share::value).or(suggested);
        let score_min = given(self.0.score_min, suggested.map(|threshold| threshold.score_min()))?;
        let margin_min = given(self.0.margin_min, suggested.map(|threshold| threshold.margin_min())).unwrap_or(0.0);
        let entropy_max = given(self.0.entropy_max, suggested.map(|threshold| threshold.entropy_max())).unwrap_or(1.0);
        let limits = Limits::new(score_min, margin_min, entropy_max).ok()?;
        Some(suggested.map_or(limits, |suggested| limits.beside(&suggested)))
    }
}

/// The fields of a threshold that name a label the model does not have, so that they have no effect.
pub fn unknown_labels<'a>(given: &'a ThresholdSettings, labels: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let classes = of_labels(given.classes.as_ref()).map(|(label, _)| ("classes", label));
    let weights = of_labels(given.weights.as_ref()).map(|(label, _)| ("weights", label));
    let policies = of_labels(given.policies.as_ref()).map(|(label, _)| ("policies", label));
    let said = classes.chain(weights).chain(policies);
    let unknown = said.filter(|(_, label)| !labels.iter().any(|known| known == label));
    unknown.map(|(list, label)| format!("{list}.{label}"))
}

/// What is said of the model's own labels, by the word that an answer has for each. Where one word stands for several
/// labels, the last counts.
fn by_word<'a, T: Copy>(
    map: Option<&'a BTreeMap<String, Option<T>>>,
    own: impl Fn(&str) -> bool,
    said_as: impl Fn(&'a str) -> &'a str,
) -> BTreeMap<String, T> {
    let of = of_labels(map).filter(|(label, _)| own(label));
    of.map(|(label, of)| (said_as(label).to_owned(), of)).collect()
}

/// What is set to nothing is not set.
fn of_labels<T: Copy>(map: Option<&BTreeMap<String, Option<T>>>) -> impl Iterator<Item = (&str, T)> {
    map.into_iter().flatten().filter_map(|(label, value)| Some((label.as_str(), (*value)?)))
}

#[cfg(test)]
mod tests {
    use hedge_proto::{Measure, Output, RiskOf};

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
        let given = config(
            "score_min = 0.5\nclasses = { crane = 0.9 }\nweights = { crane = 3 }\npolicies = { crane = \"never_ask\" }",
        )
        .expect("valid");
        let word = |own| if own == "crane" { "bird" } else { own };
        let thresholds = given.resolve(None, &labels, word).expect("complete");
        assert_eq!(thresholds.of(&Output::label("bird")).limits.score_min(), 0.9);
        assert_eq!(thresholds.of(&Output::label("dog")).limits.score_min(), 0.5);
        assert_eq!(thresholds.of(&Output::label("bird")).weight.value(), 3.0);
        assert_eq!(thresholds.of(&Output::label("bird")).policy, Some(ClassPolicy::NeverAsk));
        assert_eq!(thresholds.of(&Output::label("dog")).policy, None);
    }

    #[test]
    fn a_label_that_the_model_does_not_have_is_named() {
        let given =
            config("classes = { cow = 0.9, cat = 0.8 }\nweights = { cwo = 2 }\npolicies = { man = \"always_ask\" }")
                .expect("valid");
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let sentence = given.unknown_labels(&labels).expect("said");
        for part in ["threshold.classes.cow", "threshold.weights.cwo", "threshold.policies.man", "it has: cat, dog"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(!sentence.contains("classes.cat"), "{sentence}");
        assert_eq!(config("classes = { cat = 0.8 }").expect("valid").unknown_labels(&labels), None);
        let many: Vec<String> = (0..1000).map(|number| format!("l{number}")).collect();
        assert!(given.unknown_labels(&many).is_some_and(|sentence| sentence.contains("l7 and 992 more")));
    }

    #[test]
    fn a_threshold_that_finds_its_own_score_needs_none_and_says_what_it_needs() {
        let resolved = |text: &str| config(text).expect("valid").resolve(None, &[], |label| label);
        let budget = resolved("mode = \"budget\"\nbudget = { cases_per_day = 500 }").expect("complete");
        assert_eq!((budget.rule.mode, budget.rule.allowance.cases_per_day), (ThresholdMode::Budget, Some(500)));
        assert_eq!(budget.rule.spot_checks.value(), SPOT_CHECKS);
        let target = resolved("mode = \"target\"\ntarget = { risk = 0.02 }\nspot_checks = 0.1").expect("complete");
        assert_eq!(target.rule.target.expect("given").confidence.value(), 0.95);
        assert_eq!(target.rule.spot_checks.value(), 0.1);
        assert_eq!(target.rule.target.expect("given").of, RiskOf::All);
        let kept = resolved("mode = \"target\"\ntarget = { risk = 0.02, of = \"kept\" }").expect("complete");
        assert_eq!(kept.rule.target.expect("given").of, RiskOf::Kept);
        assert!(
            !budget.rule.learned
                && resolved("mode = \"budget\"\nbudget = { share = 0.1 }\nlearned = true")
                    .expect("complete")
                    .rule
                    .learned
        );
        assert!(
            !resolved("score_min = 0.5\nlearned = true").expect("complete").rule.learned,
            "numbers are about the score"
        );
        let fixed = resolved("score_min = 0.5").expect("complete");
        assert_eq!((fixed.rule.spot_checks, fixed.rule.on_shift), (Share::ZERO, OnShift::Watch));
        for (text, part) in [
            ("mode = \"budget\"", "needs a budget"),
            ("mode = \"budget\"\nbudget = {}", "needs a budget"),
            ("mode = \"target\"", "needs a target"),
            ("target = { risk = 0.0 }", "target.risk = 0"),
            ("target = { risk = 0.1, confidence = 1.0 }", "target.confidence = 1"),
            ("target = { risk = 0.1, of = \"most\" }", "unknown variant `most`, expected `all` or `kept`"),
            ("mode = \"best\"", "best"),
            ("budget = { case_per_day = 5 }", "case_per_day"),
        ] {
            let error = config(text).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_threshold_with_other_fields_over_it_keeps_the_rest() {
        let given = config("score_min = 0.5\nclasses = { cat = 0.9 }\nbudget = { share = 0.1 }").expect("valid");
        let over = |text: &str| given.with(&serde_json::from_str(text).expect("settings"));
        let both =
            over(r#"{"mode": "budget", "budget": {"cases_per_day": 9}, "classes": {"dog": 0.8}}"#).expect("fits");
        let budget = both.given().budget.expect("given");
        assert_eq!((budget.share.map(Share::value), budget.cases_per_day), (Some(0.1), Some(9)));
        assert_eq!(of_labels(both.given().classes.as_ref()).count(), 2);
        assert_eq!(both.given().score_min.map(Share::value), Some(0.5));
        assert!(over(r#"{"mode": "target"}"#).is_err_and(|why| why.contains("needs a target")));
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        for (text, part) in [
            ("entropy_max = 7.0", "entropy_max = 7"),
            ("classes = { cat = 1.5 }", "1.5"),
            ("weights = { cat = 0 }", "0.01 to 100"),
            ("policies = { cat = \"never\" }", "never_ask"),
            ("scor_min = 1", "scor_min"),
        ] {
            let error = config(text).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
