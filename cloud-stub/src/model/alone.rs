//! Runs suspects, cases that a process had when it ended, in a process of their own.
//!
//! Why the process before this one ended cannot be known: a power cut, an operator, or a case that the model's library
//! cannot bear. A process of our own that ends while it has one case can be watched: only that counts against a case,
//! and only while we live to see it. However often this program itself is ended, no case is the worse for it.
//!
//! ```text
//! we    ─► [length, case with payload as CBOR] ─► child, `hedge-cloud answer …`
//! child ─► [length, answer as CBOR]            ─► we;  the first answer, `Ready`, says that its model is loaded
//! ```

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hedge_proto::{Case, MESSAGE_BYTES_MAX, from_cbor, to_cbor};
use serde::{Deserialize, Serialize};

use super::{Answerer, ModelFailure, Opinion};

/// The name of the command that such a process is started with.
pub const COMMAND: &str = "answer";

/// How often a case may end the process that has nothing but it.
const ENDS_MAX: u32 = 3;

/// How often such a process may fail to start before the case is run in this one after all.
const STARTS_MAX: u32 = 3;

/// How long an idle process is kept: the next suspect need not wait for the model to load.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30);

/// The longest frame: a payload that came by HTTPS may be larger than a message.
const FRAME_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// What such a process says.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Ready,
    Opinion(Opinion),
    Dead(String),
    Failed(String),
}

/// The process of one task, while there is one.
pub(super) struct Alone {
    args: Vec<OsString>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    used: Instant,
}

/// What came of one run.
enum Run {
    Said(Result<Opinion, ModelFailure>),
    Ended(ExitStatus),
}

impl Alone {
    pub(super) fn new(args: Vec<OsString>) -> Self {
        Self { args, running: None }
    }

    /// What the model says of a suspect; `None` if there cannot be a process of its own.
    pub(super) fn answer(&mut self, case: &Case, payload: &[u8]) -> Option<Result<Opinion, ModelFailure>> {
        let asked = Case { payload: Some(payload.to_vec().into()), ..case.clone() };
        let asked = to_cbor(&asked);
        let (mut crashed, mut killed, mut starts_failed) = (0, 0, 0);
        while crashed < ENDS_MAX && killed < ENDS_MAX {
            match self.run(&asked) {
                Ok(Run::Said(said)) => return Some(said),
                Ok(Run::Ended(status)) => {
                    tracing::warn!(case = %case.id, "the model's process ended while it had this case alone: {status}");
                    match status.signal() {
                        // Somebody ends us all: no word about the case.
                        Some(1 | 2 | 3 | 15) => {}
                        Some(9) => killed += 1,
                        _ => crashed += 1,
                    }
                }
                Err(error) => {
                    starts_failed += 1;
                    tracing::warn!("no process for cases left over: {error}");
                    if starts_failed == STARTS_MAX {
                        return None;
                    }
                }
            }
        }
        Some(Err(if crashed == ENDS_MAX {
            ModelFailure::Dead(format!("the model ended {ENDS_MAX} times while it had this case alone"))
        } else {
            // As the system does when memory runs out, and that may be another's doing.
            ModelFailure::Failed(format!("the model was killed {ENDS_MAX} times while it had this case alone"))
        }))
    }

    /// Ends a process that nothing was given to for a while. Its memory is a model's.
    pub(super) fn rest(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.used.elapsed() >= IDLE_MAX) {
            self.running = None;
        }
    }

    fn run(&mut self, asked: &[u8]) -> io::Result<Run> {
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(Running::start(&self.args)?),
        };
        let said = running.ask(asked);
        running.used = Instant::now();
        match said {
            Ok(said) => Ok(Run::Said(said)),
            Err(error) => {
                let mut running = self.running.take();
                match running.as_mut().filter(|_| is_end(&error)) {
                    // Its output has ended, and so does it.
                    Some(running) => Ok(Run::Ended(running.child.wait()?)),
                    None => Err(error),
                }
            }
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)
}

impl Running {
    /// Returns once its model is loaded. Until then it has no case, and its end counts against none.
    fn start(args: &[OsString]) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .args(args)
            // What is meant for `serve` names all of its models.
            .env_remove("HEDGE_CLOUD_MODEL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let mut running = Self { child, stdin, stdout, used: Instant::now() };
        match read(&mut running.stdout)? {
            Word::Ready => Ok(running),
            _ => Err(io::Error::other("it speaks before it is asked")),
        }
    }

    fn ask(&mut self, asked: &[u8]) -> io::Result<Result<Opinion, ModelFailure>> {
        write(&mut self.stdin, asked)?;
        match read(&mut self.stdout)? {
            Word::Opinion(opinion) => Ok(Ok(opinion)),
            Word::Dead(reason) => Ok(Err(ModelFailure::Dead(reason))),
            Word::Failed(reason) => Ok(Err(ModelFailure::Failed(reason))),
            Word::Ready => Err(io::Error::other("it has started twice")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; waiting leaves no zombie.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The other side: answers what comes on standard input until that ends.
pub fn serve(mut model: Box<dyn Answerer>) -> io::Result<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    write(&mut stdout, &to_cbor(&Word::Ready))?;
    loop {
        let mut case: Case = match read(&mut stdin) {
            Ok(case) => case,
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let payload = case.payload.take().unwrap_or_default();
        let word = match model.answer(&case, &payload) {
            Ok(opinion) => Word::Opinion(opinion),
            Err(ModelFailure::Dead(reason)) => Word::Dead(reason),
            // A model in this process is neither down nor busy.
            Err(failure) => Word::Failed(failure.to_string()),
        };
        write(&mut stdout, &to_cbor(&word))?;
    }
}

fn write(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(frame)?;
    to.flush()
}

fn read<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame)?;
    from_cbor(&frame, FRAME_BYTES_MAX).map_err(io::Error::other)
}
