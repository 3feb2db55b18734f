//! Writes an `infer` response, with the output as JSON or as raw bytes behind it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

use super::{HttpError, JSON_LENGTH_HEADER};
use crate::capture::ModelFacts;

#[derive(Serialize)]
struct Document<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: [Output<'a>; 1],
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [f32]>,
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

/// The outputs of `samples` samples, one after the other.
pub(super) fn write(
    model: &ModelFacts,
    id: Option<String>,
    binary: bool,
    samples: usize,
    output: Vec<f32>,
) -> Result<Response, HttpError> {
    if !binary && output.iter().any(|number| !number.is_finite()) {
        let text = "the model's output holds NaN or infinity, which JSON cannot carry; ask for binary output";
        return Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    let one_sample: usize = model.output_shape.iter().product();
    let shape = if samples == 1 && one_sample == output.len() {
        model.output_shape.clone()
    } else {
        vec![samples, output.len() / samples.max(1)]
    };
    let document = Document {
        model_name: model.name.as_str(),
        model_version: &model.version,
        id,
        outputs: [Output {
            name: &model.output_name,
            datatype: "FP32",
            shape,
            parameters: binary.then_some(Parameters { binary_data_size: output.len() * 4 }),
            data: (!binary).then_some(&output),
        }],
    };
    if !binary {
        return Ok(Json(document).into_response());
    }
    let mut body = hedge_proto::to_json(&document);
    let json_length = HeaderValue::from(body.len());
    body.extend(output.iter().flat_map(|number| number.to_le_bytes()));
    let kind = HeaderValue::from_static("application/octet-stream");
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(JSON_LENGTH_HEADER, json_length);
    Ok(response)
}
