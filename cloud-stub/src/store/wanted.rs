//! Cases of which a thumbnail is on record, and whose whole samples are wanted of their devices. Meanwhile nobody is asked
//! about them.

use hedge_proto::{Case, CaseId, DeviceId, Digest, to_cbor};

use super::writer::{Batch, WAITING_COLUMNS, Waiting, Writer, waiting};
use super::{Known, Standing, StoreError, count, damaged};

/// The most cases that are looked at together because their wait is over.
const OVERDUE_AT_ONCE_MAX: u32 = 500;

impl Known {
    /// Whether it is of the same sample: as it came, or in another form that one of the two names.
    #[must_use]
    pub fn is_of(&self, case: &Case) -> bool {
        let is_known = |sum: Digest| sum == self.payload_sha256 || Some(sum) == self.other_sha256;
        is_known(case.payload_sha256) || case.offer.is_some_and(|offer| is_known(offer.payload_sha256))
    }

    /// Whether this is the whole that is wanted.
    #[must_use]
    pub fn wants(&self, case: &Case) -> bool {
        self.standing == Standing::Wanted && self.other_sha256 == Some(case.payload_sha256)
    }
}

impl Batch<'_> {
    /// Notes that the whole sample is wanted before the case is answered.
    pub fn want(&self, id: &CaseId, now_ms: u64) -> Result<(), StoreError> {
        self.change("UPDATE cases SET wanted_ms = ?2 WHERE id = ?1", &[(&id.to_string()).into(), now_ms.into()])
    }

    /// How many samples are wanted of a device.
    pub fn wanted_of(&self, device: &DeviceId) -> Result<u64, StoreError> {
        let statement = "SELECT COUNT(*) FROM cases WHERE device = ?1 AND wanted_ms IS NOT NULL";
        Ok(count(self.sql.row(statement, &[device.as_str().into()], |row| row.get(0))?.unwrap_or(0)))
    }

    /// Puts the whole sample in the place of its thumbnail; the case waits for its answer, here, and nobody has declined
    /// it. Also tells how many bytes the thumbnail had. Nothing if it is not wanted any more.
    pub fn complete(&self, whole: &Case, payload: &[u8]) -> Result<Option<(Waiting, u64)>, StoreError> {
        let Some((mut header, waiting, bytes_here)) = self.wanted(&whole.id)? else { return Ok(None) };
        self.let_go(&whole.id, &header.payload_sha256.0, bytes_here)?;
        let (thumbnail_sha256, thumbnail_bytes) = (header.payload_sha256, waiting.bytes);
        (header.form, header.payload_sha256, header.offer) = (whole.form, whole.payload_sha256, None);
        header.content_type.clone_from(&whole.content_type);
        let (id, bytes) = (whole.id.to_string(), payload.len() as u64);
        self.change(
            "UPDATE cases SET payload_sha256 = ?2, other_sha256 = ?3, payload_bytes = ?4, content_type = ?5 WHERE id = ?1",
            &[
                (&id).into(),
                header.payload_sha256.0.as_slice().into(),
                thumbnail_sha256.0.as_slice().into(),
                bytes.into(),
                (&header.content_type).into(),
            ],
        )?;
        self.change(
            "UPDATE payloads SET bytes = ?2 WHERE seq = (SELECT seq FROM cases WHERE id = ?1)",
            &[(&id).into(), self.here(&header, payload).into()],
        )?;
        self.not_wanted(&id, &header)?;
        Ok(Some((Waiting::new(waiting.id, waiting.task, bytes), thumbnail_bytes)))
    }

    /// The thumbnail must do: the case waits for its answer, here. Nothing if the whole is not wanted any more.
    pub fn make_do(&self, id: &CaseId) -> Result<Option<Waiting>, StoreError> {
        let Some((mut header, waiting, _)) = self.wanted(id)? else { return Ok(None) };
        header.offer = None;
        self.not_wanted(&id.to_string(), &header)?;
        Ok(Some(Waiting::new(waiting.id, waiting.task, waiting.bytes)))
    }

    fn not_wanted(&self, id: &str, header: &Case) -> Result<(), StoreError> {
        self.change(
            "UPDATE cases SET wanted_ms = NULL, declined = NULL, header = ?2, instance = ?3 WHERE id = ?1",
            &[id.into(), (&to_cbor(header)).into(), self.instance().into()],
        )
    }

    /// Also how many bytes its row has, as [`Batch::let_go`] wants to know.
    fn wanted(&self, id: &CaseId) -> Result<Option<(Case, Waiting, i64)>, StoreError> {
        let statement = format!(
            "SELECT {WAITING_COLUMNS}, header, \
             (SELECT CAST(LENGTH(p.bytes) AS BIGINT) FROM payloads p WHERE p.seq = cases.seq) \
             FROM cases WHERE id = ?1 AND state = 0 AND wanted_ms IS NOT NULL"
        );
        self.sql.row(&statement, &[(&id.to_string()).into()], |row| {
            let header = row.cbor(6)?;
            Ok((header, waiting(row)?, row.get::<Option<i64>>(7)?.unwrap_or(0)))
        })
    }
}

