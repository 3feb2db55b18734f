//! Execution providers: parts of ONNX Runtime that calculate a model's steps elsewhere than its own processor kernels do.
//!
//! Which of them a library has was decided when the library was built. A provider may crash the process, take only
//! some steps, or none: so a child runs the model with it first, see [`probe`], and says what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;
use serde::{Deserialize, Serialize};

use super::Runtime;
use super::probe::{self, Trial};

/// A provider by its name in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Acl,
    Cann,
    Cuda,
    MiGraphX,
    OneDnn,
    OpenVino,
    Qnn,
    Rknpu,
    TensorRt,
    Xnnpack,
}

impl Provider {
    pub const ALL: [Self; 10] = [
        Self::Acl,
        Self::Cann,
        Self::Cuda,
        Self::MiGraphX,
        Self::OneDnn,
        Self::OpenVino,
        Self::Qnn,
        Self::Rknpu,
        Self::TensorRt,
        Self::Xnnpack,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::Cann => "cann",
            Self::Cuda => "cuda",
            Self::MiGraphX => "migraphx",
            Self::OneDnn => "onednn",
            Self::OpenVino => "openvino",
            Self::Qnn => "qnn",
            Self::Rknpu => "rknpu",
            Self::TensorRt => "tensorrt",
            Self::Xnnpack => "xnnpack",
        }
    }

    /// As ONNX Runtime calls it in a profile.
    fn runtime_name(self) -> &'static str {
        match self {
            Self::Acl => ep::ACL::NAME,
            Self::Cann => ep::CANN::NAME,
            Self::Cuda => ep::CUDA::NAME,
            Self::MiGraphX => ep::MIGraphX::NAME,
            Self::OneDnn => ep::OneDNN::NAME,
            Self::OpenVino => ep::OpenVINO::NAME,
            Self::Qnn => ep::QNN::NAME,
            Self::Rknpu => ep::RKNPU::NAME,
            Self::TensorRt => ep::TensorRT::NAME,
            Self::Xnnpack => ep::XNNPACK::NAME,
        }
    }

    /// Whether ONNX Runtime takes options for it as texts.
    #[must_use]
    pub fn takes_options(self) -> bool {
        !matches!(self, Self::Acl | Self::MiGraphX | Self::Rknpu)
    }

    fn is_built_in(self) -> bool {
        let built_in = match self {
            Self::Acl => ep::ACL::is_available(),
            Self::Cann => ep::CANN::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
            Self::MiGraphX => ep::MIGraphX::is_available(),
            Self::OneDnn => ep::OneDNN::is_available(),
            Self::OpenVino => ep::OpenVINO::is_available(),
            Self::Qnn => ep::QNN::is_available(),
            Self::Rknpu => ep::RKNPU::is_available(),
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::Xnnpack => ep::XNNPACK::is_available(),
        };
        built_in.unwrap_or(false)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A provider that a model is to run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderChoice {
    pub provider: Provider,
    /// As ONNX Runtime names them, such as `device_type` of OpenVINO.
    pub options: BTreeMap<String, String>,
}

impl From<Provider> for ProviderChoice {
    fn from(provider: Provider) -> Self {
        Self { provider, options: BTreeMap::new() }
    }
}

impl ProviderChoice {
    fn dispatch(&self, threads: u8) -> ExecutionProviderDispatch {
        macro_rules! with_options {
            ($provider:ident $(, ($key:literal, $default:expr))?) => {{
                let provider = ep::$provider::default()$(.with_arbitrary_config($key, $default))?;
                let with = |provider: ep::$provider, (key, value)| provider.with_arbitrary_config(key, value);
                self.options.iter().fold(provider, with).build()
            }};
        }
        match self.provider {
            Provider::Acl => ep::ACL::default().build(),
            Provider::Cann => with_options!(CANN),
            Provider::Cuda => with_options!(CUDA),
            Provider::MiGraphX => ep::MIGraphX::default().build(),
            Provider::OneDnn => with_options!(OneDNN),
            Provider::OpenVino => with_options!(OpenVINO),
            Provider::Qnn => with_options!(QNN),
            Provider::Rknpu => ep::RKNPU::default().build(),
            Provider::TensorRt => with_options!(TensorRT),
            // It has threads of its own.
            Provider::Xnnpack => with_options!(XNNPACK, ("intra_op_num_threads", threads.max(1).to_string())),
        }
    }
}

/// How many steps of a model there are, as ONNX Runtime has put them together, and how many the provider takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    pub own: usize,
    pub all: usize,
}

