//! What was measured, which variant it speaks for, and how it is written.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use hedge_inference::RunsOn;
use serde::Serialize;

/// What one sample goes through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Decode,
    Resize,
    Normalise,
    Infer,
    Judge,
}

impl Stage {
    pub(super) const ALL: [Self; 5] = [Self::Decode, Self::Resize, Self::Normalise, Self::Infer, Self::Judge];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Resize => "resize",
            Self::Normalise => "normalise",
            Self::Infer => "infer",
            Self::Judge => "judge",
        }
    }
}

/// Half of all samples took at most so long, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct VariantReport {
    pub(super) variant: String,
    /// `cpu`, or an accelerator and how many of the model's steps it takes.
    pub(super) provider: String,
    /// Why it is not the accelerator that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    pub(super) samples: usize,
    pub(super) load_ms: f64,
    /// The golden samples get the answers they should.
    pub(super) golden_agree: bool,
    pub(super) stages_ms: Vec<(&'static str, f64)>,
    pub(super) total_ms: f64,
}

impl VariantReport {
    pub(super) fn new(
        variant: String,
        on: &RunsOn,
        load: Duration,
        golden_agree: bool,
        stages: [Vec<Duration>; Stage::ALL.len()],
    ) -> Self {
        let samples = stages[0].len();
        let totals = (0..samples).map(|at| stages.iter().map(|stage| stage[at]).sum()).collect();
        let stages_ms = Stage::ALL.iter().zip(stages).map(|(stage, took)| (stage.name(), median_ms(took))).collect();
        let (provider, refused) = (on.to_string(), on.refused.clone());
        let (load_ms, total_ms) = (ms(load), median_ms(totals));
        Self { variant, provider, refused, samples, load_ms, golden_agree, stages_ms, total_ms }
    }

    /// `int8`, or `int8 on xnnpack`.
    pub(super) fn name(&self) -> String {
        match self.provider.split(' ').next() {
            Some(provider) if self.is_accelerated() => format!("{} on {provider}", self.variant),
            _ => self.variant.clone(),
        }
    }

    pub(super) fn is_accelerated(&self) -> bool {
        self.provider != RunsOn::CPU
    }

    fn infer_ms(&self) -> f64 {
        let infer = self.stages_ms.iter().find(|(stage, _)| *stage == Stage::Infer.name());
        infer.map_or(0.0, |(_, ms)| *ms)
    }
}

