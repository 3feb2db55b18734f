//! A server's TLS whose certificate is made anew or read again while it runs, and what a client's certificate says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hedge_identity::CertificateClock;
use hedge_proto::DeviceId;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{Authority, AuthorityError, at};
use crate::certificate_ms;

/// How often a certificate's files are read again: whoever renews them does so days before their end. The server's own,
/// which lives for more than a year, is made anew as often: the clock may not have been set when it was made.
const FRESH_EVERY: Duration = Duration::from_secs(60 * 60);

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
    renewed(move || issue(&Authority::open(authority.dir())?, &hosts))
}

/// The certificate and key in these files (PEM), which are read again while the program runs: they are renewed there.
pub fn certificate_in(certificate: PathBuf, key: PathBuf) -> Result<Arc<dyn ResolvesServerCert>, AuthorityError> {
    renewed(move || read(&certificate, &key))
}

fn renewed(
    make: impl Fn() -> Result<Arc<CertifiedKey>, AuthorityError> + Send + Sync + 'static,
) -> Result<Arc<dyn ResolvesServerCert>, AuthorityError> {
    let fresh = Arc::new(Fresh(RwLock::new(make()?)));
    let (shown, make) = (fresh.clone(), Arc::new(make));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(FRESH_EVERY).await;
            let make = make.clone();
            match tokio::task::spawn_blocking(move || make()).await {
                Ok(Ok(new)) => *shown.0.write().unwrap_or_else(PoisonError::into_inner) = new,
                Ok(Err(error)) => tracing::error!("the server's certificate stays as it was: {error}"),
                Err(_) => return,
            }
        }
    });
    Ok(fresh)
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, AuthorityError> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| at(path, std::io::Error::other(error.to_string()));
    let chain = hedge_identity::read_certificates(certificate).map_err(|error| wrong(certificate, &error))?;
    let private = hedge_identity::read_key(key).map_err(|error| wrong(key, &error))?;
    let certified = CertifiedKey::from_der(chain, private, &ring::default_provider());
    certified.map(Arc::new).map_err(|error| wrong(key, &error))
}

fn issue(authority: &Authority, hosts: &[String]) -> Result<Arc<CertifiedKey>, AuthorityError> {
    let crypto = |error: &dyn std::fmt::Display| AuthorityError::Crypto(error.to_string());
    let issued = authority.issue_server(hosts, certificate_ms())?;
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
    let builder = rustls::ServerConfig::builder_with_details(provider.clone(), CertificateClock::since(None))
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
