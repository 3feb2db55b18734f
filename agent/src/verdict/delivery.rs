//! Brings answers to one sink, in a loop of its own, until the sink has confirmed them.
//!
//! A sink that is slow or gone holds up nobody: its corrections stay in the outbox. What every sink has confirmed is
//! forgotten. Local answers, for the sinks that want them, come from memory (`locals`). When a sink is offered again what
//! it has not taken is decided in core. A sink that cannot be used, is away or refuses something is a fault.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use hedge_core::clock::Moment;
use hedge_core::delivery::Patience;
use hedge_proto::{Answer, CaseKey};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BATCH_MAX, Sink, SinkError, Verdicts};
use crate::faults::Part;
use hedge_config::VerdictsConfig;
use hedge_outbox::{Entry, State};
use hedge_proto::SinkWants;

/// Without any news the disk and what the sink needs are looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

const LOOK_WAIT_MIN: Duration = Duration::from_millis(200);

/// What a sink needs of this machine is looked for so often while it is missing: a look costs a few system calls, and
/// folders wait for the file.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is said to be wrong changes at most so often: each change is told to the log, to systemd and over the link.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// How long what waits in memory may still be delivered when the agent stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// A case and the revision of its correction.
type Offered = (CaseKey, u32);

/// One sink's loop.
pub struct Delivery {
    verdicts: Verdicts,
    sink: Sink,
    patience: Patience<Offered>,
    begun: Instant,
    /// What was said to be wrong, and when.
    said: Option<(String, Instant)>,
}

/// Why nothing more is offered now.
enum Stopped {
    /// The sink is not there. What was wrong was said.
    Away,
    /// It takes nothing.
    Refusing,
}

impl Delivery {
    #[must_use]
    pub fn new(verdicts: Verdicts, sink: Sink) -> Self {
        Self { verdicts, sink, patience: Patience::default(), begun: Instant::now(), said: None }
    }

