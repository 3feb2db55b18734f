//! `hedge-cloud export`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use hedge_proto::{Authority, Name};

use super::{Format, write};
use crate::store::{Reader, RecordsArgs, Sought};

/// Write answered cases and their pictures as a training set: a tar archive whose devices are either in train/ or in test/
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where the records are kept
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state")]
    pub state_dir: PathBuf,

    #[command(flatten)]
    pub records: RecordsArgs,

    /// The tar archive to write; - is standard output
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// How labels are written
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,

    /// Only cases of this device
    #[arg(long, value_name = "NAME")]
    pub device: Option<Name>,

    /// Only cases of this task
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,

    /// Only cases where device or verdict say this label
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,

    /// Only cases whose verdict contradicts the device
    #[arg(long)]
    pub disagreements: bool,

    /// Only cases that a person has answered
    #[arg(long)]
    pub by_people: bool,
}

/// What was written, as a sentence.
pub fn run(args: &ExportArgs) -> anyhow::Result<String> {
    let reader = Reader::open(&args.records.at(&args.state_dir)?)?;
    let sought = Sought {
        device: args.device.clone(),
        task: args.task.clone(),
        label: args.label.clone(),
        agrees: args.disagreements.then_some(false),
        authority: args.by_people.then_some(Authority::Person),
        ..Sought::default()
    };
    let counts = if args.out == Path::new("-") {
        write(&reader, sought, args.format, io::stdout().lock(), &args.state_dir)?
    } else {
        let out = File::create(&args.out).with_context(|| format!("--out {}", args.out.display()))?;
        write(&reader, sought, args.format, &out, &args.state_dir)
            .and_then(|counts| Ok(out.sync_all().map(|()| counts)?))?
    };
    let left_out: Vec<String> =
        counts.left_out.iter().map(|(why, n)| format!("{n} {}", why.replace('_', " "))).collect();
    let left_out = if left_out.is_empty() { "none".to_owned() } else { left_out.join(", ") };
    Ok(format!("{} pictures to train with, {} to test with; left out: {left_out}", counts.train, counts.test))
}
