//! Finds cases for people, and keeps which of their words a device may not have heard yet.
//!
//! Labels and authorities are in the documents of a case, not in columns of their own: a search for them reads cases one
//! after the other, so many at most, and says where to go on. Everything else is the database's work.

use std::ops::ControlFlow;

use hedge_proto::{Authority, Case, CaseId, DeviceId, Verdict};

use super::postgres::Owned;
use super::reader::{CASE_COLUMNS, case_row};
use super::sql::Value;
use super::{Batch, CaseRow, Known, Reader, StoreError, Writer, count, damaged};

/// Which cases are looked for. What is not given may be anything.
#[derive(Debug, Clone, Default)]
pub struct Sought {
    pub device: Option<DeviceId>,
    pub task: Option<String>,
    /// Said by the device or in the verdict.
    pub label: Option<String>,
    /// Whether device and verdict say the same.
    pub agrees: Option<bool>,
    pub authority: Option<Authority>,
    /// It waits for a person.
    pub waits_for_person: bool,
    /// By the time they were received.
    pub since_ms: Option<u64>,
    pub until_ms: Option<u64>,
    /// Those whose verdict contradicts the device come before all others. Newest first otherwise, and among both.
    pub disagreements_first: bool,
    pub place: Place,
}

/// Where in that order the list begins.
#[derive(Debug, Clone, Default)]
pub enum Place {
    #[default]
    Top,
    /// Behind this case.
    After(CaseId),
    /// In front of it, the nearest first.
    Before(CaseId),
}

/// A part of a list.
#[derive(Debug, Default)]
pub struct CaseList {
    pub rows: Vec<CaseRow>,
    /// Behind this case there may be more.
    pub more_after: Option<CaseId>,
}

/// How many cases one search reads whose labels have to be looked at.
const LOOKED_AT_MAX: usize = 5000;

/// How many are read at once.
const CHUNK: u32 = 250;

/// The newest case, and those with this place in the table and below.
const TOP: i64 = i64::MAX;

impl Reader {
    /// Cases in the order that is asked for. `None`: the case where the list is to begin is not on record.
    pub fn find(&self, sought: &Sought, limit: u32) -> Result<Option<CaseList>, StoreError> {
        let mut list = CaseList::default();
        let (anchor, backwards) = match &sought.place {
            Place::Top => (None, false),
            Place::After(id) => (Some(id), false),
            Place::Before(id) => (Some(id), true),
        };
        let from = anchor.map(|id| self.position(id)).transpose()?.flatten();
        if anchor.is_some() && from.is_none() {
            return Ok(None);
        }
        // Those that disagree, then those that do not; or all in one.
        let parts: &[&str] = match (sought.disagreements_first, sought.agrees) {
            (_, Some(false)) => &["c.agrees = 0"],
            (_, Some(true)) => &["c.agrees = 1"],
            (true, None) => &["c.agrees = 0", "(c.agrees IS NULL OR c.agrees = 1)"],
            (false, None) => &["1 = 1"],
        };
        let mut from_part = 0;
        if let (Some((_, disagrees)), 2) = (from, parts.len()) {
            from_part = usize::from(!disagrees);
        }
        let order: Vec<usize> =
            if backwards { (0..=from_part).rev().collect() } else { (from_part..parts.len()).collect() };
        let mut looked_at = 0;
        for part in order {
            let start = from.filter(|_| part == from_part).map(|(seq, _)| seq);
            let search = Search { sought, part: parts[part], backwards, limit };
            if self.search(&search, start, &mut looked_at, &mut list)?.is_break() {
                break;
            }
        }
        Ok(Some(list))
    }

