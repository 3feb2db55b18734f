//! The records with payloads elsewhere, and a small store that speaks as much S3 as that takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use hedge_proto::{Authority, Case, ModelRef, Name, Output, Verdict, WIRE_VERSION};

use super::*;
use crate::store::testing::{case, everywhere};
use crate::store::{Keep, Reader, RecordsAt, Writer};

#[derive(Default)]
struct Kept {
    objects: BTreeMap<String, Vec<u8>>,
    /// When what is put now was put.
    now: String,
    times: BTreeMap<String, String>,
    is_down: bool,
}

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Kept>>);

impl Store {
    fn start() -> (Self, Objects) {
        // As `main` does; another test of this process may have.
        drop(rustls::crypto::ring::default_provider().install_default());
        let store = Self::default();
        let (router, runtime) = (Router::new().fallback(answer).with_state(store.clone()), Runtime::new());
        let address = runtime.serve(router);
        let given = [
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_ACCESS_KEY_ID", "a".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "b".to_owned()),
        ];
        let variable = |name: &str| given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.clone());
        (store, Objects::open("s3://bucket/cases", &variable).expect("opened"))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> Vec<String> {
        self.kept().objects.keys().filter(|name| !name.ends_with(PROBE)).cloned().collect()
    }

    /// Deletions are carried out behind everybody's back.
    #[track_caller]
    fn wait_for(&self, names: &[String]) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.names() != names {
            assert!(Instant::now() < until, "{:?} instead of {names:?}", self.names());
            std::thread::yield_now();
        }
    }
}

/// A thread for the store, until the test's process ends.
struct Runtime(tokio::runtime::Runtime);

impl Runtime {
    fn new() -> Self {
        Self(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"))
    }

    fn serve(self, router: Router) -> std::net::SocketAddr {
        let listener = self.0.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("an address");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || self.0.block_on(async { axum::serve(listener, router).await }));
        address
    }
}

async fn answer(State(store): State<Store>, method: Method, uri: Uri, body: Bytes) -> (StatusCode, Vec<u8>) {
    let mut kept = store.kept();
    if kept.is_down {
        return (StatusCode::SERVICE_UNAVAILABLE, Vec::new());
    }
    let path = uri.path().strip_prefix("/bucket/").unwrap_or_default().to_owned();
    let query: BTreeMap<String, String> =
        form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    match method {
        Method::PUT => {
            let now = kept.now.clone();
            kept.times.insert(path.clone(), now);
            kept.objects.insert(path, body.to_vec());
            (StatusCode::OK, Vec::new())
        }
        Method::DELETE => {
            kept.objects.remove(&path);
            (StatusCode::NO_CONTENT, Vec::new())
        }
        _ if query.contains_key("list-type") => {
            let after = query.get("start-after").cloned().unwrap_or_default();
            let most = query.get("max-keys").and_then(|most| most.parse().ok()).unwrap_or(1000);
            let found = kept.objects.keys().filter(|key| **key > after).take(most);
            let found = found.map(|key| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>{}</LastModified><Size>1</Size></Contents>",
                    kept.times[key]
                )
            });
            let found: String = found.collect();
            let name = "ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
            (StatusCode::OK, format!("<{name}><Name>bucket</Name>{found}</ListBucketResult>").into_bytes())
        }
        _ => match kept.objects.get(&path) {
            Some(bytes) => (StatusCode::OK, bytes.clone()),
            None => (StatusCode::NOT_FOUND, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
        },
    }
}

fn name_of(case: &Case) -> String {
    format!("cases/{}", key(&case.id, &case.payload_sha256))
}

fn writer(at: &RecordsAt) -> Writer {
    Writer::open(at, &Name::new("one").expect("valid")).expect("records")
}

fn record(writer: &mut Writer, case: &Case) -> Result<(), StoreError> {
    let batch = writer.batch()?;
    batch.record(case, b"p", 1)?;
    batch.commit()
}

