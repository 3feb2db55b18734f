//! `set`, `apply` and `command`: from words to errands, and what is said of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hedge_proto::{CommandMessage, DOCUMENT_BYTES_MAX, DeviceId};
use serde_json::{Map, Value};

use super::args::{Apply, Change as ChangeArgs, Command, Common, Set};
use super::{Target, chosen, connect, say, say_json, target, text};
use crate::fleet::board::Device;
use crate::fleet::carry_out::{Patience, Progress};
use crate::fleet::change::{Change, Edit};
use crate::fleet::errand::{Ending, Errand, Report};
use crate::fleet::operator::{ACTING, Operator};
use crate::fleet::random_id;
use crate::fleet::rollout::{self, Plan, Step, Stopped};
use crate::wall_ms;

/// A trial may last 180 s of the device's time; then it has to come back and say so.
const TRIAL_WAIT: Duration = Duration::from_secs(240);

pub(super) async fn set(ask: &Set) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    ensure!(!rest.is_empty(), "nothing is set; write KEY=VALUE");
    let edits = rest.iter().map(|text| text.parse::<Edit>()).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    change(&ask.common, &target, &Change::Edits(edits), &ask.change).await
}

pub(super) async fn apply(ask: &Apply) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
    let [file] = rest else { bail!("give one FILE with the settings, or `-`") };
    change(&ask.common, &target, &Change::Whole(overlay(Path::new(file))?), &ask.change).await
}

/// The settings in a file.
fn overlay(file: &Path) -> anyhow::Result<Value> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let text = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let limit = DOCUMENT_BYTES_MAX as u64 + 1;
        std::io::stdin().take(limit).read_to_end(&mut bytes).with_context(|| name.clone())?;
        hedge_proto::text(bytes).with_context(|| name.clone())?
    } else {
        hedge_inference::read_text(file).with_context(|| name.clone())?
    };
    let (form, read) = match file.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => ("TOML", toml::from_str(&text).map_err(anyhow::Error::from)),
        _ => ("JSON", serde_json::from_str(&text).map_err(anyhow::Error::from)),
    };
    let overlay: Value = read.with_context(|| format!("{name} is no {form}"))?;
    ensure!(overlay.is_object(), "{name} holds no settings: an object is needed, such as {{}}");
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
    let plan = Plan {
        change: change.clone(),
        onto: args.onto,
        confirm: args.confirm.into(),
        by: args.by.who(),
        settle: Duration::from_secs(args.settle.into()),
        within: Duration::from_secs(args.within.into()),
        patience: patience(common),
    };
    let Some(stages) = &args.stages else {
        let drafts = rollout::drafts(&devices, &plan);
        return do_all(common, &mut operator, devices.len() == 1, drafts).await;
    };
    let devices: BTreeMap<_, _> = devices.into_iter().collect();
    in_stages(common, &mut operator, stages.of(&devices), &plan).await
}

/// One stage after the other; what they come to is said as it comes.
async fn in_stages(
    common: &Common,
    operator: &mut Operator,
    stages: Vec<Vec<DeviceId>>,
    plan: &Plan,
) -> anyhow::Result<bool> {
    let count = stages.len();
    let mut saying = Saying::new(common, false);
    let mut devices_of_stage = 0;
    let stopped = rollout::in_stages(operator, stages, plan, |step| match step {
        Step::Stage { number, devices, to_change } => {
            devices_of_stage = to_change;
            eprintln!("stage {number} of {count}: {devices} devices, {to_change} of them to be changed");
        }
        Step::Device(progress) => saying.tell(&progress),
        Step::Taken => saying.sum_up(devices_of_stage),
        Step::Awaits(_) => {}
    });
    let stopped = stopped.await?;
    saying.written?;
    match &stopped {
        None => {}
        Some(Stopped { stage, why, .. }) if *stage == count => eprintln!("{why}"),
        Some(Stopped { stage, left, why }) => {
            eprintln!("stopped after stage {stage} of {count}; {left} devices are left alone: {why}");
        }
    }
    Ok(stopped.is_none())
}

pub(super) async fn command(ask: &Command) -> anyhow::Result<bool> {
    let (target, rest) = target(&ask.words, &ask.common.chosen)?;
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
    let mut saying = Saying::new(common, single);
    let all_good = rollout::do_all(operator, errands, patience(common), |progress| saying.tell(&progress)).await;
    saying.sum_up(devices);
    saying.written?;
    Ok(all_good)
}

fn patience(common: &Common) -> Patience {
    Patience { answer: common.answer_wait(), trial: Some(TRIAL_WAIT), offline: common.timeout.is_some() }
}

/// Says what becomes of each device, and how many came to what.
struct Saying<'a> {
    common: &'a Common,
    single: bool,
    counts: BTreeMap<&'static str, usize>,
    /// The first failure to write.
    written: anyhow::Result<()>,
}

impl<'a> Saying<'a> {
    fn new(common: &'a Common, single: bool) -> Self {
        Self { common, single, counts: BTreeMap::new(), written: Ok(()) }
    }

    fn tell(&mut self, progress: &Progress<'_>) {
        let said = match progress {
            Progress::Trial(device) => {
                eprintln!("{device}: on trial; waiting up to {} s for its end", TRIAL_WAIT.as_secs());
                Ok(())
            }
            Progress::Ended(report) => {
                *self.counts.entry(report.outcome.text()).or_default() += 1;
                if self.common.json {
                    say_json(report)
                } else {
                    say(&text::report(report, self.single)).map_err(Into::into)
                }
            }
        };
        self.written = std::mem::replace(&mut self.written, Ok(())).and(said);
    }

    fn sum_up(&mut self, devices: usize) {
        let counts = std::mem::take(&mut self.counts);
        if !self.single && !self.common.json {
            let counts: Vec<String> = counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            eprintln!("{devices} devices: {}", counts.join(", "));
        }
    }
}
