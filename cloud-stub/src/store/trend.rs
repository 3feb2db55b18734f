//! Keeps what became of each device over time, and of all together: pages of buckets, see [`crate::trend`].
//!
//! All devices together are kept under a name that no device has, of each instance its own: adding up ten thousand
//! devices whenever somebody looks would take seconds.

use std::collections::BTreeSet;

use hedge_proto::{DeviceId, Telemetry, from_json};

use super::sql::Row;
use super::{Batch, ROW_BYTES_MAX, Reader, StoreError, Writer, count, damaged};
use crate::trend::{Page, Place};

impl Batch<'_> {
    /// What a device reported last, and when.
    pub fn telemetry(&self, device: &DeviceId) -> Result<Option<(Telemetry, u64)>, StoreError> {
        let statement = "SELECT telemetry, telemetry_ms FROM devices WHERE device = ?1 AND telemetry IS NOT NULL";
        self.sql.row(statement, &[device.as_str().into()], |row| {
            let json: Vec<u8> = row.get(0)?;
            let at_ms: Option<i64> = row.get(1)?;
            Ok((from_json(&json, ROW_BYTES_MAX).map_err(damaged)?, at_ms.map_or(0, count)))
        })
    }

    /// The name under which this instance keeps what became of all devices together.
    pub fn fleet(&self) -> String {
        format!("*{}", self.instance())
    }

    /// Adds to what is on record of a device, or of the [fleet](Self::fleet).
    pub fn add_trend(&self, of: &str, place: Place, page: &Page) -> Result<(), StoreError> {
        let mut sum = self.trend_page(of, place)?;
        sum.merge(page);
        self.change(
            "INSERT INTO trends (device, bucket_s, at_s, page) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (device, bucket_s, at_s) DO UPDATE SET page = excluded.page",
            &[of.into(), place.bucket_s.into(), place.at_s.into(), (&sum.to_bytes(place)).into()],
        )
    }

    /// Makes one bucket of each page that has grown old, and forgets what is older than anything is kept.
    pub fn fold_trends(&self, of: &str, now_s: u64) -> Result<(), StoreError> {
        // From the index alone: a device has a hundred pages, and most of the time none has grown old.
        let statement = "SELECT bucket_s, at_s FROM trends WHERE device = ?1 ORDER BY bucket_s, at_s";
        let places = self.sql.rows(statement, &[of.into()], |row| {
            Ok(Place { bucket_s: count(row.get(0)?), at_s: count(row.get(1)?) })
        })?;
        let mut old: BTreeSet<Place> = places.into_iter().filter(|place| place.is_old(now_s)).collect();
        // The finest first: what becomes of it may be old, too.
        while let Some(place) = old.pop_first() {
            if let Some((next, page)) = self.trend_page(of, place)?.folded(place) {
                self.add_trend(of, next, &page)?;
                old.extend(next.is_old(now_s).then_some(next));
            }
            self.change(
                "DELETE FROM trends WHERE device = ?1 AND bucket_s = ?2 AND at_s = ?3",
                &[of.into(), place.bucket_s.into(), place.at_s.into()],
            )?;
        }
        Ok(())
    }

    /// Forgets what became of a device. What it was part of, together with others, stays.
    pub fn forget_trends(&self, device: &DeviceId) -> Result<(), StoreError> {
        self.change("DELETE FROM trends WHERE device = ?1", &[device.as_str().into()])
    }

    fn trend_page(&self, of: &str, place: Place) -> Result<Page, StoreError> {
        let statement = "SELECT page FROM trends WHERE device = ?1 AND bucket_s = ?2 AND at_s = ?3";
        let values = [of.into(), place.bucket_s.into(), place.at_s.into()];
        let found =
            self.sql.row(statement, &values, |row| Page::read(&row.get::<Vec<u8>>(0)?, place).map_err(damaged))?;
        Ok(found.unwrap_or_default())
    }
}

impl Writer {
    /// The first devices by name behind this one.
    pub fn devices_behind(&self, name: &str, most: u32) -> Result<Vec<DeviceId>, StoreError> {
        let statement = "SELECT device FROM devices WHERE device > ?1 ORDER BY device LIMIT ?2";
        self.sql
            .rows(statement, &[name.into(), most.into()], |row| DeviceId::new(&row.get::<String>(0)?).map_err(damaged))
    }
}

