//! Decides when a program that runs gives too little: no picture at all, or the same one again and again.
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
    last: Option<Bytes>,
    /// When the last new picture came, or the program was started.
    new_at: Instant,
    /// Whether that was a picture.
    is_picture: bool,
    /// Any picture of this run.
    any: bool,
    /// Starts since the last new picture.
    in_vain: u32,
}

impl Silence {
    pub(super) fn new(quiet: Option<Quiet>) -> Self {
        let new_at = Instant::now();
        Self(Mutex::new(Heard { quiet, last: None, new_at, is_picture: false, any: false, in_vain: 0 }))
    }

    /// The program is started.
    pub(super) fn begin(&self) {
        let mut heard = self.heard();
        (heard.new_at, heard.is_picture, heard.any) = (Instant::now(), false, false);
    }

    /// A picture came. Whether it is new.
    pub(super) fn saw(&self, picture: &Bytes) -> bool {
        let mut heard = self.heard();
        heard.any = true;
        if heard.last.as_ref() == Some(picture) {
            return false;
        }
        let now = Instant::now();
        // The first one of a run says nothing of how often it brings one.
        let between = if heard.is_picture { now - heard.new_at } else { Duration::ZERO };
        if let Some(quiet) = &mut heard.quiet {
            quiet.saw(between);
        }
        heard.last = Some(picture.clone());
        (heard.new_at, heard.is_picture, heard.in_vain) = (now, true, 0);
        true
    }

    /// Waits until nothing new has come for too long, and says so.
    pub(super) async fn is_too_long(&self) -> String {
        loop {
            let Some(until) = self.until() else { return std::future::pending().await };
            sleep_until(until).await;
            // A new picture, or what was learnt from it, has moved it.
            if self.until().is_some_and(|until| until <= Instant::now()) {
                let mut heard = self.heard();
                heard.in_vain = heard.in_vain.saturating_add(1);
                let what = if heard.any { "the same picture again and again" } else { "no picture" };
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
