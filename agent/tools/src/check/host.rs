//! What is on the device itself: agent, clock, disk, keys, sources, models.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hedge_core::crops::Pick;
use hedge_inference::task::Reading;
use hedge_inference::{Bundle, Model, Runtime};
use hedge_proto::{LinkState, Name, Payload, Telemetry, ThresholdMode};

use super::report::Report;
use crate::client::Client;
use hedge_agent::child::on_path;
use hedge_agent::clock::{synced_from_outside, wall_is_synced};
use hedge_agent::daemon::health::{clock_fault, disk_fault};
use hedge_agent::sample::NO_EMBEDDING;
use hedge_agent::uplink::{client_config, payloads_fault};
use hedge_agent::verdict;
use hedge_config::{Config, ModelConfig, SourceConfig, SourceKind, VerdictsConfig};
use hedge_identity::{Certificate, CertificateClock};
use hedge_outbox::files::writable;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A certificate that nobody renews is to be replaced before so many days are left.
const DAYS_LEFT_MIN: u64 = 14;

pub(super) fn summary(config: &Config) -> String {
    let device = config.device_id().map_or_else(|_| "no name".to_owned(), |device| format!("`{device}`"));
    let (models, sources) = (config.models.len(), config.sources.len());
    let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
    let (models, sources) = (count(models, "model"), count(sources, "source"));
    format!("device {device}, {models}, {sources}, state in {}", config.state_dir.display())
}

/// What the running agent says of itself, if one runs.
pub(super) async fn agent(report: &mut Report, agent: Option<&Client>) -> Option<Telemetry> {
    let Some(agent) = agent else {
        report.ok("agent", "none answers; this is a check of a stopped device");
        return None;
    };
    let status: Telemetry = match agent.get("/v1/status").await {
        Ok(status) => status,
        Err(error) => {
            report.failed("agent", error, "see `journalctl -u hedge-agent`, then `systemctl restart hedge-agent`");
            return None;
        }
    };
    let link = format!("link {}: {}", status.link.name(), status.link_reason);
    match status.link {
        LinkState::Online | LinkState::Resting => report.ok("agent", format!("it runs; {link}")),
        _ => report.warning("agent", format!("it runs; {link}"), "what follows says why, if it can be seen from here"),
    }
    for (part, sentence) in &status.faults {
        report.failed(
            format!("agent, {part}"),
            sentence,
            "the running agent reports it; the fault clears once the cause is gone",
        );
    }
    if status.queue.dead > 0 {
        let text = format!("{} dead letters are kept", status.queue.dead);
        report.warning("queue", text, "see `hedge-agent queue list --stage dead`; requeue or drop them");
    }
    Some(status)
}

/// What of a sample leaves the device, by the running agent's word or by the file's.
pub(super) fn privacy(report: &mut Report, config: &Config, status: Option<&Telemetry>) {
    let ceiling = config.privacy.ceiling().0.to_string();
    let now = status.and_then(|status| status.privacy.as_ref());
    if let Some(now) = now.filter(|now| now.ceiling != ceiling) {
        let said = format!("the running agent's ceiling is {}, the file's {ceiling}", now.ceiling);
        return report.warning("privacy", said, "`systemctl reload hedge-agent` puts the file's in force");
    }
    let (when, payload) = match now {
        Some(now) => ("now", now.payload.clone()),
        None => ("online", config.policies().online.payload.to_string()),
    };
    report.ok("privacy", format!("ceiling {ceiling}; leaves of a sample {when}: {payload}"));
}

pub(super) async fn clock(report: &mut Report) {
    synced_from_outside().await;
    if let Some(fault) = clock_fault() {
        report.failed("clock", fault, "connect the device to a time service, or set the clock with `date --set`");
    } else if wall_is_synced() {
        report.ok("clock", "kept by a time service");
    } else {
        let advice = "install one of systemd-timesyncd, chrony and ntpsec; certificates and people go by the clock";
        report.warning("clock", "no time service has set it since the start, as far as can be told", advice);
    }
}

pub(super) fn state_folder(report: &mut Report, config: &Config) {
    let dir = &config.state_dir;
    let shown = dir.display();
    let me = rustix::process::geteuid().as_raw();
    match std::fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            report.warning(
                "state folder",
                format!("{shown} does not exist yet"),
                "the first start of the unit makes it",
            );
            return;
        }
        Err(error) => {
            report.failed("state folder", format!("{shown}: {error}"), "run this as the agent's user, or as root");
            return;
        }
        // Whoever writes there besides the agent may leave what it cannot read.
        Ok(folder) if folder.uid() != me => {
            let text = format!("{shown} belongs to user {}; you are {me}, so writing was not tried", folder.uid());
            if me == 0 {
                report.ok("state folder", text);
            } else {
                report.warning("state folder", text, "run this as the agent's user, or as root");
            }
        }
        Ok(_) => match writable(dir) {
            Ok(()) => report.ok("state folder", format!("{shown} can be written")),
            Err(error) => {
                let advice =
                    format!("the agent's user must be able to write there: `chown -R hedge: {shown}`, or make room");
                report.failed("state folder", format!("{shown}: {error}"), advice);
            }
        },
    }
    let limits = config.outbox.limits();
    match disk_fault(dir, &limits) {
        Some(fault) => report.failed("disk", fault, "remove what is not needed, or lower [outbox] bytes_max"),
        None => {
            let free = rustix::fs::statvfs(dir).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
            let text = format!("{} MiB free", free >> 20);
            if free < limits.bytes_max / 2 {
                let advice =
                    format!("[outbox] bytes_max allows {} MiB; make room, or lower it", limits.bytes_max >> 20);
                report.warning("disk", text, advice);
            } else {
                report.ok("disk", text);
            }
        }
    }
}

