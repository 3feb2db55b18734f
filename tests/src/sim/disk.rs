//! A model of the outbox: what a commit has written survives everything, how far sending has come does not.

use std::collections::BTreeMap;

use hedge_core::uplink::Waiting;
use hedge_core::verdict::{Known, Ruling, rule};
use hedge_proto::CaseKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Open(Progress),
    Answered { revision: u32 },
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    Waiting,
    Sent,
    Received,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    case: Waiting,
    pub(super) stage: Stage,
    /// What the queue on disk says of it, behind the truth.
    saved: Progress,
    pub(super) attempts: u32,
}

/// What is on the device's disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    rows: BTreeMap<CaseKey, Row>,
    pub(super) full_until: u64,
    /// When the last operation handed over will be written; they keep their order.
    pub(super) written_at: u64,
}

/// What the log's thread is asked for.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Store(Waiting),
    Attempt {
        key: CaseKey,
        reason: String,
    },
    Bury {
        key: CaseKey,
    },
    /// A verdict, and the message it came by.
    Answer {
        key: CaseKey,
        revision: u32,
        wire: usize,
        id: u32,
    },
    Forget {
        key: CaseKey,
    },
}

impl Row {
    pub(super) fn payload_bytes(&self) -> u32 {
        self.case.payload_bytes
    }
}

impl Disk {
    pub(super) fn get(&self, key: CaseKey) -> Option<&Row> {
        self.rows.get(&key)
    }

    pub(super) fn store(&mut self, case: Waiting) {
        let stage = Stage::Open(Progress::Waiting);
        self.rows.insert(case.key, Row { case, stage, saved: Progress::Waiting, attempts: 0 });
    }

    pub(super) fn mark(&mut self, key: CaseKey, progress: Progress) {
        if let Some(row) = self.rows.get_mut(&key)
            && matches!(row.stage, Stage::Open(_))
        {
            row.stage = Stage::Open(progress);
        }
    }

    /// The queue on disk catches up.
    pub(super) fn checkpoint(&mut self) {
        for row in self.rows.values_mut() {
            if let Stage::Open(progress) = row.stage {
                row.saved = progress;
            }
        }
    }

    pub(super) fn attempt(&mut self, key: CaseKey) -> Option<u32> {
        let row = self.rows.get_mut(&key)?;
        row.attempts += 1;
        Some(row.attempts)
    }

    /// An answered case stays answered.
    pub(super) fn bury(&mut self, key: CaseKey) {
        if let Some(row) = self.rows.get_mut(&key)
            && matches!(row.stage, Stage::Open(_))
        {
            row.stage = Stage::Dead;
        }
    }

    /// Whether the verdict counts; if so it is written.
    pub(super) fn answer(&mut self, key: CaseKey, revision: u32) -> bool {
        let known = match self.rows.get(&key).map(|row| row.stage) {
            Some(Stage::Open(_) | Stage::Dead) => Known::Open,
            Some(Stage::Answered { revision }) => Known::Answered { revision },
            None => Known::Nothing,
        };
        let counts = rule(known, revision) == Ruling::Apply;
        if let Some(row) = self.rows.get_mut(&key).filter(|_| counts) {
            row.stage = Stage::Answered { revision };
        }
        counts
    }

    pub(super) fn forget(&mut self, key: CaseKey) {
        self.rows.remove(&key);
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (CaseKey, &Row)> {
        let open = |row: &Row| matches!(row.stage, Stage::Open(_));
        self.rows.iter().filter(move |(_, row)| open(row)).map(|(key, row)| (*key, row))
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = CaseKey> {
        self.rows.iter().filter(|(_, row)| row.stage == Stage::Dead).map(|(key, _)| *key)
    }

    /// A dead letter waits again, with no failed tries.
    pub(super) fn requeue(&mut self, key: CaseKey) -> Option<Waiting> {
        let row = self.rows.get_mut(&key)?;
        (row.stage, row.saved, row.attempts) = (Stage::Open(Progress::Waiting), Progress::Waiting, 0);
        Some(row.case)
    }

    pub(super) fn answered(&self) -> impl Iterator<Item = CaseKey> {
        self.rows.iter().filter(|(_, row)| matches!(row.stage, Stage::Answered { .. })).map(|(key, _)| *key)
    }

    /// The best open cases.
    pub(super) fn fetch(&self, count: usize, below_bytes: u32) -> Vec<Waiting> {
        let fits = |row: &Row| row.stage != Stage::Open(Progress::Waiting) || row.case.payload_bytes < below_bytes;
        let mut best: Vec<Waiting> = self
            .open()
            .filter(|(_, row)| fits(row))
            .map(|(_, row)| Waiting {
                sent: row.stage != Stage::Open(Progress::Waiting),
                urgent: false, // whoever waited is not asked again
                ..row.case
            })
            .collect();
        best.sort_by(|a, b| b.sort_key.total_cmp(&a.sort_key));
        best.truncate(count);
        best
    }

    /// What is left after a kill: of the progress only what the queue on disk had, or nothing if it is rebuilt.
    pub(super) fn reopen(&mut self, rebuilt: bool) {
        self.written_at = 0;
        for row in self.rows.values_mut() {
            if let Stage::Open(progress) = &mut row.stage {
                *progress = if rebuilt { Progress::Waiting } else { row.saved };
                row.saved = *progress;
            }
        }
    }
}
