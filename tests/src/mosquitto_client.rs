//! `mosquitto_pub` and `mosquitto_sub`, as an operator has them.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::Reply;

use crate::program::{Program, Recipe};
use crate::wait;

/// For a reply of a device that may first have to come back: the longest ordinary wait between two dials is 40 s.
pub const REPLY_WAIT_MAX: Duration = Duration::from_secs(60);

/// What a subscription's line ends its head with.
const TAB: char = '\t';

/// Publishes with these further arguments, and waits until the broker has it.
pub fn publish(broker: SocketAddr, topic: &str, arguments: &[&str]) -> Result<()> {
    let (host, port) = (broker.ip().to_string(), broker.port().to_string());
    let published = Command::new("mosquitto_pub")
        .args(["-h", &host, "-p", &port, "-q", "1", "-t", topic])
        .args(arguments)
        .output()
        .context("cannot run mosquitto_pub")?;
    ensure!(published.status.success(), "mosquitto_pub: {}", String::from_utf8_lossy(&published.stderr));
    Ok(())
}

/// Kept by the broker, and asked for behind what is looked for: the broker gives in the order of the filters.
const END: &str = "hedge/test/end";

/// What the broker keeps under a topic, if anything.
pub fn kept(broker: SocketAddr, topic: &str) -> Result<Option<String>> {
    publish(broker, END, &["-r", "-m", "{}"])?;
    let (host, port) = (broker.ip().to_string(), broker.port().to_string());
    let wait_s = REPLY_WAIT_MAX.as_secs().to_string();
    let mut listener = Command::new("mosquitto_sub")
        .args(["-h", &host, "-p", &port, "-W", &wait_s, "-t", topic, "-t", END, "-F", &format!("%t{TAB}%p")])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run mosquitto_sub")?;
    let output = listener.stdout.take().context("piped")?;
    let first = BufReader::new(output).lines().next().transpose();
    listener.kill()?;
    listener.wait()?;
    let line = first?.context("the broker does not even give what it was told to keep")?;
    let (heard, payload) = line.split_once(TAB).with_context(|| line.clone())?;
    Ok((heard == topic).then(|| payload.to_owned()))
}

/// A message as `mosquitto_sub` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub topic: String,
    pub correlation: String,
    pub payload: String,
}

/// Everything devices say, from its start on. Ends with the value.
pub struct Listener {
    /// Runs as long as this value lives.
    _program: Program,
    output: PathBuf,
}

impl Listener {
    /// Listens below `hedge/v1/+/up`.
    pub fn start(broker: SocketAddr, dir: &Path) -> Result<Self> {
        let (host, port) = (broker.ip().to_string(), broker.port().to_string());
        let format = format!("%t{TAB}%D{TAB}%p");
        let recipe = Recipe::new("mosquitto_sub", "mosquitto_sub".into(), dir).arguments([
            "-h",
            &host,
            "-p",
            &port,
            "-V",
            "mqttv5",
            "-q",
            "1",
            "-t",
            "hedge/v1/+/up/#",
            "-t",
            "hedge/test",
            "-F",
            &format,
        ]);
        let listener = Self { output: dir.join("mosquitto_sub.out"), _program: recipe.start()? };
        // Its subscription is there once it hears itself.
        wait::until_true("mosquitto_sub hears", REPLY_WAIT_MAX, || {
            publish(broker, "hedge/test", &["-m", "{}"])?;
            Ok(listener.heard()?.iter().any(|heard| heard.topic == "hedge/test"))
        })?;
        Ok(listener)
    }

    /// All whole lines so far.
    pub fn heard(&self) -> Result<Vec<Heard>> {
        // Cases are no text.
        let output = std::fs::read(&self.output)?;
        let output = String::from_utf8_lossy(&output);
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let read = |line: &str| {
            let mut parts = line.splitn(3, TAB).map(ToOwned::to_owned);
            Some(Heard { topic: parts.next()?, correlation: parts.next()?, payload: parts.next()? })
        };
        Ok(whole.lines().filter_map(read).collect())
    }

    /// All replies so far, wherever they were said.
    pub fn replies(&self) -> Result<Vec<(Heard, Reply)>> {
        let replies = self.heard()?.into_iter().filter_map(|heard| {
            let reply = serde_json::from_str(&heard.payload).ok()?;
            Some((heard, reply))
        });
        Ok(replies.collect())
    }

    /// Waits until the reply to this id is there.
    pub fn wait_for_reply(&self, id: &str) -> Result<(Heard, Reply)> {
        let what = format!("a reply to `{id}`");
        let reply = wait::until(&what, REPLY_WAIT_MAX, || {
            Ok(self.replies()?.into_iter().find(|(_, reply)| reply.id.as_deref() == Some(id)))
        });
        reply.with_context(|| format!("heard: {:?}", self.heard()))
    }
}
