//! Decides when a program that runs gives too little: no sample at all, or the same one again and again.
//!
//! Sensors are noisy, so two pictures of a camera never agree in every byte; when they do for long, driver or decoder
//! hang and repeat what they have. Starting the program again often heals both. One that brings nothing new after it
//! was started again is given twice the time, so that a picture that may stand still costs little.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hedge_core::clock::doubled;
use tokio::time::{Instant, sleep_until};

use hedge_config::Quiet;

/// The longest time that is given to a program that was started again in vain.
const GIVEN_MAX: Duration = Duration::from_secs(3600);

pub(super) struct Silence(Mutex<Heard>);

struct Heard {
    quiet: Option<Quiet>,
    /// What it gives, in words.
    noun: &'static str,
    /// One that equals the one before is as good as any.
    repeats: bool,
    last: Option<Bytes>,
    /// When the last new sample came, or the program was started.
    new_at: Instant,
    /// Whether that was a sample.
    is_sample: bool,
    /// Any sample of this run.
    any: bool,
    /// Starts since the last new sample.
    in_vain: u32,
}

impl Silence {
    pub(super) fn new(quiet: Option<Quiet>, noun: &'static str, repeats: bool) -> Self {
        let new_at = Instant::now();
        let last = None;
        Self(Mutex::new(Heard { quiet, noun, repeats, last, new_at, is_sample: false, any: false, in_vain: 0 }))
    }

    /// The program is started.
    pub(super) fn begin(&self) {
        let mut heard = self.heard();
        (heard.new_at, heard.is_sample, heard.any) = (Instant::now(), false, false);
    }

    /// A sample came. Whether it is new.
    pub(super) fn saw(&self, sample: &Bytes) -> bool {
        let mut heard = self.heard();
        heard.any = true;
        if !heard.repeats && heard.last.as_ref() == Some(sample) {
            return false;
        }
        let now = Instant::now();
        // The first one of a run says nothing of how often it brings one.
        let between = if heard.is_sample { now - heard.new_at } else { Duration::ZERO };
        if let Some(quiet) = &mut heard.quiet {
            quiet.saw(between);
        }
        heard.last = Some(sample.clone());
        (heard.new_at, heard.is_sample, heard.in_vain) = (now, true, 0);
        true
    }

    /// Waits until nothing new has come for too long, and says so.
    pub(super) async fn is_too_long(&self) -> String {
        loop {
            let Some(until) = self.until() else { return std::future::pending().await };
            sleep_until(until).await;
            // A new sample, or what was learnt from it, has moved it.
            if self.until().is_some_and(|until| until <= Instant::now()) {
                let mut heard = self.heard();
                heard.in_vain = heard.in_vain.saturating_add(1);
                let noun = heard.noun;
                let what = if heard.any { format!("the same {noun} again and again") } else { format!("no {noun}") };
                return format!("it gave {what} for {} s and was ended", heard.new_at.elapsed().as_secs());
            }
        }
    }

    fn until(&self) -> Option<Instant> {
        let heard = self.heard();
        let after = heard.quiet?.after;
        let longer = doubled(after, heard.in_vain, GIVEN_MAX);
        Some(heard.new_at + longer.max(after))
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
