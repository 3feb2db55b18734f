//! Any bytes as an inference request: one for the length of the JSON, or 0 for no such header, then the body.

use axum::http::{HeaderMap, HeaderValue};
use hedge_proto::Name;

use super::{JSON_LENGTH_HEADER, request};
use crate::capture::ModelFacts;

pub fn open_inference(bytes: &[u8]) {
    let Some((length, body)) = bytes.split_first() else { return };
    let Ok(name) = Name::new("m") else { return };
    let (input_name, input_shape) = ("in".to_owned(), vec![1, 2, 2]);
    let (version, labels, outputs) = ("1".to_owned(), Vec::new(), vec![("out".to_owned(), vec![1, 2])]);
    let model = ModelFacts { name, version, cannot_answer: None, input_name, input_shape, outputs, labels };
    let mut headers = HeaderMap::new();
    if *length > 0 {
        headers.insert(JSON_LENGTH_HEADER, HeaderValue::from(u16::from(*length)));
    }
    match request::read(&model, &headers, body) {
        Ok(request) => assert!(request.samples.iter().all(|sample| sample.data.len() == 4), "{request:?}"),
        Err(reason) => assert!(!reason.is_empty()),
    }
}
