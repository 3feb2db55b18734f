//! Local answers on their way to the sinks that want them: in memory, in order, each until its sink has it.
//!
//! Corrections come from the disk; a local answer is nowhere else. So a source that can wait (a folder) waits until the
//! files of this machine have its answer, and its answers never give way. Nobody else waits for a sink: beyond
//! [`WAITING_MAX`] the oldest of their answers gives way, counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedge_proto::{Answer, Name, Output, SinkWants};
use tokio::sync::{Notify, watch};

use super::Sink;
use crate::figures::Figures;

/// Answers that may wait for one sink: about 2 MB. At a thousand answers a second a file may pause for a second.
const WAITING_MAX: usize = 1024;

/// All that wait. Cheap to clone.
#[derive(Clone, Default)]
pub struct Locals {
    queues: Arc<Mutex<BTreeMap<u8, Queue>>>,
    figures: Arc<Figures>,
}

/// What one sink is to have.
struct Queue {
    name: Name,
    /// Folders wait for it.
    is_file: bool,
    wanted: SinkWants,
    waiting: VecDeque<Waiting>,
    /// So many of the first are being delivered.
    under_way: usize,
    /// Answers that have come, and those of them that are done with.
    came: u64,
    done: watch::Sender<u64>,
    /// What each source last said, to tell a change from a repetition.
    last: BTreeMap<String, String>,
    more: Arc<Notify>,
}

struct Waiting {
    answer: Arc<Answer>,
    /// Its source waits until it is delivered.
    waited_for: bool,
}

impl Locals {
    #[must_use]
    pub fn new(figures: Arc<Figures>) -> Self {
        Self { queues: Arc::default(), figures }
    }

    /// From now on a sink is to have what it wants; what waits for it already goes on waiting.
    pub fn serve(&self, sink: &Sink) {
        let mut queues = self.queues();
        let kept = queues.remove(&sink.number).filter(|kept| kept.name == sink.name);
        let wants_any = match sink.wanted {
            SinkWants::All => true,
            SinkWants::Changed => sink.tells_changes(),
            SinkWants::Corrections => false,
        };
        if wants_any {
            let mut queue = kept.unwrap_or_else(|| Queue::new(sink));
            (queue.wanted, queue.is_file) = (sink.wanted, sink.is_file());
            queues.insert(sink.number, queue);
        }
    }

    /// Sink `number` is no more; whoever waits for it need not.
    pub fn forget(&self, number: u8) {
        self.queues().remove(&number);
    }

    /// Hands an answer to every sink that wants it. `waited_for`: its source calls [`Self::written`] next.
    pub fn pass_on(&self, answer: &Arc<Answer>, waited_for: bool) {
        for queue in self.queues().values_mut() {
            if !queue.takes(answer) {
                continue;
            }
            queue.came += 1;
            queue.waiting.push_back(Waiting { answer: answer.clone(), waited_for: waited_for && queue.is_file });
            if queue.waiting.len() > WAITING_MAX && queue.drop_oldest() {
                self.figures.sink(&queue.name, |sink| sink.lost += 1);
            }
            queue.more.notify_one();
        }
    }

    /// Returns once the files of this machine have every answer passed on before, or are no longer to have it.
    pub async fn written(&self) {
        let files: Vec<_> = {
            let queues = self.queues();
            let files = queues.values().filter(|queue| queue.is_file);
            files.map(|queue| (queue.came, queue.done.subscribe())).collect()
        };
        for (came, mut done) in files {
            // An error: it is no longer to have them.
            drop(done.wait_for(|done| *done >= came).await);
        }
    }

    /// The first answers that wait for a sink. They stay until [`Self::done`] is said of them.
    #[must_use]
    pub(super) fn first(&self, number: u8, n: usize) -> Vec<Arc<Answer>> {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(&number) else { return Vec::new() };
        queue.under_way = queue.waiting.len().min(n);
        queue.waiting.iter().take(n).map(|waiting| waiting.answer.clone()).collect()
    }

    /// How many wait for a sink now.
    #[must_use]
    pub(super) fn waiting(&self, number: u8) -> usize {
        self.queues().get(&number).map_or(0, |queue| queue.waiting.len())
    }

    /// The first `count` are delivered, or given up; none is under way any more.
    pub(super) fn done(&self, number: u8, count: usize) {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(&number) else { return };
        let gone = queue.waiting.drain(..count.min(queue.waiting.len())).count();
        queue.under_way = 0;
        queue.done.send_modify(|done| *done += gone as u64);
    }

