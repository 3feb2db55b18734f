//! Any HTTP service as an answerer: a POST by template, label and score by their places in the JSON that comes back.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_proto::{Case, LabelScore, Output};
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use super::call::{Caller, quoted};
use super::{ModelFailure, chat};
use crate::answerers::AnswererConfig;

pub(super) struct Template {
    caller: Caller,
    body: Option<String>,
    content_type: Option<String>,
    label: Vec<String>,
    score: Option<Vec<String>>,
    labels: Option<Vec<String>>,
}

impl Template {
    pub(super) fn new(config: &AnswererConfig) -> Result<Self, String> {
        let path = |text: &String, field: &str| {
            steps(text)
                .ok_or_else(|| format!("{field} = \"{text}\" is no place in JSON; write it like `result.0.label`"))
        };
        Ok(Self {
            caller: Caller::new(config)?,
            body: config.body.clone(),
            content_type: config.content_type.clone(),
            label: path(config.label.as_ref().unwrap_or(&String::new()), "label")?,
            score: config.score.as_ref().map(|text| path(text, "score")).transpose()?,
            labels: config.labels.clone(),
        })
    }

    pub(super) async fn answer(&self, case: &Case, payload: &[u8]) -> Result<Output, ModelFailure> {
        let url = filled(&self.caller.url, case, "", percent);
        let request = self.caller.post(&url);
        let request = match &self.body {
            Some(body) => {
                let body = filled(body, case, &STANDARD.encode(payload), in_json);
                let content_type = self.content_type.as_deref().unwrap_or("application/json");
                request.header(CONTENT_TYPE, content_type).body(body)
            }
            None => {
                let content_type = self.content_type.as_deref().unwrap_or(&case.content_type);
                request.header(CONTENT_TYPE, content_type).body(payload.to_vec())
            }
        };
        let answered = self.caller.call(request, self.caller.deadline).await?;
        let said = self.read(&answered.body)?;
        self.caller.is_proven.store(true, Ordering::Relaxed);
        Ok(said)
    }

    /// Any word of it is a sign of life, but that what it stands before is away.
    pub(super) async fn question(&self) -> Result<(), ModelFailure> {
        let url = self.caller.url.split('{').next().unwrap_or_default();
        match self.caller.call(self.caller.get(url), self.caller.deadline).await {
            Err(ModelFailure::Down { why, had_it })
                if !why.starts_with("it answers") || why.starts_with("it answers 5") =>
            {
                Err(ModelFailure::Down { why, had_it })
            }
            Err(later @ ModelFailure::Later { .. }) => Err(later),
            _ => Ok(()),
        }
    }

    fn read(&self, body: &[u8]) -> Result<Output, ModelFailure> {
        let words = || quoted(&String::from_utf8_lossy(body));
        let answer: Value = serde_json::from_slice(body)
            .map_err(|_| ModelFailure::Down { why: format!("its answer is no whole JSON{}", words()), had_it: true })?;
        let dead = |why: &str| ModelFailure::Dead(format!("{why}{}", words()));
        let label = match at(&answer, &self.label) {
            Some(Value::String(label)) if !label.trim().is_empty() => label.clone(),
            Some(Value::Number(class)) => class.to_string(),
            _ => return Err(dead("its answer has no label")),
        };
        let label = match &self.labels {
            Some(labels) => {
                chat::known(&label, labels).ok_or_else(|| dead("its label is none of the list"))?.to_owned()
            }
            None => label,
        };
        let Some(place) = &self.score else { return Ok(Output::label(&label)) };
        let score = at(&answer, place).and_then(|score| score.as_f64().or_else(|| score.as_str()?.parse().ok()));
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 1")]
        match score.filter(|score| (0.0..=1.0).contains(score)) {
            Some(score) => Ok(Output::Classes(vec![LabelScore { label, score: score as f32 }])),
            None => Err(dead("its score is no number from 0 to 1")),
        }
    }
}

