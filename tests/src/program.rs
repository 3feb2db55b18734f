//! One running program: started, watched, killed, started again.
//!
//! What it prints goes to files in its folder; an error shows the last lines of them.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How much of a program's log an error shows.
const LOG_LINES_SHOWN: usize = 15;

/// `USER_HZ` is 100 wherever Linux runs.
const TICK_MS: u64 = 10;

/// How to start a program, any number of times.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    /// Where its output goes: `NAME.out` and `NAME.log`.
    pub dir: PathBuf,
}

impl Recipe {
    #[must_use]
    pub fn new(name: &str, program: PathBuf, dir: &Path) -> Self {
        Self { name: name.to_owned(), program, arguments: Vec::new(), environment: Vec::new(), dir: dir.to_owned() }
    }

    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The same program in a network namespace, as the same process.
    #[must_use]
    pub fn inside(mut self, namespace: Option<&str>) -> Self {
        if let Some(namespace) = namespace {
            let program = std::mem::replace(&mut self.program, "ip".into());
            let words = ["netns".into(), "exec".into(), namespace.into(), program.into_os_string()];
            self.arguments.splice(0..0, words);
        }
        self
    }

    /// The same program in a mount namespace where the system's clock counts as set from the network. Needs root.
    #[must_use]
    pub fn with_clock_set(mut self) -> Self {
        const SET: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/timesync && \
                           touch /run/systemd/timesync/synchronized && exec \"$0\" \"$@\"";
        let program = std::mem::replace(&mut self.program, "unshare".into());
        let words = ["--mount".into(), "sh".into(), "-c".into(), SET.into(), program.into_os_string()];
        self.arguments.splice(0..0, words);
        self
    }

    /// Started by root, the same program as another user, as the same process.
    #[must_use]
    pub fn running_as(mut self, user: Option<u32>) -> Self {
        if let Some(user) = user {
            let program = std::mem::replace(&mut self.program, "setpriv".into());
            let words = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
            self.arguments.splice(0..0, words.map(OsString::from).into_iter().chain([program.into_os_string()]));
        }
        self
    }

    pub fn start(self) -> Result<Program> {
        let mut program = Program { recipe: self, child: None };
        program.start()?;
        Ok(program)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", self.name))
    }
}

/// A program and whether it runs. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    recipe: Recipe,
    child: Option<Child>,
}

impl Program {
    /// Starts it; its standard output begins anew, its log goes on.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.recipe.name);
        }
        let recipe = &self.recipe;
        let output = File::create(recipe.file("out"))?;
        let log = File::options().create(true).append(true).open(recipe.file("log"))?;
        let mut command = Command::new(&recipe.program);
        // Settings of the person at this desk are not part of a test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HEDGE_")) {
            command.env_remove(name);
        }
        command.args(&recipe.arguments).envs(recipe.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        // A Ctrl-C is for whoever started the programs; it stops them in its own order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().with_context(|| format!("cannot start {}", recipe.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The processor time it has used since its start.
    pub fn cpu(&self) -> Result<Duration> {
        cpu(self.id().with_context(|| format!("{} is not running", self.recipe.name))?)
    }

    /// An error with the end of its log, if it has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { bail!("{} is not running", self.recipe.name) };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("{} ended with {status}; the end of its log:\n{}", self.recipe.name, self.log_end());
        }
        Ok(())
    }

    /// Waits until `probe` has a value, or the program ends, or `bound` passes.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        bound: Duration,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let outcome = wait::until(what, bound, || {
            self.check_alive()?;
            probe(self)
        });
        outcome.with_context(|| format!("{}; the end of its log:\n{}", self.recipe.name, self.log_end()))
    }

    /// Everything on its standard output since its last start. A running program may have written half a letter.
    pub fn output(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.recipe.file("out"))?).into_owned())
    }

    /// Everything it has logged since its first start.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.recipe.file("log")).unwrap_or_default()).into_owned()
    }

    /// The end of its log, for an error.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = self.log();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// `kill -9`: nothing is flushed, nothing is said.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to stop and waits for its end; an error if it does not within `bound`.
    pub fn stop(&mut self, bound: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let Some(child) = &mut self.child else { bail!("{} is not running", self.recipe.name) };
        let status = wait::until(&format!("{} stops when asked", self.recipe.name), bound, || Ok(child.try_wait()?))?;
        self.child = None;
        Ok(status)
    }

    /// Waits for its end without asking for it.
    pub fn wait_for_end(&mut self, bound: Duration) -> Result<ExitStatus> {
        let Some(child) = &mut self.child else { bail!("{} is not running", self.recipe.name) };
        let status = wait::until(&format!("{} ends", self.recipe.name), bound, || Ok(child.try_wait()?))?;
        self.child = None;
        Ok(status)
    }

    /// Sends a signal to the running program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.id().with_context(|| format!("{} is not running", self.recipe.name))?;
        let id = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id is a positive number")?;
        Ok(kill_process(id, signal)?)
    }
}

/// The processor time a process has used since its start.
pub fn cpu(id: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in the second field may hold anything; the fields behind it are counted from its end.
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).context("no stat of a process")?;
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * TICK_MS))
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("cannot kill {}: {error}", self.recipe.name);
        }
    }
}