    fn search(
        &self,
        search: &Search<'_>,
        start: Option<i64>,
        looked_at: &mut usize,
        list: &mut CaseList,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut seq = start.unwrap_or(if search.backwards { 0 } else { TOP });
        let (statement, mut values) = search.statement(self)?;
        loop {
            values[0] = Owned::Number(seq);
            let given: Vec<Value<'_>> = values.iter().map(Owned::as_value).collect();
            let rows = self.sql.rows(&statement, &given, |row| Ok((row.get(10)?, case_row(row)?)))?;
            let is_last = rows.len() < CHUNK as usize;
            for (at, row) in rows {
                seq = at;
                *looked_at += 1;
                let id = row.case.id.clone();
                if search.sought.fits(&row) {
                    list.rows.push(row);
                }
                if list.rows.len() >= search.limit as usize || *looked_at >= LOOKED_AT_MAX {
                    list.more_after = Some(id);
                    return Ok(ControlFlow::Break(()));
                }
            }
            if is_last {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    /// Where a case is in the table, and whether its verdict contradicts the device.
    fn position(&self, id: &CaseId) -> Result<Option<(i64, bool)>, StoreError> {
        let statement = "SELECT seq, agrees FROM cases WHERE id = ?1";
        self.sql
            .row(statement, &[(&id.to_string()).into()], |row| Ok((row.get(0)?, row.get::<Option<i64>>(1)? == Some(0))))
    }

    /// The place of the first case that was received at this time or later. Cases come in the order of time, which no
    /// index is needed for.
    fn place_of_time(&self, ms: u64) -> Result<i64, StoreError> {
        let last: Option<Option<i64>> = self.sql.row("SELECT MAX(seq) FROM cases", &[], |row| row.get(0))?;
        let (mut low, mut high) = (0, last.flatten().unwrap_or(0) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let statement = "SELECT received_ms FROM cases WHERE seq >= ?1 ORDER BY seq LIMIT 1";
            let received_ms: Option<i64> = self.sql.row(statement, &[middle.into()], |row| row.get(0))?;
            if received_ms.is_none_or(|at| count(at) >= ms) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    /// Everything that was ever said of a case, the first word first.
    pub fn words(&self, id: &CaseId) -> Result<Vec<(Verdict, u64)>, StoreError> {
        let statement = "SELECT verdict, given_ms FROM verdicts JOIN cases USING (seq) WHERE id = ?1 ORDER BY revision";
        self.sql.rows(statement, &[(&id.to_string()).into()], |row| Ok((row.cbor(0)?, count(row.get(1)?))))
    }
}

/// One part of a search.
struct Search<'a> {
    sought: &'a Sought,
    part: &'a str,
    backwards: bool,
    limit: u32,
}

impl Search<'_> {
    /// The first value is where it begins.
    fn statement(&self, reader: &Reader) -> Result<(String, Vec<Owned>), StoreError> {
        let Sought { device, task, waits_for_person, since_ms, until_ms, .. } = self.sought;
        let (beyond, direction) = if self.backwards { (">", "ASC") } else { ("<", "DESC") };
        let mut conditions = vec![format!("c.seq {beyond} ?1"), self.part.to_owned()];
        let mut values = vec![Owned::Nothing];
        let mut condition = |text: &str, value: Owned| {
            values.push(value);
            conditions.push(format!("{text} ?{}", values.len()));
        };
        if let Some(device) = device {
            condition("c.device =", Owned::Text(device.to_string()));
        }
        if let Some(task) = task {
            condition("c.task =", Owned::Text(task.clone()));
        }
        if let Some(since_ms) = since_ms {
            condition("c.seq >=", Owned::Number(reader.place_of_time(*since_ms)?));
        }
        if let Some(until_ms) = until_ms {
            condition("c.seq <", Owned::Number(reader.place_of_time(*until_ms)?));
        }
        if *waits_for_person {
            conditions.push("c.review = 1 AND c.state = 0".to_owned());
        }
        let columns = CASE_COLUMNS.replacen(" FROM cases", ", c.seq FROM cases", 1);
        let conditions = conditions.join(" AND ");
        Ok((format!("SELECT {columns} WHERE {conditions} ORDER BY c.seq {direction} LIMIT {CHUNK}"), values))
    }
}

impl Sought {
    /// Whether a case is looked for by what only its documents say.
    fn fits(&self, row: &CaseRow) -> bool {
        let verdict = row.verdict();
        let authority = self.authority.is_none_or(|wanted| verdict.is_some_and(|said| said.authority == wanted));
        let says = |label: &String| {
            let said = [row.case.said.as_ref(), verdict.map(|verdict| &verdict.said)];
            said.into_iter().flatten().any(|said| said.labels().any(|known| known == label))
        };
        authority && self.label.as_ref().is_none_or(says)
    }
}

/// A case that is closed, as a person finds it who says something else.
#[derive(Debug)]
pub struct Closed {
    pub case: Case,
    pub known: Known,
    /// Whether its verdict says the same as the device.
    pub agrees: Option<bool>,
}

/// How many words are remembered as unheard: each is a person's work.
const UNHEARD_MAX: u32 = 100_000;

impl Writer {
    /// Whose words their devices may not have heard, oldest first.
    pub fn unheard(&self) -> Result<Vec<CaseId>, StoreError> {
        let statement = "SELECT id FROM corrections JOIN cases USING (seq) ORDER BY corrections.seq LIMIT ?1";
        self.sql.rows(statement, &[UNHEARD_MAX.into()], |row| row.get::<String>(0)?.parse().map_err(damaged))
    }
}

impl Batch<'_> {
    /// A case that is closed.
    pub fn closed(&self, id: &CaseId) -> Result<Option<Closed>, StoreError> {
        let statement = "SELECT header, agrees FROM cases WHERE id = ?1 AND state != 0";
        let row = self.sql.row(statement, &[(&id.to_string()).into()], |row| {
            Ok((row.cbor(0)?, row.get::<Option<i64>>(1)?.map(|agrees| agrees != 0)))
        })?;
        let (Some((case, agrees)), Some(known)) = (row, self.known(id)?) else { return Ok(None) };
        Ok(Some(Closed { case, known, agrees }))
    }

    /// Takes back that a verdict agreed with its device, or did not: another takes its place.
    pub fn uncount(&self, device: &DeviceId, agreed: bool) -> Result<(), StoreError> {
        self.change(
            "UPDATE device_cases SET agreed = agreed - ?2, disagreed = disagreed - ?3 WHERE device = ?1",
            &[device.as_str().into(), agreed.into(), (!agreed).into()],
        )
    }

    /// Notes that a device may not have heard the last word on a case.
    pub fn is_unheard(&self, id: &CaseId, now_ms: u64) -> Result<(), StoreError> {
        self.change(
            "INSERT INTO corrections (seq, at_ms) VALUES ((SELECT seq FROM cases WHERE id = ?1), ?2) \
             ON CONFLICT (seq) DO UPDATE SET at_ms = excluded.at_ms",
            &[(&id.to_string()).into(), now_ms.into()],
        )
    }

    /// Notes that a device has heard it.
    pub fn is_heard(&self, id: &CaseId) -> Result<(), StoreError> {
        self.change(
            "DELETE FROM corrections WHERE seq = (SELECT seq FROM cases WHERE id = ?1)",
            &[(&id.to_string()).into()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Records, case, everywhere};
    use hedge_proto::{ModelRef, Name, Output};

    /// Ten cases, one a second; of those with an even number the verdict contradicts the device, of each third a person
    /// says `c`.
    fn filled(records: &Records) -> Reader {
        let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
        let batch = writer.batch().expect("a batch");
        for n in 0..10 {
            let case = Case { said: Some(Output::label("a")), ..case(n) };
            batch.record(&case, b"p", n * 1000).expect("recorded");
            let by_person = n % 3 == 0;
            let verdict = Verdict {
                v: case.v,
                id: case.id,
                revision: 1,
                authority: if by_person { Authority::Person } else { Authority::Model },
                task: case.task,
                said: Output::label(if by_person { "c" } else { "b" }),
                model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
            };
            batch.answer(&verdict, Some(n % 2 == 1), n * 1000).expect("answered");
        }
        batch.commit().expect("committed");
        Reader::open(&records.at).expect("records")
    }

    fn found(reader: &Reader, sought: &Sought, limit: u32) -> Vec<u64> {
        let list = reader.find(sought, limit).expect("read").expect("a list");
        list.rows.iter().map(|row| row.case.id.key.sequence).collect()
    }

    #[test]
    fn cases_are_found_by_what_was_said_by_whom_and_when() {
        everywhere(|records| found_by_what_was_said(&filled(records)));
    }

    fn found_by_what_was_said(reader: &Reader) {
        let every = Sought::default();
        assert_eq!(found(reader, &every, 3), [9, 8, 7]);
        assert_eq!(found(reader, &Sought { agrees: Some(false), ..every.clone() }, 9), [8, 6, 4, 2, 0]);
        assert_eq!(found(reader, &Sought { label: Some("c".to_owned()), ..every.clone() }, 9), [9, 6, 3, 0]);
        assert_eq!(found(reader, &Sought { label: Some("a".to_owned()), ..every.clone() }, 9).len(), 9);
        assert_eq!(found(reader, &Sought { authority: Some(Authority::Person), ..every.clone() }, 2), [9, 6]);
        let between = Sought { since_ms: Some(2001), until_ms: Some(5000), ..every.clone() };
        assert_eq!(found(reader, &between, 9), [4, 3]);
        assert_eq!(found(reader, &Sought { task: Some("other".to_owned()), ..every.clone() }, 9), [0; 0]);
        assert_eq!(found(reader, &Sought { waits_for_person: true, ..every.clone() }, 9), [0; 0]);
        let other = DeviceId::new("other").expect("valid");
        assert_eq!(found(reader, &Sought { device: Some(other), ..every }, 9), [0; 0]);
    }

    #[test]
    fn those_of_one_device_are_listed_however_many_of_others_wait_before_them() {
        everywhere(|records| {
            let mut writer = Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records");
            let batch = writer.batch().expect("a batch");
            for n in 0..10 {
                let mut case = case(n);
                case.id.device = DeviceId::new(if n < 9 { "first" } else { "last" }).expect("valid");
                batch.record(&case, b"p", n).expect("recorded");
                batch.review(&case.id).expect("to review");
            }
            batch.commit().expect("committed");
            let reader = Reader::open(&records.at).expect("records");
            let last = DeviceId::new("last").expect("valid");
            let waiting = |device| reader.to_review(device, 3).expect("read").len();
            assert_eq!((waiting(Some(&last)), waiting(None)), (1, 3));
        });
    }

    #[test]
    fn each_case_has_one_before_and_one_after_it_in_the_order_of_the_list() {
        everywhere(|records| one_before_and_one_after(&filled(records)));
    }

    fn one_before_and_one_after(reader: &Reader) {
        for disagreements_first in [false, true] {
            let sought = |place| Sought { disagreements_first, place, ..Sought::default() };
            let all = found(reader, &sought(Place::Top), 100);
            if disagreements_first {
                assert_eq!(all, [8, 6, 4, 2, 0, 9, 7, 5, 3, 1]);
            }
            for (at, n) in all.iter().enumerate() {
                let id = || case(*n).id;
                assert_eq!(found(reader, &sought(Place::After(id())), 100), all[at + 1..]);
                let before: Vec<u64> = all[..at].iter().rev().copied().collect();
                assert_eq!(found(reader, &sought(Place::Before(id())), 100), before);
            }
        }
        let unknown = Sought { place: Place::After(case(99).id), ..Sought::default() };
        assert!(reader.find(&unknown, 1).expect("read").is_none());
    }
}
