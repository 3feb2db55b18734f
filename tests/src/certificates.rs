//! A certificate authority made for one test, and the certificates it signs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use time::{Duration, OffsetDateTime};

/// Signs certificates; its own is in `ca.pem`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// The last moment of what it signs.
    not_after: Option<OffsetDateTime>,
}

/// A certificate and its key as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new authority and writes its certificate into `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Hedge test authority");
        let certificate = params.self_signed(&key)?;
        std::fs::write(dir.join("ca.pem"), certificate.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), not_after: None })
    }

    /// What it signs ends in so many days from now, or did so before.
    pub fn expiring(dir: &Path, days: i64) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "certificates go by the wall clock")]
        let now = OffsetDateTime::from(std::time::SystemTime::now());
        Ok(Self { not_after: Some(now + Duration::days(days)), ..Self::new(dir)? })
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// For a server at `address`.
    pub fn server(&self, address: IpAddr) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.distinguished_name.push(DnType::CommonName, "broker");
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.sign("server", &params)
    }

    /// For a device of this name.
    pub fn device(&self, name: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.sign(name, &params)
    }

    fn sign(&self, name: &str, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = params.clone();
        if let Some(not_after) = self.not_after {
            params.not_after = not_after;
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity =
            Identity { certificate: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) };
        std::fs::write(&identity.certificate, certificate.pem())?;
        std::fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }
}
