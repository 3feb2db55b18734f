//! Runs a program for each answer, which gets it as one line of JSON on its standard input.

use std::time::Duration;

use hedge_proto::Answer;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::SinkError;
use crate::child::{Child, Use, describe_end, on_path};

/// How long the program may take for one answer; then it is ended, with all it started.
const RUN_WAIT_MAX: Duration = Duration::from_secs(30);

/// A program that takes answers, one run for each.
pub struct CommandSink {
    command: Vec<String>,
}

impl CommandSink {
    #[must_use]
    pub fn new(command: &[String]) -> Self {
        Self { command: command.to_vec() }
    }

    /// Whether the program is there. It is not run.
    pub fn look(&self) -> Result<(), String> {
        let program = self.program();
        if on_path(program) { Ok(()) } else { Err(format!("there is no program `{program}`")) }
    }

    pub(super) fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Delivered means that the program ended with exit code 0.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        self.run(answer, RUN_WAIT_MAX).await
    }

    async fn run(&self, answer: &Answer, wait_max: Duration) -> Result<(), SinkError> {
        let program = self.program();
        let mut child = Child::spawn(&self.command, Use::Stdin)
            .map_err(|error| SinkError::Away(format!("`{program}` cannot be started: {error}")))?;
        let mut line = hedge_proto::to_json(answer);
        line.push(b'\n');
        let run = async {
            if let Some(mut stdin) = child.stdin() {
                // A program that does not read its input may still do its job; its exit code tells.
                drop(stdin.write_all(&line).await);
            }
            child.wait().await
        };
        match timeout(wait_max, run).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => {
                let end = describe_end(&status, &child.last_words().await);
                Err(SinkError::Refused(format!("`{program}` did not take it: {end}")))
            }
            Err(_) => {
                let end = describe_end(&child.stop().await, "");
                Err(SinkError::Refused(format!("`{program}` took longer than {} s; {end}", wait_max.as_secs())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{answer, id};

    fn shell(script: &str) -> CommandSink {
        CommandSink::new(&["sh".to_owned(), "-c".to_owned(), script.to_owned()])
    }

    #[tokio::test]
    async fn the_program_gets_the_answer_and_its_exit_code_decides() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let sent = answer(id(3), "cam", None, 1);
        assert_eq!(shell(&format!("cat > {}", file.path().display())).send(&sent).await, Ok(()));
        let received: Answer = serde_json::from_slice(&std::fs::read(file.path()).expect("read")).expect("an answer");
        assert_eq!(received, sent);
        assert_eq!(shell("exit 0").send(&sent).await, Ok(()), "a program need not read");
        let error = shell("echo 'no such light' >&2; exit 4").send(&sent).await;
        assert_eq!(
            error,
            Err(SinkError::Refused("`sh` did not take it: it ended with exit code 4: no such light".into()))
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let sink = shell("sleep 1000");
        let error = sink.run(&answer(id(3), "cam", None, 1), Duration::ZERO).await;
        assert!(matches!(&error, Err(SinkError::Refused(text)) if text.contains("signal 15")), "{error:?}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_and_tried_again_later() {
        let mut sink = CommandSink::new(&["/nonexistent/program".to_owned()]);
        assert!(sink.look().expect_err("missing").contains("/nonexistent/program"));
        assert!(matches!(sink.send(&answer(id(3), "cam", None, 1)).await, Err(SinkError::Away(_))));
        shell("exit 0").look().expect("there is a shell");
    }
}
