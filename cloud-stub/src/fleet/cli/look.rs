//! `list`, `status`, `get` and `diff`: what the broker keeps, and for `status` what the device answers.

use anyhow::{Context, bail};
use hedge_proto::{CommandMessage, DeviceId, LastDesired, ModelRef, Name, Reported, to_value};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Common, Look};
use super::{Target, chosen, connect, say, say_json, target, text};
use crate::fleet::board::Device;
use crate::fleet::carry_out::{Patience, carry_out};
use crate::fleet::change::path;
use crate::fleet::differ::{differences, field, leaves};
use crate::fleet::errand::{Errand, Report};
use crate::fleet::operator::{ACTING, LOOKING};
use crate::fleet::random_id;
use crate::wall_ms;

/// One device, for people and as one line of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) link: &'static str,
    pub(super) connection: Option<u64>,
    pub(super) version: Option<&'a str>,
    pub(super) models: &'a [ModelRef],
    /// The version of the settings in force; 0 is the local file alone.
    pub(super) in_force: Option<u64>,
    pub(super) wanted: Option<u64>,
    pub(super) wanted_by: Option<&'a str>,
    pub(super) last: Option<&'a LastDesired>,
    pub(super) paused: &'a [Name],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
    /// What the device answered when it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<Report>,
}

impl<'a> Summary<'a> {
    fn new(name: &'a DeviceId, device: &'a Device) -> Self {
        let (status, reported) = (device.status.as_ref(), device.reported.as_ref());
        let why = device.desired_unreadable.as_ref();
        let unreadable = why.map(|why| format!("the wanted settings cannot be read: {why}"));
        let rests = device
            .window_every_s()
            .map(|every_s| format!("it connects every {every_s} s and rests its radio in between"));
        Self {
            device: name,
            link: device.link(),
            connection: status.map(|status| status.connection),
            version: status.and_then(|status| status.version.as_deref()),
            models: status.map_or(&[], |status| &status.models),
            in_force: reported.map(|reported| reported.version),
            wanted: device.desired.as_ref().map(|desired| desired.version),
            wanted_by: device.desired.as_ref().and_then(|desired| desired.by.as_deref()),
            last: reported.and_then(|reported| reported.last.as_ref()),
            paused: reported.map_or(&[], |reported| &reported.paused),
            note: unreadable.or(rests),
            answer: None,
        }
    }
}

pub(super) async fn list(ask: &Common) -> anyhow::Result<bool> {
    let target = Target::Many(ask.chosen.clone());
    let operator = connect(ask, &target, LOOKING).await?;
    let devices = chosen(&operator, &target)?;
    let rows: Vec<Summary<'_>> = devices.iter().map(|(name, device)| Summary::new(name, device)).collect();
    if ask.json {
        rows.iter().try_for_each(say_json)?;
    } else {
        say(&text::table(&rows))?;
    }
    operator.close().await;
    Ok(true)
}

pub(super) async fn status(ask: &Look) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    nothing_more(rest)?;
    let mut operator = connect(&ask.common, &target, ACTING).await?;
    let devices = chosen(&operator, &target)?;
    let mut questions = Vec::new();
    for (name, _) in devices.iter().filter(|(_, device)| !device.is_offline()) {
        let message = CommandMessage {
            id: Some(random_id()?),
            command: "status".to_owned(),
            args: Value::Null,
            issued_ms: Some(wall_ms()),
            by: None,
        };
        questions.push(Errand::command(name.clone(), message).map_err(anyhow::Error::msg)?);
    }
    let patience = Patience { answer: ask.common.answer_wait(), trial: None, offline: false };
    let mut answers = carry_out(&mut operator, questions, patience, |_| {}).await;
    let all_answered = answers.iter().all(|answer| answer.outcome.is_good());
    for (name, device) in &devices {
        let mut summary = Summary::new(name, device);
        let answer = answers.iter().position(|answer| answer.device == *name);
        summary.answer = answer.map(|at| answers.swap_remove(at));
        if ask.common.json {
            say_json(&summary)?;
        } else {
            say(&text::status(&summary))?;
        }
    }
    operator.close().await;
    Ok(all_answered)
}

