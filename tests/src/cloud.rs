//! A running `hedge-cloud`, with its own broker inside or in front of one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::interface::client;
use crate::program::{Program, Recipe};
use crate::{Scrape, address, places, wait};

/// From start to listening: two sessions of ONNX Runtime and a broker, in a debug build on a busy machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// Longer than the dashboard waits for a device.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(40);

/// What a cloud is started with.
#[derive(Debug, Clone)]
pub struct CloudSetup {
    /// A broker's URL; without one the cloud brings its own.
    pub broker: Option<String>,
    /// Where the dashboard listens.
    pub listen: SocketAddr,
    /// Names of bundles below `models/`.
    pub models: Vec<String>,
    pub instance: String,
    /// Further arguments, as typed.
    pub more: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The network namespace it runs in; its dashboard is then out of reach.
    pub namespace: Option<String>,
}

impl CloudSetup {
    /// With its own broker and these models.
    #[must_use]
    pub fn embedded(models: &[&str]) -> Self {
        Self {
            broker: None,
            listen: address::own(8080),
            models: models.iter().map(|&name| name.to_owned()).collect(),
            instance: "cloud-1".into(),
            more: Vec::new(),
            environment: Vec::new(),
            namespace: None,
        }
    }

    /// With these models, at a broker that runs already.
    #[must_use]
    pub fn at(broker: &str, models: &[&str]) -> Self {
        Self { broker: Some(broker.to_owned()), ..Self::embedded(models) }
    }

    /// At a broker that runs already, answering every case of `task` with `label`: no model, no waiting for one.
    #[must_use]
    pub fn stub(broker: &str, task: &str, label: &str) -> Self {
        Self { more: vec!["--answer-with".into(), format!("{task}={label}")], ..Self::at(broker, &[]) }
    }
}

/// A running cloud.
pub struct Cloud {
    program: Program,
    broker: String,
    dashboard: String,
    http: ureq::Agent,
}

impl Cloud {
    /// Starts it in a folder below `dir` and waits until it says that it is ready.
    pub fn start(dir: &Path, setup: &CloudSetup) -> Result<Self> {
        let dir = dir.join(&setup.instance);
        std::fs::create_dir_all(&dir)?;
        let mut recipe = Recipe::new("hedge-cloud", places::program("hedge-cloud")?, &dir)
            .argument("serve")
            .arguments(["--listen", &setup.listen.to_string()])
            .argument("--state-dir")
            .argument(dir.join("state"))
            .arguments(["--instance", &setup.instance])
            .arguments(&setup.more);
        recipe = match &setup.broker {
            Some(url) => recipe.arguments(["--broker", url]),
            None => recipe.arguments(["--embedded-broker", &address::own(1883).to_string()]),
        };
        for (name, value) in &setup.environment {
            recipe = recipe.variable(name, value);
        }
        for model in &setup.models {
            recipe = recipe.argument("--model").argument(places::model(model));
        }
        let mut program = recipe.inside(setup.namespace.as_deref()).start()?;
        let (broker, dashboard) = wait_until_ready(&mut program, setup)?;
        Ok(Self { program, broker, dashboard, http: client(REQUEST_WAIT_MAX) })
    }

    /// `mqtt://…`
    #[must_use]
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// The broker's address without its scheme.
    pub fn broker_address(&self) -> Result<SocketAddr> {
        let address = self.broker.strip_prefix("mqtt://").context("the broker is not on plain TCP")?;
        address.parse().with_context(|| format!("`{address}` is not an address"))
    }

    /// `http://…`
    #[must_use]
    pub fn dashboard(&self) -> &str {
        &self.dashboard
    }

    /// One document of the dashboard's interface, for example `/api/devices`.
    pub fn get(&self, path: &str) -> Result<Value> {
        let text = self.text(path)?;
        serde_json::from_str(&text).with_context(|| format!("GET {path} is not JSON: {text}"))
    }

    /// Asks for a change as the dashboard's own page does; the report, whatever it says.
    pub fn post(&self, path: &str, request: &Value) -> Result<Value> {
        let asking = self.http.post(format!("{}{path}", self.dashboard));
        let asking = asking.header("Origin", &self.dashboard).header("Hedge-Operate", "yes");
        let text = asking.content_type("application/json").send(request.to_string())?.body_mut().read_to_string()?;
        serde_json::from_str(&text).with_context(|| format!("POST {path} is not JSON: {text}"))
    }

    /// Its figures as a scraper sees them.
    pub fn scrape(&self) -> Result<Scrape> {
        Ok(Scrape::new(self.text("/metrics")?))
    }

    fn text(&self, path: &str) -> Result<String> {
        let mut answer = self.http.get(format!("{}{path}", self.dashboard)).call()?;
        let text = answer.body_mut().read_to_string()?;
        ensure!(answer.status() == 200, "GET {path}: {} {text}", answer.status());
        Ok(text)
    }

    pub fn check_alive(&mut self) -> Result<()> {
        self.program.check_alive()
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// After [`Self::kill`], with the same state and addresses.
    pub fn start_again(&mut self, setup: &CloudSetup) -> Result<()> {
        self.program.start()?;
        (self.broker, self.dashboard) = wait_until_ready(&mut self.program, setup)?;
        Ok(())
    }

    /// Asks it to stop and waits for its end.
    pub fn stop(&mut self, bound: Duration) -> Result<()> {
        let status = self.program.stop(bound)?;
        ensure!(status.success(), "hedge-cloud ended with {status}; its log:\n{}", self.program.log_end());
        Ok(())
    }

    /// Waits until it has said at the broker that it is there, which it does once all its subscriptions are granted. It
    /// is started before that.
    pub fn wait_until_connected(&self) -> Result<()> {
        wait::until_true("the cloud is connected to the broker", START_WAIT_MAX, || {
            Ok(self.scrape()?.value("hedge_cloud_broker_connected")? == 1.0)
        })
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
}

/// Reads the two lines the cloud prints once it is ready.
fn wait_until_ready(program: &mut Program, setup: &CloudSetup) -> Result<(String, String)> {
    program.wait_for("hedge-cloud says it is ready", START_WAIT_MAX, |program| {
        let output = program.output()?;
        // A line counts once it is whole.
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let value = |word: &str| whole.lines().find_map(|line| line.strip_prefix(word)).map(str::to_owned);
        let broker = setup.broker.clone().or_else(|| value("broker "));
        Ok(broker.zip(value("dashboard ")))
    })
}
