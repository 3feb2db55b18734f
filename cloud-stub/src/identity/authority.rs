//! Certificates and keys of the authority on disk, and what they sign.
//!
//! ```text
//! authority-1.pem .key   the first; authority-2.pem .key the one after a rollover, and so on
//! cross-2.pem            the second signed by the first, so that devices that know only the first trust it
//! ```
//! The newest signs; all are trusted until they are retired.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hedge_identity::write_whole;
use hedge_proto::{DeviceId, FINGERPRINT_CHARS};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

/// How long an authority lives. Rollover is a command, long before.
const AUTHORITY_DAYS: u64 = 3650;

/// How long the cloud's and the broker's own certificates live; they are made anew at will.
const SERVER_DAYS: u64 = 397;

/// Clocks of brokers may be behind the authority's.
pub(super) const BACKDATED_MS: u64 = 10 * 60 * 1000;

pub(super) const DAY_MS: u64 = 24 * 3600 * 1000;

/// What stands as the common name of the cloud's own certificates. No device may have it.
const CLOUD_NAME: &str = hedge_core::identity::RESERVED[1];

/// Why the authority cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("there is no authority in {0}; make one with `hedge-cloud ca init`")]
    Missing(PathBuf),
    #[error("there is an authority in {0} already; `hedge-cloud ca rollover` makes its successor")]
    Exists(PathBuf),
    #[error("{0} signs now; `hedge-cloud ca rollover` first, and wait until every device has renewed")]
    Signing(String),
    #[error("{0}")]
    Crypto(String),
}

/// A certificate with its chain, and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// An authority in a folder.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    /// Numbers of the authorities that are trusted, the newest last.
    trusted: Vec<u32>,
}

