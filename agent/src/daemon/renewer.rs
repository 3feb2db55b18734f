//! Keeps the certificate fresh while the agent runs. Core decides when; the next dial uses what is written here.

use std::path::PathBuf;
use std::time::Duration;

use hedge_core::identity::{RENEWED_REST, renewal_due, retry_wait};
use hedge_proto::{Enrolled, LinkState};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::link::LinkView;
use hedge_identity::{Certificate, CertificateClock, Held, renew, write_secret};

/// How often it is looked whether a renewal is due.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What is renewed, and where.
pub(super) struct Renewer {
    pub(super) url: String,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) authorities: PathBuf,
    pub(super) link: watch::Receiver<LinkView>,
}

impl Renewer {
    /// Looks, asks and writes until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        let mut offline_since = Some(Instant::now());
        loop {
            let (state, closed) = {
                let view = self.link.borrow_and_update();
                (view.state, view.closed)
            };
            let offline = matches!(state, LinkState::Offline | LinkState::Connecting);
            offline_since = if offline { offline_since.or_else(|| Some(Instant::now())) } else { None };
            let unreachable = offline_since.map_or(Duration::ZERO, |since| since.elapsed());
            let looked = if closed { Ok(None) } else { self.renew_if_due(unreachable).await };
            let wait = match looked {
                Ok(None) => LOOK_EVERY,
                Ok(Some(to_ms)) => {
                    tracing::info!(to_ms, "the device's certificate has been renewed");
                    (failures, offline_since) = (0, offline_since.map(|_| Instant::now() + RENEWED_REST));
                    LOOK_EVERY
                }
                Err(reason) => {
                    failures += 1;
                    let wait = retry_wait(failures, getrandom::u32().unwrap_or(0));
                    tracing::warn!(retry_s = wait.as_secs(), "the device's certificate cannot be renewed: {reason}");
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The end of the new certificate, if there is one.
    async fn renew_if_due(&self, unreachable: Duration) -> Result<Option<u64>, String> {
        let held = Certificate::read(&self.certificate).map_err(|error| self.said(&error))?;
        if !renewal_due(CertificateClock::since(Some(&held)).now_ms(), held.validity, unreachable) {
            return Ok(None);
        }
        let read =
            |path: &PathBuf| hedge_inference::read_text(path).map_err(|error| format!("{}: {error}", path.display()));
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let held = Held { url: &self.url, certificate: &certificate, key: &key, authorities: &self.authorities };
        let enrolled = renew(&held).await.map_err(|error| error.to_string())?;
        self.write(&enrolled).map(Some)
    }

    /// Authorities first: a new certificate may come from one the broker's will come from, too.
    fn write(&self, enrolled: &Enrolled) -> Result<u64, String> {
        write_secret(&self.authorities, &enrolled.authorities)
            .and_then(|()| write_secret(&self.certificate, &enrolled.certificate))
            .map_err(|error| self.said(&error))?;
        Certificate::read(&self.certificate).map(|new| new.validity.to_ms).map_err(|error| self.said(&error))
    }

    fn said(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.certificate.display())
    }
}
