//! Reads an `infer` request: JSON, then raw tensors if the client sends them.

use axum::http::HeaderMap;
use hedge_inference::Tensor;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::JSON_LENGTH_HEADER;
use crate::capture::ModelFacts;

/// The most samples in one request; each is run on its own.
const SAMPLES_MAX: usize = 64;

/// The most numbers in one request: 32 MiB of them, as many as the largest body holds in binary by default.
const NUMBERS_MAX: usize = 8 * 1024 * 1024;

/// A request that fits its model.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: Option<String>,
    pub(super) samples: Vec<Tensor>,
    pub(super) binary_output: bool,
}

#[derive(Deserialize)]
struct Document {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<WantedOutput>,
}

/// The parameters that mean something here; others are ignored, as the protocol wants.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    binary_data_size: Option<usize>,
    binary_data: Option<bool>,
    binary_data_output: bool,
    classification: Option<u64>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Numbers>,
}

#[derive(Deserialize)]
struct WantedOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Reads one request for `model`. The error says what to send instead.
pub(super) fn read(model: &ModelFacts, headers: &HeaderMap, body: &[u8]) -> Result<Request, String> {
    let (json, raw) = split(headers, body)?;
    let document: Document =
        serde_json::from_slice(json).map_err(|error| format!("this is not an inference request: {error}"))?;
    let Ok([input]) = <[Input; 1]>::try_from(document.inputs) else {
        return Err(format!("model `{}` takes exactly one input, `{}`", model.name, model.input_name));
    };
    check_names(model, &input, &document.outputs)?;
    // What is said of the output goes before what is said of all.
    let binary_output = document.outputs.iter().find_map(|output| output.parameters.binary_data);
    let binary_output = binary_output.unwrap_or(document.parameters.binary_data_output);
    let data = match (input.data, input.parameters.binary_data_size) {
        (Some(numbers), None) if raw.is_empty() => numbers.0,
        (None, Some(size)) => numbers_from_bytes(raw, size)?,
        _ => {
            return Err(format!(
                "input `{}` needs either `data` or `binary_data_size` bytes after the JSON",
                input.name
            ));
        }
    };
    Ok(Request { id: document.id, samples: samples(model, &input.shape, data)?, binary_output })
}

fn check_names(model: &ModelFacts, input: &Input, outputs: &[WantedOutput]) -> Result<(), String> {
    if input.name != model.input_name {
        return Err(format!(
            "model `{}` has no input `{}`; its input is `{}`",
            model.name,
            shown(&input.name),
            model.input_name
        ));
    }
    if input.datatype != "FP32" {
        return Err(format!("input `{}` is {}; only FP32 is taken", input.name, shown(&input.datatype)));
    }
    for output in outputs {
        if !model.outputs.iter().any(|(name, _)| *name == output.name) {
            let known: Vec<String> = model.outputs.iter().map(|(name, _)| format!("`{name}`")).collect();
            return Err(format!(
                "model `{}` has no output `{}`; it has {}",
                model.name,
                shown(&output.name),
                known.join(", ")
            ));
        }
        if output.parameters.classification.is_some_and(|classes| classes > 0) {
            return Err("the classification extension is not offered; post to /v1/samples for labels".to_owned());
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Where the JSON ends, by the header of the binary extension.
fn split<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), String> {
    let Some(length) = headers.get(JSON_LENGTH_HEADER) else { return Ok((body, &[])) };
    length
        .to_str()
        .ok()
        .and_then(|length| length.parse().ok())
        .and_then(|length| body.split_at_checked(length))
        .ok_or_else(|| "Inference-Header-Content-Length is not a length within the body".to_owned())
}

fn numbers_from_bytes(raw: &[u8], size: usize) -> Result<Vec<f32>, String> {
    if raw.len() != size || !size.is_multiple_of(4) {
        return Err(format!("binary_data_size is {size}, but {} bytes follow the JSON; FP32 takes 4 each", raw.len()));
    }
    let numbers = raw.chunks_exact(4).filter_map(|bytes| bytes.try_into().ok()).map(f32::from_le_bytes);
    Ok(numbers.collect())
}

/// Cuts a batch into samples. A model for one sample at a time still serves clients that send several.
fn samples(model: &ModelFacts, shape: &[usize], data: Vec<f32>) -> Result<Vec<Tensor>, String> {
    let numbers = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
    if numbers != Some(data.len()) {
        return Err(format!("shape {shape:?} does not hold the {} numbers sent", data.len()));
    }
    let expected = &model.input_shape;
    if shape == expected {
        return Ok(vec![Tensor::new(shape.to_vec(), data)]);
    }
    match (shape.split_first(), expected.split_first()) {
        (Some((count, sides)), Some((1, expected_sides)))
            if sides == expected_sides && (1..=SAMPLES_MAX).contains(count) && !data.is_empty() =>
        {
            let samples = data.chunks_exact(data.len() / count);
            Ok(samples.map(|data| Tensor::new(expected.clone(), data.to_vec())).collect())
        }
        _ => Err(format!(
            "model `{}` takes {expected:?} (or up to {SAMPLES_MAX} samples at once along the first dimension of 1), not {shape:?}",
            model.name
        )),
    }
}

/// Numbers, flat or nested; their arrangement is given by the shape alone.
#[derive(Debug)]
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut numbers = Vec::new();
        Collect(&mut numbers).deserialize(deserializer)?;
        Ok(Self(numbers))
    }
}

struct Collect<'a>(&'a mut Vec<f32>);

impl Collect<'_> {
    fn push<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        if self.0.len() >= NUMBERS_MAX {
            return Err(E::custom(format_args!("more than {NUMBERS_MAX} numbers")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest FP32, which is what was sent")]
        let rounded = number as f32;
        if !rounded.is_finite() {
            return Err(E::custom(format_args!("{number} is beyond FP32")));
        }
        self.0.push(rounded);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Collect<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, in one array or nested ones")
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        self.push(number)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.push(number as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.push(number as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Collect(self.0))?.is_some() {}
        Ok(())
    }
}
