//! Who may become a device, and who is one: small files beside the authority, so that the `ca` commands and a running
//! endpoint see the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hedge_proto::{DeviceId, Name};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::authority::{AuthorityError, at, hex, write};

/// The right to enrol one device, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Insists on this name, and lets a new key take it over.
    pub device: Option<DeviceId>,
    pub expires_ms: u64,
    /// SHA-256 of the key that used it: that device may ask again, should the answer not have arrived.
    pub used_by: Option<String>,
    /// The name that key enrolled under: it may ask again for this one only.
    #[serde(default)]
    pub used_for: Option<DeviceId>,
}

/// A device this authority has signed for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// SHA-256 of its public key.
    pub key: String,
    pub enrolled_ms: u64,
    pub renewed_ms: u64,
    /// Gets no further certificate.
    #[serde(default)]
    pub revoked: bool,
}

/// Letters and digits that nobody mistakes for one another.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// 16 characters of 32 are 80 bits: nobody guesses them before the claim ends.
const SECRET_CHARS: usize = 16;

/// Draws a claim's secret.
pub fn new_secret() -> Result<String, AuthorityError> {
    let mut bytes = [0; SECRET_CHARS];
    getrandom::fill(&mut bytes).map_err(|error| AuthorityError::Crypto(error.to_string()))?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

/// Claims and devices below the authority's folder.
#[derive(Debug, Clone)]
pub struct Registry {
    claims: PathBuf,
    devices: PathBuf,
}

impl Registry {
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let registry = Self { claims: dir.join("claims"), devices: dir.join("devices") };
        for dir in [&registry.claims, &registry.devices] {
            fs::create_dir_all(dir).map_err(|source| at(dir, source))?;
        }
        Ok(registry)
    }

    /// Only the secret's hash is kept.
    fn claim_file(&self, secret: &str) -> PathBuf {
        self.claims.join(format!("{}.json", hex(secret.as_bytes())))
    }

    fn device_file(&self, device: &Name) -> PathBuf {
        self.devices.join(format!("{device}.json"))
    }

    pub fn claim(&self, secret: &str) -> Result<Option<Claim>, AuthorityError> {
        read(&self.claim_file(secret))
    }

    pub fn put_claim(&self, secret: &str, claim: &Claim) -> Result<(), AuthorityError> {
        put(&self.claim_file(secret), claim)
    }

    /// Removes claims whose time is over.
    pub fn forget_old_claims(&self, now_ms: u64) -> Result<(), AuthorityError> {
        for entry in fs::read_dir(&self.claims).map_err(|source| at(&self.claims, source))?.flatten() {
            let path = entry.path();
            let over = matches!(read::<Claim>(&path), Ok(Some(claim)) if claim.expires_ms < now_ms);
            if over {
                fs::remove_file(&path).map_err(|source| at(&path, source))?;
            }
        }
        Ok(())
    }

    pub fn device(&self, device: &DeviceId) -> Result<Option<Device>, AuthorityError> {
        read(&self.device_file(device))
    }

    pub fn put_device(&self, name: &DeviceId, device: &Device) -> Result<(), AuthorityError> {
        put(&self.device_file(name), device)
    }

    /// Every device, by name.
    pub fn devices(&self) -> Result<Vec<(DeviceId, Device)>, AuthorityError> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.devices).map_err(|source| at(&self.devices, source))?.flatten() {
            let file = entry.file_name();
            let name = file.to_str().and_then(|name| DeviceId::new(name.strip_suffix(".json")?).ok());
            if let Some(name) = name
                && let Some(device) = self.device(&name)?
            {
                devices.push((name, device));
            }
        }
        devices.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(devices)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AuthorityError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(at(path, source)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| at(path, error.into()))
}

fn put(path: &Path, what: &impl Serialize) -> Result<(), AuthorityError> {
    let text = serde_json::to_string(what).map_err(|error| at(path, error.into()))?;
    write(path, &text, 0o600)
}
