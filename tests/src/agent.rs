//! A running `hedge-agent` and the configuration it was started with.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseId, LinkState, Telemetry};

use crate::interface::Interface;
use crate::program::{Program, Recipe};
use crate::sink::Sink;
use crate::{address, places, wait};

/// From start to serving: a model, the log and the queue, in a debug build on a busy machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// A first connection, or one after the longest ordinary wait between two dials (40 s).
const ONLINE_WAIT_MAX: Duration = Duration::from_secs(60);

/// A graceful stop is bounded by the agent itself; this is that and a busy machine.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(30);

/// A configuration file in the making, and where the agent will live.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    device: String,
    dir: PathBuf,
    state_dir: PathBuf,
    http: SocketAddr,
    sections: String,
    environment: Vec<(String, String)>,
    clock_set: bool,
    user: Option<u32>,
    namespace: Option<String>,
}

impl AgentConfig {
    /// A device in a folder of its own below `dir`, with an HTTP interface and no broker.
    #[must_use]
    pub fn new(dir: &Path, device: &str) -> Self {
        Self {
            device: device.to_owned(),
            dir: dir.join(device),
            state_dir: dir.join(device).join("state"),
            http: address::own(8787),
            sections: String::new(),
            environment: Vec::new(),
            clock_set: false,
            user: None,
            namespace: None,
        }
    }

    /// Started by root, it runs as this user.
    #[must_use]
    pub fn running_as(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// In this network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Where its HTTP interface is.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state_dir
    }

    /// Where its state lies, if not in its folder: on a disk of its own.
    #[must_use]
    pub fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = path.to_owned();
        self
    }

    /// Anything a configuration file may hold, beginning with a section's head.
    #[must_use]
    pub fn section(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// See [`Recipe::with_clock_set`].
    #[must_use]
    pub fn clock_set(mut self) -> Self {
        self.clock_set = true;
        self
    }

    /// The ONNX Runtime library, where the environment does not name it.
    #[must_use]
    pub fn library(self, library: &Path) -> Self {
        self.variable("ORT_DYLIB_PATH", &library.display().to_string())
    }

    #[must_use]
    pub fn broker(self, url: &str) -> Self {
        self.section(&format!("[broker]\nurl = \"{url}\""))
    }

    /// A bundle below `models/` under its own name, with the threshold its manifest suggests.
    #[must_use]
    pub fn model(self, bundle: &str) -> Self {
        let path = places::model(bundle);
        self.section(&format!("[[model]]\nname = \"{bundle}\"\nbundle = \"{}\"", path.display()))
    }

    /// Like [`Self::model`], keeping only answers of at least this score: 0 keeps all, 1 defers nearly all.
    #[must_use]
    pub fn model_keeping(self, bundle: &str, score_min: f32) -> Self {
        self.model(bundle).section(&format!("threshold = {{ score_min = {score_min:?} }}"))
    }

    #[must_use]
    pub fn http_source(self, name: &str) -> Self {
        self.section(&format!("[[source]]\nname = \"{name}\"\nkind = \"http\""))
    }

    #[must_use]
    pub fn folder_source(self, name: &str, path: &Path) -> Self {
        self.section(&format!("[[source]]\nname = \"{name}\"\nkind = \"folder\"\npath = \"{}\"", path.display()))
    }

    /// A program that writes each picture with its length before it.
    #[must_use]
    pub fn command_source(self, name: &str, command: &[String]) -> Self {
        self.section(&format!(
            "[[source]]\nname = \"{name}\"\nkind = \"command\"\nformat = \"length_delimited\"\ncommand = {command:?}"
        ))
    }

    /// Corrections go to a file that [`Agent::corrections`] reads.
    #[must_use]
    pub fn corrections_file(self) -> Self {
        self.answers_file("corrections")
    }

    /// Local answers and corrections go to that file.
    #[must_use]
    pub fn all_answers_file(self) -> Self {
        self.answers_file("all")
    }

    fn answers_file(self, wanted: &str) -> Self {
        let path = self.sink();
        // No rotation: the harness reads one file from its beginning.
        self.section(&format!(
            "[verdicts.jsonl]\npath = \"{}\"\nwanted = \"{wanted}\"\nbytes_max = 1_000_000_000",
            path.display()
        ))
    }

    fn sink(&self) -> PathBuf {
        self.dir.join("answers.jsonl")
    }

    /// Its configuration file, once written.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Where its HTTP interface is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.http
    }

    /// The agent's folder: configuration, state, logs, answers.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same, with its file written.
    pub fn write_first(self) -> Result<Self> {
        self.write()?;
        Ok(self)
    }

    /// Writes the configuration file.
    pub fn write(&self) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.dir)?;
        let mut text = String::new();
        writeln!(text, "device = \"{}\"", self.device)?;
        writeln!(text, "state_dir = \"{}\"", self.state_dir.display())?;
        writeln!(text, "\n[http]\nlisten = [\"{}\"]\n\n{}", self.http, self.sections)?;
        let file = self.file();
        std::fs::write(&file, text)?;
        Ok(file)
    }

    /// Starts the agent and waits until it serves.
    pub fn start(&self) -> Result<Agent> {
        self.write()?;
        self.start_as_written()
    }

    /// Like [`Self::start`], with the file as `hedge-agent setup` left it.
    pub fn start_as_written(&self) -> Result<Agent> {
        let mut agent = self.start_wrong()?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts it with the file as it is, however wrong, and waits for nothing.
    pub fn start_wrong(&self) -> Result<Agent> {
        let file = self.file();
        let mut recipe = Recipe::new("hedge-agent", places::program("hedge-agent")?, &self.dir)
            .arguments(["run", "--config"])
            .argument(file);
        for (name, value) in &self.environment {
            recipe = recipe.variable(name, value);
        }
        recipe = recipe.running_as(self.user);
        if self.clock_set {
            recipe = recipe.with_clock_set();
        }
        Ok(Agent {
            program: recipe.inside(self.namespace.as_deref()).start()?,
            device: self.device.clone(),
            dir: self.dir.clone(),
            sink: self.sink(),
            http: Interface::new(self.http),
        })
    }
}

