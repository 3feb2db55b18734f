//! Lets one request at a time answer the sample of one `ref`, so that a post repeated too early waits for the
//! first one's answer instead of becoming a second sample.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use hedge_proto::Name;
use tokio::sync::Notify;

/// The refs being answered: at most one for each request under way.
#[derive(Clone, Default)]
pub(super) struct Repeats(Arc<Inner>);

#[derive(Default)]
struct Inner {
    under_way: Mutex<HashSet<(Name, String)>>,
    ended: Notify,
}

/// The right to answer; given back when dropped.
pub(super) struct Turn {
    repeats: Repeats,
    key: (Name, String),
}

impl Repeats {
    pub(super) async fn turn(&self, source: &Name, reference: &str) -> Turn {
        let key = (source.clone(), reference.to_owned());
        loop {
            let ended = self.0.ended.notified();
            if self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
                return Turn { repeats: self.clone(), key };
            }
            ended.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.repeats.0.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.repeats.0.ended.notify_waiters();
    }
}
