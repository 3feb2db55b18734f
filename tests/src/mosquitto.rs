//! Debian's mosquitto on an address and in a folder of its own.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::certificates::{Authority, Identity};
use crate::namespace::CloudSide;
use crate::program::{Program, Recipe};
use crate::{address, places};

/// Where Debian puts it; `/usr/sbin` is not on every user's path.
const PROGRAM: &str = "/usr/sbin/mosquitto";

/// It starts at once, on an idle machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

#[must_use]
pub fn is_installed() -> bool {
    Path::new(PROGRAM).is_file()
}

/// What the broker asks of devices. The cloud always has an open listener of its own.
#[derive(Default)]
pub struct MosquittoSetup<'a> {
    /// User and password instead of anonymous clients.
    pub user: Option<(&'a str, &'a str)>,
    /// TLS with this authority's certificate.
    pub tls: Option<&'a Authority>,
    /// Besides, clients must show a certificate of the same authority.
    pub client_certificates: bool,
    /// MQTT over WebSocket instead of plain TCP.
    pub websocket: bool,
    /// Sessions and retained messages are written to disk at every change and survive a restart.
    pub persistent: bool,
    /// An access list for all on the devices' listener.
    pub access: Option<&'a str>,
    /// Larger packets are refused, which each client is told when it connects.
    pub packet_bytes_max: Option<u32>,
    /// Messages with more are dropped, of which no client is told.
    pub message_bytes_max: Option<u32>,
    /// What waits and is under way is bounded as in the configuration that the project ships, and no packet is logged.
    pub shipped_limits: bool,
    /// Behind a link of its own: devices connect at its far address.
    pub far: Option<&'a CloudSide>,
}

/// A running mosquitto.
#[derive(Debug)]
pub struct Mosquitto {
    program: Program,
    /// Where the cloud connects.
    inside: SocketAddr,
    /// Where devices connect.
    outside: SocketAddr,
    dir: PathBuf,
}

