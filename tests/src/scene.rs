//! What most tests begin with: a broker, a cloud that knows Fashion-MNIST, and a folder that is removed afterwards.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseFate, Outcome};
use tempfile::TempDir;

use crate::fashion::Fashion;
use crate::mosquitto::MosquittoSetup;
use crate::{Agent, AgentConfig, Cloud, CloudSetup, Mosquitto, Sink, Tally, wait};

/// Far longer than the longest ordinary wait between two dials (40 s), for a queue of some hundreds.
pub const DRAIN_WAIT_MAX: Duration = Duration::from_secs(150);

/// Broker and cloud. Devices are started by the test.
pub struct Scene {
    pub cloud: Cloud,
    /// For [`Cloud::start_again`].
    pub setup: CloudSetup,
    /// `None` when the cloud brought its own broker.
    pub mosquitto: Option<Mosquitto>,
    pub fashion: Fashion,
    // Last, so that the programs end before their folder goes.
    dir: TempDir,
}

impl Scene {
    /// With the broker inside the cloud's process.
    pub fn embedded() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let setup = CloudSetup::embedded(&["fashion-large"]);
        let cloud = Cloud::start(dir.path(), &setup)?;
        Ok(Self { cloud, setup, mosquitto: None, fashion: Fashion::load()?, dir })
    }

    /// With mosquitto, open to all.
    pub fn mosquitto() -> Result<Self> {
        Self::mosquitto_with(tempfile::tempdir()?, &MosquittoSetup::default())
    }

    /// With mosquitto, asking of devices what `setup` says; `dir` is where certificates already are.
    pub fn mosquitto_with(dir: TempDir, setup: &MosquittoSetup<'_>) -> Result<Self> {
        let mosquitto = Mosquitto::start_with(dir.path(), setup)?;
        let setup = CloudSetup::at(&mosquitto.url(), &["fashion-large"]);
        let cloud = Cloud::start(dir.path(), &setup)?;
        Ok(Self { cloud, setup, mosquitto: Some(mosquitto), fashion: Fashion::load()?, dir })
    }

    /// Like [`Self::mosquitto_with`], with a cloud that says the same about every picture at once, and where the
    /// broker is.
    pub fn stub(setup: &MosquittoSetup<'_>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mosquitto = Mosquitto::start_with(dir.path(), setup)?;
        let namespace = setup.far.map(|side| side.name().to_owned());
        let setup = CloudSetup { namespace, ..CloudSetup::stub(&mosquitto.url(), "fashion", "Coat") };
        let cloud = Cloud::start(dir.path(), &setup)?;
        Ok(Self { cloud, setup, mosquitto: Some(mosquitto), fashion: Fashion::load()?, dir })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where devices connect.
    pub fn broker(&self) -> Result<SocketAddr> {
        match &self.mosquitto {
            Some(mosquitto) => Ok(mosquitto.address()),
            None => self.cloud.broker_address(),
        }
    }

    /// A device that takes Fashion-MNIST pictures over HTTP, is hardly ever sure, and writes corrections to its file.
    #[must_use]
    pub fn doubter(&self, device: &str) -> AgentConfig {
        AgentConfig::new(self.dir(), device)
            .model_keeping("fashion-small", 1.0)
            .http_source("pictures")
            .corrections_file()
    }

    /// Posts picture `index`, notes the answer, and returns it.
    pub fn post(&self, agent: &Agent, index: usize, tally: &mut Tally) -> Result<Answer> {
        let answer = agent.http.post("pictures", "", "image/png", &self.fashion.png(index)?)?;
        tally.answered(&answer, Some(self.fashion.label(index)));
        Ok(answer)
    }

    /// Posts pictures from `index` on until one is deferred and stored.
    pub fn post_a_stored_one(&self, agent: &Agent, index: usize, tally: &mut Tally) -> Result<Answer> {
        for index in index..index + 50 {
            let answer = self.post(agent, index, tally)?;
            if answer.decision.outcome == Outcome::Defer && answer.case == Some(CaseFate::Stored) {
                return Ok(answer);
            }
        }
        anyhow::bail!("none of 50 pictures was deferred and stored")
    }
}

/// Waits until every promise is kept, then asserts that it was kept once.
pub fn all_arrive_once(agent: &mut Agent, sink: &mut Sink, tally: &mut Tally) -> Result<()> {
    let outcome = wait::until_true("every promised correction arrives", DRAIN_WAIT_MAX, || {
        agent.program().check_alive()?;
        read(sink, tally)?;
        Ok(tally.totals().missing == 0)
    });
    outcome.with_context(|| {
        let missing: Vec<_> = tally.missing().take(3).map(ToString::to_string).collect();
        let status = agent.http.status();
        format!(
            "{:?}; missing {missing:?}; status {status:?}; the end of its log:\n{}",
            tally.totals(),
            agent.log_end()
        )
    })?;
    let settled = "the queue is empty";
    agent.wait_for_status(settled, DRAIN_WAIT_MAX, |status| status.queue.waiting == 0 && status.queue.dead == 0)?;
    read(sink, tally)?;
    let totals = tally.totals();
    ensure!(totals.deferred > 0, "nothing was deferred: the test shows nothing");
    ensure!(totals.duplicates == 0 && totals.strangers == 0, "twice, or never asked for: {totals:?}");
    Ok(())
}

fn read(sink: &mut Sink, tally: &mut Tally) -> Result<()> {
    for answer in sink.read_on()?.iter().filter(|answer| answer.revision > 0) {
        tally.corrected(answer);
    }
    Ok(())
}
