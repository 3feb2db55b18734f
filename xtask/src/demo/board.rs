//! Draws one line per device, in place on a terminal, one after the other elsewhere.

use std::io::{IsTerminal as _, Write};

use hedge_proto::{LinkState, Telemetry};

/// What one device says about itself now.
pub(super) struct Line {
    pub(super) device: String,
    pub(super) status: Telemetry,
}

impl Line {
    pub(super) fn is_cut_off(&self) -> bool {
        matches!(self.status.link, LinkState::Offline | LinkState::Connecting)
    }

    /// What the sorter says has changed in its input.
    pub(super) fn shift_of_sorter(&self) -> Option<String> {
        let mut judges = self.status.model_figures.values().filter_map(|model| model.judge.as_ref());
        if self.device == "sorter" { judges.find_map(|judge| judge.shift.clone()) } else { None }
    }

    fn text(&self) -> String {
        let Telemetry { link, samples, queue, .. } = &self.status;
        let link = link.name();
        format!(
            "{:<12} {link:<11} kept {:>6}  deferred {:>5}  queue {:>5}  verdicts {:>5}  corrected {:>4}",
            self.device, samples.kept, samples.deferred, queue.waiting, samples.verdicts, samples.corrected
        )
    }
}

/// Where the person looks.
pub(super) struct Board {
    output: Box<dyn Write>,
    /// Lines can be drawn over.
    in_place: bool,
    drawn: usize,
}

impl Board {
    /// `aside` leaves standard output to the result.
    pub(super) fn new(aside: bool) -> Self {
        let (output, in_place): (Box<dyn Write>, bool) = if aside {
            (Box::new(std::io::stderr()), std::io::stderr().is_terminal())
        } else {
            (Box::new(std::io::stdout()), std::io::stdout().is_terminal())
        };
        Self { output, in_place, drawn: 0 }
    }

    /// A line that stays, above the devices.
    pub(super) fn say(&mut self, text: &str) {
        self.put(text);
        self.drawn = 0;
    }

    pub(super) fn draw(&mut self, lines: &[Line]) {
        let up = if self.in_place && self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let clear = if self.in_place { "\x1b[2K" } else { "" };
        let lines: Vec<_> = lines.iter().map(|line| format!("{clear}{}", line.text())).collect();
        self.put(&(up + &lines.join("\n")));
        self.drawn = lines.len();
    }

    fn put(&mut self, text: &str) {
        // Nobody may be reading any more; the run and its result go on.
        drop(writeln!(self.output, "{text}").and_then(|()| self.output.flush()));
    }
}
