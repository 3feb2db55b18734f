//! `set`, `apply` and `command`: from words to errands, and what is said of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hedge_proto::{CommandMessage, DOCUMENT_BYTES_MAX, DeviceId};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::args::{Apply, Change as ChangeArgs, Command, Common, Set};
use super::{Target, chosen, connect, say, say_json, target, text};
use crate::fleet::board::Device;
use crate::fleet::carry_out::{Patience, Progress, carry_out};
use crate::fleet::change::{Change, Edit, draft};
use crate::fleet::errand::{Ending, Errand, Report, What};
use crate::fleet::operator::{ACTING, Operator};
use crate::fleet::random_id;
use crate::fleet::stages;
use crate::wall_ms;

/// A trial may last 180 s of the device's time; then it has to come back and say so.
const TRIAL_WAIT: Duration = Duration::from_secs(240);

pub(super) async fn set(ask: &Set) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.chosen)?;
    ensure!(!rest.is_empty(), "nothing is set; write KEY=VALUE");
    let edits = rest.iter().map(|text| text.parse::<Edit>()).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    change(&ask.common, &target, &Change::Edits(edits), &ask.change).await
}

pub(super) async fn apply(ask: &Apply) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.chosen)?;
    let [file] = rest else { bail!("give one FILE with the settings, or `-`") };
    change(&ask.common, &target, &Change::Whole(overlay(Path::new(file))?), &ask.change).await
}

/// The settings in a file.
fn overlay(file: &Path) -> anyhow::Result<Value> {
    let text = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let limit = DOCUMENT_BYTES_MAX as u64 + 1;
        std::io::stdin().take(limit).read_to_end(&mut bytes).context("standard input")?;
        hedge_proto::text(bytes).context("standard input")?
    } else {
        hedge_inference::read_text(file).with_context(|| file.display().to_string())?
    };
    let read = match file.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(anyhow::Error::from),
        _ => serde_json::from_str(&text).map_err(anyhow::Error::from),
    };
    let overlay: Value = read.with_context(|| format!("{} is not what its name says", file.display()))?;
    ensure!(overlay.is_object(), "{} holds no settings: an object is needed, such as {{}}", file.display());
    Ok(overlay)
}

async fn change(common: &Common, target: &Target, change: &Change, args: &ChangeArgs) -> anyhow::Result<bool> {
    let mut operator = connect(common, target, ACTING).await?;
    let devices = match target {
        Target::One(name) if args.new => {
            let device = operator.board.devices.get(name).cloned().unwrap_or_default();
            vec![(name.clone(), device)]
        }
        _ => chosen(&operator, target)?,
    };
    let Some(stages) = &args.stages else {
        let drafts = drafts(&devices, change, args);
        return do_all(common, &mut operator, devices.len() == 1, drafts).await;
    };
    let devices: BTreeMap<_, _> = devices.into_iter().collect();
    in_stages(common, &mut operator, stages.of(&devices), change, args).await
}

/// What is to be sent to each, or why nothing is.
fn drafts(devices: &[(DeviceId, Device)], change: &Change, args: &ChangeArgs) -> Vec<Result<Errand, Box<Report>>> {
    let who = args.by.who();
    let drafts =
        devices.iter().map(|(name, device)| match draft(device, change, args.onto, args.confirm.into(), &who) {
            Ok(draft) => Ok(Errand::settings(name.clone(), draft)),
            Err(errors) => {
                let report = Report::new(name, Ending::Refused).because("nothing was sent");
                Err(Box::new(Report { errors, ..report }))
            }
        });
    drafts.collect()
}

/// One stage after the other, as long as all is well. What a device has already is not sent again, so the same command
/// goes on where an earlier one ended.
async fn in_stages(
    common: &Common,
    operator: &mut Operator,
    stages: Vec<Vec<DeviceId>>,
    change: &Change,
    args: &ChangeArgs,
) -> anyhow::Result<bool> {
    let (count, mut left) = (stages.len(), stages.iter().map(Vec::len).sum::<usize>());
    let mut changed = Vec::new();
    for (number, stage) in stages.into_iter().enumerate() {
        let of = |name: DeviceId| (name.clone(), operator.board.devices.get(&name).cloned().unwrap_or_default());
        let devices: Vec<_> = stage.into_iter().map(of).collect();
        let mut new = Vec::new();
        for (draft, (name, device)) in drafts(&devices, change, args).into_iter().zip(&devices) {
            let has_them = has(device, &draft);
            changed.push((name.clone(), stages::before(device, has_them)));
            new.extend(Some(draft).filter(|_| !has_them));
        }
        eprintln!("stage {} of {count}: {} devices, {} of them to be changed", number + 1, devices.len(), new.len());
        left -= devices.len();
        let last = number + 1 == count;
        let good = do_all(common, operator, false, new).await?;
        let why = match good {
            false => Some("not all devices have taken it".to_owned()),
            true if last => None,
            true => settle(operator, &changed, args).await?,
        };
        match why {
            Some(why) if last => eprintln!("{why}"),
            Some(why) => {
                eprintln!("stopped after stage {} of {count}; {left} devices are left alone: {why}", number + 1)
            }
            None => continue,
        }
        return Ok(false);
    }
    Ok(true)
}

