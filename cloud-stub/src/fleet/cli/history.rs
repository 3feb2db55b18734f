//! `history`: reads what `serve` has recorded of one device.

use anyhow::{Context, ensure};
use hedge_proto::LastDesired;
use serde_json::Value;

use super::args::History;
use super::text::reported;
use super::{say, say_json};
use crate::store::{Database, DeviceEvent, Reader};

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
    format!("{}  {:<8}  {}", utc(event.at_ms), event.kind, said.trim_end())
}

/// `2026-11-25 14:02:11Z`. Days are counted in 400-year cycles from 1 March, so that leap days fall at the end.
fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000 + 719_468, ms / 1000 % 86_400);
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days / 146_097 * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_read_them() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_798_761_599_000, "2026-12-31 23:59:59Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }
}
