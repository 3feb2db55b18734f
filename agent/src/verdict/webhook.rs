//! Posts answers to a URL as JSON, at least once, with `Idempotency-Key: id/revision`.

use std::time::Duration;

use hedge_identity::http_client;
use hedge_proto::{Answer, root_cause};
use reqwest::header::HeaderValue;
use reqwest::{Client, StatusCode, Url};

use super::SinkError;
use hedge_config::WebhookConfig;

/// How long one delivery may take.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(10);

/// A URL that takes answers.
pub struct Webhook {
    config: WebhookConfig,
    /// Made from what the configuration names; anew after a refusal, because a token may have been changed.
    open: Option<Open>,
}

struct Open {
    client: Client,
    url: Url,
    token: Option<String>,
}

impl Webhook {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(config: WebhookConfig) -> Self {
        Self { config, open: None }
    }

    #[cfg(test)]
    pub(super) fn with_token(mut self, token: &std::path::Path) -> Self {
        self.config.token_file = Some(token.to_owned());
        self
    }

    /// Reads the files the configuration names. Nothing is sent.
    pub fn look(&mut self) -> Result<(), String> {
        self.open().map(drop)
    }

    fn open(&mut self) -> Result<&Open, String> {
        match self.open.take() {
            Some(open) => Ok(self.open.insert(open)),
            None => Ok(self.open.insert(Open::new(&self.config)?)),
        }
    }

    /// Delivered means that the other side said so with a 2xx status.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        let open = self.open().map_err(SinkError::Away)?;
        let mut request = open
            .client
            .post(open.url.clone())
            .header("Idempotency-Key", answer.idempotency_key())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(hedge_proto::to_json(answer));
        if let Some(token) = &open.token {
            request = request.bearer_auth(token);
        }
        let outcome = match request.send().await {
            Ok(response) => judge(response.status(), response.headers().get(reqwest::header::LOCATION)),
            Err(error) => Err(SinkError::Away(plain(&error))),
        };
        if matches!(outcome, Err(SinkError::Refused(_))) || outcome.is_err() && self.config.ca_file.is_some() {
            self.open = None;
        }
        outcome
    }
}

impl Open {
    fn new(config: &WebhookConfig) -> Result<Self, String> {
        let expected = || format!("url = \"{}\" is not http://… or https://…; put it right and reload", config.url);
        let url = Url::parse(&config.url).map_err(|_| expected())?;
        let ca_file = match url.scheme() {
            "http" => None,
            "https" => config.ca_file.as_deref(),
            _ => return Err(expected()),
        };
        let client = http_client(url.as_str(), ca_file).map_err(|why| format!("ca_file = {why}"))?;
        let client = client.timeout(DELIVERY_WAIT_MAX).build().map_err(|error| {
            format!("TLS cannot be set up ({error}); install ca-certificates or give ca_file", error = plain(&error))
        })?;
        let token = config.token_file.as_deref().map(|path| {
            let why = |error| format!("token_file = {}: {error}", path.display());
            hedge_inference::read_secret(path).map_err(why)
        });
        Ok(Self { client, url, token: token.transpose()? })
    }
}

/// Busy or broken servers are away. Every other refusal may be of this answer alone, or of all: time will tell.
fn judge(status: StatusCode, location: Option<&HeaderValue>) -> Result<(), SinkError> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(SinkError::Away(format!("the webhook answered {status}"))),
        status if status.is_redirection() => {
            let elsewhere = location.and_then(|location| location.to_str().ok()).map(without_secrets);
            let elsewhere = elsewhere.map(|url| format!(" and names {url}")).unwrap_or_default();
            Err(SinkError::Refused(format!(
                "the webhook answered {status}{elsewhere}; redirects are not followed, so give the final address as `url`"
            )))
        }
        status => Err(SinkError::Refused(format!("the webhook answered {status}"))),
    }
}

/// Of an address what says where it leads.
fn without_secrets(location: &str) -> String {
    location.split(['?', '#']).next().unwrap_or_default().chars().take(200).collect()
}

