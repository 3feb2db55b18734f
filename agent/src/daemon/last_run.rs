//! How the last run ended, as systemd tells, and how long models rest when they keep ending it.
//!
//! The unit's `ExecStopPost` writes one line into the state folder after each end. What it says is shown for a while:
//! a kill for want of memory leaves no trace of its own in the agent.

use std::path::Path;
use std::time::Duration;

/// Written by the unit: `$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS`.
const FILE: &str = "last-end";

/// Far more than one line has.
const FILE_BYTES_MAX: u64 = 1024;

/// So long after the start the last end is shown, and a run that lasts so long was a good one.
pub(super) const SHOWN: Duration = Duration::from_secs(600);

/// So many crashes in a row are put up with before models rest.
const CRASHES_BORNE: u32 = 2;

/// The first rest, which doubles with each further crash, and the longest one.
const REST_MIN: Duration = Duration::from_secs(20);
const REST_MAX: Duration = Duration::from_secs(600);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastRun {
    /// One sentence for people, if it was no orderly end.
    pub(super) sentence: Option<String>,
    /// It ended by itself: a crash, or want of memory.
    pub(super) crashed: bool,
}

/// Reads what systemd told of the last end, if it did. It counts once.
pub(super) fn take(state_dir: &Path) -> Option<LastRun> {
    let path = state_dir.join(FILE);
    let small = std::fs::metadata(&path).ok()?.len() <= FILE_BYTES_MAX;
    let text = std::fs::read_to_string(&path).ok().filter(|_| small);
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::debug!(%error, "the note on the last end stays");
    }
    read(&text?)
}

fn read(text: &str) -> Option<LastRun> {
    let mut words = text.split_whitespace();
    let (result, code, status) = (words.next()?, words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (sentence, crashed) = match result {
        "success" => return Some(LastRun { sentence: None, crashed: false }),
        "oom-kill" => (
            "memory ran out and the kernel ended the last run; raise MemoryMax of the unit, or use a smaller model or \
             smaller pictures"
                .to_owned(),
            true,
        ),
        "watchdog" => {
            ("the last run hung, and systemd's watchdog ended it; the journal says what hung".to_owned(), false)
        }
        "signal" | "core-dump" => {
            let crashed = !matches!(status, "KILL" | "TERM" | "INT" | "HUP");
            (format!("the last run was ended by signal {status}"), crashed)
        }
        "exit-code" => (format!("the last run ended with exit code {status}; the journal says why"), false),
        other => (format!("the last run did not end in good order ({other}, {code} {status})"), false),
    };
    Some(LastRun { sentence: Some(sentence), crashed })
}

/// How long models rest before they are loaded after so many crashes in a row; none if they need not.
pub(super) fn rest(crashes: u32) -> Option<Duration> {
    let beyond = crashes.checked_sub(CRASHES_BORNE + 1)?;
    Some(REST_MIN.saturating_mul(1 << beyond.min(16)).min(REST_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_a_sentence_and_only_a_crash_counts_as_one() {
        let crashed = |text: &str| read(text).map(|end| end.crashed);
        assert_eq!(read("success exited 0"), Some(LastRun { sentence: None, crashed: false }));
        assert_eq!(crashed(""), None);
        assert_eq!(crashed("oom-kill killed KILL"), Some(true));
        assert_eq!(crashed("signal killed ILL"), Some(true));
        assert_eq!(crashed("core-dump dumped SEGV"), Some(true));
        assert_eq!(crashed("signal killed KILL"), Some(false), "somebody's doing");
        assert_eq!(crashed("watchdog killed ABRT"), Some(false));
        let sentence = |text: &str| read(text).and_then(|end| end.sentence).expect("a sentence");
        assert!(sentence("exit-code exited 1").contains("exit code 1"));
        assert!(sentence("oom-kill killed KILL").contains("MemoryMax"));
    }

    #[test]
    fn it_is_told_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join(FILE), "oom-kill killed KILL\n").expect("written");
        assert!(take(dir.path()).is_some());
        assert_eq!(take(dir.path()), None);
    }

    #[test]
    fn models_that_keep_ending_the_agent_rest_longer_and_longer() {
        let rests: Vec<u64> = (0..10).map(|crashes| rest(crashes).map_or(0, |rest| rest.as_secs())).collect();
        assert_eq!(rests, [0, 0, 0, 20, 40, 80, 160, 320, 600, 600]);
    }
}