fn median_ms(mut took: Vec<Duration>) -> f64 {
    took.sort_unstable();
    took.get(took.len() / 2).map_or(0.0, |median| ms(*median))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a count of samples")]
pub(super) fn per_second(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// A variant must save so much of an inference to be worth its difference: less is noise.
const WORTH_IT: f64 = 0.9;

/// The variant to use here, and why. The first of the manifest stays where nothing speaks against it.
pub(super) fn recommend(variants: &[VariantReport]) -> Option<(String, String)> {
    // One whose accelerator failed its trial is the same as without.
    let variants: Vec<&VariantReport> = variants.iter().filter(|variant| variant.refused.is_none()).collect();
    let first = variants.first()?;
    if variants.len() == 1 {
        return Some((first.name(), "it is the bundle's only variant".to_owned()));
    }
    let right: Vec<&&VariantReport> = variants.iter().filter(|variant| variant.golden_agree).collect();
    let wrong: Vec<String> =
        variants.iter().filter(|variant| !variant.golden_agree).map(|variant| variant.name()).collect();
    let Some(fastest) = right.iter().min_by(|a, b| a.infer_ms().total_cmp(&b.infer_ms())) else {
        return Some((first.name(), "no variant gives the golden answers here; do not use this bundle".to_owned()));
    };
    let (mut near, slower): (Vec<&&VariantReport>, Vec<_>) =
        right.iter().partition(|variant| fastest.infer_ms() >= variant.infer_ms() * WORTH_IT);
    if let ([only], Some(next)) = (near.as_slice(), slower.iter().map(|variant| variant.infer_ms()).reduce(f64::min)) {
        let saved = (1.0 - only.infer_ms() / next) * 100.0;
        let reason =
            format!("an inference takes {saved:.0} % less time than with the next, and the golden answers agree");
        return Some((only.name(), reason));
    }
    if near.len() == 1 {
        let reason = format!("it alone gives the golden answers here ({} does not)", wrong.join(", "));
        return Some((fastest.name(), reason));
    }
    // Between equals the one that needs no accelerator is simpler, and the one without rounding the better answer.
    near.sort_by_key(|variant| (variant.is_accelerated(), variant.variant != "fp32"));
    let reason = match near.iter().find(|variant| variant.is_accelerated()) {
        Some(other) => format!("`{}` is no faster here, within a tenth", other.name()),
        None => "the variants are as fast as each other here, within a tenth; this processor gains nothing from smaller numbers".to_owned(),
    };
    Some((near.first()?.name(), reason))
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Sustained {
    pub(super) seconds: f64,
    pub(super) samples: usize,
    pub(super) per_second: f64,
    /// In the first and the last fifth of the time.
    pub(super) first: f64,
    pub(super) last: f64,
}

/// What the board tells; absent what it does not.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Heat {
    pub(super) begin_c: Option<f64>,
    pub(super) max_c: Option<f64>,
    pub(super) throttling: Option<BTreeSet<String>>,
}

impl Heat {
    fn text(&self) -> String {
        let degrees = match (self.begin_c, self.max_c) {
            (Some(begin), Some(max)) => format!("{begin:.0} to {max:.0} °C"),
            _ => "temperature not told".to_owned(),
        };
        let throttling = match &self.throttling {
            None => "throttling not told".to_owned(),
            Some(limits) if limits.is_empty() => "not throttled".to_owned(),
            Some(limits) => limits.iter().cloned().collect::<Vec<_>>().join(" and "),
        };
        format!("{degrees}, {throttling}")
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Board {
    pub(super) name: String,
    pub(super) cores: usize,
    pub(super) arch: &'static str,
}

impl Board {
    pub(super) fn read() -> Self {
        let model = std::fs::read_to_string("/proc/device-tree/model").ok();
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        let name = model.as_deref().or(cpu).unwrap_or("unknown board");
        // It goes into a table.
        let name = name.trim_matches(|c: char| c == '\0' || c.is_whitespace()).replace('|', "/");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { name, cores, arch: std::env::consts::ARCH }
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) agent: &'static str,
    pub(super) runtime: String,
    pub(super) model: String,
    pub(super) sample_bytes: usize,
    pub(super) threads: u8,
    pub(super) board: Board,
    pub(super) variants: Vec<VariantReport>,
    pub(super) recommended: String,
    pub(super) reason: String,
    pub(super) sustained: Sustained,
    pub(super) heat: Heat,
}

impl Report {
    pub(super) fn json(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["table_line"] = self.table_line().into();
        json
    }

    pub(super) fn text(&self) -> String {
        let Self { board, sustained, .. } = self;
        let mut text = String::new();
        let mut line = |line: String| text.write_fmt(format_args!("{line}\n")).unwrap_or_default();
        line(format!("board      {}, {} cores, {}", board.name, board.cores, board.arch));
        line(format!(
            "measured   {} on {} thread, a sample of {} bytes, ONNX Runtime {}",
            self.model, self.threads, self.sample_bytes, self.runtime
        ));
        for variant in &self.variants {
            let stages: Vec<String> = variant.stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms:.2}")).collect();
            let agree = if variant.golden_agree { "golden answers agree" } else { "GOLDEN ANSWERS DIFFER" };
            if let Some(refused) = &variant.refused {
                line(format!("{:10} {refused}", variant.variant));
                continue;
            }
            let on = if variant.is_accelerated() { format!("on {}, ", variant.provider) } else { String::new() };
            line(format!(
                "{:10} {on}{:.2} ms a sample ({} ms), loaded in {:.0} ms, {agree}",
                variant.variant,
                variant.total_ms,
                stages.join(", "),
                variant.load_ms
            ));
        }
        line(format!(
            "sustained  {:.1} samples/s over {:.0} s with {} ({:.1} in the first fifth, {:.1} in the last)",
            sustained.per_second, sustained.seconds, self.recommended, sustained.first, sustained.last
        ));
        line(format!("heat       {}", self.heat.text()));
        line(format!("use        {}: {}", self.recommended, self.reason));
        line(format!("\nFor the table of boards in docs/measurements.md:\n{}", self.table_line()));
        text
    }

    /// One line of the table of boards in docs/measurements.md.
    fn table_line(&self) -> String {
        let best = self.variants.iter().find(|variant| variant.name() == self.recommended);
        let stages = best.map_or_else(String::new, |variant| {
            variant.stages_ms.iter().map(|(_, ms)| format!("{ms:.1}")).collect::<Vec<_>>().join(" + ")
        });
        format!(
            "| {} | {} {} | {} | {:.1}/s over {:.0} s | {} | agent {}, ONNX Runtime {} |",
            self.board.name,
            self.model,
            self.recommended,
            stages,
            self.sustained.per_second,
            self.sustained.seconds,
            self.heat.text(),
            self.agent,
            self.runtime
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int8`, or `int8 on xnnpack`.
    fn variant(name: &str, infer_ms: u64, golden_agree: bool) -> VariantReport {
        let (name, provider) = name.split_once(" on ").unwrap_or((name, RunsOn::CPU));
        let on =
            RunsOn { name: if provider == RunsOn::CPU { RunsOn::CPU } else { "xnnpack" }, steps: None, refused: None };
        let took = Duration::from_millis(infer_ms);
        let stages = Stage::ALL.map(|stage| vec![if stage == Stage::Infer { took } else { Duration::ZERO }]);
        VariantReport::new(name.to_owned(), &on, Duration::ZERO, golden_agree, stages)
    }

    #[track_caller]
    fn check(variants: &[VariantReport], expected: &str, why: &str) {
        let (chosen, reason) = recommend(variants).expect("a variant");
        assert_eq!(chosen, expected, "{reason}");
        assert!(reason.contains(why), "{reason}");
    }

    #[test]
    fn the_faster_variant_is_recommended_only_if_it_is_right_and_clearly_faster() {
        check(&[variant("int8", 10, true), variant("fp32", 20, true)], "int8", "50 % less time");
        check(&[variant("int8", 30, true), variant("fp32", 20, true)], "fp32", "33 % less time");
        check(&[variant("int8", 10, false), variant("fp32", 20, true)], "fp32", "int8 does not");
        check(&[variant("int8", 19, true), variant("fp32", 20, true)], "fp32", "as fast as each other");
        check(&[variant("int8", 10, false), variant("fp32", 20, false)], "int8", "do not use this bundle");
        check(&[variant("fp32", 20, true)], "fp32", "only variant");
    }

    #[test]
    fn an_accelerator_is_recommended_only_if_it_is_clearly_faster_than_the_processor() {
        check(&[variant("int8", 10, true), variant("int8 on xnnpack", 5, true)], "int8 on xnnpack", "50 % less time");
        check(&[variant("int8", 10, true), variant("int8 on xnnpack", 20, true)], "int8", "50 % less time");
        let four = ["int8", "int8 on xnnpack", "fp32", "fp32 on xnnpack"]
            .map(|name| variant(name, if name.starts_with("int8") { 100 } else { 200 }, true));
        check(&four, "int8", "`int8 on xnnpack` is no faster");
        let mut refused = variant("int8", 10, true);
        refused.refused = Some("it runs on the cpu and not on xnnpack: it takes no step of this model".to_owned());
        check(&[variant("int8", 10, true), refused], "int8", "only variant");
    }
}
