//! The address payloads come to: TLS and a token wherever others can reach it.

use std::net::SocketAddr;
use std::path::PathBuf;

use hedge_listen::{Bounds, CancellationToken, Listener};

use super::{Storage, routes};
use crate::identity::{AuthorityError, CertificateError, certificate_in, server_config};

/// Devices that send at once, each with a piece in memory; others wait to be let in.
const BOUNDS: Bounds = Bounds { what: "--payload-listen", connections_max: 32, address_max: 16, files_each: 2 };

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
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] AuthorityError),
    #[error("--payload-listen: {0}")]
    Bind(#[from] hedge_listen::ListenError),
}

/// Opens the address and serves until the process ends. Returns the real address.
pub async fn start(setup: &PayloadsSetup, storage: Storage) -> Result<SocketAddr, ListenError> {
    let file = |path: &PathBuf, reason: String| ListenError::File { path: path.clone(), reason };
    let tls = match (&setup.certificate, &setup.key) {
        (Some(certificate), Some(key)) => Some(server_config(certificate_in(certificate.clone(), key.clone())?, None)?),
        _ => None,
    };
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
    let listener = Listener::tcp(setup.listen).await?;
    let address = listener.address().unwrap_or(setup.listen);
    let routes = routes(storage, token.as_deref());
    tokio::spawn(hedge_listen::serve(listener, BOUNDS, tls, routes, CancellationToken::new()));
    Ok(address)
}
