//! What went wrong, as a status and one sentence of JSON.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};

use crate::sample::SampleError;

/// An error response.
#[derive(Debug)]
pub(in crate::capture) struct HttpError {
    status: StatusCode,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

/// When to come back after an overload, in seconds.
const RETRY_AFTER_S: &str = "1";

impl HttpError {
    pub(in crate::capture) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), header: None }
    }

    pub(in crate::capture) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Nothing is wrong with the request; it may come again in a second.
    pub(super) fn later(status: StatusCode, message: impl Into<String>) -> Self {
        let header = Some((header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S)));
        Self { status, message: message.into(), header }
    }

    /// The rest of the request is not read, so the connection is of no more use.
    pub(super) fn closing(status: StatusCode, message: impl Into<String>) -> Self {
        let header = Some((header::CONNECTION, HeaderValue::from_static("close")));
        Self { status, message: message.into(), header }
    }
}

impl From<SampleError> for HttpError {
    fn from(error: SampleError) -> Self {
        let message = error.to_string();
        match error {
            SampleError::UnknownSource(..) => Self::new(StatusCode::NOT_FOUND, message),
            SampleError::Unusable(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            SampleError::TooLarge { .. } => Self::closing(StatusCode::PAYLOAD_TOO_LARGE, message),
            SampleError::OtherContent(_) => Self::new(StatusCode::CONFLICT, message),
            SampleError::MetadataTooLarge { .. } => Self::bad_request(message),
            SampleError::Overloaded(_)
            | SampleError::NoModel { .. }
            | SampleError::NoThreshold { .. }
            | SampleError::SourceOff(_)
            | SampleError::Unreachable(_)
            | SampleError::Stopping => Self::later(StatusCode::SERVICE_UNAVAILABLE, message),
            SampleError::ModelFailed { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<hedge_listen::Refused> for HttpError {
    fn from(refused: hedge_listen::Refused) -> Self {
        let status = match refused {
            hedge_listen::Refused::Name { .. } => StatusCode::MISDIRECTED_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        // What comes with it is not read.
        Self::closing(status, refused.to_string())
    }
}

impl From<JsonRejection> for HttpError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for HttpError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for HttpError {
    fn from(rejection: QueryRejection) -> Self {
        // The library's words for what a programmer got wrong.
        let said = rejection.body_text();
        let said = said.strip_prefix("Failed to deserialize query string: ").unwrap_or(&said);
        let said = said.replace("invalid digit found in string", "it takes a whole number");
        Self::bad_request(format!("after the `?` of the address: {said}"))
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(serde_json::json!({ "error": self.message }))).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
