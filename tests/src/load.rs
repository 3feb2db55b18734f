//! Applications at work: pictures posted at a steady rate, whatever becomes of the answers.
//!
//! The loop is open: a post is due at its time even if earlier ones are late, and how long an answer took is
//! measured from when its post was due. A stuck agent cannot hide by slowing down those who ask it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hedge_proto::Answer;

use crate::fashion::Fashion;
use crate::interface::Interface;
use crate::wait;

/// Callers at the same time: enough that some may wait for the disk and the rate still holds.
const CALLERS: usize = 8;

/// Outcomes on their way to the count: minutes' worth. A full channel only slows the callers.
const OUTCOMES_MAX: usize = 65_536;

/// One post and what came of it.
#[derive(Debug)]
pub struct Posted {
    pub due: Instant,
    /// From when it was due to its answer.
    pub took: Duration,
    pub picture: usize,
    /// An error is an agent that was gone, or went while it had the sample.
    pub outcome: Result<Answer>,
}

/// Posts until stopped or dropped.
pub struct Load {
    shared: Arc<Shared>,
    outcomes: Mutex<Receiver<Posted>>,
    callers: Vec<JoinHandle<()>>,
}

struct Shared {
    agent: Interface,
    fashion: Fashion,
    per_s: f64,
    start: Instant,
    next: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// To the source `pictures` of one agent.
    pub fn start(agent: &Interface, per_s: f64) -> Result<Self> {
        let shared = Arc::new(Shared {
            agent: agent.clone(),
            fashion: Fashion::load()?,
            per_s,
            start: Instant::now(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let (sender, outcomes) = sync_channel(OUTCOMES_MAX);
        let call = |_| {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            std::thread::Builder::new().name("caller".into()).spawn(move || shared.call(&sender))
        };
        let callers = (0..CALLERS).map(call).collect::<Result<_, _>>()?;
        Ok(Self { shared, outcomes: Mutex::new(outcomes), callers })
    }

    /// What came of the posts since the last call.
    pub fn collect(&self) -> Vec<Posted> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).try_iter().collect()
    }

    /// Ends it and returns what [`Self::collect`] has not.
    pub fn stop(mut self) -> Result<Vec<Posted>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for caller in std::mem::take(&mut self.callers) {
            caller.join().map_err(|_| anyhow!("a caller panicked"))?;
        }
        Ok(self.collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn call(&self, outcomes: &SyncSender<Posted>) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.start + Duration::from_secs_f64(number as f64 / self.per_s);
            wait::pause(due.saturating_duration_since(Instant::now()));
            let picture = number % self.fashion.len();
            let outcome = self.fashion.png(picture).and_then(|png| self.agent.post("pictures", "", "image/png", &png));
            if outcomes.send(Posted { due, took: due.elapsed(), picture, outcome }).is_err() {
                return; // nobody counts any more
            }
        }
    }
}
