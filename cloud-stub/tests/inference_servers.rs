//! Real servers of the Open Inference Protocol as answerers. Needs the Python environment with them, named in
//! `HEDGETEST_SERVERS_PYTHON`; `cargo xtask test` makes it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic, and say what they measured")]

mod rig;

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use hedge_proto::{CloudState, DownMessage};
use rig::{Broker, Cloud, Device, own_addr};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One with all that it starts itself.
struct Server {
    child: Child,
}

impl Server {
    fn start(python: &Path, script: &str, addr: SocketAddr, dir: &Path) -> Self {
        let said = File::create(dir.join("server.log")).unwrap();
        // PyTriton's server looks for the library of the Python that runs, which is not that of the environment.
        let libraries = Command::new(python)
            .args(["-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"])
            .output()
            .unwrap();
        let child = Command::new(python)
            .arg(repository().join("tests/tests/clients").join(script))
            .arg(repository().join("models/fashion-large/fp32.onnx"))
            .args(["fashion", "input", "logits", &addr.port().to_string()])
            .arg(dir)
            .env("SERVED_HOST", addr.ip().to_string())
            .env("LD_LIBRARY_PATH", String::from_utf8(libraries.stdout).unwrap().trim())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // It may have ended already.
        if let Err(error) = kill_process_group(group, Signal::KILL) {
            println!("it is not there any more: {error}");
        }
        drop(self.child.wait());
    }
}

/// Cases are answered as the bundle's golden samples say, also by a server that comes late, and that comes back.
async fn answers_like_the_local_model(script: &str, tensors: &str) {
    let Some(python) = std::env::var_os("HEDGETEST_SERVERS_PYTHON").map(PathBuf::from) else {
        println!("skipped: no Python environment with inference servers; `cargo xtask test` makes one");
        return;
    };
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Embedded);
    let bundle = repository().join("models/fashion-large");
    let mut addr = own_addr();
    addr.set_port(8000);
    let config = dir.path().join("cloud.toml");
    let text = format!(
        "[[answerer]]\nname = \"server\"\nkind = \"open_inference\"\nbundle = {bundle:?}\nurl = \"http://{addr}\"\n\
         model = \"fashion\"\ntensors = \"{tensors}\"\nconcurrency = 4\n"
    );
    std::fs::write(&config, text).unwrap();
    let args = ["--config", config.to_str().unwrap()];
    let cloud = Cloud::start_with(&broker, &dir.path().join("state"), &args);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    let golden = [("test-0.png", "Ankle boot"), ("test-1.png", "Pullover"), ("test-2.png", "Trouser")];
    for round in 0..2 {
        // The cases are there first: they wait for the server.
        for (n, (file, _)) in (0..).zip(golden) {
            let picture = std::fs::read(bundle.join("golden").join(file)).unwrap();
            let mut case = device.case(10 * round + n, &picture);
            case.task = "fashion".to_owned();
            device.send(case).await;
            assert!(matches!(device.hears().await, DownMessage::Received { .. }));
        }
        let state = async || cloud.get("/api/answerers").await[0]["state"].clone();
        let begun = Instant::now();
        while state().await != json!("down") {
            assert!(begun.elapsed() < rig::PATIENCE, "it is {}", state().await);
            tokio::time::sleep(rig::PATIENCE / 1000).await;
        }
        let server = Server::start(&python, script, addr, dir.path());
        let begun = Instant::now();
        while state().await != json!("up") {
            let log = || std::fs::read_to_string(dir.path().join("server.log")).unwrap();
            assert!(begun.elapsed().as_secs() < 120, "{script} does not start: {}", log());
            tokio::time::sleep(rig::PATIENCE / 100).await;
        }
        for _ in golden {
            let DownMessage::Verdict(verdict) = device.hears().await else { panic!("no verdict") };
            let n = usize::try_from(verdict.id.key.sequence % 10).unwrap();
            assert_eq!(verdict.said.headline(), golden[n].1, "{}", golden[n].0);
            assert!(verdict.said.score().unwrap() > 0.99, "{:?}", verdict.said);
            assert_eq!(verdict.model.name, "fashion-large");
        }
        drop(server);
    }
    cloud.figure("answered", 6).await;
}

#[tokio::test]
async fn mlserver_answers_for_the_cloud() {
    answers_like_the_local_model("served_by_mlserver.py", "json").await;
}

#[tokio::test]
async fn triton_answers_for_the_cloud_in_binary_tensors() {
    answers_like_the_local_model("served_by_pytriton.py", "binary").await;
}

#[tokio::test]
async fn triton_answers_for_the_cloud_in_json() {
    answers_like_the_local_model("served_by_pytriton.py", "json").await;
}
