//! The settings in force, as one value: a sample is answered by one of these from first to last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hedge_core::crops::Pick;
use hedge_core::privacy::Ceiling;
use hedge_inference::Region;
use hedge_proto::{Case, Metadata, Name, Output, Payload, Rect};

use hedge_config::{Config, SourceConfig, SourceKind, ThresholdConfig};

/// What a source adds to each of its samples.
#[derive(Debug, Clone)]
pub struct SourceSetup {
    pub model: Name,
    pub region: Option<Region>,
    pub metadata: Metadata,
    /// Neither off by the settings nor paused by a command.
    pub on: bool,
    /// The sources that are cut out of its pictures, and what of them.
    pub crops: Vec<(Name, Pick)>,
}

/// The local file with the overlay in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Of the overlay; 0 for the local file alone.
    pub version: u64,
    pub config: Config,
    pub sources: BTreeMap<Name, SourceSetup>,
    pub thresholds: BTreeMap<Name, Arc<ThresholdConfig>>,
    pub paused: BTreeSet<Name>,
}

impl InForce {
    #[must_use]
    pub fn new(version: u64, config: Config, paused: &BTreeSet<Name>) -> Self {
        let crops_of = |source: &SourceConfig| {
            let of_it = |other: &SourceConfig| match &other.kind {
                SourceKind::Crops { of, pick } if *of == source.name => Some((other.name.clone(), pick.clone())),
                _ => None,
            };
            config.sources.iter().filter_map(of_it).collect()
        };
        let setup = |source: &SourceConfig| {
            let setup = SourceSetup {
                model: config.model_of(source)?.name.clone(),
                region: source.region,
                metadata: source.metadata.clone(),
                on: source.enabled && !paused.contains(&source.name),
                crops: crops_of(source),
            };
            Some((source.name.clone(), setup))
        };
        let sources = config.sources.iter().filter_map(setup).collect();
        let threshold = |model: &hedge_config::ModelConfig| (model.name.clone(), Arc::new(model.threshold.clone()));
        let thresholds = config.models.iter().map(threshold).collect();
        Self { version, sources, thresholds, paused: paused.clone(), config }
    }

    /// The most that may leave of this case's sample. A class whose samples never leave may have become one after the case
    /// was stored.
    #[must_use]
    pub fn ceiling_of(&self, case: &Case) -> Ceiling {
        if case.said.as_ref().is_some_and(|said| self.stays(said)) {
            Ceiling(Payload::Nothing)
        } else {
            self.config.privacy.ceiling()
        }
    }

    /// What other sources are asked about of a picture of `source`, in which this was found: which of them, and where. A picture
    /// that never leaves the device is not handed on, because the case of a crop brings all of it.
    #[must_use]
    pub fn crops(&self, source: &Name, said: &Output) -> Vec<(Name, Rect)> {
        let picks = self.sources.get(source).map_or(&[][..], |source| &source.crops);
        if picks.is_empty() || self.stays(said) {
            return Vec::new();
        }
        let of_one = |(source, pick): &(Name, Pick)| {
            let source = source.clone();
            pick.of(said).into_iter().map(move |place| (source.clone(), place)).collect::<Vec<_>>()
        };
        picks.iter().flat_map(of_one).collect()
    }

    /// Whether a sample of which this is said never leaves the device.
    fn stays(&self, said: &Output) -> bool {
        let mut stays = self.thresholds.values().flat_map(|threshold| threshold.never_leaving());
        let labels = said.labels().collect::<Vec<_>>();
        stays.any(|label| labels.contains(&label))
    }

    /// Whether going from `before` to this could leave the device without a connection.
    #[must_use]
    pub fn cuts_the_link(before: &Config, after: &Config) -> bool {
        before.broker != after.broker || before.link.profile != after.link.profile
    }
}

#[cfg(test)]
mod tests {
    use hedge_proto::Found;

    use super::*;

    #[test]
    fn things_are_handed_on_unless_the_picture_must_not_leave() {
        let text = r#"
            [[model]]
            name = "finds"
            bundle = "/b"
            threshold = { score_min = 0.5, policies = { person = "never_leave" } }
            [[model]]
            name = "looks"
            bundle = "/c"
            [[source]]
            name = "door"
            kind = "http"
            model = "finds"
            [[source]]
            name = "things"
            kind = "crops"
            of = "door"
            model = "looks"
            pick = { classes = ["cat"] }
        "#;
        let config = Config::parse(text, "agent.toml", std::iter::empty()).expect("valid");
        let name = |text| Name::new(text).expect("a name");
        let settings = InForce::new(0, config, &BTreeSet::new());
        let place = Rect { left: 0.25, top: 0.5, width: 0.25, height: 0.5 };
        let found = |labels: &[&str]| {
            let one = |label: &&str| Found { label: (*label).to_owned(), score: 0.9, place };
            Output::Boxes(labels.iter().map(one).collect())
        };
        assert_eq!(settings.crops(&name("door"), &found(&["cat", "dog"])), [(name("things"), place)]);
        assert_eq!(settings.crops(&name("things"), &found(&["cat"])), [], "crops of crops");
        assert_eq!(settings.crops(&name("door"), &found(&["cat", "person"])), [], "the case would bring the person");
    }
}
