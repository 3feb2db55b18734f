//! `[[model]]`: what answers, and from which bundle.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedge_core::release::delivery::Wanted;
use hedge_inference::{Provider, ProviderChoice, SessionOptions};
use hedge_proto::{Name, WantedSettings};
use serde::Deserialize;

use super::{Problem, ThresholdConfig};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub name: Name,
    /// The folder with `manifest.toml`.
    pub bundle: PathBuf,
    /// Which of the bundle's files, for example `int8` or `fp32`; the manifest's first if not given.
    pub variant: Option<String>,
    /// More than one thread costs more CPU time per answer on small boards.
    #[serde(default = "one_thread")]
    pub threads: u8,
    /// An accelerator of the library; the processor if not given, or if the accelerator fails its trial.
    pub provider: Option<Provider>,
    /// For that accelerator, as ONNX Runtime names them.
    #[serde(default)]
    pub provider_options: BTreeMap<String, String>,
    /// What it does not say is the manifest's suggestion.
    #[serde(default)]
    pub threshold: ThresholdConfig,
    /// A model that works on one sample for longer hangs, and systemd starts the agent again.
    #[serde(default = "a_minute")]
    pub hung_after_s: NonZeroU32,
    /// A candidate that the cloud agrees with more often takes the current bundle's place by itself.
    #[serde(default)]
    pub promote_by_evidence: bool,
    /// Which signed bundle it is to run; fetched by itself.
    #[serde(default)]
    pub wanted: WantedSettings,
}

impl ModelConfig {
    /// The bundle that is to be fetched, if it is not here yet.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted> {
        let WantedSettings { name, version, shadow } = &self.wanted;
        Some(Wanted { name: name.clone()?, version: version.clone()?, shadow: shadow.unwrap_or(false) })
    }

    /// What is wanted must have a name, and a way here.
    pub(super) fn check_wanted(&self, state_dir: &Path, has_bundles: bool) -> Result<(), Problem> {
        let place = bundles_of(state_dir, &self.name).join("current");
        let message = match &self.wanted {
            wanted if *wanted == WantedSettings::default() => return Ok(()),
            WantedSettings { name: None, .. } | WantedSettings { version: None, .. } => {
                "needs a name and a version, as the list of published bundles has them".to_owned()
            }
            _ if !has_bundles => "needs `[bundles] url` in the local file, where bundles are fetched from".into(),
            _ if self.bundle != place => {
                format!("needs `bundle = \"{}\"` in the local file: others are put there by hand", place.display())
            }
            _ => return Ok(()),
        };
        let mut problem = Problem::of("model", &self.name, format!("model `{}`: wanted {message}", self.name));
        problem.field.push("wanted".to_owned());
        Err(problem)
    }

    /// How its sessions are opened.
    #[must_use]
    pub fn session(&self) -> SessionOptions {
        let choice = |provider| ProviderChoice { provider, options: self.provider_options.clone() };
        SessionOptions { threads: self.threads, provider: self.provider.map(choice) }
    }

    pub(super) fn check_provider(&self) -> Result<(), Problem> {
        let message = match self.provider {
            _ if self.provider_options.is_empty() => return Ok(()),
            None => "are of no use without `provider`".to_owned(),
            Some(provider) if !provider.takes_options() => format!("cannot be given to {provider}: it takes none"),
            Some(_) if self.provider_options.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) => {
                "must be text without a zero byte".to_owned()
            }
            Some(_) => return Ok(()),
        };
        let mut problem =
            Problem::of("model", &self.name, format!("model `{}`: `provider_options` {message}", self.name));
        problem.field.push("provider_options".to_owned());
        Err(problem)
    }

    #[must_use]
    pub fn hung_after(&self) -> Duration {
        Duration::from_secs(self.hung_after_s.get().into())
    }
}

/// Where the bundles of a model lie that were fetched.
#[must_use]
pub fn bundles_of(state_dir: &Path, model: &Name) -> PathBuf {
    state_dir.join("models").join(model.as_str())
}

/// A 24-megapixel picture on the slowest board takes a tenth of it.
fn a_minute() -> NonZeroU32 {
    const { NonZeroU32::new(60).unwrap() }
}

fn one_thread() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use crate::Config;

    #[test]
    fn an_accelerator_is_named_and_its_options_belong_to_it() {
        let read = |text: &str| {
            let text = format!("[[model]]\nname = \"front\"\nbundle = \"/b\"\n{text}\n");
            Config::parse(&text, "agent.toml", std::iter::empty()).map_err(|error| error.to_string())
        };
        let config = read("provider = \"openvino\"\nprovider_options = { device_type = \"GPU\" }").expect("valid");
        let choice = config.models[0].session().provider.expect("a provider");
        assert_eq!((choice.provider.name(), choice.options["device_type"].as_str()), ("openvino", "GPU"));
        for (text, words) in [
            ("provider = \"gpu\"", "xnnpack"),
            ("provider_options = { device_type = \"GPU\" }", "without `provider`"),
            ("provider = \"acl\"\nprovider_options = { a = \"b\" }", "takes none"),
            ("provider = \"qnn\"\nprovider_options = { a = \"\\u0000\" }", "zero byte"),
        ] {
            let error = read(text).expect_err("refused");
            assert!(error.contains(words) && error.contains("provider"), "{error}");
        }
    }

    #[test]
    fn what_is_wanted_needs_a_name_and_a_way_here() {
        let bundles = "state_dir = \"/s\"\n[bundles]\nurl = \"https://c/bundles\"\n";
        let model = |bundle: &str, wanted: &str| {
            format!("[[model]]\nname = \"front\"\nbundle = \"{bundle}\"\nwanted = {wanted}\n")
        };
        let read =
            |text: &str| Config::parse(text, "agent.toml", std::iter::empty()).map_err(|error| error.to_string());
        let (here, whole) = ("/s/models/front/current", "{ name = \"m\", version = \"2\" }");
        let config = read(&format!("{bundles}{}", model(here, whole))).expect("valid");
        let wanted = config.models[0].wanted().expect("wanted");
        assert_eq!((wanted.name.as_str(), wanted.version.as_str(), wanted.shadow), ("m", "2", false));
        for (text, words) in [
            (format!("{bundles}{}", model(here, "{ name = \"m\" }")), "a name and a version"),
            (format!("state_dir = \"/s\"\n{}", model(here, whole)), "[bundles] url"),
            (format!("{bundles}{}", model("/elsewhere", whole)), "bundle = \"/s/models/front/current\""),
            (format!("{bundles}{}", model(here, "{ name = \"../m\", version = \"2\" }")), "name"),
            (bundles.replace("https", "ftp"), "https://host:port"),
        ] {
            let error = read(&text).expect_err("refused");
            assert!(error.contains(words), "{error}");
        }
    }
}
