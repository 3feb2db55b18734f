//! `[[source]]`: where samples come from.

use std::path::PathBuf;
use std::time::Duration;

use hedge_core::crops::{CROPS_MAX, Pick};
use hedge_inference::Region;
use hedge_proto::{Metadata, Name, Share};
use serde::Deserialize;
use toml::Spanned;

use super::Problem;

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
    /// Crops are cut out of what comes in, not out of other crops.
    pub(super) fn check_of(&self, all: &[Self]) -> Result<(), Problem> {
        let SourceKind::Crops { of, .. } = &self.kind else { return Ok(()) };
        let comes_in = all.iter().filter(|other| !matches!(other.kind, SourceKind::Crops { .. }));
        let known: Vec<&str> = comes_in.map(|other| other.name.as_str()).collect();
        if known.contains(&of.as_str()) {
            return Ok(());
        }
        let known = known.join(", ");
        let message =
            format!("source `{}` is cut out of `{of}`; sources that pictures come from are: {known}", self.name);
        let mut problem = Problem::of("source", &self.name, message);
        problem.field.push("of".to_owned());
        Err(problem)
    }

    /// None for one that may be quiet: a folder and an application bring samples when there are any.
    #[must_use]
    pub fn quiet_after(&self) -> Option<Quiet> {
        match (self.quiet_after_s, &self.kind) {
            (Some(0), _) => None,
            (Some(seconds), _) => Some(Quiet { after: Duration::from_secs(seconds.into()), learns: false }),
            (None, SourceKind::Command { .. }) => Some(Quiet::of_command(self.interval_ms.map(Duration::from_millis))),
            (None, SourceKind::Http | SourceKind::Folder { .. } | SourceKind::Crops { .. }) => None,
        }
    }
}

/// How samples come in.
#[derive(Debug, Clone, PartialEq)]
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
    /// Things that the model of another source finds in its pictures.
    Crops {
        of: Name,
        pick: Pick,
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
    format: Option<FormatName>,
    window: Option<Window>,
    of: Option<Name>,
    pick: Option<PickFields>,
}

/// `pick` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PickFields {
    #[serde(default)]
    classes: Vec<String>,
    score_min: Option<Share>,
    most: Option<usize>,
}

/// How many crops of one picture there are if nobody says it.
const CROPS: usize = 4;

impl TryFrom<PickFields> for Pick {
    type Error = String;

    fn try_from(PickFields { classes, score_min, most }: PickFields) -> Result<Self, String> {
        let most = most.unwrap_or(CROPS);
        within("pick.most", most, (1, CROPS_MAX))?;
        Ok(Self { classes, score_min: score_min.map_or(0.0, Share::value), most })
    }
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
    Crops,
}

impl TryFrom<String> for KindName {
    type Error = String;

    fn try_from(kind: String) -> Result<Self, String> {
        match kind.as_str() {
            "http" => Ok(Self::Http),
            "folder" => Ok(Self::Folder),
            "command" => Ok(Self::Command),
            "crops" => Ok(Self::Crops),
            "rtsp" => Err("a video stream is opened by ffmpeg, not by the agent: say kind = \"http\" and set up \
                 hedge-camera@NAME.service as docs/choosing.md shows, or kind = \"command\" with command = [\"ffmpeg\", \
                 \"-loglevel\", \"error\", \"-i\", \"rtsp://…\", \"-vf\", \"fps=1\", \"-f\", \"mjpeg\", \"-\"]"
                .to_owned()),
            _ => Err(format!("`{kind}` is no kind of source; say http, folder, command or crops")),
        }
    }
}

impl TryFrom<SourceFields> for SourceConfig {
    type Error = String;

