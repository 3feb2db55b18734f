//! What is wrong with this device now, one sentence for each part; whoever finds a fault notes it here.
//!
//! A fault is no reason to stop: the agent does what it can without the part, says so wherever a person may look, and
//! takes the part up again when the cause has gone. What becomes of a fault is decided where it is found.

use std::fmt;

use hedge_proto::Name;
use tokio::sync::watch;

/// A sentence is cut here: it is part of small messages.
const SENTENCE_CHARS_MAX: usize = 400;

/// What a fault concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The configuration file.
    Config,
    /// Who the device is.
    Identity,
    /// The state folder, and the outbox in it.
    State,
    /// Room on the disk of the state folder.
    Disk,
    /// A place where samples are taken.
    Listen,
    /// What `[broker]` names: files and addresses.
    Broker,
    /// What `[payloads]` names.
    Payloads,
    Clock,
    /// What the cloud says and this version cannot read.
    Wire,
    /// What the cloud does not read yet.
    Cloud,
    /// What is too large to be sent now.
    Limit,
    /// How the last run ended.
    LastRun,
    Model(Name),
    /// A bundle that settings want a model to run, and that it does not.
    Bundle(Name),
    /// A way out of the device, by its name in `[verdicts]`.
    Sink(Name),
    /// A source that brings nothing, or nothing new.
    Source(Name),
}

impl Part {
    /// All that are not named by the configuration, so that a graph shows them before they happen.
    pub const FIXED: [Self; 12] = [
        Self::Config,
        Self::Identity,
        Self::State,
        Self::Disk,
        Self::Listen,
        Self::Broker,
        Self::Payloads,
        Self::Clock,
        Self::Wire,
        Self::Cloud,
        Self::Limit,
        Self::LastRun,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Identity => "identity",
            Self::State => "state",
            Self::Disk => "disk",
            Self::Listen => "listen",
            Self::Broker => "broker",
            Self::Payloads => "payloads",
            Self::Clock => "clock",
            Self::Wire => "wire",
            Self::Cloud => "cloud",
            Self::Limit => "limit",
            Self::LastRun => "last_run",
            Self::Model(name) => return write!(f, "model.{name}"),
            Self::Bundle(name) => return write!(f, "bundle.{name}"),
            Self::Sink(name) => return write!(f, "sink.{name}"),
            Self::Source(name) => return write!(f, "source.{name}"),
        })
    }
}

/// The faults of now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Faults(watch::Sender<hedge_proto::Faults>);

impl Default for Faults {
    fn default() -> Self {
        Self(watch::Sender::new(hedge_proto::Faults::new()))
    }
}

impl Faults {
    /// Notes a fault, and says it if it is new or has changed.
    pub fn set(&self, part: &Part, sentence: impl Into<String>) {
        let mut sentence: String = sentence.into();
        if let Some((end, _)) = sentence.char_indices().nth(SENTENCE_CHARS_MAX) {
            sentence.truncate(end);
        }
        let changed = self.0.send_if_modified(|faults| {
            let before = faults.insert(part.to_string(), sentence.clone());
            before.as_ref() != Some(&sentence)
        });
        if changed {
            tracing::error!(%part, "{sentence}");
        }
    }

    /// The cause has gone.
    pub fn clear(&self, part: &Part) {
        if self.0.send_if_modified(|faults| faults.remove(&part.to_string()).is_some()) {
            tracing::info!(%part, "this is well again");
        }
    }

    /// Notes the fault, or that there is none.
    pub fn note(&self, part: &Part, fault: Option<String>) {
        match fault {
            Some(sentence) => self.set(part, sentence),
            None => self.clear(part),
        }
    }

    #[must_use]
    pub fn now(&self) -> hedge_proto::Faults {
        self.0.borrow().clone()
    }

    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<hedge_proto::Faults> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_news() {
        let faults = Faults::default();
        let mut seen = faults.subscribe();
        faults.set(&Part::Disk, "full");
        assert!(seen.has_changed().expect("open"));
        seen.mark_unchanged();
        faults.set(&Part::Disk, "full");
        faults.clear(&Part::Clock);
        assert!(!seen.has_changed().expect("open"));
        faults.clear(&Part::Disk);
        assert!(seen.has_changed().expect("open") && faults.now().is_empty());
    }

    #[test]
    fn a_long_sentence_is_cut_between_two_characters() {
        let faults = Faults::default();
        faults.set(&Part::Config, "é".repeat(SENTENCE_CHARS_MAX + 1));
        assert_eq!(faults.now()["config"].chars().count(), SENTENCE_CHARS_MAX);
    }
}
