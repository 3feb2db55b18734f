//! Detectors find in the golden photos what another implementation found, at the same places.

mod support;

use hedge_inference::task::{Reading, Task};
use hedge_inference::{Bundle, ContentType, Model, SessionOptions};
use hedge_proto::{Found, Output, Share};
use serde::Deserialize;

const SCORE_DISTANCE_MAX: f32 = 0.03;
const PIXELS_MAX: f32 = 6.0;

#[derive(Deserialize)]
struct GoldenFile {
    photos: Vec<Photo>,
}

#[derive(Deserialize)]
struct Photo {
    file: String,
    size: [f32; 2],
    #[serde(rename = "objects-small")]
    small: Vec<Expected>,
    #[serde(rename = "objects-large")]
    large: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    label: String,
    score: f32,
    corners: [f32; 4],
}

/// The same reading, showing what scores so much.
fn showing(task: &Task, shown_min: f32) -> Task {
    let mut task = task.clone();
    let Reading::Boxes(detect) = &mut task.reading else { panic!("a detector") };
    detect.shown_min = Share::new(shown_min).expect("a share");
    task
}

fn found(name: &str, file: &str, shown_min: f32) -> Option<Vec<Found>> {
    let runtime = support::runtime()?;
    let bundle = Bundle::open(&support::models().join(name)).expect("a bundle");
    let mut model = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect("a model");
    let bytes = std::fs::read(support::models().join("pictures").join(file)).expect("a picture");
    let content_type = ContentType::sniff(&bytes).expect("JPEG or PNG");
    let tensor = model.tensor(&content_type, &bytes, None).expect("a tensor");
    let outputs = model.run(&tensor).expect("outputs");
    let (said, _) = showing(model.task(), shown_min).read(&outputs, &tensor.frame).expect("readable");
    let Output::Boxes(found) = said else { panic!("boxes") };
    Some(found)
}

#[test]
fn photos_get_the_golden_boxes() {
    let text = std::fs::read(support::models().join("pictures/golden-boxes.json")).expect("golden-boxes.json");
    let golden: GoldenFile = serde_json::from_slice(&text).expect("as we wrote it");
    for photo in &golden.photos {
        for (name, expected) in [("objects-small", &photo.small), ("objects-large", &photo.large)] {
            // What scores just less may come in: the numbers of two resizers differ a little.
            let Some(found) = found(name, &photo.file, 0.25 - SCORE_DISTANCE_MAX) else { return };
            let same = |one: &Found, other: &Expected| {
                let [width, height] = photo.size;
                let place = one.place;
                let corners = [
                    place.left * width,
                    place.top * height,
                    (place.left + place.width) * width,
                    (place.top + place.height) * height,
                ];
                one.label == other.label
                    && (one.score - other.score).abs() <= SCORE_DISTANCE_MAX
                    && corners.iter().zip(other.corners).all(|(own, other)| (own - other).abs() <= PIXELS_MAX)
            };
            for other in expected {
                let near = found.iter().filter(|one| one.label == other.label).collect::<Vec<_>>();
                assert!(found.iter().any(|one| same(one, other)), "{name} {}: no {other:?} in {near:?}", photo.file);
            }
            let more = found.iter().filter(|one| one.score > 0.25 + SCORE_DISTANCE_MAX);
            for one in more {
                assert!(expected.iter().any(|other| same(one, other)), "{name} {}: {one:?} too many", photo.file);
            }
        }
    }
}

#[test]
fn every_detector_gives_its_own_golden_answers() {
    let Some(runtime) = support::runtime() else { return };
    for name in ["objects-small", "objects-large"] {
        let bundle = Bundle::open(&support::models().join(name)).expect("a bundle");
        let variant = &bundle.manifest().variants[0];
        let mut model = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect("a model");
        for golden in &bundle.manifest().goldens {
            let outcome = model.check_golden(&bundle, variant, golden).expect("an answer");
            assert!(outcome.passed(), "{name} {}: {outcome:?}", golden.file.as_path().display());
        }
    }
}
