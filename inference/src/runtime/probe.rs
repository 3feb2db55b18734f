//! Lets a child process try a library, so that only the child dies of it.
//!
//! The child is this same program, started with [`ASKED`] set: [`probe_if_asked`], the first call of `main`,
//! then loads the library, runs a tiny model and exits. What the child finds wrong and survives is not told:
//! the parent can then look for itself. With [`WITH`] set it runs that model on an execution provider, too, and tells
//! how many of its steps the provider took.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ort::session::Session;
use ort::value::{DynTensor, TensorRef, ValueType};
use serde::{Deserialize, Serialize};

use super::provider::{ProviderChoice, Steps};
use super::{Runtime, RuntimeError};

/// The variable that makes a start of the program a probe of the library it names.
const ASKED: &str = "HEDGE_PROBE_LIBRARY";

/// The variable with a [`Trial`] as JSON.
const WITH: &str = "HEDGE_PROBE_WITH";

/// What a child runs on an execution provider.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Trial {
    pub(super) choice: ProviderChoice,
    pub(super) model: PathBuf,
    /// Of one sample.
    pub(super) shape: Vec<usize>,
    pub(super) threads: u8,
}

/// What the child prints once nothing can kill it any more. Some versions crash while the process ends.
const SURVIVED: &str = "survived";

/// The longest a probe may take. A Raspberry Pi with a cold SD card loads the library in a few seconds.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(30);

/// The longest the trial of a provider may take: some translate the whole model first.
const TRIAL_WAIT_MAX: Duration = Duration::from_secs(120);

/// The most that is read of what a child says.
const SAID_BYTES_MAX: u64 = 4096;

/// How often the child is looked at. Loading takes about 50 ms.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A convolution, a pooling and a matrix product over ones; made by models/recipes/probe.py.
const TINY_MODEL: &[u8] = include_bytes!("probe.onnx");
const TINY_INPUT: ([usize; 4], [f32; 64]) = ([1, 1, 8, 8], [1.0; 64]);

/// How a child ends that could not be made to execute the program. It is told in this way where starting it cannot
/// fail at once, as under an emulator; the program itself never ends so.
const NOT_EXECUTED: i32 = 127;

/// Illegal instruction, on every Linux.
const SIGILL: i32 = 4;

/// What the kernel ends a process with for want of memory.
const SIGKILL: i32 = 9;

/// Whether a child of this program would know what to do.
static CHILD_WOULD_PROBE: AtomicBool = AtomicBool::new(false);

/// Must be the first call of every `main` that uses [`Runtime::find`]. In a child started for a probe it does
/// not return.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the child is done and must not start the program")]
pub fn probe_if_asked() {
    CHILD_WOULD_PROBE.store(true, Ordering::Relaxed);
    let Some(library) = std::env::var_os(ASKED) else { return };
    // A failure here is no crash: the parent meets it again and can say what it is.
    let steps = try_out(&library);
    let steps = steps.as_ref().ok().and_then(|steps| serde_json::to_string(steps).ok());
    let told = writeln!(std::io::stdout(), "{SURVIVED} {}", steps.as_deref().unwrap_or_default()).is_ok();
    std::process::exit(if steps.is_some() && told { 0 } else { 1 });
}

fn try_out(library: &OsStr) -> Result<Option<Steps>, String> {
    let runtime = Runtime::load(library.into()).map_err(|error| error.to_string())?;
    let Some(with) = std::env::var_os(WITH) else {
        return run_tiny_model(&runtime).map(|()| None).map_err(|error| error.to_string());
    };
    let trial: Trial = serde_json::from_slice(with.as_encoded_bytes()).map_err(|error| error.to_string())?;
    run_on_provider(&runtime, &trial).map_err(|error| error.to_string())
}

