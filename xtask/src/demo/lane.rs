//! Shows the detecting camera's device frames of photos that it pans over, so that hardly two are alike.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hedge_inference::{ContentType, Region, cropped};
use hedge_proto::{Answer, CaseId};
use hedge_tests::interface::Interface;
use hedge_tests::{Agent, Tally, places, wait};

pub(super) const SOURCE: &str = "lane";

/// One with nothing to be found among them.
const PHOTOS: [&str; 5] = ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg"];

/// Frames of one sweep over a photo.
const STEPS: u32 = 12;

/// The share of a photo's sides that a frame shows.
const SHOWN: f64 = 0.7;

/// The longer side of a frame.
const SIDE_MAX: u32 = 640;

/// Slow enough to follow on the dashboard.
const EVERY: Duration = Duration::from_millis(500);

/// Answers on their way to the count: an hour's.
const ANSWERS_MAX: usize = 8192;

/// Posts until stopped.
pub(super) struct Lane {
    stop: Arc<AtomicBool>,
    frames: Arc<Vec<Vec<u8>>>,
    answers: Mutex<Receiver<(usize, Answer)>>,
    /// The samples that each frame became.
    ids: Mutex<Vec<Vec<CaseId>>>,
    camera: JoinHandle<Result<()>>,
}

impl Lane {
    pub(super) fn start(device: &Agent) -> Result<Self> {
        let frames = Arc::new(frames()?);
        let (stop, (sender, answers)) = (Arc::new(AtomicBool::new(false)), sync_channel(ANSWERS_MAX));
        let ids = Mutex::new(vec![Vec::new(); frames.len()]);
        let (interface, shown, stopped) = (device.http.clone(), frames.clone(), stop.clone());
        let camera = std::thread::Builder::new()
            .name("lane".into())
            .spawn(move || post(&interface, &shown, &stopped, &sender))?;
        Ok(Self { stop, frames, answers: Mutex::new(answers), ids, camera })
    }

    /// Moves the answers so far into the count.
    pub(super) fn collect(&self, tally: &mut Tally) {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for (frame, answer) in answers.try_iter() {
            tally.answered(&answer, None);
            ids[frame].push(answer.id);
        }
    }

    /// No further frame is posted.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// It has its last answer and is gone.
    pub(super) fn is_idle(&self) -> bool {
        self.camera.is_finished()
    }

    /// The frames, each with the samples that it became; an error if a post failed.
    pub(super) fn finish(self, tally: &mut Tally) -> Result<Vec<(Vec<CaseId>, Vec<u8>)>> {
        self.stop();
        while !self.is_idle() {
            self.collect(tally);
            wait::pause(Duration::from_millis(10));
        }
        self.collect(tally);
        self.camera.join().map_err(|_| anyhow!("the camera panicked"))??;
        let ids = self.ids.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(ids.into_iter().zip(self.frames.iter().cloned()).collect())
    }
}

/// There and back over every photo.
fn frames() -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for photo in PHOTOS {
        let bytes = std::fs::read(places::model("pictures").join(photo)).with_context(|| photo.to_owned())?;
        let content_type = ContentType::sniff(&bytes).with_context(|| format!("{photo} is no picture"))?;
        for step in 0..STEPS {
            let along = (1.0 - SHOWN) * f64::from(step) / f64::from(STEPS - 1);
            let region = Region::new(along, along / 2.0, SHOWN, SHOWN)?;
            frames.push(cropped(&content_type, &bytes, &region, SIDE_MAX)?);
        }
    }
    Ok(frames)
}

fn post(
    interface: &Interface,
    frames: &[Vec<u8>],
    stopped: &AtomicBool,
    answers: &SyncSender<(usize, Answer)>,
) -> Result<()> {
    let begun = Instant::now();
    for number in 0.. {
        wait::pause((EVERY * number).saturating_sub(begun.elapsed()));
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let frame = number as usize % frames.len();
        let answer = interface.post(SOURCE, "", "image/jpeg", &frames[frame])?;
        if answers.send((frame, answer)).is_err() {
            break; // nobody counts any more
        }
    }
    Ok(())
}
