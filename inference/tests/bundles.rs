//! A bundle that is not whole, or says what cannot be, is refused in words that help.

mod support;

use std::path::Path;

use hedge_inference::task::{OutputKind, Reading};
use hedge_inference::{Bundle, Model, ModelError, Provider, SessionOptions, Task, Tensor, Tensors};
use hedge_proto::{Digest, Measure, Output, Rect};

/// A bundle whose model file holds seven bytes: enough to be opened, not to be run.
fn write_bundle(dir: &Path, change: impl Fn(String) -> String) {
    let model = b"weights";
    std::fs::write(dir.join("model.onnx"), model).expect("a file");
    std::fs::write(dir.join("labels.txt"), "cat\ndog\n").expect("a file");
    let manifest = format!(
        r#"name = "pets"
version = "1"
task = "pets"
kind = "classify"
labels = "labels.txt"

[input]
name = "input"
shape = [1, 3, 32, 32]

[input.picture]
layout = "nchw"
color = "rgb"
mean = [1, 2, 3]
std = 128.0

[output]
name = "logits"
kind = "logits"
temperature = 1.5

[threshold]
score_min = 0.6

[[variant]]
name = "fp32"
file = "model.onnx"
sha256 = "{}"
bytes = 7

[cloud_labels]
dog = "hound"
"#,
        Digest::of(model)
    );
    std::fs::write(dir.join("manifest.toml"), change(manifest)).expect("a file");
}

fn open(change: impl Fn(String) -> String) -> Result<Bundle, String> {
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), change);
    Bundle::open(dir.path()).map_err(|error| error.to_string())
}

#[track_caller]
fn check_refused(from: &str, to: &str, words: &str) {
    let error = open(|manifest| {
        assert!(manifest.contains(from), "{from}");
        manifest.replace(from, to)
    })
    .expect_err("refused");
    assert!(error.contains(words), "`{error}` does not say `{words}`");
}

#[test]
fn a_whole_bundle_is_opened_and_knows_its_words() {
    let bundle = open(|manifest| manifest).expect("a bundle");
    assert_eq!((bundle.task(), bundle.labels().len()), ("pets", 2));
    assert_eq!((bundle.cloud_label("cat"), bundle.cloud_label("dog")), ("cat", "hound"));
    assert_eq!(bundle.reading().labels, ["cat", "hound"]);
    assert_eq!(bundle.threshold().map(|threshold| threshold.score_min()), Some(0.6));
}

#[test]
fn a_wrong_field_is_named_with_its_line() {
    check_refused("task = \"pets\"", "tusk = \"pets\"", "manifest.toml:3: unknown field `tusk`");
    check_refused("[1, 3, 32, 32]", "[1, 32, 32, 3]", "has 32 channels");
    check_refused("[1, 3, 32, 32]", "[8, 3, 32, 32]", "must start with 1");
    check_refused("[1, 3, 32, 32]", "[1, 3, 99999999, 99999999]", "must hold");
    check_refused("[1, 2, 3]", "[1, 2]", "`mean` has 2 numbers for 3 channels");
    check_refused("128.0", "0.0", "`std` is divided by");
    check_refused("1.5", "-1.5", "temperature = -1.5");
    check_refused("0.6", "1.2", "score_min = 1.2");
    check_refused("\"model.onnx\"", "\"../model.onnx\"", "not the name of a file inside the bundle");
    check_refused("\"model.onnx\"", "\"/etc/passwd\"", "not the name of a file inside the bundle");
    check_refused("dog = \"hound\"", "fox = \"hound\"", "`[cloud_labels]` names `fox`");
    check_refused(
        "[cloud_labels]",
        "[[golden]]\nfile = \"labels.txt\"\nlabel = \"fox\"\nscores = {}\n[cloud_labels]",
        "fox",
    );
}

#[test]
fn a_file_that_is_not_the_described_one_is_named() {
    check_refused("bytes = 7", "bytes = 8", "has 7 bytes where the manifest says 8");
    check_refused("sha256 = \"", "sha256 = \"00", "64 hexadecimal digits");
    let other = Digest::of(b"other").to_string();
    check_refused(&Digest::of(b"weights").to_string(), &other, "is not the file the manifest describes");
    check_refused("labels.txt", "lables.txt", "cannot read");
}

