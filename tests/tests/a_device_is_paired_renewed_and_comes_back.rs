//! A pairing code, a key that stays on the device, renewal, 400 days in a drawer, an authority's successor.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hedge_proto::LinkState;
use hedge_tests::enrolled::{faketime, pair, run, wall_clock};
use hedge_tests::fashion::Fashion;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{AgentConfig, Quickstart, Tally, skip, wait};

/// A minute until a broker out of reach makes a device doubt its clock, and the longest waits of a look and a dial.
const BACK_WITHIN: Duration = Duration::from_secs(150);

/// A renewal that is due is asked for at start.
const SAID_WITHIN: Duration = Duration::from_secs(60);

fn device(dir: &Path, name: &str) -> AgentConfig {
    AgentConfig::new(dir, name).model_keeping("fashion-small", 1.0).http_source("pictures").corrections_file()
}

/// Starts the device as setup left it, and sees a case answered.
fn a_case_is_answered(config: &AgentConfig) -> Result<()> {
    let mut agent = config.start_as_written()?;
    agent.wait_for_status("the link is up", BACK_WITHIN, |status| status.link == LinkState::Online)?;
    let (fashion, mut tally, mut sink) = (Fashion::load()?, Tally::default(), agent.sink());
    sink.read_on()?; // of an earlier start
    for index in 0..20 {
        let answer = agent.http.post("pictures", "", "image/png", &fashion.png(index)?)?;
        tally.answered(&answer, Some(fashion.label(index)));
    }
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

#[test]
fn a_paired_device_is_answered_and_its_key_is_for_its_eyes_only() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let cloud = Quickstart::start(dir.path())?;
    let (code, config) = (cloud.code()?, device(dir.path(), "device-1"));
    config.write()?;
    let said = pair(&config, "device-1", &code, &[])?;
    ensure!(said.contains("enrolled as device-1") && said.contains("next: "), "{said}");
    for file in ["state/identity/device.key", "state/identity/device.pem", "agent.toml"] {
        let mode = std::fs::metadata(config.dir().join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    ensure!(!holds(&cloud.authority(), &std::fs::read(config.dir().join("state/identity/device.key"))?)?);
    a_case_is_answered(&config)?;

    // What is there stays; a code is for one device; names are not given away.
    let again = pair(&config, "device-1", &code, &[]).expect_err("refused").to_string();
    ensure!(again.contains("--force"), "{again}");
    let other = device(dir.path(), "device-2");
    other.write()?;
    let before = std::fs::read(other.file())?;
    let used = pair(&other, "device-2", &code, &[]).expect_err("refused").to_string();
    ensure!(used.contains("used by another device"), "{used}");
    let taken = pair(&other, "device-1", &cloud.claim()?, &[]).expect_err("refused").to_string();
    ensure!(taken.contains("there is a device `device-1` already"), "{taken}");
    let reserved = pair(&other, "hedge-cloud", &cloud.claim()?, &[]).expect_err("refused").to_string();
    ensure!(reserved.contains("a name of the cloud's"), "{reserved}");
    // Another cloud at that address is not trusted, whatever it says.
    let code = cloud.claim()?;
    let (front, _) = code.rsplit_once('/').expect("three parts");
    let stranger = format!("{front}/{}", "0".repeat(32));
    let stranger = pair(&other, "device-2", &stranger, &[]).expect_err("refused").to_string();
    ensure!(stranger.contains("is not the cloud of this pairing code"), "{stranger}");
    ensure!(std::fs::read(other.file())? == before, "a refused setup has changed the configuration");
    ensure!(!other.dir().join("state/identity").exists(), "a refused setup has left something behind");

    // A setup that cannot write what the cloud has signed, or is cut off before it has, may use its code again.
    let in_the_way = other.file().with_extension("toml.new");
    std::fs::create_dir(&in_the_way)?;
    let unwritten = pair(&other, "device-2", &code, &[]).expect_err("it cannot be written").to_string();
    ensure!(unwritten.contains("agent.toml"), "{unwritten}");
    std::fs::remove_dir(in_the_way)?;
    pair(&other, "device-2", &code, &[])?;
    ensure!(!other.dir().join("state/identity/unfinished.key").exists(), "the key is there twice");
    Ok(())
}

#[test]
fn silent_and_slow_strangers_keep_no_device_from_enrolling() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (cloud, config) = (Quickstart::start(dir.path())?, device(dir.path(), "device-1"));
    config.write()?;
    // The beginning of a TLS handshake, and nothing at all.
    let slow = (0..64).map(|_| stranger(&cloud, b"\x16\x03\x01\x02\x00\x01"));
    let silent = (0..193).map(|_| stranger(&cloud, b""));
    let held = slow.chain(silent).collect::<Result<Vec<_>>>()?;
    let said = pair(&config, "device-1", &cloud.code()?, &[])?;
    ensure!(said.contains("enrolled as device-1"), "{said}");
    drop(held);
    Ok(())
}

fn stranger(cloud: &Quickstart, says: &[u8]) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(cloud.enrol())?;
    // It may have been closed for another already.
    drop(socket.write_all(says));
    Ok(socket)
}