/// A running agent.
pub struct Agent {
    pub http: Interface,
    program: Program,
    device: String,
    dir: PathBuf,
    sink: PathBuf,
}

impl Agent {
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let http = self.http.clone();
        self.program.wait_for("the agent serves", START_WAIT_MAX, |_| {
            Ok(http.get("/v2/health/ready").ok().filter(|(status, _)| *status == 200).map(drop))
        })
    }

    /// Waits until the agent's own word on itself satisfies `wanted`.
    pub fn wait_for_status(
        &mut self,
        what: &str,
        bound: Duration,
        mut wanted: impl FnMut(&Telemetry) -> bool,
    ) -> Result<Telemetry> {
        let outcome = wait::until(what, bound, || {
            self.program.check_alive()?;
            let status = self.http.status()?;
            Ok(wanted(&status).then_some(status))
        });
        outcome
            .with_context(|| format!("last status: {:?}; the end of its log:\n{}", self.http.status(), self.log_end()))
    }

    /// Waits until it has a connection; a broker keeps commands for it from then on.
    pub fn wait_until_connected(&mut self) -> Result<()> {
        self.wait_for_status("it is connected", ONLINE_WAIT_MAX, |status| status.connections > 0)?;
        Ok(())
    }

    /// Waits until the device is online and a live cloud is behind the broker.
    pub fn wait_until_online(&mut self) -> Result<()> {
        self.wait_for_status("the device is online", ONLINE_WAIT_MAX, |status| status.link == LinkState::Online)?;
        Ok(())
    }

    /// Its file of answers, from the beginning.
    #[must_use]
    pub fn sink(&self) -> Sink {
        Sink::new(&self.sink)
    }

    /// All corrections in its file so far.
    pub fn corrections(&self) -> Result<Vec<Answer>> {
        let mut answers = self.sink().read_on()?;
        answers.retain(|answer| answer.revision > 0);
        Ok(answers)
    }

    /// Waits until its file shows a correction of `id`.
    pub fn wait_for_correction(&mut self, id: &CaseId, bound: Duration) -> Result<Answer> {
        let outcome = wait::until(&format!("a correction of {id} is in the file"), bound, || {
            self.program.check_alive()?;
            Ok(self.corrections()?.into_iter().find(|correction| correction.id == *id))
        });
        outcome.with_context(|| format!("status: {:?}; the end of its log:\n{}", self.http.status(), self.log_end()))
    }

    /// Everything it has logged since its first start.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// The end of its log, for an error.
    #[must_use]
    pub fn log_end(&self) -> String {
        self.program.log_end()
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// After [`Self::kill`] or [`Self::stop`], with the same configuration and state.
    pub fn start_again(&mut self) -> Result<()> {
        self.program.start()?;
        self.wait_until_ready()
    }

    /// Asks it to stop and waits for its orderly end.
    pub fn stop(&mut self) -> Result<()> {
        self.http.hang_up();
        let status = self.program.stop(STOP_WAIT_MAX)?;
        ensure!(status.success(), "hedge-agent ended with {status}; its log:\n{}", self.log_end());
        Ok(())
    }
}
