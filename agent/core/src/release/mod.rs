//! Decides which signed model bundle a device may take: whose signatures count, which version is acceptable, and until when.
//!
//! ```text
//!  root (n of m keys kept offline) ──lists──▶ release keys ──sign──▶ list of bundles ──pins──▶ a bundle's signature
//!     only its next version,                      any change of them      versions only grow,       which names the
//!     signed by the old and the new               forgets the list        until its date            sum of each file
//! ```
//! Roles and rules are The Update Framework's; docs/decisions.md says what is left out. Checking a signature, reading
//! clocks and files is the shell's: it says here which keys have signed, and no document is parsed before enough have.
//!
//! Invariant: whatever is refused changes nothing, so a device that trusts a document goes on trusting it.

pub mod comparison;
pub mod delivery;
pub mod shelf;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use hedge_proto::{DeviceId, Digest, Name, from_hex};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Moment;
use crate::identity::judged_ms;

/// The most keys of one role, and the most signatures that are looked at: each costs a check of every other.
pub const KEYS_MAX: usize = 16;

/// The most bundles of one list.
pub const BUNDLES_MAX: usize = 4096;

/// The largest list, and so the largest document: [`BUNDLES_MAX`] bundles of 256 bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 1024 * 1024;

/// `NAME/VERSION`, as people name a bundle.
pub fn name_and_version(text: &str) -> Result<(Name, Name), String> {
    let (name, version) = text.split_once('/').ok_or("write NAME/VERSION")?;
    let part = |text: &str| Name::new(text).map_err(|error| error.to_string());
    Ok((part(name)?, part(version)?))
}

/// A key of ECDSA over P-256: its uncompressed point. Hexadecimal in documents, so that a key can be written in one
/// way only and never counts twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 65]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let point = from_hex(&text).filter(|point| point[0] == 4);
        let wrong = || serde::de::Error::custom("a key is 130 hexadecimal digits that begin with 04");
        point.map(Self).ok_or_else(wrong)
    }
}

/// Keys, of which so many must have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub threshold: usize,
    pub keys: BTreeSet<PublicKey>,
}

/// Whose signatures count. Signed by its own keys and by those of the root before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub version: u64,
    /// Milliseconds since 1970, as every date here.
    pub issued_ms: u64,
    pub expires_ms: u64,
    pub root: Role,
    pub release: Role,
}

/// Which bundles there are. Signed by release keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub version: u64,
    pub issued_ms: u64,
    pub expires_ms: u64,
    pub bundles: Vec<Entry>,
}

/// One bundle of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: Name,
    pub version: Name,
    /// Of the file with the bundle's signature, which names every other file and its sum.
    pub signature: Digest,
    /// What all its files have together: more is not fetched.
    pub bytes: u64,
    /// Which devices may take it; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<BTreeSet<DeviceId>>,
}

