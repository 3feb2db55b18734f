//! `hedge-agent support`: one file to send along with a question. No secrets and no samples are in it.
//!
//! Everything that goes in is text, goes through the mask and has a bound. What cannot be had is said in its place.

mod facts;
mod mask;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

use self::mask::Masker;
use super::check::{self, CheckArgs};
use super::queue::stats;
use super::running;
use crate::ConfigArgument;
use hedge_agent::audit;
use hedge_config::Starting;

/// The most of one file that goes in; of a longer one its end.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Lines of the journal, and entries of the audit log.
const LOG_LINES: usize = 2000;

/// What `support` takes.
#[derive(clap::Args)]
#[command(
    after_help = "The file holds the configuration with secrets masked, check, status, metrics, queue figures, the last log \
    lines and who changed what. Look into it before you send it: tar tzf FILE."
)]
pub struct SupportArgs {
    #[command(flatten)]
    config: ConfigArgument,
    /// Where to write it; `hedge-support-DEVICE.tar.gz` in this folder if not given. Nothing is overwritten.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Take the log from this file instead of the journal of hedge-agent.service.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Leave the broker alone while checking.
    #[arg(long)]
    offline: bool,
}

/// Gathers, masks and writes.
pub async fn run(args: &SupportArgs) -> anyhow::Result<ExitCode> {
    let files = gather(args).await;
    let name = files.device.clone();
    let path = args.out.clone().unwrap_or_else(|| format!("hedge-support-{name}.tar.gz").into());
    // What is masked is still the operator's own business.
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot write {}; choose another with --out", path.display()))?;
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut bytes = 0;
    for (name, text) in &files.files {
        let text = text.as_bytes();
        ensure!(text.len() <= FILE_BYTES_MAX + 100, "{name} is longer than it may be");
        bytes += text.len();
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        tar.append_data(&mut header, format!("hedge-support-{}/{name}", files.device), text)?;
    }
    tar.into_inner()?.finish()?.sync_all()?;
    let count = files.files.len();
    writeln!(std::io::stdout(), "{}: {count} files, {bytes} bytes unpacked", path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// What goes in, masked and bounded.
struct Files {
    device: String,
    files: Vec<(&'static str, String)>,
    masker: Masker,
}

impl Files {
    fn add(&mut self, name: &'static str, text: &str) {
        let mut text = self.masker.text(text);
        if text.len() > FILE_BYTES_MAX {
            let mut from = text.len() - FILE_BYTES_MAX;
            while !text.is_char_boundary(from) {
                from += 1;
            }
            text = format!("[{from} bytes before this were left out]\n{}", &text[from..]);
        }
        self.files.push((name, text));
    }

    fn add_or_why<E: std::fmt::Display>(&mut self, name: &'static str, text: Result<String, E>) {
        match text {
            Ok(text) => self.add(name, &text),
            Err(error) => self.add(name, &format!("not to be had: {error}\n")),
        }
    }
}

async fn gather(args: &SupportArgs) -> Files {
    let starting = Starting::load(&args.config.config, &std::env::vars().collect::<Vec<_>>());
    let config = &starting.file.config;
    let device = config.device_id().map_or_else(|_| "device".to_owned(), |device| device.to_string());
    // The environment may have replaced what the file says; the log may still have either.
    let texts = [starting.file.text(), &starting.file.effective_text()].join("\n");
    let masker = Masker::new(config, &texts);
    let mut files = Files { device, files: Vec::new(), masker };
    files.add("README.txt", README);
    files.add("versions.txt", &facts::versions());
    files.add("board.txt", &facts::board(&config.state_dir));
    if let Some(fault) = &starting.fault {
        // A broken file is not shown: where its secrets are cannot be told.
        files.add("config-fault.txt", &format!("{fault}\n"));
    }
    files.add("config.toml", &starting.file.effective_text());
    let checks = CheckArgs { config: args.config.clone(), json: false, offline: args.offline };
    let (report, _) = check::look(&checks).await;
    files.add("check.txt", &report.text());
    files.add("check.json", &format!("{:#}\n", report.json()));
    match running(config).await {
        Some(agent) => {
            for (name, path) in
                [("status.json", "/v1/status"), ("health.json", "/healthz"), ("metrics.txt", "/metrics")]
            {
                let text = agent.bytes(path).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                files.add_or_why(name, text);
            }
        }
        None => files.add("status.json", "not to be had: no agent answers\n"),
    }
    files.add_or_why("queue.json", stats(config).await);
    let audit = audit::read(&config.state_dir, LOG_LINES).map(|(lines, _)| {
        lines.iter().filter_map(|line| serde_json::to_string(line).ok()).collect::<Vec<_>>().join("\n")
    });
    files.add_or_why("audit.jsonl", audit);
    files.add_or_why("log.txt", facts::log(args.log.as_deref(), LOG_LINES));
    files
}

const README: &str = "\
What `hedge-agent support` gathered on this device.

config.toml   the configuration in force at the next start, environment included; secrets are ***
check.txt     what `hedge-agent check` found; check.json is the same
status.json   the running agent's /v1/status; health.json, metrics.txt
queue.json    how many cases wait and how large they are; no case, no sample
audit.jsonl   who changed settings and gave commands
log.txt       the last lines of the agent's log, which has nothing of samples
board.txt     memory, disk, temperature; versions.txt: programs and system
";
