//! `hedge-agent bench`: how fast this board answers, for how long, and which variant of the model suits it.
//!
//! One sample after the other, as a source brings them, on the agent's own path: bytes to picture, to tensor, to scores,
//! to decision. Nothing is stored or sent.

mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hedge_core::judge::{Limits, Thresholds};
use hedge_inference::bundle::Variant;
use hedge_inference::{Bundle, ContentType, Model, Provider, ProviderChoice, Runtime, SessionOptions, StageTimes};

use self::report::{Board, Heat, Report, Stage, Sustained, VariantReport};
use super::{SAMPLE_BYTES_MAX, read_file};
use hedge_agent::board;
use hedge_agent::inference::Opinion;
use hedge_config::Config;

/// A longer one says nothing more: a board is as hot as it gets after some minutes.
const FOR_MAX: Duration = Duration::from_secs(3600);

/// Runs before the clock counts: the first ones load code and grow buffers.
const WARM_UP: usize = 3;

/// What of the time goes to comparing variants.
const COMPARED_SHARE: u32 = 5;

/// The first and the last part of the sustained time are compared: a board that gets hot gets slow.
const ENDS_SHARE: u32 = 5;

/// How often the board is asked how hot it is.
const HEAT_EVERY: Duration = Duration::from_secs(1);

/// What `bench` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints milliseconds for each stage, samples per second sustained, temperature and throttling where the \
    board tells them, which variant of the model to use here and why, and one line for the table of boards in docs/measurements.md."
)]
pub struct BenchArgs {
    /// The configuration file; its first model is measured.
    #[arg(long, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    config: PathBuf,
    /// Measure the model of this bundle instead of the configuration's.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// The sample to measure with, such as a frame of your camera; the bundle's first golden sample if not given.
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// How long: 90s, 5m, 1h.
    #[arg(long = "for", default_value = "5m", value_name = "TIME", value_parser = duration)]
    time: Duration,
    /// Threads within one inference.
    #[arg(long, default_value_t = 1)]
    threads: u8,
    /// Measure with this accelerator, too, and compare it with the processor; the configuration's if not given.
    #[arg(long, value_name = "NAME", value_parser = provider)]
    provider: Option<Provider>,
    /// The ONNX Runtime library; the configuration's, else searched for.
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// `xnnpack`.
fn provider(text: &str) -> Result<Provider, String> {
    Provider::ALL.into_iter().find(|provider| provider.name() == text).ok_or_else(|| {
        let names: Vec<&str> = Provider::ALL.iter().map(|provider| provider.name()).collect();
        format!("`{text}` is none of {}", names.join(", "))
    })
}

/// `90s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 90s, 5m or 1h");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => number,
        "m" => number.saturating_mul(60),
        "h" => number.saturating_mul(3600),
        _ => return Err(wrong()),
    };
    let time = Duration::from_secs(seconds);
    if time.is_zero() || time > FOR_MAX {
        return Err(format!("`{text}` is not between 1s and {}s", FOR_MAX.as_secs()));
    }
    Ok(time)
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    write_report(args, &mut std::io::stdout())
}

/// Like [`run`], into any writer.
pub fn write_report(args: &BenchArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let report = measure(args)?;
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.text() };
    out.write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What is measured with.
struct Bench {
    runtime: Runtime,
    bundle: Bundle,
    content_type: ContentType,
    sample: Vec<u8>,
    thresholds: Thresholds,
    threads: u8,
    provider: Option<ProviderChoice>,
}

fn measure(args: &BenchArgs) -> anyhow::Result<Report> {
    let (folder, library, configured) = match &args.bundle {
        Some(folder) => (folder.clone(), args.library.clone(), None),
        None => {
            let config = Config::load(&args.config, std::env::vars())?;
            let model = config.models.first().context("the configuration has no model; name a bundle with --bundle")?;
            let library = args.library.clone().or_else(|| config.runtime.library.clone());
            (model.bundle.clone(), library, model.session().provider)
        }
    };
    let bundle = Bundle::open(&folder)?;
    let sample = match (&args.sample, bundle.manifest().goldens.first()) {
        (Some(file), _) => read_file(file, SAMPLE_BYTES_MAX)?,
        (None, Some(golden)) => bundle.read_golden(golden)?,
        (None, None) => bail!("{} has no golden sample; name a picture with --sample", folder.display()),
    };
    let runtime = Runtime::find(library.as_deref())?;
    // Which threshold is judged by takes no time.
    let thresholds = bundle.threshold().map_or_else(|| Limits::new(0.5, 0.0, 1.0), Ok)?.into();
    let (content_type, sample) = match ContentType::sniff(&sample) {
        Some(picture) => (picture, sample),
        None => {
            let shape = bundle.input().shape.clone();
            let tensors = bundle.input().samples(&sample)?;
            (ContentType::Tensor { shape }, tensors.first().context("the sample is empty")?.to_bytes())
        }
    };
    let named = args.provider.map(ProviderChoice::from);
    // With the options that the configuration has for it.
    let provider = configured.filter(|own| named.as_ref().is_none_or(|named| named.provider == own.provider)).or(named);
    let bench = Bench { content_type, thresholds, runtime, bundle, sample, threads: args.threads, provider };
    bench.run(args.time)
}

