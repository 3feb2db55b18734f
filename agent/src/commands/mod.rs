//! The desk: one task that takes commands, has them carried out one after the other, and says what came of them.
//!
//! Which command runs is decided in core. Here its intent reaches the disk before its effect and before the MQTT
//! acknowledgement, and its result before the reply. A reply that the broker did not acknowledge is published again.

mod effects;
mod journal;
mod replies;
#[cfg(test)]
mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) mod lines {
    pub use super::journal::journal;
}

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::control::commands::{Admission, Arrived, Book, Intent, Record, Refusal, ReplyTo, bounded};
use hedge_proto::{CommandOutcome, DeviceId, Order, Reply, Topics};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::effects::Effects;
use self::journal::Journal;
use self::replies::{Replies, Says};
use crate::audit::{Audit, Kind, Noted};
use crate::clock::Clock;
use crate::link::LinkView;
use crate::uplink::Command;

/// Whether the journal of commands in `dir` can be used.
pub(crate) fn journal_opens(dir: &Path) -> std::io::Result<()> {
    Journal::open(dir).map(drop)
}

/// Messages that may wait for the desk; each takes two writes to the disk at most.
const MESSAGES_MAX: usize = 64;

/// Commands that may wait for their turn, those that are not kept included.
const WAITING_MAX: usize = 64;

/// A command that takes longer has failed. The slowest writes to disk and waits for a picture.
const EFFECT_WAIT_MAX: Duration = Duration::from_secs(60);

/// Brings messages to the desk. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Desk {
    messages: mpsc::Sender<Handed>,
    stopping: Arc<AtomicBool>,
}

/// Where the desk finds them.
pub(crate) struct Inbox {
    arrived: mpsc::Receiver<Handed>,
    stopping: Arc<AtomicBool>,
}

/// A message, and who waits until it is in good hands.
type Handed = (Command, oneshot::Sender<()>);

impl Desk {
    #[must_use]
    pub(crate) fn new() -> (Self, Inbox) {
        let (messages, arrived) = mpsc::channel(MESSAGES_MAX);
        let stopping = Arc::new(AtomicBool::new(false));
        (Self { messages, stopping: stopping.clone() }, Inbox { arrived, stopping })
    }

    /// Done when the message is decided on and, if it begins, on disk. False: the agent is stopping, and the message
    /// must come again.
    pub(crate) async fn take(&self, message: Command) -> bool {
        let (taken, waiting) = oneshot::channel();
        if self.messages.send((message, taken)).await.is_ok() && waiting.await.is_ok() {
            return true;
        }
        let stopping = self.stopping.load(Ordering::Acquire);
        if !stopping {
            // A message that ends the desk must not come again for ever.
            tracing::error!("commands are not carried out any more; restart the agent");
        }
        !stopping
    }
}

/// Carries an order out.
pub(crate) trait CarriesOut: Clone + Send + Sync + 'static {
    /// The result, or why it could not be done. A restart never returns.
    fn carry_out(&self, order: Order) -> impl Future<Output = Result<Value, String>> + Send;
}

/// A command whose turn comes.
struct Turn {
    order: Order,
    command: String,
    by: Option<String>,
    /// None for one that is not kept.
    id: Option<String>,
    reply_to: ReplyTo,
}

/// The task that owns the commands.
pub(crate) struct DeskTask<E, S> {
    clock: Clock,
    journal: Arc<Mutex<Journal>>,
    book: Book,
    audit: Audit,
    effects: E,
    replies: Replies<S>,
    waiting: VecDeque<Turn>,
    running: Option<(Turn, JoinHandle<Result<Value, String>>)>,
}

/// What a desk is made from.
pub(crate) struct DeskSetup<E, S> {
    pub device: DeviceId,
    pub topics: Topics,
    pub clock: Clock,
    pub audit: Audit,
    pub effects: E,
    pub says: S,
}

