//! Devices that were paired: `hedge-cloud quickstart`, `hedge-cloud ca`, `hedge-agent setup`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::program::{Program, Recipe};
use crate::{AgentConfig, address, places};

/// A debug build on a busy machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// Debian's libfaketime.
#[must_use]
pub fn faketime() -> Option<PathBuf> {
    let lib = std::fs::read_dir("/usr/lib").ok()?;
    lib.flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.is_file())
}

/// The variables under which a program sees another wall clock, and the other clocks as they are.
pub fn wall_clock(time: &str) -> Result<Vec<(&'static str, String)>> {
    let library = faketime().context("libfaketime is not installed")?;
    Ok(vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", time.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

/// Runs a program of ours to its end; what it printed, or its error in words.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_at(None, program, arguments)
}

fn run_at(time: Option<&str>, program: &str, arguments: &[&str]) -> Result<String> {
    let clock = time.map(wall_clock).transpose()?.unwrap_or_default();
    let done = Command::new(places::program(program)?).args(arguments).envs(clock).output()?;
    let (said, wrong) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{program} {arguments:?}: {said}{wrong}");
    Ok(said.into_owned())
}

/// `hedge-agent setup` on the file that `config` has written.
pub fn pair(config: &AgentConfig, device: &str, code: &str, more: &[&str]) -> Result<String> {
    let (dir, state) = (config.dir().display().to_string(), config.dir().join("state").display().to_string());
    let mut words = vec!["setup", "--pair", code, "--device", device, "--config-dir", &dir, "--state-dir", &state];
    words.extend(more);
    run("hedge-agent", &words)
}

/// A running `hedge-cloud quickstart` that says `Coat` to every picture.
pub struct Quickstart {
    program: Program,
    broker: SocketAddr,
    enrol: SocketAddr,
    state: PathBuf,
    output: PathBuf,
    /// Its wall clock, if not the real one.
    time: Option<String>,
}

impl Quickstart {
    /// Starts it in a folder below `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let (broker, state) = (address::own(8883), dir.join("quickstart"));
        let enrol = SocketAddr::new(broker.ip(), 8443);
        std::fs::create_dir_all(&state)?;
        let program = Self::recipe(&state, broker, enrol, None)?.start()?;
        let mut this = Self { program, broker, enrol, output: state.join("quickstart.out"), state, time: None };
        this.wait_until_ready()?;
        Ok(this)
    }

    fn recipe(state: &Path, broker: SocketAddr, enrol: SocketAddr, time: Option<&str>) -> Result<Recipe> {
        let mut recipe = Recipe::new("quickstart", places::program("hedge-cloud")?, state)
            .arguments(["quickstart", "--answer-with", "fashion=Coat"])
            .arguments(["--broker", &broker.to_string(), "--enrol", &enrol.to_string()])
            .arguments(["--listen", &SocketAddr::new(broker.ip(), 8080).to_string(), "--state-dir"])
            .argument(state);
        for (name, value) in time.map(wall_clock).transpose()?.into_iter().flatten() {
            recipe = recipe.variable(name, value);
        }
        Ok(recipe)
    }

    /// Stops it, and starts it again in its folder when the wall clock says `time`.
    pub fn start_again_at(&mut self, time: &str) -> Result<()> {
        self.program.stop(START_WAIT_MAX)?;
        self.program = Self::recipe(&self.state, self.broker, self.enrol, Some(time))?.start()?;
        self.time = Some(time.to_owned());
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        self.program.wait_for("quickstart prints a pairing code", START_WAIT_MAX, |program| {
            Ok(program.output()?.contains("another: ").then_some(()))
        })
    }

    /// The code printed at its last start.
    pub fn code(&self) -> Result<String> {
        let output = std::fs::read_to_string(&self.output)?;
        let code = output.split_whitespace().skip_while(|word| *word != "--pair").nth(1);
        Ok(code.context("no pairing code was printed")?.to_owned())
    }

    /// Another code.
    pub fn claim(&self) -> Result<String> {
        let said = self.ca(&["claim", "--address", &self.enrol.to_string()])?;
        Ok(said.split_whitespace().last().context("no code")?.to_owned())
    }

    /// `hedge-cloud ca` on its authority, with its wall clock.
    pub fn ca(&self, words: &[&str]) -> Result<String> {
        let dir = self.authority().display().to_string();
        run_at(self.time.as_deref(), "hedge-cloud", &[&["ca", "--ca-dir", &dir], words].concat())
    }

    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.state.join("ca")
    }

    /// Where devices enrol.
    #[must_use]
    pub fn enrol(&self) -> SocketAddr {
        self.enrol
    }

    /// Where devices connect.
    #[must_use]
    pub fn broker(&self) -> SocketAddr {
        self.broker
    }

    #[must_use]
    pub fn log_end(&self) -> String {
        self.program.log_end()
    }
}
