//! `history`: reads what `serve` has recorded of one device.

use anyhow::{Context, ensure};
use hedge_proto::LastDesired;
use serde_json::Value;

use super::args::History;
use super::text::reported;
use super::{say, say_json};
use crate::store::{Database, DeviceEvent, Reader};
use crate::utc;

pub(super) fn history(ask: &History) -> anyhow::Result<bool> {
    let at = ask.records.at(&ask.state_dir)?;
    if let Database::File(path) = &at.database {
        let dir = ask.state_dir.display();
        ensure!(path.exists(), "{dir} holds no records of `serve`; name its folder with --state-dir");
    }
    let reader = Reader::open(&at).context("history reads the records as the user that `serve` runs as")?;
    let mut events = reader.history(&ask.name)?;
    ensure!(!events.is_empty(), "nothing about settings or commands of `{}` is on record here", ask.name);
    events.reverse();
    for event in &events {
        if ask.json { say_json(event)? } else { say(&line(event))? }
    }
    Ok(true)
}

fn line(event: &DeviceEvent) -> String {
    let document = &event.document;
    let text = |name: &str| document[name].as_str().unwrap_or("-");
    let said = match event.kind.as_str() {
        _ if document["emptied"] == true => "the topic was emptied".to_owned(),
        "desired" => format!("version {} by {}: {}", document["version"], text("by"), document["settings"]),
        "reported" => {
            let last = serde_json::from_value::<LastDesired>(document["last"].clone()).ok();
            reported(document["version"].as_u64().unwrap_or(0), last.as_ref())
        }
        "bundle" => {
            let spoke = match document["rival"].as_object() {
                Some(rival) => format!(", after {} samples seen by both", rival["compared"]),
                None => String::new(),
            };
            format!("{} answers with {} instead of {}{spoke}", text("bundle"), text("to"), text("from"))
        }
        _ => {
            let result = if document["result"] == Value::Null { String::new() } else { document["result"].to_string() };
            format!(
                "{} {} {} {result}",
                text("command"),
                text("outcome"),
                document["reason"].as_str().unwrap_or_default()
            )
        }
    };
    format!("{}Z  {:<8}  {}", utc(event.at_ms), event.kind, said.trim_end())
}