impl<E: CarriesOut, S: Says> DeskTask<E, S> {
    /// Reads the journal in `dir`. With one that cannot be used, commands that change something are refused, and the
    /// second value says why.
    pub(crate) fn open(dir: &Path, setup: DeskSetup<E, S>) -> std::io::Result<(Self, Option<String>)> {
        let (journal, found) = match Journal::open(dir) {
            Ok(opened) => opened,
            Err(error) => {
                let why = format!("the journal of commands in {} cannot be used: {error}", dir.display());
                return Ok((Self::without_journal(dir, &why, setup)?, Some(why)));
            }
        };
        if found.torn_bytes > 0 {
            tracing::info!(bytes = found.torn_bytes, "an unfinished record of a command was cut off");
        }
        if found.damaged_lines > 0 {
            tracing::warn!(lines = found.damaged_lines, "damaged records of commands were set aside");
        }
        let mut desk = Self::with(journal, setup);
        found.records.into_iter().for_each(|record| desk.book.replay(record));
        Ok((desk, None))
    }

    /// Without a folder: commands that change something are refused, because they might run twice.
    pub(crate) fn without_journal(dir: &Path, why: &str, setup: DeskSetup<E, S>) -> std::io::Result<Self> {
        Ok(Self::with(Journal::closed(dir, why)?, setup))
    }

    fn with(journal: Journal, setup: DeskSetup<E, S>) -> Self {
        let DeskSetup { device, topics, clock, audit, effects, says } = setup;
        Self {
            book: Book::new(device, topics),
            clock,
            journal: Arc::new(Mutex::new(journal)),
            audit,
            effects,
            replies: Replies::new(says),
            waiting: VecDeque::new(),
            running: None,
        }
    }

    /// Serves until told to stop. What is under way then is ended by the next start.
    pub(crate) async fn run(mut self, mut inbox: Inbox, mut link: watch::Receiver<LinkView>, stop: CancellationToken) {
        for (intent, reply) in self.book.interrupt() {
            let outcome = reply.outcome.text();
            tracing::warn!(id = intent.id, command = intent.command, outcome, "a command of an earlier run");
            self.note(&intent.command, intent.by.as_deref(), &reply).await;
            self.write_end(reply).await;
        }
        let mut connections = link.borrow_and_update().connections;
        loop {
            self.begin_next();
            self.replies.say_all(&self.book);
            tokio::select! {
                () = stop.cancelled() => {
                    inbox.stopping.store(true, Ordering::Release);
                    return;
                }
                message = inbox.arrived.recv() => match message {
                    Some((message, taken)) => {
                        self.take(message).await;
                        // Whoever waited may be gone with the connection; the message then comes again.
                        taken.send(()).ok();
                    }
                    None => return,
                },
                ended = ended(&mut self.running) => self.end(ended).await,
                said = self.replies.next() => self.said(said).await,
                Ok(()) = link.changed() => {
                    let now = link.borrow_and_update().connections;
                    if std::mem::replace(&mut connections, now) != now {
                        self.replies.try_again();
                    }
                }
            }
        }
    }

    async fn take(&mut self, message: Command) {
        let captured = self.clock.captured();
        let arrived = Arrived {
            payload: &message.payload,
            retained: message.retained,
            correlation: message.correlation.as_deref(),
            response_topic: message.response_topic.as_deref(),
            by: message.by.as_deref(),
            rest: message.rest,
        };
        match self.book.admit(self.clock.now(), captured.wall_ms.filter(|_| captured.synced), &arrived) {
            Admission::Begin { intent, order } => self.begin(intent, order).await,
            Admission::Look { order, command, by, reply_to } => {
                self.enqueue(Turn { order, command, by, id: None, reply_to }).await;
            }
            Admission::Again { id } => self.replies.again(id),
            Admission::Refuse(refusal) => self.refuse(refusal).await,
            Admission::Ignore(why) => tracing::debug!(why, "a command gets no reply"),
        }
    }

    async fn begin(&mut self, intent: Intent, order: Order) {
        let Intent { id, command, by, reply_to, .. } = intent.clone();
        let turn = Turn { order, command, by, id: Some(id), reply_to };
        match self.write(Record::Began(intent.clone()), true).await {
            Ok(()) => {
                self.book.begin(intent);
                self.waiting.push_back(turn);
            }
            // A device with a full disk can still be asked how it is.
            Err(error) if turn.order.changes_nothing() => {
                tracing::warn!(%error, "the journal of commands cannot be written");
                self.enqueue(Turn { id: None, ..turn }).await;
            }
            Err(error) => {
                let reason = format!("the device's disk refuses to note it ({error}), so it might run twice");
                let (id, command) = (Some(intent.id), Some(intent.command));
                self.refuse(Refusal { id, command, by: intent.by, reply_to: intent.reply_to, reason }).await;
            }
        }
    }