    fn try_from(fields: SourceFields) -> Result<Self, String> {
        let SourceFields { name, kind, model, interval_ms, quiet_after_s, region, metadata, enabled, .. } = fields;
        let SourceFields { path, after, command, format, window, of, pick, .. } = fields;
        if let KindName::Crops = kind {
            let others = path.is_some() || after.is_some() || command.is_some() || format.is_some() || window.is_some();
            let own = interval_ms.is_some() || quiet_after_s.is_some() || region.is_some();
            let (Some(of), false) = (of, others || own) else {
                return Err(format!(
                    "source `{name}` of kind crops needs `of`, the source whose pictures it is cut out of, takes `pick`, and \
                     nothing that says how samples come in or which part of them is judged"
                ));
            };
            let pick = pick.unwrap_or_default().try_into().map_err(|reason| format!("source `{name}`: {reason}"))?;
            let kind = SourceKind::Crops { of, pick };
            return Ok(Self { name, model, interval_ms, quiet_after_s, region, metadata, enabled, kind });
        }
        if of.is_some() || pick.is_some() {
            return Err(format!("source `{name}`: `of` and `pick` are for the kind crops"));
        }
        // Only a command's output is cut.
        let cut = format.is_some() || window.is_some();
        let kind = match (kind, path, after, command, cut) {
            (KindName::Http, None, None, None, false) => SourceKind::Http,
            (KindName::Folder, Some(path), after, None, false) => {
                SourceKind::Folder { path, after: after.unwrap_or_default() }
            }
            (KindName::Command, None, None, Some(command), _) if !command.is_empty() => {
                let format = StreamFormat::new(format.unwrap_or_default(), window);
                let format = format.map_err(|reason| format!("source `{name}`: {reason}"))?;
                SourceKind::Command { command, format }
            }
            (KindName::Http, ..) => {
                return Err(format!("source `{name}` of kind http takes no path, after, command, format or window"));
            }
            (KindName::Folder, ..) => {
                return Err(format!(
                    "source `{name}` of kind folder needs `path`, takes `after`, and no command, format or window"
                ));
            }
            (KindName::Command | KindName::Crops, ..) => {
                return Err(format!(
                    "source `{name}` of kind command needs `command` = [program, arguments…], takes `format` and `window`, \
                     and no path or after"
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    Mjpeg,
    LengthDelimited,
    Pcm(PcmWindow),
    Rows(RowWindow),
}

/// The same by name, without its numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum FormatName {
    /// JPEG pictures one after the other.
    #[default]
    Mjpeg,
    /// A 4-byte big-endian length before each sample.
    LengthDelimited,
    /// Sound without a header: 16-bit little-endian samples, as `arecord -t raw -f S16_LE` writes them.
    Pcm,
    /// Rows of numbers, one a line: CSV or JSON.
    Rows,
}

/// Which windows are cut out of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcmWindow {
    /// Samples per second.
    pub rate: u32,
    pub channels: u16,
    /// Samples of each channel in a window, and from the beginning of one to that of the next.
    pub samples: usize,
    pub hop: usize,
}

/// Which windows are cut out of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowWindow {
    /// Rows of a window, and from the beginning of one to that of the next.
    pub rows: usize,
    pub hop: usize,
}

/// `window` as it is written; which of it belongs to which format is checked when it is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    rate: Option<u32>,
    channels: Option<u16>,
    ms: Option<u32>,
    hop_ms: Option<u32>,
    rows: Option<usize>,
    hop_rows: Option<usize>,
}

/// The longest window: ten minutes of sound.
const WINDOW_MS_MAX: u32 = 600_000;

/// The most rows of a window: a day of one a second.
const WINDOW_ROWS_MAX: usize = 86_400;

impl StreamFormat {
    pub fn new(name: FormatName, window: Option<Window>) -> Result<Self, String> {
        let is_given = window.is_some();
        match (name, window.unwrap_or_default()) {
            (FormatName::Mjpeg, _) if !is_given => Ok(Self::Mjpeg),
            (FormatName::LengthDelimited, _) if !is_given => Ok(Self::LengthDelimited),
            (FormatName::Mjpeg | FormatName::LengthDelimited, _) => {
                Err("`window` is for the formats pcm and rows; pictures come one by one".to_owned())
            }
            (
                FormatName::Pcm,
                Window { rate: Some(rate), channels, ms: Some(ms), hop_ms, rows: None, hop_rows: None },
            ) => {
                let (channels, hop_ms) = (channels.unwrap_or(1), hop_ms.unwrap_or(ms));
                within("window.rate", rate, (1000, 384_000))?;
                within("window.channels", channels, (1, 64))?;
                within("window.ms", ms, (10, WINDOW_MS_MAX))?;
                within("window.hop_ms", hop_ms, (10, ms))?;
                let samples = |ms: u32| usize::try_from(u64::from(rate) * u64::from(ms) / 1000).unwrap_or(usize::MAX);
                Ok(Self::Pcm(PcmWindow { rate, channels, samples: samples(ms), hop: samples(hop_ms) }))
            }
            (FormatName::Pcm, _) => {
                Err("the format pcm needs `window` = { rate = 8000, ms = 1000 }, takes `channels` \
                 and `hop_ms` in it, and nothing else"
                    .to_owned())
            }
            (
                FormatName::Rows,
                Window { rate: None, channels: None, ms: None, hop_ms: None, rows: Some(rows), hop_rows },
            ) => {
                let hop = hop_rows.unwrap_or(rows);
                within("window.rows", rows, (1, WINDOW_ROWS_MAX))?;
                within("window.hop_rows", hop, (1, rows))?;
                Ok(Self::Rows(RowWindow { rows, hop }))
            }
            (FormatName::Rows, _) => {
                Err("the format rows needs `window` = { rows = 50 }, takes `hop_rows` in it, and nothing else"
                    .to_owned())
            }
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, (least, most): (T, T)) -> Result<(), String> {
    if value < least || value > most {
        return Err(format!("`{field}` = {value} must be {least} to {most}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(rest: &str) -> Result<SourceConfig, String> {
        let text = format!("name = \"mic\"\nkind = \"command\"\ncommand = [\"arecord\"]\n{rest}");
        toml::from_str(&text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn windows_of_sound_and_rows_are_said_in_milliseconds_and_rows() {
        let format = |rest: &str| match source(rest).expect("valid").kind {
            SourceKind::Command { format, .. } => format,
            other => panic!("{other:?}"),
        };
        assert_eq!(format(""), StreamFormat::Mjpeg);
        let pcm = PcmWindow { rate: 16_000, channels: 1, samples: 16_000, hop: 16_000 };
        assert_eq!(format("format = \"pcm\"\nwindow = { rate = 16000, ms = 1000 }"), StreamFormat::Pcm(pcm));
        let half = PcmWindow { channels: 2, hop: 8000, ..pcm };
        let text = "format = \"pcm\"\nwindow = { rate = 16000, channels = 2, ms = 1000, hop_ms = 500 }";
        assert_eq!(format(text), StreamFormat::Pcm(half));
        let rows = RowWindow { rows: 50, hop: 10 };
        assert_eq!(format("format = \"rows\"\nwindow = { rows = 50, hop_rows = 10 }"), StreamFormat::Rows(rows));
    }

    #[test]
    fn crops_name_the_source_they_are_cut_out_of_and_nothing_that_is_not_theirs() {
        let read = |rest: &str| {
            let text = format!("name = \"faces\"\nkind = \"crops\"\n{rest}");
            toml::from_str::<SourceConfig>(&text).map_err(|error| error.message().to_owned())
        };
        let SourceKind::Crops { of, pick } = read("of = \"door\"").expect("valid").kind else { panic!("crops") };
        assert_eq!((of.as_str(), pick), ("door", Pick { classes: vec![], score_min: 0.0, most: CROPS }));
        let text = "of = \"door\"\npick = { classes = [\"person\"], score_min = 0.5, most = 2 }";
        let SourceKind::Crops { pick, .. } = read(text).expect("valid").kind else { panic!("crops") };
        assert_eq!(pick, Pick { classes: vec!["person".to_owned()], score_min: 0.5, most: 2 });
        for (rest, words) in [
            ("", "needs `of`"),
            ("of = \"door\"\npath = \"/p\"", "nothing that says how samples come in"),
            ("of = \"door\"\ninterval_ms = 5", "nothing that says how samples come in"),
            ("of = \"door\"\npick = { most = 0 }", "`pick.most` = 0 must be 1 to 16"),
            ("of = \"door\"\npick = { most = 17 }", "`pick.most` = 17 must be 1 to 16"),
            ("of = \"door\"\npick = { score_min = 1.5 }", "1.5"),
        ] {
            let error = read(rest).expect_err("refused");
            assert!(error.contains(words), "{rest}: {error}");
        }
        assert!(source("of = \"door\"").expect_err("refused").contains("are for the kind crops"));
        let model = "[[model]]\nname = \"m\"\nbundle = \"/b\"\n";
        let crops = |name: &str, of: &str| format!("[[source]]\nname = \"{name}\"\nkind = \"crops\"\nof = \"{of}\"\n");
        let door = "[[source]]\nname = \"door\"\nkind = \"http\"\n";
        let parse = |text: String| crate::Config::parse(&text, "agent.toml", std::iter::empty());
        parse(format!("{model}{door}{}", crops("faces", "door"))).expect("valid");
        for of in ["faces", "hands", "window"] {
            let error = parse(format!("{model}{door}{}{}", crops("hands", "door"), crops("faces", of)));
            let error = error.expect_err("refused").to_string();
            assert!(
                error.contains(&format!("cut out of `{of}`; sources that pictures come from are: door")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_window_that_cannot_be_meant_is_refused_by_name() {
        for (rest, words) in [
            ("format = \"pcm\"", "needs `window` = { rate = 8000, ms = 1000 }"),
            ("format = \"pcm\"\nwindow = { rate = 8000, rows = 5 }", "needs `window` = { rate"),
            ("format = \"pcm\"\nwindow = { rate = 10, ms = 1000 }", "`window.rate` = 10 must be 1000 to"),
            (
                "format = \"pcm\"\nwindow = { rate = 8000, ms = 100, hop_ms = 200 }",
                "`window.hop_ms` = 200 must be 10 to 100",
            ),
            ("format = \"pcm\"\nwindow = { rate = 8000, ms = 100, channels = 0 }", "`window.channels` = 0"),
            ("format = \"rows\"", "needs `window` = { rows = 50 }"),
            ("format = \"rows\"\nwindow = { rows = 5, hop_rows = 6 }", "`window.hop_rows` = 6 must be 1 to 5"),
            ("window = { rows = 5 }", "`window` is for the formats pcm and rows"),
            ("format = \"rows\"\nwindow = { row = 5 }", "row"),
        ] {
            let error = source(rest).expect_err(words);
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
        let text = "name = \"a\"\nkind = \"http\"\nwindow = { rows = 5 }";
        let error = toml::from_str::<SourceConfig>(text).expect_err("refused").message().to_owned();
        assert!(error.contains("of kind http takes no path, after, command, format or window"), "{error}");
    }
}
