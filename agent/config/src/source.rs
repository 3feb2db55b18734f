//! `[[source]]`: where samples come from.

use std::path::PathBuf;
use std::time::Duration;

use hedge_inference::Region;
use hedge_proto::{Metadata, Name};
use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "SourceFields")]
pub struct SourceConfig {
    pub name: Name,
    /// Names a `[[model]]`; the only one if not given.
    pub model: Option<Spanned<Name>>,
    /// At most one sample per this number of milliseconds; the newest wins.
    pub interval_ms: Option<u64>,
    /// Without a new sample for so long the source is a fault; 0 for one that may be quiet.
    quiet_after_s: Option<u32>,
    /// Which part of the picture is judged.
    pub region: Option<Region>,
    pub metadata: Metadata,
    /// A source that is off takes no samples.
    pub enabled: bool,
    pub kind: SourceKind,
}

/// How long a source may bring nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    pub after: Duration,
    /// Nobody said it, so it follows what the source is seen to do.
    learns: bool,
}

/// A camera streams all the time, so a minute without a picture is no pause of its own.
const COMMAND_QUIET_MIN: Duration = Duration::from_secs(60);

/// Of the longest time between two new samples, and of the interval at which they are taken.
const QUIET_TIMES: u32 = 3;

impl Quiet {
    /// Of a program that is asked for a picture every `interval`, if nobody says anything.
    #[must_use]
    pub fn of_command(interval: Option<Duration>) -> Self {
        let after = interval.unwrap_or_default().saturating_mul(QUIET_TIMES).max(COMMAND_QUIET_MIN);
        Self { after, learns: true }
    }

    /// So long went by between two new samples, and all was well.
    pub fn saw(&mut self, between: Duration) {
        if self.learns {
            self.after = self.after.max(between.saturating_mul(QUIET_TIMES));
        }
    }
}

impl SourceConfig {
    /// None for one that may be quiet: a folder and an application bring samples when there are any.
    #[must_use]
    pub fn quiet_after(&self) -> Option<Quiet> {
        match (self.quiet_after_s, &self.kind) {
            (Some(0), _) => None,
            (Some(seconds), _) => Some(Quiet { after: Duration::from_secs(seconds.into()), learns: false }),
            (None, SourceKind::Command { .. }) => Some(Quiet::of_command(self.interval_ms.map(Duration::from_millis))),
            (None, SourceKind::Http | SourceKind::Folder { .. }) => None,
        }
    }
}

/// How samples come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// `POST /v1/samples?source=NAME`
    Http,
    Folder {
        path: PathBuf,
        after: Fate,
    },
    Command {
        /// Program and arguments; its standard output carries the samples.
        command: Vec<String>,
        format: StreamFormat,
    },
}

/// A `[[source]]` as it is written; which fields belong together is checked when it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFields {
    name: Name,
    kind: KindName,
    model: Option<Spanned<Name>>,
    interval_ms: Option<u64>,
    quiet_after_s: Option<u32>,
    region: Option<Region>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "yes")]
    enabled: bool,
    path: Option<PathBuf>,
    after: Option<Fate>,
    command: Option<Vec<String>>,
    format: Option<StreamFormat>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
enum KindName {
    Http,
    Folder,
    Command,
}

impl TryFrom<String> for KindName {
    type Error = String;

    fn try_from(kind: String) -> Result<Self, String> {
        match kind.as_str() {
            "http" => Ok(Self::Http),
            "folder" => Ok(Self::Folder),
            "command" => Ok(Self::Command),
            "rtsp" => Err("a video stream is opened by ffmpeg, not by the agent: say kind = \"http\" and set up \
                 hedge-camera@NAME.service as docs/choosing.md shows, or kind = \"command\" with command = [\"ffmpeg\", \
                 \"-loglevel\", \"error\", \"-i\", \"rtsp://…\", \"-vf\", \"fps=1\", \"-f\", \"mjpeg\", \"-\"]"
                .to_owned()),
            _ => Err(format!("`{kind}` is no kind of source; say http, folder or command")),
        }
    }
}

impl TryFrom<SourceFields> for SourceConfig {
    type Error = String;

    fn try_from(fields: SourceFields) -> Result<Self, String> {
        let SourceFields { name, kind, model, interval_ms, quiet_after_s, region, metadata, enabled, .. } = fields;
        let SourceFields { path, after, command, format, .. } = fields;
        let kind = match (kind, path, after, command, format) {
            (KindName::Http, None, None, None, None) => SourceKind::Http,
            (KindName::Folder, Some(path), after, None, None) => {
                SourceKind::Folder { path, after: after.unwrap_or_default() }
            }
            (KindName::Command, None, None, Some(command), format) if !command.is_empty() => {
                SourceKind::Command { command, format: format.unwrap_or_default() }
            }
            (KindName::Http, ..) => {
                return Err(format!("source `{name}` of kind http takes no path, after, command or format"));
            }
            (KindName::Folder, ..) => {
                return Err(format!(
                    "source `{name}` of kind folder needs `path`, takes `after`, and no command or format"
                ));
            }
            (KindName::Command, ..) => {
                return Err(format!(
                    "source `{name}` of kind command needs `command` = [program, arguments…], takes `format`, and no path or after"
                ));
            }
        };
        Ok(Self { name, model, interval_ms, quiet_after_s, region, metadata, enabled, kind })
    }
}

/// What happens to a file once its sample has been answered. One that cannot be used always goes to `failed/`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Into `done/` beside it.
    #[default]
    Move,
    Delete,
}

/// How samples are told apart in a command's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum StreamFormat {
    /// JPEG pictures one after the other.
    #[default]
    Mjpeg,
    /// A 4-byte big-endian length before each JPEG or PNG.
    LengthDelimited,
}
