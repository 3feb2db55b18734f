//! Over real sockets, with a fake intake behind them.

mod sockets;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hedge_core::policy::Policies;
use hedge_proto::{Answer, LinkState};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::capture::Capture;
use crate::capture::testing::{Fake, answer, id};
use crate::faults::Faults;
use crate::link::LinkView;
use crate::sample::SampleError;
use hedge_config::Config;

const JPEG: &[u8] = &[0xff, 0xd8, 0xff, 0xe0, 1, 2, 3];

pub(in crate::capture) struct Server {
    pub(in crate::capture) address: SocketAddr,
    pub(in crate::capture) fake: Arc<Fake>,
    stop: CancellationToken,
    capture: Capture,
}

fn config(http: &str, sources: &str) -> Config {
    let text = format!("[http]\n{http}\n[[model]]\nname = \"m\"\nbundle = \"/m\"\n{sources}");
    Config::parse(&text, "test.toml", std::iter::empty()).expect("a valid configuration")
}

pub(in crate::capture) async fn server(sources: &str) -> Server {
    server_with(sources, &Arc::default()).await
}

async fn server_with(sources: &str, fake: &Arc<Fake>) -> Server {
    let sources = if sources.is_empty() { "[[source]]\nname = \"cam\"\nkind = \"http\"" } else { sources };
    let config = config("listen = [\"127.0.0.1:0\"]\nbody_bytes_max = 100000", sources);
    let stop = CancellationToken::new();
    let capture = Capture::start(&config, &BTreeSet::new(), fake, &Faults::default(), &stop).await;
    Server { address: capture.addresses()[0], fake: fake.clone(), stop, capture }
}

impl Server {
    /// Sends one request, and reads the response until the server closes.
    pub(in crate::capture) async fn request(&self, head: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut socket = TcpStream::connect(self.address).await.expect("connected");
        let length = body.len();
        let head = format!("{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        socket.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
        response(&mut socket).await
    }

    async fn post(&self, query: &str, body: &[u8]) -> (u16, String) {
        let (status, _, body) = self.request(&format!("POST /v1/samples{query} HTTP/1.1"), body).await;
        (status, String::from_utf8(body).expect("text"))
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.request(&format!("GET {path} HTTP/1.1"), &[]).await;
        (status, String::from_utf8(body).expect("text"))
    }
}

async fn response(socket: &mut (impl AsyncRead + Unpin)) -> (u16, String, Vec<u8>) {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.expect("a response, then the end");
    let split = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..split].to_vec()).expect("text").to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head, bytes[split + 4..].to_vec())
}

