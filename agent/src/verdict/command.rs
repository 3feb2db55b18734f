//! Runs a program for each answer, which gets it as one line of JSON on its standard input.

use std::time::Duration;

use hedge_proto::Answer;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::{SinkConfigError, SinkError};
use crate::child::{Child, Use, describe_end};

/// How long the program may take for one answer; then it is ended, with all it started.
const RUN_WAIT_MAX: Duration = Duration::from_secs(30);

/// A program that takes answers, one run for each.
pub struct CommandSink {
    command: Vec<String>,
}

impl CommandSink {
    pub fn new(command: &[String]) -> Result<Self, SinkConfigError> {
        if command.is_empty() { Err(SinkConfigError::NoCommand) } else { Ok(Self { command: command.to_vec() }) }
    }

    /// Delivered means that the program ended with exit code 0.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        self.run(answer, RUN_WAIT_MAX).await
    }

    async fn run(&self, answer: &Answer, wait_max: Duration) -> Result<(), SinkError> {
        let program = self.command.first().map_or("the command", String::as_str);
        let mut child = Child::spawn(&self.command, Use::Stdin)
            .map_err(|error| SinkError::Retry(format!("`{program}` cannot be started: {error}")))?;
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
                Err(SinkError::Retry(format!("`{program}` did not take it: {end}")))
            }
            Err(_) => {
                let end = describe_end(&child.stop().await, "");
                Err(SinkError::Retry(format!("`{program}` took longer than {} s; {end}", wait_max.as_secs())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{answer, id};

    fn shell(script: &str) -> CommandSink {
        CommandSink::new(&["sh".to_owned(), "-c".to_owned(), script.to_owned()]).expect("not empty")
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
            Err(SinkError::Retry("`sh` did not take it: it ended with exit code 4: no such light".into()))
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let sink = shell("sleep 1000");
        let error = sink.run(&answer(id(3), "cam", None, 1), Duration::ZERO).await;
        assert!(matches!(&error, Err(SinkError::Retry(text)) if text.contains("signal 15")), "{error:?}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_tried_again_later() {
        let mut sink = CommandSink::new(&["/nonexistent/program".to_owned()]).expect("not empty");
        assert!(matches!(sink.send(&answer(id(3), "cam", None, 1)).await, Err(SinkError::Retry(_))));
        assert!(CommandSink::new(&[]).is_err());
    }
}
