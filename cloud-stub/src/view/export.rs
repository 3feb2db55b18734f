//! A training set of the cases that are looked for, as a download.

use std::io::{self, Write};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::cases::Wanted;
use super::query::Query;
use super::{ApiError, View};
use crate::export::{self, ExportError};
use crate::store::Reader;

/// How many are written at once: each reads the records from end to end.
pub(super) const EXPORTS_MAX: usize = 2;

/// How many pieces of the archive wait for a slow client.
const PIECES_MAX: usize = 4;

/// `GET /api/export`
pub(super) async fn archive(State(view): State<View>, Query(wanted): Query<Wanted>) -> Result<Response, ApiError> {
    let format = wanted.format.unwrap_or_default();
    let sought = wanted.every_one()?;
    let place = view.exports.clone().try_acquire_owned().map_err(|_| ApiError::TooManyExports(EXPORTS_MAX))?;
    let (pieces, mut sent) = mpsc::channel(PIECES_MAX);
    let at = view.records_at.clone();
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let scratch = at.folder();
        let out = Pieces(pieces.clone());
        // A reader of its own: the page's would be taken for as long as the client takes.
        let written = Reader::open(&at)
            .map_err(ExportError::from)
            .and_then(|reader| export::write(&reader, sought, format, out, &scratch));
        if let Err(error) = written {
            tracing::warn!("a training set was not written to its end: {error}");
            // Without its end the download is seen to have failed.
            drop(pieces.blocking_send(Err(error)));
        }
    });
    // What fails at once is said as every other error is.
    let first = sent.recv().await.ok_or(ApiError::Stopping)?.map_err(ApiError::Export)?;
    let pieces = stream::once(async { Ok(first) }).chain(ReceiverStream::new(sent));
    let headers = [
        (CONTENT_TYPE, "application/x-tar"),
        (CONTENT_DISPOSITION, "attachment; filename=\"training-set.tar\""),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Where the archive is written: it waits while the client does not read.
struct Pieces(mpsc::Sender<Result<Bytes, ExportError>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