impl Mosquitto {
    /// An open broker on plain TCP.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &MosquittoSetup::default())
    }

    pub fn start_with(dir: &Path, setup: &MosquittoSetup<'_>) -> Result<Self> {
        let dir = dir.join("mosquitto");
        std::fs::create_dir_all(&dir)?;
        // For WebSockets mosquitto does not heed the address.
        let outside = address::own(if setup.websocket { address::own_port()? } else { 8883 });
        let outside = setup.far.map_or(outside, |side| SocketAddr::new(side.address(), outside.port()));
        let inside = address::own(1883);
        let identity = setup.tls.map(|authority| authority.server(outside.ip())).transpose()?;
        let config = dir.join("mosquitto.conf");
        std::fs::write(&config, configuration(&dir, inside, outside, setup, identity.as_ref())?)?;
        let recipe = Recipe::new("mosquitto", PROGRAM.into(), &dir).argument("-c").argument(&config);
        let mut program = recipe.inside(setup.far.map(CloudSide::name)).start()?;
        wait_for_listener(&mut program, outside)?;
        Ok(Self { program, inside, outside, dir })
    }

    /// Where devices connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.outside
    }

    /// The cloud's and the operator's way in, open to all. (On port 8883 mosquitto's clients insist on TLS.)
    #[must_use]
    pub fn inside(&self) -> SocketAddr {
        self.inside
    }

    /// The processor time it has used.
    pub fn cpu(&self) -> Result<Duration> {
        self.program.cpu()
    }

    /// `mqtt://…` for the cloud.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.inside)
    }

    /// `kill -9`, its memory forgotten, started again: no session, no retained message is left.
    pub fn restart_wiped(&mut self) -> Result<()> {
        self.program.kill()?;
        self.wipe()?;
        self.start_again()
    }

    /// Forgets what a killed broker had written down.
    pub fn wipe(&self) -> Result<()> {
        let database = self.dir.join("mosquitto.db");
        if database.exists() {
            std::fs::remove_file(database)?;
        }
        Ok(())
    }

    /// `kill -9`; clients see their connections end.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// Killed and started again at the same address with another setup, without TLS.
    pub fn start_again_with(&mut self, setup: &MosquittoSetup<'_>) -> Result<()> {
        self.program.kill()?;
        let text = configuration(&self.dir, self.inside, self.outside, setup, None)?;
        std::fs::write(self.dir.join("mosquitto.conf"), text)?;
        self.start_again()
    }

    /// After [`Self::kill`], at the same address.
    pub fn start_again(&mut self) -> Result<()> {
        self.program.start()?;
        wait_for_listener(&mut self.program, self.outside)
    }

    #[must_use]
    pub fn log_end(&self) -> String {
        self.program.log_end()
    }

    /// Everything it has logged: each packet in a line.
    pub fn log(&self) -> Result<String> {
        let log = std::fs::read(self.dir.join("mosquitto.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }
}

/// mosquitto with the configuration the project ships, at addresses of its own.
pub struct Shipped {
    _program: Program,
    devices: SocketAddr,
    clouds: SocketAddr,
}

impl Shipped {
    /// `certificates` makes `ca.pem`, `server.pem` and `server.key` for an address, and says in which folder.
    pub fn start(dir: &Path, certificates: impl FnOnce(IpAddr) -> Result<PathBuf>) -> Result<Self> {
        let shipped = places::root().join("examples/mosquitto");
        let dir = dir.join("mosquitto");
        std::fs::create_dir_all(&dir)?;
        let devices = address::own(8883);
        let clouds = SocketAddr::new(devices.ip(), 8884);
        let files = certificates(devices.ip())?;
        for name in ["devices.acl", "cloud.acl"] {
            std::fs::copy(shipped.join(name), files.join(name))?;
        }
        // What only a test changes: whose user it is, where files lie, and on which address it listens.
        let text = std::fs::read_to_string(shipped.join("hedge.conf"))?
            .replace("/etc/mosquitto/hedge", &files.display().to_string())
            .replace("/var/lib/mosquitto", &dir.display().to_string())
            .replace("listener 8883", &format!("listener 8883 {}", devices.ip()))
            .replace("listener 8884", &format!("listener 8884 {}", clouds.ip()));
        let config = dir.join("mosquitto.conf");
        std::fs::write(&config, format!("user root\nlog_type all\n{text}"))?;
        let recipe = Recipe::new("mosquitto", PROGRAM.into(), &dir).argument("-c").argument(&config);
        let mut program = recipe.start()?;
        wait_for_listener(&mut program, clouds)?;
        Ok(Self { _program: program, devices, clouds })
    }

    #[must_use]
    pub fn devices(&self) -> SocketAddr {
        self.devices
    }

    #[must_use]
    pub fn clouds(&self) -> SocketAddr {
        self.clouds
    }
}

fn wait_for_listener(program: &mut Program, address: SocketAddr) -> Result<()> {
    program.wait_for("mosquitto listens", START_WAIT_MAX, |_| Ok(TcpStream::connect(address).ok().map(drop)))
}

fn configuration(
    dir: &Path,
    inside: SocketAddr,
    outside: SocketAddr,
    setup: &MosquittoSetup<'_>,
    identity: Option<&Identity>,
) -> Result<String> {
    // Started as root it would become the user `mosquitto`, who cannot read the test's folder.
    let log = if setup.shipped_limits { "warning" } else { "all" };
    let mut text = format!("user root\nlog_type {log}\nper_listener_settings true\n");
    if setup.shipped_limits {
        let shipped = std::fs::read_to_string(places::root().join("examples/mosquitto/hedge.conf"))?;
        let is_limit = |line: &&str| line.starts_with("max_") || line.starts_with("set_tcp_nodelay ");
        shipped.lines().filter(is_limit).try_for_each(|line| writeln!(text, "{line}"))?;
    }
    if setup.persistent {
        writeln!(text, "persistence true\npersistence_location {}/", dir.display())?;
        writeln!(text, "autosave_on_changes true\nautosave_interval 1")?;
    }
    if let Some(bytes) = setup.packet_bytes_max {
        writeln!(text, "max_packet_size {bytes}")?;
    }
    if let Some(bytes) = setup.message_bytes_max {
        writeln!(text, "message_size_limit {bytes}")?;
    }
    writeln!(text, "listener {} {}\nallow_anonymous true", inside.port(), inside.ip())?;
    writeln!(text, "listener {} {}", outside.port(), outside.ip())?;
    if setup.websocket {
        writeln!(text, "protocol websockets")?;
    }
    if let (Some(authority), Some(identity)) = (setup.tls, identity) {
        writeln!(text, "certfile {}", identity.certificate.display())?;
        writeln!(text, "keyfile {}", identity.key.display())?;
        if setup.client_certificates {
            writeln!(text, "cafile {}\nrequire_certificate true", authority.file().display())?;
        }
    }
    if let Some(rules) = setup.access {
        let file = dir.join("access");
        std::fs::write(&file, rules)?;
        writeln!(text, "acl_file {}", file.display())?;
    }
    if let Some((user, password)) = setup.user {
        let file = dir.join("passwords");
        let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args([user, password]).output();
        let made = made.context("cannot run mosquitto_passwd")?;
        ensure!(made.status.success(), "mosquitto_passwd: {}", String::from_utf8_lossy(&made.stderr));
        writeln!(text, "allow_anonymous false\npassword_file {}", file.display())?;
    } else {
        writeln!(text, "allow_anonymous true")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_however_devices_reach_it() -> Result<()> {
        if !crate::skip::has_mosquitto() {
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let authority = Authority::new(dir.path())?;
        for setup in [
            MosquittoSetup::default(),
            MosquittoSetup { user: Some(("device", "secret")), persistent: true, ..Default::default() },
            MosquittoSetup { tls: Some(&authority), client_certificates: true, ..Default::default() },
            MosquittoSetup { tls: Some(&authority), websocket: true, ..Default::default() },
        ] {
            Mosquitto::start_with(dir.path(), &setup)?.restart_wiped()?;
        }
        Ok(())
    }
}