pub(super) async fn get(ask: &Look) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    let key = match rest {
        [] => None,
        [key] => Some((key.as_str(), path(key).map_err(anyhow::Error::msg)?)),
        _ => bail!("give one KEY, or none for all settings"),
    };
    let operator = connect(&ask.common, &target, LOOKING).await?;
    let devices = chosen(&operator, &target)?;
    let mut all_there = true;
    for (name, device) in &devices {
        let Some(reported) = &device.reported else {
            all_there = false;
            eprintln!("{name}: it has not reported its settings");
            continue;
        };
        let suggested = suggested(reported);
        let settings = with_suggested(to_value(&reported.settings), &suggested);
        let value = match &key {
            None => settings,
            Some((key, path)) => match field(&settings, path) {
                Some(value) => value.clone(),
                None => {
                    all_there = false;
                    eprintln!("{name}: `{key}` has no value in the settings in force");
                    continue;
                }
            },
        };
        if ask.common.json {
            let key = key.as_ref().map(|(key, _)| *key);
            let overlay = to_value(&reported.overlay);
            let path = key.map(path).transpose().map_err(anyhow::Error::msg)?.unwrap_or_default();
            let from = if field(&overlay, &path).is_some() {
                "desired"
            } else if field(&suggested, &path).is_some_and(|value| !value.is_object()) {
                "bundle"
            } else {
                "local"
            };
            let from = key.map(|_| from);
            say_json(&json!({"device": name, "version": reported.version, "key": key, "value": value, "from": from}))?;
        } else {
            let asked = key.as_ref().map(|(key, _)| *key).unwrap_or_default();
            for (field, _) in leaves(&suggested).iter().filter(|(field, _)| field.starts_with(asked)) {
                eprintln!("{name}: `{field}` is what the bundle suggests");
            }
            let value = text::value(&value);
            say(&if devices.len() == 1 { value } else { format!("{name}: {value}") })?;
        }
    }
    operator.close().await;
    Ok(all_there)
}

/// What bundles suggest and is in force, where the settings would have it.
fn suggested(reported: &Reported) -> Value {
    let model = |(name, threshold): (&Name, _)| (name.to_string(), json!({"threshold": to_value(threshold)}));
    let models: serde_json::Map<String, Value> = reported.suggested.iter().map(model).collect();
    if models.is_empty() { json!({}) } else { json!({"model": models}) }
}

/// Lays values in where there are none.
fn with_suggested(mut settings: Value, suggested: &Value) -> Value {
    if let (Value::Object(settings), Value::Object(suggested)) = (&mut settings, suggested) {
        for (name, value) in suggested {
            let place = settings.entry(name.clone()).or_insert(Value::Null);
            *place = if place.is_null() { value.clone() } else { with_suggested(place.take(), value) };
        }
    }
    settings
}

pub(super) async fn diff(ask: &Look) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    nothing_more(rest)?;
    let operator = connect(&ask.common, &target, LOOKING).await?;
    let devices = chosen(&operator, &target)?;
    let mut same = true;
    for (name, device) in &devices {
        let found = differences(device);
        let summary = Summary::new(name, device);
        // What is refused is not wanted by the device at all, so it may lack differences and be open all the same.
        let open = !found.is_empty() || summary.note.is_some();
        same &= !open;
        if ask.common.json {
            let (wanted, in_force) = (summary.wanted, summary.in_force);
            say_json(&json!({
                "device": name, "same": !open, "wanted": wanted, "in_force": in_force, "last": summary.last,
                "differences": found, "note": summary.note,
            }))?;
        } else {
            say(&text::diff(&summary, &found))?;
        }
    }
    operator.close().await;
    Ok(same)
}

fn nothing_more(rest: &[String]) -> anyhow::Result<()> {
    let first = rest.first().map(String::as_str);
    match first {
        None => Ok(()),
        Some(word) => Err(anyhow::anyhow!("`{word}` is one word too many")).context("give one NAME"),
    }
}
