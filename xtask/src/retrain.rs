//! From doubt to a better small model, once and with the real programs.
//!
//! ```text
//! devices see pictures in the dark ─► doubtful ones become cases ─► the cloud's model, or a person, says what they show
//!   ─► hedge-cloud export, split by device ─► compress --only retrained ─► a new bundle ─► a device answers with it
//! ```
//! Nobody tells the devices what their pictures show; only what came back as a verdict is learned from. The pictures
//! that accuracy is measured on are no device's cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hedge_proto::{Answer, CaseId, Outcome};
use hedge_tests::fashion::Fashion;
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, places, tally, wait};
use serde_json::{Value, json};

use crate::{build, command, compress, onnxruntime};

const SMALL: &str = "fashion-small";
const LARGE: &str = "fashion-large";

/// The model as it was trained: what can be retrained.
const VARIANT: &str = "fp32";

/// About a fifth of them are for tests, by their names.
const DEVICES: usize = 10;

/// Training images that no model was trained on: some for the temperature and the threshold, the others for the devices.
const HELD_OUT: usize = 50_000;
const CALIBRATED_ON: usize = 2_000;

/// Ordinary pictures that are learned beside the hard ones, one in so many of those that the model was trained on: hard
/// cases alone would make it forget the easy ones.
const ORDINARY_EVERY: usize = 5;

/// Test images that each bundle answers on a device.
const TESTED_ON: usize = 5_000;

/// What each bundle may ask the cloud about, of the pictures it is calibrated on: what fashion-small was shipped with.
const DEFER_SHARE: &str = "0.17";

/// Noise of its own for the pictures of the devices and of the test.
const TEST_SEED: u64 = 1_000_000;

/// At the same time, for one device.
const CALLERS: usize = 4;

const DRAIN_WAIT_MAX: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder with Fashion-MNIST's training images (Debian: package dataset-fashion-mnist)
    #[arg(long, value_name = "DIR", default_value = "/usr/share/datasets/fashion-mnist")]
    data: PathBuf,
    /// Who says what the cases show: the cloud's model, or a person, who says what the data set says
    #[arg(long, value_enum, default_value_t)]
    labels: Labels,
    /// How many pictures the devices see together
    #[arg(long, value_name = "COUNT", default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(100..=8_000))]
    seen: u32,
    /// Where the training set and the bundles go; a folder that does not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Labels {
    #[default]
    Cloud,
    Person,
}

/// A picture as it is sent, and what it shows.
type Labelled = Result<(Vec<u8>, String)>;

/// Which picture, as it was taken.
type Camera<'a> = dyn Fn(usize) -> Result<Vec<u8>> + Sync + 'a;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let images = arguments.data.join("train-images-idx3-ubyte.gz");
    ensure!(images.is_file(), "there is no {}; on Debian: apt-get install dataset-fashion-mnist", images.display());
    let (training, test) = (Fashion::read(&images)?, Fashion::load()?);
    let library = onnxruntime::library()?;
    build::programs()?;
    ensure!(!arguments.out.exists(), "{} exists already; name a new folder", arguments.out.display());
    std::fs::create_dir_all(&arguments.out)?;
    let out = arguments.out.canonicalize()?;
    let dir = tempfile::Builder::new().prefix("hedge-retrain-").tempdir()?;
    let stand = Stand { dir: dir.path(), library: &library };

    stand.collect(arguments, &training, &out)?;
    let dark = |n| training.noisy_png(n, n as u64);
    let daylight = |n| training.png(n);
    let in_test = |n| test.noisy_png(n, TEST_SEED + n as u64);
    let hard = exported(&out.join("hard/train"))?;
    let ordinary = (0..HELD_OUT).step_by(ORDINARY_EVERY);
    println!("learned from: {} hard cases and {} ordinary pictures", hard.len(), ordinary.len());
    let mixed = out.join("mixed");
    write_set(&mixed, ordinary.map(|n| Ok((daylight(n)?, training.label(n).to_owned()))).chain(hard))?;
    let calibration = out.join("calibration");
    let some = HELD_OUT..HELD_OUT + CALIBRATED_ON;
    write_set(&calibration, some.map(|n| Ok((dark(n)?, training.label(n).to_owned()))))?;
    let tested = out.join("tested");
    write_set(&tested, (0..test.len()).map(|n| Ok((in_test(n)?, test.label(n).to_owned()))))?;

    let bundles = out.join("bundles");
    let small = places::model(SMALL);
    compress::run(&compress::Arguments::retrained(
        &small,
        &places::model(LARGE),
        [&mixed, &calibration, &tested].map(PathBuf::as_path),
        &bundles,
    ))?;
    let new = bundles.join("retrained");
    calibrate(&new, &calibration, &library)?;

    println!("\non a device, {TESTED_ON} test pictures that nothing was learned from:");
    println!("  bundle               in the dark               in daylight");
    for (name, bundle, variant) in [("before", small.as_path(), Some(VARIANT)), ("after", new.as_path(), None)] {
        let dark = stand.measure(&format!("{name}-dark"), bundle, variant, &test, &in_test)?;
        let light = stand.measure(&format!("{name}-daylight"), bundle, variant, &test, &|n| test.png(n))?;
        println!("  {name:<20} {dark:<25} {light}");
    }
    println!(
        "\nThe training set and the bundles are in {}, made within {} s.",
        out.display(),
        begun.elapsed().as_secs()
    );
    Ok(())
}

