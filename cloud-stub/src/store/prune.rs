//! Forgets what is too old or too much.

use super::sql::Sql;
use super::writer::Batch;
use super::{StoreError, count, damaged};

/// How much is kept, and how long. Payloads go first; verdicts and the ids they belong to stay longest.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub payload_bytes_max: u64,
    pub payload_age_ms: u64,
    pub record_age_ms: u64,
}

/// The most rows one pruning step removes, so that no commit takes long.
const PRUNE_ROWS_MAX: u32 = 500;

/// Held by the one that prunes.
const PRUNE_LOCK: i64 = 0x6865_6467_6501;

impl Batch<'_> {
    /// Removes some of what is too old or too much: payloads of closed cases first, oldest first, then whole
    /// records past their age. Returns the payload bytes removed; call again while that is not 0. While one instance
    /// does it, the others have nothing to do.
    pub fn prune(&self, keep: &Keep, now_ms: u64) -> Result<u64, StoreError> {
        if matches!(self.sql, Sql::Server(_)) {
            let statement = "SELECT 1 FROM (SELECT pg_try_advisory_xact_lock(?1) AS locked) AS tried WHERE locked";
            if !self.sql.exists(statement, &[PRUNE_LOCK.into()])? {
                return Ok(0);
            }
        }
        let payload_bytes = count(super::totals(self.sql)?.payload_bytes);
        let mut over = payload_bytes.saturating_sub(keep.payload_bytes_max);
        let too_old_ms = now_ms.saturating_sub(keep.payload_age_ms);
        let oldest = self.sql.rows(
            "SELECT seq, payload_bytes, received_ms, id, payload_sha256, CAST(LENGTH(bytes) AS BIGINT) \
             FROM payloads JOIN cases USING (seq) WHERE state != 0 AND (received_ms <= ?2 OR CAST(?3 AS BIGINT) > 0) \
             ORDER BY seq LIMIT ?1",
            // What came while the clock was ahead must not hold up those behind it.
            &[PRUNE_ROWS_MAX.into(), now_ms.into(), over.into()],
            |row| {
                let object: (String, Vec<u8>, i64) = (row.get(3)?, row.get(4)?, row.get(5)?);
                Ok((row.get::<i64>(0)?, count(row.get(1)?), count(row.get(2)?), object))
            },
        )?;
        let mut removed = 0;
        for (seq, bytes, received_ms, (id, sum, bytes_here)) in oldest {
            if over == 0 && received_ms >= too_old_ms {
                break;
            }
            self.change("DELETE FROM payloads WHERE seq = ?1", &[seq.into()])?;
            self.let_go(&id.parse().map_err(damaged)?, &sum, bytes_here)?;
            removed += bytes;
            over = over.saturating_sub(bytes);
        }
        let too_old_ms = now_ms.saturating_sub(keep.record_age_ms);
        self.prune_records(too_old_ms, now_ms)?;
        self.forget_spot_checks(too_old_ms, None)?;
        Ok(removed)
    }

    fn prune_records(&self, too_old_ms: u64, now_ms: u64) -> Result<(), StoreError> {
        // Rows are in order of time, so only the oldest few are looked at. Payloads go before, so that their
        // sum stays right.
        let old = "SELECT seq FROM (SELECT seq, received_ms, state FROM cases WHERE received_ms <= ?3 \
                   ORDER BY seq LIMIT ?2) AS oldest WHERE received_ms < ?1 AND state != 0 \
                   AND NOT EXISTS (SELECT 1 FROM payloads p WHERE p.seq = oldest.seq)";
        let values = [too_old_ms.into(), PRUNE_ROWS_MAX.into(), now_ms.into()];
        if self.sql.exists(&format!("{old} LIMIT 1"), &values)? {
            for table in ["corrections", "verdicts", "cases"] {
                self.change(&format!("DELETE FROM {table} WHERE seq IN ({old})"), &values)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{case, everywhere};
    use crate::store::{Totals, Writer};
    use hedge_proto::{Authority, ModelRef, Name, Output, Verdict, WIRE_VERSION};

    fn verdict(sequence: u64) -> Verdict {
        let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        let (authority, said) = (Authority::Model, Output::label("x"));
        Verdict { v: WIRE_VERSION, id: case(sequence).id, revision: 1, authority, task: "t".to_owned(), said, model }
    }

    #[test]
    fn payloads_go_first_and_oldest_first_and_never_those_of_waiting_cases() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let batch = writer.batch().expect("a batch");
            for sequence in 0..10 {
                batch.record(&case(sequence), &[0; 100], 1000).expect("recorded");
                if sequence != 0 {
                    batch.answer(&verdict(sequence), None, 1000).expect("answered");
                }
            }
            let counted = |payload_bytes| Totals { payload_bytes, ..Totals::default() };
            batch.set_totals(&counted(1000)).expect("counted");
            batch.commit().expect("committed");
            let keep = Keep { payload_bytes_max: 750, payload_age_ms: 1_000_000, record_age_ms: 2_000_000 };
            let batch = writer.batch().expect("a batch");
            assert_eq!(batch.prune(&keep, 2000).expect("pruned"), 300);
            batch.set_totals(&counted(700)).expect("counted");
            batch.commit().expect("committed");
            let kept: Vec<u64> = (0..10).filter(|n| writer.load(&case(*n).id).expect("read").is_some()).collect();
            assert_eq!(kept, [0, 4, 5, 6, 7, 8, 9]);

            // Past their age the others follow, and at last the answers, but never a case that waits.
            let batch = writer.batch().expect("a batch");
            assert_eq!(batch.prune(&keep, 1_500_000).expect("pruned"), 600);
            assert!(batch.known(&case(1).id).expect("read").is_some(), "answers outlive payloads");
            assert_eq!(batch.prune(&keep, 3_000_000).expect("pruned"), 0);
            assert_eq!(batch.known(&case(1).id).expect("read"), None);
            assert!(batch.known(&case(0).id).expect("read").is_some());
        });
    }

    #[test]
    fn what_came_while_the_clock_was_ahead_does_not_hold_up_those_behind_it() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let batch = writer.batch().expect("a batch");
            let ahead = u64::from(PRUNE_ROWS_MAX);
            for sequence in 0..=ahead {
                let received_ms = if sequence < ahead { 9_000_000 } else { 1000 };
                batch.record(&case(sequence), b"p", received_ms).expect("recorded");
                batch.answer(&verdict(sequence), None, received_ms).expect("answered");
            }
            batch.set_totals(&Totals { payload_bytes: 501, ..Totals::default() }).expect("counted");
            batch.commit().expect("committed");
            let keep = Keep { payload_bytes_max: 1000, payload_age_ms: 1000, record_age_ms: 1000 };
            let batch = writer.batch().expect("a batch");
            assert_eq!(batch.prune(&keep, 5000).expect("pruned"), 1);
            assert_eq!(batch.known(&case(ahead).id).expect("read"), None);
            assert!(batch.known(&case(0).id).expect("read").is_some());
        });
    }
}
