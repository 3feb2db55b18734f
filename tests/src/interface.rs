//! The agent's HTTP interface, as an application on the same machine sees it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseId, Telemetry};

use crate::Scrape;

/// Longer than any `wait_ms` of a test; a stuck agent still ends the test.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(60);

/// An answer larger than this is not one.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A status and the text that came with it.
pub type Reply = (u16, String);

/// A client of one agent, for any number of threads.
#[derive(Debug, Clone)]
pub struct Interface {
    base: String,
    client: ureq::Agent,
}

impl Interface {
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { base: format!("http://{address}"), client: client(REQUEST_WAIT_MAX) }
    }

    /// Closes idle connections: a server that stops lingers for two seconds over one that its client keeps open.
    pub(crate) fn hang_up(&mut self) {
        self.client = client(REQUEST_WAIT_MAX);
    }

    /// `http://…`
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends one sample to `source`; `query` goes behind it, for example `&wait_ms=500`.
    pub fn post(&self, source: &str, query: &str, content_type: &str, body: &[u8]) -> Result<Answer> {
        let (status, text) = self.try_post(source, query, content_type, body)?;
        ensure!(status == 200, "POST to {source}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("not an answer: {text}"))
    }

    /// Like [`Self::post`], for samples that may be refused.
    pub fn try_post(&self, source: &str, query: &str, content_type: &str, body: &[u8]) -> Result<Reply> {
        let url = format!("{}/v1/samples?source={source}{query}", self.base);
        read(self.client.post(url).content_type(content_type).send(body)?)
    }

    /// What the agent now says about one sample.
    pub fn answer(&self, id: &CaseId) -> Result<Answer> {
        let (status, text) = self.get(&format!("/v1/samples/{id}"))?;
        ensure!(status == 200, "GET of {id}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("not an answer: {text}"))
    }

    pub fn status(&self) -> Result<Telemetry> {
        let (status, text) = self.get("/v1/status")?;
        ensure!(status == 200, "GET /v1/status: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// Its figures as a scraper sees them.
    pub fn scrape(&self) -> Result<Scrape> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "GET /metrics: {status} {text}");
        Ok(Scrape::new(text))
    }

    pub fn get(&self, path: &str) -> Result<Reply> {
        read(self.client.get(format!("{}{path}", self.base)).call()?)
    }

    /// An answer that is not text.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let mut answer = self.client.get(format!("{}{path}", self.base)).call()?;
        let bytes = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        let status = answer.status();
        ensure!(status == 200, "GET {path}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }

    pub fn post_json(&self, path: &str, body: &str) -> Result<Reply> {
        read(self.client.post(format!("{}{path}", self.base)).content_type("application/json").send(body)?)
    }
}

/// A client that hands out every status instead of making some of them errors.
pub(crate) fn client(wait_max: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(wait_max));
    config.build().new_agent()
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<Reply> {
    let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok((answer.status().as_u16(), text))
}