#[test]
fn a_payload_is_there_before_its_record_is_read_from_there_and_goes_with_it() {
    everywhere(|records| {
        let (store, objects) = Store::start();
        let at = records.at.clone().with_objects(objects);
        let mut writer = writer(&at);
        for sequence in 0..3 {
            record(&mut writer, &case(sequence)).expect("recorded");
        }
        assert_eq!(store.names(), [0, 1, 2].map(|sequence| name_of(&case(sequence))));
        let reader = Reader::open(&at).expect("records");
        assert_eq!(reader.payload(&case(1).id).expect("read").expect("kept").1, b"p");
        let Some((_, Payload::Coming(coming))) = writer.load(&case(1).id).expect("read") else {
            panic!("it is elsewhere")
        };
        assert_eq!(futures_executor::block_on(coming).expect("told"), Ok(Some(b"p".to_vec())));

        // A commit that does not come about deletes nothing; one that does takes the object along.
        let batch = writer.batch().expect("a batch");
        batch.delete(&case(0).id).expect("deleted");
        drop(batch);
        let batch = writer.batch().expect("a batch");
        batch.delete(&case(1).id).expect("deleted");
        batch.commit().expect("committed");
        store.wait_for(&[name_of(&case(0)), name_of(&case(2))]);

        // So does age.
        let batch = writer.batch().expect("a batch");
        let said = Output::label("a");
        let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        let (v, authority, task) = (WIRE_VERSION, Authority::Model, "t".to_owned());
        let verdict = Verdict { v, id: case(2).id, revision: 1, authority, task, said, model };
        batch.answer(&verdict, None, 2).expect("answered");
        let keep = Keep { payload_bytes_max: u64::MAX, payload_age_ms: 1, record_age_ms: u64::MAX };
        assert_eq!(batch.prune(&keep, 1_000).expect("pruned"), 1);
        batch.commit().expect("committed");
        store.wait_for(&[name_of(&case(0))]);
        assert!(reader.payload(&case(2).id).expect("read").is_none());
    });
}

#[test]
fn while_the_store_is_away_nothing_is_recorded_and_what_is_in_the_database_is_read() {
    everywhere(|records| {
        let mut before = writer(&records.at);
        record(&mut before, &case(0)).expect("recorded");
        drop(before);
        let (store, objects) = Store::start();
        store.kept().is_down = true;
        let at = records.at.clone().with_objects(objects);
        let mut writer = writer(&at);
        let error = record(&mut writer, &case(1)).expect_err("the store is away");
        assert!(error.to_string().contains("503"), "{error}");
        let batch = writer.batch().expect("a batch");
        assert_eq!(batch.known(&case(1).id).expect("read"), None);
        assert!(batch.probe().is_err());
        drop(batch);
        assert!(matches!(writer.load(&case(0).id), Ok(Some((_, Payload::Here(bytes)))) if bytes == b"p"));
        store.kept().is_down = false;
        record(&mut writer, &case(1)).expect("recorded");
        assert_eq!(store.names(), [name_of(&case(1))]);
        drop(writer);
        // Whoever forgets the store is told so.
        let error = Reader::open(&records.at).and_then(|reader| reader.payload(&case(1).id)).expect_err("elsewhere");
        assert!(error.to_string().contains("--payloads"), "{error}");
    });
}

#[test]
fn what_is_not_as_it_was_put_is_nobodys_payload_and_what_answers_everything_is_no_store() {
    everywhere(|records| {
        let (store, objects) = Store::start();
        let at = records.at.clone().with_objects(objects);
        let mut writer = writer(&at);
        record(&mut writer, &case(0)).expect("recorded");
        let load = |writer: &Writer| {
            let Some((_, Payload::Coming(coming))) = writer.load(&case(0).id).expect("read") else {
                panic!("elsewhere")
            };
            futures_executor::block_on(coming).expect("told")
        };
        let damaged = b"<html>".to_vec();
        store.kept().objects.insert(name_of(&case(0)), damaged.clone());
        assert_eq!(load(&writer), Ok(None));
        assert!(Reader::open(&at).expect("records").payload(&case(0).id).expect("read").is_none());
        store.kept().objects.insert(format!("cases/{PROBE}"), damaged);
        assert!(load(&writer).expect_err("away").contains("not the store"));
        assert!(writer.batch().expect("a batch").probe().is_err());
        store.kept().objects.insert(format!("cases/{PROBE}"), Vec::new());
        store.kept().objects.insert(name_of(&case(0)), b"p".to_vec());
        assert_eq!(load(&writer), Ok(Some(b"p".to_vec())));
    });
}

#[test]
fn what_no_record_names_is_deleted_once_it_is_old() {
    everywhere(|records| {
        let (store, objects) = Store::start();
        let at = records.at.clone().with_objects(objects.clone());
        let mut writer = writer(&at);
        store.kept().now = "1994-11-06T08:49:36.999Z".to_owned();
        record(&mut writer, &case(0)).expect("recorded");
        let strange = "somebody/else".to_owned();
        let left_over = |sequence: u64| (key(&case(sequence).id, &Digest::of(b"other")), b"picture".to_vec());
        objects.put_all(vec![left_over(0), left_over(1), (strange.clone(), Vec::new())]).expect("put");
        store.kept().now = "1994-11-06T08:49:37.000Z".to_owned();
        objects.put_all(vec![left_over(2)]).expect("put");
        let reader = Reader::open(&at).expect("records");
        assert_eq!(objects.sweep(&reader, 784_111_777_000).expect("swept"), 2);
        let mut stays = [name_of(&case(0)), format!("cases/{}", left_over(2).0), format!("cases/{strange}")];
        stays.sort();
        store.wait_for(&stays);
    });
}
