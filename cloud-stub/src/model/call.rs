//! One HTTP call to an answerer, and what every way in which it can end means.
//!
//! | what happens | what it means |
//! |---|---|
//! | 2xx with a body | up to the kind of answerer |
//! | no connection, 502, 503, 504, 401, 402, 403, 404, a redirect | down |
//! | cut off, or not within the deadline, 500 | down, and it had the case |
//! | 429, 529, 503 with Retry-After, 500 with words of being busy | retry later |
//! | another 4xx | no verdict for this case; down while nothing was ever answered: then the configuration is suspected |
//! | a 4xx with words of a content policy, 413 | no verdict for this case |

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedge_identity::{http_body, http_client};
use hedge_proto::{TRACEPARENT, TraceContext, root_cause};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};

use super::ModelFailure;
use crate::answerers::AnswererConfig;
use crate::wall_ms;

/// The longest answer that is read: scores of a detector as JSON numbers come to a few MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

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
    token: Option<String>,
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
        let token = config.token_file.as_deref().map(|path| {
            let why = |error| format!("token_file = {}: {error}", path.display());
            hedge_inference::read_secret(path).map_err(why)
        });
        let mut headers = HeaderMap::new();
        for (name, value) in config.headers.iter().flatten() {
            let read = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            let (name, value) = read.ok_or_else(|| format!("headers.{name} is no HTTP header"))?;
            headers.insert(name, value);
        }
        let is_proven = AtomicBool::new(false);
        Ok(Self { client, url, token: token.transpose()?, headers, deadline: config.deadline(), is_proven })
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
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Ok(Some(span)) = SPAN.try_with(|span| *span) {
            request = request.header(TRACEPARENT, span.to_string());
        }
        let failed = |error: reqwest::Error| ModelFailure::Down {
            had_it: !error.is_connect() && !error.is_builder(),
            why: plain(&error, deadline),
        };
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let Some(body) = http_body(response, ANSWER_BYTES_MAX).await.map_err(failed)? else {
            return Err(ModelFailure::Dead(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes")));
        };
        if status.is_success() {
            return Ok(Answered { headers, body });
        }
        let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, wall_ms()));
        Err(refused(status, after, &String::from_utf8_lossy(&body), self.is_proven.load(Ordering::Relaxed)))
    }
}

/// Seconds, or a date.
fn retry_after(text: &str, now_ms: u64) -> Option<Duration> {
    let text = text.trim();
    // A fraction is none by the standard, and sent all the same; it is never waited for less.
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=1e9).contains(seconds)).map(f64::ceil);
    let wait = seconds.map(Duration::from_secs_f64).or_else(|| {
        let until = http_date_s(text)?;
        // As long as the second in which it may come again has not begun here.
        Some(Duration::from_millis((until.saturating_mul(1000)).saturating_sub(now_ms)))
    });
    wait.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970.
fn http_date_s(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace().skip(1);
    let day: u8 = words.next()?.parse().ok()?;
    let month = words.next()?;
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| *name == month)?;
    let month = time::Month::try_from(u8::try_from(month + 1).ok()?).ok()?;
    let date = time::Date::from_calendar_date(words.next()?.parse().ok()?, month, day).ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u8>().ok());
    let at = time::Time::from_hms(clock.next()??, clock.next()??, clock.next()??).ok()?;
    u64::try_from(time::PrimitiveDateTime::new(date, at).assume_utc().unix_timestamp()).ok()
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
        503 if after.is_some() => ModelFailure::Later { after, why },
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
        500 => down(true),
        300..=399 => ModelFailure::Down {
            why: format!("{why}; redirects are not followed: give the final address as `url`"),
            had_it: false,
        },
        _ => down(false),
    }
}

/// The beginning of what was answered, on one line.
pub(super) fn quoted(body: &str) -> String {
    let text: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
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
            (503, None, busy, true, "later"),
            (500, None, busy, true, "later"),
            (500, None, "oops", true, "down had it"),
            (502, None, "", true, "down"),
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
        let at = |text| retry_after(text, 784_111_777_500);
        assert_eq!(at("120"), Some(Duration::from_secs(120)));
        assert_eq!(at("0.2"), Some(Duration::from_secs(1)));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:39 GMT"), Some(Duration::from_millis(1_500)));
        assert_eq!(at("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!((at("soon"), at("-3"), at("99999999999")), (None, None, None));
    }
}
