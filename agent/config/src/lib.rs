//! The configuration file: TOML, read and checked whole before anything is touched.
//!
//! Types refuse what cannot be meant while they are read, so that every error carries its line. Any value
//! outside `[[model]]` and `[[source]]` can be overridden from the environment: `HEDGE_BROKER__URL` is
//! `url` in `[broker]`.

mod broker;
mod file;
mod home_assistant;
mod kept;
mod link;
mod log;
mod model;
mod outbox;
mod overrides;
mod payloads;
mod place;
mod privacy;
mod settings;
mod source;
mod states;
mod threshold;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedge_core::engine::Configured;
use hedge_core::identity::device_id;
use hedge_core::policy::Policies;
use hedge_identity::Certificate;
use hedge_proto::{DeviceId, Name, WantedSettings};
use serde::Deserialize;
use toml::Spanned;

pub use self::broker::{
    BrokerConfig, BrokerTransport, BrokerUrl, CredentialsConfig, EnrolmentConfig, IdentityFrom, ProxyUrl,
};
pub use self::file::{ConfigFile, read_toml};
pub use self::home_assistant::HomeAssistantConfig;
pub use self::kept::Starting;
pub use self::link::{CeilingsConfig, LinkConfig, ProbeConfig};
pub use self::log::{LogConfig, LogError, LogFormat, log_filter};
pub use self::model::{ModelConfig, bundles_of};
pub use self::outbox::{OutboxConfig, WhenFullName};
pub use self::overrides::{NoSetting, Override};
pub use self::payloads::{BundlesConfig, BundlesUrl, HttpUrl, PayloadsConfig};
pub use self::place::span_of;
pub use self::privacy::PrivacyConfig;
pub use self::settings::SettingsConfig;
pub use self::source::{Fate, FormatName, PcmWindow, Quiet, RowWindow, SourceConfig, SourceKind, StreamFormat, Window};
pub use self::states::{StateConfig, StatesConfig};
pub use self::threshold::{ThresholdConfig, unknown_labels};
pub use self::verdicts::{
    CommandSinkConfig, JsonlConfig, KIND_TABLES, MqttSinkConfig, SinkConfig, VerdictsConfig, WebhookConfig,
};

/// Why the configuration cannot be used. The text names the file, the line and the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{place}: {message}")]
    Invalid { place: String, message: String },
}

/// Everything the operator decides locally.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The device's name in the fleet; the host name if not given.
    pub device: Option<DeviceId>,
    /// Where the outbox and the small state file live.
    pub state_dir: PathBuf,
    pub log: LogConfig,
    /// Without a broker the device is on its own: it answers and queues.
    pub broker: Option<BrokerConfig>,
    /// By the name that `broker.credentials` uses.
    pub credentials: BTreeMap<Name, CredentialsConfig>,
    /// Without it certificates are renewed by whoever made them.
    pub enrolment: Option<EnrolmentConfig>,
    pub link: LinkConfig,
    /// Without it, what is too large for MQTT cannot be sent.
    pub payloads: Option<PayloadsConfig>,
    /// Without it bundles are fetched by hand only.
    pub bundles: Option<BundlesConfig>,
    /// Without it everything may leave the device.
    pub privacy: PrivacyConfig,
    pub runtime: RuntimeConfig,
    pub http: HttpConfig,
    pub outbox: OutboxConfig,
    pub verdicts: VerdictsConfig,
    /// Without it Home Assistant is not told of the device.
    pub home_assistant: Option<HomeAssistantConfig>,
    pub telemetry: TelemetryConfig,
    pub settings: SettingsConfig,
    #[serde(rename = "model")]
    pub models: Vec<ModelConfig>,
    #[serde(rename = "source")]
    pub sources: Vec<SourceConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device: None,
            state_dir: "/var/lib/hedge-agent".into(),
            log: LogConfig::default(),
            broker: None,
            credentials: BTreeMap::new(),
            enrolment: None,
            link: LinkConfig::default(),
            payloads: None,
            bundles: None,
            privacy: PrivacyConfig::default(),
            runtime: RuntimeConfig::default(),
            http: HttpConfig::default(),
            outbox: OutboxConfig::default(),
            verdicts: VerdictsConfig::default(),
            home_assistant: None,
            telemetry: TelemetryConfig::default(),
            settings: SettingsConfig::default(),
            models: Vec::new(),
            sources: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The ONNX Runtime library; searched for if not given.
    pub library: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    pub listen: Vec<Listen>,
    /// Host names that a proxy in front of a loopback address is reached by; it asks who is there.
    pub names: Vec<String>,
    /// A sample larger than this is refused before it is read.
    pub body_bytes_max: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        // 32 MiB holds a 24-megapixel JPEG at the highest quality.
        Self { listen: Vec::new(), names: Vec::new(), body_bytes_max: 32 * 1024 * 1024 }
    }
}

