//! What an idle, connected device costs in data: bytes a day, from a measured window.
//!
//! Everything passes through a counting proxy. `bytes_per_day` is what TCP carries in both directions (MQTT, without
//! TLS); `wire_bytes_per_day` adds 52 bytes of IPv4 and TCP for each segment and as much for its acknowledgement, which
//! is the most it can be. What connecting costs is printed apart: a link that holds pays it once. Run it by `cargo
//! xtask bench link-idle`.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use hedge_tests::faults::Meter;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{FaultProxy, Scene, wait};
use serde_json::{Value, json};

/// IPv4 and TCP with timestamps.
const HEADER_BYTES: u64 = 52;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// After the link is up: the status, the first figures and their acknowledgements are part of connecting.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Arguments {
    /// Seconds to measure the `lan` profile: keep-alive 20 s, figures each 60 s, the cloud's status each 120 s
    #[arg(long, default_value_t = 240)]
    lan_s: u64,
    /// Seconds to measure the `metered` profile: three keep-alives of 600 s
    #[arg(long, default_value_t = 1830)]
    metered_s: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Side by side: they mostly wait.
    let (lan, metered) = std::thread::scope(|scope| {
        let lan = scope.spawn(|| measure(None, arguments.lan_s));
        let metered = scope.spawn(|| measure(Some("metered"), arguments.metered_s));
        (lan.join(), metered.join())
    });
    let panicked = |_| anyhow::anyhow!("a measurement panicked");
    println!("{}", json!({ "lan": lan.map_err(panicked)??, "metered": metered.map_err(panicked)?? }));
    Ok(())
}

/// `None` if the agent knows no such profile.
fn measure(profile: Option<&str>, window_s: u64) -> Result<Option<Value>> {
    let name = profile.unwrap_or("lan");
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let mut config = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address()));
    if let Some(profile) = profile {
        config = config.section(&format!("[link]\nprofile = \"{profile}\""));
    }
    let mut agent = match config.start() {
        Ok(agent) => agent,
        Err(error) if format!("{error:#}").contains("unknown field `link`") => {
            println!("{name}: skipped, this agent has no link profiles");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    agent.wait_until_online()?;
    wait::pause(SETTLES_WITHIN);
    let connected = link.meter();
    let window = Duration::from_secs(window_s);
    wait::pause(window);
    let idle = link.meter().since(&connected);
    anyhow::ensure!(link.accepted() == 1, "{name}: it has reconnected; the end of its log:\n{}", agent.log_end());
    let days = window.div_duration_f64(DAY);
    let per_day = |bytes: u64| (bytes as f64 / days).round();
    let row = json!({
        "window_s": window_s,
        "bytes_per_day": per_day(idle.bytes()),
        "wire_bytes_per_day": per_day(wire_bytes(&idle)),
        "up_bytes_per_day": per_day(idle.up_bytes),
        "down_bytes_per_day": per_day(idle.down_bytes),
        "connect_bytes": connected.bytes(),
        "connect_wire_bytes": wire_bytes(&connected),
    });
    println!("{name}: {row}");
    agent.stop()?;
    Ok(Some(row))
}

fn wire_bytes(meter: &Meter) -> u64 {
    meter.bytes() + 2 * HEADER_BYTES * meter.pieces
}
