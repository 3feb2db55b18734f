//! Asks a running agent over its unix socket or loopback address. One connection a question.

use std::io;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use hedge_proto::Answer;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use hedge_config::Listen;

/// `check` reads a log of a gigabyte meanwhile; a stuck agent still ends the command.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(600);

/// The longest answer: a payload, or the ids of a full queue.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the agent said no ({status}): {message}")]
    Refused { status: StatusCode, message: String },
    #[error("the agent gave no answer within {} s", ANSWER_WAIT_MAX.as_secs())]
    TooSlow,
    #[error("no agent of this version answers: {0}")]
    Strange(String),
}

/// An agent that accepts connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    listen: Listen,
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

impl Client {
    /// Nothing is asked yet.
    pub(super) fn new(listen: &Listen) -> Self {
        Self { listen: listen.clone() }
    }

    /// Whether somebody accepts connections there.
    pub(super) async fn connect(listen: &Listen) -> Result<Self, AskError> {
        let client = Self::new(listen);
        client.socket().await.map(drop).map_err(AskError::Connect)?;
        Ok(client)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        read(&self.ask(Method::GET, path, "", Bytes::new()).await?)
    }

    pub(super) async fn bytes(&self, path: &str) -> Result<Bytes, AskError> {
        self.ask(Method::GET, path, "", Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, AskError> {
        read(&self.ask(Method::POST, path, "application/json", body.into()).await?)
    }

    /// Hands one sample over.
    pub(super) async fn sample(&self, path: &str, content_type: &str, body: Bytes) -> Result<Answer, AskError> {
        read(&self.ask(Method::POST, path, content_type, body).await?)
    }

    async fn socket(&self) -> io::Result<Box<dyn Socket>> {
        Ok(match &self.listen {
            Listen::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Listen::Tcp(address) => Box::new(TcpStream::connect(address).await?),
        })
    }

    async fn ask(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, AskError> {
        let exchange = self.exchange(method, path, content_type, body);
        timeout(ANSWER_WAIT_MAX, exchange).await.map_err(|_| AskError::TooSlow)?
    }

    async fn exchange(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, AskError> {
        let socket = self.socket().await.map_err(AskError::Connect)?;
        let strange = |error: hyper::Error| AskError::Strange(hedge_proto::in_one_line(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(strange)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .map_err(|error| AskError::Strange(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(strange)?;
        let status = answer.status();
        let bytes = to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await;
        connection.abort();
        let bytes = bytes.map_err(|error| AskError::Strange(error.to_string()))?;
        if status.is_success() { Ok(bytes) } else { Err(refused(status, &bytes)) }
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(bytes).map_err(|error| AskError::Strange(error.to_string()))
}

/// Every error of the agent is `{"error": "…"}`.
fn refused(status: StatusCode, bytes: &[u8]) -> AskError {
    #[derive(serde::Deserialize)]
    struct Said {
        error: String,
    }
    match serde_json::from_slice::<Said>(bytes) {
        Ok(said) => AskError::Refused { status, message: said.error },
        Err(_) => AskError::Strange(format!("it answered {status}")),
    }
}
