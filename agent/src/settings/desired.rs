//! Reads a document of `down/desired` whole: what it wants in force, or why it is refused. Changes nothing.

#[cfg(any(test, fuzzing))]
pub(crate) mod documents;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use hedge_core::control::settings::{Book, Overlay, Weighed};
use hedge_proto::{
    Confirm, DOCUMENT_BYTES_MAX, DecodeError, Desired, FieldError, LastDesired, Name, Settings, SettingsOutcome,
    from_json, readable,
};

use hedge_config::{Config, ConfigFile, log_filter, unknown_labels};

/// Of what a person reads in a report.
const REASON_CHARS_MAX: usize = 300;

/// What a document must fit.
pub(super) struct Device<'a, L> {
    pub file: &'a ConfigFile,
    pub book: &'a Book,
    /// The labels of a model, once it is loaded.
    pub labels: L,
}

/// Settings that may come into force.
#[derive(Debug)]
pub(super) struct Wanted {
    pub overlay: Overlay,
    /// The local file with them over it.
    pub config: Config,
    pub confirm: Confirm,
    pub by: Option<String>,
}

impl<L: Fn(&Name) -> Option<Arc<[String]>>> Device<'_, L> {
    /// `None` for what is in force, or on trial, already.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Option<Wanted>, LastDesired> {
        let desired = Desired::read(bytes).map_err(|error| match error {
            DecodeError::Field(field) => wrong_fields(version_of(bytes), vec![field]),
            error => refused(version_of(bytes), &error.to_string(), vec![]),
        })?;
        let Desired { version, settings, confirm, by } = desired;
        let fields = |errors: Vec<FieldError>| wrong_fields(Some(version), errors);
        let overlay = Overlay { version, settings: Settings::read(settings).map_err(fields)? };
        match self.book.weigh(&overlay) {
            Weighed::Wanted => {}
            Weighed::Known => return Ok(None),
            Weighed::Refused(reason) => return Err(refused(Some(version), &reason, vec![])),
        }
        let config = self.validated(&overlay.settings).map_err(fields)?;
        Ok(Some(Wanted { overlay, config, confirm, by }))
    }

    /// The local file with these settings over it, if every field can be put in force here.
    fn validated(&self, settings: &Settings) -> Result<Config, Vec<FieldError>> {
        let config = self.file.overlaid(settings)?;
        let mut errors: Vec<FieldError> = config.privacy.refused(settings).collect();
        if let Err(error) = log_filter(&config.log.level) {
            errors.push(FieldError::new("log.level", error.to_string()));
        }
        // Labels of the local file are the file's matter: a fault, and no reason to refuse what is said here.
        for (name, model) in settings.model.iter().flatten() {
            let threshold = model.as_ref().and_then(|model| model.threshold.as_ref());
            // A model that is not loaded yet takes any label.
            let (Some(threshold), Some(labels)) = (threshold, (self.labels)(name)) else { continue };
            errors.extend(unknown_labels(threshold, &labels).map(|field| {
                FieldError::new(format!("model.{name}.threshold.{field}"), "the model has no such label")
            }));
        }
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

fn wrong_fields(version: Option<u64>, errors: Vec<FieldError>) -> LastDesired {
    refused(version, "fields are wrong; nothing of the document is in force", errors)
}

/// A document of which nothing is in force, and why.
pub(super) fn refused(version: Option<u64>, reason: &str, errors: Vec<FieldError>) -> LastDesired {
    let reason = Some(readable(reason, REASON_CHARS_MAX));
    LastDesired { version, outcome: SettingsOutcome::Refused, reason, errors }
}

/// The version of a document that is wrong otherwise.
fn version_of(bytes: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u64,
    }
    from_json::<Version>(bytes, DOCUMENT_BYTES_MAX).ok().map(|found| found.version)
}