/// Where programs run, and with which library.
struct Stand<'a> {
    dir: &'a Path,
    library: &'a Path,
}

impl Stand<'_> {
    /// Shows devices their pictures, has every case answered, and writes the training set.
    fn collect(&self, arguments: &Arguments, pictures: &Fashion, out: &Path) -> Result<()> {
        let mut setup = CloudSetup::embedded(&[LARGE]);
        setup.environment = vec![("ORT_DYLIB_PATH".into(), self.library.display().to_string())];
        let cloud = Cloud::start(self.dir, &setup)?;
        let first = HELD_OUT + CALIBRATED_ON;
        let all: Vec<usize> = (first..first + arguments.seen as usize).collect();
        let (mut cases, mut right) = (Vec::new(), 0);
        for (number, some) in all.chunks(all.len().div_ceil(DEVICES)).enumerate() {
            let config = self.device(&format!("device-{number}"), &places::model(SMALL), Some(VARIANT));
            let mut agent = config.broker(cloud.broker()).corrections_file().start()?;
            agent.wait_until_online()?;
            let answers = show(&agent, some, &|n| pictures.noisy_png(n, n as u64))?;
            let deferred = |(n, answer): &(usize, Answer)| {
                (answer.decision.outcome == Outcome::Defer).then(|| (answer.id.clone(), *n))
            };
            let asked: BTreeMap<CaseId, usize> = answers.iter().filter_map(deferred).collect();
            // The file has an answer a moment after the queue.
            let verdicts = wait::until("its cases are answered", DRAIN_WAIT_MAX, || {
                let verdicts: Vec<Answer> =
                    agent.corrections()?.into_iter().filter(|one| asked.contains_key(&one.id)).collect();
                Ok((verdicts.len() >= asked.len()).then_some(verdicts))
            })?;
            for verdict in verdicts {
                let Some(n) = asked.get(&verdict.id) else { continue };
                right += usize::from(tally::label(&verdict).as_deref() == Some(pictures.label(*n)));
            }
            cases.extend(asked);
            agent.stop()?;
        }
        println!(
            "{DEVICES} devices saw {} pictures in the dark and asked about {}; the cloud's model was right on {}",
            all.len(),
            cases.len(),
            percent(right, cases.len())
        );
        if arguments.labels == Labels::Person {
            for (id, n) in &cases {
                let word = json!({"label": pictures.label(*n), "by": "a person", "seen": 1});
                let told = cloud.post(&format!("/api/review/{id}"), &word)?;
                ensure!(told["outcome"] == "answered", "the person's word on {id}: {told}");
            }
            println!("a person has said what each of them shows");
        }
        let archive = out.join("hard.tar");
        let mut export = command::program(places::program("hedge-cloud")?);
        export.arg("export").arg("--state-dir").arg(self.dir.join(&setup.instance).join("state"));
        command::run(export.arg("--out").arg(&archive))?;
        let hard = out.join("hard");
        std::fs::create_dir(&hard)?;
        command::run(command::program("tar").arg("-xf").arg(&archive).arg("-C").arg(&hard))
    }

    /// What a device without a cloud answers of the test, and how often it would ask.
    fn measure(
        &self,
        name: &str,
        bundle: &Path,
        variant: Option<&str>,
        test: &Fashion,
        camera: &Camera<'_>,
    ) -> Result<String> {
        let mut agent = self.device(name, bundle, variant).start()?;
        let answers = show(&agent, &(0..TESTED_ON.min(test.len())).collect::<Vec<_>>(), camera)?;
        agent.stop()?;
        let right =
            answers.iter().filter(|(n, answer)| tally::label(answer).as_deref() == Some(test.label(*n))).count();
        let asked = answers.iter().filter(|(_, answer)| answer.decision.outcome == Outcome::Defer).count();
        Ok(format!("{} right, asks {}", percent(right, answers.len()), percent(asked, answers.len())))
    }

    fn device(&self, name: &str, bundle: &Path, variant: Option<&str>) -> AgentConfig {
        let variant = variant.map(|variant| format!("variant = \"{variant}\"")).unwrap_or_default();
        AgentConfig::new(self.dir, name)
            .section(&format!("[[model]]\nname = \"fashion\"\nbundle = \"{}\"\n{variant}", bundle.display()))
            .http_source("camera")
            .library(self.library)
    }
}

