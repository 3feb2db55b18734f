use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use hedge_core::outbox::WhenFull;
use hedge_core::policy::Policies;
use hedge_proto::{Authority, Name, Output, Verdict, to_cbor};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::answers::Answers;
use crate::capture::testing::{answer, case, id};
use crate::in_force::InForce;
use crate::link::LinkView;
use crate::state::StateFile;
use crate::verdict::{Locals, Sinks, Way};
use hedge_config::{CommandSinkConfig, Config, JsonlConfig, KIND_TABLES, SinkConfig, VerdictsConfig, WebhookConfig};
use hedge_outbox::{Limits, NewCase, Outbox};

const LIMITS: Limits = Limits {
    cases_max: 100,
    bytes_max: 1 << 20,
    free_bytes_min: 0,
    payload_bytes_max: 1 << 10,
    when_full: WhenFull::RefuseNew,
};

const CASES: u64 = 20;

/// Stores case `n`, answered.
async fn answered(outbox: &Outbox, n: u64) {
    let case = case(n);
    let verdict = Verdict {
        v: 1,
        id: case.id.clone(),
        revision: 1,
        authority: Authority::Model,
        task: case.task.clone(),
        said: Output::label("boot"),
        model: case.model.clone(),
    };
    let (key, payload) = (case.id.key, Bytes::from_static(b"x"));
    let new = NewCase { key, sort_key: 0.0, stored_at: Moment(0), header: to_cbor(&case), payload };
    outbox.store(new).await.expect("stored");
    outbox.answered(key, 1, to_cbor(&verdict)).await.expect("answered");
}

/// An outbox and everything a delivery works with.
struct Bench {
    folder: tempfile::TempDir,
    verdicts: Verdicts,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let folder = tempfile::tempdir().expect("a folder");
        let (outbox, _) = Outbox::open(&folder.path().join("outbox"), LIMITS).expect("opens");
        let figures: Arc<crate::figures::Figures> = Arc::default();
        let verdicts = Verdicts {
            outbox,
            answers: Answers::default(),
            locals: Locals::new(figures.clone()),
            figures,
            link: watch::channel(LinkView::starting(Policies::DEFAULT.online)).1,
            settings: watch::channel(Arc::new(InForce::new(0, Config::default(), &BTreeSet::new()))).1,
            learned: BTreeMap::new(),
            news: watch::Sender::new(()),
            faults: Default::default(),
            sinks: Arc::new(AtomicU16::new(u16::MAX)),
        };
        Self { folder, verdicts, stop: CancellationToken::new() }
    }

    fn start(&self, sink: Sink) -> JoinHandle<()> {
        self.verdicts.locals.serve(&sink);
        tokio::spawn(Delivery::new(self.verdicts.clone(), sink).run(self.stop.clone()))
    }

    async fn answered(&self, n: u64) {
        answered(&self.verdicts.outbox, n).await;
        self.verdicts.news.send_replace(());
    }

    fn give(&self, n: u64, waited_for: bool) {
        self.verdicts.locals.pass_on(&Arc::new(answer(id(n), "cam", None, 0)), waited_for);
    }

    fn undelivered(&self, sink: u8) -> usize {
        self.verdicts.outbox.undelivered(sink, 1000).len()
    }

    fn fault(&self, part: &str) -> Option<String> {
        self.verdicts.faults.now().remove(part)
    }

    fn figures(&self, sink: &str) -> hedge_proto::SinkFigures {
        self.verdicts.figures.sinks().remove(sink).unwrap_or_default()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..6000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come: {:?}, {:?}", self.verdicts.faults.now(), self.verdicts.figures.sinks());
    }

    fn lines(&self, path: &std::path::Path) -> Vec<(u64, u32)> {
        let text = std::fs::read_to_string(path).expect("written");
        let answer = |line| serde_json::from_str::<Answer>(line).expect("an answer");
        text.lines().map(answer).map(|answer| (answer.id.key.sequence, answer.revision)).collect()
    }
}

const JSONL: u8 = 0;
const WEBHOOK: u8 = 1;
const COMMAND: u8 = 2;

/// The sink of a kind's own table.
fn sink(number: u8, config: &SinkConfig) -> Sink {
    let name = Name::new(KIND_TABLES[usize::from(number)]).expect("a name");
    Sink::new(name, number, config, None, &id(0).device)
}

fn file(path: &std::path::Path, wanted: SinkWants) -> SinkConfig {
    SinkConfig::Jsonl(JsonlConfig { path: path.to_owned(), wanted, bytes_max: 1 << 20 })
}

