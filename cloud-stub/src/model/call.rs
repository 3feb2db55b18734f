//! One HTTP call to an answerer, and what every way in which it can end means.
//!
//! | what happens | what it means |
//! |---|---|
//! | 2xx with a body | up to the kind of answerer |
//! | no connection, 502, 503, 401, 402, 403, 404, a redirect | down |
//! | cut off, longer than is read, or not within the deadline, 500, 504 | down, and it had the case |
//! | 429, 529, 403 and 5xx with Retry-After, 5xx with words of being busy | retry later |
//! | another 4xx | no verdict for this case; down while nothing was ever answered: then the configuration is suspected |
//! | a 4xx with words of a content policy, 413 | no verdict for this case |

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hedge_identity::{http_beginning, http_body, http_client};
use hedge_proto::{TRACEPARENT, TraceContext, root_cause};
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};

use super::ModelFailure;
use crate::answerers::{AnswererConfig, Kind};
use crate::wall_ms;

/// The longest answer that is read: scores of a detector as JSON numbers come to a few MiB; a label may come with all that
/// was thought before it, or with a picture in which it was drawn.
fn answer_bytes_max(kind: Kind) -> usize {
    match kind {
        Kind::Chat => 1024 * 1024,
        Kind::Http => 8 * 1024 * 1024,
        Kind::OpenInference | Kind::Onnx | Kind::Person => 64 * 1024 * 1024,
    }
}

/// How much is read of what it says to explain a refusal.
pub(super) const WORDS_BYTES_MAX: usize = 64 * 1024;

/// How much of an answer is quoted.
const QUOTE_CHARS_MAX: usize = 200;

/// The longest wait that is asked for and kept to.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

tokio::task_local! {
    /// The span of the call that a task makes, for whoever is called. Not an argument, because what an answerer is asked
    /// does not depend on it.
    pub(super) static SPAN: Option<TraceContext>;
}

/// The way to one answerer.
pub(super) struct Caller {
    client: Client,
    pub(super) url: String,
    answer_bytes_max: usize,
    headers: HeaderMap,
    pub(super) deadline: Duration,
    /// It has answered a case.
    pub(super) is_proven: AtomicBool,
}

/// An answer with a status of 2xx.
pub(super) struct Answered {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Caller {
    /// Reads the files that the configuration names; nothing is dialled. What is wrong names its field.
    pub(super) fn new(config: &AnswererConfig) -> Result<Self, String> {
        let url = config.url.clone().unwrap_or_default();
        let client = http_client(&url, config.ca_file.as_deref()).map_err(|why| format!("ca_file = {why}"))?;
        let client = client.connect_timeout(Duration::from_secs(10)).build();
        let client = client.map_err(|error| format!("TLS cannot be set up: {}", plain(&error, Duration::ZERO)))?;
        let mut headers = HeaderMap::new();
        for (name, value) in config.headers.iter().flatten() {
            let read = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            let (name, value) = read.ok_or_else(|| format!("headers.{name} is no HTTP header"))?;
            headers.insert(name, value);
        }
        if let Some(path) = &config.token_file {
            let why = |error: String| format!("token_file = {}: {error}", path.display());
            let token = hedge_inference::read_secret(path).map_err(|error| why(error.to_string()))?;
            if token.is_empty() {
                return Err(why("it is empty".to_owned()));
            }
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| why("it holds more than one line, or what no HTTP header may hold".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let (is_proven, answer_bytes_max) = (AtomicBool::new(false), answer_bytes_max(config.kind));
        Ok(Self { client, url, answer_bytes_max, headers, deadline: config.deadline(), is_proven })
    }

    pub(super) fn post(&self, url: &str) -> RequestBuilder {
        self.client.post(url)
    }

    pub(super) fn get(&self, url: &str) -> RequestBuilder {
        self.client.get(url)
    }

    /// Makes one call within `deadline`, from the first byte to the last.
    pub(super) async fn call(&self, request: RequestBuilder, deadline: Duration) -> Result<Answered, ModelFailure> {
        let mut request = request.headers(self.headers.clone()).timeout(deadline);
        if let Ok(Some(span)) = SPAN.try_with(|span| *span) {
            request = request.header(TRACEPARENT, span.to_string());
        }
        let failed = |error: reqwest::Error| ModelFailure::Down {
            had_it: !error.is_connect() && !error.is_builder(),
            why: plain(&error, deadline),
        };
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if !status.is_success() {
            let date = |name| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
            // A time of its clock is one by its clock: ours may be another.
            let now = date(DATE).unwrap_or_else(|| SystemTime::UNIX_EPOCH + Duration::from_millis(wall_ms()));
            let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now));
            let words = http_beginning(response, WORDS_BYTES_MAX).await;
            return Err(refused(
                status,
                after,
                &String::from_utf8_lossy(&words),
                self.is_proven.load(Ordering::Relaxed),
            ));
        }
        match http_body(response, self.answer_bytes_max).await.map_err(failed)? {
            Some(body) => Ok(Answered { headers, body }),
            None => {
                let why = format!("its answer is longer than {} bytes", self.answer_bytes_max);
                Err(ModelFailure::Down { why, had_it: true })
            }
        }
    }
}

/// Seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    // A fraction is none by the standard, and sent all the same; it is never waited for less.
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=1e9).contains(seconds)).map(f64::ceil);
    let wait = seconds.map(Duration::from_secs_f64).or_else(|| {
        let until = httpdate::parse_http_date(text).ok()?;
        // As long as the second in which it may come again has not begun there.
        Some(until.duration_since(now).unwrap_or_default())
    });
    wait.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// Words by which servers say that this is about what was asked.
