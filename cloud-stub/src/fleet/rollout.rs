//! Brings a change to devices stage by stage, over one connection: what the command and the page both do with
//! `--stages`. Which devices are in a stage, and what ends it, is decided in [`super::stages`].
//!
//! ```text
//! draft ─► carry out ─► all have taken it? ─► settle: whole and well for long enough? ─► next stage
//!                            └─ no: stopped          └─ worse, or too late: stopped
//! ```
//! What a device has already is not sent again, so that the same change goes on where an earlier one ended, whoever or
//! whatever ended it. Dropping the future leaves what was published as it is.

use std::time::Duration;

use hedge_proto::{Confirm, DeviceId};
use serde_json::Value;
use tokio::time::Instant;

use super::board::Device;
use super::carry_out::{Patience, Progress, carry_out};
use super::change::{Change, Onto, draft};
use super::errand::{Errand, Report, What};
use super::operator::Operator;
use super::stages;
use crate::link::HearingError;

/// What is wanted of every device, and how carefully.
#[derive(Debug, Clone)]
pub struct Plan {
    pub change: Change,
    pub onto: Option<Onto>,
    pub confirm: Confirm,
    pub by: String,
    /// How long devices are watched before the next stage.
    pub settle: Duration,
    /// How long a bundle that the settings want may take to come.
    pub within: Duration,
    pub patience: Patience,
}

/// What happens meanwhile.
pub enum Step<'a> {
    /// A stage begins, counted from one.
    Stage {
        number: usize,
        devices: usize,
        to_change: usize,
    },
    Device(Progress<'a>),
    /// Each device of the stage has answered, or will not.
    Taken,
    /// What the next stage waits for; nothing: for devices to stay well.
    Awaits(Option<&'a str>),
}

/// Why not every device was changed, or is as it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// After which stage, counted from one.
    pub stage: usize,
    /// How many devices were left alone.
    pub left: usize,
    pub why: String,
}

/// What is to be sent to each, or why nothing is.
pub fn drafts(devices: &[(DeviceId, Device)], plan: &Plan) -> Vec<Result<Errand, Box<Report>>> {
    let drafts =
        devices.iter().map(|(name, device)| match draft(device, &plan.change, plan.onto, plan.confirm, &plan.by) {
            Ok(draft) => Ok(Errand::settings(name.clone(), draft)),
            Err(errors) => Err(Box::new(Report::not_sent(name, errors))),
        });
    drafts.collect()
}

/// One stage after the other, as long as all is well.
pub async fn in_stages(
    operator: &mut Operator,
    stages: Vec<Vec<DeviceId>>,
    plan: &Plan,
    mut tell: impl FnMut(Step<'_>),
) -> Result<Option<Stopped>, HearingError> {
    let (count, mut left) = (stages.len(), stages.iter().map(Vec::len).sum::<usize>());
    let mut changed = Vec::new();
    for (number, stage) in (1..).zip(stages) {
        let of = |name: DeviceId| (name.clone(), operator.board.devices.get(&name).cloned().unwrap_or_default());
        let devices: Vec<_> = stage.into_iter().map(of).collect();
        let mut new = Vec::new();
        for (draft, (name, device)) in drafts(&devices, plan).into_iter().zip(&devices) {
            let has_them = has(device, &draft);
            changed.push((name.clone(), stages::before(device, has_them)));
            new.extend(Some(draft).filter(|_| !has_them));
        }
        tell(Step::Stage { number, devices: devices.len(), to_change: new.len() });
        left -= devices.len();
        let good = do_all(operator, new, plan.patience, |progress| tell(Step::Device(progress))).await;
        tell(Step::Taken);
        let why = match good {
            false => Some("not all devices have taken it".to_owned()),
            true if number == count => None,
            true => settle(operator, &changed, plan, |what| tell(Step::Awaits(what))).await?,
        };
        if let Some(why) = why {
            return Ok(Some(Stopped { stage: number, left, why }));
        }
    }
    Ok(None)
}

/// Whether each was ready, and has ended well.
pub async fn do_all(
    operator: &mut Operator,
    errands: Vec<Result<Errand, Box<Report>>>,
    patience: Patience,
    mut tell: impl FnMut(Progress<'_>),
) -> bool {
    let (mut ready, mut all_good) = (Vec::new(), true);
    for errand in errands {
        match errand {
            Ok(errand) => ready.push(errand),
            Err(report) => {
                all_good = false;
                tell(Progress::Ended(&report));
            }
        }
    }
    let reports = carry_out(operator, ready, patience, tell).await;
    all_good && reports.iter().all(|report| report.outcome.is_good())
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
    plan: &Plan,
    mut tell: impl FnMut(Option<&str>),
) -> Result<Option<String>, HearingError> {
    let begun = Instant::now();
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
        tell(awaited.as_deref());
        let until = match &awaited {
            Some(what) if begun.elapsed() >= plan.within => {
                return Ok(Some(format!("{what} after {} s", plan.within.as_secs())));
            }
            Some(_) => {
                whole_at = Instant::now();
                begun + plan.within
            }
            None if whole_at.elapsed() >= plan.settle => return Ok(None),
            None => whole_at + plan.settle,
        };
        tokio::select! {
            heard = operator.next() => drop(heard?),
            () = tokio::time::sleep_until(until) => {}
        }
    }
}
