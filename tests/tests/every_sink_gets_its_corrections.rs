//! A correction reaches every sink that is configured, and one that is away holds up no other.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use hedge_proto::Answer;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::webhook::Webhook;
use hedge_tests::{Mosquitto, Scene, Tally, skip, wait};

/// Far more than one case takes on an idle link.
const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(60);

#[test]
fn file_webhook_command_and_a_second_broker() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let near_dir = tempfile::tempdir()?;
    let near = Mosquitto::start_with(near_dir.path(), &MosquittoSetup::default())?;
    let heard = near_dir.path().join("heard");
    let listener = Listener::start(&near, &heard)?;
    let webhook = Webhook::start()?;
    let commanded = scene.dir().join("commanded");
    let sinks = format!(
        "[verdicts.webhook]\nurl = \"{}\"\n\
         [verdicts.command]\ncommand = [\"sh\", \"-c\", \"cat >> {}; echo >> {}\"]\n\
         [verdicts.mqtt]\nwanted = \"all\"\nbroker = {{ url = \"{}\" }}",
        webhook.url(),
        commanded.display(),
        commanded.display(),
        near.url()
    );
    let broker = format!("mqtt://{}", scene.broker()?);
    let mut agent = scene.doubter("device-1").broker(&broker).section(&sinks).start()?;
    agent.wait_until_online()?;

    let local = scene.post_a_stored_one(&agent, 0, &mut Tally::default())?;
    let key = format!("{}/1", local.id);
    agent.wait_for_correction(&local.id, CORRECTION_WAIT_MAX)?;
    wait::until_true("the webhook has it", CORRECTION_WAIT_MAX, || Ok(webhook.has(&key)))?;
    let wanted = |answer: &Answer| answer.idempotency_key() == key;
    wait::until_true("the command has it", CORRECTION_WAIT_MAX, || Ok(answers(&commanded)?.iter().any(wanted)))?;
    let both = wait::until_true("the second broker has both words", CORRECTION_WAIT_MAX, || {
        let mut revisions: Vec<u32> =
            answers(&heard)?.iter().filter(|answer| answer.id == local.id).map(|answer| answer.revision).collect();
        // At least once each, and in this order.
        revisions.dedup();
        Ok(revisions == [0, 1])
    });
    both.with_context(|| format!("{:?}; the end of its log:\n{}", std::fs::read_to_string(&heard), agent.log_end()))?;

    // With the second broker away the others are served on.
    drop((listener, near));
    let next = scene.post_a_stored_one(&agent, 1, &mut Tally::default())?;
    agent.wait_for_correction(&next.id, CORRECTION_WAIT_MAX)?;
    let key = format!("{}/1", next.id);
    wait::until_true("the webhook has the next", CORRECTION_WAIT_MAX, || Ok(webhook.has(&key)))?;
    agent.stop()
}

/// The answers in a file of JSON lines; none while there is no file. A last line may still be under way.
fn answers(path: &Path) -> Result<Vec<Answer>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// `mosquitto_sub`, as an application would listen.
struct Listener(Child);

impl Listener {
    fn start(broker: &Mosquitto, into: &Path) -> Result<Self> {
        // As a URL, because a port that usually has TLS would be taken to have it.
        let child = Command::new("mosquitto_sub")
            .args(["-L", &format!("{}/hedge/v1/device-1/up/answer/pictures", broker.url())])
            .stdout(std::fs::File::create(into)?)
            .stderr(Stdio::null())
            .spawn()
            .context("mosquitto_sub (apt-get install mosquitto-clients)")?;
        let listener = Self(child);
        // Nothing is kept for who listens too late.
        let granted = || Ok(broker.log()?.contains("Sending SUBACK to "));
        wait::until_true("the application listens", CORRECTION_WAIT_MAX, granted)?;
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
