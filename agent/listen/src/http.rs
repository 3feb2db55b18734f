//! Speaks HTTP on accepted connections, and keeps book of whose turn it is.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::house::{Accepted, Bounds, Place, accept};
use crate::socket::Listener;
use crate::stream::Connection;

/// How long a request's head may take, and how long a connection may idle.
pub const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a request's body may take: a piece of a payload at 20 kbit/s, a quarter of the largest.
pub const BODY_WAIT_MAX: Duration = Duration::from_secs(120);

/// The largest request head, and the pieces in which bodies are read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Serves `routes` until `stop`, then lets requests under way finish. Over TCP a request brings its `ConnectInfo`.
pub async fn serve(
    listener: Listener,
    bounds: Bounds,
    tls: Option<Arc<ServerConfig>>,
    routes: Router,
    stop: CancellationToken,
) {
    let stopped = stop.clone();
    accept(listener, bounds, tls, stop, move |accepted| serve_one(accepted, routes.clone(), stopped.clone())).await;
}

async fn serve_one(accepted: Accepted, routes: Router, stop: CancellationToken) {
    let (place, from) = (accepted.place.clone(), accepted.from);
    place.await_peer();
    let routes = TowerToHyperService::new(routes);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        asked_of(&mut request);
        let mut asked = Asked::begin(&place, request);
        if let Some(from) = from {
            asked.extensions_mut().insert(ConnectInfo(from));
        }
        let answering = routes.call(asked);
        let place = place.clone();
        async move {
            let Ok(response) = answering.await;
            Ok::<_, Infallible>(response.map(|body| Body::new(Answer { body, _turn: Turn(place) })))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Connection::new(accepted)), answer)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // The peer's doing: it went away, idled, or does not speak HTTP.
        tracing::debug!("a connection ended early: {error}");
    }
}

/// Whom a whole URL in the first line names is who is asked, whatever `Host` says (RFC 9112, 3.2.2).
fn asked_of<B>(request: &mut Request<B>) {
    let named = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(named) = named {
        request.headers_mut().insert(HOST, named);
    }
}

/// A request's body on its way.
struct Asked {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    arriving: Option<Arc<Place>>,
}

impl Asked {
    fn begin(place: &Arc<Place>, request: Request<Incoming>) -> Request<Body> {
        request.map(|body| {
            if body.is_end_stream() {
                place.answer();
                return Body::empty();
            }
            place.await_peer();
            Body::new(Self { body, deadline: Box::pin(sleep(BODY_WAIT_MAX)), arriving: Some(place.clone()) })
        })
    }

    fn whole(&mut self) {
        if let Some(place) = self.arriving.take() {
            place.answer();
        }
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if frame.is_none() || self.body.is_end_stream() {
                    self.whole();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
            }
            Poll::Pending => self.deadline.as_mut().poll(cx).map(|()| {
                let text = format!("it took more than {} s", BODY_WAIT_MAX.as_secs());
                Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.whole();
    }
}

/// An answer's body; when it has been handed over, the peer's next head is awaited.
struct Answer {
    body: Body,
    _turn: Turn,
}

struct Turn(Arc<Place>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.await_peer();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
