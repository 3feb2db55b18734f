//! What is sent along with a question holds what is needed to answer it, and nothing that must not leave the device.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{AgentConfig, Scene, places, skip};

/// One for each place a secret may stand in; none is a part of another.
struct Secrets {
    planted: Vec<String>,
    dir: PathBuf,
}

impl Secrets {
    fn text(&mut self, place: &str) -> String {
        let secret = format!("S3cr3t-of-{place}-{}", self.planted.len());
        self.planted.push(secret.clone());
        secret
    }

    /// A file that holds one.
    fn file(&mut self, place: &str) -> Result<String> {
        let path = self.dir.join(format!("{place}.file"));
        std::fs::write(&path, format!("{}\n", self.text(place)))?;
        Ok(path.display().to_string())
    }

    /// A real key and its certificate.
    fn key(&mut self, name: &str) -> Result<(String, String)> {
        let made = hedge_tests::certificates::Authority::new(&self.dir)?.device(name)?;
        let key = std::fs::read_to_string(&made.key)?;
        self.planted.extend(key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
        Ok((made.certificate.display().to_string(), made.key.display().to_string()))
    }
}

/// Every field that holds a secret, or a text in which one may stand.
fn configuration(scene: &Scene, secrets: &mut Secrets) -> Result<AgentConfig> {
    let broker = scene.broker()?;
    let (certificate, key) = secrets.key("device-1")?;
    let config = scene.doubter("device-1").section(&format!(
        "[broker]\nurl = \"mqtt://{broker}\"\nusername = \"device-1\"\npassword_file = \"{}\"\ncertificate_file = \"{certificate}\"\n\
         key_file = \"{key}\"",
        secrets.file("password_file")?
    ));
    let recovery = format!(
        "[broker.recovery]\nurl = \"mqtts://127.0.0.1:1\"\nusername = \"r\"\npassword_file = \"{}\"",
        secrets.file("recovery")?
    );
    let credentials =
        format!("[credentials.away]\nusername = \"a\"\npassword_file = \"{}\"", secrets.file("credentials")?);
    let webhook = format!(
        "[verdicts.webhook]\nurl = \"http://u:{}@127.0.0.1:1/x?key={}\"\ntoken_file = \"{}\"",
        secrets.text("webhook-user"),
        secrets.text("webhook-query"),
        secrets.file("webhook")?
    );
    let sink = format!("[verdicts.command]\ncommand = [\"true\", \"--token\", \"{}\"]", secrets.text("sink-argument"));
    let mqtt = format!(
        "[verdicts.mqtt.broker]\nurl = \"mqtt://127.0.0.1:1\"\nusername = \"m\"\npassword_file = \"{}\"",
        secrets.file("sink-broker")?
    );
    let payloads = format!("[payloads]\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"{}\"", secrets.file("payloads")?);
    let camera = format!(
        "[[source]]\nname = \"cam\"\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"sleep 1\", \"rtsp://me:{}@127.0.0.1/s\", \"password={}\"]",
        secrets.text("camera-address"),
        secrets.text("camera-argument")
    );
    let sections = [recovery, credentials, webhook, sink, mqtt, payloads, camera];
    Ok(sections.iter().fold(config, |config, section| config.section(section)))
}

#[test]
fn every_kind_of_secret_and_a_sample_are_planted_and_none_is_found() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let mut secrets = Secrets { planted: Vec::new(), dir: scene.dir().to_owned() };
    let config = configuration(&scene, &mut secrets)?;
    let mut agent = config.start()?;
    agent.wait_until_online()?;
    // A sample whose bytes and name are known.
    let marks = ["SAMPLE-REF-7f3a"];
    let picture = std::fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
    agent.http.post("pictures", &format!("&ref={}", marks[0]), "image/png", &picture)?;

    // A log with all of it in it, however it came there.
    let log = scene.dir().join("log");
    let mut lines = String::from("agent is ready\n");
    for secret in &secrets.planted {
        lines += &format!("refused: user=me secret {secret} Authorization: Bearer {secret}\n");
    }
    std::fs::write(&log, &lines)?;
    let environment = secrets.text("environment");
    let variables = [("HEDGE_VERDICTS__WEBHOOK__URL", format!("http://u:{environment}@127.0.0.1:1/"))];
    check(&config, &log, &secrets, &marks, &picture, &variables)?;

    // A stopped device, whose configuration broke.
    agent.stop()?;
    let text = std::fs::read_to_string(config.file())?;
    std::fs::write(config.file(), text.replace("[payloads]", "[payloads"))?;
    check(&config, &log, &secrets, &marks, &picture, &[])?;

    let again = support(&config, &log, &scene.dir().join("bundle-1.tar.gz"), &[])?;
    ensure!(again.contains("choose another with --out"), "nothing is overwritten: {again}");
    Ok(())
}

fn check(
    config: &AgentConfig,
    log: &Path,
    secrets: &Secrets,
    marks: &[&str],
    picture: &[u8],
    variables: &[(&str, String)],
) -> Result<()> {
    let bundle = (1..).map(|n| secrets.dir.join(format!("bundle-{n}.tar.gz"))).find(|path| !path.exists());
    let bundle = bundle.context("a name")?;
    let said = support(config, log, &bundle, variables)?;
    ensure!(said.contains("files"), "{said}");
    let size = bundle.metadata()?.len();
    ensure!(size < 2 * 1024 * 1024, "{size} bytes");
    let unpacked = bundle.with_extension("d");
    std::fs::create_dir_all(&unpacked)?;
    let untarred = Command::new("tar").arg("xzf").arg(&bundle).arg("-C").arg(&unpacked).status()?;
    ensure!(untarred.success(), "tar");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(unpacked.join("hedge-support-device-1"))? {
        let entry = entry?;
        let (name, bytes) = (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
        for secret in secrets.planted.iter().map(String::as_str).chain(marks.iter().copied()) {
            let text = String::from_utf8_lossy(&bytes);
            let line = text.lines().find(|line| line.contains(secret));
            ensure!(line.is_none(), "{}: {name} holds {secret}: {line:?}", bundle.display());
        }
        ensure!(!contains(&bytes, &picture[picture.len() / 2..picture.len() / 2 + 16]), "{name} holds a sample");
        names.push(name);
    }
    for wanted in
        ["config.toml", "check.txt", "status.json", "queue.json", "log.txt", "audit.jsonl", "versions.txt", "board.txt"]
    {
        ensure!(names.iter().any(|name| name == wanted), "no {wanted} in {names:?}");
    }
    let read = |name: &str| std::fs::read_to_string(unpacked.join("hedge-support-device-1").join(name));
    ensure!(
        read("config.toml")?.contains("[verdicts.webhook]") && read("log.txt")?.contains("agent is ready"),
        "it tells something"
    );
    ensure!(read("queue.json")?.contains("waiting"), "{}", read("queue.json")?);
    Ok(())
}

fn support(config: &AgentConfig, log: &Path, out: &Path, variables: &[(&str, String)]) -> Result<String> {
    let done = Command::new(places::program("hedge-agent")?)
        .args(["support", "--config"])
        .arg(config.file())
        .arg("--log")
        .arg(log)
        .arg("--out")
        .arg(out)
        .envs(variables.iter().map(|(name, value)| (*name, value.as_str())))
        .output()?;
    Ok(String::from_utf8([done.stdout, done.stderr].concat())?)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
