//! `kill -9` of agent, broker and cloud in any mix, while pictures are posted and corrections come in.
//!
//! The oracle counts outside the programs, by id: a case whose answer said `stored` must be corrected, and stand in
//! the JSON-lines file once a revision. A webhook may hear a correction again, under the same key.
//!
//! A round is one set of kills; the default is CI's share. `cargo xtask soak kills_in_any_mix_lose_nothing --rounds
//! 300` is the whole.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, CaseId};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::webhook::Webhook;
use hedge_tests::{Agent, Load, Mosquitto, Posted, Scene, Sink, Tally, skip, wait};

/// About two seconds each.
const ROUNDS: u32 = 15;

const POSTS_PER_S: f64 = 15.0;

/// Two dials at the longest wait, and one that is stuck; a queue of some hundreds drains in seconds.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(240);

/// The webhook fails every so often and is then waited for, so in a long run it falls behind; it catches up at more
/// than twice this rate.
const CATCH_UP_PER_ROUND: Duration = Duration::from_secs(1);

/// From a kill to the start: nothing, or long enough that the others notice.
const DOWN_MS_MAX: u64 = 700;

/// Between rounds: kills hit all stages of a start and of a case's life.
const CALM_MS_MAX: u64 = 1500;

#[test]
fn with_a_broker_that_keeps_its_memory() -> Result<()> {
    kills_lose_nothing(true)
}

#[test]
fn with_a_broker_that_loses_its_memory() -> Result<()> {
    kills_lose_nothing(false)
}

fn kills_lose_nothing(broker_keeps: bool) -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut chance = Chance::new();
    let mut scene = Scene::stub(&MosquittoSetup { persistent: true, ..Default::default() })?;
    let webhook = Webhook::start()?;
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?));
    // Only `stored` is promised to survive; here nobody is content with `pending`.
    let config = config.section("[outbox]\nstore_wait_ms = 20_000");
    let mut agent = config.section(&format!("[verdicts.webhook]\nurl = \"{}\"", webhook.url())).start()?;
    let load = Load::start(&agent.http, POSTS_PER_S)?;
    let mut count = Count::new(agent.sink());
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        wait::pause(Duration::from_millis(chance.within(0..CALM_MS_MAX)));
        let kills = Kills::draw(&mut chance, broker_keeps);
        kills.carry_out(&mut agent, &mut scene).with_context(|| format!("round {round}: {kills:?}"))?;
        count.note(load.collect());
    }
    count.note(load.stop()?);
    let drain_wait_max = DRAIN_WAIT_MAX + CATCH_UP_PER_ROUND * rounds;
    let outcome = wait::until_true("every stored case is corrected everywhere", drain_wait_max, || {
        agent.program().check_alive()?;
        count.read()?;
        Ok(count.tally.totals().missing == 0 && count.stored.iter().all(|id| webhook.has(&format!("{id}/1"))))
    });
    outcome.with_context(|| format!("{}; {:?}; {}", count.summary(), agent.http.status(), agent.log_end()))?;
    agent.wait_for_status("the queue is empty", DRAIN_WAIT_MAX, |status| {
        status.queue.waiting == 0 && status.queue.dead == 0
    })?;
    count.read()?;
    let (keys, repeated) = webhook.check()?;
    eprintln!("{rounds} rounds: {}; webhook: {keys} corrections, {repeated} of them more than once", count.summary());
    count.check(rounds)?;
    agent.stop()
}

/// Who is killed, and for how long.
#[derive(Debug)]
struct Kills {
    agent: bool,
    broker: bool,
    cloud: bool,
    broker_keeps: bool,
    agent_first: bool,
    down: Duration,
}

impl Kills {
    fn draw(chance: &mut Chance, broker_keeps: bool) -> Self {
        // All but the empty set, each as likely.
        let mix = chance.within(1..8);
        Self {
            agent: mix & 1 != 0,
            broker: mix & 2 != 0,
            cloud: mix & 4 != 0,
            broker_keeps,
            agent_first: chance.happens(50),
            down: Duration::from_millis(chance.within(0..DOWN_MS_MAX)),
        }
    }

    fn carry_out(&self, agent: &mut Agent, scene: &mut Scene) -> Result<()> {
        if self.agent {
            agent.kill()?;
        }
        if self.broker {
            broker(scene)?.kill()?;
        }
        if self.cloud {
            scene.cloud.kill()?;
        }
        wait::pause(self.down);
        if self.agent && self.agent_first {
            agent.start_again()?;
        }
        if self.broker {
            let broker = broker(scene)?;
            if !self.broker_keeps {
                broker.wipe()?;
            }
            broker.start_again()?;
        }
        if self.cloud {
            let setup = scene.setup.clone();
            scene.cloud.start_again(&setup)?;
        }
        if self.agent && !self.agent_first {
            agent.start_again()?;
        }
        Ok(())
    }
}

fn broker(scene: &mut Scene) -> Result<&mut Mosquitto> {
    scene.mosquitto.as_mut().context("started with mosquitto")
}

/// The oracle.
struct Count {
    tally: Tally,
    stored: Vec<CaseId>,
    sink: Sink,
    /// Posts that ended without an answer: the agent was gone, or went while it had the sample.
    unanswered: u64,
}

impl Count {
    fn new(sink: Sink) -> Self {
        Self { tally: Tally::default(), stored: Vec::new(), sink, unanswered: 0 }
    }

    fn note(&mut self, posts: Vec<Posted>) {
        for post in posts {
            match post.outcome {
                Ok(answer) => {
                    self.tally.answered(&answer, None);
                    if answer.case == Some(CaseFate::Stored) {
                        self.stored.push(answer.id);
                    }
                }
                Err(_) => self.unanswered += 1,
            }
        }
    }

    fn read(&mut self) -> Result<()> {
        for correction in self.sink.read_on()?.iter().filter(|answer| answer.revision > 0) {
            self.tally.corrected(correction);
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let missing: Vec<_> = self.tally.missing().take(3).map(ToString::to_string).collect();
        let (stored, unanswered) = (self.stored.len(), self.unanswered);
        format!("{stored} stored, {unanswered} posts unanswered, {:?}, missing {missing:?}", self.tally.totals())
    }

    fn check(&self, rounds: u32) -> Result<()> {
        let totals = self.tally.totals();
        ensure!(totals.missing == 0 && totals.duplicates == 0, "lost, or twice in the file: {}", self.summary());
        // A sample whose caller was cut off may have been stored all the same.
        ensure!(totals.strangers <= self.unanswered, "nobody asked for these: {}", self.summary());
        ensure!(self.stored.len() >= rounds as usize, "hardly anything was stored: the test shows nothing");
        Ok(())
    }
}