const OF_DEVICE: &str = "SELECT bucket_s, at_s, page FROM trends WHERE device = ?1 AND at_s >= ?2";
/// Every instance that ever counted has its totals.
const OF_FLEET: &str = "SELECT bucket_s, at_s, page FROM trends \
     WHERE device IN (SELECT '*' || instance FROM totals) AND at_s >= ?1";

impl Reader {
    /// A device's pages that reach behind this second.
    pub fn trend(&self, device: &DeviceId, since_s: u64) -> Result<Vec<(Place, Page)>, StoreError> {
        self.sql.rows(OF_DEVICE, &[device.as_str().into(), reaching(since_s).into()], page)
    }

    /// The pages of all devices together, of every instance.
    pub fn fleet_trend(&self, since_s: u64) -> Result<Vec<(Place, Page)>, StoreError> {
        self.sql.rows(OF_FLEET, &[reaching(since_s).into()], page)
    }
}

/// No page is longer than four days; what ended before is left out by who shows it.
fn reaching(since_s: u64) -> u64 {
    since_s.saturating_sub(4 * 86_400)
}

fn page(row: &Row<'_>) -> Result<(Place, Page), StoreError> {
    let place = Place { bucket_s: count(row.get(0)?), at_s: count(row.get(1)?) };
    Ok((place, Page::read(&row.get::<Vec<u8>>(2)?, place).map_err(damaged)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Records, everywhere};
    use crate::trend::{Bucket, Stretch, series};
    use hedge_proto::{LatencyFigures, LinkState, Name, QueueFigures, SampleFigures};

    fn name(text: &str) -> DeviceId {
        Name::new(text).expect("valid")
    }

    fn open(records: &Records) -> Writer {
        Writer::open(&records.at, &Name::new("one").expect("valid")).expect("records")
    }

    fn add(batch: &Batch<'_>, device: &DeviceId, stretch: &Stretch) {
        for (place, page) in stretch.spread() {
            batch.add_trend(device.as_str(), place, &page).expect("added");
        }
    }

    const DAY: u64 = 86_400;
    const BEGIN_S: u64 = 20_000 * DAY;

    /// A busy device: a report a minute, in which everything has changed, and cases.
    fn report(minute: u64) -> Telemetry {
        let n = minute * 60;
        let took = || LatencyFigures { count: n, mean_ms: 12.3, p50_ms: 10.0, p99_ms: 50.0 };
        let board = hedge_proto::BoardFigures { temperature_c: Some(61.5), ..hedge_proto::BoardFigures::default() };
        Telemetry {
            uptime_s: minute * 60,
            samples: SampleFigures {
                answered: n,
                kept: n - n / 7,
                deferred: n / 7,
                corrected: n / 20,
                ..SampleFigures::default()
            },
            queue: QueueFigures { waiting: minute % 300, oldest_s: Some(minute % 4000), ..QueueFigures::default() },
            link_s: [("online".to_owned(), minute * 50), ("degraded".to_owned(), minute * 10)].into(),
            link_bytes: n * 4321,
            latency: crate::trend::STAGES.into_iter().map(|stage| (stage.to_owned(), took())).collect(),
            board,
            link_reason: if minute.is_multiple_of(10) { "answers are late: 12 s".to_owned() } else { String::new() },
            ..Telemetry::new(LinkState::Degraded)
        }
    }

    /// What a device reports in so many minutes, as the intake writes it. Of what is folded at the end a report in ten
    /// minutes tells as much as ten.
    fn live(writer: &mut Writer, device: &DeviceId, minutes: u64) {
        let mut before = None;
        let reports: Vec<u64> = (1..=minutes).filter(|minute| minute % 10 == 0 || minute + 120 > minutes).collect();
        for minutes in reports.chunks(60) {
            let batch = writer.batch().expect("a batch");
            for minute in minutes {
                let (now, now_ms) = (report(*minute), (BEGIN_S + minute * 60) * 1000);
                let before_report = before.as_ref().map(|(before, at_ms)| (before, *at_ms));
                let mut told = Stretch::between(before_report, &now, now_ms);
                told.at.merge(&Bucket::case(25_000));
                for n in 0..10 {
                    told.at.merge(&Bucket::answer(((minute + n) % 10) as f32 / 10.0, n % 3 == 0));
                }
                add(&batch, device, &told);
                before = Some((now, now_ms));
            }
            let now_s = BEGIN_S + minutes.last().expect("some") * 60;
            batch.fold_trends(device.as_str(), now_s).expect("folded");
            batch.commit().expect("committed");
        }
    }

    #[test]
    fn what_has_grown_old_is_folded_and_still_adds_up() {
        everywhere(|records| {
            let mut writer = open(records);
            let (own, other) = (name("own"), name("other"));
            live(&mut writer, &own, 30 * 60);
            live(&mut writer, &other, 5);
            let batch = writer.batch().expect("a batch");
            batch.fold_trends(own.as_str(), BEGIN_S + 40 * DAY).expect("folded");
            batch.commit().expect("committed");
            let reader = Reader::open(&records.at).expect("records");
            let sum = |device: &DeviceId| {
                let series = series(reader.trend(device, 0).expect("read"), 0, 60);
                (series.len(), series.iter().map(|shown| shown.bucket.answered).sum::<u64>())
            };
            assert_eq!(sum(&own), (3, 30 * 3600), "half a day each");
            assert_eq!(sum(&other), (6, 5 * 60));
            let batch = writer.batch().expect("a batch");
            batch.fold_trends(own.as_str(), BEGIN_S + 200 * DAY).expect("folded");
            batch.commit().expect("committed");
            assert_eq!(
                (sum(&own), sum(&other).0),
                ((0, 0), 6),
                "older than anything is kept, and another's is not touched"
            );
        });
    }

    #[test]
    fn the_whole_fleet_has_a_series_of_its_own_that_outlives_a_device_that_is_forgotten() {
        everywhere(|records| {
            let mut writer = open(records);
            let (own, told) = (name("own"), Stretch::at((BEGIN_S + 60) * 1000, Bucket::case(7)));
            let batch = writer.batch().expect("a batch");
            batch.set_totals(&Default::default()).expect("kept");
            add(&batch, &own, &told);
            for (place, page) in told.spread() {
                batch.add_trend(&batch.fleet(), place, &page).expect("added");
            }
            batch.forget_trends(&own).expect("forgotten");
            batch.commit().expect("committed");
            let reader = Reader::open(&records.at).expect("records");
            assert!(reader.trend(&own, 0).expect("read").is_empty());
            let all = series(reader.fleet_trend(0).expect("read"), 0, 60);
            assert_eq!(all.iter().map(|shown| shown.bucket.case_bytes).sum::<u64>(), 7);
            assert!(writer.devices_behind("", 9).expect("read").is_empty(), "it is no device");
        });
    }

    #[test]
    fn the_report_before_is_known() {
        everywhere(|records| {
            let mut writer = open(records);
            let batch = writer.batch().expect("a batch");
            assert!(batch.telemetry(&name("d")).expect("read").is_none());
            batch.set_telemetry(&name("d"), &report(3), 7).expect("kept");
            assert_eq!(batch.telemetry(&name("d")).expect("read"), Some((report(3), 7)));
            batch.commit().expect("committed");
            assert_eq!(writer.devices_behind("", 9).expect("read"), [name("d")]);
            assert!(writer.devices_behind("d", 9).expect("read").is_empty());
        });
    }

    /// After a week of reports a minute and a case a minute; indexes and what lies unused between rows included.
    #[test]
    fn a_week_takes_at_most_200_bytes_a_device_and_hour() {
        const HOURS: u64 = 7 * 24;
        let dir = tempfile::tempdir().expect("a directory");
        let at = super::super::RecordsAt::file(dir.path().join(super::super::FILE_NAME));
        let mut writer = Writer::open(&at, &Name::new("one").expect("valid")).expect("records");
        let bytes = |writer: &Writer| {
            let statement = "SELECT (page_count - freelist_count) * page_size \
                 FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
            count(writer.sql.row(statement, &[], |row| row.get(0)).expect("read").expect("a size"))
        };
        let before = bytes(&writer);
        live(&mut writer, &name("warehouse-camera-1"), HOURS * 60);
        let each = (bytes(&writer) - before) / HOURS;
        assert!(each <= 200, "{each} bytes a device and hour");
    }

    /// However many devices there are, a page reads what one of them has.
    #[test]
    fn a_device_s_history_is_found_by_an_index_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = super::super::RecordsAt::file(dir.path().join(super::super::FILE_NAME));
        let writer = Writer::open(&at, &Name::new("one").expect("valid")).expect("records");
        let plan = writer
            .sql
            .rows(&format!("EXPLAIN QUERY PLAN {OF_DEVICE}"), &["d".into(), 0_u64.into()], |row| row.get::<String>(3));
        let plan = plan.expect("a plan");
        assert!(!plan.is_empty() && plan.iter().all(|step| step.starts_with("SEARCH trends USING")), "{plan:?}");
    }
}
