//! `mosquitto_pub` and `mosquitto_sub`, as an operator has them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
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

/// What the broker keeps under a topic, if anything; looked for during a second.
pub fn kept(broker: SocketAddr, topic: &str) -> Result<Option<String>> {
    let (host, port) = (broker.ip().to_string(), broker.port().to_string());
    let heard = Command::new("mosquitto_sub")
        .args(["-h", &host, "-p", &port, "-C", "1", "-W", "1", "-t", topic])
        .output()
        .context("cannot run mosquitto_sub")?;
    // 27: nothing came in time.
    ensure!(matches!(heard.status.code(), Some(0 | 27)), "{}", String::from_utf8_lossy(&heard.stderr));
    let text = String::from_utf8(heard.stdout)?.trim_end().to_owned();
    Ok(Some(text).filter(|text| !text.is_empty()))
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
