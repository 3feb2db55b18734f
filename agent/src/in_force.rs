//! The settings in force, as one value: a sample is answered by one of these from first to last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hedge_core::privacy::Ceiling;
use hedge_inference::Region;
use hedge_proto::{Case, Metadata, Name, Output, Payload};

use hedge_config::{Config, ThresholdConfig};

/// What a source adds to each of its samples.
#[derive(Debug, Clone)]
pub struct SourceSetup {
    pub model: Name,
    pub region: Option<Region>,
    pub metadata: Metadata,
    /// Neither off by the settings nor paused by a command.
    pub on: bool,
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
        let setup = |source: &hedge_config::SourceConfig| {
            let setup = SourceSetup {
                model: config.model_of(source)?.name.clone(),
                region: source.region,
                metadata: source.metadata.clone(),
                on: source.enabled && !paused.contains(&source.name),
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
        let mut stays = self.thresholds.values().flat_map(|threshold| threshold.never_leaving());
        let labels = case.said.iter().flat_map(Output::labels).collect::<Vec<_>>();
        if stays.any(|label| labels.contains(&label)) {
            Ceiling(Payload::Nothing)
        } else {
            self.config.privacy.ceiling()
        }
    }

    /// Whether going from `before` to this could leave the device without a connection.
    #[must_use]
    pub fn cuts_the_link(before: &Config, after: &Config) -> bool {
        before.broker != after.broker || before.link.profile != after.link.profile
    }
}
