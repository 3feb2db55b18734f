//! The whole path on one machine: a cloud with its broker, two cameras on photos, a third that finds things in them, a
//! sorter on Fashion-MNIST.
//!
//! ```text
//! start ─► run ──► link of the sorter cut ──► link back ──► run ─► stop the inputs ─► drain ─► count
//! ```
//! The totals come from this program's own list of ids and from the files the agents write their corrections to;
//! never from what an agent says about itself.

mod board;
mod interrupt;
mod judge;
mod lane;
mod poster;
mod report;
mod stand;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hedge_tests::fashion::Fashion;
use hedge_tests::{Tally, wait};

use self::board::{Board, Line};
use self::interrupt::Interrupt;
use self::lane::Lane;
use self::poster::Poster;
use self::report::{JudgeReport, Report};
use self::stand::Stand;
use crate::{build, onnxruntime};

/// How often the lines are drawn and the sinks read.
const TICK: Duration = Duration::from_secs(1);

/// A day's backlog is drained in other tests; this one is a few seconds of doubt.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(120);

/// How long a correction may take from the device's queue to its file.
const SINK_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Ends by itself after this time, for example 60s or 5m; otherwise Ctrl-C ends it.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    run_for: Option<Duration>,
    /// Prints the totals as one JSON object on standard output, and everything else on standard error.
    #[arg(long)]
    json: bool,
    /// Where the dashboard listens on this machine; 8080, or any free port if that is taken.
    #[arg(long)]
    port: Option<u16>,
    /// Fashion-MNIST pictures per second.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// How the sorter's threshold is set: by its bundle's number, by a budget of a tenth of its answers, or by a target
    /// of 5 % kept and contradicted.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Makes the sorter's pictures noisy from half of the run on.
    #[arg(long, requires = "run_for")]
    shift: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Mode {
    #[default]
    Fixed,
    Budget,
    Target,
}

impl Mode {
    fn threshold(self) -> Option<&'static str> {
        match self {
            Self::Fixed => None,
            Self::Budget => Some("threshold = { mode = \"budget\", budget = { share = 0.1 } }"),
            Self::Target => Some("threshold = { mode = \"target\", target = { risk = 0.05, confidence = 0.9 } }"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Budget => "budget",
            Self::Target => "target",
        }
    }
}

/// When the sorter's link is cut, and for how long.
struct Outage {
    from: Duration,
    to: Duration,
}

impl Outage {
    /// After a third of the run, for a quarter of it, but never so long that one tires of watching.
    fn within(run_for: Option<Duration>) -> Self {
        let run_for = run_for.unwrap_or(Duration::from_secs(60));
        let from = (run_for / 3).min(Duration::from_secs(20));
        Self { from, to: from + (run_for / 4).min(Duration::from_secs(15)) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let library = onnxruntime::library()?;
    build::programs()?;
    let fashion = Fashion::load()?;

    let mut board = Board::new(arguments.json);
    board.say("Starting a broker, a cloud and four devices");
    let dir = tempfile::Builder::new().prefix("hedge-demo-").tempdir()?;
    let outcome = watch(arguments, &interrupt, &mut board, dir.path(), &library, fashion);
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            return Err(error).context(format!("the programs' logs are in {}", dir.keep().display()));
        }
    };
    board.say(&report.text());
    if arguments.json {
        println!("{}", report.json());
    }
    if arguments.run_for.is_some() && !interrupt.is_set() && !report.is_clean() {
        bail!("not everything arrived once; logs and state are in {}", dir.keep().display());
    }
    Ok(())
}

fn watch(
    arguments: &Arguments,
    interrupt: &Interrupt,
    board: &mut Board,
    dir: &std::path::Path,
    library: &std::path::Path,
    fashion: Fashion,
) -> Result<Report> {
    let mut stand = Stand::start(dir, library, arguments.port, arguments.mode.threshold())?;
    board.say(&format!("Dashboard: {}", stand.cloud.dashboard()));
    if arguments.run_for.is_none() {
        board.say("Ctrl-C ends it");
    }
    let mut tally = Tally::default();
    let poster = Poster::start(stand.sorter(), fashion, arguments.rate)?;
    let lane = Lane::start(stand.lane())?;
    stand.open_shutters()?;

    let inputs = Inputs { poster: &poster, lane: &lane };
    let mut run = Run { stand: &mut stand, inputs, tally: &mut tally, board, offline: Duration::ZERO, shift: None };
    let dark_at = arguments.run_for.filter(|_| arguments.shift).map(|run_for| run_for / 2);
    run.until_over(arguments.run_for, dark_at, interrupt)?;
    run.stand.close_shutters()?;
    run.board.say("Inputs stopped; waiting for the last verdicts (Ctrl-C skips this)");
    poster.stop();
    lane.stop();
    let drained = run.drain(interrupt)?;
    let (offline, shift) = (run.offline, run.shift.take());
    let judge = JudgeReport { mode: arguments.mode.name(), halves: poster.halves(), shift };
    let (posted, fashion) = poster.finish(&mut tally)?;
    let frames = lane.finish(&mut tally)?;

    let waiting = if drained { 0 } else { stand.waiting()? };
    stand.read_sinks(&mut tally)?;
    let (mut cloud, mut agreement) = (None, None);
    if !interrupt.is_set() {
        board.say("Asking the cloud's models about every picture, for comparison");
        cloud = Some(judge::accuracy(dir, library, &fashion, &posted)?);
        agreement = tally.agreement(&judge::references(dir, library, &frames)?);
    }
    stand.stop()?;
    Ok(Report::new(&tally, waiting, offline, cloud, agreement, judge))
}

