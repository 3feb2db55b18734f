//! Recordings and series get the answers that Python gave: numpy's front end, ONNX Runtime's model, 0.01 apart at most.
//! Whatever the recording, the spectrogram is whole and bounded.

mod support;

use hedge_inference::bundle::Input;
use hedge_inference::task::{Reading, Scores};
use hedge_inference::{Bundle, ContentType, Model, SessionOptions, wav};
use proptest::prelude::*;
use serde::Deserialize;

/// How far a probability may be from Python's.
const TOLERANCE: f32 = 0.01;

#[derive(Deserialize)]
struct Sample {
    task: String,
    file: String,
    small: Vec<f32>,
    large: Vec<f32>,
}

fn scores(model: &mut Model, content_type: &ContentType, bytes: &[u8]) -> Vec<f32> {
    let tensor = model.tensor(content_type, bytes, None).expect("a tensor");
    let outputs = model.run(&tensor).expect("an output");
    let Reading::Classes(classes) = &model.task().reading else { panic!("a classifier") };
    let numbers = classes.numbers(&outputs, model.task().labels.len()).expect("a number for each label");
    Scores::read(&numbers, classes.kind).expect("scores").as_slice().to_vec()
}

#[test]
fn recordings_and_series_get_pythons_probabilities() {
    let Some(runtime) = support::runtime() else { return };
    let text = std::fs::read(support::models().join("golden-sound-and-series.json")).expect("the golden file");
    let samples: Vec<Sample> = serde_json::from_slice(&text).expect("as the recipe wrote it");
    assert_eq!(samples.len(), 7);
    for sample in &samples {
        for (size, expected) in [("small", &sample.small), ("large", &sample.large)] {
            let bundle = Bundle::open(&support::models().join(format!("{}-{size}", sample.task))).expect("a bundle");
            let mut model = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect("a model");
            let bytes = std::fs::read(bundle.dir().join(&sample.file)).expect("a sample");
            let sniffed = ContentType::sniff(&bytes).or_else(|| ContentType::sniff_rows(&bytes));
            let found = scores(&mut model, &sniffed.expect("its kind"), &bytes);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let far = (found - expected).abs();
                assert!(far <= TOLERANCE, "{} {size}: {found} instead of {expected}", sample.file);
            }
            let variant = bundle.variant(None).expect("a variant");
            for golden in &bundle.manifest().goldens {
                let outcome = model.check_golden(&bundle, variant, golden).expect("an answer");
                assert!(outcome.passed(), "{}: {outcome:?}", bundle.dir().display());
            }
        }
    }
}

/// The same rows as CSV, and as the two kinds of JSON, are the same sample.
#[test]
fn a_series_is_the_same_however_it_is_written() {
    let bundle = Bundle::open(&support::models().join("speaker-small")).expect("a bundle");
    let csv = std::fs::read_to_string(bundle.dir().join("golden/sure.csv")).expect("a sample");
    let rows: Vec<String> = csv.lines().skip(1).map(|row| format!("[{row}]")).collect();
    let tensor = |kind: &ContentType, text: &str| bundle.input().tensor(kind, text.as_bytes(), None).expect("a tensor");
    let expected = tensor(&ContentType::Csv, &csv);
    assert_eq!(tensor(&ContentType::Json, &format!("[{}]", rows.join(","))), expected);
    assert_eq!(tensor(&ContentType::NdJson, &rows.join("\n")), expected);
}

fn digits() -> Input {
    Bundle::open(&support::models().join("digits-small")).expect("a bundle").input().clone()
}

#[test]
fn a_sample_of_another_kind_is_refused_by_what_the_model_takes() {
    let speaker = Bundle::open(&support::models().join("speaker-small")).expect("a bundle").input().clone();
    let photo = support::photo_input();
    for (input, kind, words) in [
        (&digits(), ContentType::Jpeg, "this is JPEG, but the model takes sound (audio/wav)"),
        (&digits(), ContentType::Csv, "this is CSV, but the model takes sound"),
        (&speaker, ContentType::Wav, "this is WAV, but the model takes rows of numbers (text/csv"),
        (&photo, ContentType::Wav, "this is WAV, but the model takes pictures"),
    ] {
        let error = input.tensor(&kind, b"RIFF\0\0\0\0WAVE", None).expect_err(words).to_string();
        assert!(error.starts_with(words), "{error}");
    }
    let error = digits().tensor(&ContentType::Wav, b"\xFF\xD8\xFF", None).expect_err("a picture").to_string();
    assert_eq!(error, "the sample is said to be WAV, but its bytes are JPEG");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_recording_gives_a_whole_spectrogram_within_its_bounds(
        rate in prop::sample::select(vec![1000_u32, 8000, 11_025, 44_100, 48_000, 384_000]),
        channels in 1_u16..=3,
        samples in prop::collection::vec(any::<i16>(), 3..4000),
        repeated in 1_usize..20,
    ) {
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<_>>().repeat(repeated);
        let tensor = digits().tensor(&ContentType::Wav, &wav(rate, channels, &bytes), None).expect("a tensor");
        prop_assert_eq!(tensor.data.len(), 40 * 49);
        // From silence to more power than 256 samples of 1 have in all bands together.
        let (low, high) = ((1e-6_f32.ln() + 7.0) / 4.0, ((256.0_f32 * 256.0 * 129.0).ln() + 7.0) / 4.0);
        prop_assert!(tensor.data.iter().all(|value| (low - 1e-3..=high).contains(value)));
    }

    /// Neither a torn file nor a changed byte does more than cost the sample.
    #[test]
    fn no_recording_breaks_the_reader(at in 0_usize..60, byte in any::<u8>(), kept in 0_usize..400) {
        let mut bytes = wav(16_000, 2, &[7; 300]);
        bytes[at] = byte;
        bytes.truncate(kept);
        drop(digits().tensor(&ContentType::Wav, &bytes, None));
    }
}
