//! Models, their labels and why a sample is sent on.

use alloc::boxed::Box;
use alloc::string::String;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::{Digest, Measure};

/// Which model, in which version, gave a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelRef {
    pub name: String,
    pub version: String,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// Why a sample is sent to the cloud.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])* $variant,)*
            /// One that only a later version knows, by its name: made by reading alone.
            Later(Box<str>),
        }

        impl Reason {
            /// As it is written in JSON.
            #[must_use]
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Later(name) => name,
                }
            }
        }

        impl From<&str> for Reason {
            fn from(name: &str) -> Self {
                match name {
                    $($name => Self::$variant,)*
                    other => Self::Later(other.into()),
                }
            }
        }

        #[cfg(test)]
        const KNOWN: &[(&str, &str)] = &[$(($name, concat!($($doc),*))),*];
    };
}

reasons! {
    /// The best class, or the average box, scores below the threshold.
    LowScore = "low_score",
    /// The two best classes are too close.
    Margin = "margin",
    /// The scores are spread over too many classes.
    Entropy = "entropy",
    /// Boxes: their expected F1 is too low.
    ExpectedLoss = "expected_loss",
    /// Boxes: too many mistakes are expected.
    Errors = "errors",
    /// Boxes: a mistake is too likely.
    AnyError = "any_error",
    /// Boxes: too many were nearly shown.
    CountGap = "count_gap",
    /// The answer changes from frame to frame, so that its score counts less.
    Flicker = "flicker",
    /// The model itself says that it may be wrong.
    Confidence = "confidence",
    /// What verdicts have taught makes a contradiction likely.
    Learned = "learned",
    /// The input does not look like what the model knows.
    OutOfDistribution = "out_of_distribution",
    /// A confident answer, sent anyway so that error can be measured.
    SpotCheck = "spot_check",
    /// The operator's settings send it whatever the scores.
    Policy = "policy",
    /// The model's output cannot be read (NaN, empty, not normalised).
    Unusable = "unusable",
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A cloud that refused the reasons of later versions would refuse their cases.
impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Reason;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("the name of a reason")
            }

            fn visit_str<E>(self, name: &str) -> Result<Reason, E> {
                Ok(name.into())
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Reason {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "Reason".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let known: alloc::vec::Vec<_> = KNOWN
            .iter()
            .map(|(name, doc)| serde_json::json!({ "const": name, "description": doc.trim() }))
            .chain([serde_json::json!({ "description": "One that only a later version knows." })])
            .collect();
        schemars::json_schema!({ "type": "string", "description": "Why a sample is sent to the cloud.", "anyOf": known })
    }
}

impl From<Measure> for Reason {
    fn from(measure: Measure) -> Self {
        match measure {
            Measure::Score | Measure::MeanShown => Self::LowScore,
            Measure::Margin => Self::Margin,
            Measure::Entropy => Self::Entropy,
            Measure::ExpectedLoss => Self::ExpectedLoss,
            Measure::Errors => Self::Errors,
            Measure::AnyError => Self::AnyError,
            Measure::CountGap => Self::CountGap,
            Measure::Flicker => Self::Flicker,
            Measure::Confidence => Self::Confidence,
            Measure::Learned => Self::Learned,
        }
    }
}

/// Names a label list: SHA-256 over the labels, each ended by a newline.
#[must_use]
pub fn labels_hash<L: AsRef<str>>(labels: &[L]) -> Digest {
    let mut sum = Sha256::new();
    for label in labels {
        sum.update(label.as_ref().as_bytes());
        sum.update(b"\n");
    }
    Digest(sum.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{from_cbor, to_cbor};

    #[test]
    fn a_reason_that_only_a_later_version_knows_is_carried_as_it_came() {
        for name in ["tea_leaves", "", "Low_Score", "low_score ", "\u{e4}\"\\\n", "constructor"] {
            let json = serde_json::to_string(&name).expect("written");
            let read: Reason = serde_json::from_str(&json).expect("read");
            assert_eq!((read.name(), serde_json::to_string(&read).expect("written")), (name, json));
            assert_eq!(from_cbor::<Reason>(&to_cbor(&read), 1000), Ok(read));
        }
        assert!(serde_json::from_str::<Reason>("7").is_err());
    }

    #[test]
    fn a_known_reason_is_never_carried_as_an_unknown_one() {
        for (name, _) in KNOWN {
            let read: Reason = serde_json::from_value((*name).into()).expect("read");
            assert!(read.name() == *name && !matches!(read, Reason::Later(_)), "{name}");
        }
    }
}
