//! Asks a source for a sample now, whatever its interval.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hedge_proto::{Answer, Name};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// Who may wait for one source's next sample.
const ASKING_MAX: usize = 4;

/// Waits for the answer to a source's next sample.
pub type Asking = oneshot::Sender<Result<Arc<Answer>, String>>;

/// The sources that can be asked. Cheap to clone.
#[derive(Clone, Default)]
pub struct Snapshots(Arc<Mutex<BTreeMap<Name, mpsc::Sender<Asking>>>>);

impl Snapshots {
    /// A source can be asked, until it drops what is returned.
    #[must_use]
    pub fn register(&self, source: &Name) -> mpsc::Receiver<Asking> {
        let (ask, asked) = mpsc::channel(ASKING_MAX);
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|_, ask| !ask.is_closed());
        sources.insert(source.clone(), ask);
        asked
    }

    /// The answer to the source's next sample, or why there is none.
    pub async fn ask(&self, source: &Name) -> Result<Arc<Answer>, String> {
        let (asking, answered) = oneshot::channel();
        let ask = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned();
        match ask.map(|ask| ask.try_send(asking)) {
            Some(Ok(())) => answered.await.unwrap_or_else(|_| Err("it ended before it brought a picture".to_owned())),
            Some(Err(TrySendError::Full(_))) => Err("it is asked for a picture by others already".to_owned()),
            Some(Err(TrySendError::Closed(_))) | None => {
                Err("only a source of kind `command` that is on can be asked for a sample".to_owned())
            }
        }
    }
}