const POLICY: [&str; 7] = [
    "content_filter",
    "content filter",
    "content_policy",
    "content policy",
    "content management",
    "moderation",
    "safety",
];

/// Words by which servers say that they have too much to do.
const BUSY: [&str; 6] =
    ["pending requests", "too many requests", "overloaded", "server is busy", "server busy", "no slot available"];

/// What a status other than 2xx means.
pub(super) fn refused(status: StatusCode, after: Option<Duration>, body: &str, is_proven: bool) -> ModelFailure {
    let why = format!("it answers {status}{}", quoted(body));
    let small = body.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| small.contains(word));
    let down = |had_it| ModelFailure::Down { why: why.clone(), had_it };
    match status.as_u16() {
        429 | 529 => ModelFailure::Later { after, why },
        403 | 500..=599 if after.is_some() => ModelFailure::Later { after, why },
        500..=599 if says(&BUSY) => ModelFailure::Later { after, why },
        400..=599 if says(&POLICY) => ModelFailure::Dead(why),
        408 | 425 => ModelFailure::Later { after, why },
        413 => ModelFailure::Dead(why),
        401..=404 | 407 => down(false),
        400..=499 if is_proven => ModelFailure::Dead(why),
        400..=499 => ModelFailure::Down {
            why: format!("{why}; it has never answered a case: check its configuration"),
            had_it: false,
        },
        // Who gave up waiting for it had given it the case.
        500 | 504 => down(true),
        300..=399 => ModelFailure::Down {
            why: format!("{why}; redirects are not followed: give the final address as `url`"),
            had_it: false,
        },
        _ => down(false),
    }
}

/// The beginning of what was answered, on one line.
pub(super) fn quoted(body: &str) -> String {
    let beginning: String = body.chars().take(4 * QUOTE_CHARS_MAX).collect();
    let text: String = beginning.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.chars().take(QUOTE_CHARS_MAX).collect::<String>() {
        text if text.is_empty() => text,
        text => format!(": {text}"),
    }
}

/// The error with its cause, without the URL, which may hold a secret.
fn plain(error: &reqwest::Error, deadline: Duration) -> String {
    let cause = root_cause(error);
    let kind = if error.is_connect() {
        "it cannot be reached".to_owned()
    } else if error.is_timeout() {
        return format!("no answer within {} ms", deadline.as_millis());
    } else if error.is_builder() {
        "the request cannot be made".to_owned()
    } else {
        "its answer was cut off".to_owned()
    };
    cause.map_or(kind.clone(), |cause| format!("{kind}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_means_one_thing() {
        let s = |seconds| Some(Duration::from_secs(seconds));
        let policy = r#"{"error": {"code": "content_policy_violation"}}"#;
        let busy = r#"{"error": "server busy, please try again.  maximum pending requests exceeded"}"#;
        for (status, after, body, is_proven, meaning) in [
            (429, s(7), "", true, "later 7"),
            (429, None, "", true, "later"),
            (503, s(2), "", true, "later 2"),
            (503, None, "Loading model", true, "down"),
            (500, s(2), "", true, "later 2"),
            (403, s(2), "", true, "later 2"),
            (503, None, busy, true, "later"),
            (500, None, busy, true, "later"),
            (500, None, "oops", true, "down had it"),
            (502, None, "", true, "down"),
            (504, None, "", true, "down had it"),
            (400, None, policy, false, "dead"),
            (400, None, "bad picture", true, "dead"),
            (400, None, "no such field", false, "down"),
            (401, None, "", true, "down"),
            (403, None, policy, true, "dead"),
            (404, None, "model not found", true, "down"),
            (413, None, "", false, "dead"),
            (301, None, "", true, "down"),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let found = match refused(status, after, body, is_proven) {
                ModelFailure::Later { after: Some(after), .. } => format!("later {}", after.as_secs()),
                ModelFailure::Later { after: None, .. } => "later".to_owned(),
                ModelFailure::Down { had_it, .. } => (if had_it { "down had it" } else { "down" }).to_owned(),
                ModelFailure::Dead(_) => "dead".to_owned(),
                ModelFailure::Failed(_) | ModelFailure::NoPayload(_) => "failed".to_owned(),
            };
            assert_eq!(found, meaning, "{status} {body}");
        }
    }

    #[test]
    fn a_wait_is_read_in_seconds_and_as_a_date_and_never_shortened() {
        let at = |text| retry_after(text, SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500));
        assert_eq!(at("120"), Some(Duration::from_secs(120)));
        assert_eq!(at("0.2"), Some(Duration::from_secs(1)));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:39 GMT"), Some(Duration::from_millis(1_500)));
        assert_eq!(at("Sunday, 06-Nov-94 08:49:39 GMT"), Some(Duration::from_millis(1_500)));
        assert_eq!(at("Sun Nov  6 08:49:39 1994"), Some(Duration::from_millis(1_500)));
        assert_eq!(at("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!((at("soon"), at("-3"), at("99999999999")), (None, None, None));
    }
}
