//! What the intake hears of, and whom it tells. Messages lie apart from all else, because what is done must not wait behind
//! what has come.

use hedge_proto::{CaseId, Output};
use tokio::sync::{mpsc, oneshot, watch};

use super::{AnswererNow, Shut, Taking, Unwanted};
use crate::message::{Incoming, Settled};
use crate::model::{Outcome, Questioned};
use crate::presence::Heard;
use crate::reply::Reply;
use crate::traces::Traces;

/// How many messages may lie before the intake. While there are more, nothing is read from the broker: brokers send more
/// than the window they were told ([`crate::link::RECEIVE_MAX`]), and what they have sent must not be dropped.
pub(super) const ARRIVED_MAX: usize = 1024;

/// How many other events may.
const EVENTS_MAX: usize = 1024;

/// Something that has happened, other than a message.
pub enum Event {
    Outcome(Box<Outcome>),
    /// What came of asking an answerer whether it is alive.
    Questioned(Questioned),
    /// A person's word on a case, and whom to tell what became of it.
    Reviewed(Review, oneshot::Sender<Result<(), NotReviewed>>),
    /// Cases that somebody wants gone.
    Unwanted(Unwanted),
    /// Time to look after the records.
    Tick,
    /// No more is taken in. What was taken in is still committed.
    Stop,
}

/// A person's word on a case that waits for one, or that is closed.
#[derive(Debug)]
pub struct Review {
    pub id: CaseId,
    pub said: Output,
    /// Who says so.
    pub by: String,
    /// The revision of the verdict that they saw, 0 for none.
    pub seen: Option<u32>,
}

/// Why a person's word was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReviewed {
    #[error("`{said}` is none of the labels: {labels}")]
    NoLabel { said: String, labels: String },
    #[error("no device reads this answer: {0}")]
    Unread(String),
    #[error(
        "there is no such case that waits for a person or is closed; one that waits for its model can be corrected later"
    )]
    NotWaiting,
    #[error("somebody else has answered it meanwhile: revision {now} is the last word, not {seen}; look again")]
    Outdated { seen: u32, now: u32 },
    #[error("it cannot be recorded now; try again in a moment")]
    NotRecorded,
}

impl From<Questioned> for Event {
    fn from(questioned: Questioned) -> Self {
        Self::Questioned(questioned)
    }
}

impl From<Box<Outcome>> for Event {
    fn from(outcome: Box<Outcome>) -> Self {
        Self::Outcome(outcome)
    }
}

/// Where what happens comes in.
pub struct Inlets {
    messages: mpsc::Receiver<Incoming>,
    events: mpsc::Receiver<Event>,
}

impl Inlets {
    #[must_use]
    pub fn open() -> (mpsc::Sender<Incoming>, mpsc::Sender<Event>, Self) {
        let (message, messages) = mpsc::channel(ARRIVED_MAX);
        let (event, events) = mpsc::channel(EVENTS_MAX);
        (message, event, Self { messages, events })
    }

    /// What lies here: all events, and so many messages.
    pub(super) fn take(&mut self, messages_max: usize) -> (Vec<Event>, Vec<Incoming>) {
        let events = std::iter::from_fn(|| self.events.try_recv().ok()).take(EVENTS_MAX).collect();
        let messages = std::iter::from_fn(|| self.messages.try_recv().ok()).take(messages_max).collect();
        (events, messages)
    }

    /// Until something lies here. Nothing: nobody is left who could send an event.
    pub(super) async fn wait(&mut self) -> Option<(Vec<Event>, Vec<Incoming>)> {
        let link_is_there = !self.messages.is_closed();
        tokio::select! {
            event = self.events.recv() => Some((vec![event?], Vec::new())),
            Some(message) = self.messages.recv(), if link_is_there => Some((Vec::new(), vec![message])),
        }
    }
}

/// Where the intake's effects go.
pub struct Outlets {
    pub settled: mpsc::Sender<Settled>,
    pub replies: mpsc::Sender<Reply>,
    /// Counts commits, for those who show the records.
    pub commits: watch::Sender<u64>,
    /// What devices are told to do with new cases.
    pub taking: watch::Sender<Taking>,
    /// How the answerers are.
    pub answerers: watch::Sender<Vec<AnswererNow>>,
    pub heard: Heard,
    /// Whose messages are turned away where they come in.
    pub shut: Shut,
    pub traces: Traces,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_heard_of_however_many_messages_lie_before_it() {
        let (messages, events, mut inlets) = Inlets::open();
        let message = || Incoming {
            topic: String::new(),
            payload: Default::default(),
            retained: false,
            receipt: None,
            share: None,
            came: Default::default(),
        };
        let lie = std::iter::from_fn(|| messages.try_send(message()).ok()).count();
        assert!(events.try_send(Event::Tick).is_ok());
        let (done, come) = inlets.take(0);
        assert!(matches!(done[..], [Event::Tick]) && come.is_empty());
        assert_eq!(inlets.take(lie + 1).1.len(), lie);
    }
}
