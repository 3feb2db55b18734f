//! Lets a child process try a library, so that only the child dies of it.
//!
//! The child is this same program, started with [`ASKED`] set: [`probe_if_asked`], the first call of `main`,
//! then loads the library, runs a tiny model and exits. What the child finds wrong and survives is not told:
//! the parent can then look for itself.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ort::value::TensorRef;

use super::{Runtime, RuntimeError};

/// The variable that makes a start of the program a probe of the library it names.
const ASKED: &str = "HEDGE_PROBE_LIBRARY";

/// What the child prints once nothing can kill it any more. Some versions crash while the process ends.
const SURVIVED: &str = "survived";

/// The longest a probe may take. A Raspberry Pi with a cold SD card loads the library in a few seconds.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(30);

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
    let ran = try_out(&library).is_ok();
    let told = writeln!(std::io::stdout(), "{SURVIVED}").is_ok();
    std::process::exit(if ran && told { 0 } else { 1 });
}

fn try_out(library: &OsStr) -> Result<(), String> {
    let runtime = Runtime::load(library.into()).map_err(|error| error.to_string())?;
    run_tiny_model(&runtime).map_err(|error| error.to_string())
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
    match start(library) {
        Ok(child) => judge(library, child),
        Err(error) => {
            tracing::warn!("{} is loaded without a trial, because no child process starts: {error}", library.display());
            Ok(())
        }
    }
}

fn start(library: &Path) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env(ASKED, library)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

fn judge(library: &Path, mut child: Child) -> Result<(), RuntimeError> {
    let path = library.to_owned();
    let failed = |error: std::io::Error| RuntimeError::Failed { path: library.to_owned(), reason: error.to_string() };
    let Some(status) = wait(&mut child).map_err(failed)? else {
        return Err(RuntimeError::Hangs { path, seconds: PROBE_WAIT_MAX.as_secs() });
    };
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64).read_to_string(&mut said).map_err(failed)?;
    }
    if said.trim() == SURVIVED {
        return Ok(());
    }
    if status.code() == Some(NOT_EXECUTED) {
        tracing::warn!("{} is loaded without a trial, because a child process executes nothing", library.display());
        return Ok(());
    }
    match status.signal() {
        Some(SIGKILL) => Err(RuntimeError::Killed { path }),
        Some(SIGILL) => Err(RuntimeError::IllegalInstruction { path }),
        Some(signal) => Err(RuntimeError::Crashes { path, how: format!("signal {signal}") }),
        None => Err(RuntimeError::Crashes { path, how: status.to_string() }),
    }
}

/// The child's end; none if it took too long and was ended.
fn wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < PROBE_WAIT_MAX {
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
    fn judged(script: &str) -> Result<(), RuntimeError> {
        let child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell");
        judge(Path::new("/lib/x.so"), child)
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
    fn a_child_that_survived_the_work_may_crash_while_it_ends() {
        judged("echo survived; kill -SEGV $$").expect("a good library");
        judged("echo survived; exit 1").expect("no crash; the parent finds out the rest");
    }
}