/// `unix:/path` or a loopback address with a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| format!("`{text}` is neither unix:/path nor an address such as 127.0.0.1:8787"))?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!("`{text}` is not a loopback address; samples are served to this machine only"))
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The link profile's if not given. A change of the link is told at once all the same.
    pub interval_s: Option<u64>,
    /// Whether messages with cases carry their trace context.
    pub traces: bool,
}

impl Config {
    /// Reads, overrides and checks. Nothing else is touched: no model, no network, no state.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        ConfigFile::load(path, environment).map(|file| file.config)
    }

    /// Like [`Self::load`], from text; `file` is what errors call it.
    pub fn parse(
        text: &str,
        file: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        ConfigFile::parse(text, file, environment).map(|file| file.config)
    }

    /// What holds in each state of the link, under the ceiling.
    #[must_use]
    pub fn policies(&self) -> Policies {
        self.link.states.policies().under(self.privacy.ceiling())
    }

    /// What the engine goes by.
    #[must_use]
    pub fn configured(&self) -> Configured {
        let (profile, policies) = (self.link.profile(), self.policies());
        Configured { profile, policies, ceilings: self.link.ceilings(), batch_bytes_max: self.link.batch_bytes_max() }
    }

    /// How often live figures are sent while nothing changes.
    #[must_use]
    pub fn telemetry_interval(&self) -> Duration {
        match self.telemetry.interval_s {
            Some(seconds) => Duration::from_secs(seconds.max(1)),
            None => self.link.profile().telemetry,
        }
    }

    /// Keeps what cannot change while the agent runs as it is in `before`, and names it. Refused if what can
    /// change needs it.
    pub fn keeping_what_needs_a_restart(mut self, before: &Self) -> Result<(Self, Vec<String>), String> {
        let mut later = Vec::new();
        let mut keep = |field: &str, changed: bool| {
            if changed {
                later.push(field.to_owned());
            }
        };
        keep("device", self.device != before.device);
        keep("state_dir", self.state_dir != before.state_dir);
        keep("log.format", self.log.format != before.log.format);
        keep("runtime", self.runtime != before.runtime);
        keep("http", self.http != before.http);
        keep("link.probe", self.link.probe != before.link.probe);
        keep("broker", self.broker.is_some() != before.broker.is_some());
        let fixed = |config: &Self| config.broker.as_ref().map(|broker| (broker.prefix.clone(), broker.identity));
        keep("broker.prefix and broker.identity", self.broker.is_some() && fixed(&self) != fixed(before));
        let recovers = |config: &Self| config.broker.as_ref().and_then(BrokerConfig::recovery_after);
        keep("broker.recovery_after_s", recovers(&self) != recovers(before));
        keep("payloads", self.payloads != before.payloads);
        let on_disk = |config: &Self| OutboxConfig { store_wait_ms: 0, ..config.outbox.clone() };
        keep("enrolment", self.enrolment != before.enrolment);
        keep("outbox", on_disk(&self) != on_disk(before));
        let loaded = |config: &Self| {
            let without = |model: &ModelConfig| ModelConfig {
                threshold: ThresholdConfig::default(),
                promote_by_evidence: false,
                wanted: WantedSettings::default(),
                ..model.clone()
            };
            config.models.iter().map(without).collect::<Vec<_>>()
        };
        keep("model", loaded(&self) != loaded(before));
        for source in &self.sources {
            let model = self.model_of(source).map(|model| &model.name);
            if let Some(name) = model.filter(|name| before.models.iter().all(|known| known.name != **name)) {
                return Err(format!("source `{}` uses model `{name}`, which is loaded at the next start", source.name));
            }
        }
        (self.device, self.state_dir) = (before.device.clone(), before.state_dir.clone());
        (self.runtime, self.http) = (before.runtime.clone(), before.http.clone());
        self.link.probe.clone_from(&before.link.probe);
        if self.broker.is_some() != before.broker.is_some() {
            self.broker.clone_from(&before.broker);
        }
        Ok((self, later))
    }

    /// The model a source uses, by its `model` or because there is only one.
    #[must_use]
    pub fn model_of(&self, source: &SourceConfig) -> Option<&ModelConfig> {
        match &source.model {
            Some(name) => self.models.iter().find(|model| &model.name == name.get_ref()),
            None => match &self.models[..] {
                [only] => Some(only),
                _ => None,
            },
        }
    }

    /// The device's id: its configuration's, its certificate's or the host's, as `identity` in `[broker]` says.
    pub fn device_id(&self) -> Result<DeviceId, String> {
        let broker = self.broker.as_ref();
        let named_by = broker.map_or_else(Default::default, |broker| broker.identity.into());
        let certificate = broker.and_then(|broker| broker.certificate_file.as_deref()).map(|file| {
            Certificate::read(file).map_err(|error| format!("certificate_file = {}: {error}", file.display()))
        });
        let certificate = match (certificate, &self.device) {
            // The dial will say what is wrong with it; who the device is, is known.
            (Some(Err(error)), Some(_)) => {
                tracing::warn!("{error}");
                None
            }
            (certificate, _) => certificate.transpose()?,
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        device_id(self.device.as_ref(), certificate.as_ref().map(|held| &held.names), named_by, &host)
    }

    fn check_enrolment(&self) -> Result<(), Problem> {
        let wrong = |message: String| Problem { field: vec!["enrolment".to_owned()], span: None, message };
        let Some(enrolment) = &self.enrolment else { return Ok(()) };
        if !enrolment.url.starts_with("https://") {
            return Err(wrong(format!("[enrolment] url = \"{}\" is not https://host:port", enrolment.url)));
        }
        let broker = self.broker.as_ref();
        let files = broker.map(|broker| [&broker.certificate_file, &broker.key_file, &broker.ca_file]);
        if files.is_some_and(|files| files.iter().all(|file| file.is_some())) {
            return Ok(());
        }
        Err(wrong("[enrolment] needs certificate_file, key_file and ca_file in [broker]: it renews them".to_owned()))
    }

    /// What no field says wrong by itself: names that stand for something else.
    fn resolve(&mut self) -> Result<(), Problem> {
        self.check_enrolment()?;
        if let Err(error) = log_filter(&self.log.level) {
            let field = vec!["log".to_owned(), "level".to_owned()];
            return Err(Problem { field, span: None, message: error.to_string() });
        }
        if let Some((name, problem)) = self.verdicts.problem(self.broker.is_some()) {
            let field = VerdictsConfig::table(name);
            let message = format!("[{}]: {problem}", field.join("."));
            return Err(Problem { field, span: None, message });
        }
        let mut seen = BTreeSet::new();
        for model in &self.models {
            if !seen.insert(&model.name) {
                return Err(Problem::of("model", &model.name, format!("two models are named `{}`", model.name)));
            }
            model.check_provider()?;
            model.check_wanted(&self.state_dir, self.bundles.is_some())?;
        }
        let mut seen = BTreeSet::new();
        for source in &self.sources {
            if !seen.insert(&source.name) {
                return Err(Problem::of("source", &source.name, format!("two sources are named `{}`", source.name)));
            }
            if self.model_of(source).is_none() {
                let known = self.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
                let asked = source.model.as_ref().map_or("no model", |name| name.get_ref().as_str());
                let message = format!("source `{}` names {asked}; the models are: {known}", source.name);
                let mut problem = Problem::of("source", &source.name, message);
                problem.field.push("model".to_owned());
                problem.span = source.model.as_ref().map(Spanned::span);
                return Err(problem);
            }
            source.check_of(&self.sources)?;
        }
        match &mut self.broker {
            Some(broker) => broker.resolve(&self.credentials),
            None => Ok(()),
        }
    }
}