/// How many of the model's steps the provider took.
fn run_on_provider(runtime: &Runtime, trial: &Trial) -> ort::Result<Option<Steps>> {
    let profile = std::env::temp_dir().join(format!("hedge-probe-{}", std::process::id()));
    let builder = runtime.session_on(&trial.choice, trial.threads)?;
    // A device without room for temporary files runs it all the same; then nobody knows the steps.
    let mut session = match builder.with_profiling(&profile) {
        Ok(mut profiled) => profiled.commit_from_file(&trial.model)?,
        Err(_) => runtime.session_on(&trial.choice, trial.threads)?.commit_from_file(&trial.model)?,
    };
    run_once(&mut session, &trial.shape)?;
    let Ok(file) = session.end_profiling() else { return Ok(None) };
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    // It lies in a folder that is emptied anyway.
    std::fs::remove_file(&file).ok();
    Ok(Steps::of_profile(&text, trial.choice.provider))
}

/// One sample of zeros, or of what lies in memory.
fn run_once(session: &mut Session, shape: &[usize]) -> ort::Result<()> {
    let inputs =
        session.inputs().iter().map(|input| (input.name().to_owned(), input.dtype().clone())).collect::<Vec<_>>();
    let Some((name, ValueType::Tensor { ty, .. })) = inputs.into_iter().next() else { return Ok(()) };
    let input = DynTensor::new(session.allocator(), ty, shape.to_vec())?;
    session.run(ort::inputs![name => input])?;
    Ok(())
}

fn run_tiny_model(runtime: &Runtime) -> ort::Result<()> {
    let mut session = runtime.session(1)?.commit_from_memory(TINY_MODEL)?;
    let (shape, values) = TINY_INPUT;
    session.run(ort::inputs![TensorRef::from_array_view((shape, &values[..]))?])?;
    Ok(())
}

/// What a library did to its child, and how the file looked then.
static KNOWN: Mutex<Option<(FileLook, Arc<RuntimeError>)>> = Mutex::new(None);

/// Name, length and time of change of a file.
type FileLook = (PathBuf, u64, Option<SystemTime>);

/// Like [`ask_child`], but a library that has killed a child is not tried again before its file changes.
pub(super) fn ask_child_once(library: &Path) -> Result<(), RuntimeError> {
    let look = std::fs::metadata(library).ok().map(|file| (library.to_owned(), file.len(), file.modified().ok()));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(look), Some((seen, error))) = (&look, &*known)
        && look == seen
    {
        return Err(RuntimeError::Known(error.clone()));
    }
    let outcome = ask_child(library);
    if !matches!(outcome, Err(RuntimeError::IllegalInstruction { .. } | RuntimeError::Crashes { .. })) {
        return outcome;
    }
    let outcome = outcome.map_err(Arc::new);
    *known = look.zip(outcome.as_ref().err().cloned());
    outcome.map_err(RuntimeError::Known)
}

/// Starts the child and says what became of it. A system that allows no child processes is not held against
/// the library.
fn ask_child(library: &Path) -> Result<(), RuntimeError> {
    if !CHILD_WOULD_PROBE.load(Ordering::Relaxed) {
        return Ok(());
    }
    match start(library, None) {
        Ok(child) => judge(library, child, PROBE_WAIT_MAX).map(drop),
        Err(error) => {
            tracing::warn!("{} is loaded without a trial, because no child process starts: {error}", library.display());
            Ok(())
        }
    }
}

/// Has a child run a model on a provider. None where no child can be had, or where it cannot tell.
pub(super) fn try_provider(library: &Path, trial: &Trial) -> Result<Option<Steps>, String> {
    if !CHILD_WOULD_PROBE.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let with = serde_json::to_string(trial).map_err(|error| error.to_string())?;
    let Ok(child) = start(library, Some(&with)) else { return Ok(None) };
    of_trial(judge(library, child, TRIAL_WAIT_MAX))
}

