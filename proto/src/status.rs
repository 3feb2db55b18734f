//! Who is there: retained status documents, and the device's live figures.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{ModelRef, Name, Share, SpotChecks, ThresholdMode};

/// What the device knows about its way to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Offline,
    Connecting,
    Online,
    /// Connected, but no live cloud behind the broker, or answers are late.
    Degraded,
    /// Connected, but a ceiling of cases or bytes is reached: it listens and sends nothing.
    OverBudget,
    /// Not connected by its own will, until its radio's next window.
    Resting,
}

impl LinkState {
    /// All states, in the order in which they are declared.
    pub const ALL: [Self; 6] =
        [Self::Offline, Self::Connecting, Self::Online, Self::Degraded, Self::OverBudget, Self::Resting];

    /// As it is written in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::OverBudget => "over_budget",
            Self::Resting => "resting",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    Online,
    Offline,
}

/// `up/status`, retained. The same topic carries the will (`offline`), 30 s after the connection is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceStatus {
    pub state: DeviceState,
    /// Counts the device's connections. An `offline` below the last `online` is old news.
    pub connection: u64,
    /// A device that rests its radio connects every so many seconds; `offline` for less is no loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_every_s: Option<u32>,
    /// `degraded` or `over_budget` once the link of a device that is there has been so for ten seconds. A later version
    /// may know more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Wire versions the device speaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wire: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelRef>,
    #[serde(default, skip_serializing_if = "Faults::is_empty")]
    pub faults: Faults,
}

impl DeviceStatus {
    /// Not there, since connection number so many.
    #[must_use]
    pub fn offline(connection: u64) -> Self {
        Self {
            state: DeviceState::Offline,
            connection,
            window_every_s: None,
            link: None,
            version: None,
            wire: Vec::new(),
            models: Vec::new(),
            faults: Faults::new(),
        }
    }
}

/// What is wrong with a device now: the part it concerns, and a sentence that says what to do. Empty when nothing is.
pub type Faults = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CloudState {
    Online,
    Offline,
}

/// `hedge/v1/cloud/{instance}/status`, retained, with `offline` as its will.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CloudStatus {
    pub state: CloudState,
    /// Wire versions this instance reads.
    #[serde(default)]
    pub wire: Vec<u16>,
    /// Cases per second this instance takes from one device; 0 means hold. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// The largest payload in bytes it takes over MQTT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_bytes_max: Option<u64>,
}

/// What has passed through the device since its process started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SampleFigures {
    pub answered: u64,
    pub kept: u64,
    pub deferred: u64,
    /// Not answered at all: undecodable, wrong shape, model failure.
    pub failed: u64,
    /// Frames passed over because a newer one was there.
    pub skipped: u64,
    /// Cases refused by the outbox, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Cases taken out of the outbox without a verdict, by reason.
    pub dropped: BTreeMap<String, u64>,
    pub verdicts: u64,
    /// Verdicts that said something else than the local answer.
    pub corrected: u64,
    /// Verdicts for cases that were no longer open.
    pub late_verdicts: u64,
}

/// What has become of the answers for one sink since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SinkFigures {
    /// Answers and corrections it has confirmed.
    pub delivered: u64,
    /// Deliveries it has refused. Corrections among them are kept and offered again.
    pub refused: u64,
    /// Local answers that it did not get and never will: they came too fast for it, or it refused them.
    pub lost: u64,
}

/// What waits on the device's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct QueueFigures {
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Sent, no verdict yet; part of `waiting`.
    pub in_flight: u64,
    pub dead: u64,
    /// Age of the oldest waiting case on the powered clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_s: Option<u64>,
    /// Cases whose correction some sink has not confirmed.
    pub answered: u64,
    /// Everything that counts against the caps, and the caps.
    pub bytes: u64,
    pub bytes_max: u64,
    pub cases_max: u64,
    /// What log and queue take on the disk, and what was written to the log since the start.
    pub disk_bytes: u64,
    pub written_bytes: u64,
    /// Records whose bytes have changed on the disk, found since the start.
    pub damaged_records: u64,
    /// The queue on disk cannot be written; its order is kept in memory.
    pub in_memory: bool,
}

