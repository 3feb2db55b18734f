//! Brings one large payload to the cloud over HTTPS, piece by piece, going on where an earlier try ended.
//!
//! Which payloads go this way is decided in core. Nothing is said about the case here: the message that names the
//! payload follows by MQTT.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use hedge_proto::Digest;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;

use super::credentials;
use super::options::{self, CONNECT_TIMEOUT, OptionsError};
use super::{Meter, silence};
use crate::in_force::InForce;
use hedge_config::PayloadsConfig;

/// What an interrupted piece loses; at 20 kbit/s it takes 26 s.
const PIECE_BYTES: usize = 64 * 1024;

/// So often the cloud may say that a piece must begin elsewhere before this try ends.
const DETOURS_MAX: u32 = 3;

/// Where the cloud says how much of a payload it has.
const UPLOAD_OFFSET: &str = "upload-offset";

/// The way for large payloads.
pub(super) struct Uploads {
    config: PayloadsConfig,
    /// Names the proxy, if there is one.
    settings: watch::Receiver<Arc<InForce>>,
    meter: Meter,
    /// One at a time: two would only be slower side by side.
    turn: Semaphore,
}

/// Why a payload is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("token_file = {path}: {source}")]
    Token { path: PathBuf, source: io::Error },
    #[error("the cloud's address for payloads is not reached: {0}")]
    Io(#[from] io::Error),
    #[error("the connection for payloads broke: {}", hedge_proto::in_one_line(.0))]
    Http(#[from] hyper::Error),
    #[error("the request cannot be made: {0}")]
    Request(#[from] axum::http::Error),
    #[error("no answer on a piece of the payload in {} s", .0.as_secs())]
    Late(Duration),
    /// It never will.
    #[error("the cloud takes no payload of this size ({0})")]
    TooLarge(StatusCode),
    #[error("the cloud did not take the payload: {0}")]
    Refused(StatusCode),
    #[error("the connection to the broker ended meanwhile")]
    Interrupted,
}

impl UploadError {
    /// Trying again cannot help.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::TooLarge(_))
    }
}

/// What an answer says; its text is for people.
struct Answer {
    status: StatusCode,
    /// How much of the payload the cloud has.
    offset: Option<usize>,
}

/// The longest text of an answer.
const TEXT_BYTES_MAX: usize = 4096;

/// An open connection and what every request on it has.
struct Connection {
    requests: SendRequest<Body>,
    path: String,
    headers: HeaderMap,
}

/// What is wrong with the files that `[payloads]` names.
pub fn payloads_fault(config: &PayloadsConfig) -> Option<String> {
    // The system's own are not looked at: reading all of them again and again costs more than it tells.
    let trusted = config.ca_file.as_deref().map_or(Ok(()), |file| crate::uplink::roots(Some(file)).map(drop));
    let why = trusted.map_err(UploadError::from).and_then(|()| token(config).map(drop)).err()?;
    Some(format!("[payloads] {why}; large payloads wait until it can be used"))
}

/// What is shown with every request.
fn token(config: &PayloadsConfig) -> Result<Option<HeaderValue>, UploadError> {
    let Some(path) = &config.token_file else { return Ok(None) };
    let unusable = |source| UploadError::Token { path: path.clone(), source };
    let token = hedge_inference::read_secret(path).map_err(unusable)?;
    let value = format!("Bearer {token}").parse().map_err(|_| {
        unusable(io::Error::new(io::ErrorKind::InvalidData, "it holds more than one line, or what no header can hold"))
    })?;
    Ok(Some(value))
}

impl Uploads {
    pub(super) fn new(config: PayloadsConfig, settings: watch::Receiver<Arc<InForce>>, meter: Meter) -> Self {
        Self { config, settings, meter, turn: Semaphore::new(1) }
    }

    /// Returns once the cloud has all of the payload. May be dropped at any point and begun again.
    pub(super) async fn put(&self, sum: Digest, payload: Bytes) -> Result<(), UploadError> {
        let Ok(_turn) = self.turn.acquire().await else { return Ok(()) };
        let mut connection = self.connect(sum).await?;
        let Some(mut at) = connection.held().await? else { return Ok(()) };
        let mut detours = 0;
        loop {
            // More than there can be means that another payload of this name was begun: the sum will tell.
            at = if at < payload.len() { at } else { 0 };
            let piece = payload.slice(at..payload.len().min(at + PIECE_BYTES));
            let response = connection.put(at, piece, payload.len()).await?;
            match response.status {
                StatusCode::OK | StatusCode::CREATED => return Ok(()),
                StatusCode::ACCEPTED => at = response.offset.filter(|next| *next > at).unwrap_or(0),
                StatusCode::CONFLICT if detours < DETOURS_MAX => {
                    detours += 1;
                    at = response.offset.unwrap_or(0);
                }
                StatusCode::PAYLOAD_TOO_LARGE => return Err(UploadError::TooLarge(response.status)),
                other => return Err(UploadError::Refused(other)),
            }
        }
    }

    async fn connect(&self, sum: Digest) -> Result<Connection, UploadError> {
        let url = &self.config.url;
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, url.authority().parse().map_err(axum::http::Error::from)?);
        if let Some(value) = token(&self.config)? {
            headers.insert(header::AUTHORIZATION, value);
        }
        let requests = tokio::time::timeout(CONNECT_TIMEOUT, self.open())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Connection { requests, path: format!("{}/v1/payloads/{sum}", url.path), headers })
    }

    async fn open(&self) -> Result<SendRequest<Body>, UploadError> {
        let url = &self.config.url;
        let proxy = self.settings.borrow().config.broker.as_ref().and_then(|broker| broker.proxy.clone());
        let first = proxy.as_ref().map_or((&url.host, url.port), |proxy| (&proxy.host, proxy.port));
        let stream = TcpStream::connect((first.0.as_str(), first.1)).await?;
        options::tune(&stream)?;
        let mut stream = self.meter.on(stream);
        if proxy.is_some() {
            async_http_proxy::http_connect_tokio(&mut stream, &url.host, url.port).await.map_err(io::Error::other)?;
        }
        if !url.tls {
            return speak(stream).await;
        }
        let roots = credentials::roots(self.config.ca_file.as_deref())?;
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
        speak(TlsConnector::from(Arc::new(tls)).connect(name, stream).await?).await
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Body>, UploadError> {
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Whoever waits for an answer on it hears of its end, too.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection for payloads ended");
        }
    });
    Ok(requests)
}

