//! Retained, without an id, misspelt, oversize, garbage: refused in a sentence, and the device stays online.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use hedge_proto::{CommandOutcome, LinkState};
use hedge_tests::mosquitto_client::{REPLY_WAIT_MAX, publish};
use hedge_tests::{Agent, AgentConfig, Listener, Mosquitto, skip, wait};
use tempfile::TempDir;

const COMMAND: &str = "hedge/v1/device-1/down/command";

/// Everything a device reads that is its own.
const DOWN: [&str; 3] = [COMMAND, "hedge/v1/device-1/down/desired", "hedge/v1/device-1/down/verdict"];

const RECONNECTS: usize = 20;

struct Stand {
    broker: Mosquitto,
    listener: Listener,
    agent: Agent,
    dir: TempDir,
}

fn stand() -> Result<Option<Stand>> {
    stand_with(|config| config)
}

fn stand_with(more: impl FnOnce(AgentConfig) -> AgentConfig) -> Result<Option<Stand>> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let broker = Mosquitto::start(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let config = AgentConfig::new(dir.path(), "device-1")
        .model("fashion-small")
        .http_source("pictures")
        .broker(&format!("mqtt://{}", broker.address()));
    let mut agent = more(config).start()?;
    agent.wait_until_connected()?;
    let stand = Stand { broker, listener, agent, dir };
    stand.give("first", &["-m", r#"{"id": "first", "command": "ping"}"#])?;
    Ok(Some(stand))
}

impl Stand {
    fn publish(&self, arguments: &[&str]) -> Result<()> {
        publish(self.broker.inside(), COMMAND, arguments)
    }

    /// Gives a command and waits until it is done.
    fn give(&self, id: &str, arguments: &[&str]) -> Result<()> {
        self.publish(arguments)?;
        let (_, reply) = self.listener.wait_for_reply(id)?;
        ensure!(reply.outcome == CommandOutcome::Done, "{reply:?}");
        Ok(())
    }

    /// The reasons of all refusals so far.
    fn refusals(&self) -> Result<Vec<String>> {
        let replies = self.listener.replies()?.into_iter();
        let refused = replies.filter(|(_, reply)| reply.outcome == CommandOutcome::Refused);
        Ok(refused.filter_map(|(_, reply)| reply.reason).collect())
    }

    fn wait_for_refusal(&self, part: &str) -> Result<()> {
        let seen = wait::until_true(&format!("a refusal that says `{part}`"), REPLY_WAIT_MAX, || {
            Ok(self.refusals()?.iter().any(|reason| reason.contains(part)))
        });
        seen.with_context(|| format!("refusals: {:?}", self.refusals()))
    }

    /// Connects anew so often, and sees the device get there each time. A new process does not wait between dials.
    fn reconnect(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.agent.kill()?;
            self.agent.start_again()?;
            self.agent.wait_until_connected()?;
        }
        Ok(())
    }
}

#[test]
fn what_must_not_run_gets_a_reason() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    for (arguments, part) in [
        (&["-m", r#"{"command": "drain"}"#][..], "needs an `id`"),
        (&["-m", r#"{"id": "a", "command": "reboot"}"#], "reboot"),
        (&["-m", r#"{"id": "a", "command": "explain", "args": {"lst": 3}}"#], "lst"),
        (&["-m", r#"{"id": "a", "command": "explain", "args": {"last": 0}}"#], "args.last"),
        (&["-m", r#"{"id": "a", "comand": "ping"}"#], "comand"),
        (&["-m", "not JSON"], "expected"),
        (&["-r", "-m", r#"{"id": "kept", "command": "ping"}"#], "retain"),
    ] {
        stand.publish(arguments)?;
        if arguments.contains(&"-r") {
            // To who is subscribed already, a broker passes it on as an ordinary message.
            stand.listener.wait_for_reply("kept")?;
            stand.reconnect(1)?;
        }
        stand.wait_for_refusal(part)?;
    }
    // An id is not used up by a refusal.
    stand.publish(&["-r", "-n"])?;
    stand.give("b", &["-m", r#"{"id": "b", "command": "ping"}"#])?;
    // Every refusal is in the audit log.
    let log = std::process::Command::new(hedge_tests::places::program("hedge-agent")?)
        .args(["log", "settings", "--json", "--config"])
        .arg(stand.agent.dir().join("agent.toml"))
        .output()?;
    let log = String::from_utf8(log.stdout)?;
    ensure!(log.lines().filter(|line| line.contains("\"refused\"")).count() >= 7, "{log}");
    stand.agent.stop()
}

/// Given to a device that is away: the broker drops what MQTT 5's message expiry ends, the device refuses what its own
/// time says is too old, and the rest runs.
#[test]
fn what_was_given_too_long_ago_does_not_run() -> Result<()> {
    const EXPIRY: Duration = Duration::from_secs(1);
    if !skip::has_namespaces() {
        return Ok(()); // nor may it mount anything
    }
    let Some(mut stand) = stand_with(AgentConfig::clock_set)? else { return Ok(()) };
    stand.agent.kill()?;
    #[expect(clippy::disallowed_methods, reason = "what a person's clock shows is what is tested")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let ping = |id: &str, more: &str| format!(r#"{{"id": "{id}", "command": "ping"{more}}}"#);
    let expiry = ["-V", "mqttv5", "-D", "publish", "message-expiry-interval"];
    let seconds = EXPIRY.as_secs().to_string();
    stand.publish(&[&expiry[..], &[&seconds, "-m", &ping("gone", "")]].concat())?;
    let given = Instant::now();
    stand.publish(&[&expiry[..], &["600", "-m", &ping("kept", "")]].concat())?;
    let issued = |ago: u128| format!(r#", "issued_ms": {}"#, now - ago);
    stand.publish(&["-m", &ping("old", &issued(3_601_000))])?;
    stand.publish(&["-m", &ping("new", &issued(3_500_000))])?;
    wait::until_true("the message's time is over", 10 * EXPIRY, || Ok(given.elapsed() > 2 * EXPIRY))?;
    stand.agent.start_again()?;
    for (id, outcome) in
        [("kept", CommandOutcome::Done), ("old", CommandOutcome::Refused), ("new", CommandOutcome::Done)]
    {
        let (_, reply) = stand.listener.wait_for_reply(id)?;
        ensure!(reply.outcome == outcome, "{reply:?}");
    }
    stand.wait_for_refusal("minutes ago")?;
    // They come in order, so this one was before all of them.
    let gone = stand.listener.replies()?.into_iter().any(|(_, reply)| reply.id.as_deref() == Some("gone"));
    ensure!(!gone, "a command ran after its message had expired");
    stand.agent.stop()
}

#[test]
fn retained_garbage_and_oversize_leave_the_device_online() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    let file = stand.dir.path().join("retained");
    // Too large to be read, and too large to be delivered.
    let oversize = vec![b'{'; 100 * 1024];
    let enormous = vec![b'{'; 20 * 1024 * 1024];
    for (what, bytes, delivered) in
        [("garbage", &[0xff, 0, b'{', b'['][..], true), ("oversize", &oversize, true), ("enormous", &enormous, false)]
    {
        std::fs::write(&file, bytes)?;
        for topic in DOWN {
            publish(stand.broker.inside(), topic, &["-r", "-f", &file.display().to_string()])?;
        }
        let before = stand.refusals()?.len();
        stand.reconnect(RECONNECTS).context(what)?;
        let id = format!("after-{what}");
        stand.give(&id, &["-m", &format!(r#"{{"id": "{id}", "command": "ping"}}"#)])?;
        ensure!(!delivered || stand.refusals()?.len() > before, "{what} was not refused");
    }
    let status = stand.agent.http.status()?;
    ensure!(status.link != LinkState::Offline && status.connections == 1, "{status:?}");
    stand.agent.stop()
}

#[test]
fn a_flood_is_refused_and_ordinary_commands_work_a_moment_later() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    let lines: String = (0..2000).map(|n| format!("{{\"id\": \"f{n}\", \"command\": \"ping\"}}\n")).collect();
    let file = stand.dir.path().join("flood");
    std::fs::write(&file, lines)?;
    let flood = std::process::Command::new("mosquitto_pub")
        .args(["-h", &stand.broker.inside().ip().to_string(), "-p", &stand.broker.inside().port().to_string()])
        .args(["-q", "1", "-t", COMMAND, "-l"])
        .stdin(std::fs::File::open(&file)?)
        .output()?;
    ensure!(flood.status.success(), "{}", String::from_utf8_lossy(&flood.stderr));
    stand.wait_for_refusal("commands a second")?;
    let mut tries = 0;
    wait::until_true("an ordinary command works again", REPLY_WAIT_MAX, || {
        let id = format!("after-{tries}");
        tries += 1;
        stand.publish(&["-m", &format!(r#"{{"id": "{id}", "command": "ping"}}"#)])?;
        wait::pause(Duration::from_millis(300));
        // Whichever of them: on a busy machine a reply takes longer than this pause.
        let mut replies = stand.listener.replies()?.into_iter().map(|(_, reply)| reply);
        Ok(replies
            .any(|reply| reply.id.is_some_and(|id| id.starts_with("after-")) && reply.outcome == CommandOutcome::Done))
    })?;
    stand.agent.stop()
}
