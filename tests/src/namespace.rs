//! A network of the cloud's own behind a virtual cable whose packets can be dropped.
//!
//! ```text
//!  this machine                            CloudSide
//!  agent ── near address ── veth cable ── far address ── mosquitto, hedge-cloud
//!                                     ▲
//!                             nft drops both ways
//! ```
//! Dropped packets are the half-open link that a proxy cannot make: no kernel acknowledges, none says goodbye. All
//! rules live in the namespace and go with it; nothing of this machine's own firewall is touched.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

/// Cables laid by this process; two for each test that needs one.
static NEXT: AtomicU8 = AtomicU8::new(0);

/// The namespace, its cable and its addresses. Dropping it removes them.
#[derive(Debug)]
pub struct CloudSide {
    name: String,
    far: Ipv4Addr,
}

impl CloudSide {
    /// Why this machine cannot have one, if it cannot.
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".into());
        }
        let tools: [&[&str]; 2] = [&["ip", "-V"], &["nft", "-v"]];
        let missing = tools.into_iter().find(|words| run(words).is_err())?;
        Some(format!("`{}` is not installed; on Debian: apt-get install iproute2 nftables", missing[0]))
    }

    /// Lays the cable.
    pub fn new() -> Result<Self> {
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("hedge-{process}-{number}");
        // 198.18.0.0/15 is set aside for tests of networks; 4 addresses a cable, 2 of them usable, and 4 cables a process.
        let net = u32::from(Ipv4Addr::new(198, 18, 0, 0)) | (process % 8192) << 4 | u32::from(number & 3) << 2;
        let [near, far] = [1, 2].map(|last| Ipv4Addr::from(net | last));
        run(&["ip", "netns", "add", &name])?;
        let side = Self { name, far };
        // Names of interfaces have 15 characters at most.
        let cable = format!("hv{:x}{number:x}", process & 0xff_ffff);
        let (inner, near, far) = (format!("{cable}i"), format!("{near}/30"), format!("{far}/30"));
        run(&["ip", "link", "add", &cable, "type", "veth", "peer", "name", &inner, "netns", &side.name])?;
        run(&["ip", "address", "add", &near, "dev", &cable])?;
        run(&["ip", "link", "set", &cable, "up"])?;
        side.run(&["ip", "address", "add", &far, "dev", &inner])?;
        side.run(&["ip", "link", "set", &inner, "up"])?;
        side.run(&["ip", "link", "set", "lo", "up"])?;
        side.run(&["nft", "add", "table", "inet", "hedge"])?;
        for hook in ["input", "output"] {
            let rule = format!("{{ type filter hook {hook} priority 0 ; policy accept ; }}");
            side.run(&["nft", "add", "chain", "inet", "hedge", hook, &rule])?;
        }
        Ok(side)
    }

    /// For `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where this machine reaches what listens inside.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.far.into()
    }

    /// From now on no packet passes in either direction, and nobody is told.
    pub fn drop_packets(&self) -> Result<()> {
        for (hook, device) in [("input", "iifname"), ("output", "oifname")] {
            self.run(&["nft", "add", "rule", "inet", "hedge", hook, device, "!=", "lo", "drop"])?;
        }
        Ok(())
    }

    /// Packets pass again.
    pub fn repair(&self) -> Result<()> {
        self.run(&["nft", "flush", "table", "inet", "hedge"])
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        run(&[&["ip", "netns", "exec", &self.name], words].concat())
    }
}

impl Drop for CloudSide {
    fn drop(&mut self) {
        // The cable goes with its inner end.
        if let Err(error) = run(&["ip", "netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let shown = words.join(" ");
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}`: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn dropped_packets_are_silence_and_a_repair_ends_it() -> Result<()> {
        if !crate::skip::has_namespaces() {
            return Ok(());
        }
        let side = CloudSide::new()?;
        let dial = |wait| TcpStream::connect_timeout(&SocketAddr::new(side.address(), 9), wait);
        // Nobody listens; the answer to that shows that packets pass. A new cable may lose the first of them.
        let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        assert!(dial(Duration::from_secs(20)).is_err_and(refused));
        side.drop_packets()?;
        assert!(dial(Duration::from_millis(300)).is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut));
        side.repair()?;
        assert!(dial(Duration::from_secs(20)).is_err_and(refused));
        Ok(())
    }
}
