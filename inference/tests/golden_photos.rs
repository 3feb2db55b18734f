//! Pictures get the answers that Python's tools gave: same top-1, probabilities within 0.03.

mod support;

use std::path::Path;

use hedge_inference::bundle::GOLDEN_TOLERANCE;
use hedge_inference::task::{Reading, Scores};
use hedge_inference::{Bundle, ContentType, Model, SessionOptions};
use serde::Deserialize;

#[derive(Deserialize)]
struct GoldenFile {
    photos: Vec<Photo>,
}

#[derive(Deserialize)]
struct Photo {
    file: String,
    #[serde(rename = "photo-small")]
    small: Vec<Expected>,
    #[serde(rename = "photo-large")]
    large: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    label: String,
    score: f32,
}

#[test]
fn photos_get_the_golden_answers() {
    let Some(runtime) = support::runtime() else { return };
    let pictures = support::models().join("pictures");
    let text = std::fs::read(pictures.join("golden.json")).expect("golden.json");
    let golden: GoldenFile = serde_json::from_slice(&text).expect("golden.json as we wrote it");
    for name in ["photo-small", "photo-large"] {
        let bundle = Bundle::open(&support::models().join(name)).expect("a bundle");
        let mut model = Model::load(&runtime, &bundle, Some("int8"), &SessionOptions::default()).expect("a model");
        for photo in &golden.photos {
            let expected = if name == "photo-small" { &photo.small } else { &photo.large };
            check_photo(&bundle, &mut model, &pictures.join(&photo.file), expected);
        }
    }
}

#[track_caller]
fn check_photo(bundle: &Bundle, model: &mut Model, file: &Path, expected: &[Expected]) {
    let bytes = std::fs::read(file).expect("a picture");
    let content_type = ContentType::sniff(&bytes).expect("JPEG or PNG");
    let tensor = model.tensor(&content_type, &bytes, None).expect("a tensor");
    let outputs = model.run(&tensor).expect("an output");
    let Reading::Classes(classes) = &model.task().reading else { panic!("a classifier") };
    let numbers = classes.numbers(&outputs, bundle.labels().len()).expect("a number for each label");
    let scores = Scores::read(&numbers, classes.kind).expect("scores");
    let best = scores.top(1)[0];
    assert_eq!(bundle.labels()[best.class], expected[0].label, "{}", file.display());
    for Expected { label, score } in expected {
        // ImageNet has two cranes and two maillots: the better one is meant.
        let classes = bundle.labels().iter().zip(scores.as_slice()).filter(|(own, _)| *own == label);
        let ours = classes.map(|(_, score)| *score).fold(0.0, f32::max);
        assert!((ours - score).abs() <= GOLDEN_TOLERANCE, "{}: {label} {ours} instead of {score}", file.display());
    }
}

#[test]
fn every_bundle_gives_its_own_golden_answers_in_every_variant() {
    let Some(runtime) = support::runtime() else { return };
    for name in ["photo-small", "photo-large", "fashion-small", "fashion-large"] {
        let bundle = Bundle::open(&support::models().join(name)).expect("a bundle");
        for variant in &bundle.manifest().variants {
            let options = SessionOptions::default();
            let mut model = Model::load(&runtime, &bundle, Some(variant.name.as_str()), &options).expect("a model");
            for golden in &bundle.manifest().goldens {
                let outcome = model.check_golden(&bundle, variant, golden).expect("an answer");
                assert!(outcome.passed(), "{name} {} {}: {outcome:?}", variant.name, golden.file.as_path().display());
            }
        }
    }
}
