//! Waits for something to become true, and says what did not when the time is over.
//!
//! The only place where the harness sleeps. A test that needs a pause instead of a condition is missing a condition.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: a program's start is noticed at once, and the looking costs nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The value of the first `probe` that has one; an error when `probe` fails or `bound` passes.
pub fn until<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {} s", bound.as_secs_f32());
        }
        pause(LOOK_EVERY);
    }
}

/// Waits until `probe` is true.
pub fn until_true(what: &str, bound: Duration, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, bound, || Ok(probe()?.then_some(())))
}

/// Lets time pass, for whatever is paced by design: a camera's frames, a poster's rate, a measured outage.
pub fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the harness's one sleep; see the module's first lines")]
    std::thread::sleep(time);
}
