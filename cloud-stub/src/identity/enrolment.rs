//! The enrolment endpoint: a claim and a key become a certificate, an old certificate and its key a new one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hedge_core::identity::{RESERVED, in_grace};
use hedge_proto::{
    DOCUMENT_BYTES_MAX, DeviceId, ENROL_PATH, EnrolRequest, Enrolled, NotEnrolled, RENEW_PATH, RenewRequest, from_json,
    to_json,
};
use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use x509_parser::time::ASN1Time;

use super::authority::{Authority, AuthorityError, DAY_MS, hex};
use super::registry::{Device, Registry};
use super::tls::common_name;
use crate::certificate_ms;

/// What the endpoint signs, and for how long.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Where the authority is.
    pub dir: PathBuf,
    /// Where devices find the broker.
    pub broker: String,
    pub certificate_days: u16,
    /// How long after its certificate's end a device may still renew it.
    pub grace_days: u16,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The device asked for what it may not have, or asked wrongly.
    #[error("{0}")]
    Device(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// One request at a time: a claim is used once.
struct Enroller {
    terms: Terms,
    one_at_a_time: Mutex<()>,
}

/// The two routes.
pub fn router(terms: Terms) -> Router {
    let enroller = Arc::new(Enroller { terms, one_at_a_time: Mutex::new(()) });
    Router::new()
        .route(
            ENROL_PATH,
            post(|State(enroller): State<Arc<Enroller>>, body: Bytes| serve(enroller, body, Enroller::enrol)),
        )
        .route(
            RENEW_PATH,
            post(|State(enroller): State<Arc<Enroller>>, body: Bytes| serve(enroller, body, Enroller::renew)),
        )
        .layer(DefaultBodyLimit::max(DOCUMENT_BYTES_MAX))
        .with_state(enroller)
}

async fn serve<T: DeserializeOwned + Send + 'static>(
    enroller: Arc<Enroller>,
    body: Bytes,
    act: fn(&Enroller, &T, u64) -> Result<Enrolled, Refused>,
) -> Response {
    let done = tokio::task::spawn_blocking(move || {
        let request = from_json(&body, DOCUMENT_BYTES_MAX).map_err(|error| Refused::Device(error.to_string()))?;
        let _turn = enroller.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        act(&enroller, &request, certificate_ms())
    });
    match done.await {
        Ok(Ok(enrolled)) => {
            tracing::info!(device = %enrolled.device, "signed a certificate");
            (StatusCode::OK, to_json(&enrolled)).into_response()
        }
        Ok(Err(Refused::Device(reason))) => {
            tracing::warn!("no certificate signed: {reason}");
            (StatusCode::FORBIDDEN, to_json(&NotEnrolled { error: reason })).into_response()
        }
        Ok(Err(Refused::Authority(error))) => failed(&error),
        Err(error) => failed(&error),
    }
}

/// The reason is for the log: a device can do nothing about it.
fn failed(error: &dyn std::fmt::Display) -> Response {
    tracing::error!("the authority cannot sign: {error}");
    let said = NotEnrolled { error: "the authority has a problem of its own; its log says which".to_owned() };
    (StatusCode::INTERNAL_SERVER_ERROR, to_json(&said)).into_response()
}

impl Enroller {
    fn enrol(&self, asked: &EnrolRequest, now_ms: u64) -> Result<Enrolled, Refused> {
        let (authority, registry) = (Authority::open(&self.terms.dir)?, Registry::open(&self.terms.dir)?);
        let request = read_request(&asked.request)?;
        let key = hex(request.public_key.der_bytes());
        let unknown = "this pairing code is not known or no longer holds; `hedge-cloud ca claim` makes another";
        let Some(mut claim) = registry.claim(&asked.secret)?.filter(|claim| claim.expires_ms >= now_ms) else {
            return Err(Refused::Device(unknown.to_owned()));
        };
        if claim.used_by.as_ref().is_some_and(|used_by| *used_by != key) {
            return Err(Refused::Device("this pairing code has been used by another device".to_owned()));
        }
        let device = claim.device.clone().or_else(|| asked.device.clone());
        let device =
            device.ok_or_else(|| Refused::Device("neither the claim nor the device gives a name".to_owned()))?;
        if RESERVED.contains(&device.as_str()) {
            return Err(Refused::Device(format!("`{device}` is a name of the cloud's; choose another with --device")));
        }
        let before = match (&claim.used_by, claim.used_for.take()) {
            // Used before names were written down.
            (Some(_), None) => {
                registry.devices()?.into_iter().find(|(_, known)| known.key == key).map(|(name, _)| name)
            }
            (_, before) => before,
        };
        if let Some(before) = before.filter(|before| *before != device) {
            return Err(Refused::Device(format!(
                "this pairing code has enrolled `{before}` and is worth one device; `hedge-cloud ca claim` makes \
                 another for `{device}`"
            )));
        }
        let known = registry.device(&device)?;
        if claim.used_by.is_some() && known.as_ref().is_some_and(|known| known.revoked) {
            return Err(Refused::Device(format!(
                "`{device}` is revoked; `hedge-cloud ca claim --device {device}` makes a code that lets it in again"
            )));
        }
        let taken = known.as_ref().is_some_and(|known| known.revoked || known.key != key);
        if taken && claim.device.is_none() {
            return Err(Refused::Device(format!(
                "there is a device `{device}` already; choose another name with --device, or let this one take its \
                 place with `hedge-cloud ca claim --device {device}`"
            )));
        }
        claim.used_by = Some(key.clone());
        claim.used_for = Some(device.clone());
        registry.put_claim(&asked.secret, &claim)?;
        let record = Device { key, enrolled_ms: now_ms, renewed_ms: now_ms, revoked: false };
        self.sign(&authority, &registry, &device, record, &request, now_ms)
    }

