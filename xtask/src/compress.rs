//! Makes smaller bundles of one, and measures all of them with the agent itself.
//!
//! Python only makes the models (`models/recipes/compress.py`). What they see, how they are calibrated and what they are
//! worth is the agent's own work: `hedge-agent bundle tensors`, `derive`, `calibrate` and `compare`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use hedge_inference::Bundle;
use hedge_inference::task::Reading;
use serde::Deserialize;
use serde_json::json;

use crate::{build, command, onnxruntime, python};

/// Three that need no training, and four that do.
const CANDIDATES: [&str; 7] = ["dynamic", "static", "fp16", "pruned", "smaller", "student", "retrained"];

/// No smaller than what it is made of, so it is made only if it is named.
const RETRAINED: &str = "retrained";

#[derive(clap::Args)]
#[command(
    after_help = "Samples are a folder with one folder per label, a folder of `hedge-cloud export` (its train/ or test/), or gray pictures as IDX: \
    the file …images-idx3-ubyte.gz, with …labels-idx1-ubyte.gz beside it."
)]
pub(crate) struct Arguments {
    /// The folder with the bundle to make smaller
    bundle: PathBuf,
    /// Which of its files is the model as it was trained
    #[arg(long, value_name = "NAME", default_value = "fp32")]
    variant: String,
    /// The bundle of the bigger model: it teaches, and it is what the device would ask
    #[arg(long, value_name = "DIR")]
    cloud: Option<PathBuf>,
    /// Samples to retrain with; needed for pruned, smaller and student
    #[arg(long, value_name = "SAMPLES")]
    train: Option<PathBuf>,
    /// Only this many of them, from the beginning
    #[arg(long, value_name = "COUNT")]
    train_first: Option<usize>,
    /// And at most this many, evenly from these
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    train_max: usize,
    /// Samples that no model was trained on, with labels: for INT8 ranges, temperature and threshold
    #[arg(long, value_name = "SAMPLES")]
    calibration: PathBuf,
    /// Samples that nothing was chosen by: what the table is measured on
    #[arg(long, value_name = "SAMPLES")]
    test: PathBuf,
    /// The target is the cloud's accuracy less this many percentage points
    #[arg(long, value_name = "POINTS", default_value = "0.5")]
    within: String,
    /// Where the bundles go; a folder that does not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these candidates; `retrained` is the same network, taught what the samples say
    #[arg(long, value_delimiter = ',', value_parser = CANDIDATES)]
    only: Vec<String>,
    /// Widths of smaller pictures to try, in pixels [default: 0.7 and 0.5 of the model's]
    #[arg(long, value_delimiter = ',', value_name = "PIXELS")]
    sizes: Vec<usize>,
    /// The share of channels that pruning takes out
    #[arg(long, default_value_t = 0.5, value_name = "0..1")]
    prune: f64,
    /// Channels of the student's first step; it doubles from step to step
    #[arg(long, default_value_t = 8, value_name = "CHANNELS")]
    student_width: usize,
    /// Rounds over the samples when retraining; a student takes twice as many
    #[arg(long, default_value_t = 6)]
    epochs: usize,
}

/// What the Python side says of a candidate.
#[derive(Deserialize)]
struct Made {
    name: String,
    file: Option<PathBuf>,
    /// Why there is none.
    why: Option<String>,
    note: Option<String>,
    size: Option<String>,
    output_kind: Option<String>,
}

/// The agent's program and where its parts lie.
struct Run {
    agent: PathBuf,
    library: PathBuf,
    bundle: PathBuf,
    work: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let bundle = Bundle::open(&arguments.bundle)?;
    let Reading::Classes(classes) = &bundle.manifest().output else {
        bail!("{} finds things; compress is for models that classify", arguments.bundle.display());
    };
    let variant = bundle.variant(Some(&arguments.variant))?;
    ensure!(
        arguments.prune > 0.0 && arguments.prune < 1.0,
        "--prune {} is not a share between 0 and 1",
        arguments.prune
    );
    let wanted = arguments.wanted();
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let out = arguments.out.canonicalize()?;
    ensure!(std::fs::read_dir(&out)?.next().is_none(), "{} is not empty; name a new folder", out.display());
    let work = tempfile::Builder::new().prefix("compress-").tempdir_in(&out)?;
    let run = Run {
        agent: build::agent()?.join("hedge-agent"),
        library: onnxruntime::library()?,
        bundle: arguments.bundle.canonicalize()?,
        work: work.path().to_owned(),
    };
    let interpreter = python::trainers()?.context("`cargo xtask compress` needs python3 and python3-venv")?;

