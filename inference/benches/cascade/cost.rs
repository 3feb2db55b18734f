//! What one decision costs: reading the model's numbers, and judging them.

use std::hint::black_box;
use std::time::Instant;

use hedge_core::chance::Chance;
use hedge_core::clock::Moment;
use hedge_core::judge::{Asked, Experience, Limits, Rule};
use hedge_inference::task::Reading;
use hedge_inference::{Task, Tensor, Tensors};
use hedge_proto::{Allowance, Doubt, Measure, ModelRef, Rect, Share, ThresholdMode};

use crate::Fallible;

pub(crate) struct Cost {
    pub(crate) classes_us: f64,
    pub(crate) boxes_us: f64,
    pub(crate) judge_us: f64,
    /// Of the judge, on a kept answer.
    pub(crate) allocations: u64,
}

/// So few that they fit between two turns of other programs.
const ROUNDS: u32 = 100;
const REPEATS: usize = 2_000;

/// The least of some repeats: whatever else the machine does only adds.
fn us(mut f: impl FnMut()) -> f64 {
    let mut once = || {
        let begun = Instant::now();
        (0..ROUNDS).for_each(|_| f());
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
    };
    (0..REPEATS).map(|_| once()).fold(f64::INFINITY, f64::min)
}

pub(crate) fn measure() -> Fallible<Cost> {
    let mut chance = Chance::from_seed(1);
    #[expect(clippy::cast_possible_truncation, reason = "a share")]
    let mut share = move || chance.share() as f32;
    let classes = Task {
        reading: toml::from_str::<Reading>("name = \"y\"\nkind = \"logits\"")?,
        labels: (0..1000).map(|at| format!("class {at}")).collect(),
        confidence: None,
        embedding: None,
        pixels: (224, 224),
    };
    let logits = Tensor::new(vec![1, 1000], (0..1000).map(|_| share() * 12.0).collect());
    let logits = Tensors(vec![("y".into(), logits)]);
    let boxes = Task {
        reading: toml::from_str::<Reading>(
            "boxes = { name = \"b\", form = \"corners\", unit = \"fraction\" }\nshown_min = 0.35\n\
             scores = { name = \"s\", kind = \"probabilities\" }\nclasses = { name = \"c\" }",
        )?,
        labels: (0..80).map(|at| format!("thing {at}")).collect(),
        confidence: None,
        embedding: None,
        pixels: (224, 224),
    };
    let corners = (0..100).flat_map(|_| {
        let (left, top) = (share() * 0.8, share() * 0.8);
        [left, top, left + 0.1, top + 0.1]
    });
    let found = Tensors(vec![
        ("b".into(), Tensor::new(vec![1, 100, 4], corners.collect())),
        ("s".into(), Tensor::new(vec![1, 100], (0..100).map(|_| share()).collect())),
        ("c".into(), Tensor::new(vec![1, 100], (0_u8..100).map(|at| f32::from(at % 80)).collect())),
    ]);
    let rule = Rule {
        mode: ThresholdMode::Budget,
        allowance: Allowance { share: Some(Share::new(0.1)?), ..Allowance::default() },
        ..Rule::FIXED
    };
    let mut experience = Experience::of(ModelRef { name: "bench".into(), version: "1".into() });
    let (mut chance, mut second) = (Chance::from_seed(2), 0);
    let mut judge = |doubt: &Doubt| {
        second += 1;
        let asked = Asked { rule: &rule, ..Asked::of(Limits::NONE) };
        experience.judge(doubt, asked, Moment(second * 1000), &mut chance)
    };
    classes.read(&logits, &Rect::WHOLE)?;
    boxes.read(&found, &Rect::WHOLE)?;
    let classes_us = us(|| {
        let read = classes.read(black_box(&logits), &Rect::WHOLE);
        drop(black_box(read.map(|(output, doubt)| (output, judge(&doubt)))));
    });
    let boxes_us = us(|| {
        let read = boxes.read(black_box(&found), &Rect::WHOLE);
        drop(black_box(read.map(|(output, doubt)| (output, judge(&doubt)))));
    });
    let sure = Doubt::NONE.with(Measure::Score, 1e-6);
    let judge_us = us(|| {
        black_box(judge(black_box(&sure)));
    });
    let allocations = allocation_counter::measure(|| {
        black_box(judge(&sure));
    })
    .count_total;
    Ok(Cost { classes_us, boxes_us, judge_us, allocations })
}
