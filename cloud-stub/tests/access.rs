//! Who may use the dashboard, and what becomes of those who may not.

mod rig;

use std::io::{BufRead as _, BufReader as Lines, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rig::{Broker, Cloud, PATIENCE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PASSWORD: &str = "correct horse";

/// What `hedge-cloud user …` prints.
fn user(state_dir: &Path, args: &[&str], typed: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
    command.arg("user").args(args).arg("--state-dir").arg(state_dir);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
    // One that asks for nothing may have ended.
    drop(child.stdin.take().expect("a pipe").write_all(typed.as_bytes()));
    let ended = child.wait_with_output().expect("its end");
    assert!(ended.status.success(), "{args:?}");
    String::from_utf8(ended.stdout).expect("text")
}

fn people(state_dir: &Path) {
    for role in ["viewer", "reviewer", "operator"] {
        user(state_dir, &["add", role, "--role", role], &format!("{PASSWORD}\n"));
    }
}

/// Submits the form. Status, headers, and what the browser shows from then on.
async fn log_in(cloud: &Cloud, name: &str, password: &str) -> (u16, String, String) {
    let (host, origin) = (cloud.dashboard.to_string(), format!("http://{}", cloud.dashboard));
    let form = format!("name={name}&password={}&next=%2Fcases", password.replace(' ', "+"));
    let (status, head, _) = cloud.raw("POST /login", &[("Host", &host), ("Origin", &origin)], &form).await;
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next()).unwrap_or("");
    (status, head.clone(), cookie.replace("__host-", "__Host-"))
}

async fn session(cloud: &Cloud, name: &str) -> String {
    let (status, head, cookie) = log_in(cloud, name, PASSWORD).await;
    assert!(status == 303 && head.contains("location: /cases"), "{head}");
    cookie
}

/// Asks as the page itself does, with a cookie.
async fn ask(cloud: &Cloud, what: &str, cookie: &str, body: &str) -> (u16, Value) {
    let (host, origin) = (cloud.dashboard.to_string(), format!("http://{}", cloud.dashboard));
    let headers = [("Host", host.as_str()), ("Origin", &origin), ("Hedge-Operate", "yes"), ("Cookie", cookie)];
    let (status, _, body) = cloud.raw(what, &headers, body).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn status_of(cloud: &Cloud, what: &str, headers: &[(&str, &str)]) -> u16 {
    let host = cloud.dashboard.to_string();
    cloud.raw(what, &[&[("Host", host.as_str())], headers].concat(), "").await.0
}

#[tokio::test]
async fn a_session_is_over_for_good_when_its_user_has_logged_out() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    assert_eq!(log_in(&cloud, "viewer", "wrong horse").await.0, 401);
    let cookie = session(&cloud, "viewer").await;
    assert_eq!(ask(&cloud, "GET /api/me", &cookie, "").await.1["role"], "viewer");
    assert_eq!(ask(&cloud, "GET /api/devices", &cookie, "").await.0, 200);
    assert_eq!(ask(&cloud, "POST /logout", &cookie, "").await.0, 200);
    assert_eq!(ask(&cloud, "GET /api/devices", &cookie, "").await.0, 401, "replayed");
    for guessed in ["__Host-hedge=", "__Host-hedge=0000", "hedge=1"] {
        assert_eq!(ask(&cloud, "GET /api/devices", guessed, "").await.0, 401, "{guessed}");
    }
    // It is in memory only.
    let cookie = session(&cloud, "viewer").await;
    cloud.kill();
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    assert_eq!(ask(&cloud, "GET /api/devices", &cookie, "").await.0, 401, "after a restart");
}

#[tokio::test]
async fn a_change_of_the_user_ends_what_they_have_open_at_once() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let [viewer, reviewer] = [session(&cloud, "viewer").await, session(&cloud, "reviewer").await];
    let mut stream = TcpStream::connect(cloud.dashboard).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: {viewer}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap().starts_with("event: ") {}
    user(dir.path(), &["remove", "viewer"], "");
    user(dir.path(), &["change", "reviewer", "--role", "viewer"], "");
    for cookie in [&viewer, &reviewer] {
        assert_eq!(ask(&cloud, "GET /api/devices", cookie, "").await.0, 401);
    }
    let ended = async { while let Ok(Some(_)) = lines.next_line().await {} };
    timeout(PATIENCE, ended).await.expect("what they watched ends");
}

