//! Decides who the device is, when its certificate is renewed, and whether one that has run out still proves it.
//!
//! Reading certificates, keys and clocks is the shells' job; the cloud uses the same rules for its half. Dates are
//! milliseconds since 1970 and are compared with certificates only, never with anything that waits or ages.
//!
//! Invariant: a clock that is behind never makes a valid certificate look unborn, nor keeps a device from renewing.

use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use hedge_proto::DeviceId;

use crate::clock::doubled;

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from_ms: u64,
    pub to_ms: u64,
}

/// The date certificates are judged at: a clock that restarted in 1970 is not believed.
#[must_use]
pub fn judged_ms(wall_ms: u64, built_ms: u64, seen_ms: u64) -> u64 {
    wall_ms.max(built_ms).max(seen_ms)
}

/// A third of the life is left for a cloud that is away, a long cut, or a person who must look.
const LIFE_USED: u64 = 2;
const LIFE_PARTS: u64 = 3;

/// A broker out of reach for so long may be refusing a certificate that only this device's clock finds good.
pub const UNREACHABLE_MAX: Duration = Duration::from_secs(60);

/// A renewal that did not help is not repeated sooner: it was not the certificate.
pub const RENEWED_REST: Duration = Duration::from_secs(3600);

/// Whether to ask for a new certificate now. `unreachable`: how long the broker has not been reached.
#[must_use]
pub fn renewal_due(judged_ms: u64, validity: Validity, unreachable: Duration) -> bool {
    let life = validity.to_ms.saturating_sub(validity.from_ms);
    judged_ms >= validity.from_ms + life / LIFE_PARTS * LIFE_USED || unreachable >= UNREACHABLE_MAX
}

/// Whether a renewed certificate may take the place of `held`. One that was over before the held one began, or before this
/// program was built, was signed under a clock that stands in 1970, and would lock the device out for good.
#[must_use]
pub fn may_replace(held: Validity, renewed: Validity, built_ms: u64) -> bool {
    renewed.to_ms > judged_ms(0, built_ms, held.from_ms)
}

const RETRY_MIN: Duration = Duration::from_secs(30);
/// A renewal has at least days left; a fleet that comes back must not ask as one.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// The wait after the `failures`-th failed renewal in a row, counted from 1; doubled each time, half of it by chance.
#[must_use]
pub fn retry_wait(failures: u32, chance: u32) -> Duration {
    let whole = doubled(RETRY_MIN, failures.saturating_sub(1), RETRY_MAX);
    let share = u64::from(chance) * 512 / (u64::from(u32::MAX) + 1);
    let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis / 2 + millis / 2 * share / 512)
}

/// Whether a certificate that ran out at `to_ms` still proves who its key's holder is.
#[must_use]
pub fn in_grace(now_ms: u64, to_ms: u64, grace: Duration) -> bool {
    now_ms.saturating_sub(to_ms) <= u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)
}

/// Names no device may have: `cloud` is a level of the instances' topics, `hedge-cloud` is their identity.
pub const RESERVED: [&str; 2] = ["cloud", "hedge-cloud"];

/// Which part of the certificate names the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NamedBy {
    /// The configuration if it names one, which the certificate must bear out; else the certificate.
    #[default]
    Agreed,
    CommonName,
    SubjectAltName,
    /// The configuration or the host, whatever the certificate says: for brokers that look at nothing in it.
    Configuration,
}

/// What a certificate says about its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    pub common_name: Option<String>,
    /// The first DNS name, or the last part of the first URI.
    pub alt_name: Option<String>,
}

/// The device's id, or why there is none, in the words of the configuration file.
pub fn device_id(
    configured: Option<&DeviceId>,
    certificate: Option<&CertificateNames>,
    named_by: NamedBy,
    host: &str,
) -> Result<DeviceId, String> {
    let id = match (named_by, certificate) {
        (NamedBy::Configuration, _) | (_, None) => match configured {
            Some(device) => device.clone(),
            None => DeviceId::new(host).map_err(|error| {
                format!("the host name cannot be the device's name ({error}); set `device` in the configuration")
            })?,
        },
        (_, Some(names)) => named_by_certificate(configured, names, named_by)?,
    };
    if RESERVED.contains(&id.as_str()) {
        return Err(format!("`{id}` is a name of the cloud's; give the device another in `device` or its certificate"));
    }
    Ok(id)
}