impl Bench {
    fn run(&self, time: Duration) -> anyhow::Result<Report> {
        let mut heat = HeatLog::new();
        let variants = self.bundle.manifest().variants.clone();
        let compared = time / COMPARED_SHARE;
        let measured = self.compare(&variants, compared, &mut heat)?;
        let (chosen, reason) = report::recommend(&measured).context("the bundle has no variant")?;
        let best = measured.iter().find(|variant| variant.name() == chosen).context("a variant")?;
        let sustained = self.sustain(best, time.saturating_sub(compared), &mut heat)?;
        let model = self.bundle.model_ref();
        Ok(Report {
            agent: env!("CARGO_PKG_VERSION"),
            runtime: self.runtime.version().to_owned(),
            model: format!("{} {}", model.name, model.version),
            sample_bytes: self.sample.len(),
            threads: self.threads,
            board: Board::read(),
            variants: measured,
            recommended: chosen,
            reason,
            sustained,
            heat: heat.end(),
        })
    }

    fn load(&self, variant: &str, provider: Option<&ProviderChoice>) -> anyhow::Result<Model> {
        let options = SessionOptions { threads: self.threads, provider: provider.cloned() };
        Ok(Model::load(&self.runtime, &self.bundle, Some(variant), &options)?)
    }

    /// Each stage of each variant, in turns, so that heat and what else runs here hits them alike.
    fn compare(&self, variants: &[Variant], time: Duration, heat: &mut HeatLog) -> anyhow::Result<Vec<VariantReport>> {
        let mut runs = Vec::new();
        let providers = [None, self.provider.as_ref()];
        let providers = if self.provider.is_some() { &providers[..] } else { &providers[..1] };
        for (variant, provider) in variants.iter().flat_map(|variant| providers.iter().map(move |own| (variant, *own)))
        {
            let begun = Instant::now();
            let mut model = self.load(variant.name.as_str(), provider)?;
            let load = begun.elapsed();
            let mut agrees = true;
            for golden in &self.bundle.manifest().goldens {
                agrees &= model.check_golden(&self.bundle, variant, golden)?.passed();
            }
            for _ in 0..WARM_UP {
                self.one(&mut model)?;
            }
            let stages: [Vec<Duration>; Stage::ALL.len()] = Default::default();
            runs.push((variant, model, load, agrees, stages));
        }
        let begun = Instant::now();
        loop {
            for (_, model, _, _, stages) in &mut runs {
                for (stage, took) in stages.iter_mut().zip(self.one(model)?) {
                    stage.push(took);
                }
            }
            heat.look();
            if begun.elapsed() >= time {
                break;
            }
        }
        let report = |(variant, model, load, agrees, stages): (&Variant, Model, Duration, bool, _)| {
            VariantReport::new(variant.name.to_string(), model.runs_on(), load, agrees, stages)
        };
        Ok(runs.into_iter().map(report).collect())
    }

    /// One sample through every stage.
    fn one(&self, model: &mut Model) -> anyhow::Result<[Duration; Stage::ALL.len()]> {
        let (tensor, StageTimes { decode, resize, normalise }) =
            model.timed_tensor(&self.content_type, &self.sample)?;
        let begun = Instant::now();
        let outputs = model.run(&tensor)?;
        let infer = begun.elapsed();
        let begun = Instant::now();
        std::hint::black_box(Opinion::new(model.task(), &outputs, &tensor.frame, &self.thresholds));
        Ok([decode, resize, normalise, infer, begun.elapsed()])
    }

    /// Sample after sample without a rest.
    fn sustain(&self, best: &VariantReport, time: Duration, heat: &mut HeatLog) -> anyhow::Result<Sustained> {
        let provider = self.provider.as_ref().filter(|_| best.is_accelerated());
        let mut model = self.load(&best.variant, provider)?;
        for _ in 0..WARM_UP {
            self.one(&mut model)?;
        }
        let mut ends = Vec::new();
        let begun = Instant::now();
        loop {
            self.one(&mut model)?;
            ends.push(begun.elapsed());
            heat.look();
            if begun.elapsed() >= time {
                break;
            }
            ensure!(ends.len() < SAMPLES_MAX, "more samples than are counted");
        }
        let whole = begun.elapsed();
        let part = whole / ENDS_SHARE;
        let rate = |from: Duration, to: Duration| {
            let count = ends.iter().filter(|end| **end > from && **end <= to).count();
            report::per_second(count, to.saturating_sub(from))
        };
        Ok(Sustained {
            seconds: whole.as_secs_f64(),
            samples: ends.len(),
            per_second: report::per_second(ends.len(), whole),
            first: rate(Duration::ZERO, part),
            last: rate(whole.saturating_sub(part), whole),
        })
    }
}

/// An hour at 30,000 a second, far beyond any model: what one list may hold.
const SAMPLES_MAX: usize = 100_000_000;

/// How hot the board was, as it told.
struct HeatLog {
    heat: Heat,
    looked: Option<Instant>,
}

impl HeatLog {
    fn new() -> Self {
        let mut log = Self { heat: Heat::default(), looked: None };
        log.look();
        log
    }

    fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < HEAT_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let now = board::read();
        if let Some(celsius) = now.temperature_c {
            self.heat.begin_c.get_or_insert(celsius);
            self.heat.max_c = Some(self.heat.max_c.map_or(celsius, |max| max.max(celsius)));
        }
        if let Some(throttling) = now.throttling {
            self.heat.throttling.get_or_insert_default().extend(throttling.now);
        }
    }

    fn end(mut self) -> Heat {
        self.looked = None;
        self.look();
        self.heat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_or_refused_in_words() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "5", "m", "0s", "2h", "-1s", "5 m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
