//! `hedge-agent check`: says what works, what does not, and what to do.

use std::path::Path;
use std::process::ExitCode;

use hedge_core::link::Profile;
use hedge_inference::{Bundle, Model, Runtime, SessionOptions};

use crate::daemon::config::{BrokerConfig, Config, ModelConfig};
use crate::identity::{Certificate, CertificateClock};
use crate::uplink::{Meter, options};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Checks everything that can be checked without starting; fails if anything is wrong.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut failures = 0;
    let mut say = |what: &str, outcome: Result<String, String>| match outcome {
        Ok(text) => print(&format!("ok    {what}: {text}")),
        Err(text) => {
            failures += 1;
            print(&format!("FAIL  {what}: {text}"));
        }
    };
    say("configuration", Ok(format!("{} models, {} sources", config.models.len(), config.sources.len())));
    say("identity", check_identity(config));
    say("state folder", check_state_dir(&config.state_dir));
    match Runtime::find(config.runtime.library.as_deref()) {
        Ok(runtime) => {
            say("ONNX Runtime", Ok(format!("{} at {}", runtime.version(), runtime.path().display())));
            for model in &config.models {
                say(&format!("model {}", model.name), check_model(&runtime, model));
            }
        }
        Err(error) => say("ONNX Runtime", Err(error.to_string())),
    }
    match &config.broker {
        Some(broker) => say("broker", check_broker(broker)),
        None => say("broker", Ok("none; the device is on its own".to_owned())),
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who the device is, and for how long its certificate says so.
fn check_identity(config: &Config) -> Result<String, String> {
    let device = config.device_id()?;
    let Some(file) = config.broker.as_ref().and_then(|broker| broker.certificate_file.as_ref()) else {
        return Ok(format!("{device}, without a certificate"));
    };
    let held = Certificate::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let now_ms = CertificateClock::since(Some(&held)).now_ms();
    match held.validity.to_ms.checked_sub(now_ms) {
        Some(left_ms) => Ok(format!("{device}, its certificate holds {} more days", left_ms / DAY_MS)),
        None if config.enrolment.is_some() => {
            Ok(format!("{device}, its certificate ran out; the running agent asks for a new one"))
        }
        None => Err(format!("the certificate of {device} has run out; replace {}", file.display())),
    }
}

fn check_state_dir(dir: &Path) -> Result<String, String> {
    let probe = dir.join(".hedge-check");
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&probe, b"x"))
        .and_then(|()| std::fs::remove_file(&probe))
        .map(|()| format!("{} can be written", dir.display()))
        .map_err(|error| format!("{}: {error}; the agent's user must be able to write there", dir.display()))
}

fn check_model(runtime: &Runtime, config: &ModelConfig) -> Result<String, String> {
    let bundle = Bundle::open(&config.bundle).map_err(|error| error.to_string())?;
    let options = SessionOptions { threads: config.threads };
    Model::load(runtime, &bundle, config.variant.as_deref(), &options).map_err(|error| error.to_string())?;
    if config.threshold.resolve(bundle.threshold(), bundle.labels()).is_none() {
        return Err("no threshold; run `hedge-agent bundle calibrate`, or give the model one".to_owned());
    }
    let model = bundle.model_ref();
    Ok(format!("{} {} loads, {} labels", model.name, model.version, bundle.labels().len()))
}

/// Whether the address and every file named are usable. Whether the broker answers is seen by `run`.
fn check_broker(config: &BrokerConfig) -> Result<String, String> {
    options(config, "check", Profile::LAN.keep_alive, &Meter::default()).map_err(|error| error.to_string())?;
    let plain = config.url.transport.is_plain();
    let warning = if plain { "; unencrypted: anyone on the way can read the pictures" } else { "" };
    Ok(format!("{}:{}{warning}", config.url.host, config.url.port))
}

fn print(line: &str) {
    #[expect(clippy::print_stdout, reason = "a command's result goes to standard output")]
    {
        println!("{line}");
    }
}