impl Steps {
    /// From a profile of one run: an event for each step, with who took it.
    pub(super) fn of_profile(profile: &str, provider: Provider) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(default)]
            name: String,
            #[serde(default)]
            args: Args,
        }
        #[derive(Default, Deserialize)]
        struct Args {
            #[serde(default)]
            provider: String,
        }
        let events: Vec<Event> = serde_json::from_str(profile).ok()?;
        let steps =
            events.iter().filter(|event| event.name.ends_with("_kernel_time") && !event.args.provider.is_empty());
        let own = |step: &&Event| step.args.provider == provider.runtime_name();
        Some(Self { own: steps.clone().filter(own).count(), all: steps.count() })
    }
}

/// What a model runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunsOn {
    /// `cpu`, or the provider's name.
    pub name: &'static str,
    /// How many of its steps the provider takes, if that could be found out.
    pub steps: Option<Steps>,
    /// Why it is the processor, and not the provider that was asked for.
    pub refused: Option<String>,
}

impl RunsOn {
    /// What models run on without a provider.
    pub const CPU: &str = "cpu";

    pub(crate) fn cpu(refused: Option<String>) -> Self {
        Self { name: Self::CPU, steps: None, refused }
    }
}

/// `xnnpack (12 of 20 steps, the rest on the cpu)`
impl fmt::Display for RunsOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match self.steps {
            Some(Steps { own, all }) if own < all => write!(f, " ({own} of {all} steps, the rest on the cpu)"),
            _ => Ok(()),
        }
    }
}

impl Runtime {
    /// The providers that this library has beside the processor.
    #[must_use]
    pub fn providers(&self) -> Vec<Provider> {
        Provider::ALL.into_iter().filter(|provider| provider.is_built_in()).collect()
    }

    /// Has a child run the model of this file with the provider, if a child can be had. Says what speaks against it.
    pub(crate) fn try_provider(
        &self,
        choice: &ProviderChoice,
        model: &Path,
        shape: &[usize],
        threads: u8,
    ) -> Result<Option<Steps>, String> {
        let provider = choice.provider;
        if !provider.is_built_in() {
            let library = self.path().display();
            return Err(match self.providers().as_slice() {
                [] => format!(
                    "{library} has no accelerator at all; name one that has {provider} with `library` in [runtime]"
                ),
                has => {
                    let names: Vec<&str> = has.iter().map(|provider| provider.name()).collect();
                    format!("{library} does not have it, but: {}", names.join(", "))
                }
            });
        }
        let trial = Trial { choice: choice.clone(), model: model.to_owned(), shape: shape.to_vec(), threads };
        let steps = probe::try_provider(self.path(), &trial)?;
        match steps {
            Some(Steps { own: 0, .. }) => Err("it takes no step of this model".to_owned()),
            steps => Ok(steps),
        }
    }

    /// Like [`Runtime::session`], on a provider. Steps that it does not take run on the processor.
    pub(crate) fn session_on(&self, choice: &ProviderChoice, threads: u8) -> ort::Result<SessionBuilder> {
        let dispatch = choice.dispatch(threads).error_on_failure();
        Ok(self.session(threads)?.with_execution_providers([dispatch])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_says_how_many_steps_the_provider_took() {
        let profile = r#"[
            {"cat":"Session","name":"model_run","args":{}},
            {"cat":"Node","name":"conv_fence_before","args":{"op_name":"Conv"}},
            {"cat":"Node","name":"conv_kernel_time","args":{"op_name":"Conv","provider":"XnnpackExecutionProvider"}},
            {"cat":"Node","name":"gemm_kernel_time","args":{"op_name":"Gemm","provider":"CPUExecutionProvider"}}
        ]"#;
        assert_eq!(Steps::of_profile(profile, Provider::Xnnpack), Some(Steps { own: 1, all: 2 }));
        assert_eq!(Steps::of_profile(profile, Provider::OpenVino), Some(Steps { own: 0, all: 2 }));
        assert_eq!(Steps::of_profile("[", Provider::Xnnpack), None);
    }

    #[test]
    fn a_provider_has_one_name_in_files_and_in_reports() {
        for provider in Provider::ALL {
            assert_eq!(serde_json::to_value(provider).expect("a name"), provider.name());
        }
    }
}
