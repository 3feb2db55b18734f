//! The last steps of a world, for people. Costs nothing while it is off: a failure is run again with it.

use std::collections::VecDeque;

/// How many lines are kept, and how many of them are shown.
const LINES_MAX: usize = 50_000;
const SHOWN_MAX: usize = 60;

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

    /// The last lines; of those about one case if it is named, and the faults between them.
    pub(super) fn into_lines(self, case: Option<&str>) -> Vec<String> {
        let lines = self.lines.unwrap_or_default();
        let first = lines.front().cloned();
        let about = |line: &&String| {
            case.is_none_or(|case| line.contains("fault: ") || line.split([' ', ',', '[', ']', ':']).any(|w| w == case))
        };
        let mut shown: Vec<String> = lines.iter().rev().filter(about).take(SHOWN_MAX).cloned().collect();
        // The first line says what kind of world it is.
        shown.extend(first.filter(|first| lines.len() > 1 && shown.last() != Some(first)));
        shown.reverse();
        shown
    }
}