/// How long something took, since the process started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LatencyFigures {
    pub count: u64,
    pub mean_ms: f64,
    /// Half of all, and all but one in a hundred, took at most so long; upper ends of coarse steps.
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// A ceiling on what goes over the link, and how much of it is spent in the running period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct BudgetFigures {
    pub spent: u64,
    pub max: u64,
}

/// What the device's board tells. What it does not tell is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct BoardFigures {
    /// Memory of the agent's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling: Option<Throttling>,
}

/// What holds the board's processor back: `under_voltage`, `frequency_capped`, `throttled`, `soft_temperature_limit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Throttling {
    pub now: Vec<String>,
    pub since_boot: Vec<String>,
}

/// `up/telemetry`: live figures of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Telemetry {
    pub link: LinkState,
    /// One sentence on the link, for people.
    #[serde(default)]
    pub link_reason: String,
    pub uptime_s: u64,
    /// Seconds spent offline since the process started; rests of the radio aside.
    #[serde(default)]
    pub offline_s: u64,
    #[serde(default)]
    pub samples: SampleFigures,
    #[serde(default)]
    pub queue: QueueFigures,
    #[serde(default)]
    pub sources: BTreeMap<Name, String>,
    /// Each configured sink, by its name in `[verdicts]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sinks: BTreeMap<String, SinkFigures>,
    /// How long ago each source that is on brought something.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_figures: BTreeMap<Name, SourceFigures>,
    /// Seconds in each state of the link since the process started, by the state's name.
    #[serde(default)]
    pub link_s: BTreeMap<String, u64>,
    /// Connections that came about since the process started.
    #[serde(default)]
    pub connections: u64,
    /// Bytes over the connection in both directions since the process started, everything counted.
    #[serde(default)]
    pub link_bytes: u64,
    /// By the ceiling's name in the configuration: `cases_per_hour` to `bytes_per_month`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub budget: BTreeMap<String, BudgetFigures>,
    /// Answers by path (`kept`, `deferred`) and stages (`tensor`, `inference`, `store`); only what happened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency: BTreeMap<String, LatencyFigures>,
    /// Each configured model, and its name and version once it is loaded.
    #[serde(default)]
    pub models: BTreeMap<Name, Option<ModelRef>>,
    /// How long ago each model answered, and what its answers must reach.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub model_figures: BTreeMap<Name, ModelFigures>,
    /// Messages of the cloud that this version cannot read, held since the process started.
    #[serde(default)]
    pub unread: u64,
    #[serde(default)]
    pub board: BoardFigures,
    #[serde(default, skip_serializing_if = "Faults::is_empty")]
    pub faults: Faults,
    /// What of a sample leaves the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyFigures>,
}

/// In seconds; what did not happen since the process started, or the source was switched on, is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SourceFigures {
    /// Since a sample came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_s: Option<u64>,
    /// Since one came that was not the same, byte for byte, as the one before; for a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_s: Option<u64>,
    /// Since one was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_s: Option<u64>,
    /// After so long without a new one the source is a fault; absent for one that may be quiet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_after_s: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelFigures {
    /// Seconds since it answered a sample; absent if it did not since the process started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_s: Option<u64>,
    /// What the best score must reach, classes with a number of their own aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_min: Option<Share>,
    /// `score_min` is what the bundle suggests: no setting says another.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub suggested: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeFigures>,
    /// Its bundle was put there by hand: nobody's signature was asked for.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub local: bool,
    /// What it runs on once it is loaded: `cpu`, or an accelerator and how many of its steps that takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The bundle that the one that answers is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<RivalFigures>,
    /// The bundle that settings want it to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<WantedFigures>,
}

