//! An OpenAI-compatible `/chat/completions` as an answerer: shows the picture, asks for one label of a list.
//!
//! The answer is held to a strict JSON schema where the server knows how; what comes is believed only if it is one label
//! of the list. Reasoning, refusals, and answers that were filtered or cut short are none.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_inference::{ContentType, cropped};
use hedge_proto::{Case, Output};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::call::{Caller, quoted};
use super::{ModelFailure, region};
use crate::answerers::AnswererConfig;

const PROMPT: &str = "What does the picture show? Answer with one of these labels: {labels}.";

/// How long loading a cold model may take: no case waits for it.
const WARM_UP_MAX: Duration = Duration::from_secs(600);

/// The longest side of a part of a picture that is shown.
const SIDE_MAX: u32 = 2048;

pub(super) struct Chat {
    caller: Caller,
    model: String,
    labels: Vec<String>,
    prompt: String,
    extra: Map<String, Value>,
    is_free: bool,
}

impl Chat {
    pub(super) fn new(config: &AnswererConfig) -> Result<Self, String> {
        let labels = config.labels.clone().unwrap_or_default();
        let prompt = config.prompt.as_deref().unwrap_or(PROMPT).replace("{labels}", &labels.join(", "));
        let extra = config.extra.as_ref().map_or(Ok(Value::Object(Map::new())), serde_json::to_value);
        let extra = extra.map_err(|error| format!("extra: {error}"))?;
        Ok(Self {
            caller: Caller::new(config)?,
            model: config.model.clone().unwrap_or_default(),
            labels,
            prompt,
            extra: extra.as_object().cloned().unwrap_or_default(),
            is_free: config.price().0 == 0,
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.caller.url.trim_end_matches('/'))
    }

    pub(super) async fn answer(&self, case: &Case, payload: &[u8]) -> Result<Output, ModelFailure> {
        let picture = shown(case, payload)?;
        let request = self.request(&json!([{"type": "text", "text": self.prompt}, picture]));
        let answered =
            self.caller.call(self.caller.post(&self.url("chat/completions")).json(&request), self.caller.deadline);
        let said = read(&answered.await?.body, &self.labels)?;
        self.caller.is_proven.store(true, Ordering::Relaxed);
        Ok(said)
    }

    /// Has it load its model, where that costs nothing but time; asks what models it has where each call costs money.
    pub(super) async fn question(&self) -> Result<(), ModelFailure> {
        if !self.is_free {
            let asked = self.caller.call(self.caller.get(&self.url("models")), self.caller.deadline).await;
            // Some servers do not list their models; that they say so is enough.
            return match asked {
                Err(ModelFailure::Down { why, .. }) if why.starts_with("it answers 404") => Ok(()),
                asked => asked.map(drop),
            };
        }
        let request = self.request(&json!(self.prompt));
        let asked = self.caller.call(self.caller.post(&self.url("chat/completions")).json(&request), WARM_UP_MAX).await;
        match asked.and_then(|answered| read(&answered.body, &self.labels)) {
            // Without a picture there is nothing to be right about.
            Ok(_) | Err(ModelFailure::Dead(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn request(&self, content: &Value) -> Value {
        let mut request = self.extra.clone();
        request.insert("model".to_owned(), json!(self.model));
        request.insert("stream".to_owned(), json!(false));
        request.insert("messages".to_owned(), json!([{"role": "user", "content": content}]));
        request.entry("response_format").or_insert_with(|| {
            json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": {
                "type": "object",
                "properties": {"label": {"type": "string", "enum": self.labels}},
                "required": ["label"],
                "additionalProperties": false,
            }}})
        });
        Value::Object(request)
    }
}

/// The picture as the model is shown it: what the device judged.
fn shown(case: &Case, payload: &[u8]) -> Result<Value, ModelFailure> {
    let dead = |why: String| ModelFailure::Dead(why);
    let media = case.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !media.starts_with("image/") {
        return Err(dead(format!("it is shown pictures only, and this is `{media}`")));
    }
    let data = match (region(case).map_err(dead)?, ContentType::parse(&media)) {
        (None, _) => format!("data:{media};base64,{}", STANDARD.encode(payload)),
        (Some(region), Some(kind)) => {
            let part = cropped(&kind, payload, &region, SIDE_MAX).map_err(|error| dead(error.to_string()))?;
            format!("data:image/jpeg;base64,{}", STANDARD.encode(part))
        }
        (Some(_), None) => return Err(dead(format!("a part of `{media}` cannot be cut out"))),
    };
    Ok(json!({"type": "image_url", "image_url": {"url": data}}))
}

/// What a completion says.
fn read(body: &[u8], labels: &[String]) -> Result<Output, ModelFailure> {
    let none = |why: &str| Err(ModelFailure::Dead(why.to_owned()));
    let half = || ModelFailure::Down {
        why: format!("its answer is no whole completion{}", quoted(&String::from_utf8_lossy(body))),
        had_it: true,
    };
    let answer: Value = serde_json::from_slice(body).map_err(|_| half())?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        return Err(said_to_fail(error));
    }
    let choice = match answer.get("choices").and_then(Value::as_array).map(Vec::as_slice) {
        Some([choice, ..]) => choice,
        Some([]) => return none("it gives no answer at all"),
        None => return Err(half()),
    };
    match choice.get("finish_reason").and_then(Value::as_str) {
        Some("content_filter") => return none("its content filter withheld the answer"),
        Some("length") => return none("its answer was cut short by its limit of length"),
        Some("error") => return Err(half()),
        _ => {}
    }
    let message = choice.get("message").unwrap_or(&Value::Null);
    let text_of = |field: &str| message.get(field).and_then(Value::as_str).unwrap_or_default().trim();
    if !text_of("refusal").is_empty() {
        return Err(ModelFailure::Dead(format!("it declines{}", quoted(text_of("refusal")))));
    }
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        _ => String::new(),
    };
    if content.trim().is_empty() {
        let reasons = ["reasoning_content", "reasoning"].iter().any(|field| !text_of(field).is_empty());
        return none(if reasons { "it has reasoned and not answered" } else { "its answer is empty" });
    }
    label_in(&content, labels)
}