    fn renew(&self, asked: &RenewRequest, now_ms: u64) -> Result<Enrolled, Refused> {
        let (authority, registry) = (Authority::open(&self.terms.dir)?, Registry::open(&self.terms.dir)?);
        let request = read_request(&asked.request)?;
        let bad = |error: &dyn std::fmt::Display| Refused::Device(format!("`certificate`: {error}"));
        let der = CertificateDer::from_pem_slice(asked.certificate.as_bytes()).map_err(|error| bad(&error))?;
        let (_, held) = x509_parser::parse_x509_certificate(&der).map_err(|error| bad(&error))?;
        if !is_signed_by_any(&held, &authority.roots()?) {
            return Err(Refused::Device(
                "this certificate is not from this authority; pair the device again".to_owned(),
            ));
        }
        let device = common_name(&der).ok_or_else(|| bad(&"it names no device"))?;
        let date_ms = |date: ASN1Time| u64::try_from(date.timestamp()).unwrap_or(0) * 1000;
        // It is this authority's own, so its beginning is a date that has been.
        let now_ms = now_ms.max(date_ms(held.validity().not_before));
        let key = hex(request.public_key.der_bytes());
        if hex(&held.public_key().subject_public_key.data) != key {
            return Err(Refused::Device("`request` is not signed with the key of `certificate`".to_owned()));
        }
        let again = format!("pair it again with `hedge-cloud ca claim --device {device}`");
        let Some(mut record) = registry.device(&device)?.filter(|record| record.key == key && !record.revoked) else {
            return Err(Refused::Device(format!("`{device}` with this key is revoked or not known; {again}")));
        };
        let ended_ms = date_ms(held.validity().not_after);
        let grace_days = u64::from(self.terms.grace_days);
        if !in_grace(now_ms, ended_ms, Duration::from_millis(grace_days * DAY_MS)) {
            let days = (now_ms - ended_ms) / DAY_MS;
            return Err(Refused::Device(format!(
                "the certificate of `{device}` ran out {days} days ago, more than the {grace_days} of grace; {again}"
            )));
        }
        record.renewed_ms = now_ms;
        self.sign(&authority, &registry, &device, record, &request, now_ms)
    }

    fn sign(
        &self,
        authority: &Authority,
        registry: &Registry,
        device: &DeviceId,
        record: Device,
        request: &CertificateSigningRequestParams,
        now_ms: u64,
    ) -> Result<Enrolled, Refused> {
        let days = self.terms.certificate_days.into();
        // Nothing of the request but its key: the rest is the authority's to say.
        let certificate = authority.sign_device(device, &request.public_key, now_ms, days)?;
        registry.put_device(device, &record)?;
        let (authorities, broker) = (authority.bundle()?, self.terms.broker.clone());
        Ok(Enrolled { device: device.clone(), certificate, authorities, broker })
    }
}

/// Reading a request checks that its sender holds the key.
fn read_request(pem: &str) -> Result<CertificateSigningRequestParams, Refused> {
    CertificateSigningRequestParams::from_pem(pem).map_err(|error| Refused::Device(format!("`request`: {error}")))
}