impl Authority {
    /// Makes the first authority in `dir`.
    pub fn init(dir: &Path, now_ms: u64) -> Result<Self, AuthorityError> {
        if !numbers(dir)?.is_empty() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| at(dir, source))?;
        let authority = Self { dir: dir.to_owned(), trusted: vec![1] };
        authority.make(1, now_ms)?;
        Ok(authority)
    }

    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let trusted = numbers(dir)?;
        if trusted.is_empty() {
            return Err(AuthorityError::Missing(dir.to_owned()));
        }
        Ok(Self { dir: dir.to_owned(), trusted })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the next authority, signed by the present one, too. From now on it signs.
    pub fn rollover(&mut self, now_ms: u64) -> Result<u32, AuthorityError> {
        let (old, next) = (self.newest(), self.newest() + 1);
        let issuer = self.issuer(old)?;
        let (key, params) = self.make(next, now_ms)?;
        let cross = params.signed_by(&key, &issuer).map_err(crypto)?;
        write(&self.path(&format!("cross-{next}.pem")), &cross.pem(), 0o644)?;
        self.trusted.push(next);
        Ok(next)
    }

    /// Trusts an old authority no longer; its files are kept under another name.
    pub fn retire(&mut self, number: u32) -> Result<(), AuthorityError> {
        if number == self.newest() {
            return Err(AuthorityError::Signing(format!("authority {number}")));
        }
        let file = self.path(&format!("authority-{number}.pem"));
        fs::rename(&file, file.with_extension("retired")).map_err(|source| at(&file, source))?;
        self.trusted.retain(|known| *known != number);
        Ok(())
    }

    /// Every trusted authority, the newest first (PEM).
    pub fn bundle(&self) -> Result<String, AuthorityError> {
        self.trusted.iter().rev().map(|number| self.read(&format!("authority-{number}.pem"))).collect()
    }

    /// Every trusted authority.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        CertificateDer::pem_slice_iter(self.bundle()?.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| AuthorityError::Crypto(error.to_string()))
    }

    /// What a pairing code carries of the newest authority.
    pub fn fingerprint(&self) -> Result<String, AuthorityError> {
        let roots = self.roots()?;
        let newest = roots.first().ok_or_else(|| AuthorityError::Missing(self.dir.clone()))?;
        Ok(hex(newest)[..FINGERPRINT_CHARS].to_owned())
    }

    /// A device's certificate for a key that stays with the device.
    pub fn sign_device(
        &self,
        device: &DeviceId,
        key: &impl PublicKeyData,
        now_ms: u64,
        days: u64,
    ) -> Result<String, AuthorityError> {
        let now_ms = self.dated_ms(now_ms)?;
        let mut params = named(device.as_str());
        (params.not_before, params.not_after) =
            (date(now_ms.saturating_sub(BACKDATED_MS))?, date(now_ms + days * DAY_MS)?);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.sign(&params, key)
    }

    /// For a server that is reached at these names and addresses.
    ///
    /// It begins when the oldest authority began, so that a device whose clock stood still trusts it.
    pub fn issue_server(&self, hosts: &[String], now_ms: u64) -> Result<Issued, AuthorityError> {
        let mut params = named(hosts.first().map_or("server", String::as_str));
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(crypto)?),
            });
        }
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.issue(params, now_ms)
    }

    /// For a cloud instance, so that it may do the cloud's work on a broker with access rules.
    pub fn issue_cloud(&self, now_ms: u64) -> Result<Issued, AuthorityError> {
        let mut params = named(CLOUD_NAME);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.issue(params, now_ms)
    }

    fn issue(&self, mut params: CertificateParams, now_ms: u64) -> Result<Issued, AuthorityError> {
        let oldest = self.trusted.first().copied().unwrap_or(1);
        params.not_before = date(self.begun_ms(oldest)?)?;
        params.not_after = date(self.dated_ms(now_ms)? + SERVER_DAYS * DAY_MS)?;
        let key = KeyPair::generate().map_err(crypto)?;
        Ok(Issued { certificate: self.sign(&params, &key)?, key: key.serialize_pem() })
    }

    /// Signs with the newest authority; behind the certificate come its links to older ones, and itself.
    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<String, AuthorityError> {
        let newest = self.newest();
        let mut chain = params.signed_by(key, &self.issuer(newest)?).map_err(crypto)?.pem();
        for number in self.trusted.iter().rev() {
            let cross = self.path(&format!("cross-{number}.pem"));
            if cross.exists() {
                chain.push_str(&hedge_inference::read_text(&cross).map_err(|source| at(&cross, source))?);
            }
        }
        chain.push_str(&self.read(&format!("authority-{newest}.pem"))?);
        Ok(chain)
    }

    fn make(&self, number: u32, now_ms: u64) -> Result<(KeyPair, CertificateParams), AuthorityError> {
        let key = KeyPair::generate().map_err(crypto)?;
        let mut params = named(&format!("Hedge authority {number} {now_ms}"));
        // Not constrained to sign no authority: each signs its successor.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let begin_ms = self.trusted.first().filter(|first| **first < number).map(|first| self.begun_ms(*first));
        params.not_before = date(begin_ms.transpose()?.unwrap_or(now_ms.saturating_sub(BACKDATED_MS)))?;
        params.not_after = date(now_ms + AUTHORITY_DAYS * DAY_MS)?;
        let certificate = params.self_signed(&key).map_err(crypto)?;
        write(&self.path(&format!("authority-{number}.key")), &key.serialize_pem(), 0o600)?;
        write(&self.path(&format!("authority-{number}.pem")), &certificate.pem(), 0o644)?;
        Ok((key, params))
    }

    /// Never before the authority itself.
    fn dated_ms(&self, now_ms: u64) -> Result<u64, AuthorityError> {
        Ok(now_ms.max(self.begun_ms(self.newest())? + BACKDATED_MS))
    }

    fn begun_ms(&self, number: u32) -> Result<u64, AuthorityError> {
        let pem = self.read(&format!("authority-{number}.pem"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(crypto)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(crypto)?;
        Ok(u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0) * 1000)
    }

    fn issuer(&self, number: u32) -> Result<Issuer<'static, KeyPair>, AuthorityError> {
        let key = KeyPair::from_pem(&self.read(&format!("authority-{number}.key"))?).map_err(crypto)?;
        Issuer::from_ca_cert_pem(&self.read(&format!("authority-{number}.pem"))?, key).map_err(crypto)
    }

    fn newest(&self) -> u32 {
        self.trusted.last().copied().unwrap_or(1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<String, AuthorityError> {
        let path = self.path(name);
        hedge_inference::read_text(&path).map_err(|source| at(&path, source))
    }
}

fn numbers(dir: &Path) -> Result<Vec<u32>, AuthorityError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(at(dir, source)),
    };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("authority-")?.strip_suffix(".pem")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params
}

fn date(ms: u64) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(ms / 1000).unwrap_or(i64::MAX)).map_err(crypto)
}

/// SHA-256 in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes a whole file or none; a crash leaves nothing half-written under its name.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    write_whole(path, text.as_bytes(), mode).map_err(|source| at(path, source))
}

pub(super) fn at(path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File { path: path.to_owned(), source }
}

fn crypto(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}
