//! Whose the unanswered cases are, where several instances share records.
//!
//! ```text
//!  lives ── renews its lease each second ──► until_ms
//!    └─ is not heard of for LEASE_MS ──► any other takes its cases over: FOR UPDATE SKIP LOCKED, so that each case
//!                                        goes to one of them
//! ```
//! One lease for all that an instance has: what it takes in costs no further renewal. The server's clock is the only one
//! that counts. Who was taken for dead and lives finds its cases gone, and its answers to them are not recorded.
//!
//! A commit whose outcome was not heard may still be carried out when the server comes to it. So each connection gets a
//! number of its own, and a commit that begins with another number than the one on record fails: from then on it is
//! certain what became of the one before.
//!
//! Invariant: a case has one answer on record, whoever was asked about it. The case's row says whose it is, and is looked
//! at in the commit that answers it.

use std::time::{Duration, Instant};

use super::sql::{Row, Sql};
use super::writer::{WAITING_COLUMNS, Waiting, Writer, waiting};
use super::{StoreError, damaged};

/// How long an instance counts as living after it was heard of last. It says so each second.
const LEASE_MS: u32 = 4000;

/// Who starts waits as long for the end of a process that had its name, and is not heard of any more.
const NAME_WAIT_MAX: Duration = Duration::from_millis(LEASE_MS as u64 + 2000);

/// How many cases one instance takes over at once: the others, too, shall have some.
const TAKEN_OVER_MAX: u32 = 2000;

/// By the server's clock, in milliseconds.
const NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

/// Ends a commit of a connection that is no longer this instance's: nothing can be divided by zero.
pub(super) const FENCED: &str = "UPDATE instances SET process = process / \
     (CASE WHEN process = ?2 THEN 1 ELSE 0 END) WHERE instance = ?1";

/// This process's claim to its name.
pub(super) struct Lease {
    pub(super) process: i64,
    /// What `process` is about to be: the server may have heard it already.
    next: Option<i64>,
    /// Whose number it is.
    connection: u64,
    /// Nothing is taken over before this: the server was away, and the others come back, too.
    rests_until: Option<Instant>,
}

impl Lease {
    /// The records in a file have one writer: what anybody left over is its.
    pub(super) fn take(sql: &Sql, instance: &str) -> Result<Self, StoreError> {
        let process = i64::from(getrandom::u32().map_err(damaged)?);
        let mut lease = Self { process, next: None, connection: 0, rests_until: None };
        let session = match sql {
            Sql::Server(session) => session,
            Sql::File(_) => {
                sql.execute("UPDATE cases SET instance = ?1 WHERE state = 0 AND instance != ?1", &[instance.into()])?;
                return Ok(lease);
            }
        };
        let claim = format!(
            "INSERT INTO instances (instance, process, until_ms) VALUES (?1, ?2, {NOW} + ?3) ON CONFLICT (instance) \
             DO UPDATE SET process = excluded.process, until_ms = excluded.until_ms WHERE instances.until_ms <= {NOW} \
             RETURNING process"
        );
        let begun = Instant::now();
        while !sql.exists(&claim, &[instance.into(), process.into(), LEASE_MS.into()])? {
            if begun.elapsed() > NAME_WAIT_MAX {
                return Err(StoreError::NameTaken(instance.to_owned()));
            }
            #[expect(clippy::disallowed_methods, reason = "nobody says when the lease of a dead process ends")]
            std::thread::sleep(Duration::from_millis(200));
        }
        lease.connection = session.number()?;
        Ok(lease)
    }
}

impl Drop for Writer {
    /// Others need not wait for the end of the lease.
    fn drop(&mut self) {
        if matches!(self.sql, Sql::Server(_)) {
            let give_up = "UPDATE instances SET until_ms = 0 WHERE instance = ?1 AND process = ?2";
            if let Err(error) = self.sql.execute(give_up, &[(&self.instance).into(), self.lease.process.into()]) {
                tracing::warn!(
                    "others were not told of the end of this instance, and see it in {LEASE_MS} ms: {error}"
                );
            }
        }
    }
}

