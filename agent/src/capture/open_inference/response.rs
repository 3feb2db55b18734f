//! Writes an `infer` response, with the output as JSON or as raw bytes behind it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use hedge_inference::{Tensor, Tensors};
use serde::Serialize;

use super::{HttpError, JSON_LENGTH_HEADER};
use crate::capture::ModelFacts;

#[derive(Serialize)]
struct Document<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [f32]>,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, tensor: &'a Tensor, binary: bool) -> Self {
        let data = tensor.data.as_slice();
        Self {
            name,
            datatype: "FP32",
            shape: &tensor.shape,
            parameters: binary.then_some(Parameters { binary_data_size: data.len() * 4 }),
            data: (!binary).then_some(data),
        }
    }
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

/// The model's outputs, those of several samples one after the other.
pub(super) fn write(
    model: &ModelFacts,
    id: Option<String>,
    binary: bool,
    outputs: Tensors,
) -> Result<Response, HttpError> {
    let mut numbers = outputs.0.iter().flat_map(|(_, tensor)| &tensor.data);
    if !binary && numbers.any(|number| !number.is_finite()) {
        let text = "the model's output holds NaN or infinity, which JSON cannot carry; ask for binary output";
        return Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    let document = Document {
        model_name: model.name.as_str(),
        model_version: &model.version,
        id,
        outputs: outputs.0.iter().map(|(name, tensor)| Output::new(name, tensor, binary)).collect(),
    };
    if !binary {
        return Ok(Json(document).into_response());
    }
    let mut body = hedge_proto::to_json(&document);
    let json_length = HeaderValue::from(body.len());
    body.extend(outputs.0.iter().flat_map(|(_, tensor)| &tensor.data).flat_map(|number| number.to_le_bytes()));
    let kind = HeaderValue::from_static("application/octet-stream");
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(JSON_LENGTH_HEADER, json_length);
    Ok(response)
}