    /// Delivers until told to stop. What is under way then is offered again at the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut news = self.verdicts.news.subscribe();
        let (locals, number) = (self.verdicts.locals.clone(), self.sink.number);
        // How long to wait for the sink, if it must be waited for.
        let mut wait = self.look_and_deliver(&stop).await;
        loop {
            let next = wait.unwrap_or_else(|| self.next_look());
            wait = tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = news.changed(), if wait.is_none() => self.deliver_all(&stop).await,
                // Alone, because a look at the disk for each answer would cost more than the answer.
                () = locals.more(number), if wait.is_none() => self.deliver_locals_alone().await,
                () = sleep(next) => self.look_and_deliver(&stop).await,
            };
        }
        self.finish().await;
    }

    /// Delivers what is due, if the sink has what it needs.
    async fn look_and_deliver(&mut self, stop: &CancellationToken) -> Option<Duration> {
        if let Err(reason) = self.sink.look().await {
            self.say(&format!("{reason}; answers wait until it can be used"));
            return Some(LOOK_AGAIN);
        }
        self.deliver_all(stop).await
    }

    async fn deliver_all(&mut self, stop: &CancellationToken) -> Option<Duration> {
        while !stop.is_cancelled() {
            match self.deliver_batch().await {
                Ok(0) => {
                    self.patience.there();
                    self.well_if_nothing_is_aside();
                    break;
                }
                Ok(_) => {}
                Err(Stopped::Away | Stopped::Refusing) => return Some(self.wait()),
            }
        }
        None
    }

    async fn deliver_locals_alone(&mut self) -> Option<Duration> {
        match self.deliver_locals().await {
            Ok(()) => None,
            Err(Stopped::Away | Stopped::Refusing) => Some(self.wait()),
        }
    }

    fn wait(&mut self) -> Duration {
        let wait = self.patience.wait();
        if self.sink.is_file() { wait.min(LOOK_AGAIN) } else { wait }
    }

    fn next_look(&self) -> Duration {
        // Not at once: one whose turn it is and that cannot be read now would be looked at without pause.
        self.patience.next_turn(self.now()).map_or(LOOK_INTERVAL, |turn| turn.clamp(LOOK_WAIT_MIN, LOOK_INTERVAL))
    }

    /// Delivers the oldest corrections that are due. Returns how many were settled or refused.
    async fn deliver_batch(&mut self) -> Result<usize, Stopped> {
        let (now, at_once) = (self.now(), self.patience.at_once(BATCH_MAX));
        let all = self.verdicts.outbox.undelivered(self.sink.number, at_once + self.patience.aside());
        let due = all.into_iter().filter(|entry| self.patience.may_offer(offered(entry), now)).take(at_once);
        let due: Vec<Entry> = due.collect();
        // Whatever is due was answered locally before, so that answer is here by now.
        if let Err(Stopped::Away) = self.deliver_locals().await {
            return Err(Stopped::Away);
        }
        let (mut settled, mut wanted) = (Vec::new(), Vec::new());
        for entry in due {
            match self.verdicts.correction(entry.key).await {
                Ok(Some(answer)) if self.sink.wanted.takes(&answer) => wanted.push((entry, Arc::new(answer))),
                Ok(_) => settled.push(entry),
                // It stays; the next look tries again.
                Err(error) => tracing::debug!(%error, "a correction cannot be read now"),
            }
        }
        let answers: Vec<Arc<Answer>> = wanted.iter().map(|(_, answer)| answer.clone()).collect();
        let (delivered, stopped_by) = self.sink.send_all(&answers).await;
        let mut wanted = wanted.into_iter().map(|(entry, _)| entry);
        for entry in wanted.by_ref().take(delivered) {
            self.taken(Some(offered(&entry)));
            settled.push(entry);
        }
        if delivered > 0 {
            self.well_if_nothing_is_aside();
        }
        let refused = wanted.next().as_ref().map(offered);
        let stopped = self.weigh(stopped_by, refused);
        let confirmed = try_join_all(settled.iter().map(|entry| self.confirm(entry))).await;
        if let Err(error) = confirmed {
            // The sink has it; that it has is noted once the disk takes it, and it may be offered again.
            tracing::warn!(sink = %self.sink.name, error, "what was delivered cannot be noted now");
            return Err(Stopped::Away);
        }
        let refused = usize::from(matches!(stopped, Ok(true)));
        stopped.map(|_| settled.len() + refused)
    }

    /// Delivers the local answers that are there: one comes before its correction.
    async fn deliver_locals(&mut self) -> Result<(), Stopped> {
        let (locals, number) = (self.verdicts.locals.clone(), self.sink.number);
        // Not without end: corrections must have their turn.
        let mut left = locals.waiting(number);
        while left > 0 {
            let answers = locals.first(number, left.min(BATCH_MAX));
            if answers.is_empty() {
                return Ok(());
            }
            let (delivered, stopped_by) = self.sink.send_all(&answers).await;
            (0..delivered).for_each(|_| self.taken(None));
            if delivered > 0 {
                self.well_if_nothing_is_aside();
            }
            let stopped = self.weigh(stopped_by, None);
            // One that is refused is given up: nothing but memory holds it, and the next may be taken.
            let given_up = usize::from(matches!(stopped, Ok(true) | Err(Stopped::Refusing)));
            if given_up > 0 {
                self.count(|sink| sink.lost += 1);
            }
            locals.done(number, delivered + given_up);
            stopped?;
            left = left.saturating_sub(delivered + given_up);
        }
        Ok(())
    }

    /// What to do after a delivery: `Ok(true)` if one was refused and the next may be offered.
    fn weigh(&mut self, stopped_by: Result<(), SinkError>, delivery: Option<Offered>) -> Result<bool, Stopped> {
        match stopped_by {
            Ok(()) => Ok(false),
            Err(SinkError::Refused(reason)) => {
                self.count(|sink| sink.refused += 1);
                self.patience.refused(delivery, self.now());
                self.say(&format!("{reason}; a refused correction is kept and offered again, less and less often"));
                if self.patience.takes_nothing() { Err(Stopped::Refusing) } else { Ok(true) }
            }
            Err(SinkError::Away(reason)) => {
                // Most are away for a moment only.
                if self.patience.has_waited() || self.sink.is_file() {
                    self.say(&format!("{reason}; answers wait"));
                }
                Err(Stopped::Away)
            }
            Err(SinkError::Offline) => Err(Stopped::Away),
        }
    }

    fn taken(&mut self, delivery: Option<Offered>) {
        self.patience.taken(delivery);
        self.count(|sink| sink.delivered += 1);
    }

    fn count(&self, change: impl FnOnce(&mut hedge_proto::SinkFigures)) {
        self.verdicts.figures.sink(&self.sink.name, change);
    }

    /// Notes what is wrong, unless something was said a moment ago.
    fn say(&mut self, reason: &str) {
        let said_lately = |(_, at): &(String, Instant)| at.elapsed() < SAY_AGAIN_AFTER;
        if self.said.as_ref().is_some_and(|said| said.0 == reason || said_lately(said)) {
            return;
        }
        self.said = Some((reason.to_owned(), Instant::now()));
        let folders_wait = self.sink.is_file() && self.sink.wanted == SinkWants::All;
        let waits = if folders_wait { ", and so do the pictures of folders" } else { "" };
        let table = VerdictsConfig::table(&self.sink.name).join(".");
        self.verdicts.faults.set(&self.part(), format!("{table}: {reason}{waits}"));
    }

    /// The sink is there; it is well unless it refuses something that is still wanted.
    fn well_if_nothing_is_aside(&mut self) {
        if self.said.is_none() {
            return;
        }
        let outbox = self.verdicts.outbox.clone();
        self.patience.retain(|(key, revision)| {
            let state = outbox.lookup(key).map(|entry| entry.state);
            matches!(state, Some(State::Answered { revision: now, .. }) if now == revision)
        });
        if self.patience.aside() == 0 && !self.patience.takes_nothing() {
            self.said = None;
            self.verdicts.faults.clear(&self.part());
        }
    }

    fn part(&self) -> Part {
        Part::Sink(self.sink.name.clone())
    }

    fn now(&self) -> Moment {
        Moment(0) + self.begun.elapsed()
    }

    async fn confirm(&self, entry: &Entry) -> Result<(), String> {
        let State::Answered { revision, .. } = entry.state else { return Ok(()) };
        let outbox = &self.verdicts.outbox;
        outbox.delivered(entry.key, revision, self.sink.number).await.map_err(|error| error.to_string())?;
        self.verdicts.forget_if_delivered(entry.key).await;
        Ok(())
    }

    /// Brings out what waits in memory, and says what could not be.
    async fn finish(mut self) {
        let number = self.sink.number;
        if self.verdicts.locals.waiting(number) > 0 {
            drop(timeout(STOP_WAIT, self.deliver_locals()).await);
            let left = self.verdicts.locals.waiting(number);
            if left > 0 {
                tracing::warn!(
                    sink = %self.sink.name,
                    left,
                    "local answers were not delivered when this sink stopped"
                );
            }
        }
    }
}

fn offered(entry: &Entry) -> Offered {
    let revision = match entry.state {
        State::Answered { revision, .. } => revision,
        _ => 0,
    };
    (entry.key, revision)
}

#[cfg(test)]
mod tests;