/// How a trial ended, as a clause about the provider.
fn of_trial(said: Result<String, RuntimeError>) -> Result<Option<Steps>, String> {
    match said {
        Ok(said) => Ok(serde_json::from_str(&said).unwrap_or_default()),
        Err(RuntimeError::IllegalInstruction { .. }) => {
            Err("it was built for a newer processor (illegal instruction)".to_owned())
        }
        Err(RuntimeError::Crashes { how, .. }) => Err(format!("it crashes with this model ({how})")),
        Err(RuntimeError::Hangs { seconds, .. }) => Err(format!("it did not answer one sample within {seconds} s")),
        Err(RuntimeError::Killed { .. }) => Err("its trial was killed, most likely for want of memory".to_owned()),
        Err(other) => Err(other.to_string()),
    }
}

fn start(library: &Path, with: Option<&str>) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env(ASKED, library)
        .envs(with.map(|with| (WITH, with)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// What the child said after it had survived.
fn judge(library: &Path, mut child: Child, wait_max: Duration) -> Result<String, RuntimeError> {
    let path = library.to_owned();
    let failed = |error: std::io::Error| RuntimeError::Failed { path: library.to_owned(), reason: error.to_string() };
    let Some(status) = wait(&mut child, wait_max).map_err(failed)? else {
        return Err(RuntimeError::Hangs { path, seconds: wait_max.as_secs() });
    };
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(SAID_BYTES_MAX).read_to_string(&mut said).map_err(failed)?;
    }
    if let Some(rest) = said.strip_prefix(SURVIVED) {
        return Ok(rest.trim().to_owned());
    }
    if status.code() == Some(NOT_EXECUTED) {
        tracing::warn!("{} is loaded without a trial, because a child process executes nothing", library.display());
        return Ok(String::new());
    }
    match status.signal() {
        Some(SIGKILL) => Err(RuntimeError::Killed { path }),
        Some(SIGILL) => Err(RuntimeError::IllegalInstruction { path }),
        Some(signal) => Err(RuntimeError::Crashes { path, how: format!("signal {signal}") }),
        None => Err(RuntimeError::Crashes { path, how: status.to_string() }),
    }
}

/// The child's end; none if it took too long and was ended.
fn wait(child: &mut Child, wait_max: Duration) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < wait_max {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a child's end within a bound has no event without more threads"
        )]
        std::thread::sleep(LOOK_EVERY);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that ends as a shell script says.
    fn judged(script: &str) -> Result<String, RuntimeError> {
        let child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell");
        judge(Path::new("/lib/x.so"), child, PROBE_WAIT_MAX)
    }

    #[test]
    fn a_child_that_dies_of_the_library_is_one_sentence() {
        assert!(matches!(judged("kill -ILL $$"), Err(RuntimeError::IllegalInstruction { .. })));
        let crash = judged("kill -SEGV $$").expect_err("a crash").to_string();
        assert!(crash.contains("/lib/x.so") && crash.contains("signal 11"), "{crash}");
        assert!(matches!(judged("exit 101"), Err(RuntimeError::Crashes { .. })));
        judged("exec /nonexistent/program 2>/dev/null").expect("nothing is known of the library");
    }

    #[test]
    fn a_provider_that_kills_its_child_is_refused_in_a_clause() {
        for (script, words) in [
            ("kill -SEGV $$", "crashes with this model (signal 11)"),
            ("kill -ILL $$", "newer processor"),
            ("kill -KILL $$", "want of memory"),
        ] {
            let refused = of_trial(judged(script)).expect_err("refused");
            assert!(refused.contains(words), "{refused}");
        }
        let steps = of_trial(judged(r#"echo 'survived {"own":3,"all":5}'; kill -SEGV $$"#)).expect("survived");
        assert_eq!(steps, Some(Steps { own: 3, all: 5 }));
        assert_eq!(of_trial(judged("echo survived; exit 1")), Ok(None), "the parent finds out the rest");
    }

    #[test]
    fn a_child_that_survived_the_work_may_crash_while_it_ends() {
        judged("echo survived; kill -SEGV $$").expect("a good library");
        judged("echo survived; exit 1").expect("no crash; the parent finds out the rest");
    }
}