/// Whether any file below `dir` holds these bytes.
fn holds(dir: &Path, bytes: &[u8]) -> Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            holds(&path, bytes)?
        } else {
            std::fs::read(&path)?.windows(bytes.len()).any(|window| window == bytes)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Certificates hold 30 days. Both come back; the second wakes up in 1970 and hears of no other date.
#[test]
fn a_device_switched_off_for_400_days_comes_back() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    if faketime().is_none() {
        skip::skipped("libfaketime is not installed; on Debian: apt-get install faketime");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut cloud = Quickstart::start(dir.path())?;
    let mut devices = Vec::new();
    for (name, wall) in [("drawer", "+400d"), ("no-clock", "@1970-01-01 00:00:10")] {
        let config = device(dir.path(), name);
        config.write()?;
        pair(&config, name, &cloud.claim()?, &[])?;
        devices.push(at(&config, wall)?);
    }
    // Meanwhile the authority has got a successor, which neither device has heard of.
    cloud.ca(&["rollover"])?;
    cloud.start_again_at("+400d")?;
    for config in &devices {
        a_case_is_answered(config)?;
        let authorities = std::fs::read_to_string(config.dir().join("state/identity/ca.pem"))?;
        ensure!(authorities.matches("BEGIN CERTIFICATE").count() == 2, "it trusts old and new");
    }
    // The old authority is not needed any more.
    cloud.ca(&["retire", "1"])?;
    cloud.start_again_at("+401d")?;
    for config in &devices {
        a_case_is_answered(config)?;
    }
    Ok(())
}

fn at(config: &AgentConfig, wall: &str) -> Result<AgentConfig> {
    Ok(wall_clock(wall)?.iter().fold(config.clone(), |config, (name, value)| config.variable(name, value)))
}

fn it_says_why_it_stays_out(config: &AgentConfig, why: &str) -> Result<()> {
    let mut agent = config.start_as_written()?;
    wait::until_true(why, SAID_WITHIN, || Ok(agent.log().contains(why)))?;
    agent.stop()
}

#[test]
fn beyond_its_grace_or_revoked_a_device_must_be_paired_anew() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    if faketime().is_none() {
        skip::skipped("libfaketime is not installed; on Debian: apt-get install faketime");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut cloud = Quickstart::start(dir.path())?;
    let mut config = device(dir.path(), "device-1");
    config.write()?;
    pair(&config, "device-1", &cloud.code()?, &[])?;
    cloud.start_again_at("+900d")?;
    it_says_why_it_stays_out(&at(&config, "+900d")?, "ran out 870 days ago, more than the 800 of grace")?;
    cloud.ca(&["revoke", "device-1"])?;
    cloud.start_again_at("+29d")?;
    config = at(&config, "+29d")?;
    it_says_why_it_stays_out(&config, "is revoked or not known")?;
    // A claim that names it lets it in again, with a new key.
    let said = cloud.ca(&["claim", "--device", "device-1", "--address", &format!("{}:8443", cloud.broker().ip())])?;
    let code = said.split_whitespace().last().unwrap_or_default();
    let (dir, state) = (config.dir().display().to_string(), config.dir().join("state").display().to_string());
    run("hedge-agent", &["setup", "--pair", code, "--force", "--config-dir", &dir, "--state-dir", &state])?;
    a_case_is_answered(&config)
}
