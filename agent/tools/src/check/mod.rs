//! `hedge-agent check`: looks at everything a device needs, and says what to do about what is missing.
//!
//! It disturbs nothing: beside a running agent it connects under a client id of its own, publishes an empty question
//! and subscribes for a moment. Nothing secret is printed: files are named, not shown.

mod broker;
mod closer;
mod host;
mod report;
mod tls;

use std::process::ExitCode;

use hedge_inference::Runtime;

use self::report::Report;
use crate::ConfigArgument;
use crate::running;
use hedge_agent::settings;
use hedge_agent::state::StateFile;
use hedge_config::{Config, ConfigFile, NoSetting, Starting};

/// What `check` takes.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is well, or only warnings; 1 something failed; 2 the configuration is wrong."
)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgument,
    /// Print one JSON document instead of lines: `outcome` is the worst of `checks`.
    #[arg(long)]
    pub json: bool,
    /// Leave the broker alone: nothing is sent from this device.
    #[arg(long)]
    pub offline: bool,
}

/// Looks at everything and prints what was found.
pub async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (report, readable) = look(args).await;
    report.print(args.json);
    Ok(match (readable, report.has_failed()) {
        (false, _) => ExitCode::from(2),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Everything that was found, and whether the configuration file could be read at all.
pub(super) async fn look(args: &CheckArgs) -> (Report, bool) {
    let starting = Starting::load(&args.config.config, &std::env::vars().collect::<Vec<_>>());
    let mut report = Report::default();
    let readable = starting.fault.is_none();
    match &starting.fault {
        None => report.ok("configuration", host::summary(&starting.file.config)),
        Some(fault) => {
            let advice = format!("put {} right; what follows is checked without it", args.config.config.display());
            report.failed("configuration", fault, advice);
        }
    }
    for NoSetting { variable, reason, is_misspelt } in &starting.file.not_settings {
        let (name, advice) =
            (format!("environment, {variable}"), "correct its name, or take it out of the environment");
        match is_misspelt {
            true => report.failed(name, reason, advice),
            false => {
                report.warning(name, reason, "it is passed over; nothing has to be done if it is another program's")
            }
        }
    }
    let config = &in_force(&mut report, &starting.file);
    let agent = running(config).await;
    let status = host::agent(&mut report, agent.as_ref()).await;
    host::clock(&mut report).await;
    host::state_folder(&mut report, config);
    host::keys(&mut report, config);
    host::sources(&mut report, config);
    host::sinks(&mut report, config);
    host::payloads(&mut report, config);
    host::privacy(&mut report, config, status.as_ref());
    models(&mut report, config);
    if !args.offline {
        broker::check(&mut report, config, status.as_ref()).await;
    }
    (report, readable)
}

/// The file with the settings from afar that the device keeps, as the next start, or the running agent, has them.
fn in_force(report: &mut Report, file: &ConfigFile) -> Config {
    let state = StateFile::in_memory(&file.config.state_dir, "it is only looked at");
    match settings::in_force(file, &state.state().settings.book) {
        Ok((0, config)) => config,
        Ok((version, config)) => {
            report.ok("settings", format!("version {version} of the remote settings is in force over the file"));
            config
        }
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let advice = "set them again, or end them with `hedge-agent settings reset`; the file alone is in force";
            report.warning("settings", format!("the remote ones do not fit the file: {}", errors.join("; ")), advice);
            file.config.clone()
        }
    }
}

fn models(report: &mut Report, config: &Config) {
    match Runtime::find(config.runtime.library.as_deref()) {
        Ok(runtime) => {
            report.ok("ONNX Runtime", format!("{} at {}", runtime.version(), runtime.path().display()));
            let leaves = config.privacy.ceiling().hold(config.policies().online.payload);
            for model in &config.models {
                host::model(report, &runtime, model, leaves);
            }
        }
        Err(error) => report.failed("ONNX Runtime", error, "install the package `hedge-onnxruntime`, or do as it says"),
    }
}

#[cfg(test)]
mod tests {
    use hedge_core::control::settings::Overlay;
    use hedge_proto::Settings;

    use super::*;

    #[test]
    fn check_goes_by_the_settings_from_afar_that_the_device_keeps() {
        let dir = tempfile::tempdir().expect("a folder");
        let text = format!("state_dir = {:?}\n[[model]]\nname = \"m\"\nbundle = \"/b\"\n", dir.path());
        let file = ConfigFile::parse(&text, "agent.toml", std::iter::empty()).expect("valid");
        let score_min =
            || in_force(&mut Report::default(), &file).models[0].threshold.given().score_min.map(|share| share.value());
        assert_eq!(score_min(), None);
        let settings = serde_json::json!({"model": {"m": {"threshold": {"score_min": 0.9}}}});
        let overlay = Overlay { version: 3, settings: Settings::read(settings).expect("valid") };
        let (mut state, _) = StateFile::open(dir.path()).expect("opened");
        state.commit(|state| state.settings.book.accept(overlay)).expect("written");
        assert_eq!(score_min(), Some(0.9));
    }
}