    /// Returns when another answer waits for a sink; never for one that wants none.
    pub(super) async fn more(&self, number: u8) {
        let more = self.queues().get(&number).map(|queue| queue.more.clone());
        match more {
            Some(more) => more.notified().await,
            None => std::future::pending().await,
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<u8, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn new(sink: &Sink) -> Self {
        Self {
            name: sink.name.clone(),
            is_file: sink.is_file(),
            wanted: sink.wanted,
            waiting: VecDeque::new(),
            under_way: 0,
            came: 0,
            done: watch::Sender::new(0),
            last: BTreeMap::new(),
            more: Arc::default(),
        }
    }

    /// All are taken, or only what differs from the source's last word.
    fn takes(&mut self, answer: &Answer) -> bool {
        if self.wanted == SinkWants::All {
            return true;
        }
        let says = answer.said.as_ref().map(Output::headline).unwrap_or_default();
        let before = self.last.insert(answer.source.clone(), says.clone());
        before.as_deref() != Some(says.as_str())
    }

    /// Drops the oldest answer that is neither under way nor waited for. There are no more of those than sources.
    fn drop_oldest(&mut self) -> bool {
        let droppable = |(_, waiting): &(usize, &Waiting)| !waiting.waited_for;
        let oldest = self.waiting.iter().enumerate().skip(self.under_way).find(droppable).map(|(at, _)| at);
        let dropped = oldest.and_then(|at| self.waiting.remove(at)).is_some();
        self.done.send_modify(|done| *done += u64::from(dropped));
        dropped
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{CommandSink, Jsonl, MqttSink, Way};
    use super::*;
    use crate::capture::testing::{answer, id};

    const JSONL: u8 = 0;
    const WEBHOOK: u8 = 1;
    const MQTT: u8 = 3;

    fn sink(number: u8, wanted: SinkWants) -> Sink {
        let (name, way) = match number {
            JSONL => ("jsonl", Way::Jsonl(Jsonl::new("/nowhere".into(), 1))),
            WEBHOOK => ("webhook", Way::Command(CommandSink::new(&[]))),
            _ => ("mqtt", Way::Mqtt(MqttSink::on_uplink(None))),
        };
        Sink { name: Name::new(name).expect("a name"), number, wanted, way }
    }

    fn give(locals: &Locals, n: u64, waited_for: bool) {
        locals.pass_on(&Arc::new(answer(id(n), "cam", None, 0)), waited_for);
    }

    fn sequences(answers: &[Arc<Answer>]) -> Vec<u64> {
        answers.iter().map(|answer| answer.id.key.sequence).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_waits_for_the_file_and_no_other_answer_pushes_its_own_out() {
        let locals = Locals::default();
        locals.serve(&sink(JSONL, SinkWants::All));
        give(&locals, 0, true);
        for n in 1..=2 * WAITING_MAX as u64 {
            give(&locals, n, false);
        }
        let first = locals.first(JSONL, 2);
        assert_eq!(sequences(&first), [0, WAITING_MAX as u64 + 2], "the oldest of the others gave way");
        assert_eq!(locals.figures.sinks()["jsonl"].lost, WAITING_MAX as u64 + 1);
        let written = locals.written();
        tokio::pin!(written);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut written).await.is_err(), "nothing is written yet");
        locals.done(JSONL, WAITING_MAX);
        written.await;
        // Another sink holds up nobody, and one that is gone neither.
        locals.serve(&sink(WEBHOOK, SinkWants::All));
        give(&locals, 9999, true);
        locals.done(JSONL, 1);
        locals.written().await;
        give(&locals, 10_000, true);
        let written = locals.written();
        locals.forget(JSONL);
        written.await;
    }

    #[tokio::test]
    async fn what_is_under_way_is_neither_dropped_nor_delivered_twice() {
        let locals = Locals::default();
        locals.serve(&sink(JSONL, SinkWants::All));
        (0..WAITING_MAX as u64).for_each(|n| give(&locals, n, false));
        assert_eq!(locals.first(JSONL, 2).len(), 2);
        give(&locals, 5000, false);
        locals.done(JSONL, 2);
        assert_eq!(sequences(&locals.first(JSONL, 2)), [3, 4], "0 and 1 were delivered, 2 gave way");
    }

    #[test]
    fn an_mqtt_sink_that_wants_changes_gets_what_differs_from_the_last_word_once() {
        let locals = Locals::default();
        locals.serve(&sink(MQTT, SinkWants::Changed));
        locals.serve(&sink(JSONL, SinkWants::Changed));
        for (n, label) in [(0, "cat"), (1, "cat"), (2, "dog")] {
            let said = Some(Output::label(label));
            locals.pass_on(&Arc::new(Answer { said, ..answer(id(n), "cam", None, 0) }), false);
        }
        assert_eq!(sequences(&locals.first(MQTT, 9)), [0, 2]);
        // One that could not be delivered is still there.
        locals.done(MQTT, 1);
        assert_eq!(sequences(&locals.first(MQTT, 9)), [2]);
        assert_eq!(locals.waiting(JSONL), 0);
    }
}
