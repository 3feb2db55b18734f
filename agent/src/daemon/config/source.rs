//! `[[source]]`: where samples come from.

use std::path::PathBuf;

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
    /// At most one sample per so many milliseconds; the newest wins.
    pub interval_ms: Option<u64>,
    /// Which part of the picture is judged.
    pub region: Option<Region>,
    pub metadata: Metadata,
    /// A source that is off takes no samples.
    pub enabled: bool,
    pub kind: SourceKind,
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
        let SourceFields { name, kind, model, interval_ms, region, metadata, enabled, path, after, command, format } =
            fields;
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
        Ok(Self { name, model, interval_ms, region, metadata, enabled, kind })
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
