//! Says results: each until the broker has it, a few at a time.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use hedge_core::control::commands::{Book, ReplyTo};
use hedge_proto::Reply;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::uplink::{PublishError, Uplink};

/// Replies under way. More wait in the book; those that are not kept are then not said at all.
const UNDER_WAY_MAX: usize = 32;

/// A reply that could not be published although there is a connection is tried again after this.
pub(super) const TRY_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// How saying a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// The broker has it, or will never take it.
    Over,
    /// Another connection may do better.
    NotYet,
}

/// Publishes replies.
pub(crate) trait Says: Clone + Send + Sync + 'static {
    fn say(&self, reply_to: ReplyTo, reply: Reply) -> impl Future<Output = Said> + Send;
}

impl Says for Uplink {
    async fn say(&self, reply_to: ReplyTo, mut reply: Reply) -> Said {
        let mut outcome = self.reply(&reply_to, &reply).await;
        if let Err(error @ PublishError::TooLarge { .. }) = outcome {
            reply.result = Value::Null;
            reply.reason = Some(format!("the result cannot be sent: {error}"));
            outcome = self.reply(&reply_to, &reply).await;
        }
        match outcome {
            // The broker has it; who does not listen gives the command again.
            Ok(()) | Err(PublishError::Nobody) => Said::Over,
            Err(PublishError::NotConnected | PublishError::Unclear) => Said::NotYet,
            Err(error @ (PublishError::Refused(_) | PublishError::TooLarge { .. })) => {
                tracing::warn!(id = reply.id, %error, "the result of a command cannot be said");
                Said::Over
            }
        }
    }
}

pub(super) struct Replies<S> {
    says: S,
    under_way: JoinSet<(Option<String>, Said)>,
    /// Kept replies under way.
    saying: HashSet<String>,
    /// Of those: asked for again meanwhile.
    again: BTreeSet<String>,
    /// Could not be said over the present connection.
    tried: HashSet<String>,
    try_again_at: Instant,
}

impl<S: Says> Replies<S> {
    pub(super) fn new(says: S) -> Self {
        Self {
            says,
            under_way: JoinSet::new(),
            saying: HashSet::new(),
            again: BTreeSet::new(),
            tried: HashSet::new(),
            try_again_at: Instant::now(),
        }
    }

    /// Begins to say what the broker does not have.
    pub(super) fn say_all(&mut self, book: &Book) {
        for (id, reply_to, reply) in book.unsaid() {
            if self.under_way.len() >= UNDER_WAY_MAX {
                return;
            }
            if self.tried.contains(id) || !self.saying.insert(id.to_owned()) {
                continue;
            }
            self.say(Some(id.to_owned()), reply_to.clone(), reply.clone());
        }
    }

    /// Says what is not kept, if there is a connection; whoever missed it gives the command again.
    pub(super) fn say_once(&mut self, reply_to: ReplyTo, reply: Reply) {
        if self.under_way.len() < UNDER_WAY_MAX {
            self.say(None, reply_to, reply);
        }
    }

    fn say(&mut self, id: Option<String>, reply_to: ReplyTo, reply: Reply) {
        let says = self.says.clone();
        self.under_way.spawn(async move { (id, says.say(reply_to, reply).await) });
    }

    /// The next kept reply that is said for good; a reply that is not ends in none.
    pub(super) async fn next(&mut self) -> Option<String> {
        let said = tokio::select! {
            Some(said) = self.under_way.join_next() => said,
            () = tokio::time::sleep_until(self.try_again_at), if !self.tried.is_empty() => {
                self.tried.clear();
                return None;
            }
            else => std::future::pending().await,
        };
        let (id, said) = match said {
            Ok((Some(id), said)) => (id, said),
            Ok((None, _)) => return None,
            Err(error) => {
                // Its id is not known; all are looked at again.
                tracing::error!(%error, "saying a reply ended badly");
                self.saying.clear();
                return None;
            }
        };
        self.saying.remove(&id);
        let again = self.again.remove(&id);
        match said {
            Said::Over => (!again).then_some(id),
            Said::NotYet => {
                self.tried.insert(id);
                self.try_again_at = Instant::now() + TRY_AGAIN_AFTER;
                None
            }
        }
    }

    /// This one is to be said, also if it is under way.
    pub(super) fn again(&mut self, id: String) {
        self.tried.remove(&id);
        if self.saying.contains(&id) {
            self.again.insert(id);
        }
    }

    /// There is another connection.
    pub(super) fn try_again(&mut self) {
        self.tried.clear();
    }
}