/// An error in an answer with a status of 200.
fn said_to_fail(error: &Value) -> ModelFailure {
    let text = error.to_string();
    let code = error.get("code").and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    let status = code.and_then(|code| reqwest::StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let status = status.filter(|status| status.as_u16() >= 400).unwrap_or(reqwest::StatusCode::INTERNAL_SERVER_ERROR);
    // Whoever says so with a status of 200 has read the request.
    super::call::refused(status, None, &text, true)
}

/// An object as a chat model writes it. Neither of two labels in one object is the one that was meant.
#[derive(Deserialize)]
struct Named {
    label: Option<Value>,
}

/// The one label that the objects of JSON in a text agree on.
fn label_in(content: &str, labels: &[String]) -> Result<Output, ModelFailure> {
    let dead = |why: &str| ModelFailure::Dead(format!("{why}{}", quoted(content)));
    let mut named: Option<String> = None;
    let mut rest = match content.rsplit_once("</think>") {
        // What it thought aloud before it answered.
        Some((_, said)) => said,
        None if content.contains("<think>") => return Err(dead("it has reasoned and not answered")),
        None => content,
    };
    while let Some(begins) = rest.find('{') {
        let mut objects = serde_json::Deserializer::from_str(&rest[begins..]).into_iter::<IgnoredAny>();
        let Some(Ok(IgnoredAny)) = objects.next() else {
            rest = &rest[begins + 1..];
            continue;
        };
        let (object, behind) = rest[begins..].split_at(objects.byte_offset());
        rest = behind;
        let more_than_one = || dead("it names more than one label");
        let Named { label } = serde_json::from_str(object).map_err(|_| more_than_one())?;
        let Some(Value::String(label)) = label else { continue };
        if named.as_ref().is_some_and(|other| *other != label) {
            return Err(more_than_one());
        }
        named = Some(label);
    }
    let named = named.ok_or_else(|| dead("its answer has no label"))?;
    known(&named, labels).map(Output::label).ok_or_else(|| dead("its label is none of the list"))
}

/// A label of the list by its name; capitals and blanks around it do not matter where only one is meant.
pub(super) fn known<'a>(named: &str, labels: &'a [String]) -> Option<&'a str> {
    if let Some(exact) = labels.iter().find(|label| *label == named) {
        return Some(exact);
    }
    let plain = |label: &str| label.trim().to_lowercase();
    let mut meant = labels.iter().filter(|label| plain(label) == plain(named));
    match (meant.next(), meant.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &Value) -> String {
        let labels = ["cat".to_owned(), "dog".to_owned(), "Polish".to_owned(), "polish".to_owned()];
        match read(body.to_string().as_bytes(), &labels) {
            Ok(output) => output.headline(),
            Err(ModelFailure::Dead(why)) => format!("none: {why}"),
            Err(ModelFailure::Later { .. }) => "later".to_owned(),
            Err(failure) => format!("down: {failure}"),
        }
    }

    fn content(content: &str) -> Value {
        json!({"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}]})
    }

    #[track_caller]
    fn check(body: &Value, expected: &str) {
        let said = said(body);
        assert!(said.starts_with(expected), "{said} is not {expected} for {body}");
    }

    #[test]
    fn only_one_label_of_the_list_is_a_verdict() {
        check(&content(r#"{"label": "cat"}"#), "cat");
        check(&content("Sure!\n```json\n{\"label\": \"dog\"}\n```\nAnything else?"), "dog");
        check(&content("{oh} {\"label\": \" Cat \"} {\"label\": \" Cat \"}"), "cat");
        check(&content(r#"{"label": "POLISH"}"#), "none: its label is none of the list");
        check(&content(r#"{"label": "cow"}"#), "none: its label is none of the list");
        check(&content(r#"{"label": "cat"} or {"label": "dog"}"#), "none: it names more than one label");
        check(&content(r#"{"label": "cat", "label": "dog"}"#), "none: it names more than one label");
        check(&content("<think>{\"label\": \"dog\"}?</think>{\"label\": \"cat\"}"), "cat");
        check(&content("It is a cat."), "none: its answer has no label");
        check(&content(r#"{"label": "ca"#), "none: its answer has no label");
        check(
            &json!({"choices": [{"message": {"content": [{"type": "text", "text": "{\"label\": \"dog\"}"}]}}]}),
            "dog",
        );
    }

    #[test]
    fn what_was_withheld_cut_short_or_only_thought_is_no_verdict() {
        let label = r#"{"label": "cat"}"#;
        let with = |reason: &str, message: Value| json!({"choices": [{"finish_reason": reason, "message": message}]});
        check(&with("content_filter", json!({"content": label})), "none: its content filter");
        check(&with("length", json!({"content": label})), "none: its answer was cut short");
        check(
            &with("stop", json!({"content": label, "refusal": "I cannot help with that"})),
            "none: it declines: I cannot",
        );
        check(&with("stop", json!({"content": "", "reasoning_content": label})), "none: it has reasoned");
        check(&with("stop", json!({"content": null})), "none: its answer is empty");
        check(&with("stop", json!({"content": format!("<think>perhaps {label}")})), "none: it has reasoned");
        check(
            &with("stop", json!({"content": format!("<think>{label}?</think> No idea.")})),
            "none: its answer has no",
        );
        check(&json!({"choices": []}), "none: it gives no answer");
    }

    #[test]
    fn half_an_answer_is_nobodys_verdict_and_busy_is_busy_with_any_status() {
        check(&json!({"message": "hello"}), "down: its answer is no whole completion");
        check(&json!({"error": {"message": "maximum pending requests exceeded"}}), "later");
        check(&json!({"error": {"code": 429, "message": "slow down"}}), "later");
        check(&json!({"error": {"code": "content_filter", "message": "blocked"}}), "none");
        let labels = ["cat".to_owned()];
        for cut in [r#"{"choices": [{"message": {"content": "{\"label\": \"cat\"}"#, "data: {\"choices\"", "<html>"] {
            assert!(matches!(read(cut.as_bytes(), &labels), Err(ModelFailure::Down { had_it: true, .. })), "{cut}");
        }
    }
}
