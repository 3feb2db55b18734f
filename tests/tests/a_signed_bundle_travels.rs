//! A signed bundle is fetched, tried, run and given back; whatever is wrong with one, the bundle that is run stays.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedge_proto::Digest;
use hedge_tests::publisher::{Publisher, done};
use hedge_tests::registry::{LOGIN, Registry};
use hedge_tests::shelf_server::{ShelfServer, Trouble};
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::{AgentConfig, Ext4, places, skip, wait};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

const MODEL: &str = "front";

/// A publisher with version 1 of a small model, a server for what is published, and a device that has it.
struct Scene {
    dir: tempfile::TempDir,
    publisher: Publisher,
    server: ShelfServer,
    config: AgentConfig,
}

impl Scene {
    fn new() -> Result<Self> {
        Self::beginning(|config| config)
    }

    fn beginning(change: impl FnOnce(AgentConfig) -> AgentConfig) -> Result<Self> {
        let scene = Self::bare(change)?;
        scene.publisher.publish("fashion-small", "1", |_| Ok(()), &[])?;
        done(&scene.update("fashion-small/1", &["--root", &scene.root()])?);
        Ok(scene)
    }

    /// Nothing is published yet.
    fn bare(change: impl FnOnce(AgentConfig) -> AgentConfig) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let publisher = Publisher::new(dir.path())?;
        let server = ShelfServer::start(&publisher.folder())?;
        let config = change(AgentConfig::new(dir.path(), "device-1"));
        let current = config.state().join("models").join(MODEL).join("current");
        let model = format!("[[model]]\nname = \"{MODEL}\"\nbundle = \"{}\"", current.display());
        let config = config.section(&model).http_source("door").write_first()?;
        std::fs::create_dir_all(config.state())?;
        Ok(Self { dir, publisher, server, config })
    }

    fn root(&self) -> String {
        self.publisher.folder().join("root/1.json").display().to_string()
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(places::program("hedge-agent")?);
        command.arg("bundle").args(words).args(["--config", &self.config.file().display().to_string()]);
        Ok(command)
    }

    fn update(&self, wanted: &str, words: &[&str]) -> Result<Output> {
        Ok(self.updating(wanted, words)?.output()?)
    }

    fn updating(&self, wanted: &str, words: &[&str]) -> Result<Command> {
        self.command(&[&["update", MODEL, wanted, "--from", &self.server.url()], words].concat())
    }

    /// The version that is run; the bundle is whole.
    fn runs(&self) -> Result<String> {
        let current = self.config.state().join("models").join(MODEL).join("current");
        let bundle = hedge_inference::Bundle::open(&current)?;
        Ok(bundle.manifest().version.to_string())
    }
}

/// It is refused for this reason, and version 1 is run on.
#[track_caller]
fn refused(scene: &Scene, output: &Output, because: &str) {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(format!("{out}{err}").contains(because), "not `{because}`: {out}{err}");
    assert_eq!(scene.runs().expect("a whole bundle"), "1");
}

#[test]
fn a_bundle_is_fetched_tried_run_and_given_back() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let answered = |version: &str| -> Result<()> {
        let mut agent = scene.config.clone().start()?;
        let picture = std::fs::read(places::model("fashion-small").join("golden/test-1.png"))?;
        let answer = agent.http.post("door", "", "image/png", &picture)?;
        ensure!(answer.model.version == version, "{:?} answered", answer.model);
        if version == "2" {
            let shelf = scene.config.state().join("models").join(MODEL).join("shelf.json");
            let proved = || Ok(std::fs::read_to_string(&shelf)?.contains("\"probation\":null"));
            wait::until_true("its first answer ends its probation", Duration::from_secs(60), proved)?;
        }
        agent.stop()
    };
    answered("1")?;
    scene.publisher.publish("fashion-small", "2", |_| Ok(()), &[])?;
    let said = done(&scene.update("fashion-small/2", &[])?);
    ensure!(said.contains("promoted   fashion-small/2") && said.contains("reload the agent"), "{said}");
    answered("2")?;
    let again = scene.update("fashion-small/2", &[])?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("current bundle already"), "{again:?}");

    done(&scene.command(&["back", MODEL])?.output()?);
    answered("1")?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "an operator went back");
    done(&scene.update("fashion-small/2", &["--again"])?);
    assert_eq!(scene.runs()?, "2");
    Ok(())
}

