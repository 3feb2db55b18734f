//! A configuration file that cannot be used does not stop the device: the last one that worked is kept in its state
//! folder, and is used until the file is put right.

use std::path::{Path, PathBuf};

use super::{ConfigError, ConfigFile, HttpConfig, Listen, PrivacyConfig};
use hedge_identity::write_secret;

/// The copy's name in the state folder.
const KEPT: &str = "agent.toml.worked";

/// The largest file read: ours have a few KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A variable of the environment.
type Variable = (String, String);

/// What a start has to go by.
pub struct Starting {
    pub file: ConfigFile,
    /// Why this is not the configuration file.
    pub fault: Option<String>,
}

impl Starting {
    /// The configuration file; else the last one that worked; else none at all, which serves the status only.
    #[must_use]
    pub fn load(path: &Path, environment: &[Variable]) -> Self {
        let error = match ConfigFile::load(path, environment.iter().cloned()) {
            Ok(file) => return Self { file, fault: None },
            Err(error) => error,
        };
        let state_dir = state_dir(path, environment);
        let (mut file, fault) = match read_kept(&state_dir.join(KEPT), path, environment) {
            Ok(file) => {
                let fault = "the last configuration that worked stays in force until this is corrected".to_owned();
                (file, fault)
            }
            Err(why) => {
                let fault = format!("there is none that worked before ({why}), so no source is served");
                (bare(path, state_dir, environment), fault)
            }
        };
        if let Some(privacy) = std::fs::read(path).ok().and_then(|bytes| PrivacyConfig::of_damaged(&bytes)) {
            file.hold_to(privacy);
        }
        Self { file, fault: Some(format!("{error}; {fault}")) }
    }
}

impl ConfigFile {
    /// Keeps this text as the last that worked. Nothing is written if it is kept already.
    pub fn keep(&self) -> std::io::Result<()> {
        let kept = self.config.state_dir.join(KEPT);
        if std::fs::read_to_string(&kept).is_ok_and(|text| text == self.text) {
            return Ok(());
        }
        write_secret(&kept, &self.text)
    }
}

fn read_kept(kept: &Path, path: &Path, environment: &[Variable]) -> Result<ConfigFile, String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", kept.display());
    let size = std::fs::metadata(kept).map_err(|error| said(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(said(&"it is too large to be one"));
    }
    let text = std::fs::read_to_string(kept).map_err(|error| said(&error))?;
    let mut file = ConfigFile::parse(&text, &kept.display().to_string(), environment.iter().cloned())
        .map_err(|error: ConfigError| error.to_string())?;
    // A reload looks at the file that is to be put right.
    file.path = path.to_owned();
    Ok(file)
}

/// No source, no model and no broker, but a socket on which the status is served.
fn bare(path: &Path, state_dir: PathBuf, environment: &[Variable]) -> ConfigFile {
    let mut file = ConfigFile::parse("", "no configuration", environment.iter().cloned())
        .or_else(|_| ConfigFile::parse("", "no configuration", std::iter::empty()))
        .unwrap_or_else(|_| unreachable!("an empty configuration is valid"));
    file.path = path.to_owned();
    file.config.state_dir = state_dir;
    if file.config.http.listen.is_empty()
        && let Some(folder) = variable(environment, "RUNTIME_DIRECTORY")
    {
        let socket = Path::new(first_of(&folder)).join("agent.sock");
        file.config.http = HttpConfig { listen: vec![Listen::Unix(socket)], ..HttpConfig::default() };
    }
    file
}

/// Where the state lies, as far as it can be told without a configuration: the environment says so, or systemd does,
/// or a line of the damaged file that is still whole.
fn state_dir(path: &Path, environment: &[Variable]) -> PathBuf {
    if let Some(dir) = variable(environment, "HEDGE_STATE_DIR") {
        return dir.into();
    }
    if let Some(dir) = state_dir_in(&std::fs::read(path).unwrap_or_default()) {
        return dir;
    }
    match variable(environment, "STATE_DIRECTORY") {
        Some(dirs) => first_of(&dirs).into(),
        None => super::Config::default().state_dir,
    }
}

/// `state_dir` among the lines before the first section.
fn state_dir_in(bytes: &[u8]) -> Option<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Line {
        state_dir: PathBuf,
    }
    let text = String::from_utf8_lossy(bytes);
    let head = text.lines().take_while(|line| !line.trim_start().starts_with('['));
    head.filter_map(|line| toml::from_str::<Line>(line).ok()).map(|line| line.state_dir).next()
}

