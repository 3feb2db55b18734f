//! TLS listeners whose certificate is made anew while they run, and what a client's certificate says.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hedge_proto::DeviceId;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::{Authority, AuthorityError};
use crate::wall_ms;

/// Slow links take seconds for a handshake; who takes longer comes again.
const HANDSHAKE_MAX: Duration = Duration::from_secs(20);

/// How often the server's own certificate is made anew; it lives for more than a year.
const FRESH_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// The certificate shown, replaced from time to time.
#[derive(Debug)]
struct Fresh(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Fresh {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A certificate for these names that is made anew while the program runs.
pub fn fresh_certificate(
    authority: Authority,
    hosts: Vec<String>,
) -> Result<Arc<dyn ResolvesServerCert>, AuthorityError> {
    let fresh = Arc::new(Fresh(RwLock::new(issue(&authority, &hosts)?)));
    let shown = fresh.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(FRESH_EVERY).await;
            match Authority::open(authority.dir()).and_then(|authority| issue(&authority, &hosts)) {
                Ok(new) => *shown.0.write().unwrap_or_else(PoisonError::into_inner) = new,
                Err(error) => tracing::error!("the server's certificate cannot be made anew: {error}"),
            }
        }
    });
    Ok(fresh)
}

fn issue(authority: &Authority, hosts: &[String]) -> Result<Arc<CertifiedKey>, AuthorityError> {
    let crypto = |error: &dyn std::fmt::Display| AuthorityError::Crypto(error.to_string());
    let issued = authority.issue_server(hosts, wall_ms())?;
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).map_err(|error| crypto(&error))?;
    CertifiedKey::from_der(chain.map_err(|error| crypto(&error))?, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|error| crypto(&error))
}

/// A server's TLS; with `clients`, whoever connects must show a certificate of one of these authorities.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Option<Vec<CertificateDer<'static>>>,
) -> Result<Arc<rustls::ServerConfig>, AuthorityError> {
    let crypto = |error: &dyn std::fmt::Display| AuthorityError::Crypto(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| crypto(&error))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(authorities);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| crypto(&error))?)
        }
    };
    Ok(Arc::new(builder.with_cert_resolver(certificate)))
}

/// The device a certificate is for.
#[must_use]
pub fn common_name(der: &[u8]) -> Option<DeviceId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok())?;
    DeviceId::new(name).ok()
}

/// Hands out connections whose handshake is done, so that a slow one holds up no other.
pub struct TlsListener {
    ready: mpsc::Receiver<(Bounded, SocketAddr)>,
    local: SocketAddr,
}

impl TlsListener {
    /// At most `connections_max` at a time, none longer than `lifetime_max`.
    pub fn start(
        listener: TcpListener,
        config: Arc<rustls::ServerConfig>,
        connections_max: usize,
        lifetime_max: Option<Duration>,
    ) -> io::Result<Self> {
        let local = listener.local_addr()?;
        let (done, ready) = mpsc::channel(16);
        let acceptor = TlsAcceptor::from(config);
        tokio::spawn(async move {
            let slots = Arc::new(Semaphore::new(connections_max));
            while let Ok(slot) = slots.clone().acquire_owned().await {
                let (stream, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of files, most likely: they come back as connections end.
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                };
                let (acceptor, done) = (acceptor.clone(), done.clone());
                tokio::spawn(async move {
                    match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let ends = lifetime_max.map(|max| Box::pin(sleep_until(Instant::now() + max)));
                            // Nobody takes it only when the program is ending.
                            drop(done.send((Bounded { stream, ends, _slot: slot }, from)).await);
                        }
                        Ok(Err(error)) => tracing::info!(%from, "no TLS connection: {error}"),
                        Err(_) => tracing::info!(%from, "no TLS connection within {} s", HANDSHAKE_MAX.as_secs()),
                    }
                });
            }
        });
        Ok(Self { ready, local })
    }

    /// The next connection; `None` when the listener is gone.
    pub async fn next(&mut self) -> Option<(Bounded, SocketAddr)> {
        self.ready.recv().await
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Bounded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Bounded, SocketAddr) {
        match self.next().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// A connection that counts against the listener's bound, and may have an end of its own.
pub struct Bounded {
    stream: TlsStream<TcpStream>,
    ends: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
}

impl Bounded {
    /// The device of the certificate the client showed.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        let (_, session) = self.stream.get_ref();
        common_name(session.peer_certificates()?.first()?)
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
