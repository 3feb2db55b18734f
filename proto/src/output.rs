//! What a device, the cloud or a person says of one sample, and where in a picture they say it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::SCORES_MAX;

/// The most boxes of one answer.
pub const BOXES_MAX: usize = 100;

/// One class and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LabelScore {
    pub label: String,
    /// In [0, 1].
    pub score: f32,
}

/// A rectangle in fractions of the upright picture's width and height, from its left and top edges.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rect {
    pub left: f32,
    pub top: f32,
    pub width: f32,
    pub height: f32,
}

impl Rect {
    /// The whole picture.
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, width: 1.0, height: 1.0 };

    /// The whole picture as this part of it sees it.
    #[must_use]
    pub fn around(&self) -> Self {
        let (width, height) = (1.0 / self.width, 1.0 / self.height);
        Self { left: -self.left * width, top: -self.top * height, width, height }
    }

    #[must_use]
    pub fn is_finite(&self) -> bool {
        [self.left, self.top, self.width, self.height].into_iter().all(f32::is_finite)
    }
}

/// One thing found in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Found {
    pub label: String,
    /// In [0, 1].
    pub score: f32,
    pub place: Rect,
}

/// What is said of one sample.
///
/// Compared by label *names*, never by indexes: two models of one task may order them differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(from = "Written", into = "Written")]
pub enum Output {
    /// Best first, at least one, at most [`SCORES_MAX`].
    Classes(Vec<LabelScore>),
    /// Surest first, at most [`BOXES_MAX`]; none if there is nothing to be seen.
    Boxes(Vec<Found>),
}

/// An [`Output`] on the wire and in JSON. Version 1 has classes only, and repeats the best one's label.
#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Written {
    Classify { label: String, scores: Vec<LabelScore> },
    Detect { found: Vec<Found> },
}

impl From<Output> for Written {
    fn from(output: Output) -> Self {
        match output {
            Output::Classes(scores) => {
                Self::Classify { label: scores.first().map_or_else(String::new, |best| best.label.clone()), scores }
            }
            Output::Boxes(found) => Self::Detect { found },
        }
    }
}

impl From<Written> for Output {
    fn from(written: Written) -> Self {
        match written {
            Written::Classify { label, scores } => Self::Classes(best_first(label, scores)),
            Written::Detect { found } => Self::Boxes(found),
        }
    }
}

/// The named label first. Who names one without a number is sure of it.
fn best_first(label: String, mut scores: Vec<LabelScore>) -> Vec<LabelScore> {
    let own = match scores.iter().position(|one| one.label == label) {
        Some(0) => return scores,
        Some(at) => scores.remove(at),
        None if label.is_empty() => return scores,
        None => LabelScore { label, score: 1.0 },
    };
    scores.insert(0, own);
    scores.truncate(SCORES_MAX.max(1));
    scores
}

impl Output {
    /// One label that somebody is sure of.
    #[must_use]
    pub fn label(label: &str) -> Self {
        Self::Classes(vec![LabelScore { label: label.to_owned(), score: 1.0 }])
    }

    /// The lowest version of the wire that carries it.
    #[must_use]
    pub fn wire_version(&self) -> u16 {
        match self {
            Self::Classes(_) => 1,
            Self::Boxes(_) => 2,
        }
    }

    /// What its list takes in memory; `beside` is what an allocator keeps with each text.
    #[must_use]
    pub fn memory_bytes(&self, beside: usize) -> usize {
        let texts = |text: &str, entry: usize| entry + text.len() + beside;
        match self {
            Self::Classes(scores) => scores.iter().map(|one| texts(&one.label, size_of::<LabelScore>())).sum(),
            Self::Boxes(found) => found.iter().map(|one| texts(&one.label, size_of::<Found>())).sum(),
        }
    }

    /// What was found in a part of a picture, at its places in the whole.
    #[must_use]
    pub fn within(mut self, view: &Rect) -> Self {
        if let Self::Boxes(found) = &mut self {
            for Rect { left, top, width, height } in found.iter_mut().map(|one| &mut one.place) {
                (*left, *width) = (view.left + *left * view.width, *width * view.width);
                (*top, *height) = (view.top + *top * view.height, *height * view.height);
            }
        }
        self
    }