fn show(agent: &Agent, numbers: &[usize], camera: &Camera<'_>) -> Result<Vec<(usize, Answer)>> {
    let post = |part: &[usize]| -> Result<Vec<(usize, Answer)>> {
        let one = |n: &usize| Ok((*n, agent.http.post("camera", "", "image/png", &camera(*n)?)?));
        part.iter().map(one).collect()
    };
    std::thread::scope(|scope| {
        let parts = numbers.chunks(numbers.len().div_ceil(CALLERS).max(1));
        let callers: Vec<_> = parts.map(|part| scope.spawn(move || post(part))).collect();
        let mut answers = Vec::with_capacity(numbers.len());
        for caller in callers {
            answers.extend(caller.join().map_err(|_| anyhow!("a caller panicked"))??);
        }
        Ok(answers)
    })
}

/// The pictures of one half of an export, with their labels.
fn exported(half: &Path) -> Result<Vec<Labelled>> {
    let path = half.join("labels.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let one = |line: &str| {
        let line: Value = serde_json::from_str(line)?;
        let (file, label) = line["file"].as_str().zip(line["label"].as_str()).context("a picture without a label")?;
        Ok((std::fs::read(half.join(file))?, label.to_owned()))
    };
    Ok(text.lines().map(one).collect())
}

/// A folder as `hedge-cloud export` writes one.
fn write_set(dir: &Path, pictures: impl Iterator<Item = Labelled>) -> Result<()> {
    std::fs::create_dir_all(dir.join("pictures"))?;
    let mut lines = String::new();
    for (number, picture) in pictures.enumerate() {
        let (bytes, label) = picture?;
        let file = format!("pictures/{number}.png");
        std::fs::write(dir.join(&file), bytes)?;
        lines += &format!("{}\n", json!({"file": file, "label": label}));
    }
    Ok(std::fs::write(dir.join("labels.jsonl"), lines)?)
}

fn calibrate(bundle: &Path, pictures: &Path, library: &Path) -> Result<()> {
    let mut calibrate = command::program(places::program("hedge-agent")?);
    calibrate.args(["bundle", "calibrate"]).arg(bundle).arg("--pictures").arg(pictures);
    command::run_aside(calibrate.args(["--defer-share", DEFER_SHARE]).env("ORT_DYLIB_PATH", library))
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}
