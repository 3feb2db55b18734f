//! Posts answers to a URL as JSON, at least once, with `Idempotency-Key: id/revision`.

use std::path::Path;
use std::time::Duration;

use hedge_proto::Answer;
use reqwest::{Certificate, Client, StatusCode, Url, redirect};

use super::{SinkConfigError, SinkError};
use crate::daemon::config::WebhookConfig;

/// How long one delivery may take.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(10);

/// A URL that takes answers.
pub struct Webhook {
    client: Client,
    url: Url,
    token: Option<String>,
}

impl Webhook {
    /// Reads the files the configuration names. Nothing is sent.
    pub fn new(config: &WebhookConfig) -> Result<Self, SinkConfigError> {
        Self::build(config).map_err(SinkConfigError::Webhook)
    }

    fn build(config: &WebhookConfig) -> Result<Self, String> {
        let expected = || format!("`{}` is not an http:// or https:// URL", config.url);
        let url = Url::parse(&config.url).map_err(|_| expected())?;
        // A redirect would repeat the token to whoever it names.
        let mut builder = Client::builder().timeout(DELIVERY_WAIT_MAX).redirect(redirect::Policy::none());
        match (url.scheme(), &config.ca_file) {
            // Without this, a machine without any certificates could not even use plain HTTP.
            ("http", _) => builder = builder.tls_certs_only([]),
            ("https", None) => {}
            ("https", Some(path)) => {
                let pem = hedge_inference::read_pem(path).map_err(|error| unreadable(path, &error))?;
                let certificates = Certificate::from_pem_bundle(&pem)
                    .map_err(|error| format!("{} is not a PEM file of certificates: {error}", path.display()))?;
                builder = builder.tls_certs_only(certificates);
            }
            _ => return Err(expected()),
        }
        let client = builder.build().map_err(|error| {
            format!("TLS cannot be set up ({error}); install ca-certificates or give ca_file", error = plain(&error))
        })?;
        let token = match &config.token_file {
            None => None,
            Some(path) => {
                let text = hedge_inference::read_text(path).map_err(|error| unreadable(path, &error))?;
                Some(text.trim().to_owned())
            }
        };
        Ok(Self { client, url, token })
    }

    /// Delivered means that the other side said so with a 2xx status.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header("Idempotency-Key", answer.idempotency_key())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(hedge_proto::to_json(answer));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| SinkError::Retry(plain(&error)))?;
        judge(response.status())
    }
}

fn judge(status: StatusCode) -> Result<(), SinkError> {
    let text = format!("the webhook answered {status}");
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(SinkError::Retry(text)),
        status if status.is_client_error() || status.is_redirection() => Err(SinkError::Refused(text)),
        _ => Err(SinkError::Retry(text)),
    }
}

/// The error with its cause, without the URL, which may hold a secret.
fn plain(error: &reqwest::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut cause = None;
    while let Some(inner) = source {
        cause = Some(inner.to_string());
        source = inner.source();
    }
    let kind = if error.is_timeout() {
        format!("no answer within {} s", DELIVERY_WAIT_MAX.as_secs())
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the delivery failed".to_owned()
    };
    cause.map_or(kind.clone(), |cause| format!("{kind}: {cause}"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::extract::State;
    use axum::http::HeaderMap;

    use super::*;
    use crate::capture::testing::{answer, id};

    type Seen = Arc<Mutex<Vec<(HeaderMap, Answer)>>>;

    async fn server(status: u16) -> (String, Seen) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let seen = Seen::default();
        let take = async move |State(seen): State<Seen>, headers: HeaderMap, body: axum::body::Bytes| {
            seen.lock().expect("not poisoned").push((headers, serde_json::from_slice(&body).expect("an answer")));
            axum::http::StatusCode::from_u16(status).expect("a status")
        };
        let routes = axum::Router::new().route("/hook", axum::routing::post(take)).with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (url, seen)
    }

    fn config(url: &str) -> WebhookConfig {
        WebhookConfig { url: url.to_owned(), wanted: Default::default(), ca_file: None, token_file: None }
    }

    #[tokio::test]
    async fn an_answer_arrives_with_its_idempotency_key_and_token() {
        let (url, seen) = server(204).await;
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), "secret\n").expect("written");
        let mut sink =
            Webhook::new(&WebhookConfig { token_file: Some(token.path().into()), ..config(&url) }).expect("ok");
        let sent = answer(id(7), "cam", None, 2);
        assert_eq!(sink.send(&sent).await, Ok(()));
        let seen = seen.lock().expect("not poisoned");
        let (headers, received) = &seen[0];
        assert_eq!(received, &sent);
        assert_eq!(headers["idempotency-key"], sent.idempotency_key().as_str());
        assert_eq!(headers["authorization"], "Bearer secret");
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_trouble_is_not() {
        for (status, refused) in
            [(400, true), (404, true), (302, true), (408, false), (429, false), (500, false), (503, false)]
        {
            let (url, _) = server(status).await;
            let error = Webhook::new(&config(&url))
                .expect("ok")
                .send(&answer(id(1), "cam", None, 1))
                .await
                .expect_err("no 2xx");
            assert_eq!(matches!(error, SinkError::Refused(_)), refused, "{status}: {error}");
        }
        // Nobody listens at the discard port, and the system gives it to nobody.
        let mut sink = Webhook::new(&config("http://127.0.0.1:9/")).expect("ok");
        let error = sink.send(&answer(id(1), "cam", None, 1)).await.expect_err("nobody there");
        assert!(matches!(&error, SinkError::Retry(text) if text.starts_with("cannot connect")), "{error}");
    }

    #[test]
    fn what_is_no_web_address_is_refused_at_start() {
        for bad in ["", "hook", "ftp://host/", "mqtt://host"] {
            assert!(Webhook::new(&config(bad)).is_err(), "{bad}");
        }
    }
}
