//! The numbers of tensors as the protocol carries them: in JSON, or as bytes behind it.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// The most numbers of an output that are read.
pub(super) const NUMBERS_MAX: usize = 16 * 1024 * 1024;

/// Number types of the protocol that models take and give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Datatype {
    Fp16,
    Fp32,
    Fp64,
    Uint8,
    Int8,
    Int32,
    Int64,
}

/// The protocol's names of number types.
const WORDS: [(&str, Datatype); 7] = [
    ("FP16", Datatype::Fp16),
    ("FP32", Datatype::Fp32),
    ("FP64", Datatype::Fp64),
    ("UINT8", Datatype::Uint8),
    ("INT8", Datatype::Int8),
    ("INT32", Datatype::Int32),
    ("INT64", Datatype::Int64),
];

pub(super) fn datatype(text: &str) -> Option<Datatype> {
    WORDS.iter().find(|(word, _)| *word == text).map(|(_, datatype)| *datatype)
}

pub(super) fn word(datatype: Datatype) -> &'static str {
    WORDS.iter().find(|(_, own)| *own == datatype).map_or("FP32", |(word, _)| word)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts that saturate are wanted, as in ONNX Runtime's answerer"
)]
impl Datatype {
    pub(super) fn bytes(self, numbers: &[f32]) -> Vec<u8> {
        macro_rules! all {
            ($to:expr) => {
                numbers.iter().flat_map(|number| $to(*number).to_le_bytes()).collect()
            };
        }
        match self {
            Self::Fp32 => all!(|number: f32| number),
            Self::Fp16 => all!(half::f16::from_f32),
            Self::Fp64 => all!(f64::from),
            Self::Uint8 => all!(|number: f32| number.round() as u8),
            Self::Int8 => all!(|number: f32| number.round() as i8),
            Self::Int32 => all!(|number: f32| number.round() as i32),
            Self::Int64 => all!(|number: f32| number.round() as i64),
        }
    }

    pub(super) fn json(self, numbers: &[f32]) -> Value {
        match self {
            Self::Fp16 | Self::Fp32 | Self::Fp64 => json!(numbers),
            Self::Uint8 => numbers.iter().map(|number| number.round() as u8).collect(),
            Self::Int8 => numbers.iter().map(|number| number.round() as i8).collect(),
            Self::Int32 | Self::Int64 => numbers.iter().map(|number| number.round() as i64).collect(),
        }
    }

    pub(super) fn read(self, bytes: &[u8]) -> Option<Vec<f32>> {
        macro_rules! all {
            ($of:ty, $to:expr) => {{
                let (numbers, rest) = bytes.as_chunks::<{ size_of::<$of>() }>();
                rest.is_empty().then(|| numbers.iter().map(|one| $to(<$of>::from_le_bytes(*one))).collect())
            }};
        }
        match self {
            Self::Fp32 => all!(f32, |number: f32| number),
            Self::Fp16 => all!(half::f16, |number: half::f16| number.to_f32()),
            Self::Fp64 => all!(f64, |number: f64| number as f32),
            Self::Uint8 => all!(u8, f32::from),
            Self::Int8 => all!(i8, |number: i8| f32::from(number) + SIGNED),
            Self::Int32 => all!(i32, |number: i32| number as f32),
            Self::Int64 => all!(i64, |number: i64| number as f32),
        }
    }
}

/// A byte with a sign is counted from the lowest, as everywhere outputs are read.
const SIGNED: f32 = 128.0;

/// The numbers of JSON lists, however they are nested; nothing if anything else is among them. They are read one by one: as
/// values of JSON they would take thirty times the memory.
#[derive(Debug, Default)]
pub(super) struct Numbers(Option<Vec<f32>>);

impl Numbers {
    pub(super) fn of(self, kind: Datatype) -> Option<Vec<f32>> {
        let signed = if kind == Datatype::Int8 { SIGNED } else { 0.0 };
        Some(self.0?.into_iter().map(|number| number + signed).collect())
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut numbers = Vec::new();
        let are_all = Flat(&mut numbers).deserialize(deserializer)?;
        Ok(Self(are_all.then_some(numbers)))
    }
}

/// Adds numbers to those before; `false` if there was anything else.
struct Flat<'a>(&'a mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for Flat<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<bool, E> {
        if self.0.len() == NUMBERS_MAX {
            return Err(E::custom(format_args!("there are more than {NUMBERS_MAX} numbers")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as everything after it is")]
        self.0.push(number as f32);
        Ok(true)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<bool, E> {
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<bool, E> {
        self.visit_f64(number as f64)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        let mut are_all = true;
        while let Some(are_numbers) = list.next_element_seed(Flat(self.0))? {
            are_all &= are_numbers;
        }
        Ok(are_all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<bool, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Numbers {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn numbers_of_every_type_travel_and_come_back() {
        for (word, kind) in WORDS {
            let numbers = [0.0, 1.0, 2.0, 100.0];
            let signed = if kind == Datatype::Int8 { SIGNED } else { 0.0 };
            let expected: Vec<f32> = numbers.iter().map(|number| number + signed).collect();
            assert_eq!(kind.read(&kind.bytes(&numbers)), Some(expected.clone()), "{word}");
            assert_eq!(flat(&kind.json(&numbers).to_string()).of(kind), Some(expected), "{word}");
            assert_eq!((datatype(word), self::word(kind)), (Some(kind), word));
        }
        assert_eq!(Datatype::Fp32.read(&[0; 7]), None, "cut off");
        assert_eq!(flat("[[1, 2], [3]]").0, Some(vec![1.0, 2.0, 3.0]));
        for other in ["[1, null]", "[1, [true]]", "[\"1\"]", "[1, {\"a\": [2]}]"] {
            assert_eq!(flat(other).0, None, "{other} is not all numbers");
        }
    }
}
