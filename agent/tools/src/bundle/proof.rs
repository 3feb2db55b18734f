//! Runs a bundle's golden samples in a child process of limited means: a model that crashes, eats memory or never ends
//! takes only the child with it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use hedge_inference::{Bundle, Model, Runtime, SessionOptions};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::confine::confine;

/// The name of the command that the child is started with.
pub(super) const COMMAND: &str = "prove";

/// What the library and its threads may take besides the model.
const MEMORY_BASE: u64 = 1024 * 1024 * 1024;

/// How often the model may be in memory: as a file, as tensors, and as tensors laid out for this processor.
const MODEL_COPIES: u64 = 4;

/// How much of a processor it may take, and how long at most.
const PROCESSOR_S: u64 = 120;
const WAIT_MAX: Duration = Duration::from_secs(180);

/// How much of what the child says is read.
const SAID_BYTES_MAX: u64 = 4096;

/// Run a bundle's golden samples under limits. Started by `bundle update`.
#[derive(Debug, clap::Args)]
pub struct ProveArgs {
    dir: PathBuf,
    #[arg(long)]
    variant: Option<String>,
    #[arg(long)]
    library: Option<PathBuf>,
}

/// In the parent: what the child finds, or how it ended.
pub(super) async fn run(dir: &Path, variant: Option<&str>, library: Option<&Path>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("it cannot be tried: {error}");
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["bundle", COMMAND]).arg(dir);
    command.args(variant.into_iter().flat_map(|variant| ["--variant", variant]));
    if let Some(library) = library {
        command.arg("--library").arg(library);
    }
    // Secrets of the environment are not the model's business.
    command.env_clear();
    for name in ["ORT_DYLIB_PATH", "LD_LIBRARY_PATH"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take();
    let ended = async {
        let mut said = String::new();
        if let Some(stdout) = stdout {
            // What is no text is no word of ours.
            drop(stdout.take(SAID_BYTES_MAX).read_to_string(&mut said).await);
        }
        (child.wait().await, said)
    };
    let Ok((status, said)) = timeout(WAIT_MAX, ended).await else {
        return Err(format!("its trial took longer than {} s", WAIT_MAX.as_secs()));
    };
    found(status.map_err(failed)?, &said)
}

/// What a child found, by how it ended and what it said.
fn found(status: ExitStatus, said: &str) -> Result<(), String> {
    match (status.code(), said.trim()) {
        (Some(0), PASSED) => Ok(()),
        (Some(1), said) if !said.is_empty() => Err(said.chars().filter(|c| !c.is_control()).collect()),
        _ => Err(format!("its trial ended with {status}: the model or the runtime does not bear it")),
    }
}

/// The whole of what the child says if all is well.
const PASSED: &str = "passed";

/// In the child.
pub(super) fn write(args: &ProveArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match limited(&args.dir).and_then(|()| prove(args)) {
        Ok(()) => {
            writeln!(out, "{PASSED}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => {
            writeln!(out, "{reason}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Gives up what a model does not need, for good.
fn limited(dir: &Path) -> Result<(), String> {
    let models = std::fs::read_dir(dir).map_err(|error| error.to_string())?;
    let bytes: u64 = models.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
    confine(MEMORY_BASE + bytes.saturating_mul(MODEL_COPIES), PROCESSOR_S)
}

fn prove(args: &ProveArgs) -> Result<(), String> {
    let bundle = Bundle::open(&args.dir).map_err(|error| error.to_string())?;
    let variant = bundle.variant(args.variant.as_deref()).map_err(|error| error.to_string())?;
    if bundle.manifest().goldens.is_empty() {
        return Err("it has no golden samples, so nothing shows that it works here; give it some".to_owned());
    }
    let runtime = Runtime::find(args.library.as_deref()).map_err(|error| error.to_string())?;
    let options = SessionOptions::default();
    let mut model =
        Model::load(&runtime, &bundle, Some(variant.name.as_str()), &options).map_err(|error| error.to_string())?;
    model.check_goldens(&bundle, variant)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_crash_in_the_runtime_is_a_failed_trial_that_says_how_it_ended() {
        let [exited, killed]: [fn(i32) -> ExitStatus; 2] =
            [|code| ExitStatus::from_raw(code << 8), |signal| ExitStatus::from_raw(signal)];
        found(exited(0), "passed\n").expect("it passed");
        assert_eq!(found(exited(1), "label 3: expected\x1b Bag\n"), Err("label 3: expected Bag".to_owned()));
        for (signal, name) in [(libc::SIGSEGV, "SIGSEGV"), (libc::SIGABRT, "SIGABRT"), (libc::SIGXCPU, "SIGXCPU")] {
            // Whatever it has said before.
            let reason = found(killed(signal), "passed").expect_err("it crashed");
            assert!(reason.contains(name) && reason.contains("does not bear it"), "{reason}");
        }
        for (status, said) in [(exited(0), ""), (exited(0), "passed, I say"), (exited(1), ""), (exited(2), "passed")] {
            found(status, said).expect_err("that is no word of ours");
        }
    }
}
