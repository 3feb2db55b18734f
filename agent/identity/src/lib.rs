//! The device's certificate: what it says, from whom it comes, and when there is a new one.
//!
//! The key is made here and never leaves the device; what is asked of the cloud's authority is signed with it.

mod enrol;
mod files;
mod http;
mod pem;
mod verifier;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hedge_core::identity::{CertificateNames, Validity, judged_ms};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::enrol::{EnrolError, Held, enrol, new_key, renew};
pub use self::files::{Folder, write_secret, write_whole};
pub use self::http::{http_beginning, http_body, http_client};
pub use self::pem::{read_certificates, read_key};
pub use self::verifier::{Shown, Verifier};

/// What of a certificate matters here.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub names: CertificateNames,
    pub validity: Validity,
}

impl Certificate {
    /// The first certificate of a PEM file.
    pub fn read(path: &Path) -> Result<Self, String> {
        read_certificates(path)?
            .first()
            .ok_or_else(|| "it holds no certificate".to_owned())
            .and_then(|der| Self::parse(der))
    }

    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let common_name = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let alt_names = certificate.subject_alternative_name().ok().flatten();
        let alt_name = alt_names.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            GeneralName::URI(uri) => uri.rsplit(['/', ':']).next(),
            _ => None,
        });
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        let validity = certificate.validity();
        Ok(Self {
            names: CertificateNames {
                common_name: common_name.map(str::to_owned),
                alt_name: alt_name.map(str::to_owned),
            },
            validity: Validity {
                from_ms: ms(validity.not_before.timestamp()),
                to_ms: ms(validity.not_after.timestamp()),
            },
        })
    }
}

/// The date certificates are judged at.
///
/// A device without a battery-backed clock wakes up in 1970. The beginning of its own certificate is the last date it
/// was told over an authenticated link, so nothing is judged at an earlier one.
#[derive(Debug, Default)]
pub struct CertificateClock {
    seen_ms: u64,
}

impl CertificateClock {
    /// Never behind the beginning of `own`, the device's certificate.
    #[must_use]
    pub fn since(own: Option<&Certificate>) -> Arc<Self> {
        Arc::new(Self { seen_ms: own.map_or(0, |own| own.validity.from_ms) })
    }

    #[must_use]
    pub fn now_ms(&self) -> u64 {
        judged_ms(wall_ms().unwrap_or(0), built_ms(), self.seen_ms)
    }
}

impl TimeProvider for CertificateClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.now_ms())))
    }
}

/// Before this the clock was never set: the program did not exist yet.
#[must_use]
pub fn built_ms() -> u64 {
    env!("HEDGE_BUILT_S").parse::<u64>().unwrap_or(0).saturating_mul(1000)
}

/// Milliseconds since 1970 by the wall clock, for people and for the dates of certificates.
#[must_use]
pub fn wall_ms() -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock; for people only")]
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since_1970.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    fn certificate(common: Option<&str>, alt: Option<SanType>) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        params.subject_alt_names.extend(alt);
        params.not_before = rcgen::date_time_ymd(2026, 3, 1);
        params.not_after = rcgen::date_time_ymd(2026, 3, 31);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
    }

    fn read(pem: &str) -> Certificate {
        Certificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("a certificate")
    }

    #[test]
    fn names_and_dates_are_read_from_a_certificate() {
        let dns = SanType::DnsName("gate-7.example".try_into().expect("valid"));
        let held = read(&certificate(Some("gate-7"), Some(dns)));
        assert_eq!(held.names.common_name.as_deref(), Some("gate-7"));
        assert_eq!(held.names.alt_name.as_deref(), Some("gate-7.example"));
        assert_eq!(held.validity.to_ms - held.validity.from_ms, 30 * 24 * 3600 * 1000);
        let uri = SanType::URI("urn:example:device:gate-7".try_into().expect("valid"));
        assert_eq!(read(&certificate(None, Some(uri))).names.alt_name.as_deref(), Some("gate-7"));
    }
}
