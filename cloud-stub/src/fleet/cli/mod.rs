//! `hedge-cloud device`: what operators type, and what they read.

mod act;
mod args;
mod history;
mod look;
mod text;
mod watch;

pub use args::DeviceArgs;

use std::io::{self, Write};

use anyhow::{Context, bail, ensure};
use hedge_proto::{DeviceId, Topics};
use serde::Serialize;

use super::board::Device;
use super::operator::{Operator, Scope};
use crate::link::Way;
use args::{Ask, Chosen, Common};

/// Does what was asked. `false`: it was done, and not all devices are as they were meant to be.
pub fn run(args: &DeviceArgs) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match &args.ask {
            Ask::List(ask) => look::list(ask).await,
            Ask::Status(ask) => look::status(ask).await,
            Ask::Get(ask) => look::get(ask).await,
            Ask::Diff(ask) => look::diff(ask).await,
            Ask::Set(ask) => act::set(ask).await,
            Ask::Apply(ask) => act::apply(ask).await,
            Ask::Command(ask) => act::command(ask).await,
            Ask::Watch(ask) => watch::watch(ask).await,
            Ask::History(ask) => history::history(ask),
        }
    });
    match done {
        // Whoever read our output has had enough of it, as `head` has.
        Err(error) if is_broken_pipe(&error) => Ok(true),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Which devices are meant.
enum Target {
    One(DeviceId),
    Many(Chosen),
}

/// Splits the device's name from what follows it; with `--all` or `--where` there is none.
fn target<'a>(words: &'a [String], chosen: &Chosen) -> anyhow::Result<(Target, &'a [String])> {
    if chosen.all || chosen.filter.is_some() {
        return Ok((Target::Many(chosen.clone()), words));
    }
    let Some((name, rest)) = words.split_first() else {
        bail!("no device is named: give its name first, or --all, or --where CONDITIONS");
    };
    let name = DeviceId::new(name)
        .with_context(|| format!("`{name}` is not a device: give its name first, or --all, or --where CONDITIONS"))?;
    Ok((Target::One(name), rest))
}

/// Connects and listens to what `target` needs.
async fn connect(common: &Common, target: &Target, topics: &'static [&'static str]) -> anyhow::Result<Operator> {
    let broker = &common.broker;
    let way = Way::new(broker.url.clone(), &broker.credentials)?;
    let device = match target {
        Target::One(name) => Some(name.clone()),
        Target::Many(_) => None,
    };
    let prefix = Topics::new(&broker.prefix).context("--prefix")?;
    Ok(Operator::connect(&way, prefix, &Scope { device, topics }).await?)
}

/// The devices meant, as they are on the board.
fn chosen(operator: &Operator, target: &Target) -> anyhow::Result<Vec<(DeviceId, Device)>> {
    match target {
        Target::One(name) => {
            let device = operator.board.devices.get(name).cloned().filter(|device| *device != Device::default());
            let device = device.with_context(|| {
                format!("nothing is known of a device `{name}` at this broker; `hedge-cloud device list` shows all")
            })?;
            Ok(vec![(name.clone(), device)])
        }
        Target::Many(chosen) => {
            let devices = operator.board.devices.iter().filter(|(_, device)| **device != Device::default());
            let devices = devices.filter(|(name, device)| chosen.filter.as_ref().is_none_or(|w| w.holds(name, device)));
            let devices: Vec<_> = devices.map(|(name, device)| (name.clone(), device.clone())).collect();
            ensure!(!devices.is_empty(), "no device at this broker is like that; `hedge-cloud device list` shows all");
            Ok(devices)
        }
    }
}

/// One line, or a few, of output.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()
}

fn say_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    Ok(say(&serde_json::to_string(value)?)?)
}