/// `$.a[0].b` and `a.0.b` lead to the same place.
fn steps(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('$').unwrap_or(path).replace('[', ".").replace(']', "");
    let steps: Vec<String> = path.trim_start_matches('.').split('.').map(str::to_owned).collect();
    steps.iter().all(|step| !step.is_empty() && !step.contains(['*', '?', '(', '"', '\''])).then_some(steps)
}

fn at<'a>(answer: &'a Value, steps: &[String]) -> Option<&'a Value> {
    steps.iter().try_fold(answer, |value, step| match value {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    })
}

/// The template with what its names stand for, in one go: what is filled in is not looked at again.
fn filled(template: &str, case: &Case, base64: &str, quote: impl Fn(&str) -> String) -> String {
    let (mut text, mut rest) = (String::with_capacity(template.len() + base64.len()), template);
    while let Some(begins) = rest.find('{') {
        text.push_str(&rest[..begins]);
        rest = &rest[begins..];
        let value = |name: &str| match name {
            "{base64}" => Some(base64.to_owned()),
            "{content_type}" => Some(quote(&case.content_type)),
            "{task}" => Some(quote(&case.task)),
            "{id}" => Some(quote(&case.id.to_string())),
            "{source}" => Some(quote(&case.source)),
            _ => None,
        };
        let name = rest.find('}').map_or("", |ends| &rest[..=ends]);
        let (put, taken) = value(name).map_or(("{".to_owned(), 1), |value| (value, name.len()));
        text.push_str(&put);
        rest = &rest[taken..];
    }
    text.push_str(rest);
    text
}

/// Within quotation marks of JSON.
fn in_json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(score: Option<&str>, labels: Option<&[&str]>) -> Template {
        let text = "name = \"a\"\nkind = \"http\"\nurl = \"http://h\"\nlabel = \"$.result[0].name\"\n";
        let mut config: AnswererConfig = toml::from_str(text).expect("valid");
        config.score = score.map(str::to_owned);
        config.labels = labels.map(|labels| labels.iter().map(|label| (*label).to_owned()).collect());
        drop(rustls::crypto::ring::default_provider().install_default());
        Template::new(&config).expect("valid")
    }

    #[track_caller]
    fn check(template: &Template, body: &str, expected: &str) {
        let said = match template.read(body.as_bytes()) {
            Ok(output) => format!("{} {}", output.headline(), output.score().unwrap_or(-1.0)),
            Err(failure) => failure.to_string(),
        };
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn label_and_score_are_found_where_they_are_said_to_be_and_nothing_is_guessed() {
        let plain = template(Some("result.0.p"), Some(&["cat"]));
        check(&plain, r#"{"result": [{"name": "Cat", "p": 0.5}]}"#, "cat 0.5");
        check(&plain, r#"{"result": [{"name": "cat", "p": "0.25"}]}"#, "cat 0.25");
        check(&plain, r#"{"result": [{"name": "cat", "p": 50}]}"#, "its score is no number from 0 to 1");
        check(&plain, r#"{"result": [{"name": "cow", "p": 0.5}]}"#, "its label is none of the list");
        check(&plain, r#"{"result": []}"#, "its answer has no label");
        check(&plain, r#"{"result": [{"na"#, "its answer is no whole JSON");
        check(&template(None, None), r#"{"result": [{"name": 7}]}"#, "7 1");
        for wrong in ["", "a..b", "a[*]", "a[?(@.b)]"] {
            assert_eq!(steps(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_filled_into_a_template_is_text_there_and_no_part_of_it() {
        let case = crate::model::tests::case("te\"st {base64}");
        let body = r#"{"task": "{task}", "data": "{base64}", "keep": {"x": 1}}"#;
        let filled = filled(body, &case, "QUJD", in_json);
        let read: Value = serde_json::from_str(&filled).expect("JSON");
        assert_eq!(read, serde_json::json!({"task": "te\"st {base64}", "data": "QUJD", "keep": {"x": 1}}));
        assert_eq!(percent("a b/ü"), "a%20b%2F%C3%BC");
    }
}