#[tokio::test]
async fn each_role_does_what_it_may_and_signs_with_its_own_name() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let mut device = rig::Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(hedge_proto::CloudState::Online).await;
    device.send(device.case(0, b"picture")).await;
    let [viewer, reviewer] = [session(&cloud, "viewer").await, session(&cloud, "reviewer").await];
    let answered = async { while ask(&cloud, "GET /api/figures", &viewer, "").await.1["answered"] != 1 {} };
    timeout(PATIENCE, answered).await.expect("an answer");
    let (id, word) = (device.id(0).to_string(), json!({"label": "boot", "by": "somebody else"}).to_string());
    let review = format!("POST /api/review/{id}");
    assert_eq!(ask(&cloud, &review, &viewer, &word).await.0, 403);
    assert_eq!(ask(&cloud, &review, &reviewer, &word).await.0, 200);
    let (_, words) = ask(&cloud, &format!("GET /api/cases/{id}/words"), &viewer, "").await;
    assert_eq!(words[1]["model"]["name"], "reviewer", "{words}");
    let restart = json!({"command": "restart"}).to_string();
    for cookie in [&viewer, &reviewer] {
        let (status, said) = ask(&cloud, "POST /api/devices/hall-1/commands", cookie, &restart).await;
        assert!(status == 403 && said["error"].as_str().unwrap().contains("operator"), "{status} {said}");
    }
    let (_, page) = ask(&cloud, "GET /api/devices/hall-1", &viewer, "").await;
    assert!(page["look_only"].as_str().unwrap().contains("viewer"), "{page}");
    // Who may see all that was done does so.
    assert_eq!(ask(&cloud, "GET /api/audit", &reviewer, "").await.0, 403);
    let operator = session(&cloud, "operator").await;
    let (_, acts) = ask(&cloud, "GET /api/audit", &operator, "").await;
    let review = acts.as_array().unwrap().iter().find(|act| act["act"] == "review").expect("noted");
    assert_eq!((&review["who"], &review["about"], &review["outcome"]), (&json!("reviewer"), &json!(id), &json!("200")));
    assert!(review["detail"].as_str().unwrap().contains("boot"), "{review}");
}

#[tokio::test]
async fn who_did_what_is_told_by_a_command() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    log_in(&cloud, "operator", "wrong horse").await;
    let cookie = session(&cloud, "operator").await;
    let settings = json!({"edits": {"log.level": "debug"}}).to_string();
    assert_eq!(ask(&cloud, "POST /api/devices/hall-1/settings", &cookie, &settings).await.0, 404);
    ask(&cloud, "GET /api/export", &cookie, "").await;
    ask(&cloud, "POST /logout", &cookie, "").await;
    cloud.stop();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
    let said = command.args(["audit", "--state-dir"]).arg(dir.path()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let mut lines = said.lines();
    for wanted in [
        "operator  127.0.0.1  failed login  401",
        "operator  127.0.0.1  login  303",
        "operator  127.0.0.1  settings  hall-1  log.level=\"debug\"  404",
        "operator  127.0.0.1  export  200",
        "operator  127.0.0.1  logout  200",
    ] {
        let line = lines.next().unwrap_or_default();
        assert!(line.ends_with(wanted), "{wanted}, not: {said}");
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_goes_past_the_login() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    for path in [
        "/",
        "/cases",
        "/api/devices",
        "/api/cases",
        "/api/devices/",
        "//api/devices",
        "/api//devices",
        "/./api/devices",
        "/login/../api/devices",
        "/login/..%2fapi/devices",
        "/icon.svg/../api/cases",
        "/healthz/..;/api/cases",
        "/%61pi/devices",
        "/api%2fdevices",
        "/API/DEVICES",
        "/api/devices%00",
        "/api/devices?next=/login",
        "/api/devices#/login",
        "/api/cases/../../login",
        "http://localhost/api/devices",
        "/metrics",
        "/events",
        "/api/cases/hall-1.0000000000000001.0/payload",
    ] {
        for method in ["GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "get"] {
            let status = status_of(&cloud, &format!("{method} {path}"), &[]).await;
            assert!((400..500).contains(&status), "{method} {path}: {status}");
        }
    }
    // Of what comes from elsewhere nothing is believed, either.
    for header in [
        ("X-Forwarded-User", "operator"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Original-URL", "/login"),
        ("X-HTTP-Method-Override", "GET"),
        ("Authorization", "Bearer hedge_00"),
        ("Authorization", "Basic b3BlcmF0b3I6Y29ycmVjdCBob3JzZQ=="),
    ] {
        assert_eq!(status_of(&cloud, "GET /api/devices", &[header]).await, 401, "{header:?}");
    }
    // A person is led to the login, and back.
    let host = cloud.dashboard.to_string();
    let browser = [("Host", host.as_str()), ("Accept", "text/html,*/*;q=0.8")];
    let (status, head, _) = cloud.raw("GET /cases?device=a", &browser, "").await;
    assert!(status == 303 && head.contains("location: /login?next=%2fcases%3fdevice%3da"), "{head}");
    let (status, head, body) = cloud.raw("GET /login?next=%2Fcases%3Fa%3D1%26b%3D2", &browser, "").await;
    let page = String::from_utf8(body).unwrap();
    assert!(status == 200 && page.contains("value=\"/cases?a=1&amp;b=2\""), "{page}");
    assert!(head.contains("default-src 'none'") && head.contains("form-action 'self'") && !head.contains("script-src"));
    assert!(!page.contains("<script") && !page.contains("style="), "{page}");
    let (_, _, body) = cloud.raw("GET /login?next=%22%3E%3Cscript%3E", &browser, "").await;
    assert!(!String::from_utf8(body).unwrap().contains("<script"));
}

#[tokio::test]
async fn who_guesses_passwords_waits_and_the_right_one_is_let_in_afterwards() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    for _ in 0..5 {
        assert_eq!(log_in(&cloud, "operator", "wrong horse").await.0, 401);
    }
    let (status, head, _) = log_in(&cloud, "operator", PASSWORD).await;
    assert!(status == 429 && head.contains("retry-after: "), "{head}");
    session(&cloud, "viewer").await;
    let let_in = async { while log_in(&cloud, "operator", PASSWORD).await.0 != 303 {} };
    timeout(PATIENCE, let_in).await.expect("not for ever");
}

#[tokio::test]
async fn five_hundred_live_pages_leave_room_for_others() {
    let dir = TempDir::new().unwrap();
    people(dir.path());
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let [greedy, other] = [session(&cloud, "viewer").await, session(&cloud, "reviewer").await];
    let mut held = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(cloud.dashboard).await.unwrap();
        let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nCookie: {greedy}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        *counts.entry(String::from_utf8(head[9..].to_vec()).unwrap()).or_insert(0) += 1;
        held.push(stream);
    }
    assert_eq!(counts, [("200".to_owned(), 16), ("503".to_owned(), 484)].into());
    assert_eq!(ask(&cloud, "GET /api/devices", &other, "").await.0, 200);
    let mut stream = TcpStream::connect(cloud.dashboard).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nCookie: {other}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(stream).read_line(&mut line)).await.unwrap().unwrap();
    assert!(line.contains("200"), "{line}");
    // A place is free again when its page is closed.
    drop(held);
    let again = async {
        loop {
            let mut stream = TcpStream::connect(cloud.dashboard).await.unwrap();
            let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nCookie: {greedy}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            if line.contains("200") {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("a place");
}

#[tokio::test]
async fn a_script_shows_a_token_and_a_proxy_that_is_named_says_who_is_there() {
    let dir = TempDir::new().unwrap();
    let said = user(dir.path(), &["add", "prometheus", "--role", "viewer", "--token"], "");
    let token = said.lines().next().unwrap().to_owned();
    user(dir.path(), &["add", "ann@example.org", "--role", "operator", "--proxy"], "");
    let setup = ["--trusted-proxy", "127.0.0.1"];
    let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), &setup);
    let bearer = format!("Bearer {token}");
    let shown = [("Authorization", bearer.as_str())];
    assert_eq!(status_of(&cloud, "GET /metrics", &shown).await, 200);
    // 503 until it has found its broker.
    assert_ne!(status_of(&cloud, "GET /healthz", &[]).await, 401);
    assert_eq!(status_of(&cloud, "POST /api/devices/a/commands", &shown).await, 403, "the role");
    let proxied = |name| [("X-Forwarded-User", name)];
    assert_eq!(status_of(&cloud, "GET /api/devices", &proxied("ann@example.org")).await, 200);
    for wrong in ["eve@example.org", "prometheus", "", "ann@example.org, eve"] {
        assert_eq!(status_of(&cloud, "GET /api/devices", &proxied(wrong)).await, 403, "{wrong}");
    }
    let twice = [("X-Forwarded-User", "eve"), ("X-Forwarded-User", "ann@example.org")];
    assert_eq!(status_of(&cloud, "GET /api/devices", &twice).await, 403);
    // A page of elsewhere has the proxy's login, too, but not this page's origin.
    let elsewhere =
        [("X-Forwarded-User", "ann@example.org"), ("Origin", "http://evil.example"), ("Hedge-Operate", "1")];
    assert_eq!(status_of(&cloud, "POST /api/devices/a/commands", &elsewhere).await, 403);
}