/// What shows the devices their pictures.
struct Inputs<'a> {
    poster: &'a Poster,
    lane: &'a Lane,
}

/// What goes on while the devices work.
struct Run<'a> {
    stand: &'a mut Stand,
    inputs: Inputs<'a>,
    tally: &'a mut Tally,
    board: &'a mut Board,
    /// How long the sorter was seen without its link.
    offline: Duration,
    /// The change in its input that the sorter has reported.
    shift: Option<String>,
}

impl Run<'_> {
    fn until_over(
        &mut self,
        run_for: Option<Duration>,
        dark_at: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let start = Instant::now();
        let outage = Outage::within(run_for);
        let (mut cut, mut mended, mut dark) = (false, false, false);
        while !interrupt.is_set() && run_for.is_none_or(|run_for| start.elapsed() < run_for) {
            if !cut && start.elapsed() >= outage.from {
                cut = true;
                self.stand.link.cut();
                self.board.say("The sorter's link is cut: it keeps answering and queues its cases");
            }
            if !mended && start.elapsed() >= outage.to {
                mended = true;
                self.stand.link.pass();
                self.board.say("The sorter's link is back: it sends its queue");
            }
            if !dark && dark_at.is_some_and(|at| start.elapsed() >= at) {
                dark = true;
                self.inputs.poster.shift();
                self.board.say("The light goes: the sorter's pictures are noisy from now on");
            }
            self.tick()?;
        }
        self.stand.link.pass();
        Ok(())
    }

    /// One second: look, count, draw.
    fn tick(&mut self) -> Result<()> {
        wait::pause(TICK);
        let lines = self.stand.look()?;
        if lines.iter().any(|line| line.is_cut_off()) {
            self.offline += TICK;
        }
        if self.shift.is_none()
            && let Some(shift) = lines.iter().find_map(Line::shift_of_sorter)
        {
            self.board.say(&format!("The sorter reports that its input has changed: {shift}"));
            self.shift = Some(shift);
        }
        self.count()?;
        self.board.draw(&lines);
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        self.inputs.poster.collect(self.tally)?;
        self.inputs.lane.collect(self.tally);
        self.stand.read_sinks(self.tally)
    }

    /// Waits until nothing waits; false when the time is over first.
    fn drain(&mut self, interrupt: &Interrupt) -> Result<bool> {
        let deadline = Instant::now() + DRAIN_WAIT_MAX;
        let mut empty_since = None;
        while !interrupt.is_urgent() && Instant::now() < deadline {
            self.tick()?;
            if self.stand.waiting()? > 0 {
                empty_since = None;
                continue;
            }
            let since = *empty_since.get_or_insert_with(Instant::now);
            // An answer given a moment ago may not be on this program's list yet.
            let settled =
                self.inputs.poster.is_idle() && self.inputs.lane.is_idle() && self.tally.totals().missing == 0;
            if settled || since.elapsed() > SINK_WAIT_MAX {
                self.count()?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// `90`, `90s` or `5m`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u32 = number.parse().map_err(|_| format!("`{text}` is not a time such as 60s or 5m"))?;
    match u64::from(number) * unit {
        seconds @ 10..=86_400 => Ok(Duration::from_secs(seconds)),
        _ => Err("the demo runs for 10 s to a day".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "s", "-5s", "1h", "2s", "99999m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_outage_lies_within_the_run_and_leaves_time_to_drain() {
        for run_for in [10, 20, 60, 3600].map(Duration::from_secs) {
            let outage = Outage::within(Some(run_for));
            assert!(outage.from < outage.to && outage.to < run_for * 3 / 4);
        }
    }
}