    /// The labels it names: the best class, or each thing found.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let (best, found) = match self {
            Self::Classes(scores) => (scores.first(), &[][..]),
            Self::Boxes(found) => (None, found.as_slice()),
        };
        best.map(|best| best.label.as_str()).into_iter().chain(found.iter().map(|one| one.label.as_str()))
    }

    /// How sure it is of what it says: of the best class, of the average box. `None` of an empty picture.
    #[must_use]
    pub fn score(&self) -> Option<f32> {
        match self {
            Self::Classes(scores) => scores.first().map(|best| best.score),
            Self::Boxes(found) => {
                let sum: f32 = found.iter().map(|one| one.score).sum();
                (!found.is_empty()).then(|| sum / found.len() as f32)
            }
        }
    }

    /// A short text for lists and logs: the label, or how many of each were found.
    #[must_use]
    pub fn headline(&self) -> String {
        match self {
            Self::Classes(scores) => scores.first().map_or_else(String::new, |best| best.label.clone()),
            Self::Boxes(found) if found.is_empty() => "nothing found".to_owned(),
            Self::Boxes(_) => {
                let counts: Vec<String> =
                    self.counts().iter().map(|(label, count)| format!("{count} {label}")).collect();
                counts.join(", ")
            }
        }
    }

    /// One line for each class or box: score, label, place as shares of the picture.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Classes(scores) => scores.iter().map(|one| format!("{:.3}  {}", one.score, one.label)).collect(),
            Self::Boxes(found) if found.is_empty() => vec!["nothing found".to_owned()],
            Self::Boxes(found) => {
                let line = |one: &Found| {
                    let Rect { left, top, width, height } = one.place;
                    let place = format!("at {left:.3}, {top:.3}, {width:.3} wide, {height:.3} high");
                    format!("{:.3}  {}  {place}", one.score, one.label)
                };
                found.iter().map(line).collect()
            }
        }
    }

    /// How often each label is named, in the order of their first places.
    #[must_use]
    pub fn counts(&self) -> Vec<(&str, usize)> {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for label in self.labels() {
            match counts.iter_mut().find(|(known, _)| *known == label) {
                Some((_, count)) => *count += 1,
                None => counts.push((label, 1)),
            }
        }
        counts
    }
}

/// What a case says, as it is written: version 1 has a list of classes, empty if the model's output was unusable; what
/// is no classes is an [`Output`].
pub mod said {
    use serde::de::value::MapAccessDeserializer;
    use serde::de::{MapAccess, SeqAccess, Visitor};

    use super::{Deserialize, Deserializer, LabelScore, Output, Serialize, Serializer, Vec};

    /// For the schema of the wire.
    #[cfg(test)]
    #[derive(schemars::JsonSchema)]
    #[schemars(untagged)]
    #[expect(dead_code, reason = "only its form is looked at")]
    pub(crate) enum Said {
        Classes(Vec<LabelScore>),
        Other(Output),
    }

    pub fn serialize<S: Serializer>(said: &Option<Output>, serializer: S) -> Result<S::Ok, S::Error> {
        match said {
            None => [(); 0].serialize(serializer),
            Some(Output::Classes(scores)) => scores.serialize(serializer),
            Some(other) => other.serialize(serializer),
        }
    }

    /// Nothing is held in between: a message of 16 MiB must not take a gigabyte to be refused.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Output>, D::Error> {
        struct Said;
        impl<'de> Visitor<'de> for Said {
            type Value = Option<Output>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a list of classes, or an output of another kind")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut scores: Vec<LabelScore> = Vec::new();
                while let Some(one) = list.next_element()? {
                    scores.push(one);
                }
                Ok((!scores.is_empty()).then_some(Output::Classes(scores)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Output::deserialize(MapAccessDeserializer::new(map)).map(Some)
            }
        }
        deserializer.deserialize_any(Said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(labels: &[(&str, f32)]) -> Vec<LabelScore> {
        labels.iter().map(|&(label, score)| LabelScore { label: label.to_owned(), score }).collect()
    }

    #[test]
    fn classes_are_written_as_version_1_reads_them_and_read_in_every_way_it_wrote_them() {
        let classes = Output::Classes(scores(&[("cat", 0.7), ("dog", 0.2)]));
        let json = serde_json::to_value(&classes).expect("written");
        assert_eq!(json["classify"]["label"], "cat");
        assert_eq!(serde_json::from_value::<Output>(json).expect("read"), classes);
        let read = |json: &str| serde_json::from_str::<Output>(json).expect("read");
        assert_eq!(read(r#"{"classify":{"label":"dog","scores":[]}}"#), Output::label("dog"));
        let other =
            read(r#"{"classify":{"label":"dog","scores":[{"label":"cat","score":0.6},{"label":"dog","score":0.4}]}}"#);
        assert_eq!(other.labels().collect::<Vec<_>>(), ["dog"], "what is named counts, not the higher number");
    }

    #[test]
    fn what_is_found_in_a_part_has_its_place_in_the_whole_and_back() {
        let (part, place) = (
            Rect { left: 0.5, top: 0.25, width: 0.5, height: 0.25 },
            Rect { left: 0.5, top: 0.0, width: 0.25, height: 1.0 },
        );
        let found = |place| Output::Boxes(vec![Found { label: "cat".to_owned(), score: 0.5, place }]);
        let in_whole = found(place).within(&part);
        assert_eq!(in_whole, found(Rect { left: 0.75, top: 0.25, width: 0.125, height: 0.25 }));
        assert_eq!(in_whole.within(&part.around()), found(place));
    }

    #[test]
    fn boxes_need_version_2_and_say_how_many_of_each() {
        let found = |label: &str| Found { label: label.to_owned(), score: 0.5, place: Rect::WHOLE };
        let boxes = Output::Boxes(vec![found("cat"), found("dog"), found("cat")]);
        assert_eq!((boxes.wire_version(), Output::label("cat").wire_version()), (2, 1));
        assert_eq!(boxes.headline(), "2 cat, 1 dog");
        let json = serde_json::to_string(&boxes).expect("written");
        assert_eq!(serde_json::from_str::<Output>(&json).expect("read"), boxes);
        assert_eq!(Output::Boxes(Vec::new()).headline(), "nothing found");
    }
}