/// Why a document or a bundle is not taken. What was trusted before still is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{what}: {valid} of {threshold} signatures needed are by keys that count now")]
    TooFewSignatures { what: &'static str, valid: usize, threshold: usize },
    #[error("{what}: {reason}")]
    Malformed { what: &'static str, reason: String },
    #[error("the root has version {found} where {expected} comes next")]
    RootOutOfTurn { found: u64, expected: u64 },
    #[error("the list has version {found}, older than {known}, which this device has seen")]
    Rollback { found: u64, known: u64 },
    #[error("two lists have version {version} and say different things; publish again")]
    TwoLists { version: u64 },
    #[error("{what} has run out; publish a newer one, or put the device's clock right")]
    Expired { what: &'static str },
    #[error("there is no list of bundles yet")]
    NoList,
    #[error("the list has no bundle {name}/{version}")]
    NotListed { name: Name, version: Name },
    #[error("the bundle {name}/{version} is not for the device {device}")]
    WrongDevice { name: Name, version: Name, device: DeviceId },
}

/// What clocks say. None is believed alone.
#[derive(Debug, Clone, Copy)]
pub struct Dates {
    pub wall_ms: u64,
    pub built_ms: u64,
    /// The beginning of the device's certificate, if it has one.
    pub certificate_ms: u64,
    /// By the powered clock, which nothing sets.
    pub powered: Moment,
}

const ROOT: &str = "the root";
const LIST: &str = "the list of bundles";

impl Role {
    /// Whether enough of the role's keys are among `signers`.
    pub fn met_by(&self, what: &'static str, signers: &BTreeSet<PublicKey>) -> Result<(), Refused> {
        let valid = self.keys.intersection(signers).count();
        if self.threshold == 0 || valid < self.threshold {
            return Err(Refused::TooFewSignatures { what, valid, threshold: self.threshold.max(1) });
        }
        Ok(())
    }

    fn check(&self, what: &'static str, role: &str) -> Result<(), Refused> {
        if !(1..=self.keys.len()).contains(&self.threshold) || self.keys.len() > KEYS_MAX {
            let (threshold, keys) = (self.threshold, self.keys.len());
            return Err(Refused::Malformed {
                what,
                reason: format!(
                    "`{role}` wants {threshold} signatures of {keys} keys; a role has 1 to {KEYS_MAX} keys and wants 1 or more"
                ),
            });
        }
        Ok(())
    }
}

impl Root {
    /// Whether it can be meant.
    pub fn check(&self) -> Result<(), Refused> {
        self.root.check(ROOT, "root")?;
        self.release.check(ROOT, "release")?;
        check_dates(ROOT, self.issued_ms, self.expires_ms)
    }
}

impl List {
    /// Whether it can be meant.
    pub fn check(&self) -> Result<(), Refused> {
        check_dates(LIST, self.issued_ms, self.expires_ms)?;
        let malformed = |reason| Err(Refused::Malformed { what: LIST, reason });
        if self.bundles.len() > BUNDLES_MAX {
            return malformed(format!("it has {} bundles, more than {BUNDLES_MAX}", self.bundles.len()));
        }
        let mut seen = BTreeSet::new();
        match self.bundles.iter().find(|entry| !seen.insert((&entry.name, &entry.version))) {
            Some(Entry { name, version, .. }) => malformed(format!("it has the bundle {name}/{version} twice")),
            None => Ok(()),
        }
    }
}

fn check_dates(what: &'static str, issued_ms: u64, expires_ms: u64) -> Result<(), Refused> {
    if issued_ms >= expires_ms {
        return Err(Refused::Malformed { what, reason: "it runs out before it begins".to_string() });
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(payload).map_err(|error| Refused::Malformed { what, reason: error.to_string() })
}

/// What a device trusts; kept over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    root: Root,
    #[serde(default)]
    known: Option<Known>,
}

/// The newest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    list: List,
    /// Powered milliseconds when this version was first seen.
    since_ms: u64,
}

impl Trusted {
    /// From the root that was given to the device by hand: nothing else says whose it is, so it is believed.
    pub fn begin(root: Root) -> Result<Self, Refused> {
        root.check()?;
        Ok(Self { root, known: None })
    }

    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The newest list, however old.
    #[must_use]
    pub fn list(&self) -> Option<&List> {
        self.known.as_ref().map(|known| &known.list)
    }

    /// Takes the next root. `signers` says which of the keys it is given have signed `payload`.
    ///
    /// A changed release role forgets the list: whoever stole a release key may have published a list of the highest
    /// version there is, and no list would ever be newer.
    pub fn next_root(
        &mut self,
        payload: &[u8],
        signers: impl Fn(&BTreeSet<PublicKey>) -> BTreeSet<PublicKey>,
    ) -> Result<(), Refused> {
        self.root.root.met_by(ROOT, &signers(&self.root.root.keys))?;
        let root: Root = parse(ROOT, payload)?;
        root.check()?;
        let expected = self.root.version.saturating_add(1);
        if root.version != expected {
            return Err(Refused::RootOutOfTurn { found: root.version, expected });
        }
        root.root.met_by(ROOT, &signers(&root.root.keys))?;
        if root.release != self.root.release {
            self.known = None;
        }
        self.root = root;
        Ok(())
    }

    /// Takes a list that is no older than the one that is known.
    pub fn next_list(
        &mut self,
        payload: &[u8],
        signers: impl Fn(&BTreeSet<PublicKey>) -> BTreeSet<PublicKey>,
        dates: Dates,
    ) -> Result<(), Refused> {
        self.root.release.met_by(LIST, &signers(&self.root.release.keys))?;
        let list: List = parse(LIST, payload)?;
        list.check()?;
        let since_ms = match &self.known {
            Some(known) if list.version < known.list.version => {
                return Err(Refused::Rollback { found: list.version, known: known.list.version });
            }
            Some(known) if list.version == known.list.version && list != known.list => {
                return Err(Refused::TwoLists { version: list.version });
            }
            Some(known) if list == known.list => known.since_ms.min(dates.powered.0),
            _ => dates.powered.0,
        };
        let next = Self { root: self.root.clone(), known: Some(Known { list, since_ms }) };
        next.fresh(dates)?;
        *self = next;
        Ok(())
    }

    /// The list, if neither it nor the root has run out.
    ///
    /// A device whose clock stands in the past goes by the latest date that anything it trusts has told, and by how
    /// long it has been powered since it first saw the list.
    fn fresh(&self, dates: Dates) -> Result<&List, Refused> {
        let Known { list, since_ms } = self.known.as_ref().ok_or(Refused::NoList)?;
        let told_ms = self.root.issued_ms.max(list.issued_ms).max(dates.certificate_ms);
        let now_ms = judged_ms(dates.wall_ms, dates.built_ms, told_ms);
        if now_ms >= self.root.expires_ms {
            return Err(Refused::Expired { what: ROOT });
        }
        let powered_ms = dates.powered.0.saturating_sub(*since_ms);
        if now_ms >= list.expires_ms || powered_ms >= list.expires_ms - list.issued_ms {
            return Err(Refused::Expired { what: LIST });
        }
        Ok(list)
    }

    /// The bundle of this name and version, if `device` may take it now.
    pub fn entry(&self, name: &Name, version: &Name, device: &DeviceId, dates: Dates) -> Result<&Entry, Refused> {
        let list = self.fresh(dates)?;
        let found = list.bundles.iter().find(|entry| entry.name == *name && entry.version == *version);
        let (name, version) = (name.clone(), version.clone());
        let Some(entry) = found else { return Err(Refused::NotListed { name, version }) };
        if entry.devices.as_ref().is_some_and(|devices| !devices.contains(device)) {
            return Err(Refused::WrongDevice { name, version, device: device.clone() });
        }
        Ok(entry)
    }
}