impl Writer {
    /// With a new connection, ends whatever the one before may still want to change.
    pub(super) fn fence(&mut self) -> Result<(), StoreError> {
        let Sql::Server(session) = &self.sql else { return Ok(()) };
        let connection = session.number()?;
        if connection == self.lease.connection {
            return Ok(());
        }
        let next = match self.lease.next {
            Some(next) => next,
            None => i64::from(getrandom::u32().map_err(damaged)?),
        };
        self.lease.next = Some(next);
        // It waits for a commit that is being carried out.
        let fence = "UPDATE instances SET process = ?3 WHERE instance = ?1 AND process IN (?2, ?3) RETURNING process";
        let values = [(&self.instance).into(), self.lease.process.into(), next.into()];
        if !self.sql.exists(fence, &values)? {
            return Err(StoreError::Replaced(self.instance.clone()));
        }
        self.lease = Lease { process: next, next: None, connection, rests_until: self.lease.rests_until };
        Ok(())
    }

    /// Once a second: says that this instance lives, and takes over what those had that do not.
    pub fn renew(&mut self) -> Result<Vec<Waiting>, StoreError> {
        if let Sql::File(_) = self.sql {
            return Ok(Vec::new());
        }
        self.fence()?;
        let renew = format!(
            "UPDATE instances SET until_ms = {NOW} + ?3 \
             FROM (SELECT until_ms FROM instances WHERE instance = ?1) AS before \
             WHERE instances.instance = ?1 AND process = ?2 \
             RETURNING CAST(CASE WHEN before.until_ms > {NOW} THEN 1 ELSE 0 END AS BIGINT)"
        );
        let values = [(&self.instance).into(), self.lease.process.into(), LEASE_MS.into()];
        let was_alive: Option<i64> = self.sql.row(&renew, &values, |row: &Row<'_>| row.get(0))?;
        let was_alive = was_alive.ok_or_else(|| StoreError::Replaced(self.instance.clone()))? != 0;
        let now = Instant::now();
        if !was_alive {
            self.lease.rests_until = Some(now + Duration::from_millis(LEASE_MS.into()));
        }
        if self.lease.rests_until.is_some_and(|until| now < until) {
            return Ok(Vec::new());
        }
        let take_over = format!(
            "UPDATE cases SET instance = ?1 WHERE seq IN (SELECT seq FROM cases WHERE state = 0 AND instance IN \
             (SELECT instance FROM instances WHERE until_ms <= {NOW}) ORDER BY seq LIMIT ?2 FOR UPDATE SKIP LOCKED) \
             RETURNING {WAITING_COLUMNS}"
        );
        // Nobody is asked about a case whose whole sample is wanted; this instance makes do with less after its time.
        let to_answer = |row: &Row<'_>| row.get::<Option<i64>>(5)?.is_none().then(|| waiting(row)).transpose();
        let taken = self.sql.rows(&take_over, &[(&self.instance).into(), TAKEN_OVER_MAX.into()], to_answer)?;
        Ok(taken.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use hedge_proto::Name;

    use super::*;
    use crate::store::testing::{Records, case};
    use crate::store::{Reader, RecordsAt, Standing, Totals};

    fn open(at: &RecordsAt, instance: &str) -> Writer {
        Writer::open(at, &Name::new(instance).expect("valid")).expect("records")
    }

    /// As the instance were not heard of for long.
    fn forget(writer: &Writer) {
        let statement = "UPDATE instances SET until_ms = 1 WHERE instance = ?1";
        writer.sql.execute(statement, &[(&writer.instance).into()]).expect("forgotten");
    }

    fn record(writer: &mut Writer, sequences: std::ops::Range<u64>) {
        let before = writer.totals().expect("read");
        let batch = writer.batch().expect("a batch");
        let cases = sequences.clone().count();
        sequences.for_each(|sequence| batch.record(&case(sequence), b"p", 1).expect("recorded"));
        let counted = i64::try_from(cases).expect("few");
        batch.set_totals(&Totals { waiting: before.waiting + counted, ..before }).expect("counted");
        batch.commit().expect("committed");
    }

    #[test]
    fn the_cases_of_a_dead_instance_are_taken_over_by_one_of_the_others() {
        let Some(records) = Records::on_server() else { return };
        let mut dead = open(&records.at, "dead");
        record(&mut dead, 0..3000);
        // That took longer than a lease on a busy machine.
        assert!(dead.renew().expect("renewed").is_empty());
        let [mut one, mut two] = ["one", "two"].map(|name| open(&records.at, name));
        record(&mut one, 3000..3001);
        assert!(one.renew().expect("renewed").is_empty(), "it lives");
        forget(&dead);
        let mut taken: Vec<_> =
            one.renew().expect("renewed").into_iter().chain(two.renew().expect("renewed")).collect();
        assert_eq!((taken.len(), one.waiting().expect("read").len()), (3000, 2001));
        taken.sort_by_key(|waiting| waiting.id.key.sequence);
        taken.dedup_by_key(|waiting| waiting.id.key.sequence);
        assert_eq!(taken.len(), 3000, "none by both");
        assert_eq!(taken[7].bytes, 1);
    }

    #[test]
    fn an_instance_taken_for_dead_answers_nothing_that_is_another_s() {
        let Some(records) = Records::on_server() else { return };
        let [mut slow, mut other] = ["slow", "other"].map(|name| open(&records.at, name));
        record(&mut slow, 0..1);
        forget(&slow);
        assert_eq!(other.renew().expect("renewed").len(), 1);
        assert!(slow.load(&case(0).id).expect("read").is_none(), "not even asks a model");
        let batch = slow.batch().expect("a batch");
        assert!(!batch.is_ours(&case(0).id).expect("read"));
        drop(batch);
        let batch = other.batch().expect("a batch");
        assert!(batch.is_ours(&case(0).id).expect("read"));
        batch.kill(&case(0).id, "closed").expect("closed");
        let counted = Totals { waiting: -1, dead: 1, ..Totals::default() };
        batch.set_totals(&counted).expect("counted");
        batch.commit().expect("committed");
        let batch = other.batch().expect("a batch");
        assert!(!batch.is_ours(&case(0).id).expect("read"), "nobody answers what is closed");
        drop(batch);
        let reader = Reader::open(&records.at).expect("records");
        let totals = reader.totals().expect("read");
        assert_eq!((totals.waiting, totals.dead), (0, 1), "all instances together");
        assert_eq!(
            reader.case(&case(0).id).expect("read").expect("there").standing,
            Standing::Dead("closed".to_owned())
        );
        assert!(slow.renew().expect("it comes back").is_empty());
    }

    #[test]
    fn two_instances_of_one_name_are_one_too_many() {
        let Some(records) = Records::on_server() else { return };
        let (mut first, is_over) = (open(&records.at, "one"), AtomicBool::new(false));
        let name = Name::new("one").expect("valid");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    first.renew().expect("it lives");
                    std::thread::park_timeout(Duration::from_millis(200));
                }
            });
            let second = Writer::open(&records.at, &name);
            is_over.store(true, Ordering::Relaxed);
            assert!(matches!(second, Err(StoreError::NameTaken(name)) if name == "one"));
        });
        forget(&first);
        let second = Writer::open(&records.at, &name).expect("the name is free again");
        assert!(matches!(first.renew(), Err(StoreError::Replaced(_))));
        drop(second);
        let begun = Instant::now();
        drop(open(&records.at, "one"));
        assert!(begun.elapsed() < Duration::from_millis(LEASE_MS.into()), "who ends in order gives its name back");
    }

    #[test]
    fn a_server_that_went_away_is_found_again_and_nothing_of_a_half_commit_is_left() {
        let Some(mut records) = Records::on_server() else { return };
        let mut writer = open(&records.at, "one");
        let reader = Reader::open(&records.at).expect("records");
        record(&mut writer, 0..1);
        let batch = writer.batch().expect("a batch");
        batch.record(&case(1), b"p", 1).expect("under way");
        records.restart();
        assert!(batch.commit().is_err(), "it was undone");
        let until = Instant::now() + Duration::from_secs(60);
        while writer.batch().and_then(|batch| batch.known(&case(0).id)).is_err() {
            assert!(Instant::now() < until, "it is not found again");
        }
        record(&mut writer, 2..3);
        let there = |n| reader.case(&case(n).id).expect("read").is_some();
        assert_eq!([0, 1, 2].map(there), [true, false, true]);
    }

    #[test]
    fn one_commit_holds_what_another_must_wait_for_and_two_in_any_order_end() {
        let Some(records) = Records::on_server() else { return };
        let names = ["a", "b", "c", "d"].map(|name| Name::new(name).expect("valid"));
        let busy = |instance: &str, backwards: bool| {
            let mut writer = open(&records.at, instance);
            for n in 0..100_u64 {
                let mut devices: Vec<_> = names.iter().collect();
                if backwards {
                    devices.reverse();
                }
                let batch = writer.batch_about(devices.iter().copied()).expect("a batch");
                devices.iter().for_each(|device| batch.set_reported(device, Some("{}"), n).expect("written"));
                batch.commit().expect("no deadlock");
            }
        };
        std::thread::scope(|scope| {
            let [one, two] = [("one", false), ("two", true)].map(|(name, way)| scope.spawn(move || busy(name, way)));
            [one, two].into_iter().for_each(|thread| thread.join().expect("ended"));
        });
    }
}