/// A file that was good when it was published, and was changed on the server since, or cut short.
#[test]
fn a_registry_of_containers_serves_bundles_as_a_folder_does() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_registry() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let registry = Registry::start(scene.dir.path())?;
    let update = |wanted: &str, from: &str, words: &[&str]| -> Result<Output> {
        Ok(scene.command(&[&["update", MODEL, wanted, "--from", from], words].concat())?.output()?)
    };
    scene.publisher.publish("fashion-small", "2", |_| Ok(()), &[])?;
    let digest = registry.push(&scene.publisher.folder(), "farm/models", "now")?;
    let tag = registry.url("farm/models:now");
    refused(&scene, &update("fashion-small/2", &tag, &[])?, "NAME:PASSWORD in [bundles] token_file");

    let login = scene.dir.path().join("login");
    std::fs::write(&login, format!("{LOGIN}\n"))?;
    let bundles = |url: &str| format!("[bundles]\nurl = \"{url}\"\ntoken_file = \"{}\"", login.display());
    let with = |url: &str| scene.config.clone().section(&bundles(url)).write();
    with(&tag)?;
    refused(&scene, &scene.command(&["update", MODEL, "fashion-small/9"])?.output()?, "fashion-small/9");
    let said = done(&scene.command(&["update", MODEL, "fashion-small/2"])?.output()?);
    ensure!(said.contains("promoted   fashion-small/2"), "{said}");

    // By its digest it is what it was, whatever the tag has come to mean.
    scene.publisher.publish("fashion-small", "3", |_| Ok(()), &[])?;
    registry.push(&scene.publisher.folder(), "farm/models", "now")?;
    with(&registry.url(&format!("farm/models@{digest}")))?;
    let old = scene.command(&["update", MODEL, "fashion-small/3"])?.output()?;
    ensure!(old.status.code() == Some(1) && scene.runs()? == "2", "{old:?}");
    with(&tag)?;
    done(&scene.command(&["update", MODEL, "fashion-small/3"])?.output()?);
    assert_eq!(scene.runs()?, "3");
    Ok(())
}

fn changed_and_cut(scene: &Scene, file: &Path) -> Result<()> {
    let good = std::fs::read(file)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    for wrong in [&bad[..], &good[..middle]] {
        std::fs::write(file, wrong)?;
        refused(scene, &scene.update("fashion-small/2", &[])?, "is not the file that was signed");
    }
    Ok(std::fs::write(file, good)?)
}

#[test]
fn whatever_is_wrong_with_what_comes_the_bundle_that_is_run_stays() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (publisher, folder) = (&scene.publisher, scene.publisher.folder());
    let old_list = std::fs::read(folder.join("list.json"))?;

    publisher.publish("fashion-small", "2", |_| Ok(()), &[])?;
    let at = folder.join("fashion-small/2");

    // A list of before, one that was tampered with, and none.
    let list = std::fs::read(folder.join("list.json"))?;
    refused(&scene, &scene.update("fashion-small/9", &[])?, "no bundle fashion-small/9");
    std::fs::write(folder.join("list.json"), &old_list)?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "older than");
    let mut tampered = list.clone();
    let middle = tampered.len() / 3;
    tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
    std::fs::write(folder.join("list.json"), &tampered)?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "list.json");
    std::fs::remove_file(folder.join("list.json"))?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "no list.json");
    std::fs::write(folder.join("list.json"), &list)?;

    // The signature of one version under the name of another.
    let good = std::fs::read(at.join("model.sig"))?;
    std::fs::copy(folder.join("fashion-small/1/model.sig"), at.join("model.sig"))?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "is not the file that was signed");
    std::fs::write(at.join("model.sig"), good)?;

    // What never ends. The server has no second root, but one of them is asked for.
    let root = folder.join("root/2.json");
    for end in ["root/2.json", "list.json", "model.sig", "int8.onnx"] {
        if root.ends_with(end) {
            std::fs::write(&root, "")?;
        }
        scene.server.trouble(Trouble::Endless(end));
        refused(&scene, &scene.update("fashion-small/2", &[])?, "more than");
        scene.server.trouble(Trouble::None);
        if root.ends_with(end) {
            std::fs::remove_file(&root)?;
        }
        // What has come is not asked for again, so each file in the order they come.
        if end == "model.sig" {
            changed_and_cut(&scene, &at.join("model.sig"))?;
            changed_and_cut(&scene, &at.join("fp32.onnx"))?;
        }
    }
    changed_and_cut(&scene, &at.join("manifest.toml"))?;

    publisher.publish("fashion-small", "3", |_| Ok(()), &["--device", "device-7"])?;
    refused(&scene, &scene.update("fashion-small/3", &[])?, "not for the device device-1");

    // Signed and wrong: what its makers did not see.
    let edit = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let path = dir.join("manifest.toml");
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.contains(from), "the manifest has no {from}");
            Ok(std::fs::write(&path, text.replace(from, to))?)
        }
    };
    publisher.publish("fashion-small", "4", edit("label = \"Pullover\"", "label = \"Bag\""), &[])?;
    refused(&scene, &scene.update("fashion-small/4", &[])?, "expected Bag");
    refused(&scene, &scene.update("fashion-small/4", &[])?, "has failed here");
    publisher.publish("fashion-small", "5", edit("task = \"fashion\"", "task = \"shoes\""), &[])?;
    refused(&scene, &scene.update("fashion-small/5", &[])?, "its task is shoes");

    // After all this the good one is still taken.
    done(&scene.update("fashion-small/2", &[])?);
    assert_eq!(scene.runs()?, "2");
    Ok(())
}