fn named_by_certificate(
    configured: Option<&DeviceId>,
    names: &CertificateNames,
    named_by: NamedBy,
) -> Result<DeviceId, String> {
    let (common, alt) = (names.common_name.as_deref(), names.alt_name.as_deref());
    let (name, part) = match named_by {
        NamedBy::SubjectAltName => (alt, "a DNS or URI subject alternative name"),
        NamedBy::CommonName => (common, "a common name"),
        NamedBy::Agreed | NamedBy::Configuration => {
            let agrees = configured.map(ToString::to_string).is_some_and(|device| alt == Some(&device));
            (if agrees { alt } else { common.or(alt) }, "a name")
        }
    };
    let name = name.ok_or_else(|| {
        format!("certificate_file has not {part}; set `identity` in [broker] to where the device's name stands")
    })?;
    match configured {
        Some(device) if device.as_str() != name => Err(format!(
            "device = \"{device}\", but certificate_file names \"{name}\", and a broker that goes by certificates would \
             let it speak for nobody else; make them agree, or set identity = \"configuration\" in [broker] if this \
             broker does not"
        )),
        _ => DeviceId::new(name).map_err(|error| {
            format!("certificate_file: {error}; set `device`, and identity = \"configuration\" in [broker]")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn names(common: Option<&str>, alt: Option<&str>) -> CertificateNames {
        CertificateNames { common_name: common.map(Into::into), alt_name: alt.map(Into::into) }
    }

    #[track_caller]
    fn check(
        configured: Option<&str>,
        certificate: Option<CertificateNames>,
        by: NamedBy,
        expected: Result<&str, &str>,
    ) {
        let configured = configured.map(|name| DeviceId::new(name).expect("valid"));
        let id = device_id(configured.as_ref(), certificate.as_ref(), by, "host");
        match (id, expected) {
            (Ok(id), Ok(expected)) => assert_eq!(id.as_str(), expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "`{error}` does not say `{part}`"),
            (id, expected) => panic!("{id:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_device_is_who_its_configuration_and_certificate_agree_it_is() {
        let both = || Some(names(Some("cn"), Some("san")));
        check(None, None, NamedBy::Agreed, Ok("host"));
        check(Some("cfg"), None, NamedBy::Agreed, Ok("cfg"));
        check(None, both(), NamedBy::Agreed, Ok("cn"));
        check(None, Some(names(None, Some("san"))), NamedBy::Agreed, Ok("san"));
        check(Some("cn"), both(), NamedBy::Agreed, Ok("cn"));
        check(Some("san"), both(), NamedBy::Agreed, Ok("san"));
        check(None, both(), NamedBy::SubjectAltName, Ok("san"));
        check(Some("san"), both(), NamedBy::CommonName, Err("names \"cn\""));
        check(Some("cfg"), both(), NamedBy::Agreed, Err("identity = \"configuration\""));
        check(Some("cfg"), both(), NamedBy::Configuration, Ok("cfg"));
        check(None, Some(names(Some("cn"), None)), NamedBy::SubjectAltName, Err("has not a DNS or URI"));
        check(None, Some(names(Some("a b"), None)), NamedBy::Agreed, Err("`a b`"));
    }

    #[test]
    fn no_device_may_be_the_cloud() {
        check(Some("cloud"), None, NamedBy::Agreed, Err("is a name of the cloud's"));
        check(None, Some(names(Some("hedge-cloud"), None)), NamedBy::Agreed, Err("is a name of the cloud's"));
    }

    #[test]
    fn a_clock_that_restarted_in_1970_is_not_believed() {
        assert_eq!(judged_ms(10, 500, 700), 700);
        assert_eq!(judged_ms(900, 500, 700), 900);
    }

    #[test]
    fn a_certificate_is_renewed_while_a_third_of_its_life_is_left() {
        let validity = Validity { from_ms: 100 * DAY_MS, to_ms: 130 * DAY_MS };
        let due = |day| renewal_due(day * DAY_MS, validity, Duration::ZERO);
        assert!(!due(100) && !due(119) && due(120) && due(129) && due(131) && due(530));
        assert!(!due(50), "a clock behind the certificate's beginning says nothing");
        assert!(renewal_due(101 * DAY_MS, validity, UNREACHABLE_MAX), "the broker may be refusing it");
    }

    #[test]
    fn grace_ends_where_it_was_set_to_end() {
        let grace = Duration::from_millis(800 * DAY_MS);
        assert!(in_grace(10 * DAY_MS, 20 * DAY_MS, grace), "not run out at all");
        assert!(in_grace(420 * DAY_MS, 20 * DAY_MS, grace));
        assert!(in_grace(820 * DAY_MS, 20 * DAY_MS, grace));
        assert!(!in_grace(820 * DAY_MS + 1, 20 * DAY_MS, grace));
    }

    #[test]
    fn retries_grow_to_an_hour_and_are_never_at_once() {
        for failures in 1..100 {
            for chance in [0, u32::MAX / 2, u32::MAX] {
                let wait = retry_wait(failures, chance);
                assert!(wait >= RETRY_MIN / 2 && wait <= RETRY_MAX, "{failures} {wait:?}");
            }
        }
        assert!(retry_wait(20, 0) >= RETRY_MAX / 2);
    }
}
