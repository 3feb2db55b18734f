//! TLS, mutual TLS, WebSocket, a CONNECT proxy, user and password: a case goes out and its verdict comes back.

use std::time::Duration;

use anyhow::Result;
use hedge_proto::{LinkState, Telemetry};
use hedge_tests::certificates::Authority;
use hedge_tests::connect_proxy::ConnectProxy;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{AgentConfig, Scene, Tally, skip, wait};

/// A first dial, on a busy machine.
const SAID_WITHIN: Duration = Duration::from_secs(60);

/// Long enough for two or three more dials that are all refused.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Whether this machine has what these tests need.
fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

/// Starts the device with `[broker]` as given and sees cases answered.
fn a_case_is_answered(scene: &Scene, broker: &str) -> Result<()> {
    let mut agent = device(scene, broker).start()?;
    agent.wait_until_online()?;
    let mut tally = Tally::default();
    scene.post_a_stored_one(&agent, 0, &mut tally)?;
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// Starts the device and sees that it stays away, says why, and answers on.
fn it_stays_offline(scene: &Scene, broker: &str) -> Result<()> {
    let mut agent = device(scene, broker).start()?;
    let why = |status: &Telemetry| status.link == LinkState::Offline && status.link_reason.contains("broker");
    agent.wait_for_status("it says why", SAID_WITHIN, why)?;
    wait::pause(REFUSED_FOR);
    let status = agent.http.status()?;
    assert!(matches!(status.link, LinkState::Offline | LinkState::Connecting), "{status:?}");
    assert_eq!(status.connections, 0, "{status:?}");
    scene.post_a_stored_one(&agent, 0, &mut Tally::default())?;
    agent.stop()
}

fn device(scene: &Scene, broker: &str) -> AgentConfig {
    scene.doubter("device-1").section(&format!("[broker]\n{broker}"))
}

#[test]
fn tls() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new(dir.path())?;
    let scene = Scene::mosquitto_with(dir, &MosquittoSetup { tls: Some(&authority), ..Default::default() })?;
    let ca = authority.file();
    a_case_is_answered(&scene, &format!("url = \"mqtts://{}\"\nca_file = \"{}\"", scene.broker()?, ca.display()))
}

#[test]
fn a_broker_with_a_strangers_certificate_is_not_spoken_to() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (authority, stranger) = (Authority::new(dir.path())?, Authority::new(other.path())?);
    let scene = Scene::mosquitto_with(dir, &MosquittoSetup { tls: Some(&authority), ..Default::default() })?;
    let ca = stranger.file();
    it_stays_offline(&scene, &format!("url = \"mqtts://{}\"\nca_file = \"{}\"", scene.broker()?, ca.display()))
}

#[test]
fn mutual_tls() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new(dir.path())?;
    let device = authority.device("device-1")?;
    let setup = MosquittoSetup { tls: Some(&authority), client_certificates: true, ..Default::default() };
    let scene = Scene::mosquitto_with(dir, &setup)?;
    let server = format!("url = \"mqtts://{}\"\nca_file = \"{}\"", scene.broker()?, authority.file().display());
    let (certificate, key) = (device.certificate.display(), device.key.display());
    a_case_is_answered(&scene, &format!("{server}\ncertificate_file = \"{certificate}\"\nkey_file = \"{key}\""))?;
    // Without its certificate the broker does not let it in.
    it_stays_offline(&scene, &server)
}

#[test]
fn websocket() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::mosquitto_with(tempfile::tempdir()?, &MosquittoSetup { websocket: true, ..Default::default() })?;
    a_case_is_answered(&scene, &format!("url = \"ws://{}\"", scene.broker()?))
}

#[test]
fn websocket_over_tls() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new(dir.path())?;
    let setup = MosquittoSetup { tls: Some(&authority), websocket: true, ..Default::default() };
    let scene = Scene::mosquitto_with(dir, &setup)?;
    let ca = authority.file();
    a_case_is_answered(&scene, &format!("url = \"wss://{}\"\nca_file = \"{}\"", scene.broker()?, ca.display()))
}

#[test]
fn an_http_proxy_that_allows_connect() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let proxy = ConnectProxy::start()?;
    let broker = format!("url = \"mqtt://{}\"\nproxy = \"http://{}\"", scene.broker()?, proxy.address());
    a_case_is_answered(&scene, &broker)?;
    assert!(proxy.tunnels() > 0, "the device went around the proxy");
    Ok(())
}

#[test]
fn user_and_password() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    std::fs::write(&right, "secret\n")?;
    std::fs::write(&wrong, "guess\n")?;
    let setup = MosquittoSetup { user: Some(("device-1", "secret")), ..Default::default() };
    let scene = Scene::mosquitto_with(dir, &setup)?;
    let broker = |file: &std::path::Path| {
        let url = scene.broker()?;
        let file = file.display();
        anyhow::Ok(format!("url = \"mqtt://{url}\"\nusername = \"device-1\"\npassword_file = \"{file}\""))
    };
    a_case_is_answered(&scene, &broker(&right)?)?;
    it_stays_offline(&scene, &broker(&wrong)?)
}