fn variable(environment: &[Variable], name: &str) -> Option<String> {
    environment.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.clone())
}

/// systemd separates folders by colons.
fn first_of(folders: &str) -> &str {
    folders.split(':').next().unwrap_or(folders)
}

#[cfg(test)]
mod tests {
    use hedge_core::privacy::Ceiling;
    use hedge_proto::Payload;

    use super::*;

    #[test]
    fn a_damaged_file_gives_way_to_the_last_that_worked_and_without_one_to_none() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (path, state) = (dir.path().join("agent.toml"), dir.path().join("state"));
        std::fs::create_dir(&state).expect("made");
        let good = format!("state_dir = \"{}\"\ndevice = \"gate-7\"\n[log]\nlevel = \"warn\"\n", state.display());
        let half = good.replace("level = \"warn\"\n", "level = \"wa");
        let runtime = vec![("RUNTIME_DIRECTORY".to_owned(), "/run/hedge:/run/other".to_owned())];

        std::fs::write(&path, &half).expect("written");
        let starting = Starting::load(&path, &runtime);
        assert!(starting.fault.expect("said").contains("agent.toml:4"), "the line is named");
        assert_eq!(starting.file.config.http.listen, [Listen::Unix("/run/hedge/agent.sock".into())]);
        assert_eq!(starting.file.config.state_dir, state, "its line is still whole");

        std::fs::write(&path, &good).expect("written");
        let starting = Starting::load(&path, &[]);
        assert_eq!(starting.fault, None);
        starting.file.keep().expect("kept");

        std::fs::write(&path, &half).expect("written");
        let starting = Starting::load(&path, &[]);
        assert!(starting.fault.expect("said").contains("last configuration that worked"));
        assert_eq!(starting.file.config.log.level, "warn");
        assert!(starting.file.again().is_err(), "a reload reads the damaged file");

        // What a power cut leaves; without the file its folder is where the package, or the environment, has it.
        let environment = [("HEDGE_STATE_DIR".to_owned(), state.display().to_string())];
        for empty in ["", "\n"] {
            std::fs::write(&path, empty).expect("written");
            let starting = Starting::load(&path, &environment);
            assert!(starting.fault.expect("said").contains("it is empty"), "{empty:?}");
            assert_eq!(starting.file.config.log.level, "warn");
        }
    }

    #[test]
    fn a_ceiling_in_a_damaged_file_holds_over_the_last_that_worked() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.toml");
        let good = format!("state_dir = \"{}\"\n[privacy]\nceiling = {{ thumbnail = 320 }}\n", dir.path().display());
        // Also where none has worked: whoever asks what may leave must not be told that all may.
        std::fs::write(&path, format!("{good}[link")).expect("written");
        assert_eq!(Starting::load(&path, &[]).file.config.privacy.ceiling(), Ceiling(Payload::Thumbnail(320)));
        std::fs::write(&path, &good).expect("written");
        Starting::load(&path, &[]).file.keep().expect("kept");
        for (damaged, held) in [
            ("[privacy]\nceiling = \"nothing\"\n[link]\nprofile = \"wi", Payload::Nothing),
            ("[privacy]\nceiling = { thumbnail = 64 }\n[link", Payload::Thumbnail(64)),
            ("[privacy]\nceiling = \"nothng\"\n", Payload::Nothing),
            ("[privacy]\nceilin", Payload::Nothing),
            ("[privacy]\nceiling = \"crop\"\n[link", Payload::Thumbnail(320)),
            ("privacy.ceiling = \"whole", Payload::Nothing),
            ("[privacy]\nceiling = \"whole\"\n[link", Payload::Thumbnail(320)),
            ("[link", Payload::Thumbnail(320)),
        ] {
            std::fs::write(&path, format!("state_dir = \"{}\"\n{damaged}", dir.path().display())).expect("written");
            let starting = Starting::load(&path, &[]);
            assert!(starting.fault.is_some(), "{damaged}");
            assert_eq!(starting.file.config.privacy.ceiling(), Ceiling(held), "{damaged}");
            let overlaid = starting.file.overlaid(&hedge_proto::Settings::default()).expect("fits");
            assert_eq!(overlaid.policies().online.payload, held, "{damaged}");
        }
    }
}