#[tokio::test]
async fn where_others_reach_it_the_page_starts_with_tls_and_a_login_only() {
    let dir = TempDir::new().unwrap();
    let serve = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
        command.args(["serve", "--embedded-broker", "127.0.0.1:0", "--listen", "0.0.0.0:0", "--state-dir"]);
        command.arg(dir.path()).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let refused = serve(&[]).wait_with_output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    for wanted in ["TLS and a login", "--page-cert and --page-key", "hedge-cloud user add NAME --role operator"] {
        assert!(said.contains(wanted), "{said}");
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let [pem, secret] = ["page.pem", "page.key"].map(|name| dir.path().join(name).display().to_string());
    std::fs::write(&pem, certificate.pem()).unwrap();
    std::fs::write(&secret, key.serialize_pem()).unwrap();
    let tls = ["--page-cert", pem.as_str(), "--page-key", &secret];
    let refused = serve(&tls).wait_with_output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(3) && said.contains("needs a login"), "{said}");

    people(dir.path());
    let mut served = serve(&tls);
    let lines = Lines::new(served.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("dashboard ")).unwrap();
    let port = line.strip_prefix("dashboard https://0.0.0.0:").unwrap_or_else(|| panic!("{line}"));
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
    let asked = client.get(format!("https://127.0.0.1:{port}/api/devices")).send().await.unwrap();
    assert_eq!(asked.status(), 401);
    // Nothing is said without TLS.
    let mut plain = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good.
    drop(timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap());
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    served.kill().unwrap();
    served.wait().unwrap();
}