#[test]
fn files_that_an_editor_put_a_mark_before_are_the_same_files() {
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), |manifest| format!("\u{feff}{manifest}"));
    std::fs::write(dir.path().join("labels.txt"), "\u{feff}cat\r\ndog\r\n\r\n").expect("a file");
    assert_eq!(Bundle::open(dir.path()).expect("a bundle").labels(), ["cat", "dog"]);
    let utf16: Vec<u8> = "\u{feff}cat\ndog".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (labels, words) in [
        (utf16.as_slice(), "labels.txt: it is saved as UTF-16"),
        (b"cat\nk\xe4fer\n", "labels.txt: line 2 is not UTF-8"),
        (b"cat\n", "one label, `cat`"),
        (b"[\"cat\", \"dog\"]", "it is JSON; a bundle's labels stand one per line"),
    ] {
        std::fs::write(dir.path().join("labels.txt"), labels).expect("a file");
        let error = Bundle::open(dir.path()).expect_err("refused").to_string();
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    }
}

#[test]
fn percentages_are_an_output_of_their_own_and_have_no_temperature() {
    let percent = |rest: &str| open(|manifest| manifest.replace("kind = \"logits\"\ntemperature = 1.5", rest));
    let bundle = percent("kind = \"percent\"").expect("a bundle");
    assert!(matches!(&bundle.manifest().output, Reading::Classes(classes) if classes.kind == OutputKind::Percent));
    let error = percent("kind = \"percent\"\ntemperature = 1.5").expect_err("refused");
    assert!(error.contains("`temperature` divides logits"), "{error}");
}

/// The same bundle as one of a detector.
fn detecting(manifest: &str, output: &str) -> String {
    let classes = "name = \"logits\"\nkind = \"logits\"\ntemperature = 1.5";
    manifest.replace("kind = \"classify\"", "kind = \"detect\"").replace(classes, output)
}

const SCORES: &str = "scores = { name = \"s\" }\nshown_min = 0.3";

fn tensors(list: &[(&str, &[usize], &[f32])]) -> Tensors {
    let one = |(name, shape, data): &(&str, &[usize], &[f32])| {
        ((*name).to_owned(), Tensor::new(shape.to_vec(), data.to_vec()))
    };
    Tensors(list.iter().map(one).collect())
}