    /// A command that is not kept.
    async fn enqueue(&mut self, turn: Turn) {
        if self.waiting.len() < WAITING_MAX {
            return self.waiting.push_back(turn);
        }
        let reason = format!("{WAITING_MAX} commands are waiting; give it again later");
        let Turn { command, by, reply_to, .. } = turn;
        self.refuse(Refusal { id: None, command: Some(command), by, reply_to, reason }).await;
    }

    async fn refuse(&mut self, refusal: Refusal) {
        let Refusal { id, command, by, reply_to, reason } = refusal;
        tracing::info!(id, command, reason, "a command was refused");
        let name = command.clone().unwrap_or_else(|| "unreadable".to_owned());
        let reply = Reply { id, command, outcome: CommandOutcome::Refused, reason: Some(reason), result: Value::Null };
        self.note(&name, by.as_deref(), &reply).await;
        self.replies.say_once(reply_to, bounded(reply));
    }

    fn begin_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(turn) = self.waiting.pop_front() else { return };
        let (effects, order) = (self.effects.clone(), turn.order.clone());
        let effect = tokio::spawn(async move {
            match tokio::time::timeout(EFFECT_WAIT_MAX, effects.carry_out(order)).await {
                Ok(done) => done,
                Err(_) => Err(format!("it was not done within {} s; it may still be", EFFECT_WAIT_MAX.as_secs())),
            }
        });
        self.running = Some((turn, effect));
    }

    async fn end(&mut self, (turn, done): (Turn, Result<Value, String>)) {
        let (outcome, reason, result) = match done {
            Ok(result) => (CommandOutcome::Done, None, result),
            Err(reason) => (CommandOutcome::Failed, Some(reason), Value::Null),
        };
        tracing::info!(id = turn.id, command = turn.command, reason, "a command has ended: {}", outcome.text());
        let Turn { command, by, id, reply_to, .. } = turn;
        let reply = bounded(Reply { id: id.clone(), command: Some(command.clone()), outcome, reason, result });
        self.note(&command, by.as_deref(), &reply).await;
        match id {
            Some(id) => {
                self.write_end(reply.clone()).await;
                self.book.end(&id, reply);
            }
            None => self.replies.say_once(reply_to, reply),
        }
    }

    async fn write_end(&self, reply: Reply) {
        let Some(id) = reply.id.clone() else { return };
        if let Err(error) = self.write(Record::Ended { id, reply }, true).await {
            // It is said all the same: after a crash a repeat would then be told `interrupted`, and still not run.
            tracing::error!(%error, "the result of a command could not be written; it is kept in memory");
        }
    }

    async fn said(&mut self, said: Option<String>) {
        let Some(id) = said else { return };
        self.book.said(&id);
        // Lost in a crash it is said once more.
        if let Err(error) = self.write(Record::Said { id }, false).await {
            tracing::debug!(%error, "the journal of commands cannot be written");
        }
    }

    async fn write(&self, record: Record, durable: bool) -> std::io::Result<()> {
        let journal = self.journal.clone();
        // Nobody else locks it but the threads started here, one after the other.
        let kept = self.book.records_max();
        let rewrite = journal.lock().unwrap_or_else(PoisonError::into_inner).wants_rewrite(kept);
        let anew = rewrite.then(|| self.book.records());
        let written = tokio::task::spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(records) = anew {
                journal.rewrite(&records)?;
            }
            journal.append(&record, durable)
        });
        written.await.map_err(std::io::Error::other)?
    }

    async fn note(&self, command: &str, by: Option<&str>, reply: &Reply) {
        let entry = Noted::new(Kind::Command, command, reply.outcome.text());
        let by = by.map(ToOwned::to_owned);
        self.audit.note(Noted { by, id: reply.id.clone(), reason: reply.reason.clone(), ..entry }).await;
    }
}

/// Waits for the running command, if there is one.
async fn ended(running: &mut Option<(Turn, JoinHandle<Result<Value, String>>)>) -> (Turn, Result<Value, String>) {
    let Some((_, effect)) = running.as_mut() else { return std::future::pending().await };
    let done = effect.await.unwrap_or_else(|error| Err(format!("it ended badly: {error}")));
    match running.take() {
        Some((turn, _)) => (turn, done),
        None => std::future::pending().await,
    }
}
