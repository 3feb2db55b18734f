//! What stands behind the `?` of an address. What is wrong with it is said as every other error is.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;

/// As axum's, whose own errors are no JSON.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(asked)| Self(asked)).map_err(|wrong| {
            let why = wrong.body_text();
            let why = why.strip_prefix("Failed to deserialize query string: ").unwrap_or(&why);
            ApiError::BadRequest(why.to_owned())
        })
    }
}