/// Made by models/recipes/hungry.py.
const HUNGRY: &[u8] = include_bytes!("hungry.onnx");

#[test]
fn a_model_that_asks_for_all_memory_takes_only_its_trial_with_it() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let greedy = |dir: &Path| -> Result<()> {
        let (model, manifest) = (dir.join("int8.onnx"), dir.join("manifest.toml"));
        let before = std::fs::read(&model)?;
        let described = |model: &[u8]| (Digest::of(model).to_string(), format!("bytes = {}", model.len()));
        let (old, new) = (described(&before), described(HUNGRY));
        let text = std::fs::read_to_string(&manifest)?;
        std::fs::write(manifest, text.replace(&old.0, &new.0).replace(&old.1, &new.1))?;
        Ok(std::fs::write(model, HUNGRY)?)
    };
    scene.publisher.publish("fashion-small", "2", greedy, &[])?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "allocate memory");
    refused(&scene, &scene.update("fashion-small/2", &[])?, "has failed here");
    Ok(())
}

#[test]
fn a_rotated_root_is_followed_and_what_a_stolen_key_published_is_forgotten() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let publisher = &scene.publisher;
    publisher.publish("fashion-small", "2", |_| Ok(()), &[])?;
    publisher.run(&["key", "next"])?;
    publisher.root(&["--release-key", "next.pub"])?;
    refused(&scene, &scene.update("fashion-small/2", &[])?, "0 of 1 signatures");
    publisher.run(&["sign", "fashion-small-2", "--key", "next.key"])?;
    std::fs::remove_dir_all(publisher.folder().join("fashion-small"))?;
    publisher.run(&["publish", "fashion-small-2", "--to", "published", "--key", "next.key"])?;
    done(&scene.update("fashion-small/2", &[])?);
    assert_eq!(scene.runs()?, "2");
    // A root that its owner did not sign is followed by nobody.
    let root = std::fs::read_to_string(publisher.folder().join("root/2.json"))?;
    std::fs::write(publisher.folder().join("root/3.json"), root)?;
    let output = scene.update("fashion-small/1", &[])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("version 2 where 3 comes next"), "{said}");
    Ok(())
}

#[test]
fn a_link_that_is_cut_again_and_again_brings_each_byte_once() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::bare(|config| config)?;
    // 6.6 MB, most of it in a golden sample that is one file more to fetch.
    let grow = |dir: &Path| -> Result<()> { Ok(std::fs::write(dir.join("notes.bin"), vec![7; 6_600_000])?) };
    scene.publisher.publish("fashion-small", "1", grow, &[])?;
    let whole: u64 = std::fs::read_dir(scene.publisher.folder().join("fashion-small/1"))?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum::<Result<u64>>()?;
    scene.server.trouble(Trouble::CutAfter(1_000_000));
    done(&scene.update("fashion-small/1", &["--root", &scene.root()])?);
    let (sent, connections) = scene.server.sent();
    ensure!(sent < whole + 200_000, "{sent} bytes came for {whole}");
    ensure!(connections >= 7, "it was cut: {connections} connections");
    assert_eq!(scene.runs()?, "1");

    // A host that always begins at the beginning never gets more than twice of it.
    scene.publisher.publish("fashion-small", "2", grow, &[])?;
    scene.server.trouble(Trouble::CutAfterWithoutRanges(5_000_000));
    let before = scene.server.sent().0;
    let output = scene.update("fashion-small/2", &[])?;
    refused(&scene, &output, "sent all of it twice");
    ensure!(scene.server.sent().0 - before < 3 * whole, "it gave up");
    Ok(())
}