fn labels_found(task: &Task, outputs: &Tensors) -> Vec<(String, Rect)> {
    match task.read(outputs, &Rect::WHOLE).expect("readable") {
        (Output::Boxes(found), _) => found.into_iter().map(|one| (one.label, one.place)).collect(),
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_bar_of_one_label_holds_also_where_the_cloud_has_another_word_for_it() {
    let output = format!("boxes = {{ name = \"b\", form = \"corners\" }}\n{SCORES}\nshown = {{ dog = 0.8 }}");
    let task = open(|manifest| detecting(&manifest, &output)).expect("a bundle").reading();
    let boxes: [(&str, &[usize], &[f32]); 1] = [("b", &[1, 2, 4], &[0.0, 0.0, 16.0, 16.0, 16.0, 16.0, 32.0, 32.0])];
    let seen = |scores: &[f32]| {
        let outputs = tensors(&[boxes.as_slice(), &[("s", &[1, 2, 2], scores)]].concat());
        labels_found(&task, &outputs).into_iter().map(|(label, _)| label).collect::<Vec<_>>()
    };
    assert_eq!(seen(&[0.5, 0.0, 0.0, 0.5]), ["cat"], "0.5 is no hound");
    assert_eq!(seen(&[0.5, 0.0, 0.0, 0.9]), ["hound", "cat"]);
}

#[test]
fn an_ssd_shifts_and_stretches_the_priors_of_its_bundle() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = format!("boxes = {{ name = \"b\", form = \"deltas\", priors = \"priors.npy\" }}\n{SCORES}");
    write_bundle(dir.path(), |manifest| detecting(&manifest, &output));
    let npy = |shape: &str, rows: &[f32]| {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let length = u16::try_from(header.len()).expect("short").to_le_bytes();
        let rows: Vec<u8> = rows.iter().flat_map(|number| number.to_le_bytes()).collect();
        std::fs::write(
            dir.path().join("priors.npy"),
            [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &rows].concat(),
        )
    };
    npy("(1, 3)", &[0.0; 3]).expect("written");
    let error = Bundle::open(dir.path()).expect_err("refused").to_string();
    assert!(error.contains("priors.npy") && error.contains("rows of four numbers"), "{error}");

    npy("(2, 4)", &[0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5]).expect("written");
    let task = Bundle::open(dir.path()).expect("a bundle").reading();
    // A quarter to the right of the first, at half its width: one and 2.5 of the usual variances, 0.1 and 0.2.
    let deltas = [5.0, 0.0, 0.5_f32.ln() / 0.2, 0.0, 0.0, 0.0, 0.0, 0.0];
    let outputs = tensors(&[("b", &[1, 2, 4], &deltas), ("s", &[1, 2, 2], &[0.9, 0.0, 0.0, 0.8])]);
    let [(_, first), (_, second)] = labels_found(&task, &outputs).try_into().expect("two");
    let near = |one: f32, other: f32| (one - other).abs() < 1e-5;
    assert!(near(first.left, 0.625) && near(first.width, 0.25) && near(first.top, 0.25) && near(first.height, 0.5));
    assert_eq!(second, Rect { left: 0.0, top: 0.0, width: 0.5, height: 0.5 });
    let fewer = tensors(&[("b", &[1, 1, 4], &deltas[..4]), ("s", &[1, 1, 2], &[0.9, 0.0])]);
    assert!(task.read(&fewer, &Rect::WHOLE).expect_err("unusable").to_string().contains("one for each of the priors"));
}

#[test]
fn a_bundle_may_limit_any_measure_and_no_other_word() {
    let limits = |doubt_max: &str| {
        open(|manifest| manifest.replace("score_min = 0.6", &format!("score_min = 0.6\ndoubt_max = {{ {doubt_max} }}")))
    };
    let threshold = limits("errors = 0.25").expect("a bundle").threshold().expect("suggested");
    assert_eq!((threshold.score_min(), threshold.most(Measure::Errors)), (0.6, 0.25));
    let error = limits("mistakes = 0.25").expect_err("refused");
    assert!(error.contains("`doubt_max.mistakes` is no measure") && error.contains("mean_shown"), "{error}");
    let error = limits("learned = 0.25").expect_err("a device's own");
    assert!(error.contains("`doubt_max.learned` is no measure") && error.ends_with("confidence"), "{error}");
}

#[test]
fn a_file_that_is_no_model_is_refused_by_name() {
    let Some(runtime) = support::runtime() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), |manifest| manifest);
    let bundle = Bundle::open(dir.path()).expect("a bundle");
    let error = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect_err("no model");
    assert!(matches!(&error, ModelError::Load { path, .. } if path.ends_with("model.onnx")), "{error}");
    let error = Model::load(&runtime, &bundle, Some("int4"), &SessionOptions::default()).expect_err("no variant");
    assert!(error.to_string().contains("no variant `int4`; it has: fp32"), "{error}");
}

#[test]
fn a_model_answers_on_the_processor_and_says_why_it_cannot_have_its_accelerator() {
    let Some(runtime) = support::runtime() else { return };
    let bundle = Bundle::open(&support::models().join("fashion-small")).expect("a bundle");
    let options = SessionOptions { provider: Some(Provider::Rknpu.into()), ..SessionOptions::default() };
    let mut model = Model::load(&runtime, &bundle, Some("fp32"), &options).expect("a model");
    let on = model.runs_on().clone();
    assert_eq!(on.to_string(), "cpu");
    assert!(on.refused.is_some_and(|why| why.contains("on the cpu and not on rknpu: ")));
    let variant = bundle.variant(Some("fp32")).expect("a variant");
    for golden in &bundle.manifest().goldens {
        assert!(model.check_golden(&bundle, variant, golden).expect("an answer").passed());
    }
}

#[test]
fn a_manifest_that_contradicts_its_model_is_refused_at_load() {
    let Some(runtime) = support::runtime() else { return };
    let fashion = support::models().join("fashion-small");
    let manifest = std::fs::read_to_string(fashion.join("manifest.toml")).expect("a manifest");
    for (from, to, words) in [
        ("name = \"input\"", "name = \"image\"", "`input.name` is \"image\" in the manifest"),
        ("name = \"logits\"", "name = \"scores\"", "`output.name` is \"scores\""),
        ("[1, 1, 28, 28]", "[1, 1, 32, 32]", "`input.shape` is [1, 1, 32, 32]"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        for file in ["int8.onnx", "fp32.onnx", "labels.txt"] {
            std::fs::copy(fashion.join(file), dir.path().join(file)).expect("a copy");
        }
        let without_goldens = manifest.split("[[golden]]").next().unwrap_or_default();
        std::fs::write(dir.path().join("manifest.toml"), without_goldens.replacen(from, to, 1)).expect("a file");
        let bundle = Bundle::open(dir.path()).expect("a bundle");
        let error = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect_err(words).to_string();
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    }
}