/// Who the device is, until when its certificate holds, and who else may read its secrets.
pub(super) fn keys(report: &mut Report, config: &Config) {
    match config.device_id() {
        Ok(device) => report.ok("identity", format!("device `{device}`")),
        Err(error) => report.failed("identity", error, "see docs/identity.md"),
    }
    let Some(broker) = &config.broker else { return };
    if let Some(file) = &broker.certificate_file {
        certificate(report, file, config.enrolment.is_some());
    }
    let secrets = [("key_file", &broker.key_file), ("password_file", &broker.password_file)];
    for (field, file) in secrets.into_iter().filter_map(|(field, file)| Some((field, file.as_ref()?))) {
        secret_file(report, field, file);
    }
    if !broker.url.transport.is_plain()
        && let Err(error) = client_config(broker)
    {
        report.failed("TLS files", error, "put the file right; `openssl x509 -in FILE -text` shows a certificate");
    }
}

fn certificate(report: &mut Report, file: &Path, renews: bool) {
    let held = match Certificate::read(file) {
        Ok(held) => held,
        Err(error) => {
            let text = format!("{}: {error}", file.display());
            return report.failed(
                "certificate",
                text,
                "the agent's user must be able to read a whole PEM certificate there",
            );
        }
    };
    let now_ms = CertificateClock::since(Some(&held)).now_ms();
    let replace = format!("replace {} and its key", file.display());
    match held.validity.to_ms.checked_sub(now_ms).map(|left_ms| left_ms / DAY_MS) {
        Some(days) if days < DAYS_LEFT_MIN && !renews => {
            report.warning("certificate", format!("it expires in {days} days"), replace);
        }
        Some(days) => report.ok("certificate", format!("it expires in {days} days")),
        None if renews => {
            report.warning("certificate", "it has expired", "the running agent asks for a new one by itself")
        }
        None => report.failed("certificate", "it has expired", replace),
    }
}

fn secret_file(report: &mut Report, field: &str, file: &Path) {
    let shown = file.display();
    // systemd's own folder of credentials is there while the unit runs, and for it alone.
    if !file.exists() && file.starts_with("/run/credentials") {
        return report.ok(field, format!("{shown} is given to the unit by systemd when it starts"));
    }
    match std::fs::File::open(file).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.mode() & 0o044 != 0 => {
            let text = format!("{shown} can be read by others (mode {:o})", metadata.mode() & 0o777);
            report.warning(field, text, format!("chmod 600 {shown}, owned by the agent's user"));
        }
        Ok(_) => report.ok(field, format!("{shown} can be read, and not by others")),
        Err(error) => {
            let advice =
                format!("the agent's user must be able to read it: `chown hedge: {shown}`; run this as that user");
            report.failed(field, format!("{shown}: {error}"), advice);
        }
    }
}

/// Whether what sources take their samples from is there.
pub(super) fn sources(report: &mut Report, config: &Config) {
    for source in config.sources.iter().filter(|source| source.enabled) {
        let check = format!("source {}", source.name);
        match &source.kind {
            SourceKind::Http => report.ok(check, "taken over HTTP"),
            SourceKind::Crops { of, pick } => match no_crops(config, source, of, pick) {
                None => report.ok(check, format!("what is found in pictures of `{of}`")),
                Some(why) => report.failed(check, why, "put the source's `of`, `model` or `pick` right"),
            },
            SourceKind::Folder { path, .. } => match std::fs::read_dir(path) {
                Ok(_) => report.ok(check, format!("folder {}", path.display())),
                Err(error) => {
                    let advice = "make the folder, and let the agent's user read and write there";
                    report.failed(check, format!("{}: {error}", path.display()), advice);
                }
            },
            SourceKind::Command { command, .. } => {
                let program = command.first().map_or("", String::as_str);
                if on_path(program) {
                    report.ok(check, format!("program {program}"));
                } else {
                    report.failed(
                        check,
                        format!("there is no program `{program}`"),
                        "install it, or name it with its path",
                    );
                }
            }
        }
    }
}

