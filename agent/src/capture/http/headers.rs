//! Any bytes as what stands in front of a sample: a line for the query, one each for metadata and content type.

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Uri};
use hedge_proto::METADATA_BYTES_MAX;

use super::samples::{METADATA_HEADER, PostQuery, metadata};
use crate::capture::content_type;

pub fn http_sample(bytes: &[u8]) {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    if let Ok(uri) = Uri::try_from([b"/v1/samples?", line()].concat()) {
        drop(Query::<PostQuery>::try_from_uri(&uri));
    }
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(line()) {
        headers.insert(METADATA_HEADER, value);
    }
    if let Ok(metadata) = metadata(&headers) {
        let size: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size <= METADATA_BYTES_MAX, "it is larger than what was sent");
    }
    let stated = std::str::from_utf8(line()).ok();
    if let Ok(kind) = content_type(stated, line()) {
        assert_eq!(content_type(Some(&kind.to_header()), &[]).ok(), Some(kind), "it does not read back");
    }
}
