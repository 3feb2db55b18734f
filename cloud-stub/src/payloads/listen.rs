//! The address payloads come to: TLS and a token wherever others can reach it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hedge_inference::read_pem;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{Storage, routes};

/// Devices that send at once; others wait to be let in.
const CONNECTIONS_MAX: usize = 64;

/// From connecting to the end of the TLS handshake, and from one request to the next one's head.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(60);

/// After an accept that failed: too many open files, usually.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(500);

/// Where payloads are taken, as the command line says it.
#[derive(Debug, Clone)]
pub struct PayloadsSetup {
    pub listen: SocketAddr,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
}

/// Why payloads cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "--payload-listen {0} can be reached by others: give --payload-cert, --payload-key and --payload-token-file"
    )]
    Open(SocketAddr),
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("--payload-token-file {0} is empty")]
    NoToken(PathBuf),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("--payload-listen {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Opens the address and serves until the process ends. Returns the real address.
pub async fn start(setup: &PayloadsSetup, storage: Storage) -> Result<SocketAddr, ListenError> {
    let file = |path: &PathBuf, reason: String| ListenError::File { path: path.clone(), reason };
    let tls = acceptor(setup)?;
    let token = match &setup.token_file {
        None => None,
        Some(path) => {
            let text = hedge_inference::read_text(path).map_err(|error| file(path, error.to_string()))?;
            let token = text.trim().to_owned();
            if token.is_empty() {
                return Err(ListenError::NoToken(path.clone()));
            }
            Some(token)
        }
    };
    if !setup.listen.ip().is_loopback() && (tls.is_none() || token.is_none()) {
        return Err(ListenError::Open(setup.listen));
    }
    let bind = |source| ListenError::Bind { address: setup.listen, source };
    let listener = TcpListener::bind(setup.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    tokio::spawn(serve(listener, tls, routes(storage, token.as_deref())));
    Ok(address)
}

fn acceptor(setup: &PayloadsSetup) -> Result<Option<TlsAcceptor>, ListenError> {
    let (Some(certificate), Some(key)) = (&setup.certificate, &setup.key) else { return Ok(None) };
    let wrong = |path: &PathBuf, error: &dyn std::fmt::Display| ListenError::File {
        path: path.clone(),
        reason: error.to_string(),
    };
    let pem = |path: &PathBuf| read_pem(path).map_err(|error| wrong(path, &error));
    let chain = CertificateDer::pem_slice_iter(&pem(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(certificate, &error))?;
    let key = PrivateKeyDer::from_pem_slice(&pem(key)?).map_err(|error| wrong(key, &error))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, routes: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection for payloads: {error}");
                tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
                continue;
            }
        };
        let (tls, routes) = (tls.clone(), routes.clone());
        tokio::spawn(async move {
            greet(stream, tls, routes).await;
            drop(place);
        });
    }
}

async fn greet(stream: TcpStream, tls: Option<TlsAcceptor>, routes: Router) {
    let Some(tls) = tls else { return serve_connection(stream, routes).await };
    match tokio::time::timeout(HEAD_WAIT_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_connection(stream, routes).await,
        Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        // The peer's doing: it went away, idled, or does not speak HTTP.
        tracing::debug!("a connection for payloads ended early: {error}");
    }
}
