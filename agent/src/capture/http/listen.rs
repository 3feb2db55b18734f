//! Opens sockets and serves a bounded number of connections on them.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stream::Connection;
use crate::daemon::config::Listen;

/// Connections served at once on one listener; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// How long a request's head may take, and how long a connection may idle.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);

/// The largest request head, and the pieces in which bodies are read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long to wait when no connection can be accepted, which means that file descriptors ran out.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_secs(1);

/// Who may connect to the unix socket: the agent's user and its group.
const SOCKET_MODE: u32 = 0o660;

/// Why the agent cannot listen where the configuration says.
#[derive(Debug, thiserror::Error)]
pub(in crate::capture) enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: io::Error },
    #[error("cannot listen on unix:{0}: another program answers there")]
    InUse(PathBuf),
    #[error("cannot listen on unix:{0}: there is something that is not a socket; move it away or choose another path")]
    NotASocket(PathBuf),
}

pub(in crate::capture) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(in crate::capture) async fn open(listen: &Listen) -> Result<Self, ListenError> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(Self::Tcp)
                .map_err(|source| ListenError::Bind { address: address.to_string(), source }),
            Listen::Unix(path) => {
                clear_stale_socket(path).await?;
                let listener = UnixListener::bind(path).and_then(|listener| {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
                    Ok(listener)
                });
                listener.map(|listener| Self::Unix(listener, path.clone())).map_err(|source| bind_error(path, source))
            }
        }
    }

    pub(in crate::capture) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener, _) => listener.accept().await.map(|(socket, _)| Connection::new(socket)),
            Self::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                Ok(Connection::new(socket))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(&*path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove the socket {}: {error}", path.display());
        }
    }
}

fn bind_error(path: &Path, source: io::Error) -> ListenError {
    ListenError::Bind { address: format!("unix:{}", path.display()), source }
}

/// Removes a socket that a killed process left behind, and nothing else.
async fn clear_stale_socket(path: &Path) -> Result<(), ListenError> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(bind_error(path, source)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| bind_error(path, source))
        }
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(source) => Err(bind_error(path, source)),
    }
}

/// Serves `routes` until `stop`, then lets requests under way finish.
pub(in crate::capture) async fn serve(listener: Listener, routes: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok(connection) => {
                let serving = serve_connection(connection, routes.clone(), stop.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(connection: Connection, routes: Router, stop: CancellationToken) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes))
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
