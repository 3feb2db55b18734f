//! How devices, reports and values look on a terminal.

use std::fmt::Write as _;

use hedge_proto::{LastDesired, SettingsOutcome};
use serde_json::Value;

use super::look::Summary;
use crate::fleet::differ::Difference;
use crate::fleet::errand::Report;

/// Text as it is; everything else as JSON.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(_) | Value::Array(_) => format!("{value:#}"),
        other => other.to_string(),
    }
}

pub(super) fn report(report: &Report, single: bool) -> String {
    let mut text = format!("{}: {}", report.device, report.outcome.text());
    if let Some(version) = report.version {
        push(&mut text, format_args!(", version {version}"));
    }
    if let Some(reason) = &report.reason {
        push(&mut text, format_args!("; {reason}"));
    }
    for error in &report.errors {
        push(&mut text, format_args!("\n  {error}"));
    }
    if let Some(note) = &report.note {
        push(&mut text, format_args!("\n  note: {note}"));
    }
    if !report.result.is_null() {
        let result = if single { format!("{:#}", report.result) } else { report.result.to_string() };
        push(&mut text, format_args!("\n{result}"));
    }
    text
}

pub(super) fn table(rows: &[Summary<'_>]) -> String {
    let head = ["NAME", "LINK", "VERSION", "SETTINGS", "LAST", "MODELS"].map(str::to_owned);
    let rows = rows.iter().map(|row| {
        let models: Vec<_> = row.models.iter().map(|model| format!("{} {}", model.name, model.version)).collect();
        [
            row.device.to_string(),
            row.link.to_owned(),
            row.version.unwrap_or("-").to_owned(),
            versions(row),
            row.last.map_or("-", |last| last.outcome.text()).to_owned(),
            if models.is_empty() { "-".to_owned() } else { models.join(", ") },
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        push(&mut text, format_args!("{}\n", cells.join("  ").trim_end()));
    }
    text
}

/// `7`, `local`, or `7, wanted 8`.
fn versions(row: &Summary<'_>) -> String {
    let in_force = match row.in_force {
        None => "-".to_owned(),
        Some(0) => "local".to_owned(),
        Some(version) => version.to_string(),
    };
    match row.wanted {
        Some(wanted) if row.in_force != Some(wanted) => format!("{in_force}, wanted {wanted}"),
        _ => in_force,
    }
}

pub(super) fn status(device: &Summary<'_>) -> String {
    let mut text = format!("{}\n  link      {}", device.device, device.link);
    if let Some(connection) = device.connection {
        push(&mut text, format_args!(", connection {connection}"));
    }
    if let Some(version) = device.version {
        push(&mut text, format_args!("\n  version   {version}"));
    }
    for model in device.models {
        push(&mut text, format_args!("\n  model     {} {}", model.name, model.version));
    }
    push(&mut text, format_args!("\n  settings  {}", versions(device)));
    if let Some(who) = device.wanted_by {
        push(&mut text, format_args!(", by {who}"));
    }
    if let Some(last) = device.last {
        push(&mut text, format_args!("\n  last      {}", last_change(last)));
    }
    for source in device.paused {
        push(&mut text, format_args!("\n  paused    {source}"));
    }
    if let Some(note) = &device.note {
        push(&mut text, format_args!("\n  note      {note}"));
    }
    match &device.answer {
        Some(answer) if answer.outcome.is_good() => push(&mut text, format_args!("\n{}", indented(&answer.result))),
        Some(answer) => {
            let reason = answer.reason.as_deref().unwrap_or_default();
            push(&mut text, format_args!("\n  figures   {}: {reason}", answer.outcome.text()));
        }
        None => {}
    }
    text
}

/// The figures, one a line, so that they can be searched.
fn indented(figures: &Value) -> String {
    let leaves = crate::fleet::differ::leaves(figures);
    let width = leaves.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = leaves.iter().map(|(name, value)| format!("  {name:<width$}  {value}")).collect();
    lines.join("\n")
}

fn last_change(last: &LastDesired) -> String {
    let mut text = String::new();
    if let Some(version) = last.version {
        push(&mut text, format_args!("version {version} "));
    }
    text.push_str(last.outcome.text());
    if let Some(reason) = &last.reason {
        push(&mut text, format_args!(": {reason}"));
    }
    for error in &last.errors {
        push(&mut text, format_args!("\n            {error}"));
    }
    text
}

/// What a device says of its settings.
pub(super) fn reported(version: u64, last: Option<&LastDesired>) -> String {
    let in_force = if version == 0 { "its own file".to_owned() } else { format!("version {version}") };
    let last = last.map(|last| format!("; last: {}", last_change(last).replace('\n', " "))).unwrap_or_default();
    format!("{in_force} in force{last}")
}

pub(super) fn diff(device: &Summary<'_>, found: &[Difference]) -> String {
    let mut text = format!("{}: settings {}", device.device, versions(device));
    if let Some(last) = device.last.filter(|last| last.outcome != SettingsOutcome::Applied) {
        push(&mut text, format_args!("; {}", last_change(last)));
    }
    if let Some(note) = &device.note {
        push(&mut text, format_args!("\n  note: {note}"));
    }
    for Difference { field, wanted, in_force } in found {
        let wanted = wanted.as_ref().map_or("as in its own file".to_owned(), Value::to_string);
        let in_force = in_force.as_ref().map_or("nothing".to_owned(), Value::to_string);
        push(&mut text, format_args!("\n  {field}: wanted {wanted}, in force {in_force}"));
    }
    text
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    // Writing to a text cannot fail.
    if text.write_fmt(more).is_err() {
        tracing::debug!("a text was not written");
    }
}
