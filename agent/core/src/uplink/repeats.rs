//! How often payloads have travelled again, over a restart: otherwise each would allow the first quick repeats anew.

use hedge_proto::Epoch;

use super::{CaseKey, Moment, OWED_MAX, QUIET_MAX, Uplink, Vec};
use crate::budget::Repeated;

impl Uplink {
    /// The payloads that have travelled more than once, to be kept over a restart.
    #[must_use]
    pub fn repeated(&self, now: Moment) -> Vec<Repeated> {
        let known = self.cases.values().filter(|case| case.sends > 1);
        let known = known.map(|case| (case.case.key, (case.sends, case.sent_at)));
        // Not in memory yet since the start. After this long the next send is due whatever went before.
        let before = self.repeated_before.iter().map(|(key, sends)| (*key, *sends));
        let before = before.filter(|(_, (_, at))| now < *at + QUIET_MAX + QUIET_MAX);
        let all = known.chain(before).take(OWED_MAX);
        all.map(|(key, (sends, at))| Repeated { epoch: key.epoch.0, sequence: key.sequence, sends, at_ms: at.0 })
            .collect()
    }

    /// What an earlier run said of its payloads.
    pub fn recall_repeated(&mut self, repeated: &[Repeated]) {
        let key = |one: &Repeated| CaseKey { epoch: Epoch(one.epoch), sequence: one.sequence };
        self.repeated_before =
            repeated.iter().take(OWED_MAX).map(|one| (key(one), (one.sends, Moment(one.at_ms)))).collect();
    }
}
