//! The device's certificate: what it says, from whom it comes, and when there is a new one.
//!
//! The key is made here and never leaves the device; what is asked of the cloud's authority is signed with it.

mod enrol;
mod files;
mod pinned;
mod renew;

use std::path::Path;
use std::sync::Arc;

use hedge_core::identity::{CertificateNames, Validity, judged_ms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::enrol::{EnrolError, enrol, new_key};
pub use self::files::{Folder, write_secret};
pub use self::renew::Renewer;
use crate::clock::wall_ms;

/// What of a certificate matters here.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub names: CertificateNames,
    pub validity: Validity,
}

impl Certificate {
    /// The first certificate of a PEM file.
    pub fn read(path: &Path) -> Result<Self, String> {
        CertificateDer::from_pem_file(path).map_err(|error| error.to_string()).and_then(|der| Self::parse(&der))
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
        let built_s: u64 = env!("HEDGE_BUILT_S").parse().unwrap_or(0);
        judged_ms(wall_ms().unwrap_or(0), built_s.saturating_mul(1000), self.seen_ms)
    }
}

impl TimeProvider for CertificateClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.now_ms())))
    }
}