#[test]
fn killed_at_any_moment_one_whole_bundle_is_run() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut version = 1;
    let mut runs = "1".to_owned();
    // Later and later, until it comes through; several times over.
    for _ in 0..2 {
        version += 1;
        let wanted = format!("fashion-small/{version}");
        scene.publisher.publish("fashion-small", &version.to_string(), |_| Ok(()), &[])?;
        let mut after = Duration::from_millis(10);
        loop {
            ensure!(after < Duration::from_secs(300), "it never comes through");
            let mut child = scene.updating(&wanted, &[])?.stdout(std::process::Stdio::null()).spawn()?;
            wait::pause(after);
            after = after * 6 / 5;
            let ended = child.try_wait()?;
            child.kill()?;
            child.wait()?;
            let now = scene.runs().context("a whole bundle is run")?;
            ensure!(now == runs || now == version.to_string(), "{now} is run");
            if ended.is_some_and(|status| status.success()) || now != runs {
                break;
            }
        }
        runs = scene.runs()?;
        assert_eq!(runs, version.to_string());
    }
    ensure!(scene.dir.path().exists());
    Ok(())
}

/// What `bundle update` says after each of its steps.
const SAID: [&str; 4] = ["listed", "verified", "tried", "promoted"];

/// A round is a bundle's whole life, with ten cuts. `cargo xtask soak a_signed_bundle_travels --rounds 5` cuts five times at each step.
#[test]
fn the_power_goes_at_each_step_of_its_life_and_one_whole_bundle_answers() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_ext4() {
        return Ok(());
    }
    let (place, mut chance) = (tempfile::tempdir()?, Chance::new());
    let mut disk = Ext4::make(place.path(), 64)?;
    let scene =
        Scene::beginning(|config| config.state_dir(&disk.path()).section("[outbox]\nfree_bytes_min = 1_000_000"))?;
    let mut version = 1;
    for _ in 0..rounds(1) {
        for shadow in [&[][..], &["--shadow"]] {
            version += 1;
            let wanted = format!("fashion-small/{version}");
            scene.publisher.publish("fashion-small", &version.to_string(), |_| Ok(()), &[])?;
            for said in SAID {
                let step = scene.updating(&wanted, shadow)?;
                cut_off(&scene, step, Some(said), &mut disk, &mut chance)?;
            }
            // As far as it came: a cut just after the last step leaves nothing to do.
            let output = scene.update(&wanted, shadow)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success() || said.contains("current bundle already"), "{said}");
        }
        assert_eq!(scene.runs()?, (version - 1).to_string(), "the last one looks on");
        for (command, then) in [("promote", version), ("back", version - 1)] {
            cut_off(&scene, scene.command(&[command, MODEL])?, None, &mut disk, &mut chance)?;
            if scene.runs()? != then.to_string() {
                done(&scene.command(&[command, MODEL])?.output()?);
            }
        }
        version += 1;
    }
    Ok(())
}

/// Cuts the power soon after `step` has said this, or soon after its start; then a whole bundle answers, which the shelf names.
fn cut_off(scene: &Scene, mut step: Command, said: Option<&str>, disk: &mut Ext4, chance: &mut Chance) -> Result<()> {
    let before = scene.runs()?;
    let mut child = step.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    if let Some(said) = said {
        lines.map_while(Result::ok).find(|line| line.starts_with(said));
    }
    // Which write the power cuts into is left to chance.
    wait::pause(Duration::from_micros(chance.within(0..40_000)));
    // Its trial is a process of its own.
    let group = Pid::from_child(&child);
    kill_process_group(group, Signal::KILL)?;
    child.wait()?;
    wait::until_true("all of it is gone", Duration::from_secs(60), || Ok(test_kill_process_group(group).is_err()))?;
    disk.cut_power()?;
    let what = || format!("{step:?} was cut off after {said:?}, with {before} before");
    let held = std::fs::read_to_string(disk.path().join("models").join(MODEL).join("shelf.json")).with_context(what)?;
    let held: serde_json::Value = serde_json::from_str(&held).with_context(what)?;
    scene.runs().with_context(what)?;
    let mut agent = scene.config.clone().start().with_context(what)?;
    let picture = std::fs::read(places::model("fashion-small").join("golden/test-1.png"))?;
    let answer = agent.http.post("door", "", "image/png", &picture).with_context(what)?;
    ensure!(held["current"]["version"] == *answer.model.version, "{held}, and {:?} answers: {}", answer.model, what());
    agent.kill()
}
