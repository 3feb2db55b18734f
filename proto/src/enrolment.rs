//! What a device and its cloud's authority say to each other over HTTPS, and the code that brings them together.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DeviceId, InvalidId};

/// `POST` here with an [`EnrolRequest`] to become a device of this cloud.
pub const ENROL_PATH: &str = "/v1/enrol";

/// `POST` here with a [`RenewRequest`] for a new certificate on the same key.
pub const RENEW_PATH: &str = "/v1/renew";

/// A claim, a name and proof of a key made on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    pub secret: String,
    /// What the device would like to be called; a claim may insist on another name.
    pub device: Option<DeviceId>,
    /// A certificate request (PEM), signed with the device's key.
    pub request: String,
}

/// The last certificate, which may have run out, and proof that its key is still held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    pub certificate: String,
    /// A certificate request (PEM), signed with the key of `certificate`.
    pub request: String,
}

/// What the device needs from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    pub device: DeviceId,
    /// The device's certificate and what links it to older authorities (PEM).
    pub certificate: String,
    /// Every authority to trust, the newest first (PEM).
    pub authorities: String,
    /// Where the broker is, for example `mqtts://broker.example:8883`.
    pub broker: String,
}

/// Why the authority did not sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotEnrolled {
    pub error: String,
}

/// Hexadecimal digits of the authority's SHA-256 in a code: 128 bits, which nobody can meet with another certificate.
pub const FINGERPRINT_CHARS: usize = 32;

/// Where to enrol, whom to trust there, and the right to do it: `HOST:PORT/SECRET/FINGERPRINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairingCode {
    /// `host:port` of the enrolment endpoint.
    pub address: String,
    pub secret: String,
    /// The first [`FINGERPRINT_CHARS`] hexadecimal digits of the SHA-256 of the authority's certificate.
    pub fingerprint: String,
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.address, self.secret, self.fingerprint)
    }
}

impl FromStr for PairingCode {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.trim().split('/');
        let (Some(address), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidId::pairing_code(text));
        };
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        let hex = fingerprint.len() == FINGERPRINT_CHARS && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
        let fits = (8..=64).contains(&secret.len()) && secret.bytes().all(|b| b.is_ascii_alphanumeric());
        if !hex || !fits || port.parse::<u16>().is_err() || address.len() > 300 {
            return Err(InvalidId::pairing_code(text));
        }
        let fingerprint = fingerprint.to_ascii_lowercase();
        Ok(Self { address: address.to_owned(), secret: secret.to_owned(), fingerprint })
    }
}

impl PairingCode {
    /// The endpoint's base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn codes_read_back_and_bad_ones_are_refused() {
        for text in [
            "192.168.1.5:8443/7Q2K9XWM4B7TRA3C/0123456789abcdef0123456789abcdef",
            "[fe80::1]:8443/7Q2K9XWM4B7TRA3C/0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(text.parse::<PairingCode>().map(|code| code.to_string()), Ok(text.to_string()));
        }
        for bad in [
            "",
            "host/7Q2K9XWM4B7TRA3C/0123456789abcdef0123456789abcdef",
            "host:8443/short/0123456789abcdef0123456789abcdef",
            "host:8443/7Q2K9XWM4B7TRA3C/0123",
            "host:8443/7Q2K9XWM4B7TRA3C/0123456789abcdef0123456789abcdef/more",
        ] {
            assert!(bad.parse::<PairingCode>().is_err(), "{bad}");
        }
    }
}