/// What is wrong with a configuration, and where.
struct Problem {
    /// Names from the outermost to the field's own.
    field: Vec<String>,
    span: Option<std::ops::Range<usize>>,
    message: String,
}

impl Problem {
    fn of(kind: &str, name: &Name, message: String) -> Self {
        Self { field: vec![kind.to_owned(), name.to_string()], span: None, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[[model]]\nname = \"m\"\nbundle = \"/b\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "agent.toml", std::iter::empty()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &[&str]) {
        let error = parse(text).expect_err("refused");
        for part in expected {
            assert!(error.contains(part), "`{error}` does not say `{part}`");
        }
    }

    #[test]
    fn an_empty_file_is_a_device_on_its_own() {
        let config = parse("").expect("valid");
        assert!(config.broker.is_none() && config.sources.is_empty());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        check_refused("\n[outbox]\ncases_maxx = 5\n", &["agent.toml:3", "cases_maxx"]);
        check_refused("[broker]\nurl = \"http://x\"\n", &["agent.toml:2", "http://x", "mqtts://"]);
        check_refused("device = \"a/b\"\n", &["agent.toml:1", "a/b"]);
        check_refused("[http]\nlisten = [\"0.0.0.0:80\"]\n", &["agent.toml:2", "loopback"]);
        check_refused(
            &format!("{MODEL}threshold = {{ score_min = 1.2 }}\n"),
            &["agent.toml:4", "threshold.score_min: 1.2 is not"],
        );
        check_refused(&format!("{MODEL}{MODEL}"), &["two models are named `m`"]);
        check_refused("x = [", &["agent.toml:1"]);
        check_refused("[home_assistant]\ndiscovery_prefix = \"a/#\"\n", &["agent.toml:2", "a/#"]);
        let broker = "[broker]\nurl = \"mqtts://b\"\n[enrolment]\n";
        check_refused(&format!("{broker}url = \"https://c:1\"\n"), &["[enrolment] needs certificate_file"]);
        check_refused(&format!("{broker}url = \"http://c:1\"\n"), &["http://c:1", "https://"]);
    }

    #[test]
    fn a_wrong_type_names_the_field_it_is_in() {
        check_refused("device = { a = 1 }\n", &["agent.toml:1: device: ", "expected a string"]);
        check_refused("[outbox]\ncases_max = \"many\"\n", &["agent.toml:2: outbox.cases_max: "]);
        check_refused("[broker]\nurl = 5\n", &["agent.toml:2: broker.url: "]);
        check_refused("link.ceilings.bytes_per_day = -1\n", &["agent.toml:1: link.ceilings.bytes_per_day: "]);
        check_refused(
            "[link]\nstates = { offline = { wait_ms_max = true } }\n",
            &["2: link.states.offline.wait_ms_max: "],
        );
        check_refused("[http]\nlisten = [\"unix:/a\", 5]\n", &["agent.toml:2: http.listen.1: "]);
        check_refused(&format!("{MODEL}threads = 1.5\n"), &["agent.toml:4: model.m.threads: "]);
        check_refused(&format!("{MODEL}thread = 1\n"), &["agent.toml:4: model.m.thread: ", "unknown field"]);
        check_refused("[[model]]\nname = \"m\"\n", &["model.m: missing field `bundle`"]);
        check_refused("[broker]\n", &["agent.toml:1: broker: missing field `url`"]);
        check_refused("[outbox]\n[outbox]\n", &["agent.toml:2"]);
        check_refused("outbox = 7\n", &["agent.toml:1: outbox: "]);
    }

    #[test]
    fn a_variable_that_is_no_setting_is_passed_over_and_named() {
        let file = |name: &str, value: &str| {
            ConfigFile::parse(
                "[outbox]\ncases_max = 5\n",
                "agent.toml",
                [(name.to_owned(), value.to_owned())].into_iter(),
            )
        };
        for (name, value, is_misspelt) in [
            ("HEDGE_ANYTHING", "x", false),
            ("HEDGE_SERVICE_HOST", "10.0.0.1", false),
            ("HEDGE_SERVICE_PORT", "8787", false),
            ("HEDGE_PORT", "tcp://10.0.0.1:8787", false),
            ("HEDGE_PORT_8787_TCP_ADDR", "10.0.0.1", false),
            ("HEDGE_", "", false),
            ("HEDGE_MODEL", "/models/small", false),
            ("HEDGE_DEVCE", "porch", true),
            ("HEDGE_BROKER", "mqtt://b", true),
            ("HEDGE_OUTBOX__CASE_MAX", "7", true),
            ("HEDGE_MODEL__M__BUNDLE", "/b", true),
        ] {
            let file = file(name, value).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(file.config.outbox.cases_max, 5, "{name}");
            let [none] = &file.not_settings[..] else { panic!("{name}: {:?}", file.not_settings) };
            assert_eq!((none.variable.as_str(), none.is_misspelt), (name, is_misspelt), "{none:?}");
        }
        let misspelt = file("HEDGE_DEVCE", "porch").expect("read").not_settings;
        assert!(misspelt[0].reason.ends_with("did you mean `device`?"), "{misspelt:?}");
        assert!(file("HEDGE_OUTBOX__CASES_MAX", "many").is_err(), "a setting that cannot be meant");
    }

    #[test]
    fn a_source_with_an_unknown_model_is_refused_with_the_known_ones() {
        let source = "[[source]]\nname = \"s\"\nkind = \"http\"\nmodel = \"n\"\n";
        check_refused(&format!("{MODEL}{source}"), &["agent.toml:7", "source `s` names n", "the models are: m"]);
        let source = "[[source]]\nname = \"s\"\nkind = \"folder\"\n";
        check_refused(&format!("{MODEL}{source}"), &["needs `path`"]);
        let source = "[[source]]\nname = \"s\"\nkind = \"rtsp\"\n";
        check_refused(&format!("{MODEL}{source}"), &["agent.toml:6", "ffmpeg", "docs/choosing.md"]);
        let source = "[[source]]\nname = \"s\"\nkind = \"usb\"\n";
        check_refused(&format!("{MODEL}{source}"), &["`usb` is no kind of source", "http, folder, command or crops"]);
    }

    #[test]
    fn the_environment_overrides_and_a_wrong_value_names_its_variable() {
        let with = |name: &str, value: &str| {
            Config::parse("[outbox]\ncases_max = 5\n", "agent.toml", [(name.to_owned(), value.to_owned())].into_iter())
        };
        assert_eq!(with("HEDGE_OUTBOX__CASES_MAX", "7").expect("valid").outbox.cases_max, 7);
        assert_eq!(with("HEDGE_DEVICE", "porch").expect("valid").device, Some(DeviceId::new("porch").expect("valid")));
        let broker = with("HEDGE_BROKER__URL", "mqtt://[::1]:1884").expect("valid").broker.expect("given");
        assert_eq!((broker.url.host.as_str(), broker.url.port), ("::1", 1884));
        assert!(with("HEDGE_CLOUD_BROKER", "mqtt://b").is_ok(), "it is the other program's");
        let error = with("HEDGE_OUTBOX__AGE_MAX_S", "90%").expect_err("refused").to_string();
        assert!(error.contains("found the text \"90%\", expected a whole number"), "{error}");
        let error = with("HEDGE_OUTBOX__CASES_MAX", "many").expect_err("refused").to_string();
        assert!(error.contains("HEDGE_OUTBOX__CASES_MAX"), "{error}");
    }
}
