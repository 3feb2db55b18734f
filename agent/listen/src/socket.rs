//! Opens sockets, and takes connections from them one by one.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Who may connect to a unix socket: the program's user and its group.
const SOCKET_MODE: u32 = 0o660;

/// Any connected socket.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Why it cannot be listened there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: io::Error },
    #[error("cannot listen on unix:{}: another program answers there", .0.display())]
    InUse(PathBuf),
    #[error(
        "cannot listen on unix:{}: there is something that is not a socket; move it away or choose another path",
        .0.display()
    )]
    NotASocket(PathBuf),
}

/// A place where peers connect.
pub enum Listener {
    /// The file is removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

impl Listener {
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let bound = TcpListener::bind(address).await;
        bound.map(Self::Tcp).map_err(|source| ListenError::Bind { address: address.to_string(), source })
    }

    /// Takes the place of a socket that a killed process left behind, and of nothing else.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        clear_stale_socket(path).await?;
        let listener = UnixListener::bind(path).and_then(|listener| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
            Ok(Self::Unix(listener, SocketFile { path: path.to_owned(), made: identity(path)? }))
        });
        listener.map_err(|source| bind_error(path, source))
    }

    /// The real address, for whoever asked for port 0; `None` for a unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Where peers find it, if that is a file.
    #[must_use]
    pub fn file(&self) -> Option<SocketFile> {
        match self {
            Self::Unix(_, file) => Some(file.clone()),
            Self::Tcp(_) => None,
        }
    }

    /// The next connection, and where it comes from if not from this machine.
    pub(crate) async fn accept(&self) -> io::Result<(Box<dyn Socket>, Option<SocketAddr>)> {
        match self {
            Self::Unix(listener, _) => listener.accept().await.map(|(socket, _)| (Box::new(socket) as _, None)),
            Self::Tcp(listener) => {
                let (socket, from) = listener.accept().await?;
                // A peer that has gone already is found out by reading.
                socket.set_nodelay(true).ok();
                Ok((Box::new(socket), Some(from)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, file) = self
            && file.is_there()
            && let Err(error) = std::fs::remove_file(&file.path)
        {
            tracing::warn!("cannot remove the socket {}: {error}", file.path.display());
        }
    }
}

/// The file of a unix socket, as it was made.
#[derive(Debug, Clone)]
pub struct SocketFile {
    path: PathBuf,
    made: (u64, u64),
}

impl SocketFile {
    /// Whether its path still leads to it. If not, no peer finds the socket any more, and what is there is somebody else's.
    #[must_use]
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|now| now == self.made)
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Whom connections from `from` count against. Nobody for this machine's own addresses: behind them are all local
/// programs, and a proxy's whole clientele. IPv6 hands out 64 bits to each customer, so these count as one.
#[must_use]
pub fn sender(from: SocketAddr) -> Option<IpAddr> {
    match from.ip().to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => Some(IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64))),
        ip => Some(ip),
    }
}

fn bind_error(path: &Path, source: io::Error) -> ListenError {
    ListenError::Bind { address: format!("unix:{}", path.display()), source }
}

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
