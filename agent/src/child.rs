//! A program started by the agent: in a process group of its own, so that nothing it started outlives it,
//! and with its standard error read and all but forgotten, so that it never blocks and never fills a log.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How much of a program's last line on standard error is kept, in bytes.
const LAST_LINE_BYTES_MAX: usize = 200;

/// How long a program may take to end by itself after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(2);

/// How long the last words of an ended program are waited for.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(200);

/// Whether there is such a program: by its path, or by its name in a folder of `PATH`.
pub fn on_path(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    !program.is_empty() && std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

/// A running program. Dropping it kills the whole process group.
pub(crate) struct Child {
    process: tokio::process::Child,
    group: Option<Pid>,
    last_line: LastLine,
    stderr: Option<(tokio::sync::oneshot::Receiver<()>, AbortHandle)>,
}

/// Which of the program's streams the agent uses; the others lead nowhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Stdin,
    Stdout,
}

impl Child {
    /// Starts `command`: the program, then its arguments.
    pub(crate) fn spawn(command: &[String], used: Use) -> std::io::Result<Self> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "the command is empty"))?;
        let piped_if = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(piped_if(used == Use::Stdin))
            .stdout(piped_if(used == Use::Stdout))
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let last_line = LastLine::default();
        let stderr = process.stderr.take().map(|stderr| {
            let (ended, has_ended) = tokio::sync::oneshot::channel();
            let last_line = last_line.clone();
            let task = tokio::spawn(async move {
                last_line.follow(stderr).await;
                drop(ended);
            });
            (has_ended, task.abort_handle())
        });
        Ok(Self { process, group, last_line, stderr })
    }

    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Ends the program and all it started: asks first, then insists.
    pub(crate) async fn stop(&mut self) -> std::io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        let status = match timeout(TERM_WAIT, self.process.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.signal(Signal::KILL);
                self.process.wait().await
            }
        };
        self.signal(Signal::KILL); // what it left behind in its group
        status
    }

    /// The last thing the program said on standard error.
    pub(crate) async fn last_words(&mut self) -> String {
        if let Some((ended, _)) = &mut self.stderr {
            // Either way: what was read until now is all there is to tell.
            drop(timeout(LAST_WORDS_WAIT, ended).await);
        }
        self.last_line.get()
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, signal)
            && error != rustix::io::Errno::SRCH
        {
            let signal = signal.as_raw();
            tracing::warn!("cannot send signal {signal} to process group {}: {error}", group.as_raw_nonzero());
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A reaped leader's group is gone, or holds only what the program left behind.
        self.signal(Signal::KILL);
        if let Some((_, task)) = &self.stderr {
            task.abort();
        }
    }
}

/// The last whole line of a stream, or what there is of it, shortened.
#[derive(Clone, Default)]
struct LastLine(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    whole: Vec<u8>,
    current: Vec<u8>,
}

impl LastLine {
    async fn follow(&self, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.get(..length).unwrap_or_default().iter().for_each(|byte| lines.push(*byte));
        }
    }

    fn get(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = if lines.current.is_empty() { &lines.whole } else { &lines.current };
        let text = String::from_utf8_lossy(line);
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
    }
}

impl Lines {
    fn push(&mut self, byte: u8) {
        if matches!(byte, b'\n' | b'\r') {
            if !self.current.is_empty() {
                std::mem::swap(&mut self.whole, &mut self.current);
                self.current.clear();
            }
        } else if self.current.len() < LAST_LINE_BYTES_MAX {
            self.current.push(byte);
        }
    }
}

/// How a program ended, for people: `it ended with exit code 3: no camera found`.
pub(crate) fn describe_end(status: &std::io::Result<ExitStatus>, last_words: &str) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let end = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("it ended with exit code {code}"),
            (None, Some(signal)) => format!("it was ended by signal {signal}"),
            (None, None) => "it ended".to_owned(),
        },
        Err(error) => format!("it cannot be waited for ({error})"),
    };
    if last_words.is_empty() { end } else { format!("{end}: {last_words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Child::spawn(&["sh".to_owned(), "-c".to_owned(), script.to_owned()], Use::Stdout).expect("sh starts")
    }

    #[tokio::test]
    async fn the_last_line_of_a_flood_is_kept_and_little_else() {
        let mut child =
            shell("head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo 'no camera found' >&2; exit 3");
        let status = child.wait().await;
        let words = child.last_words().await;
        assert_eq!(describe_end(&status, &words), "it ended with exit code 3: no camera found");
        let lines = child.last_line.0.lock().expect("not poisoned");
        assert!(lines.whole.capacity() + lines.current.capacity() <= 4 * LAST_LINE_BYTES_MAX);
    }

    #[tokio::test]
    async fn stopping_a_program_ends_what_it_started() {
        let mut child = shell("sleep 1000 & echo $!; wait");
        let mut line = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout().expect("piped"));
        tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.expect("a pid");
        let grandchild = Pid::from_raw(line.trim().parse().expect("a number")).expect("a pid");
        assert!(rustix::process::test_kill_process(grandchild).is_ok());
        drop(child.stop().await);
        // Its end of the pipe closes when the last process of the group is gone.
        let mut rest = Vec::new();
        timeout(Duration::from_secs(60), stdout.read_to_end(&mut rest)).await.expect("nobody holds it").expect("read");
    }
}
