//! `watch`: prints what devices say, over as many connections as it takes.

use std::time::Duration;

use anyhow::ensure;
use hedge_proto::{DeviceId, Reply};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::args::Look;
use super::{Target, connect, say, say_json, target, text};
use crate::fleet::board::Said;
use crate::fleet::operator::{Heard, Operator, WATCHING};
use crate::wall_ms;

/// Between two dials. A person is looking.
const DIAL_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn watch(ask: &Look) -> anyhow::Result<bool> {
    let target = if ask.words.is_empty() { Target::Many(ask.common.chosen.clone()) } else { watched(ask)? };
    let mut operator = connect(&ask.common, &target, WATCHING).await?;
    print_board(ask, &operator)?;
    loop {
        tokio::select! {
            heard = operator.next() => match heard {
                Ok(heard) => print(ask, &operator, &heard)?,
                Err(error) => {
                    eprintln!("{error}");
                    operator = again(ask, &target).await?;
                    // What was said meanwhile is on the new board only.
                    print_board(ask, &operator)?;
                }
            },
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                operator.close().await;
                return Ok(true);
            }
        }
    }
}

fn watched(ask: &Look) -> anyhow::Result<Target> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    ensure!(rest.is_empty(), "give one NAME, or none for all devices");
    Ok(target)
}

/// Dials until it works or Ctrl-C is pressed.
async fn again(ask: &Look, target: &Target) -> anyhow::Result<Operator> {
    loop {
        tokio::select! {
            () = sleep(DIAL_WAIT) => {}
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                anyhow::bail!("stopped while the broker was out of reach");
            }
        }
        match connect(&ask.common, target, WATCHING).await {
            Ok(operator) => return Ok(operator),
            Err(error) => eprintln!("{error}"),
        }
    }
}

fn print_board(ask: &Look, operator: &Operator) -> anyhow::Result<()> {
    for (device, known) in &operator.board.devices {
        let there = [
            known.status.clone().map(|status| Said::Status(Some(status))),
            known.reported.clone().map(|reported| Said::Reported(Some(Box::new(reported)))),
            known.desired.clone().map(|desired| Said::Desired(Some(desired))),
        ];
        for said in there.into_iter().flatten() {
            print(ask, operator, &Heard { device: device.clone(), said, retained: true })?;
        }
    }
    Ok(())
}

fn print(ask: &Look, operator: &Operator, heard: &Heard) -> anyhow::Result<()> {
    let Heard { device, said, retained } = heard;
    let known = operator.board.devices.get(device);
    let wanted = ask.common.chosen.filter.as_ref().is_none_or(|w| known.is_some_and(|known| w.holds(device, known)));
    if !wanted {
        return Ok(());
    }
    let (what, document) = document(said);
    if ask.common.json {
        return say_json(&json!({
            "at_ms": wall_ms(), "device": device, "what": what, "retained": retained, "document": document,
        }));
    }
    Ok(say(&line(device, said, what, &document))?)
}

fn document(said: &Said) -> (&'static str, Value) {
    match said {
        Said::Status(status) => ("status", json!(status)),
        Said::Reported(reported) => ("reported", json!(reported)),
        Said::Desired(desired) => ("desired", json!(desired)),
        Said::Reply(reply) => ("reply", json!(reply)),
        Said::Telemetry(telemetry) => ("telemetry", json!(telemetry)),
        Said::Unreadable(what, why) => (what, json!({"unreadable": why})),
    }
}

fn line(device: &DeviceId, said: &Said, what: &str, document: &Value) -> String {
    let said = match said {
        Said::Reported(Some(reported)) => text::reported(reported.version, reported.last.as_ref()),
        Said::Telemetry(telemetry) => format!(
            "{}: {}; {} answered, {} deferred, {} waiting",
            telemetry.link.name(),
            telemetry.link_reason,
            telemetry.samples.answered,
            telemetry.samples.deferred,
            telemetry.queue.waiting
        ),
        Said::Reply(Reply { id, .. }) => {
            format!("to {}: {document}", id.as_deref().unwrap_or("a command without an id"))
        }
        _ => document.to_string(),
    };
    format!("{device}  {what:<9}  {said}")
}
