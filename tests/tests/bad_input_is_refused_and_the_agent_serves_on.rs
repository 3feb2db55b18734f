//! Whatever comes in: a clear error or status, no large allocation, and the next good sample is answered.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_tests::fashion::Fashion;
use hedge_tests::{Agent, AgentConfig, places, skip, wait};

/// How much more memory any bad input may ever have taken, in KiB: far below what the inputs here claim to need.
const GROWTH_KIB_MAX: u64 = 150 * 1024;

const STATUS_WAIT_MAX: Duration = Duration::from_secs(30);

/// An agent and the memory it took when it was ready.
struct Patient {
    agent: Agent,
    good: Vec<u8>,
    before_kib: u64,
}

impl Patient {
    fn start(config: &AgentConfig) -> Result<Self> {
        let mut agent = config.start()?;
        let good = Fashion::load()?.png(0)?;
        agent.http.post("pictures", "", "image/png", &good)?;
        let before_kib = peak_kib(&mut agent)?;
        Ok(Self { agent, good, before_kib })
    }

    /// It answers a good sample, and never grew by what it was asked to.
    fn serves_on(&mut self) -> Result<()> {
        self.agent.program().check_alive()?;
        self.agent.http.post("pictures", "", "image/png", &self.good)?;
        let growth = peak_kib(&mut self.agent)?.saturating_sub(self.before_kib);
        ensure!(growth < GROWTH_KIB_MAX, "grew by {growth} KiB");
        Ok(())
    }
}

/// The most memory the process ever had.
fn peak_kib(agent: &mut Agent) -> Result<u64> {
    let id = agent.program().id().context("the agent runs")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn config(dir: &Path) -> AgentConfig {
    AgentConfig::new(dir, "device-1").model("fashion-small").http_source("pictures")
}

/// A status between 400 and 499 with one sentence as JSON.
#[track_caller]
fn assert_refused(what: &str, (status, text): (u16, String)) {
    let refused = (400..500).contains(&status);
    let sentence = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|document| document["error"].as_str().map(str::to_owned));
    assert!(refused && sentence.is_some_and(|sentence| sentence.len() > 10), "{what}: {status} {text}");
}

#[test]
fn pictures_and_tensors_that_are_not_what_they_say() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut patient = Patient::start(&config(dir.path()))?;
    let http = patient.agent.http.clone();

    let photo = std::fs::read(places::model("pictures").join("rocket.jpg"))?;
    let half = &photo[..photo.len() / 2];
    assert_refused("a truncated JPEG", http.try_post("pictures", "", "image/jpeg", half)?);
    let text = b"This is a letter, and no picture at all.";
    assert_refused("a text that says it is a JPEG", http.try_post("pictures", "", "image/jpeg", text)?);
    assert_refused("nothing", http.try_post("pictures", "", "image/png", b"")?);
    assert_refused("a huge PNG in few bytes", http.try_post("pictures", "", "image/png", &bomb()?)?);
    let tensor = "application/vnd.hedge.tensor; dtype=f32; shape=1,3,128,128";
    assert_refused("a tensor of another shape", http.try_post("pictures", "", tensor, &vec![0; 4 * 3 * 128 * 128])?);
    let tensor = "application/vnd.hedge.tensor; dtype=f32; shape=1,1,28,28";
    assert_refused("a tensor that is too short", http.try_post("pictures", "", tensor, &[0; 16])?);
    assert_refused("an unknown source", http.try_post("nowhere", "", "image/png", &patient.good)?);
    assert_refused("an unknown model", http.post_json("/v2/models/nothing/infer", r#"{"inputs": []}"#)?);
    assert_refused("no JSON", http.post_json("/v2/models/fashion-small/infer", "hello")?);
    assert_refused("an id of another device", http.get("/v1/samples/other.0000000000000001.7")?);

    // A picture of one pixel is small, and a picture: it may be answered.
    let (status, text) = http.try_post("pictures", "", "image/png", &png(1, 1)?)?;
    assert!(status == 200 || status == 422, "{status} {text}");
    patient.serves_on()?;
    patient.agent.stop()
}

#[test]
fn an_upload_of_200_mb_is_refused_before_it_is_read() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    const CLAIMED_BYTES: u64 = 200_000_000;
    let dir = tempfile::tempdir()?;
    let mut patient = Patient::start(&config(dir.path()))?;

    let told = upload(&patient.agent, &format!("content-length: {CLAIMED_BYTES}"), None)?;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    // Without a stated length it can only be noticed on the way.
    let told = upload(&patient.agent, "transfer-encoding: chunked", Some(CLAIMED_BYTES))?;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    patient.serves_on()?;
    patient.agent.stop()
}