/// The error with its cause, without the URL, which may hold a secret.
fn plain(error: &reqwest::Error) -> String {
    let cause = root_cause(error);
    let kind = if error.is_timeout() {
        format!("no answer within {} s", DELIVERY_WAIT_MAX.as_secs())
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the delivery failed".to_owned()
    };
    cause.map_or(kind.clone(), |cause| format!("{kind}: {cause}"))
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
        let mut sink = Webhook::new(WebhookConfig { token_file: Some(token.path().into()), ..config(&url) });
        let sent = answer(id(7), "cam", None, 2);
        assert_eq!(sink.send(&sent).await, Ok(()));
        let seen = seen.lock().expect("not poisoned");
        let (headers, received) = &seen[0];
        assert_eq!(received, &sent);
        assert_eq!(headers["idempotency-key"], sent.idempotency_key().as_str());
        assert_eq!(headers["authorization"], "Bearer secret");
    }

    #[tokio::test]
    async fn a_refusal_may_be_of_one_answer_and_trouble_is_of_all() {
        for (status, refused) in [
            (302, true),
            (308, true),
            (400, true),
            (401, true),
            (403, true),
            (404, true),
            (410, true),
            (422, true),
            (500, true),
            (408, false),
            (429, false),
            (502, false),
            (503, false),
            (504, false),
        ] {
            let (url, _) = server(status).await;
            let error = Webhook::new(config(&url)).send(&answer(id(1), "cam", None, 1)).await.expect_err("no 2xx");
            assert_eq!(matches!(error, SinkError::Refused(_)), refused, "{status}: {error}");
        }
        // Nobody listens at the discard port, and the system gives it to nobody.
        let mut sink = Webhook::new(config("http://127.0.0.1:9/"));
        let error = sink.send(&answer(id(1), "cam", None, 1)).await.expect_err("nobody there");
        assert!(matches!(&error, SinkError::Away(text) if text.starts_with("cannot connect")), "{error}");
    }

    #[tokio::test]
    async fn a_token_that_was_changed_is_read_after_a_refusal() {
        let (url, seen) = server(401).await;
        let token = tempfile::NamedTempFile::new().expect("a file");
        let mut sink = Webhook::new(WebhookConfig { token_file: Some(token.path().into()), ..config(&url) });
        for word in ["old", "new"] {
            std::fs::write(token.path(), word).expect("written");
            assert!(matches!(sink.send(&answer(id(1), "cam", None, 1)).await, Err(SinkError::Refused(_))));
        }
        let seen = seen.lock().expect("not poisoned");
        let shown: Vec<_> = seen.iter().map(|(headers, _)| headers["authorization"].clone()).collect();
        assert_eq!(shown, ["Bearer old", "Bearer new"]);
    }

    #[test]
    fn what_is_missing_is_named_by_its_field_and_used_once_it_is_there() {
        drop(rustls::crypto::ring::default_provider().install_default());
        for bad in ["", "hook", "ftp://host/", "mqtt://host", "127.0.0.1:9000/hook"] {
            let error = Webhook::new(config(bad)).look().expect_err(bad);
            assert!(error.contains("url = ") && error.contains("http://"), "{error}");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("token");
        let mut sink = Webhook::new(WebhookConfig { token_file: Some(file.clone()), ..config("http://127.0.0.1:9/") });
        let error = sink.look().expect_err("missing");
        assert!(error.contains(&format!("token_file = {}", file.display())), "{error}");
        std::fs::write(&file, [0xff, 0xfe, 0xfd]).expect("written");
        assert!(sink.look().expect_err("no text").contains("save it as UTF-8"));
        std::fs::write(&file, "secret").expect("written");
        sink.look().expect("it is there");
        let ca_file = Some(dir.path().join("nope"));
        let mut sink = Webhook::new(WebhookConfig { ca_file, ..config("https://127.0.0.1:9/") });
        assert!(sink.look().expect_err("missing").contains("ca_file = "));
    }
}