impl Connection {
    /// How many bytes the cloud has; `None` for all of them.
    async fn held(&mut self) -> Result<Option<usize>, UploadError> {
        let response = self.ask(Request::builder().method(Method::HEAD), Bytes::new()).await?;
        match response.status {
            StatusCode::OK => Ok(None),
            StatusCode::NOT_FOUND => Ok(Some(response.offset.unwrap_or(0))),
            other => Err(UploadError::Refused(other)),
        }
    }

    async fn put(&mut self, at: usize, piece: Bytes, total: usize) -> Result<Answer, UploadError> {
        let range = format!("bytes {at}-{}/{total}", at + piece.len() - 1);
        self.ask(Request::builder().method(Method::PUT).header(header::CONTENT_RANGE, range), piece).await
    }

    async fn ask(&mut self, request: axum::http::request::Builder, body: Bytes) -> Result<Answer, UploadError> {
        let wait = silence::silence_max(body.len(), 0.0);
        let mut request = request.uri(&self.path).body(Body::from(body))?;
        request.headers_mut().extend(self.headers.clone());
        let asked = async {
            self.requests.ready().await?;
            let (head, body) = self.requests.send_request(request).await?.into_parts();
            // What is left of an answer would stand before the next one.
            axum::body::to_bytes(Body::new(body), TEXT_BYTES_MAX).await.map_err(io::Error::other)?;
            let offset = head.headers.get(UPLOAD_OFFSET).and_then(|text| text.to_str().ok()?.parse().ok());
            Ok(Answer { status: head.status, offset })
        };
        tokio::time::timeout(wait, asked).await.map_err(|_| UploadError::Late(wait))?
    }
}