/// Sends a head and, in chunks, up to `body_bytes`; returns what came back.
fn upload(agent: &Agent, length_header: &str, body_bytes: Option<u64>) -> Result<String> {
    let address = agent.http.base().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STATUS_WAIT_MAX))?;
    stream.set_write_timeout(Some(STATUS_WAIT_MAX))?;
    let head = "POST /v1/samples?source=pictures HTTP/1.1";
    write!(stream, "{head}\r\nhost: {address}\r\ncontent-type: image/jpeg\r\n{length_header}\r\n\r\n")?;
    let chunk = [b"10000\r\n".as_slice(), &[0; 0x1_0000], b"\r\n"].concat();
    for _ in 0..body_bytes.unwrap_or(0) / 0x1_0000 {
        if stream.write_all(&chunk).is_err() {
            break; // refused already: the answer is there to be read
        }
    }
    let mut told = vec![0; 1024];
    let length = stream.read(&mut told).context("the answer to a refused upload")?;
    Ok(String::from_utf8_lossy(&told[..length]).into_owned())
}

#[test]
fn a_folder_that_vanishes_and_a_letter_in_it() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("inbox");
    std::fs::create_dir(&folder)?;
    let mut patient = Patient::start(&config(dir.path()).folder_source("inbox", &folder))?;

    put(&folder, "letter.jpg", b"Dear picture,")?;
    appears(&mut patient.agent, &folder.join("failed/letter.jpg"))?;
    put(&folder, "shirt.png", &patient.good)?;
    appears(&mut patient.agent, &folder.join("done/shirt.png"))?;

    std::fs::remove_dir_all(&folder)?;
    let name = "inbox".parse()?;
    patient.agent.wait_for_status("it says that the folder is gone", STATUS_WAIT_MAX, |status| {
        status.sources.get(&name).is_some_and(|said| said.contains("inbox"))
    })?;
    patient.serves_on()?;

    std::fs::create_dir(&folder)?;
    put(&folder, "again.png", &patient.good)?;
    appears(&mut patient.agent, &folder.join("done/again.png"))?;
    patient.agent.stop()
}

/// As a careful sender does: whole before it has its name.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let beside = folder.with_extension("part");
    std::fs::write(&beside, bytes)?;
    Ok(std::fs::rename(beside, folder.join(name))?)
}

fn appears(agent: &mut Agent, path: &Path) -> Result<()> {
    let outcome = wait::until_true(&format!("{} appears", path.display()), STATUS_WAIT_MAX, || Ok(path.exists()));
    outcome.with_context(|| agent.log_end())
}

#[test]
fn commands_that_die_flood_or_say_nothing_of_use() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let shell = |script: &str| ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let config = config(dir.path())
        .command_source("dies", &shell("exit 3"))
        .command_source("missing", &["/nowhere/camera".to_owned()])
        .command_source("floods", &shell("exec cat /dev/zero"))
        .command_source("babbles", &shell("exec yes"));
    let mut patient = Patient::start(&config)?;
    for source in ["dies", "missing", "babbles"] {
        let name = source.parse()?;
        patient.agent.wait_for_status(
            &format!("it says what is wrong with `{source}`"),
            STATUS_WAIT_MAX,
            |status| status.sources.get(&name).is_some_and(|said| said.len() > "running".len()),
        )?;
    }
    patient.serves_on()?;
    patient.agent.stop()
}

/// 20 kB that claim to be 30,000 × 30,000 pixels.
fn bomb() -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 30_000, 30_000);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_chunk(png::chunk::IDAT, &[0x78; 20_000])?;
    drop(writer);
    Ok(file)
}

fn png(width: u32, height: u32) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&vec![128; usize::try_from(width * height)?])?;
    writer.finish()?;
    Ok(file)
}