/// How far a wanted bundle has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WantedFigures {
    pub name: Name,
    pub version: Name,
    /// `waiting`, `fetching`, `candidate`, `current` or `failed`. A later version may know more.
    pub state: String,
    /// What it waits for, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that came while it is fetched, counted again when they come again, and how many the bundle has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A bundle that looks at the same samples as the one that answers, while nobody hears it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RivalFigures {
    pub version: String,
    pub role: RivalRole,
    /// Samples that both have looked at, and those about which they differed.
    #[serde(default)]
    pub compared: u32,
    #[serde(default)]
    pub differed: u32,
    /// Of these, how many spoke for the newer bundle, and for the older one.
    #[serde(default)]
    pub newer: f64,
    #[serde(default)]
    pub older: f64,
    /// How many times as long as the older one the newer one takes.
    #[serde(default)]
    pub slower: f64,
    /// `better`, `worse` or `alike`: what is known of the newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<String>,
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RivalRole {
    /// The newer one, before it is promoted.
    Candidate,
    /// The older one, after that.
    Previous,
}

/// What is learned of a model, and how its threshold is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JudgeFigures {
    pub mode: ThresholdMode,
    /// What the best score must reach now; under a target absent while nothing may stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_min: Option<f32>,
    /// Cases and bytes of the last day.
    #[serde(default)]
    pub cases_per_day: u64,
    #[serde(default)]
    pub bytes_per_day: u64,
    /// Spot checks that were answered, that were lost, and how many of both were contradicted.
    #[serde(default)]
    pub checks: u64,
    #[serde(default)]
    pub checks_lost: u64,
    #[serde(default)]
    pub contradicted: f64,
    /// At least so many more spot checks, none of them contradicted, until half of the answers may stay under the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_missing: Option<u32>,
    /// Under a target: this device's own, told to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot_checks: Option<SpotChecks>,
    /// How many spot checks of the whole fleet the device knows of; absent if it goes by its own alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet_checks: Option<u64>,
    /// `more_doubt` or `less_doubt`: how the input has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<String>,
    /// How near an alarm is: 0 to 1.
    #[serde(default)]
    pub shift_suspicion: f32,
    /// Verdicts that scores were compared with.
    #[serde(default)]
    pub labels: f32,
    /// The expected calibration error of the scores as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_error: Option<f32>,
    /// The same of single boxes, which are right if the cloud has found them, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub box_calibration_error: Option<f32>,
    /// How probable it is that a contradicted answer is more doubtful than another; a half is chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auroc: Option<f32>,
    /// How well a learned doubt has done; absent unless one is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<LearnedFigures>,
    /// How many in ten thousand of the answers seen lately had a doubt in each of so many ranges of the same width, the
    /// least doubt first. Empty before the first answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubt: Vec<u16>,
}

/// A doubt that is learned from verdicts, beside that of the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LearnedFigures {
    /// Whether it counts in place of the score.
    pub used: bool,
    /// Spot checks that both were compared on, since it was last decided which of them counts.
    pub checks: f32,
    /// How probable it is that a contradicted answer is more doubtful than another, by the learned doubt and by the score's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auroc: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_auroc: Option<f32>,
    /// The first less the second, and its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better_by: Option<(f32, f32)>,
}

/// `whole`, `thumbnail 320` or `nothing`: a later version may know more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PrivacyFigures {
    /// The most that may ever leave, as the device's own file says.
    pub ceiling: String,
    /// What is stored and sent of a sample in the present state of the link.
    pub payload: String,
}

impl Telemetry {
    /// With nothing counted yet.
    #[must_use]
    pub fn new(link: LinkState) -> Self {
        Self {
            link,
            link_reason: String::new(),
            uptime_s: 0,
            offline_s: 0,
            samples: SampleFigures::default(),
            queue: QueueFigures::default(),
            sources: BTreeMap::new(),
            sinks: BTreeMap::new(),
            source_figures: BTreeMap::new(),
            link_s: BTreeMap::new(),
            connections: 0,
            link_bytes: 0,
            budget: BTreeMap::new(),
            latency: BTreeMap::new(),
            models: BTreeMap::new(),
            model_figures: BTreeMap::new(),
            unread: 0,
            board: BoardFigures::default(),
            faults: Faults::new(),
            privacy: None,
        }
    }
}