/// Why a source of crops gets nothing, or nothing of a class, as far as the bundles of both models say.
fn no_crops(config: &Config, source: &SourceConfig, of: &Name, pick: &Pick) -> Option<String> {
    let bundle = |source: &SourceConfig| Bundle::open(&config.model_of(source)?.bundle).ok();
    let finder = bundle(config.sources.iter().find(|other| other.name == *of)?)?;
    if !matches!(finder.manifest().output, Reading::Boxes(_)) {
        return Some(format!("the model of `{of}` finds no things in pictures that could be cut out"));
    }
    let said: Vec<&str> = finder.labels().iter().map(|own| finder.cloud_label(own)).collect();
    if let Some(class) = pick.classes.iter().find(|class| !said.contains(&class.as_str())) {
        return Some(format!("`pick.classes` names `{class}`, which the model of `{of}` never says"));
    }
    let second = bundle(source)?;
    let input = &second.manifest().input;
    let takes = input.wanted();
    input.picture.is_none().then(|| format!("its model takes {takes}, and a crop is a picture"))
}

/// Whether what the sinks need is there. Nothing is delivered, and no file is touched.
pub(super) fn sinks(report: &mut Report, config: &Config) {
    for (name, looked) in verdict::look(&config.verdicts) {
        let check = format!("sink {name}");
        match looked {
            Ok(what) => report.ok(check, what),
            Err(error) => report.failed(
                check,
                error,
                format!(
                    "correct it, or [{}]; the running agent uses it once it can",
                    VerdictsConfig::table(&name).join(".")
                ),
            ),
        }
    }
}

/// Whether the files of the way for large payloads are there.
pub(super) fn payloads(report: &mut Report, config: &Config) {
    let Some(payloads) = &config.payloads else { return };
    match payloads_fault(payloads) {
        None => report.ok("payloads", format!("by way of {}", payloads.url.host)),
        Some(fault) => report.failed("payloads", fault, "the agent's user must be able to read the file"),
    }
}

/// Whether a model loads, and still says what it said when its bundle was made.
/// `leaves` is what of a sample goes to the cloud.
pub(super) fn model(report: &mut Report, runtime: &Runtime, config: &ModelConfig, leaves: Payload) {
    let check = format!("model {}", config.name);
    match try_model(runtime, config, leaves) {
        Ok(text) => report.ok(check, text),
        Err((text, advice)) => report.failed(check, text, advice),
    }
}

fn try_model(runtime: &Runtime, config: &ModelConfig, leaves: Payload) -> Result<String, (String, String)> {
    let folder = config.bundle.display();
    let again = |error: &dyn std::fmt::Display| (error.to_string(), format!("copy the bundle to {folder} again"));
    let bundle = Bundle::open(&config.bundle).map_err(|error| again(&error))?;
    let variant = bundle.variant(config.variant.as_deref()).map_err(|error| again(&error))?.clone();
    let mut model =
        Model::load(runtime, &bundle, config.variant.as_deref(), &config.session()).map_err(|error| again(&error))?;
    let Some(threshold) = config.threshold.resolve(bundle.threshold(), bundle.labels(), |own| bundle.cloud_label(own))
    else {
        let advice = "run `hedge-agent bundle calibrate`, or give the model a `threshold`";
        return Err(("no threshold".to_owned(), advice.to_owned()));
    };
    if let Some(unknown) = config.threshold.unknown_labels(bundle.labels()) {
        return Err((unknown, "correct the label in the model's `threshold`, or take it out".to_owned()));
    }
    let golden = bundle.manifest().goldens.clone();
    for sample in &golden {
        let outcome = model.check_golden(&bundle, &variant, sample).map_err(|error| again(&error))?;
        if !outcome.passed() {
            let text = format!("a golden sample is {} here", outcome.in_words().0);
            let advice = format!(
                "it should be {}; another version of ONNX Runtime, or another variant of the bundle (`variant`), may help",
                outcome.in_words().1
            );
            return Err((text, advice));
        }
    }
    if let Some(refused) = &model.runs_on().refused {
        let advice = "see docs/accelerators.md, or take `provider` out of the model's table";
        return Err((refused.clone(), advice.to_owned()));
    }
    if leaves == Payload::Embedding && bundle.manifest().embedding.is_none() {
        return Err((NO_EMBEDDING.to_owned(), "see docs/configuration.md, What leaves the device".to_owned()));
    }
    let known = bundle.model_ref();
    let golden = golden.len();
    let by = if config.threshold.given().score_min.is_none() { ", which the bundle suggests" } else { "" };
    let reach = match threshold.rule.mode {
        ThresholdMode::Fixed => format!("answers must reach {}{by}", threshold.all.score_min()),
        ThresholdMode::Budget => "a budget says what answers must reach".to_owned(),
        ThresholdMode::Target => "a target says what answers must reach".to_owned(),
    };
    Ok(format!(
        "{} {} ({}) on {}, {golden} of {golden} golden samples agree; {reach}",
        known.name,
        known.version,
        variant.name,
        model.runs_on()
    ))
}