    let shape = bundle.input().shape.clone();
    let sizes = if wanted.contains(&"smaller") { arguments.smaller(&bundle) } else { Vec::new() };
    let trains = wanted.iter().any(|name| ["pruned", "smaller", "student", RETRAINED].contains(name));
    let train = |size: Option<&str>| match &arguments.train {
        Some(train) if trains => run.tensors("train", train, size, arguments).map(Some),
        _ => Ok(None),
    };
    let full = train(None)?;
    let ranged = run.tensors("calibration", &arguments.calibration, None, arguments)?;
    let mut smaller = Vec::new();
    for (size, shape) in &sizes {
        smaller.push(json!({
            "name": format!("size-{size}"),
            "size": size,
            "shape": shape,
            "train": train(Some(size))?,
            "calibration": run.tensors("calibration", &arguments.calibration, Some(size), arguments)?,
        }));
    }
    let job = json!({
        "model": bundle.variant_path(variant).canonicalize()?,
        "out": run.work,
        "train": { "folder": full, "shape": shape },
        "calibration": { "folder": ranged, "shape": shape },
        "has_teacher": arguments.cloud.is_some(),
        "sizes": smaller,
        "wanted": wanted,
        "prune": arguments.prune,
        "epochs": arguments.epochs,
        "kind": classes.kind.word(),
        "layout": bundle.input().picture.as_ref().map(|picture| picture.layout.word()),
        "student_width": arguments.student_width,
    });
    let made = run.python(&interpreter, &job)?;
    let mut dirs = Vec::new();
    for one in &made {
        dirs.extend(run.bundle(one, &bundle, &out, &arguments.calibration)?);
    }
    println!();
    run.compare(&dirs, arguments)?;
    for one in &made {
        match (&one.why, &one.note) {
            (Some(why), _) => println!("{}: not made: {why}", one.name),
            (None, Some(note)) => println!("{}: {note}", one.name),
            (None, None) => {}
        }
    }
    println!(
        "\nThe bundles are in {}, made within {} s. None is chosen: take one, and",
        out.display(),
        begun.elapsed().as_secs()
    );
    println!("  hedge-agent bundle calibrate {}/NAME … --defer-share ASKS", out.display());
    Ok(())
}

impl Arguments {
    /// The same network and its INT8 file, taught what samples say: those to learn from, for the calibration and for the table.
    pub(crate) fn retrained(bundle: &Path, cloud: &Path, samples: [&Path; 3], out: &Path) -> Self {
        let [train, calibration, test] = samples.map(Path::to_owned);
        Self {
            bundle: bundle.to_owned(),
            variant: "fp32".to_owned(),
            cloud: Some(cloud.to_owned()),
            train: Some(train),
            train_first: None,
            train_max: 20_000,
            calibration,
            test,
            within: "0.5".to_owned(),
            out: out.to_owned(),
            only: vec![RETRAINED.to_owned()],
            sizes: Vec::new(),
            prune: 0.5,
            student_width: 8,
            epochs: 6,
        }
    }

    fn wanted(&self) -> Vec<&str> {
        let is_wanted = |name: &&str| match self.only.as_slice() {
            [] => *name != RETRAINED,
            only => only.iter().any(|only| only == name),
        };
        CANDIDATES.into_iter().filter(is_wanted).collect()
    }

    /// `20x20` and the model's input then, for each smaller picture.
    fn smaller(&self, bundle: &Bundle) -> Vec<(String, Vec<usize>)> {
        let Some(picture) = &bundle.input().picture else { return Vec::new() };
        let (width, height) = (picture.width as usize, picture.height as usize);
        // Multiples of 4 suit networks that halve a picture twice or more.
        let usual = || [7, 5].map(|tenths| (width * tenths / 10).next_multiple_of(4)).to_vec();
        let widths = if self.sizes.is_empty() { usual() } else { self.sizes.clone() };
        let of = |wide: usize| {
            let high = (wide * height).div_ceil(width);
            let shape = match picture.layout.word() {
                "nhwc" => vec![1, high, wide, bundle.input().shape[3]],
                _ => vec![1, bundle.input().shape[1], high, wide],
            };
            (format!("{wide}x{high}"), shape)
        };
        widths.into_iter().filter(|wide| *wide > 0 && *wide < width).map(of).collect()
    }
}

