//! Shows the sorter one Fashion-MNIST picture after the other at a steady rate, and keeps every answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hedge_proto::Answer;
use hedge_tests::fashion::Fashion;
use hedge_tests::{Agent, Tally, wait};

/// Callers at the same time: enough that one waiting for the disk does not slow down the rest.
const CALLERS: usize = 8;

/// Answers on their way to the count. A second's worth and more; a full channel only slows the callers.
const ANSWERS_MAX: usize = 4096;

/// Posts until stopped.
pub(super) struct Poster {
    shared: Arc<Shared>,
    answers: Mutex<Receiver<(usize, Answer)>>,
    callers: Vec<JoinHandle<Result<()>>>,
    /// Which picture was posted how often.
    posted: Mutex<Vec<usize>>,
}

struct Shared {
    agent: hedge_tests::interface::Interface,
    fashion: Fashion,
    next: AtomicUsize,
    start: Instant,
    rate: u32,
    stop: AtomicBool,
}

impl Poster {
    pub(super) fn start(sorter: &Agent, fashion: Fashion, rate: u32) -> Result<Self> {
        let posted = Mutex::new(vec![0; fashion.len()]);
        let shared = Arc::new(Shared {
            agent: sorter.http.clone(),
            fashion,
            next: AtomicUsize::new(0),
            start: Instant::now(),
            rate,
            stop: AtomicBool::new(false),
        });
        let (sender, answers) = sync_channel(ANSWERS_MAX);
        let call = |_| {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            std::thread::Builder::new().name("poster".into()).spawn(move || shared.post(&sender))
        };
        let callers = (0..CALLERS).map(call).collect::<Result<_, _>>()?;
        Ok(Self { shared, answers: Mutex::new(answers), callers, posted })
    }

    /// Moves the answers so far into the count.
    pub(super) fn collect(&self, tally: &mut Tally) -> Result<()> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        for (picture, answer) in answers.try_iter() {
            tally.answered(&answer, Some(self.shared.fashion.label(picture)));
            posted[picture] += 1;
        }
        Ok(())
    }

    /// No further picture is posted.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Every caller has its answer and is gone.
    pub(super) fn is_idle(&self) -> bool {
        self.callers.iter().all(JoinHandle::is_finished)
    }

    /// How often each picture was posted, and the pictures; an error if a post failed.
    pub(super) fn finish(mut self, tally: &mut Tally) -> Result<(Vec<usize>, Fashion)> {
        self.stop();
        for caller in std::mem::take(&mut self.callers) {
            caller.join().map_err(|_| anyhow!("a poster panicked"))??;
        }
        self.collect(tally)?;
        let shared = Arc::into_inner(self.shared).ok_or_else(|| anyhow!("a poster is still at work"))?;
        Ok((self.posted.into_inner().unwrap_or_else(PoisonError::into_inner), shared.fashion))
    }
}

impl Shared {
    fn post(&self, answers: &SyncSender<(usize, Answer)>) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_secs_f64(number as f64 / f64::from(self.rate));
            wait::pause(due.saturating_sub(self.start.elapsed()));
            let picture = number % self.fashion.len();
            let answer = self.agent.post("pictures", "", "image/png", &self.fashion.png(picture)?)?;
            if answers.send((picture, answer)).is_err() {
                return Ok(()); // nobody counts any more
            }
        }
        Ok(())
    }
}