/// Whether the device has taken these very settings.
fn has(device: &Device, draft: &Result<Errand, Box<Report>>) -> bool {
    let (Ok(Errand { what: What::Settings(draft), .. }), Some(wanted)) = (draft, &device.desired) else { return false };
    let in_force = device.reported.as_ref().is_some_and(|reported| reported.version == wanted.version);
    in_force && wanted.settings == draft.desired.settings
}

/// Watches the devices that were changed. Returns what has become worse, if anything has.
async fn settle(
    operator: &mut Operator,
    changed: &[(DeviceId, Device)],
    args: &ChangeArgs,
) -> anyhow::Result<Option<String>> {
    let begun = Instant::now();
    let (within, settle) = (Duration::from_secs(args.within.into()), Duration::from_secs(args.settle.into()));
    // Counted from when the last bundle came.
    let mut whole_at = begun;
    loop {
        let (mut awaited, mut worst) = (None, None);
        for (name, before) in changed {
            let Some(now) = operator.board.devices.get(name) else { continue };
            worst = worst.or_else(|| stages::worse(before, now).map(|why| format!("{name}: {why}")));
            let settings = now.desired.as_ref().map_or(&Value::Null, |wanted| &wanted.settings);
            awaited = awaited.or_else(|| stages::missing(now, settings).map(|what| format!("{name}: {what}")));
        }
        if worst.is_some() {
            return Ok(worst);
        }
        let until = match &awaited {
            Some(what) if begun.elapsed() >= within => {
                return Ok(Some(format!("{what} after {} s", within.as_secs())));
            }
            Some(_) => {
                whole_at = Instant::now();
                begun + within
            }
            None if whole_at.elapsed() >= settle => return Ok(None),
            None => whole_at + settle,
        };
        tokio::select! {
            heard = operator.next() => drop(heard?),
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

pub(super) async fn command(ask: &Command) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.chosen)?;
    let Some((name, args)) = rest.split_first() else { bail!("no command is given; `--help` lists them") };
    let args = arguments(args)?;
    let who = ask.by.who();
    let message = |id| CommandMessage {
        id: Some(id),
        command: name.clone(),
        args: args.clone(),
        issued_ms: Some(wall_ms()),
        by: Some(who.clone()),
    };
    // What no device takes is refused before anything is dialled.
    let nobody = DeviceId::new("nobody")?;
    Errand::command(nobody, message("id".to_owned())).map_err(|reason| {
        anyhow::anyhow!("`{name}` with these arguments is no command: {reason}; `--help` lists them")
    })?;
    let mut operator = connect(&ask.common, &target, ACTING).await?;
    let devices = match &target {
        Target::One(name) => vec![(name.clone(), Device::default())],
        Target::Many(_) => chosen(&operator, &target)?,
    };
    let errands = devices.iter().map(|(name, _)| {
        let id = ask.id.clone().map_or_else(random_id, Ok).context("the system gives no random numbers")?;
        Ok(Errand::command(name.clone(), message(id))
            .map_err(|reason| Box::new(Report::new(name, Ending::Refused).because(reason))))
    });
    let errands: Vec<_> = errands.collect::<anyhow::Result<_>>()?;
    do_all(&ask.common, &mut operator, devices.len() == 1, errands).await
}

/// `arg=value…` as one object. An argument's value is JSON where it reads as JSON, and text otherwise.
fn arguments(words: &[String]) -> anyhow::Result<Value> {
    let mut args = Map::new();
    for word in words {
        let (name, value) = word.split_once('=').with_context(|| format!("`{word}` is no ARG=VALUE"))?;
        args.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into()));
    }
    Ok(if args.is_empty() { Value::Null } else { args.into() })
}

async fn do_all(
    common: &Common,
    operator: &mut Operator,
    single: bool,
    errands: Vec<Result<Errand, Box<Report>>>,
) -> anyhow::Result<bool> {
    let devices = errands.len();
    let mut written = Ok(());
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut tell = |progress: Progress<'_>| {
        let said = match progress {
            Progress::Trial(device) => {
                eprintln!("{device}: on trial; waiting up to {} s for its end", TRIAL_WAIT.as_secs());
                Ok(())
            }
            Progress::Ended(report) => {
                *counts.entry(report.outcome.text()).or_default() += 1;
                if common.json { say_json(report) } else { say(&text::report(report, single)).map_err(Into::into) }
            }
        };
        written = std::mem::replace(&mut written, Ok(())).and(said);
    };
    let mut ready = Vec::new();
    let mut all_good = true;
    for errand in errands {
        match errand {
            Ok(errand) => ready.push(errand),
            Err(report) => {
                all_good = false;
                tell(Progress::Ended(&report));
            }
        }
    }
    let patience =
        Patience { answer: common.answer_wait(), trial: Some(TRIAL_WAIT), offline: common.timeout.is_some() };
    let reports = carry_out(operator, ready, patience, &mut tell).await;
    all_good &= reports.iter().all(|report| report.outcome.is_good());
    written?;
    if !single && !common.json {
        let counts: Vec<String> = counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        eprintln!("{devices} devices: {}", counts.join(", "));
    }
    Ok(all_good)
}