/// How `hedge-agent bundle` is told where samples lie.
fn samples(place: &Path) -> Result<Vec<PathBuf>> {
    if place.is_dir() {
        return Ok(vec!["--pictures".into(), place.canonicalize()?]);
    }
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let labels = place.with_file_name(name.replace("images-idx3", "labels-idx1"));
    ensure!(place.is_file(), "there is no {}", place.display());
    ensure!(
        labels != place && labels.is_file(),
        "{} is no folder, and no …images-idx3-ubyte.gz with its …labels-idx1-ubyte.gz beside it",
        place.display()
    );
    Ok(vec!["--images".into(), place.canonicalize()?, "--labels".into(), labels.canonicalize()?])
}

impl Run {
    fn agent(&self, arguments: &[&str]) -> Command {
        let mut agent = command::program(&self.agent);
        agent.arg("bundle").args(arguments).env("ORT_DYLIB_PATH", &self.library);
        agent
    }

    /// What a model sees of these samples, for Python.
    fn tensors(&self, name: &str, place: &Path, size: Option<&str>, arguments: &Arguments) -> Result<PathBuf> {
        let out = self.work.join(format!("{name}-{}", size.unwrap_or("full")));
        eprintln!("{} …", out.file_name().unwrap_or_default().to_string_lossy());
        let mut agent = self.agent(&["tensors"]);
        agent.arg(&self.bundle).args(samples(place)?).arg("--out").arg(&out);
        agent.args(size.into_iter().flat_map(|size| ["--size", size]));
        if name == "train" {
            agent.args(["--samples-max", &arguments.train_max.to_string()]);
            agent.args(arguments.train_first.iter().flat_map(|first| ["--first".to_owned(), first.to_string()]));
            // What it says of the pictures in their full size is learned at any size.
            if let (Some(cloud), None) = (&arguments.cloud, size) {
                agent.arg("--teacher").arg(cloud.canonicalize().with_context(|| cloud.display().to_string())?);
            }
        }
        command::run_aside(&mut agent)?;
        Ok(out)
    }

    fn python(&self, interpreter: &Path, job: &serde_json::Value) -> Result<Vec<Made>> {
        let path = self.work.join("job.json");
        std::fs::write(&path, job.to_string())?;
        let mut python = command::program(interpreter);
        python.arg("models/recipes/compress.py").arg(&path).env("JAX_PLATFORMS", "cpu");
        let mut child = python.stdout(Stdio::piped()).spawn().context("cannot start Python")?;
        let mut made = Vec::new();
        for line in BufReader::new(child.stdout.take().context("a pipe")?).lines() {
            let line = line?;
            // Libraries may print there, too.
            made.extend(serde_json::from_str::<Made>(&line).ok());
        }
        let status = child.wait()?;
        ensure!(status.success(), "models/recipes/compress.py failed ({status}); what it said is above");
        Ok(made)
    }

    /// A whole bundle of a candidate, calibrated.
    fn bundle(&self, made: &Made, base: &Bundle, out: &Path, calibration: &Path) -> Result<Option<PathBuf>> {
        let Some(file) = &made.file else { return Ok(None) };
        let dir = out.join(&made.name);
        let mut derive = self.agent(&["derive"]);
        derive.arg(&self.bundle).arg("--model").arg(file).arg("--out").arg(&dir);
        derive.args(["--version", &format!("{}-{}", base.manifest().version, made.name)]);
        derive.args(made.size.iter().flat_map(|size| ["--size", size]));
        derive.args(made.output_kind.iter().map(|_| "--logits"));
        command::run_aside(&mut derive)?;
        let mut calibrate = self.agent(&["calibrate"]);
        command::run_aside(calibrate.arg(&dir).args(samples(calibration)?))?;
        Ok(Some(dir))
    }

    fn compare(&self, dirs: &[PathBuf], arguments: &Arguments) -> Result<()> {
        let mut compare = self.agent(&["compare"]);
        compare.args(dirs).args(samples(&arguments.test)?).args(["--within", &arguments.within]);
        if let Some(cloud) = &arguments.cloud {
            compare.arg("--cloud").arg(cloud.canonicalize()?);
        }
        command::run(&mut compare)
    }
}