/// A web server that answers with `status`, and with 204 for whoever is not the `poisoned` one if there is one.
async fn receiver(status: &Arc<AtomicU16>, poisoned: Option<&'static str>) -> Sink {
    let status = status.clone();
    let take = async move |headers: axum::http::HeaderMap| {
        let key = headers["idempotency-key"].to_str().expect("text").to_owned();
        let refuses = poisoned.is_none_or(|poisoned| key.contains(poisoned));
        let status = if refuses { status.load(Ordering::Relaxed) } else { 204 };
        axum::http::StatusCode::from_u16(status).expect("a status")
    };
    let routes = axum::Router::new().route("/hook", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    sink(
        WEBHOOK,
        &SinkConfig::Webhook(WebhookConfig { url, wanted: SinkWants::default(), ca_file: None, token_file: None }),
    )
}

#[tokio::test]
async fn what_a_webhook_refuses_is_kept_said_counted_and_delivered_once_it_is_taken() {
    for refusal in [308, 400, 401, 403, 404] {
        let (bench, status) = (Bench::new(), Arc::new(AtomicU16::new(refusal)));
        let delivery = bench.start(receiver(&status, None).await);
        for n in 0..4 {
            bench.answered(n).await;
        }
        bench.until("a fault", |bench| bench.fault("sink.webhook").is_some()).await;
        let fault = bench.fault("sink.webhook").expect("there");
        assert!(fault.contains(&refusal.to_string()) && fault.contains("kept"), "{fault}");
        bench.until("three are refused", |bench| bench.figures("webhook").refused >= 3).await;
        assert_eq!(bench.undelivered(WEBHOOK), 4, "{refusal}: all are kept");
        status.store(204, Ordering::Relaxed);
        bench.until("all are delivered", |bench| bench.undelivered(WEBHOOK) == 0).await;
        bench.until("it is well", |bench| bench.fault("sink.webhook").is_none()).await;
        assert_eq!(bench.figures("webhook").delivered, 4);
        bench.stop.cancel();
        delivery.await.expect("ends");
    }
}

#[tokio::test]
async fn one_correction_that_is_never_taken_holds_up_no_other() {
    let (bench, status) = (Bench::new(), Arc::new(AtomicU16::new(400)));
    bench.verdicts.sinks.store(1 << WEBHOOK, Ordering::Relaxed);
    let sequence: &'static str = Box::leak(id(3).to_string().into_boxed_str());
    bench.start(receiver(&status, Some(sequence)).await);
    for n in 0..CASES {
        bench.answered(n).await;
    }
    bench.until("all others are delivered", |bench| bench.verdicts.outbox.figures().answered == 1).await;
    let fault = bench.fault("sink.webhook").expect("a fault stays while something is refused");
    assert!(fault.contains("400"), "{fault}");
    // Ended by age, the fault has no reason any more.
    bench.verdicts.outbox.expire(Moment(u64::MAX)).await.expect("expired");
    assert_eq!(bench.verdicts.outbox.dropped().undelivered, 1);
    bench.answered(100).await;
    bench.until("it is well", |bench| bench.fault("sink.webhook").is_none()).await;
}

#[tokio::test]
async fn a_command_that_fails_on_one_correction_gets_the_others() {
    let bench = Bench::new();
    let out = bench.folder.path().join("taken");
    let script = format!("read line; case $line in *'{}'*) exit 3;; esac; echo >> {}", id(1), out.display());
    let command = vec!["sh".to_owned(), "-c".to_owned(), script];
    bench.start(sink(COMMAND, &SinkConfig::Command(CommandSinkConfig { command, wanted: SinkWants::default() })));
    for n in 0..4 {
        bench.answered(n).await;
    }
    bench.until("the others are taken", |bench| bench.figures("command").delivered == 3).await;
    assert!(bench.fault("sink.command").expect("a fault").contains("exit code 3"));
}

#[tokio::test]
async fn a_sink_whose_file_is_missing_is_a_fault_of_its_own_and_heals() {
    let bench = Bench::new();
    let token = bench.folder.path().join("token");
    let status = Arc::new(AtomicU16::new(204));
    let sink = receiver(&status, None).await;
    let Way::Webhook(webhook) = sink.way else { panic!("a webhook") };
    bench.start(Sink { way: Way::Webhook(webhook.with_token(&token)), ..sink });
    bench.until("a fault", |bench| bench.fault("sink.webhook").is_some()).await;
    let fault = bench.fault("sink.webhook").expect("there");
    assert!(fault.contains(&format!("token_file = {}", token.display())), "{fault}");
    bench.answered(1).await;
    std::fs::write(&token, "secret").expect("written");
    bench.until("it is delivered", |bench| bench.undelivered(WEBHOOK) == 0).await;
    bench.until("it is well", |bench| bench.fault("sink.webhook").is_none()).await;
}

#[tokio::test]
async fn a_file_whose_folder_comes_later_gets_every_answer_that_was_waited_for() {
    let bench = Bench::new();
    let place = bench.folder.path().join("later");
    let path = place.join("answers.jsonl");
    let delivery = bench.start(sink(JSONL, &file(&path, SinkWants::All)));
    bench.until("a fault", |bench| bench.fault("sink.jsonl").is_some()).await;
    assert!(bench.fault("sink.jsonl").expect("there").contains("folders"), "it says what else waits");
    bench.give(0, true);
    let written = bench.verdicts.locals.written();
    tokio::pin!(written);
    assert!(timeout(Duration::from_millis(50), &mut written).await.is_err());
    std::fs::create_dir(&place).expect("made");
    written.await;
    assert_eq!(bench.lines(&path), [(0, 0)], "written before whoever waited goes on");
    bench.until("it is well", |bench| bench.fault("sink.jsonl").is_none()).await;
    // What nobody waited for is still written when the agent stops in good order.
    bench.give(1, false);
    bench.stop.cancel();
    delivery.await.expect("ends");
    assert_eq!((bench.lines(&path), bench.verdicts.locals.waiting(JSONL)), (vec![(0, 0), (1, 0)], 0));
}

#[tokio::test]
async fn a_sink_that_comes_late_to_its_turn_still_gets_each_answer_before_its_correction() {
    let bench = Bench::new();
    let path = bench.folder.path().join("answers.jsonl");
    bench.verdicts.locals.serve(&sink(JSONL, &file(&path, SinkWants::All)));
    for n in 0..CASES {
        bench.give(n, false);
        bench.answered(n).await;
    }
    bench.start(sink(JSONL, &file(&path, SinkWants::All)));
    bench.until("all are delivered", |bench| bench.undelivered(JSONL) == 0).await;
    let seen = bench.lines(&path);
    let place = |wanted| seen.iter().position(|one| *one == wanted);
    for n in 0..CASES {
        assert!(place((n, 0)).is_some() && place((n, 0)) < place((n, 1)), "{seen:?}");
    }
}

#[tokio::test]
async fn sinks_of_one_kind_are_apart_and_one_that_is_renamed_or_removed_loses_and_blocks_nothing() {
    let bench = Bench::new();
    let path = |name: &str| bench.folder.path().join(name);
    let config = |files: &[&str], away: bool| {
        let name = |text: &str| Name::new(text).expect("a name");
        let mut sinks: BTreeMap<Name, SinkConfig> =
            files.iter().map(|text| (name(text), file(&path(text), SinkWants::Corrections))).collect();
        if away {
            let url = "http://127.0.0.1:1/".to_owned();
            let webhook = WebhookConfig { url, wanted: SinkWants::default(), ca_file: None, token_file: None };
            sinks.insert(name("webhook"), SinkConfig::Webhook(webhook));
        }
        VerdictsConfig { score_min: None, sinks }
    };
    let has_all =
        |bench: &Bench, name: &str| path(name).exists() && bench.lines(&path(name)) == [(0, 1), (1, 1), (2, 1)];
    let (state, _) = StateFile::open(&path("state")).expect("opens");
    let (state, device) = (Arc::new(Mutex::new(state)), id(0).device);
    let (verdicts, stop) = (bench.verdicts.clone(), bench.stop.clone());
    let mut sinks = Sinks::start(&config(&["a", "b"], true), verdicts, state, None, device, stop);
    for n in 0..3 {
        bench.answered(n).await;
    }
    bench.until("both have all", |bench| has_all(bench, "a") && has_all(bench, "b")).await;
    assert_eq!(bench.verdicts.outbox.figures().answered, 3, "they wait for the webhook");

    sinks.apply(&config(&["a", "c"], true));
    bench.until("the new name gets what waits", |bench| has_all(bench, "c")).await;
    assert!(has_all(&bench, "a"), "and no other gets it twice");

    sinks.apply(&config(&["a", "c"], false));
    bench.until("nothing waits for a sink that is gone", |bench| bench.verdicts.outbox.figures().answered == 0).await;
    assert_eq!(bench.fault("sink.webhook"), None);
}