impl Writer {
    /// Cases of this instance whose whole samples have been wanted since before then; some of them, if there are many.
    pub fn overdue(&self, wanted_before_ms: u64) -> Result<Vec<CaseId>, StoreError> {
        let statement =
            "SELECT id FROM cases WHERE wanted_ms IS NOT NULL AND wanted_ms < ?1 AND instance = ?2 LIMIT ?3";
        let values = [wanted_before_ms.into(), (&self.instance).into(), OVERDUE_AT_ONCE_MAX.into()];
        self.sql.rows(statement, &values, |row| row.get::<String>(0)?.parse().map_err(damaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Payload;
    use crate::store::testing::{Records, case, everywhere};
    use hedge_proto::{Name, Offer, PayloadForm};

    const WHOLE: &[u8] = b"the whole picture";

    fn open(records: &Records, instance: &str) -> Writer {
        Writer::open(&records.at, &Name::new(instance).expect("valid")).expect("records")
    }

    fn thumbnail(sequence: u64) -> Case {
        let offer =
            Offer { form: PayloadForm::Whole, payload_sha256: Digest::of(WHOLE), payload_bytes: WHOLE.len() as u64 };
        Case { form: PayloadForm::Thumbnail, offer: Some(offer), ..case(sequence) }
    }

    fn whole(sequence: u64) -> Case {
        Case { payload_sha256: Digest::of(WHOLE), content_type: "image/jpeg".to_owned(), ..case(sequence) }
    }

    fn committed<T>(writer: &mut Writer, act: impl Fn(&Batch<'_>) -> Result<T, StoreError>) -> T {
        let batch = writer.batch().expect("a batch");
        let done = act(&batch).expect("done");
        batch.commit().expect("committed");
        done
    }

    #[test]
    fn a_wanted_sample_outlives_the_process_and_is_given_to_nobody_until_it_is_whole() {
        everywhere(|records| {
            let mut writer = open(records, "one");
            committed(&mut writer, |batch| {
                batch.record(&thumbnail(1), b"p", 1)?;
                batch.record(&thumbnail(2), b"p", 1)?;
                batch.want(&thumbnail(1).id, 5)
            });
            drop(writer);
            let mut writer = open(records, "one");
            let left: Vec<u64> = writer.waiting().expect("read").iter().map(|one| one.id.key.sequence).collect();
            assert_eq!(left, [2]);
            let known = committed(&mut writer, |batch| batch.known(&thumbnail(1).id)).expect("there");
            assert_eq!(known.standing, Standing::Wanted);
            assert!(known.wants(&whole(1)) && known.is_of(&thumbnail(1)) && !known.wants(&thumbnail(1)));
            assert!(!known.is_of(&Case { payload_sha256: Digest::of(b"q"), ..case(1) }));
            let device = thumbnail(1).id.device;
            assert_eq!(committed(&mut writer, |batch| batch.wanted_of(&device)), 1);

            let (work, before) = committed(&mut writer, |batch| batch.complete(&whole(1), WHOLE)).expect("wanted");
            assert_eq!((work.bytes, before), (WHOLE.len() as u64, 1));
            let (header, payload) = writer.load(&whole(1).id).expect("read").expect("there");
            assert_eq!(header, whole(1));
            assert!(matches!(payload, Payload::Here(bytes) if bytes == WHOLE));
            let known = committed(&mut writer, |batch| batch.known(&whole(1).id)).expect("there");
            assert_eq!(known.standing, Standing::Waiting);
            assert!(known.is_of(&whole(1)) && known.is_of(&thumbnail(1)), "whichever comes late");
            assert_eq!(committed(&mut writer, |batch| batch.complete(&whole(1), WHOLE)), None, "once");
            assert_eq!(committed(&mut writer, |batch| batch.wanted_of(&device)), 0);
            assert_eq!(writer.waiting().expect("read").len(), 2);
        });
    }

    #[test]
    fn after_its_time_the_thumbnail_must_do_and_the_whole_is_still_known_as_the_same_sample() {
        everywhere(|records| {
            let mut writer = open(records, "one");
            let id = thumbnail(1).id;
            committed(&mut writer, |batch| {
                batch.record(&thumbnail(1), b"p", 1)?;
                batch.decline(&id, "a")?;
                batch.want(&id, 5)
            });
            assert_eq!(writer.overdue(5).expect("read"), []);
            assert_eq!(writer.overdue(6).expect("read"), std::slice::from_ref(&id));
            let work = committed(&mut writer, |batch| batch.make_do(&id));
            assert_eq!(work, Some(Waiting::new(id.clone(), "t".to_owned(), 1)), "everybody is asked again");
            assert_eq!((writer.overdue(6).expect("read"), writer.waiting().expect("read").len()), (vec![], 1));
            assert_eq!(committed(&mut writer, |batch| batch.make_do(&id)), None, "once");
            let (header, _) = writer.load(&id).expect("read").expect("there");
            assert_eq!(header.offer, None, "it is not wanted again");
            let known = committed(&mut writer, |batch| batch.known(&id)).expect("there");
            assert!(known.is_of(&whole(1)) && !known.wants(&whole(1)));
        });
    }

    #[test]
    fn what_is_wanted_is_another_instance_s_when_its_own_has_gone_and_any_may_complete_it() {
        let Some(records) = Records::on_server() else { return };
        let [mut one, mut two] = ["one", "two"].map(|name| open(&records, name));
        committed(&mut one, |batch| {
            batch.record(&thumbnail(1), b"p", 1)?;
            batch.record(&thumbnail(2), b"p", 1)?;
            batch.want(&thumbnail(1).id, 5)?;
            batch.want(&thumbnail(2).id, 5)
        });
        let completed = committed(&mut two, |batch| batch.complete(&whole(2), WHOLE));
        assert!(completed.is_some(), "its device's message came here");
        drop(one);
        assert_eq!(two.renew().expect("renewed"), [], "nobody is asked about it");
        assert_eq!(two.overdue(6).expect("read"), [thumbnail(1).id]);
        assert_eq!(two.waiting().expect("read").len(), 1);
    }
}
