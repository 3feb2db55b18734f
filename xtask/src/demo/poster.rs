//! Shows the sorter one Fashion-MNIST picture after the other at a steady rate, and keeps every answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hedge_proto::{Answer, Outcome};
use hedge_tests::fashion::Fashion;
use hedge_tests::{Agent, Tally, wait};

/// Callers at the same time: enough that one waiting for the disk does not slow down the rest.
const CALLERS: usize = 8;

/// Answers on their way to the count. A second's worth and more; a full channel only slows the callers.
const ANSWERS_MAX: usize = 4096;

/// Posts until stopped.
pub(super) struct Poster {
    shared: Arc<Shared>,
    answers: Mutex<Receiver<(usize, bool, Answer)>>,
    halves: Mutex<Halves>,
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
    /// From now on the pictures are noisy.
    noisy: AtomicBool,
}

/// Answers to pictures before and after they became noisy.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Halves {
    /// Answers, and how many of them were deferred.
    pub(super) before: (u64, u64),
    pub(super) after: (u64, u64),
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
            noisy: AtomicBool::new(false),
        });
        let (sender, answers) = sync_channel(ANSWERS_MAX);
        let call = |_| {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            std::thread::Builder::new().name("poster".into()).spawn(move || shared.post(&sender))
        };
        let callers = (0..CALLERS).map(call).collect::<Result<_, _>>()?;
        Ok(Self { shared, answers: Mutex::new(answers), halves: Mutex::default(), callers, posted })
    }

    /// Moves the answers so far into the count.
    pub(super) fn collect(&self, tally: &mut Tally) -> Result<()> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        for (picture, noisy, answer) in answers.try_iter() {
            let half = if noisy { &mut halves.after } else { &mut halves.before };
            *half = (half.0 + 1, half.1 + u64::from(answer.decision.outcome == Outcome::Defer));
            tally.answered(&answer, Some(self.shared.fashion.label(picture)));
            posted[picture] += 1;
        }
        Ok(())
    }

    /// The light goes.
    pub(super) fn shift(&self) {
        self.shared.noisy.store(true, Ordering::Relaxed);
    }

    pub(super) fn halves(&self) -> Halves {
        *self.halves.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn post(&self, answers: &SyncSender<(usize, bool, Answer)>) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_secs_f64(number as f64 / f64::from(self.rate));
            wait::pause(due.saturating_sub(self.start.elapsed()));
            let picture = number % self.fashion.len();
            let noisy = self.noisy.load(Ordering::Relaxed);
            let png =
                if noisy { self.fashion.noisy_png(picture, number as u64)? } else { self.fashion.png(picture)? };
            let answer = self.agent.post("pictures", "", "image/png", &png)?;
            if answers.send((picture, noisy, answer)).is_err() {
                return Ok(()); // nobody counts any more
            }
        }
        Ok(())
    }
}