fn is_signed_by_any(held: &x509_parser::certificate::X509Certificate<'_>, roots: &[CertificateDer<'_>]) -> bool {
    roots.iter().any(|root| {
        x509_parser::parse_x509_certificate(root).is_ok_and(|(_, root)| {
            held.issuer() == root.subject() && held.verify_signature(Some(root.public_key())).is_ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::authority::BACKDATED_MS;
    use crate::identity::{Claim, new_secret};
    use rcgen::{CertificateParams, KeyPair};

    struct Endpoint {
        enroller: Enroller,
        registry: Registry,
        _dir: tempfile::TempDir,
    }

    impl Endpoint {
        fn new() -> Self {
            drop(rustls::crypto::ring::default_provider().install_default());
            let dir = tempfile::tempdir().expect("a directory");
            Authority::init(dir.path(), certificate_ms()).expect("an authority");
            let terms = Terms {
                dir: dir.path().to_owned(),
                broker: "mqtts://broker:8883".to_owned(),
                certificate_days: 30,
                grace_days: 30,
            };
            let registry = Registry::open(dir.path()).expect("a registry");
            Self { enroller: Enroller { terms, one_at_a_time: Mutex::new(()) }, registry, _dir: dir }
        }

        fn claim(&self, device: Option<&str>) -> String {
            let secret = new_secret().expect("a secret");
            let device = device.map(|name| DeviceId::new(name).expect("valid"));
            let claim = Claim { device, expires_ms: certificate_ms() + 60_000, used_by: None, used_for: None };
            self.registry.put_claim(&secret, &claim).expect("written");
            secret
        }

        /// The name that was enrolled, or why none was.
        fn enrol(&self, secret: &str, name: &str, key: &KeyPair) -> Result<String, String> {
            let request = CertificateParams::default().serialize_request(key).expect("a request");
            let asked = EnrolRequest {
                secret: secret.to_owned(),
                device: Some(DeviceId::new(name).expect("valid")),
                request: request.pem().expect("text"),
            };
            self.enroller
                .enrol(&asked, certificate_ms())
                .map(|done| done.device.to_string())
                .map_err(|error| error.to_string())
        }

        fn names(&self) -> Vec<String> {
            self.registry.devices().expect("read").into_iter().map(|(name, _)| name.to_string()).collect()
        }
    }

    #[test]
    fn a_pairing_code_is_worth_one_device_whatever_names_its_key_asks_for() {
        let (endpoint, key) = (Endpoint::new(), KeyPair::generate().expect("a key"));
        let secret = endpoint.claim(None);
        assert_eq!(endpoint.enrol(&secret, "d9", &key).as_deref(), Ok("d9"));
        let refused = endpoint.enrol(&secret, "d10", &key).expect_err("refused");
        assert!(refused.contains("`d9`") && refused.contains("ca claim"), "{refused}");
        // The answer may not have arrived.
        assert_eq!(endpoint.enrol(&secret, "d9", &key).as_deref(), Ok("d9"));
        let other = KeyPair::generate().expect("a key");
        assert!(endpoint.enrol(&secret, "d9", &other).is_err());
        assert_eq!(endpoint.names(), ["d9"]);
        // Also with a code that was used by a version that did not write the name down.
        let mut old = endpoint.registry.claim(&secret).expect("read").expect("there");
        old.used_for = None;
        endpoint.registry.put_claim(&secret, &old).expect("written");
        assert!(endpoint.enrol(&secret, "d11", &key).is_err());
        assert_eq!(endpoint.enrol(&secret, "d9", &key).as_deref(), Ok("d9"));
        assert_eq!(endpoint.names(), ["d9"]);
    }

    #[test]
    fn an_authority_whose_clock_stands_in_1970_signs_nothing_that_is_over_already() {
        let (endpoint, key) = (Endpoint::new(), KeyPair::generate().expect("a key"));
        let request = CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("text");
        let ends_ms = |pem: &str| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
            let (_, held) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
            u64::try_from(held.validity().not_after.timestamp()).expect("later") * 1000
        };
        let (now_ms, in_1970_ms) = (certificate_ms(), 60_000);
        let (secret, device) = (endpoint.claim(None), DeviceId::new("d1").ok());
        let asked = EnrolRequest { secret, device, request: request.clone() };
        let first = endpoint.enroller.enrol(&asked, in_1970_ms).expect("enrolled").certificate;
        assert!(ends_ms(&first) > now_ms, "the device's is over");
        let later_ms = now_ms + 20 * DAY_MS;
        let asked = RenewRequest { certificate: first, request: request.clone() };
        let second = endpoint.enroller.renew(&asked, later_ms).expect("renewed").certificate;
        let asked = RenewRequest { certificate: second.clone(), request };
        let third = endpoint.enroller.renew(&asked, in_1970_ms).expect("renewed").certificate;
        assert!(ends_ms(&third) >= ends_ms(&second) - BACKDATED_MS, "a renewal takes time away");
        let authority = Authority::open(&endpoint.enroller.terms.dir).expect("an authority");
        let server = authority.issue_server(&["cloud.example".to_owned()], in_1970_ms).expect("issued").certificate;
        assert!(ends_ms(&server) > now_ms, "the server's is over");
    }

    #[test]
    fn a_used_code_does_not_let_a_revoked_device_back_in() {
        let (endpoint, key) = (Endpoint::new(), KeyPair::generate().expect("a key"));
        let secret = endpoint.claim(Some("d1"));
        assert_eq!(endpoint.enrol(&secret, "other", &key).as_deref(), Ok("d1"));
        let name = DeviceId::new("d1").expect("valid");
        let mut known = endpoint.registry.device(&name).expect("read").expect("there");
        known.revoked = true;
        endpoint.registry.put_device(&name, &known).expect("written");
        assert!(endpoint.enrol(&secret, "d1", &key).expect_err("refused").contains("revoked"));
        let again = endpoint.claim(Some("d1"));
        assert_eq!(endpoint.enrol(&again, "d1", &key).as_deref(), Ok("d1"));
    }
}
