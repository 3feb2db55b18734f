//! Runs the device's real engine through whole worlds that are nothing but numbers: any interleaving of device,
//! network, broker and cloud, as a seed makes it.
//!
//! The engine is `hedge-core`'s; what carries out its actions, the outbox, the broker and the cloud are models of
//! the real programs. A world has faults for a while and then calm, in which every case must be answered or dead
//! in bounded time. What must hold is in `oracle`. Nothing here does IO or knows the real time.
//!
//! ```text
//!             ┌───────── device ────────┐        network         ┌ broker ┐        network
//!  new case ─▶│ disk ─▶ engine ─▶ tasks │ ─▶ drop, delay, cut, ─▶│sessions│─▶ (the same) ─▶ cloud ─▶ records
//!             └─────────▲───────────────┘    stall, half-open    │retained│◀──────────────── model
//!                       └─────────────────────────────────────── └────────┘
//! ```

mod broker;
mod cloud;
mod device;
mod dials;
mod disk;
mod driver;
mod lies;
mod message;
mod net;
mod oracle;
mod plan;
mod records;
mod sweep;
mod trace;
mod uplink;
mod watch;
mod world;

use std::fmt;

pub use self::oracle::Broken;
pub use self::sweep::{Report, sweep};
use self::trace::Trace;
use self::world::World;

/// A bug put in on purpose, to show that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The device says `stored` before the commit.
    StoredBeforeDurable,
    /// The device acknowledges a verdict before it is on disk.
    AcksBeforeDurable,
    /// A verdict counts whatever its revision.
    AppliesTwice,
    /// PUBACK ends a case.
    PubackIsDone,
    /// After a cut or silence nobody is asked.
    NeverAsks,
    /// What should be asked about is sent again.
    SendsOnSilence,
    /// An answered case that was still under way is sent again.
    SendsAnswered,
    /// Each case leaves the window as soon as it is sent.
    IgnoresWindow,
    /// A retained status counts as a live one.
    TrustsRetained,
    /// No ceiling is known.
    IgnoresCeilings,
    /// Of what the disk was asked for only the first few arrive.
    DropsLeftovers,
    /// The first `failed` makes a dead letter.
    DeadAtFirstFailure,
    /// Every cloud counts as one that reads our messages.
    SendsToAnyCloud,
    /// `busy` is not heard.
    IgnoresBusy,
    /// The cloud acknowledges before its commit.
    CloudAcksFirst,
    /// The first word of a loss makes it dial again.
    DialsAtOnce,
    /// The same, and nothing counts the dials.
    DialsWithoutEnd,
    /// Whenever the cloud wants a payload it is sent.
    SendsWhenWanted,
    /// Each `failed` counts as a try, also about the same one.
    CountsEachFailed,
    /// What is too large for a message now is given up on.
    DeadAtLimit,
    /// What was too large once is not looked for again.
    NeverLooksAgain,
    /// Revision 0 counts as a verdict.
    TakesRevisionZero,
    /// Where thumbnails go first, the whole goes at once.
    SendsWhole,
    /// The cloud answers from a thumbnail that is not enough.
    AnswersUnsure,
    /// The cloud says once that it wants the whole, and has forgotten it when it starts again.
    ForgetsTheWanted,
}

/// A world in which everything held.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    pub steps: u64,
    pub virtual_s: u64,
    /// Cases said to be stored.
    pub cases: u64,
    /// How often a payload went out.
    pub payloads: u64,
}

/// A world in which a promise was broken.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub broken: Broken,
    /// The last steps before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Broken { promise, details, .. } = &self.broken;
        writeln!(f, "seed {}: \"{promise}\" does not hold: {details}", self.seed)?;
        write!(f, "again: cargo xtask sim --first-seed {} --seeds 1 --trace", self.seed)
    }
}

/// One world. A failure is lived through a second time, for its trace.
pub fn run(seed: u64, planted: Option<Planted>) -> Result<Summary, Box<Failure>> {
    World::new(seed, planted, Trace::default()).run().or_else(|_| explain(seed, planted, false))
}

/// One world with a trace of its steps; `aloud` prints all of them to standard error.
pub fn explain(seed: u64, planted: Option<Planted>, aloud: bool) -> Result<Summary, Box<Failure>> {
    let lived = World::new(seed, planted, Trace::kept(aloud)).run();
    lived.map_err(|(broken, trace)| {
        let trace = trace.into_lines(broken.case.as_deref());
        Box::new(Failure { seed, broken, trace })
    })
}