#[track_caller]
fn read(body: &str) -> Answer {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[tokio::test]
async fn a_picture_gets_its_answer_with_ref_and_metadata_handed_on() {
    let server = server("").await;
    let head = "POST /v1/samples?source=cam&ref=a%20b HTTP/1.1\r\nX-Hedge-Metadata: {\"line\": \"3\"}";
    let (status, head, body) = server.request(head, JPEG).await;
    assert!(status == 200 && head.contains("application/json"), "{head}");
    assert_eq!(read(&String::from_utf8(body).expect("text")).reference.as_deref(), Some("a b"));
    let samples = server.fake.samples.lock().expect("not poisoned");
    assert_eq!((&samples[0].bytes[..], samples[0].metadata["line"].as_str()), (JPEG, "3"));
    assert!(!samples[0].frame, "the next one may be somebody else's");
}

#[tokio::test]
async fn a_picture_whose_caller_names_its_camera_is_a_frame_of_that_camera() {
    let server = server("").await;
    assert_eq!(server.post("?camera=camera.yard", JPEG).await.0, 200);
    let (status, body) = server.post("?camera=cam/yard", JPEG).await;
    let text = "{\"error\":\"camera: `cam/yard` is not a name of 1 to 64 letters, digits, `.`, `_` or `-`\"}";
    assert_eq!((status, body.as_str()), (400, text));
    let samples = server.fake.samples.lock().expect("not poisoned");
    let camera = samples[0].camera.as_ref().map(ToString::to_string);
    assert_eq!((samples[0].frame, camera.as_deref(), samples.len()), (true, Some("camera.yard"), 1));
}

#[tokio::test]
async fn a_200_mb_upload_is_refused_before_it_is_sent_and_the_connection_ends() {
    let server = server("").await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    let head = "POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n";
    socket.write_all(head.as_bytes()).await.expect("sent");
    let (status, head, body) = response(&mut socket).await;
    assert!(status == 413 && head.contains("connection: close"), "{head}");
    let text = "{\"error\":\"200000000 bytes are more than the 100000 a sample may have\"}";
    assert_eq!(String::from_utf8(body).expect("text"), text);
    assert_eq!(server.post("", JPEG).await.0, 200, "the agent serves on");
}

#[tokio::test]
async fn a_client_that_sends_all_its_200_mb_before_it_listens_still_reads_why() {
    let server = server("").await;
    for head in ["Content-Length: 200000000", "Transfer-Encoding: chunked"] {
        let mut socket = TcpStream::connect(server.address).await.expect("connected");
        let head = format!("POST /v1/samples HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.expect("sent");
        let block = [b"10000\r\n", &vec![0; 0x10000][..], b"\r\n"].concat();
        for _ in 0..200_000_000 / block.len() {
            if socket.write_all(&block).await.is_err() {
                break;
            }
        }
        let (status, _, body) = response(&mut socket).await;
        assert_eq!(status, 413, "{}", String::from_utf8_lossy(&body));
    }
    assert_eq!(server.fake.sample_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let server = server("").await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    let head = "POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc";
    socket.write_all(head.as_bytes()).await.expect("sent");
    assert_eq!(response(&mut socket).await.0, 408);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_given_up() {
    let server = server("").await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    socket.write_all(b"POST /v1/samples HTTP/1.1\r\nHost:").await.expect("sent");
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.expect("closed");
}

#[tokio::test]
async fn a_page_of_elsewhere_reads_nothing_and_changes_nothing() {
    let server = server("").await;
    let rebound = format!("Host: evil.example:{}", server.address.port());
    let ours = format!("Host: {}", server.address);
    let requests = [
        "GET /v1/status",
        "GET /v1/answers",
        "GET /v1/queue/cases/1.1/payload",
        "POST /v1/samples",
        "POST /v1/queue/drop",
        "POST /v1/settings/reset",
        "POST /v2/models/m/infer",
        "GET /metrics",
        "GET /nothing",
    ];
    for request in requests {
        for (host, more, expected) in [
            (&rebound, "", 421),
            (&rebound, "Sec-Fetch-Site: same-origin\r\n", 421),
            (&ours, "Origin: http://evil.example\r\n", 403),
            (&ours, "Origin: null\r\n", 403),
            (&ours, "Sec-Fetch-Site: cross-site\r\n", 403),
        ] {
            let mut socket = TcpStream::connect(server.address).await.expect("connected");
            let length = JPEG.len();
            let head = format!("{request} HTTP/1.1\r\n{host}\r\n{more}Content-Length: {length}\r\n\r\n");
            socket.write_all(&[head.as_bytes(), JPEG].concat()).await.expect("sent");
            let (status, _, body) = response(&mut socket).await;
            let body = String::from_utf8(body).expect("text");
            assert!(status == expected && body.starts_with("{\"error\":"), "{request} {host} {more}: {status} {body}");
        }
    }
    assert_eq!(server.fake.sample_count(), 0);
    // What `curl --data-binary` says by itself, and a page of ours.
    let curl = "POST /v1/samples HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded";
    assert_eq!(server.request(curl, JPEG).await.0, 200);
    let own = "POST /v1/samples HTTP/1.1\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-origin";
    assert_eq!(server.request(own, JPEG).await.0, 200);
}

#[tokio::test]
async fn slow_callers_hold_up_no_good_ones() {
    let server = server("").await;
    let mut held = Vec::new();
    for slow in [
        "",
        "POST /v1/samples HTTP/1.1\r\nHost:",
        "POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
        "POST /v1/samples?wait_ms=60000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n",
    ] {
        for _ in 0..super::BOUNDS.connections_max {
            let mut socket = TcpStream::connect(server.address).await.expect("connected");
            socket.write_all(slow.as_bytes()).await.expect("sent");
            if slow.contains("wait_ms") {
                socket.write_all(JPEG).await.expect("sent");
            }
            held.push(socket);
        }
        let good = tokio::time::timeout(Duration::from_secs(20), server.post("", JPEG)).await;
        assert_eq!(good.unwrap_or_else(|_| panic!("held up by {slow:?}")).0, 200);
    }
}

#[tokio::test]
async fn each_bad_request_gets_its_status_and_a_sentence() {
    let two = "[[source]]\nname = \"a\"\nkind = \"http\"\n[[source]]\nname = \"b\"\nkind = \"http\"";
    let server = server(two).await;
    let long_metadata = format!("POST /v1/samples?source=a HTTP/1.1\r\nX-Hedge-Metadata: \"{}\"", "x".repeat(2000));
    let json = "Content-Type: application/json";
    let (drop, reset) =
        (format!("POST /v1/queue/drop HTTP/1.1\r\n{json}"), format!("POST /v1/settings/reset HTTP/1.1\r\n{json}"));
    let cases: [(&str, &[u8], u16, &str); 22] = [
        ("POST /v1/samples HTTP/1.1", JPEG, 400, "say which source with ?source=; there are: a, b"),
        (
            "POST /v1/samples?source=c HTTP/1.1",
            JPEG,
            404,
            "there is no source named `c`; the configuration names: a, b",
        ),
        ("POST /v1/samples?source=a&wait=1 HTTP/1.1", JPEG, 400, "unknown field `wait`"),
        ("POST /v1/samples?source=a HTTP/1.1", b"just text", 422, "neither a JPEG nor a PNG"),
        ("POST /v1/samples?source=a HTTP/1.1", b"", 422, "empty, neither a JPEG nor a PNG"),
        ("POST /v1/samples?source=a HTTP/1.1", b"RIFF....WEBPVP8 ", 422, "this is a WebP picture, neither"),
        (
            "POST /v1/samples?source=a HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x",
            JPEG,
            422,
            "--data-binary @FILE and not with -F",
        ),
        ("POST /v1/samples?source=a&wait_ms=x HTTP/1.1", JPEG, 400, "of the address: wait_ms: it takes a whole number"),
        ("POST /v1/samples?source=a HTTP/1.1\r\nContent-Type: text/plain", JPEG, 422, "`text/plain` is not read"),
        ("POST /v1/samples?source=a HTTP/1.1\r\nContent-Encoding: gzip", JPEG, 415, "send it as it is"),
        ("POST /v1/samples?source=a HTTP/1.1\r\nX-Hedge-Metadata: {\"n\": 1}", JPEG, 400, "texts as values"),
        (&long_metadata, JPEG, 400, "metadata has 2002 bytes as JSON"),
        ("GET /v1/samples HTTP/1.1", b"", 405, "does not take this method"),
        ("GET /nothing HTTP/1.1", b"", 404, "nothing at this path"),
        ("GET /v1/samples/none HTTP/1.1", b"", 404, "no answer of this device"),
        ("GET /v1/samples/dev.0000000000000003.1 HTTP/1.1", b"", 404, "no answer of this device"),
        ("GET /v1/samples/dev.0000000000000001.1 HTTP/1.1", b"", 410, "too long ago"),
        ("GET /v1/samples/%ff HTTP/1.1", b"", 400, "UTF-8"),
        ("POST /v1/queue/drop HTTP/1.1\r\nContent-Type: text/plain", b"{}", 415, "application/json"),
        (&drop, b"[", 400, "EOF"),
        (&drop, &[b' '; 200_000], 413, "200000 bytes are more than the 131072"),
        (&reset, &[b' '; 200_000], 413, "200000 bytes are more than the 131072"),
    ];
    for (head, body, expected, text) in cases {
        let (status, _, body) = server.request(head, body).await;
        let body = String::from_utf8(body).expect("text");
        assert!(
            status == expected && body.starts_with("{\"error\":") && body.contains(text),
            "{head}: {status} {body}"
        );
    }
    assert_eq!(server.fake.sample_count(), 0);
    assert_eq!(server.post("?source=b", JPEG).await.0, 200, "the agent serves on");
}

#[tokio::test]
async fn what_the_intake_refuses_says_whose_turn_it_is() {
    let server = server("").await;
    let failed = || SampleError::ModelFailed { model: "m".to_owned(), reason: "no library".into() };
    server.fake.decide(move |sample| match sample.reference.as_deref() {
        Some("busy") => Err(SampleError::Overloaded("m".to_owned())),
        Some("broken") => Err(failed()),
        Some("undecided") => Err(SampleError::NoThreshold { model: "m".to_owned() }),
        Some("stopping") => Err(SampleError::Stopping),
        _ => Err(SampleError::Unusable("it ends too early".to_owned())),
    });
    for (reference, expected) in [("busy", 503), ("broken", 500), ("undecided", 503), ("stopping", 503), ("torn", 422)]
    {
        let (status, body) = server.post(&format!("?ref={reference}"), JPEG).await;
        assert!(status == expected && body.starts_with("{\"error\":"), "{reference}: {status} {body}");
    }
}

#[tokio::test]
async fn a_repeated_ref_gets_the_answer_already_given() {
    let server = server("").await;
    let (_, first) = server.post("?ref=7", JPEG).await;
    let (_, again) = server.post("?ref=7", JPEG).await;
    let (_, other) = server.post("?ref=8", JPEG).await;
    assert_eq!(read(&first), read(&again));
    assert_ne!(read(&first).id, read(&other).id);
    assert_eq!(server.fake.sample_count(), 2);
    let (status, body) = server.post("?ref=7", &[JPEG, b"and more"].concat()).await;
    assert!(status == 409 && body.contains("ref `7` names another sample already"), "{status} {body}");
}

#[tokio::test]
async fn who_waits_is_told_at_once_when_the_case_is_dead() {
    let server = server("").await;
    let waiting = server.post("?wait_ms=60000", JPEG);
    let dying = async {
        server.fake.until("the sample", |fake| fake.sample_count() == 1).await;
        server.fake.dead.send_replace(true);
    };
    let told = tokio::time::timeout(Duration::from_secs(50), async { tokio::join!(waiting, dying) }).await;
    let ((status, body), ()) = told.expect("told before the deadline");
    let answer = read(&body);
    assert_eq!((status, answer.provisional, answer.case), (200, false, Some(hedge_proto::CaseFate::Dead)));
}

#[tokio::test]
async fn a_post_repeated_before_the_first_is_answered_is_the_same_sample() {
    let fake = Arc::new(Fake::stuck());
    let server = server_with("", &fake).await;
    let hang_up = async {
        let mut socket = TcpStream::connect(server.address).await.expect("connected");
        let head =
            format!("POST /v1/samples?ref=7 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", JPEG.len());
        socket.write_all(&[head.as_bytes(), JPEG].concat()).await.expect("sent");
        fake.until("the sample", |fake| fake.sample_count() == 1).await;
    };
    hang_up.await;
    let answering = async {
        tokio::task::yield_now().await;
        fake.open();
    };
    let ((status, body), (again, other), ()) =
        tokio::join!(server.post("?ref=7", JPEG), server.post("?ref=7", JPEG), answering);
    assert_eq!((status, again), (200, 200));
    assert_eq!(read(&body), read(&other));
    assert_eq!(fake.sample_count(), 1);
}

#[tokio::test]
async fn a_waiting_caller_gets_the_correction_or_at_its_deadline_the_local_answer() {
    let server = server("").await;
    let (status, body) = server.post("?wait_ms=30", JPEG).await;
    let local = read(&body);
    assert_eq!((status, local.revision, local.provisional), (200, 0, true));

    let waiting = server.post("?wait_ms=60000", JPEG);
    let correcting = async {
        server.fake.until("the sample", |fake| fake.sample_count() == 2).await;
        while crate::capture::Intake::answers(&*server.fake).get(&id(1)).is_none() {
            tokio::task::yield_now().await;
        }
        crate::capture::Intake::answers(&*server.fake).correct(answer(id(1), "cam", None, 1));
    };
    let ((status, body), ()) = tokio::join!(waiting, correcting);
    assert_eq!((status, read(&body).revision), (200, 1));
    let (status, body) = server.get("/v1/samples/dev.0000000000000001.1").await;
    assert_eq!((status, read(&body).revision), (200, 1), "an id gives the last word");
    let (status, body) = server.get("/v1/samples/dev.0000000000000002.9").await;
    assert!(status == 202 && body.contains("\"provisional\":true"), "{status} {body}");
}

#[tokio::test]
async fn a_source_with_an_interval_passes_over_what_comes_too_soon() {
    let server = server("[[source]]\nname = \"cam\"\nkind = \"http\"\ninterval_ms = 600000").await;
    assert_eq!(server.post("", JPEG).await.0, 200);
    assert_eq!(server.post("", JPEG).await.0, 429);
    assert_eq!(server.fake.skipped.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn listeners_hear_answers_and_corrections_and_how_many_they_lost() {
    let server = server("").await;
    let mut socket = TcpStream::connect(server.address).await.expect("connected");
    socket.write_all(b"GET /v1/answers?source=cam HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let mut lines = BufReader::new(socket).lines();
    let mut next = async |start: &str| loop {
        let line = lines.next_line().await.expect("read").expect("more");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.to_owned();
        }
    };
    next("HTTP/1.1 200").await;
    next("content-type: text/event-stream").await;
    let answers = crate::capture::Intake::answers(&*server.fake);
    answers.give(answer(id(1), "other", None, 0));
    answers.give(answer(id(1), "cam", None, 0));
    assert_eq!(next("event: ").await, "answer");
    assert_eq!(next("id: ").await, "dev.0000000000000001.1/0");
    answers.correct(answer(id(1), "cam", None, 2));
    assert_eq!(next("event: ").await, "correction");
    assert_eq!(next("id: ").await, "dev.0000000000000001.1/2");
    // Nothing else runs meanwhile, so the listener falls behind its 256.
    (0..1000).for_each(|n| drop(answers.give(answer(id(n), "cam", None, 0))));
    assert_eq!(next("event: ").await, "lost");
    assert_eq!(next("data: ").await, "744");
    server.stop.cancel();
    while lines.next_line().await.expect("read").is_some() {}
    server.capture.stopped().await;
}

#[tokio::test]
async fn status_and_health_are_served() {
    let server = server("").await;
    let (status, body) = server.get("/v1/status").await;
    assert!(status == 200 && body.contains("\"uptime_s\":7"), "{body}");
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn nobody_waits_for_the_cloud_longer_than_the_links_state_allows() {
    let server = server("").await;
    let waiting = server.post("?wait_ms=60000", JPEG);
    let offline = async {
        server.fake.until("the sample", |fake| fake.sample_count() == 1).await;
        let enter = |view: &mut LinkView| view.enter(LinkState::Offline, "gone", Policies::DEFAULT.offline);
        server.fake.link.send_modify(enter);
    };
    let ((status, body), ()) = tokio::time::timeout(Duration::from_secs(50), async { tokio::join!(waiting, offline) })
        .await
        .expect("the wait ends with the link");
    assert_eq!((status, read(&body).revision), (200, 0));

    let (status, body) = tokio::time::timeout(Duration::from_secs(50), server.post("?wait_ms=60000", JPEG))
        .await
        .expect("offline nobody waits");
    assert_eq!((status, read(&body).provisional), (200, true));
    let urgent = |index: usize| server.fake.samples.lock().expect("not poisoned")[index].urgent;
    assert_eq!((urgent(0), urgent(1)), (true, false));
}
