//! Takes payloads too large for MQTT over HTTPS, under their SHA-256 sum; the case that names one follows by MQTT.
//!
//! ```text
//! HEAD /v1/payloads/{sum}   200: all of it is here; 404 with Upload-Offset: n bytes of it are
//! PUT  /v1/payloads/{sum}   Content-Range: bytes from-to/total
//!                           201: that was all; 202: go on at Upload-Offset; 409: the piece must begin there
//! ```
//! A piece has at most `PIECE_BYTES_MAX` bytes, so an upload that is cut off loses little. A piece that begins at 0
//! begins anew. Every request carries the token, if the cloud has one.
//!
//! Published bundles can be had from the same address: under `/bundles`, as files and ranges of them.

mod listen;
mod storage;

pub use listen::PayloadsArgs;
pub use storage::{PAYLOAD_BYTES_MAX, Storage};

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use axum::{Json, Router};
use hedge_listen::BODY_WAIT_MAX;
use hedge_proto::Digest;
use tokio::sync::Semaphore;
use tower_http::services::ServeDir;

use storage::{Held, Piece, PieceError};

/// The largest piece: sixteen of those that agents send.
const PIECE_BYTES_MAX: usize = 1024 * 1024;

/// How much of the payload is here, in answers with 202, 404 and 409.
const UPLOAD_OFFSET: &str = "upload-offset";

/// What every request sees.
#[derive(Clone)]
struct Door {
    storage: Storage,
    /// The token's sum: comparing sums tells nothing about the token by the time it takes.
    token: Option<Arc<Digest>>,
    /// Who has a piece in memory.
    pieces: Arc<Semaphore>,
}

/// Pieces in memory at once; others wait.
const PIECES_MAX: usize = 32;

fn routes(storage: Storage, token: Option<&str>, bundles: Option<&std::path::Path>) -> Router {
    let token = token.map(|token| Arc::new(Digest::of(token.as_bytes())));
    let door = Door { storage, token, pieces: Arc::new(Semaphore::new(PIECES_MAX)) };
    let routes = Router::new().route("/v1/payloads/{sum}", put(take).head(look));
    let routes = match bundles {
        Some(dir) => routes.nest_service("/bundles", ServeDir::new(dir).append_index_html_on_directories(false)),
        None => routes,
    };
    routes.layer(from_fn_with_state(door.clone(), admit)).with_state(door)
}

/// Nobody without the token, whatever is asked for.
async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    if door.knows(request.headers()) { next.run(request).await } else { Refused::NoToken.into_response() }
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the token is missing or wrong")]
    NoToken,
    #[error("`{0}` is not the SHA-256 sum of a payload: 64 hexadecimal digits")]
    NoSum(String),
    #[error("a piece needs `Content-Range: bytes FROM-TO/TOTAL` that fits its {0} bytes")]
    NoRange(usize),
    #[error("a piece has at most {PIECE_BYTES_MAX} bytes and takes at most {} s", BODY_WAIT_MAX.as_secs())]
    NoPiece,
    #[error(transparent)]
    Piece(#[from] PieceError),
    #[error("this program is stopping")]
    Stopping,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoToken => StatusCode::UNAUTHORIZED,
            Self::NoSum(_) | Self::NoRange(_) | Self::Piece(PieceError::TooLong) => StatusCode::BAD_REQUEST,
            Self::NoPiece | Self::Piece(PieceError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Piece(PieceError::Elsewhere(_)) => StatusCode::CONFLICT,
            Self::Piece(PieceError::WrongSum) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Piece(PieceError::NoRoom) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Piece(PieceError::Busy) | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Piece(PieceError::Io(error)) => {
                tracing::error!("a payload cannot be kept: {error}");
                StatusCode::INSUFFICIENT_STORAGE
            }
        };
        let text = Json(serde_json::json!({ "error": self.to_string() }));
        match self {
            Self::Piece(PieceError::Elsewhere(here)) => {
                (status, [(UPLOAD_OFFSET, here.to_string())], text).into_response()
            }
            _ => (status, text).into_response(),
        }
    }
}

async fn look(State(door): State<Door>, Path(sum): Path<String>) -> Result<Response, Refused> {
    let sum = sum_of(&sum)?;
    let held = door.with(move |storage| Ok(storage.held(sum)?)).await?;
    Ok(match held {
        Held::All => StatusCode::OK.into_response(),
        Held::Part(bytes) => (StatusCode::NOT_FOUND, [(UPLOAD_OFFSET, bytes.to_string())]).into_response(),
    })
}

async fn take(
    State(door): State<Door>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(sum): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let sum = sum_of(&sum)?;
    let range = request.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok()).and_then(read_range);
    let _piece = door.pieces.acquire().await.map_err(|_| Refused::Stopping)?;
    let bytes = to_bytes(Body::new(request.into_body()), PIECE_BYTES_MAX).await.map_err(|_| Refused::NoPiece)?;
    let fits = |(from, to, _): &(u64, u64, u64)| to - from + 1 == bytes.len() as u64;
    let (at, _, total) = range.filter(fits).ok_or(Refused::NoRange(bytes.len()))?;
    let held = door
        .with(move |storage| storage.take(sum, from.ip().to_canonical(), Piece { at, total, bytes: &bytes }))
        .await?;
    Ok(match held {
        Held::All => StatusCode::CREATED.into_response(),
        Held::Part(bytes) => (StatusCode::ACCEPTED, [(UPLOAD_OFFSET, bytes.to_string())]).into_response(),
    })
}

fn sum_of(text: &str) -> Result<Digest, Refused> {
    text.parse().map_err(|_| Refused::NoSum(text.chars().take(80).collect()))
}

/// `bytes from-to/total`, with `from <= to < total`.
fn read_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, total) = (from.parse().ok()?, to.parse().ok()?, total.parse().ok()?);
    (from <= to && to < total).then_some((from, to, total))
}

impl Door {
    /// Whether this has the token, if there is one.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        self.token.as_ref().is_none_or(|token| Digest::of(given.as_bytes()) == **token)
    }

    /// Works on the files off the async workers.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> Result<T, PieceError> + Send + 'static,
    ) -> Result<T, Refused> {
        let storage = self.storage.clone();
        let done = tokio::task::spawn_blocking(move || work(&storage)).await;
        Ok(done.map_err(|_| Refused::Stopping)??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_means_nothing_is_refused() {
        assert_eq!(read_range("bytes 0-3/10"), Some((0, 3, 10)));
        for text in ["", "bytes 3-2/10", "bytes 0-10/10", "bytes */10", "bytes 0-3/*", "bytes -1-3/10", "0-3/10"] {
            assert_eq!(read_range(text), None, "{text}");
        }
    }
}
