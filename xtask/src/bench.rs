//! Runs one measurement and passes its output through; the last line is one JSON object.

use anyhow::Result;

use crate::{build, command, onnxruntime, package};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(value_enum)]
    name: Name,
    /// Passed on to the measurement.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Durable cases per second of log and queue, beside a bare log on the same disk.
    Outbox,
    /// Cases per second from a full queue into the cloud's records, beside the broker alone.
    Drain,
    /// Memory, start, processor, wakes and writes of the agent, and the size of program and package.
    Footprint,
    /// Bytes a day of an idle, connected device.
    LinkIdle,
    /// Light devices at mosquitto and hedge-cloud: cases a second, waits, costs; `-- --devices N --rate R --payload B`, or
    /// `--herd CASES_EACH`.
    Fleet,
    /// How long the dashboard takes to answer with 100,000 cases, 10,000 devices and 30 days on record: `-- --cases N
    /// --devices N --days N`.
    Page,
    /// What an open tab of the dashboard holds after an hour of live updates, told one after the other: `-- --minutes N`.
    Tab,
    /// How well the judge ranks, keeps a budget and keeps a promise, replayed from traces: `-- --traces DIR` for others.
    Cascade,
    /// mAP@50 and F1 of the detectors on labelled photos, alone and together: `-- --labelled DIR`.
    Detection,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (of, name) = match arguments.name {
        Name::Outbox => ("hedge-outbox", "outbox"),
        Name::Drain => ("hedge-tests", "drain"),
        Name::Footprint => ("hedge-tests", "footprint"),
        Name::LinkIdle => ("hedge-tests", "link_idle"),
        Name::Fleet => ("hedge-tests", "fleet"),
        Name::Page => ("hedge-cloud", "page"),
        Name::Tab => ("hedge-tests", "tab"),
        Name::Cascade => ("hedge-inference", "cascade"),
        Name::Detection => ("hedge-inference", "detection"),
    };
    // What the browser holds does not depend on how the programs were built.
    let is_browsers = matches!(arguments.name, Name::Tab);
    let programs = match of {
        "hedge-tests" if is_browsers => Some(build::programs()?),
        "hedge-tests" => Some(build::released_programs()?),
        _ => None,
    };
    let mut bench = command::cargo(&["bench", "--quiet", "--package", of, "--bench", name]);
    bench.args(if is_browsers { &["--profile", "dev", "--"][..] } else { &["--"] });
    if of != "hedge-outbox" {
        bench.env("ORT_DYLIB_PATH", onnxruntime::library()?);
    }
    if let Some(programs) = &programs {
        bench.env("HEDGETEST_PROGRAMS", programs);
        if let Name::Footprint = arguments.name {
            bench.arg("--package").arg(package::agent(programs)?);
        }
    }
    command::run(bench.args(&arguments.arguments))
}
