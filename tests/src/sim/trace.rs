//! The last steps of a world, for people. Costs nothing while it is off: a failure is run again with it.

use std::collections::VecDeque;

/// How many lines are kept.
const LINES_MAX: usize = 80;

#[derive(Debug, Default)]
pub(super) struct Trace {
    lines: Option<VecDeque<String>>,
    /// All lines go to standard error as they come.
    aloud: bool,
}

impl Trace {
    pub(super) fn kept(aloud: bool) -> Self {
        Self { lines: Some(VecDeque::new()), aloud }
    }

    pub(super) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        let line = format!("{:>10}.{:03}  {}", now / 1_000, now % 1_000, line());
        if self.aloud {
            eprintln!("{line}");
        }
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default().into()
    }
}
